"""How conjugate gradients make each direction p (N,) conjugate to the earlier ones.

Symbols as in `solvers.cg`; z = P⁻¹r is the preconditioned residual, r itself without a preconditioner.
"""

from typing import NamedTuple, Protocol

import torch

from asr_hf.solvers.pairs import PairStore
from asr_hf.solvers.vectors import dot


class Step(NamedTuple):
    """A step of the solve: s = α p (N,), y = α A p (N,) and sᵀy."""

    s: torch.Tensor
    y: torch.Tensor
    curvature: float


class Directions(Protocol):
    """A rule of β: `next`, its product, `slope`, `taken`, and again."""

    def next(self, r: torch.Tensor, z: torch.Tensor, rz: float) -> torch.Tensor:
        """The next direction p from r, z (which it may take over unless it is r) and rᵀz."""

    def slope(self, r: torch.Tensor) -> float:
        """pᵀr: α = pᵀr / pᵀAp is the best step along p."""

    def taken(self, alpha: float, ap: torch.Tensor, curvature: float, collect: PairStore | None) -> None:
        """The step α p was taken, given A p (which this takes over) and pᵀAp: remember it, and hand it to `collect`."""


class Standard:
    """p ← z + β p with β = rᵀz / (rᵀz before): conjugate to all earlier p while A and P are fixed matrices.

    Source: Hestenes and Stiefel (1952).
    """

    def __init__(self) -> None:
        self._p: torch.Tensor | None = None
        self._rz = 0.0

    def next(self, r: torch.Tensor, z: torch.Tensor, rz: float) -> torch.Tensor:
        self._p = z.clone() if self._p is None else torch.add(z, self._p, alpha=rz / self._rz, out=self._p)
        self._rz = rz
        return self._p

    def slope(self, r: torch.Tensor) -> float:
        return self._rz  # pᵀr = rᵀz

    def taken(self, alpha: float, ap: torch.Tensor, curvature: float, collect: PairStore | None) -> None:
        if collect is not None and self._p is not None:
            collect.append(self._p * alpha, ap.mul_(alpha))


class Flexible:
    """p ← z + Σ βᵢsᵢ with βᵢ = −zᵀyᵢ / sᵢᵀyᵢ, conjugate to the last `truncation` steps whatever P was then and is now.

    With one step this is the Polak-Ribière form, y being the difference of two residuals.

    Source: Notay, Flexible conjugate gradients (2000).
    """

    def __init__(self, truncation: int) -> None:
        self._truncation = truncation
        self._steps: list[Step] = []
        self._p: torch.Tensor

    def next(self, r: torch.Tensor, z: torch.Tensor, rz: float) -> torch.Tensor:
        betas = [-dot(z, step.y) / step.curvature for step in self._steps]
        self._p = z.clone() if z is r else z
        for beta, step in zip(betas, self._steps, strict=True):
            self._p.add_(step.s, alpha=beta)
        if len(self._steps) == self._truncation:
            self._steps.pop(0)  # before the product: the next direction needs it no more
        return self._p

    def slope(self, r: torch.Tensor) -> float:
        return dot(self._p, r)

    def taken(self, alpha: float, ap: torch.Tensor, curvature: float, collect: PairStore | None) -> None:
        step = Step(self._p.mul_(alpha), ap.mul_(alpha), alpha * alpha * curvature)
        if step.curvature > 0:
            self._steps.append(step)
        if collect is not None:
            collect.append(step.s, step.y)
