"""What first-order methods share, and the baselines: SGD with momentum and Adam, on shuffled frames."""

import math
import time
from dataclasses import dataclass, field, replace

import torch

from asr_hf.data.plan import Sample
from asr_hf.objective.layout import Layout
from asr_hf.objective.objective import Account, Objective
from asr_hf.optimizers.optimizer import State, StepReport
from asr_hf.optimizers.samples import drawn, whole_set
from asr_hf.optimizers.schedule import ScheduleOptions
from asr_hf.options import LARGEST_FACTOR, option, require
from asr_hf.solvers.vectors import norm

HELDOUT_MINIBATCH = 2048  # frames per minibatch of held-out loss and statistics


@dataclass
class FirstOrderOptions(ScheduleOptions):
    """What all first-order methods share."""

    minibatch_frames: int = option(256, "frames per minibatch")
    minibatches_per_step: int = option(1, "minibatches per step, fewer in an epoch's last; ranks beyond idle")
    weight_decay: float = option(0.0, "ω of the penalty ½ω‖θ‖² per frame")
    piece_frames: int = option(50, "frames of the pieces drawn of models that may be cut anywhere (TDNN)")
    constraint_steps: int = option(4, "steps between the semi-orthogonal steps of a TDNN-F")
    clip: float = option(5.0, "largest ‖gradient‖ per frame; a larger one is scaled down to it")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip > 0, "optimizer.clip", self.clip, "must be positive")
        for name in ("minibatch_frames", "minibatches_per_step", "piece_frames", "constraint_steps"):
            require(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "must be at least 1")
        fits = 0 <= self.weight_decay <= LARGEST_FACTOR
        require(fits, "optimizer.weight_decay", self.weight_decay, f"must lie in [0, {LARGEST_FACTOR:g}]")


@dataclass
class SgdOptions(FirstOrderOptions):
    """Stochastic gradient descent with momentum."""

    momentum: float = option(0.9, "share of the last step that is added to the next")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "must lie in [0, 1)")

    def start(self, theta: torch.Tensor, seed: int) -> "FirstOrder":
        state = FirstOrderState(theta, best=theta.clone(), rate=self.rate, first=torch.zeros_like(theta))
        return Sgd(self, state, seed)


@dataclass
class AdamOptions(FirstOrderOptions):
    """Adam (Kingma and Ba 2015)."""

    rate: float = option(1e-3, "learning rate at the start")
    beta1: float = option(0.9, "decay of the mean of the gradient")
    beta2: float = option(0.999, "decay of the mean of its square")
    epsilon: float = option(1e-8, "added to the root of the mean square")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must lie in [0, 1)")
        require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "must be positive")

    def start(self, theta: torch.Tensor, seed: int) -> "FirstOrder":
        state = FirstOrderState(
            theta, best=theta.clone(), rate=self.rate, first=torch.zeros_like(theta), second=torch.zeros_like(theta)
        )
        return Adam(self, state, seed)


@dataclass
class FirstOrderState(State):
    """What a first-order method remembers.

    Attributes:
        best: parameters (N,) with the lowest held-out loss so far; their statistics of normalisations, and that loss.
        rate: learning rate; halving: whether newbob has begun to halve it.
        first, second: momentum or first moment, second moment (N,).
        steps: steps done; position: minibatches of the running epoch that are done.
        loss_sum, frames, norm_sum: of the running epoch, for its row of the log.
    """

    best: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    best_buffers: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    best_heldout: float = math.inf
    heldout: float = math.nan
    rate: float = 0.0
    halving: bool = False
    first: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    second: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    steps: int = 0
    position: int = 0
    loss_sum: float = 0.0
    frames: int = 0
    norm_sum: float = 0.0

    def fault(self) -> str:
        impossible = {
            f"rate is {self.rate}": not 0 < self.rate <= LARGEST_FACTOR,
            "best_buffers are not like buffers": self.best_buffers.numel()
            and (self.best_buffers.dtype, self.best_buffers.shape) != (torch.float32, self.buffers.shape),
        }
        return super().fault() or next((why for why, holds in impossible.items() if holds), "")


class FirstOrder:
    """A first-order method in the middle of a run; subclasses move θ.

    Args:
        options, state, seed: as configured; the seed orders the frames of each epoch.
    """

    options: FirstOrderOptions
    pause_after = math.inf  # seconds after which `step` returns None within an epoch, for a checkpoint

    def __init__(self, options: FirstOrderOptions, state: FirstOrderState, seed: int) -> None:
        self.options, self.state, self.seed = options, state, seed
        self._account: Account | None = None
        self._elapsed = 0.0

    def move(self, gradient: torch.Tensor, loss: float, layout: Layout) -> None:
        """One step on θ with a gradient per frame (N,), which becomes the method's own, and the loss found with it."""
        raise TypeError("FirstOrder is abstract: start it from the options of a method")

    def forget(self) -> None:
        """Let the next step depend on no step before: θ has gone back to the best."""
        self.state.first.zero_()

    def remark(self) -> str:
        """What the row of an epoch says of the method's own doings."""
        return ""

    def view(self) -> str:
        o = self.options
        return (
            f"{type(self).__name__}: rate {o.rate:g}, at most {o.epochs} epochs, {o.minibatches_per_step} × "
            f"{o.minibatch_frames} frames a step, {o.view()}"
        )

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.state.best, self.state.best_buffers

    def step(self, objective: Objective) -> StepReport | None:
        """Go on with the epoch; its report when it is over, None when `pause_after` seconds are up before."""
        begin, state = time.perf_counter(), self.state
        if self._account is None:
            self._account, self._elapsed = Account(), 0.0
        objective.account = self._account
        if math.isnan(state.heldout):
            state.heldout = state.best_heldout = self._heldout(objective)
            state.best_buffers = state.buffers.clone()
        epoch = self._epoch(objective, 0, 0)
        count = objective.minibatches(epoch)
        a_step = self.options.minibatches_per_step << state.halvings  # as many frames, however small minibatches are
        while state.position < count:
            if self.options.schedule == "milestones":
                done = (state.update + state.position / count) / self.options.epochs
                state.rate = self.options.milestones_rate(done)
            self._one_step(objective, min(a_step, count - state.position))
            if time.perf_counter() - begin > self.pause_after and state.position < count:
                self._elapsed += time.perf_counter() - begin
                return None
        report = self._end_epoch(objective, count)
        report.add_account(self._account, self._elapsed + time.perf_counter() - begin)
        self._account = None
        return report

    def _one_step(self, objective: Objective, minibatches: int) -> None:
        state, options = self.state, self.options
        objective.begin_update()
        answer = objective.gradient(state.theta, self._epoch(objective, state.position, minibatches), True)
        state.position += minibatches
        state.steps += 1
        if not answer.frames:
            return
        gradient = answer.vector.div_(answer.frames)
        if options.weight_decay:
            gradient.add_(state.theta, alpha=options.weight_decay)
        length = norm(gradient)
        if length > options.clip:
            gradient.mul_(options.clip / length)
        self.move(gradient, answer.value / answer.frames, objective.layout)
        if objective.penalty is not None and state.steps % options.constraint_steps == 0:
            named = objective.layout.views(state.theta)
            state.theta = objective.layout.flatten({**named, **objective.penalty.step(named)})
        state.loss_sum += answer.value
        state.frames += answer.frames
        state.norm_sum += length

    def _end_epoch(self, objective: Objective, minibatches: int) -> StepReport:
        """Held-out loss, the best θ, and newbob: it goes back to the best where an epoch gained nothing."""
        state, options = self.state, self.options
        newbob = options.schedule == "newbob"
        before, state.heldout = state.best_heldout, self._heldout(objective)
        gain = (before - state.heldout) / (abs(before) or 1.0) if math.isfinite(state.heldout) else -math.inf
        a_step = options.minibatches_per_step << state.halvings
        steps, rest = math.ceil(minibatches / a_step), minibatches % a_step
        last = f", the last of {rest} minibatches instead of {a_step}" if rest and steps > 1 else ""
        report = StepReport(
            state.update + 1,
            gain > 0 or not newbob,
            state.loss_sum / max(1, state.frames),
            state.heldout,
            state.norm_sum / max(1, steps),
            state.rate,
            note=f"{steps} steps{last}{self.remark()}",
        )
        if gain > 0:
            state.best, state.best_buffers = state.theta.clone(), state.buffers.clone()
            state.best_heldout = state.heldout
        elif newbob:  # as in newbob of Kaldi's nnet1: go on from the best
            state.theta, state.buffers = state.best.clone(), state.best_buffers.clone()
            self.forget()
            report.note += "; held-out loss rose, back to the best"
        if newbob:
            state.rate, state.halving, state.finished = options.newbob(state.rate, state.halving, gain)
        state.update += 1
        state.position, state.loss_sum, state.frames, state.norm_sum = 0, 0.0, 0, 0.0
        if not state.finished and state.update >= options.epochs:
            state.finished = f"all {options.epochs} epochs are done"
        return report

    def _epoch(self, objective: Objective, first: int, count: int) -> Sample:
        options, state = self.options, self.state
        share, frames, pieces = 1.0, options.minibatch_frames, options.piece_frames
        epoch = drawn(objective, "epoch", share, frames, self.seed, state.update, pieces, masks=state.steps + 1)
        return replace(epoch, first=first, count=count)

    def _heldout(self, objective: Objective) -> float:
        """Held-out loss of θ; before it, where the model has normalisations, their statistics at θ."""
        state = self.state
        if objective.normalisations:
            state.buffers = objective.statistics(state.theta, whole_set(objective, "train", HELDOUT_MINIBATCH))
            objective.set_buffers(state.buffers)
        return objective.loss(state.theta, whole_set(objective, "heldout", HELDOUT_MINIBATCH)).mean


class Sgd(FirstOrder):
    """Stochastic gradient descent with momentum: v ← μv − εg, θ ← θ + v."""

    def __init__(self, options: SgdOptions, state: FirstOrderState, seed: int) -> None:
        super().__init__(options, state, seed)
        self.momentum = options.momentum

    def move(self, gradient: torch.Tensor, loss: float, layout: Layout) -> None:
        state = self.state
        state.first.mul_(self.momentum).sub_(gradient, alpha=state.rate)
        state.theta = state.theta + state.first


class Adam(FirstOrder):
    """Adam: θ ← θ − ε·m̂/(√v̂ + ϵ) with bias-corrected moments (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, options: AdamOptions, state: FirstOrderState, seed: int) -> None:
        super().__init__(options, state, seed)
        self.betas, self.epsilon = (options.beta1, options.beta2), options.epsilon

    def move(self, gradient: torch.Tensor, loss: float, layout: Layout) -> None:
        state, (beta1, beta2) = self.state, self.betas
        state.first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        state.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = state.rate / (1 - beta1**state.steps)
        root = state.second.sqrt().div_(math.sqrt(1 - beta2**state.steps)).add_(self.epsilon)
        state.theta = torch.addcdiv(state.theta, state.first, root, value=-rate)
