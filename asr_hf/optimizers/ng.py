"""Natural gradient: the direction that lowers the loss fastest per change of the posterior, by CG.

    g ← ∇L(θ) on S_g
    d_1 … d_M ← CG on (F + λI) d = −g         F = Σ_u JᵀδδᵀJ / frames, the empirical Fisher of utterances on S_c
    d ← the d_i of lowest held-out loss; reject and raise λ if none is below that of θ
    λ follows ρ; θ ← θ + αd, α by Armijo on S_g

δ are the scores of an utterance over all its frames (p − onehot for cross-entropy), whatever criterion g is of.
The papers use no damping and leave the choice of M to held-out data; F has at most as many dimensions as S_c has
utterances, and λ = 0 is allowed by `damping.initial` = `damping.smallest` = a small number and `damping.drop` = 1.

Source: Haider and Woodland (2018), 1804.02204; Haider et al. (2021), 2103.07554.
"""

from dataclasses import dataclass, field

import torch

from asr_hf.data.plan import Sample
from asr_hf.objective.objective import Linearisation, Objective
from asr_hf.optimizers.samples import utterances, whole_utterances
from asr_hf.optimizers.second_order import Search, SecondOrder, SecondOrderOptions
from asr_hf.options import option
from asr_hf.solvers.cg import CgOptions, Operator, Progress, conjugate_gradients, scaled_directions, view
from asr_hf.solvers.vectors import norm

FISHER = "utterance_fisher"


@dataclass
class NgOptions(SecondOrderOptions):
    """Natural gradient with the empirical Fisher of utterances (Haider and Woodland 2018)."""

    curvature_share: float = option(
        0.1, "share of the training utterances in the curvature sample, drawn anew per update"
    )
    candidates: str = option("each", "each: every iterate as it appears; backtrack: from the last kept one down")
    scale_directions: bool = option(True, "multiply matrices with directions as long as θ, and scale back")
    cg: CgOptions = field(
        default_factory=lambda: CgOptions(max_iterations=8, progress_tolerance=0.0),
        metadata={"help": "conjugate gradients"},
    )

    def start(self, theta: torch.Tensor, seed: int) -> "NaturalGradient":
        return NaturalGradient(self, self.begin(theta), seed)


class NaturalGradient(SecondOrder):
    """Natural gradient in the middle of a run."""

    options: NgOptions

    def view(self) -> str:
        return f"Natural gradient: {self.options.view()}\n{view(self.options.cg)}"

    def solve(self, objective: Objective, lin: Linearisation, gradient: torch.Tensor, watch_drift: bool) -> Search:
        """CG on (F + λI) d = −g; every iterate is a candidate."""
        options = self.options
        each = self.each_candidate(objective) if options.candidates == "each" else None
        (preconditioner,), (pairs,) = self.preconditioners(objective)

        def offer(progress: Progress) -> None:
            if each is not None:
                each.offer(progress)

        result = conjugate_gradients(
            self.scaled(self.damped(lin, FISHER)),
            gradient.neg(),
            options.cg,
            self.warm_start(),
            offer,
            watch_drift,
            () if each else None,
            preconditioner,
            pairs,
        )
        self.keep_pairs([pairs])
        return Search(result, each.best if each else None)

    def scaled(self, product: Operator) -> Operator:
        """The product, taken of directions as long as θ."""
        return scaled_directions(product, norm(self.state.theta)) if self.options.scale_directions else product

    def _sample(self, objective: Objective, purpose: str) -> Sample:
        """The curvature sample consists of whole utterances, since δδᵀ is theirs."""
        if purpose != "curvature":
            return super()._sample(objective, purpose)
        state, frames, masks = self.state, self.options.curvature_minibatch_frames, self.state.gradient_update
        if state.curvature_share == 1.0:
            return whole_utterances(objective, frames, self.seed, masks)
        return utterances(objective, purpose, state.curvature_share, frames, self.seed, state.update, masks)
