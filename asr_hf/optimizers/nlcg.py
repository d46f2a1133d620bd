"""Stochastic preconditioned nonlinear conjugate gradients (NLCG), for steps on very many minibatches.

A step, symbols of `nlcg_direction`, ε the learning rate, μ and f of `nlcg_search`:
    D ← |D − (DΔ)²/(ΔᵀDΔ) + y²/(yᵀΔ)|                   unless the curvature test fails
    d ← s + βd
    Δ ← (1 − f)·ε·μ·d − f·Δ,   θ ← θ + Δ
It costs one gradient: a vector sent, one reduced, and the loss that came with it.

Source: Adya, Palakkode and Tuzel (2018), and the code that they released, followed but in three places. There the
search takes back a part of the *new* direction, which by then has overwritten the old one, and D learns from a Δ that
knows nothing of what the search took back. Here Δ is the difference of θ after and before the last step, whatever made
it (search, clip, semi-orthogonal step), and serves both. There LARS scales every tensor by its own norm, so that biases
that start at 0 never move; here a layer has one scale.
"""

import math
from dataclasses import dataclass, field

import torch

from asr_hf.objective.layout import Layout
from asr_hf.optimizers.first_order import FirstOrder, FirstOrderOptions, FirstOrderState
from asr_hf.optimizers.nlcg_direction import BETAS, EPSILON, Direction, bfgs_diagonal, next_direction
from asr_hf.optimizers.nlcg_search import Search, SearchOptions
from asr_hf.options import option, require, require_choice
from asr_hf.solvers.vectors import norm

LARS_DECAY = 0.1  # share of ‖θ‖ beside ‖g‖ in the denominator of LARS


@dataclass
class NlcgOptions(FirstOrderOptions):
    """Stochastic preconditioned nonlinear conjugate gradients (Adya et al. 2018)."""

    rate: float = option(0.5, "learning rate: of newbob at the start, of milestones after the warm-up")
    schedule: str = option("milestones", "newbob (halved once held-out loss gains little), or milestones (in advance)")
    minibatches_per_step: int = option(16, "minibatches per step, fewer in an epoch's last; ranks beyond idle")
    beta: str = option("fletcher_reeves", "fletcher_reeves or polak_ribiere")
    clip_beta: bool = option(True, "take β to [0, 1]: below it the direction restarts, above it does not grow")
    clip_restarts: bool = option(False, "with clip_beta: above 1, too, the direction restarts (released code: no)")
    restart: int = option(0, "steps after which the direction restarts from the preconditioned gradient (0: never)")
    preconditioner: str = option("bfgs", "bfgs (a diagonal that learns from differences of gradients) or none")
    search: SearchOptions = field(default_factory=SearchOptions)
    lars: float = option(0.0, "η of LARS: gradients of a layer are scaled to about η‖θ‖ of it (0: off; paper: 0.001)")
    norm_factor: float = option(1.0, "factor of the gradients of normalisation parameters (released code: 0.01)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("optimizer.beta", self.beta, BETAS)
        require_choice("optimizer.preconditioner", self.preconditioner, ("bfgs", "none"))
        for name in ("restart", "lars"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must not be negative")
        fits = self.clip_beta or not self.clip_restarts
        require(fits, "optimizer.clip_restarts", self.clip_restarts, "has no effect without optimizer.clip_beta")
        require(self.norm_factor > 0, "optimizer.norm_factor", self.norm_factor, "must be positive")

    def start(self, theta: torch.Tensor, seed: int) -> "Nlcg":
        none, zeros = torch.empty(0), torch.zeros_like(theta)
        state = NlcgState(
            theta,
            best=theta.clone(),
            rate=self.rate,
            before=theta.clone(),
            gradient=zeros,
            direction=zeros.clone(),
            residual=zeros.clone() if self.beta == "polak_ribiere" else none,
            diagonal=torch.ones_like(theta) if self.preconditioner == "bfgs" else none,
        )
        return Nlcg(self, state, seed)


@dataclass
class NlcgState(FirstOrderState):
    """What NLCG remembers beside what first-order methods share.

    Attributes:
        before: θ before the last step (N,).
        gradient, direction: g and d of the last step (N,).
        residual: s of the last step (N,), with Polak-Ribière; diagonal: D (N,), with a preconditioner; else empty.
        delta: δ of the last step.
        moves: steps since the begin, or since θ went back to the best.
        multiplier, loss_average, loss_checked: of the search.
        clipped, kept, cut: steps of the running epoch whose β was clipped, whose D was kept, whose search cut.
    """

    before: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    direction: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    residual: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    diagonal: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    delta: float = 0.0
    moves: int = 0
    multiplier: float = 1.0
    loss_average: float = 0.0
    loss_checked: float = 0.0
    clipped: int = 0
    kept: int = 0
    cut: int = 0

    def fault(self) -> str:
        impossible = {
            f"delta is {self.delta}": self.delta < 0,
            f"multiplier is {self.multiplier}": not 0 < self.multiplier <= 1,
            "diagonal has negative elements": bool((self.diagonal < 0).any()),
            "residual or diagonal are no vectors like theta": any(
                v_N.numel() and (v_N.dtype, v_N.shape) != (torch.float32, self.theta.shape)
                for v_N in (self.residual, self.diagonal)
            ),
        }
        return super().fault() or next((why for why, holds in impossible.items() if holds), "")


class Nlcg(FirstOrder):
    """Stochastic preconditioned nonlinear conjugate gradients."""

    options: NlcgOptions
    state: NlcgState

    def move(self, gradient: torch.Tensor, loss: float, layout: Layout) -> None:
        state, options = self.state, self.options
        displacement_N = state.theta - state.before
        scale_gradient(gradient, state.theta, layout, options.lars, options.norm_factor)
        if state.moves and state.diagonal.numel():
            diagonal_N = bfgs_diagonal(state.diagonal, gradient - state.gradient, displacement_N)
            state.kept += diagonal_N is None
            state.diagonal = state.diagonal if diagonal_N is None else diagonal_N
        found = self._direction(gradient)
        searched = self._search(loss)
        step_N = found.d_N * ((1 - searched.removed) * state.rate * searched.multiplier)
        if searched.removed:
            step_N.sub_(displacement_N, alpha=searched.removed)
        state.before, state.theta = state.theta, state.theta + step_N
        state.gradient = gradient
        state.moves += 1

    def _direction(self, g_N: torch.Tensor) -> Direction:
        state, options = self.state, self.options
        goes_on = state.moves > 0 and not (options.restart and state.moves % options.restart == 0)
        before = Direction(state.direction, state.residual, state.delta) if goes_on else None
        diagonal_N = state.diagonal if state.diagonal.numel() else None
        found = next_direction(g_N, diagonal_N, before, options.beta, options.clip_beta, options.clip_restarts)
        state.clipped += options.clip_beta and not 0 <= found.beta <= 1
        state.direction, state.delta = found.d_N, found.delta
        if state.residual.numel():
            state.residual = found.s_N
        return found

    def _search(self, loss: float) -> Search:
        state = self.state
        before = Search(state.multiplier, state.loss_average, state.loss_checked)
        searched = self.options.search.after(before, loss, state.moves)
        state.multiplier, state.loss_average, state.loss_checked = (
            searched.multiplier,
            searched.average,
            searched.checked,
        )
        state.cut += searched.removed > 0
        return searched

    def forget(self) -> None:
        self.state.moves = 0

    def remark(self) -> str:
        state = self.state
        said = f", factor {state.multiplier:.3g} (cut in {state.cut}), β clipped in {state.clipped}"
        if state.diagonal.numel():
            said += f", preconditioner kept in {state.kept}"
        state.cut = state.clipped = state.kept = 0
        return said

    def view(self) -> str:
        o, search = self.options, self.options.search
        clip = "clipped to [0, 1]" if o.clip_beta else "as it is"
        clip += ", restarts above 1" if o.clip_restarts else ""
        return (
            f"{super().view()}\nβ of {o.beta} {clip}, preconditioner {o.preconditioner}, search {search.kind}, "
            f"LARS {o.lars:g}, factor of normalisations {o.norm_factor:g}"
        )


def scale_gradient(g_N: torch.Tensor, theta_N: torch.Tensor, layout: Layout, lars: float, norm_factor: float) -> None:
    """Scale a gradient in place: each layer by LARS, η‖θ‖/(‖g‖ + 0.1·η‖θ‖ + ε), and normalisations by a factor.

    A layer is a block of the layout. Source: You, Gitman and Ginsburg (2017), with the constants of the released code.
    """
    if norm_factor != 1.0:
        for name, view in layout.views(g_N).items():
            if "norm" in name.split("."):
                view.mul_(norm_factor)
    if not lars:
        return
    for block in layout.blocks:
        places = [slice(s.offset, s.offset + s.size) for s in layout.slots if s.block == block]
        size = lars * math.hypot(*(norm(theta_N[place]) for place in places))
        length = math.hypot(*(norm(g_N[place]) for place in places))
        for place in places:
            g_N[place] *= size / (length + LARS_DECAY * size + EPSILON)
