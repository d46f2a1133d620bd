"""The update that Hessian-free, natural gradient and their relatives share; each brings the systems that it solves.

Symbols, with losses, gradients and products per frame (sums divided by their frames, once):
    θ (N,)           parameters
    S_g, S_c, S_h    gradient sample, curvature sample, held-out set
    g (N,)           ∇L(θ) on S_g
    A = JᵀMJ + λI    on S_c, known by its products; λ the damping per frame; M the criterion's, chosen by the method
    R(θ)             terms in θ alone: weight decay and the model's penalty, part of L, g and A
    φ(d)             gᵀd + ½ dᵀA d; A of the method's last system
    q(d)             φ(d) − ½λ‖d‖², the undamped model in ρ = (L(θ+d) − L(θ)) / q(d), L on S_g
Source: Kingsbury, Sainath and Soltau (2012), algorithm 1; Martens (2010). That ρ comes from training data, and that
curvature samples of frame models are drawn by frames rather than utterances, are our choices.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.objective.objective import Account, KroneckerSums, Linearisation, Matrix, Objective
from asr_hf.optimizers.blocks import Blocks
from asr_hf.optimizers.candidates import EachAsItAppears, Search
from asr_hf.optimizers.growth import variance_share
from asr_hf.optimizers.line_search import armijo, backtrack
from asr_hf.optimizers.optimizer import StepReport
from asr_hf.optimizers.preconditioning import (
    PairMemory,
    averaged,
    diagonal_of,
    kronecker_preconditioners,
    new_store,
    preconditioners,
)
from asr_hf.optimizers.regulariser import Regulariser
from asr_hf.optimizers.samples import drawn, utterances, whole_set
from asr_hf.optimizers.second_order_options import SecondOrderOptions
from asr_hf.optimizers.second_order_state import SecondOrderState
from asr_hf.solvers.cg import CgResult, Iterate, Operator
from asr_hf.solvers.pairs import PairStore
from asr_hf.solvers.preconditioners import Preconditioner
from asr_hf.solvers.stopping import StopReason
from asr_hf.solvers.vectors import dot, norm

NEGLIGIBLE = 1e-7  # a predicted change of the loss below this (nats a frame) says nothing about the model


class SecondOrder(ABC):
    """A second-order method in the middle of a run; subclasses solve its systems.

    Args:
        options, state, seed: as configured; the seed draws the samples.
    """

    options: SecondOrderOptions

    def __init__(self, options: SecondOrderOptions, state: SecondOrderState, seed: int) -> None:
        self.options, self.state, self.seed = options, state, seed
        self._b: torch.Tensor | None = None  # −g per frame at θ (N,); a resumed run computes the same again
        self._loss_at_theta = math.nan
        self._wanted_share = 1.0  # what the variance test asks of the next gradient sample
        self._mean_square: torch.Tensor | None = None  # of utterances' gradients at θ (N,), for Jacobi
        self._factors: KroneckerSums | None = None  # the last ones; their average is part of the state
        self._regulariser: Regulariser
        self._blocks: Blocks

    @abstractmethod
    def view(self) -> str:
        """The method as configured, in a few lines."""

    @abstractmethod
    def solve(self, objective: Objective, lin: Linearisation, b: torch.Tensor, watch_drift: bool) -> Search:
        """Solve the method's systems on an open linearisation, for a direction d with φ(d) < 0.

        Args:
            objective: for held-out losses of candidates.
            lin: of θ and the curvature sample.
            b: −g (N,), not to be changed.
            watch_drift: whether products are imprecise, so that the solve may be asked for again.
        """

    def blocks(self, objective: Objective) -> Blocks:
        """The partition of θ: one block, unless the method says otherwise."""
        return Blocks(objective.layout)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What to keep when the run is over."""
        return self.state.theta, self.state.buffers

    def step(self, objective: Objective) -> StepReport:
        """One update: gradient, direction, candidates on held-out data, ρ and λ, the step along the gradient sample."""
        begin, state, options = time.perf_counter(), self.state, self.options
        objective.account = Account()
        state.update += 1
        if math.isnan(state.heldout):
            self._take_stock(objective)
        if self._b is None:
            objective.begin_update()
            self._blocks = self.blocks(objective)
            self._regulariser = Regulariser(objective, state.theta, options.weight_decay)
            gradient, self._loss_at_theta = self._evaluate_gradient(objective)
            self._b = gradient.neg_()
            del gradient
        b = self._b
        report = StepReport(
            state.update, False, self._loss_at_theta, state.heldout, norm(b), 0.0, damping=state.damping
        )
        search = self._search(objective, b, report)
        solution = search.result
        if options.accept == "always":
            self._move_always(solution, report)
        else:
            self._choose(objective, b, search, report)
        report.note += search.remark
        self._conclude(objective, solution, report)
        report.add_account(objective.account, time.perf_counter() - begin)
        return report

    def _choose(self, objective: Objective, b: torch.Tensor, search: Search, report: StepReport) -> None:
        """The candidate of lowest held-out loss (or the gradient sample's); nothing moves unless it is below θ's."""
        state, iterates, best = self.state, search.result.iterates, search.best
        if best is None and iterates:
            best = backtrack(reversed(iterates), lambda d: self.judged(objective, state.theta + d.x), self.to_beat)
        if best is None:
            report.note = f"rejected: {search.result.reason.value}"
        elif best[1] < self.to_beat:
            self._try(objective, b, *best, report)
        else:
            what = "held-out loss" if self.options.accept == "heldout" else "loss of the gradient sample"
            report.note = f"rejected: no CG iterate lowers the {what}"

    def _try(self, objective: Objective, b: torch.Tensor, chosen: Iterate, judged: float, report: StepReport) -> None:
        """ρ and Armijo along the chosen iterate; θ moves and λ follows ρ unless Armijo or held-out loss forbid it."""
        state, d, current, by_heldout = self.state, chosen.x, self._loss_at_theta, self.options.accept == "heldout"
        loss_at_d = self._loss(objective, state.theta + d) if by_heldout else judged
        slope = -dot(b, d)
        predicted = chosen.quadratic - 0.5 * state.damping * dot(d, d)  # q(d) = φ(d) − ½λ‖d‖²
        report.rho = (loss_at_d - current) / predicted if predicted < -NEGLIGIBLE else None
        found = armijo(
            lambda alpha: self._loss(objective, state.theta + alpha * d), current, slope, loss_at_d, self.options.armijo
        )
        if found is None:
            report.note = "rejected: no step along the chosen iterate lowers the training loss (Armijo)"
            return
        alpha, _ = found
        moved = state.theta + alpha * d
        if alpha != 1.0 and by_heldout:
            judged = self._heldout(objective, moved)
            if judged >= state.heldout:
                report.note = "rejected: Armijo's shorter step does not lower the held-out loss"
                return
        state.theta = moved
        if by_heldout:
            state.heldout = judged
        state.damping = self.options.damping.after(state.damping, report.rho)
        report.accepted, report.step = True, alpha
        report.note = f"iterate {chosen.iteration} of {report.cg_iterations}"

    def _move_always(self, solution: CgResult, report: StepReport) -> None:
        """θ + ηd with the last iterate, whatever the loss does."""
        state, step = self.state, self.options.step
        if not solution.iterations:
            report.note = f"rejected: {solution.reason.value}"
            return
        state.theta = state.theta + step * solution.x
        report.accepted, report.step = True, step
        report.note = f"iterate {solution.iterations}, not tested"

    def _conclude(self, objective: Objective, solution: CgResult, report: StepReport) -> None:
        """What the next update starts from, and whether there is one."""
        state, options = self.state, self.options
        if report.accepted:
            self._take_stock(objective)
            report.heldout = state.heldout
            state.rejections = 0
            beta = options.warm_start_after(state.update)
            state.direction = solution.x.mul_(beta) if beta else torch.empty(0)
        else:
            state.rejections += 1
            state.direction = torch.empty(0)
            state.damping = options.damping.after_rejection(state.damping)
        shares = options.growth.after(state.gradient_share, state.curvature_share, self._wanted_share)
        if report.accepted or shares[0] != state.gradient_share:  # a larger sample may see what this one did not
            state.gradient_update, self._b, self._mean_square = state.update + 1, None, None
        state.gradient_share, state.curvature_share = shares
        if state.update >= options.updates:
            state.finished = f"all {options.updates} updates are done"
        elif state.rejections >= options.stop_rejections:
            state.finished = f"{state.rejections} updates in a row were rejected"

    def _search(self, objective: Objective, b: torch.Tensor, report: StepReport) -> Search:
        """The method's systems in the run's precision, or from then on in fp32 if that is found too coarse."""
        state, remark = self.state, ""
        sample = self._sample(objective, "curvature")
        if not state.precision:
            precision, why = objective.choose_precision(state.theta, sample)
            state.precision, remark = precision.value, f"; {why}"
        self._prepare_preconditioner(objective)
        search = self._solve_in(Precision(state.precision), objective, sample, b, report)
        solution = search.result
        if solution.reason is StopReason.DRIFT:
            remark += (
                f"; curvature products in {state.precision} gave way to fp32: the true residual had parted from "
                f"CG's recursion by {solution.drift:.2g} of the gradient after {solution.iterations} iterations"
            )
            state.precision = Precision.FP32.value
            search = self._solve_in(Precision.FP32, objective, sample, b, report)
        search.remark += remark
        report.precision = state.precision
        report.cg_iterations = search.result.iterations + search.inner_iterations
        report.cg_stop = search.result.reason.name
        return search

    def _solve_in(
        self, precision: Precision, objective: Objective, sample: Sample, b: torch.Tensor, report: StepReport
    ) -> Search:
        account = objective.account
        with objective.linearize(self.state.theta, sample, precision) as lin:
            begin, before = time.perf_counter(), _on_ranks(account)
            search = self.solve(objective, lin, b, precision is not Precision.FP32)
            own = time.perf_counter() - begin - (_on_ranks(account) - before)
        report.master_per_iteration = own / max(1, search.result.iterations + search.inner_iterations)
        return search

    # The pieces that the systems of the methods are made of.

    def damped(self, lin: Linearisation, matrix: str = "", damping: float | None = None) -> Operator:
        """v ↦ (JᵀMJ + λI)v per frame, M the options' unless another is named."""
        return lambda v_N: self.damped_blocks(lin, (), matrix, damping)(v_N)

    def damped_blocks(
        self,
        lin: Linearisation,
        groups: tuple[tuple[str, ...], ...],
        matrix: str = "",
        damping: float | None = None,
    ) -> Operator:
        """v ↦ (JᵀMJ + λI)v per frame with the diagonal blocks of `groups` (none: the whole matrix)."""
        lam = self.state.damping if damping is None else damping
        which = Matrix(matrix or self.options.matrix, lam * self.options.structural, groups)

        def product(v_N: torch.Tensor) -> torch.Tensor:
            gv_N = self._regulariser.add_product(lin.product(v_N, which).div_(lin.frames), v_N)
            return gv_N.add_(v_N, alpha=lam)

        return product

    def warm_start(self, again: bool) -> torch.Tensor | None:
        """β·d_N of the update before, where there is one; it is given away unless the solve may be done `again`."""
        start = self.state.direction
        if not again:
            self.state.direction = torch.empty(0)
        return start if start.numel() else None

    def each_candidate(self, objective: Objective) -> EachAsItAppears:
        """Evaluates candidates d at θ + d."""
        return EachAsItAppears(lambda d: self.judged(objective, self.state.theta + d))

    def judged(self, objective: Objective, theta: torch.Tensor) -> float:
        """What candidates are judged by: the held-out loss, or with accept=sample that of the gradient sample."""
        return (self._loss if self.options.accept == "sample" else self._heldout)(objective, theta)

    @property
    def to_beat(self) -> float:
        """The same at θ."""
        return self._loss_at_theta if self.options.accept == "sample" else self.state.heldout

    def _prepare_preconditioner(self, objective: Objective) -> None:
        """Pairs of A at the λ of this update, the squared gradients that Jacobi asks for, Kronecker factors."""
        state, kinds = self.state, self.options.preconditioner.kinds
        if "jacobi" in kinds and self._mean_square is None:
            share = self.options.preconditioner.jacobi_share
            sample = utterances(
                objective, "gradient", share, 1, self.seed, state.gradient_update, state.gradient_update
            )
            answer = objective.squared_gradients(state.theta, sample)
            assert answer.squares is not None
            self._mean_square = answer.squares.div_(answer.frames)
        if "kfac" in kinds:
            options, sample = self.options.preconditioner, self._sample(objective, "curvature")
            self._factors = objective.kronecker_factors(state.theta, sample, options.sharing == "reduce")
            state.passes += 1
            state.factors = averaged(state.factors, self._factors.means(), state.passes, options.decay)
        if "lbfgs" not in kinds:
            return
        with objective.account.measure("preconditioner"):
            if state.memory is None:
                state.memory = PairMemory(self._blocks, lambda: new_store(self.options.preconditioner, objective))
                state.memory.restore(state.pairs_s, state.pairs_y, state.pairs_damping)
                state.pairs_s = state.pairs_y = torch.empty(0)
            state.memory.at(state.damping)

    def preconditioners(self, objective: Objective) -> tuple[list[Preconditioner | None], list[PairStore | None]]:
        """P of each block, and where CG is to put its pairs."""
        options, memory, count = self.options.preconditioner, self.state.memory, len(self._blocks)
        damping = self.state.damping + self.options.weight_decay
        if self._factors is not None:
            factors, account = self.state.factors, objective.account
            return kronecker_preconditioners(self._factors, factors, self._blocks, damping, account), [None] * count
        diagonal_N = diagonal_of(options, objective.layout, self._mean_square, damping)
        if memory is None:
            return preconditioners(options, self._blocks, diagonal_N, [None] * count, objective.account), [None] * count
        made = preconditioners(options, self._blocks, diagonal_N, memory.stores, objective.account)
        return made, list(memory.stores if options.inside else memory.fresh())

    def keep_pairs(self, collected: Sequence[PairStore | None]) -> None:
        """The pairs of this solve take the place of the ones before."""
        memory = self.state.memory
        stores = [store for store in collected if store is not None]
        if memory is not None and stores:
            memory.take(stores, self.state.damping)

    # Samples and what is evaluated on them.

    def _take_stock(self, objective: Objective) -> None:
        """At a new θ: statistics where the model has normalisations, then its held-out loss where it is to be known."""
        state, options = self.state, self.options
        if objective.normalisations:
            state.buffers = objective.statistics(state.theta, self._sample(objective, "gradient"))
            objective.set_buffers(state.buffers)
        if options.accept == "heldout":
            due = objective.normalisations > 0  # else the candidate's is that of θ
        else:
            due = state.update % options.heldout_every == 0 or state.update == options.updates
        if due or math.isnan(state.heldout):
            state.heldout = self._heldout(objective, state.theta)

    def _evaluate_gradient(self, objective: Objective) -> tuple[torch.Tensor, float]:
        """g and L per frame at θ on the gradient sample, R included; with it what the variance test asks for."""
        state, growth = self.state, self.options.growth
        sample = self._sample(objective, "gradient")
        answer = objective.gradient(state.theta, sample, squares=growth.schedule == "variance")
        gradient = answer.vector.div_(answer.frames)
        if answer.squares is not None:
            count, share = objective.minibatches(sample), state.gradient_share
            self._wanted_share = variance_share(gradient, answer.squares, answer.frames, count, share, growth.theta)
        gradient = self._regulariser.add_gradient(gradient)
        return gradient, answer.value / answer.frames + self._regulariser.value(state.theta)

    def _loss(self, objective: Objective, theta: torch.Tensor) -> float:
        return objective.loss(theta, self._sample(objective, "gradient")).mean + self._regulariser.value(theta)

    def _heldout(self, objective: Objective, theta: torch.Tensor) -> float:
        return objective.loss(theta, whole_set(objective, "heldout", self.options.minibatch_frames)).mean

    def _sample(self, objective: Objective, purpose: str) -> Sample:
        """The gradient sample in use, or the curvature sample of this update; both with the same dropout masks."""
        options, state = self.options, self.state
        masks = state.gradient_update
        share, minibatch_frames, update = state.gradient_share, options.minibatch_frames, state.gradient_update
        if purpose == "curvature":
            share, minibatch_frames, update = state.curvature_share, options.curvature_minibatch_frames, state.update
        if share == 1.0:
            return whole_set(objective, "train", minibatch_frames, self.seed, masks, update)
        return drawn(objective, purpose, share, minibatch_frames, self.seed, update, options.piece_frames, masks)


def _on_ranks(account: Account) -> float:
    """Seconds that were not the master's own."""
    return sum(seconds for phase, seconds in account.seconds.items() if phase != "preconditioner")
