"""Natural gradient: the direction that lowers the loss fastest per change of the posterior, by CG.

    g ← ∇L(θ) on S_g
    d_1 … d_M ← CG on (F + λI) d = −g         F = Σ_u JᵀδδᵀJ / frames, the empirical Fisher of utterances on S_c
    with length "gauss_newton": d_i ← αd_i at the minimum of the Hessian-free quadratic along it, a product each
    d ← the d_i of lowest held-out loss; reject and raise λ if none is below that of θ
    λ follows ρ; θ ← θ + αd, α by Armijo on S_g

δ are the scores of an utterance over all its frames (p − onehot for cross-entropy), whatever criterion g is of. Since
gᵀF⁻¹g ≤ 1 per utterance where g and F are of the same utterances, the model of F promises half a nat an utterance
at most: enough for sequence criteria, short for frame criteria, where length "gauss_newton" or fisher "frame" help.
The papers use no damping and leave the choice among the d_i to held-out data alone; here λ bounds d where F, which has
at most as many dimensions as S_c has utterances, says nothing.

Source: Haider and Woodland (2018), 1804.02204; Haider et al. (2021), 2103.07554.
"""

from dataclasses import dataclass, field

import torch

from asr_hf.criteria.criterion import Criterion
from asr_hf.data.plan import Sample
from asr_hf.objective.layout import Layout
from asr_hf.objective.objective import Linearisation, Objective
from asr_hf.optimizers.candidates import AtMinimum, Search
from asr_hf.optimizers.samples import utterances, whole_utterances
from asr_hf.optimizers.second_order import SecondOrder
from asr_hf.optimizers.second_order_options import SecondOrderOptions
from asr_hf.options import option, require, require_choice
from asr_hf.solvers.cg import CgOptions, Operator, conjugate_gradients, scaled_directions, view
from asr_hf.solvers.vectors import dot, norm

FISHER = {"utterance": "utterance_fisher", "frame": "frame_fisher"}


@dataclass
class FisherOptions(SecondOrderOptions):
    """What natural gradient and NGHF share: the empirical Fisher of utterances, few iterations, each a candidate."""

    curvature_share: float = option(
        0.1, "share of the training utterances in the curvature sample, drawn anew per update"
    )
    fisher: str = option("utterance", "scores δ of whole utterances (the papers'), or of single frames")
    scale_directions: bool = option(True, "multiply matrices with directions as long as θ, and scale back")
    cg: CgOptions = field(
        default_factory=lambda: CgOptions(max_iterations=8, progress_tolerance=0.0),
        metadata={"help": "conjugate gradients"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("optimizer.fisher", self.fisher, tuple(FISHER))

    def require_fit(self, layout: Layout, criterion: Criterion) -> None:
        super().require_fit(layout, criterion)
        require(
            FISHER[self.fisher] in criterion.matrices, "optimizer.fisher", self.fisher, "is not known to the criterion"
        )


class WithFisher(SecondOrder):
    """A method with the empirical Fisher matrix."""

    options: FisherOptions

    def fisher(self, lin: Linearisation, damping: float) -> Operator:
        """v ↦ (F + λI)v per frame."""
        return self.scaled(self.damped(lin, FISHER[self.options.fisher], damping))

    def scaled(self, product: Operator) -> Operator:
        """The product, taken of directions as long as θ."""
        return scaled_directions(product, norm(self.state.theta)) if self.options.scale_directions else product

    def _sample(self, objective: Objective, purpose: str) -> Sample:
        """The curvature sample consists of whole utterances where δδᵀ is theirs."""
        if purpose != "curvature" or self.options.fisher == "frame":
            return super()._sample(objective, purpose)
        state, frames, masks = self.state, self.options.curvature_minibatch_frames, self.state.gradient_update
        if state.curvature_share == 1.0:
            return whole_utterances(objective, frames, self.seed, masks, state.update)
        return utterances(objective, purpose, state.curvature_share, frames, self.seed, state.update, masks)


@dataclass
class NgOptions(FisherOptions):
    """Natural gradient with the empirical Fisher of utterances (Haider and Woodland 2018)."""

    length: str = option("fisher", "of the direction: fisher, as CG gives it, or gauss_newton (a product per iterate)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("optimizer.length", self.length, ("fisher", "gauss_newton"))

    def start(self, theta: torch.Tensor, seed: int) -> "NaturalGradient":
        return NaturalGradient(self, self.begin(theta), seed)


class NaturalGradient(WithFisher):
    """Natural gradient in the middle of a run."""

    options: NgOptions

    def view(self) -> str:
        return f"Natural gradient: length {self.options.length}; {self.options.view()}\n{view(self.options.cg)}"

    def solve(self, objective: Objective, lin: Linearisation, b: torch.Tensor, watch_drift: bool) -> Search:
        """CG on (F + λI) d = −g; every iterate is a candidate, at its length."""
        fisher, hessian = self.fisher(lin, self.state.damping), self.scaled(self.damped(lin))
        each = self.each_candidate(objective)
        at_minimum = AtMinimum(b, lambda at: dot(at.x, hessian(at.x)), each.offer)
        longer = self.options.length == "gauss_newton"
        (preconditioner,), (pairs,) = self.preconditioners(objective)
        result = conjugate_gradients(
            fisher,
            b,
            self.options.cg,
            self.warm_start(again=watch_drift),
            at_minimum if longer else each.offer,
            watch_drift,
            (),
            preconditioner,
            pairs,
        )
        self.keep_pairs([pairs])
        if longer:
            result = at_minimum.at_last(result)
        return each.search(result)
