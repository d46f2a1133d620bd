"""Candidates among the iterates of a solve: evaluated on held-out data as they appear, at the length that fits.

Symbols: d, Δ iterates (N,); b = −g; A the matrix of the Hessian-free system, φ(d) = −bᵀd + ½ dᵀA d.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from asr_hf.optimizers.line_search import minimum_along
from asr_hf.solvers.cg import CgResult, Iterate, Progress
from asr_hf.solvers.vectors import dot


@dataclass
class Search:
    """What the systems of an update gave.

    Attributes:
        result: of the last solve; the quadratic of its iterates is φ.
        best: the candidate of lowest held-out loss, and that loss, if the method chose it itself; else None.
        remark: for the log.
        inner_iterations: CG iterations of systems before the last.
    """

    result: CgResult
    best: tuple[Iterate, float] | None = None
    remark: str = ""
    inner_iterations: int = 0


class EachAsItAppears:
    """Candidates evaluated on held-out data as they appear; the best is retained.

    Args:
        heldout: d ↦ held-out loss at θ + d.
    """

    def __init__(self, heldout: Callable[[torch.Tensor], float]) -> None:
        self._heldout = heldout
        self.best: tuple[Iterate, float] | None = None

    def offer(self, progress: Progress) -> None:
        loss = self._heldout(progress.x)
        if self.best is None or loss < self.best[1]:
            self.best = Iterate(progress.x.clone(), progress.iteration, progress.quadratic), loss

    def search(self, result: CgResult, remark: str = "", inner_iterations: int = 0) -> Search:
        """What the solve gave: the best candidate, and none that is left to be judged."""
        return Search(replace(result, iterates=[]), self.best, remark, inner_iterations)


class AtMinimum:
    """Passes on iterates Δ as αΔ, at the minimum of φ(αΔ) = α gᵀΔ + ½α² ΔᵀAΔ, if Δ goes downhill.

    Args:
        b: −g (N,).
        curvature: an iterate ↦ ΔᵀAΔ, A of the Hessian-free system.
        offer: takes the candidates.
    """

    def __init__(
        self, b: torch.Tensor, curvature: Callable[[Progress], float], offer: Callable[[Progress], None]
    ) -> None:
        self._b, self._curvature, self._offer = b, curvature, offer
        self._last = 0.0, 0.0  # α and φ of the last iterate

    def __call__(self, progress: Progress) -> None:
        alpha, quadratic = minimum_along(dot(self._b, progress.x), self._curvature(progress))
        if alpha:
            self._last = alpha, quadratic
            self._offer(replace(progress, x=alpha * progress.x, quadratic=quadratic))

    def at_last(self, result: CgResult) -> CgResult:
        """The result of the solve with αΔ for its last iterate."""
        alpha, quadratic = self._last
        return replace(result, x=result.x.mul_(alpha), quadratic=quadratic)
