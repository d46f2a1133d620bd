"""Hessian-free optimisation, whole or by diagonal blocks.

    g ← ∇L(θ) on S_g
    d_1 … d_N ← CG on (G + λI) d = −g from β·d_N of the update before          G = JᵀMJ on S_c, M of the criterion
    d ← the d_i of lowest held-out loss, from d_N down; reject and raise λ if none is below that of θ
    ρ ← (L(θ+d) − L(θ)) / q(d); λ falls if ρ > ¾, rises if ρ < ¼
    θ ← θ + αd, α by Armijo on S_g

With blocks, (G_bb + λI) d_b = −g_b for every block b of the parameters. All systems are solved in lock-step, so that
one round of communication serves all; a block that is done is frozen while others go on. Blocks know nothing of each
other, and all that move at once overshoot together: length "gauss_newton" takes d to the minimum of the whole φ on it.
With L-BFGS preconditioner, flexible CG and geometric samples it is Sainath's.

Source: Kingsbury, Sainath and Soltau (2012), algorithm 1; Martens (2010); Sainath et al. (2013); Zhang et al. (2017).
"""

from dataclasses import dataclass, replace

import torch

from asr_hf.criteria.criterion import Criterion
from asr_hf.objective.layout import Layout
from asr_hf.objective.objective import Linearisation, Objective
from asr_hf.optimizers.blocks import Blocks, partition
from asr_hf.optimizers.candidates import Search
from asr_hf.optimizers.line_search import backtrack, minimum_along
from asr_hf.optimizers.optimizer import StepReport
from asr_hf.optimizers.second_order import SecondOrder
from asr_hf.optimizers.second_order_options import SecondOrderOptions
from asr_hf.options import option, require, require_choice
from asr_hf.solvers.cg import CgResult, Iterate, Progress, cg_steps, view
from asr_hf.solvers.lock_step import combine, lock_step
from asr_hf.solvers.vectors import dot


@dataclass
class HfOptions(SecondOrderOptions):
    """Hessian-free optimisation (Kingsbury, Sainath and Soltau 2012)."""

    warm_start: float = option(0.95, "β: CG starts from β times the last CG iterate of the update before")
    warm_start_growth: float = option(1.0, "factor of β after each update (Kiros 2013: from 0.5 to 0.99)")
    warm_start_limit: float = option(0.99, "β grows no further")
    gradient_frames: int = option(0, "frames of the first gradient sample, of any corpus; 0: gradient_share of them")
    curvature_frames: int = option(0, "frames of the first curvature sample; 0: curvature_share of them")
    blocks: int = option(1, "diagonal blocks: contiguous groups of layers with about equally many parameters")
    candidates: str = option(
        "backtrack", "backtrack: from the last kept iterate down; each: every kept one as it appears, the best retained"
    )
    partition: list[list[str]] = option(
        [], "the blocks by the names of asr-hf model show, e.g. [[layer1,layer2],[output]]"
    )

    length: str = option(
        "cg", "of joined blocks: cg, as their systems give it, or gauss_newton, by the whole matrix (a product each)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("optimizer.candidates", self.candidates, ("backtrack", "each"))
        require_choice("optimizer.length", self.length, ("cg", "gauss_newton"))
        require(self.blocks >= 1, "optimizer.blocks", self.blocks, "must be at least 1")
        for name in ("gradient_frames", "curvature_frames"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must not be negative")
        growth, limit = self.warm_start_growth, self.warm_start_limit
        require(growth >= 1, "optimizer.warm_start_growth", growth, "must be at least 1")
        require(0 <= limit < 1, "optimizer.warm_start_limit", limit, "must lie in [0, 1)")
        whole = self.blocks == 1 and len(self.partition) <= 1
        require(
            whole or self.candidates == "backtrack",
            "optimizer.candidates",
            self.candidates,
            "cannot be each with blocks: their iterates are joined when all are done",
        )

    def view_of_samples(self) -> str:
        gradient = f"{self.gradient_frames:,}" if self.gradient_frames else f"{self.gradient_share:.0%}"
        curvature = f"{self.curvature_frames:,}" if self.curvature_frames else f"{self.curvature_share:.1%}"
        return f"gradient on {gradient}, curvature on {curvature} of the frames"

    def warm_start_after(self, update: int) -> float:
        if self.warm_start_growth == 1.0:
            return self.warm_start
        return min(self.warm_start_limit, self.warm_start * self.warm_start_growth**update)

    def require_fit(self, layout: Layout, criterion: Criterion) -> None:
        super().require_fit(layout, criterion)
        partition(layout, self.blocks, self.partition)

    def start(self, theta: torch.Tensor, seed: int) -> "HessianFree":
        return HessianFree(self, self.begin(theta), seed)


class HessianFree(SecondOrder):
    """Hessian-free optimisation in the middle of a run."""

    options: HfOptions

    def step(self, objective: Objective) -> StepReport:
        options, state = self.options, self.state
        if not state.update:  # only now is the size of the corpus known
            if options.gradient_frames:
                state.gradient_share = min(1.0, options.gradient_frames / objective.frames("train"))
            if options.curvature_frames:
                state.curvature_share = min(1.0, options.curvature_frames / objective.frames("train"))
        return super().step(objective)

    def view(self) -> str:
        o = self.options
        blocks = "" if o.blocks == 1 and not o.partition else f"{len(o.partition) or o.blocks} diagonal blocks; "
        return f"Hessian-free: {blocks}{o.view()}; candidates {o.candidates}\n{view(o.cg)}"

    def blocks(self, objective: Objective) -> Blocks:
        return Blocks(objective.layout, partition(objective.layout, self.options.blocks, self.options.partition))

    def solve(self, objective: Objective, lin: Linearisation, b: torch.Tensor, watch_drift: bool) -> Search:
        """CG on (G_bb + λI) d_b = −g_b for every block b, in lock-step."""
        options, blocks = self.options, self._blocks
        each = self.each_candidate(objective) if options.candidates == "each" else None
        kept = options.cg.kept() if options.accept != "always" else set()

        def offer(progress: Progress) -> None:
            if each is not None and progress.iteration in kept:
                each.offer(progress)

        start = self.warm_start(again=watch_drift)
        starts = [None] * len(blocks) if start is None else blocks.cut(start)
        preconditioners, collected = self.preconditioners(objective)
        solves = [
            cg_steps(side, options.cg, begin, offer, watch_drift, () if each else kept, preconditioner, pairs)
            for side, begin, preconditioner, pairs in zip(
                blocks.cut(b), starts, preconditioners, collected, strict=True
            )
        ]
        del start, starts  # the solves hold it until they have begun

        def products(directions: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
            active = tuple(g for g, d in zip(blocks.groups, directions, strict=False) if d is not None)
            product = blocks.cut(self.damped_blocks(lin, active)(blocks.join(directions)))
            return [None if d is None else part for d, part in zip(directions, product, strict=True)]

        results = lock_step(solves, products)
        self.keep_pairs(collected)
        result = combine(results, blocks.join)
        del results
        if options.length == "gauss_newton" and len(blocks) > 1:
            return self._at_length(objective, lin, b, result)
        return each.search(result) if each else Search(result)

    def _at_length(self, objective: Objective, lin: Linearisation, b: torch.Tensor, result: CgResult) -> Search:
        """Backtracking over d at the minimum of the whole φ along it: blocks that move at once overshoot together."""
        whole = self.damped(lin)

        def at_minimum(d: Iterate) -> Iterate:
            alpha, quadratic = minimum_along(dot(b, d.x), dot(d.x, whole(d.x)))
            return Iterate(alpha * d.x, d.iteration, quadratic)

        if not result.iterates:
            return Search(result)
        if self.options.accept == "always":
            last = at_minimum(result.iterates[-1])
            return Search(replace(result, x=last.x, quadratic=last.quadratic))
        theta, candidates = self.state.theta, map(at_minimum, reversed(result.iterates))
        best = backtrack(candidates, lambda d: self.judged(objective, theta + d.x), self.to_beat)
        return Search(result, best)
