"""K-FAC: the inverse of a Kronecker-factored Fisher matrix gives the direction, exact products its length.

    g ← ∇L(θ) on S_g
    P ← Kronecker factors on S_c, averaged over updates, damped by λ        `curvature.kronecker`, `solvers.kronecker`
    d ← −P⁻¹g;  δ ← the step of the update before
    x ← αd + μδ, the minimum of φ on the span: [dᵀAd dᵀAδ; δᵀAd δᵀAδ] [α; μ] = −[gᵀd; gᵀδ]       A = JᵀMJ + λI on S_c
    reject and raise λ if x does not lower the held-out loss; λ follows ρ; θ ← θ + αx, α by Armijo on S_g

One or two products an update instead of CG's tens. Without δ it is one iteration of Hessian-free's CG with P.

Source: Martens and Grosse (2015), sections 6.4 and 7; one λ serves P and A here, where theirs has a γ of its own for P.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from asr_hf.objective.objective import Linearisation, Objective
from asr_hf.optimizers.candidates import Search
from asr_hf.optimizers.preconditioning import PreconditionerOptions
from asr_hf.optimizers.second_order import SecondOrder
from asr_hf.optimizers.second_order_options import SecondOrderOptions
from asr_hf.options import option, require
from asr_hf.solvers.cg import CgResult, Iterate, Operator
from asr_hf.solvers.stopping import StopReason
from asr_hf.solvers.vectors import dot, norm

PARALLEL = 1e-6  # directions of a span whose cosine (in A) is within this of ±1 are one


@dataclass
class KfacOptions(SecondOrderOptions):
    """K-FAC with exact length and momentum (Martens and Grosse 2015)."""

    warm_start: float = option(
        0.95, "above 0: the step before is a second direction, of a length found with the first's (momentum); 0: none"
    )
    preconditioner: PreconditionerOptions = field(
        default_factory=lambda: PreconditionerOptions(kinds=["kfac"]),
        metadata={"help": "the Kronecker-factored matrix"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = self.preconditioner.kinds
        require(kinds == ["kfac"], "optimizer.preconditioner.kinds", kinds, "must be [kfac]")

    def start(self, theta: torch.Tensor, seed: int) -> "Kfac":
        return Kfac(self, self.begin(theta), seed)


class Kfac(SecondOrder):
    """K-FAC in the middle of a run."""

    options: KfacOptions

    def view(self) -> str:
        return f"K-FAC{' with momentum' if self.options.warm_start else ''}: {self.options.view()}"

    def solve(self, objective: Objective, lin: Linearisation, b: torch.Tensor, watch_drift: bool) -> Search:
        """The minimum of φ along P⁻¹b, or on its span with the step before."""
        if norm(b) == 0.0:
            return Search(CgResult(torch.zeros_like(b), 0.0, 0, StopReason.ZERO_RHS))
        (preconditioner,), _ = self.preconditioners(objective)
        assert preconditioner is not None
        before = self.warm_start(again=False)
        directions = [preconditioner(b)] if before is None else [preconditioner(b), before]
        return Search(minimum_in_span(b, directions, self.damped(lin)))


def minimum_in_span(b: torch.Tensor, directions: Sequence[torch.Tensor], product: Operator) -> CgResult:
    """The minimum x = Σ cᵢdᵢ of φ(x) = ½xᵀA x − bᵀx, from (dᵢᵀA dⱼ) c = (dᵢᵀb): a product for each direction.

    Args:
        b: right-hand side (N,).
        directions: dᵢ (N,), one or more.
        product: v ↦ A v.
    """
    count = len(directions)
    curvature, slope = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for i, d in enumerate(directions):
        ad = product(d)
        slope[i] = dot(b, d)
        for j in range(i, count):
            curvature[i, j] = curvature[j, i] = dot(ad, directions[j])
        del ad
    lengths = curvature.diagonal().sqrt()  # of the directions, in A
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all() and torch.isfinite(slope).all()):
        broken = StopReason.NON_FINITE if not bool(torch.isfinite(curvature).all()) else StopReason.NEGATIVE_CURVATURE
        return CgResult(torch.zeros_like(b), 0.0, 0, broken)
    cosines = curvature / torch.outer(lengths, lengths)
    c = (torch.linalg.pinv(cosines, rtol=PARALLEL, hermitian=True) @ (slope / lengths)) / lengths
    x = torch.zeros_like(b)
    for d, factor in zip(directions, c.tolist(), strict=True):
        x.add_(d, alpha=factor)
    quadratic = float(-0.5 * slope @ c)
    if not math.isfinite(quadratic):
        return CgResult(torch.zeros_like(b), 0.0, 0, StopReason.NON_FINITE)
    return CgResult(x, quadratic, 1, StopReason.ITERATIONS, [Iterate(x, 1, quadratic)])
