"""Hessian-free optimisation with a held-out set.

Symbols, with losses, gradients and products per frame (sums divided by their frames, once):
    θ (N,)           parameters
    S_g, S_c, S_h    gradient sample, curvature sample, held-out set
    g (N,)           ∇L(θ) on S_g
    G (N, N)         JᵀMJ on S_c, known by its products
    λ                damping per frame; with structural damping G holds λμ·JₕᵀJₕ of hidden states h as well
    R(θ)             terms in θ alone: weight decay and the model's penalty, part of L, g and G
    φ(d)             gᵀd + ½ dᵀ(G + λI)d, minimised by CG
    q(d)             gᵀd + ½ dᵀG d, the undamped model in ρ = (L(θ+d) − L(θ)) / q(d), L on S_g
Source: Kingsbury, Sainath and Soltau (2012), algorithm 1; Martens (2010). That ρ comes from training data, and that
curvature samples of frame models are drawn by frames rather than utterances, are our choices.
"""

import math
import time
from dataclasses import dataclass, field

import torch

from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.objective.objective import Account, Linearisation, Matrix, Objective
from asr_hf.optimizers.damping import DampingOptions
from asr_hf.optimizers.line_search import ArmijoOptions, armijo, backtrack
from asr_hf.optimizers.optimizer import State, StepReport
from asr_hf.optimizers.regulariser import Regulariser
from asr_hf.optimizers.samples import drawn, whole_set
from asr_hf.options import option, require
from asr_hf.solvers.cg import CgOptions, CgResult, Iterate, Operator, conjugate_gradients, view
from asr_hf.solvers.stopping import StopReason
from asr_hf.solvers.vectors import dot, norm

NEGLIGIBLE = 1e-7  # a predicted change of the loss below this (nats a frame) says nothing about the model


@dataclass
class HfOptions:
    """Hessian-free optimisation (Kingsbury, Sainath and Soltau 2012)."""

    updates: int = option(15, "number of updates, rejected ones included")
    gradient_share: float = option(1.0, "share of the training frames in the gradient sample")
    curvature_share: float = option(0.03, "share of the training frames in the curvature sample, drawn anew per update")
    minibatch_frames: int = option(2048, "frames per minibatch of gradient and loss")
    curvature_minibatch_frames: int = option(1024, "frames per minibatch of curvature products")
    piece_frames: int = option(50, "frames of the pieces in drawn samples of models that may be cut anywhere (TDNN)")
    structural: float = option(0.0, "μ of structural damping λμ on the hidden states of curvature.states")
    weight_decay: float = option(0.0, "ω of the penalty ½ω‖θ‖² per frame")
    warm_start: float = option(0.95, "β: CG starts from β times the last CG iterate of the update before")
    stop_rejections: int = option(5, "rejections in a row after which the run is finished")
    cg: CgOptions = field(default_factory=CgOptions, metadata={"help": "conjugate gradients"})
    damping: DampingOptions = field(default_factory=DampingOptions, metadata={"help": "Levenberg-Marquardt damping"})
    armijo: ArmijoOptions = field(default_factory=ArmijoOptions, metadata={"help": "Armijo's backtracking"})

    def __post_init__(self) -> None:
        require(self.updates >= 1, "optimizer.updates", self.updates, "must be at least 1")
        for name in ("gradient_share", "curvature_share"):
            require(0 < getattr(self, name) <= 1, f"optimizer.{name}", getattr(self, name), "must lie in (0, 1]")
        for name in ("minibatch_frames", "curvature_minibatch_frames", "stop_rejections", "piece_frames"):
            require(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "must be at least 1")
        for name in ("weight_decay", "structural"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must not be negative")
        require(0 <= self.warm_start < 1, "optimizer.warm_start", self.warm_start, "must lie in [0, 1)")

    def start(self, theta: torch.Tensor, seed: int) -> "HessianFree":
        return HessianFree(self, HfState(theta, damping=self.damping.initial), seed)


@dataclass
class HfState(State):
    """What Hessian-free remembers.

    Attributes:
        damping: λ per frame.
        direction: last CG iterate d_N (N,), the next warm start; empty: none.
        gradient_update: update whose gradient sample is in use; a rejection keeps it, since θ has not moved.
        heldout: loss per frame of θ on the held-out set (NaN: not yet known).
        rejections: rejected updates in a row.
        precision: of the curvature products, decided at the first update; empty: not yet.
    """

    damping: float = 1.0
    direction: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gradient_update: int = 1
    heldout: float = math.nan
    rejections: int = 0
    precision: str = ""


class HessianFree:
    """Hessian-free optimisation in the middle of a run."""

    def __init__(self, options: HfOptions, state: HfState, seed: int) -> None:
        self.options, self.state, self.seed = options, state, seed
        self._gradient: torch.Tensor | None = None  # g per frame at θ (N,); a resumed run computes the same again
        self._loss_at_theta = math.nan
        self._regulariser: Regulariser

    def view(self) -> str:
        o = self.options
        return (
            f"Hessian-free: {o.updates} updates; gradient on {o.gradient_share:.0%}, curvature on "
            f"{o.curvature_share:.1%} of the frames; λ₀ {o.damping.initial:g} "
            f"(×{o.damping.drop:.3g} / ×{o.damping.boost:.3g}); warm start {o.warm_start:g}\n{view(o.cg)}"
        )

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.state.theta, self.state.buffers

    def step(self, objective: Objective) -> StepReport:
        """One update, as in Kingsbury et al. (2012), algorithm 1."""
        begin, state, options = time.perf_counter(), self.state, self.options
        objective.account = Account()
        state.update += 1
        if math.isnan(state.heldout):
            self._take_stock(objective)
        if self._gradient is None:
            objective.begin_update()
            self._regulariser = Regulariser(objective, state.theta, options.weight_decay)
            self._gradient, self._loss_at_theta = self._evaluate_gradient(objective)
        gradient = self._gradient
        report = StepReport(
            state.update, False, self._loss_at_theta, state.heldout, norm(gradient), 0.0, damping=state.damping
        )

        solution, remark = self._solve(objective, gradient)
        report.cg_iterations, report.cg_stop = solution.iterations, solution.reason.name
        report.precision = state.precision
        if solution.iterates:
            chosen, heldout = backtrack(
                solution.iterates, lambda d: self._heldout(objective, state.theta + d.x), state.heldout
            )
            if heldout < state.heldout:
                self._try(objective, gradient, chosen, heldout, report)
            else:
                report.note = "rejected: no CG iterate lowers the held-out loss"
        else:
            report.note = f"rejected: {solution.reason.value}"
        report.note += remark
        if report.accepted:
            if objective.normalisations:
                self._take_stock(objective)
                report.heldout = state.heldout
            state.rejections = 0
            state.direction = solution.x
            state.gradient_update = state.update + 1
            self._gradient = None
        else:
            state.rejections += 1
            state.direction = torch.empty(0)
            state.damping = options.damping.after(state.damping, -math.inf)
        if state.update >= options.updates:
            state.finished = f"all {options.updates} updates are done"
        elif state.rejections >= options.stop_rejections:
            state.finished = f"{state.rejections} updates in a row were rejected"
        report.add_account(objective.account, time.perf_counter() - begin)
        return report

    def _try(
        self, objective: Objective, gradient: torch.Tensor, chosen: Iterate, heldout: float, report: StepReport
    ) -> None:
        """ρ and Armijo along the chosen iterate; θ moves and λ follows ρ unless Armijo or held-out loss forbid it."""
        state, d, current = self.state, chosen.x, self._loss_at_theta
        loss_at_d = self._loss(objective, state.theta + d)
        slope = dot(gradient, d)
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
        if alpha != 1.0:
            heldout = self._heldout(objective, moved)
            if heldout >= state.heldout:
                report.note = "rejected: Armijo's shorter step does not lower the held-out loss"
                return
        state.theta, state.heldout = moved, heldout
        state.damping = self.options.damping.after(state.damping, report.rho)
        report.accepted, report.step, report.heldout = True, alpha, heldout
        report.note = f"iterate {chosen.iteration} of {report.cg_iterations}"

    def _solve(self, objective: Objective, gradient: torch.Tensor) -> tuple[CgResult, str]:
        """CG on (G + λI) d = −g in the run's precision, or from then on in fp32 if that is found too coarse."""
        state, remark = self.state, ""
        sample = self._sample(objective, "curvature")
        if not state.precision:
            precision, why = objective.choose_precision(state.theta, sample)
            state.precision, remark = precision.value, f"; {why}"
        solution = self._solve_in(Precision(state.precision), objective, sample, gradient)
        if solution.reason is StopReason.DRIFT:
            remark += (
                f"; curvature products in {state.precision} gave way to fp32: the true residual had parted from "
                f"CG's recursion by {solution.drift:.2g} of the gradient after {solution.iterations} iterations"
            )
            state.precision = Precision.FP32.value
            solution = self._solve_in(Precision.FP32, objective, sample, gradient)
        return solution, remark

    def _solve_in(self, precision: Precision, objective: Objective, sample: Sample, gradient: torch.Tensor) -> CgResult:
        """CG on (G + λI) d = −g with G of a curvature sample drawn for this update."""
        state, options = self.state, self.options
        start = state.direction * options.warm_start if state.direction.numel() and options.warm_start else None
        watch = precision is not Precision.FP32
        with objective.linearize(state.theta, sample, precision) as lin:
            return conjugate_gradients(self._damped(lin), gradient.neg(), options.cg, start, watch_drift=watch)

    def _damped(self, lin: Linearisation) -> Operator:
        """v ↦ (G + λI)v per frame."""
        damping = self.state.damping
        matrix = Matrix(structural=damping * self.options.structural)

        def product(v_N: torch.Tensor) -> torch.Tensor:
            gv_N = self._regulariser.add_product(lin.product(v_N, matrix).div_(lin.frames), v_N)
            return gv_N.add_(v_N, alpha=damping)

        return product

    def _take_stock(self, objective: Objective) -> None:
        """Held-out loss of θ; before it, where the model has normalisations, their statistics at θ."""
        state = self.state
        if objective.normalisations:
            state.buffers = objective.statistics(state.theta, self._sample(objective, "gradient"))
            objective.set_buffers(state.buffers)
        state.heldout = self._heldout(objective, state.theta)

    def _evaluate_gradient(self, objective: Objective) -> tuple[torch.Tensor, float]:
        """g and L per frame at θ on the gradient sample, R included."""
        answer = objective.gradient(self.state.theta, self._sample(objective, "gradient"))
        gradient = self._regulariser.add_gradient(answer.vector.div_(answer.frames))
        return gradient, answer.value / answer.frames + self._regulariser.value(self.state.theta)

    def _loss(self, objective: Objective, theta: torch.Tensor) -> float:
        return objective.loss(theta, self._sample(objective, "gradient")).mean + self._regulariser.value(theta)

    def _heldout(self, objective: Objective, theta: torch.Tensor) -> float:
        return objective.loss(theta, whole_set(objective, "heldout", self.options.minibatch_frames)).mean

    def _sample(self, objective: Objective, purpose: str) -> Sample:
        """The gradient sample in use, or the curvature sample of this update; both with the same dropout masks."""
        options, state = self.options, self.state
        masks = state.gradient_update
        share, minibatch_frames, update = options.gradient_share, options.minibatch_frames, state.gradient_update
        if purpose == "curvature":
            share, minibatch_frames, update = options.curvature_share, options.curvature_minibatch_frames, state.update
        if share == 1.0:
            return whole_set(objective, "train", minibatch_frames, self.seed, masks)
        return drawn(objective, purpose, share, minibatch_frames, self.seed, update, options.piece_frames, masks)
