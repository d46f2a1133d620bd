"""Preconditioners: z = P⁻¹r with P⁻¹ symmetric positive definite and close to A⁻¹, cheap to apply.

Symbols: r, z (N,) residual and preconditioned residual; s_k, y_k (N,) curvature pairs, y_k = A s_k, k = 1 … m;
D = diag(d), d (N,), a diagonal approximation of A.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from asr_hf.solvers.pairs import PairStore

GAMMAS = ("last", "largest")


class Preconditioner(Protocol):
    """What preconditioned conjugate gradients ask of P."""

    def __call__(self, r_N: torch.Tensor) -> torch.Tensor:
        """z = P⁻¹r (N,), a new tensor."""

    def view(self) -> str:
        """The preconditioner as configured, in a few words."""


class Diagonal:
    """P = diag(d): z = r / d.

    Args:
        d_N: the diagonal (N,). With an element that is not finite, from a run that diverges, z is NaN, and CG says so.
        name: what it is, for `view`.

    Raises:
        ValueError: an element that is not positive.
    """

    def __init__(self, d_N: torch.Tensor, name: str = "diagonal") -> None:
        low, high = (float(bound) for bound in torch.aminmax(d_N))
        if low <= 0:
            raise ValueError(f"a {name} preconditioner has to be positive, not {low:g} … {high:g}")
        d_N = d_N if high < math.inf else torch.full_like(d_N, math.nan)
        self.d_N, self._view = d_N, f"{name} ({low:.3g} … {high:.3g})"

    def __call__(self, r_N: torch.Tensor) -> torch.Tensor:
        return r_N / self.d_N

    def view(self) -> str:
        return self._view


def jacobi(mean_square_N: torch.Tensor, damping: float, exponent: float = 0.75) -> Diagonal:
    """(mean square of the utterances' gradients + λ)^exponent (N,), 1/N Σᵢ(∇ℓᵢ)² being a guess of diag(G).

    Source: Martens (2010), section 4.7; the exponent 3/4 is that of his released code.
    """
    return Diagonal((mean_square_N + damping).pow_(exponent), f"Jacobi^{exponent:g}")


def use_counts(uses_N: torch.Tensor, power: float = 1.0) -> Diagonal:
    """K^p of the number of uses K (N,) of each parameter in a frame: the diagonal of A grows with uses.

    Uncorrelated copies of a shared parameter give p = 1, perfectly correlated ones p = 2.

    Raises:
        ValueError: a power outside [1, 2].

    Source: Haider et al. (2021) precondition shared parameters; this form is derived, not theirs.
    """
    if not 1 <= power <= 2:
        raise ValueError(f"use counts to the power {power:g}: it must lie in [1, 2]")
    return Diagonal(uses_N**power, f"use counts^{power:g}")


def product_of(diagonals: Sequence[Diagonal]) -> Diagonal:
    """The diagonal preconditioner whose d is the product of those of others, one or more."""
    d_N = diagonals[0].d_N.clone()
    for other in diagonals[1:]:
        d_N.mul_(other.d_N)
    return Diagonal(d_N, " × ".join(diagonal.view() for diagonal in diagonals))


class Lbfgs:
    """P⁻¹ = the inverse BFGS matrix of curvature pairs, grown from γD⁻¹; made anew for each solve.

    r enters by its inner products with the pairs and leaves as a combination of the pairs and D⁻¹r, so that an
    application costs one pass over the pairs for each, wherever they are held.

    Args:
        pairs: of A, or of a matrix close to it; none: P = D.
        diagonal: D. None: D = I.
        gamma: γ = sᵀy / yᵀD⁻¹y of the last pair ("last"), or the largest of all pairs ("largest").
        inside: pairs that are appended during a solve are used at once, which calls for flexible β. False: the pairs
            must stay as they are.

    Raises:
        ValueError: an unknown γ; when called, pairs that have changed.

    Source: Morales and Nocedal (2000); within Hessian-free Sainath et al. (2013). Two-loop recursion: Nocedal and
    Wright, algorithm 7.4; in coefficients: Chen, Wang and Zhou (2014), here in the compact form of Byrd, Nocedal and
    Schnabel (1994), theorem 2.2.
    """

    def __init__(
        self, pairs: PairStore, diagonal: Diagonal | None = None, gamma: str = "last", inside: bool = False
    ) -> None:
        if gamma not in GAMMAS:
            raise ValueError(f"gamma is one of {', '.join(GAMMAS)}, not {gamma!r}")
        self._pairs, self._diagonal, self._rule, self._inside = pairs, diagonal, gamma, inside
        self._d_N = None if diagonal is None else diagonal.d_N
        self._sy = self._yy = torch.zeros(0, 0, dtype=torch.float64)  # SᵀY (its upper triangle) and YᵀD⁻¹Y (m, m)
        self._generation, self._appended = pairs.generation, pairs.appended - pairs.count
        self._learn()

    def __call__(self, r_N: torch.Tensor) -> torch.Tensor:
        if self._stale:
            if not self._inside:
                raise ValueError("the pairs of an L-BFGS preconditioner changed during a solve, without inside=True")
            self._learn()
        if not len(self._usable):
            return r_N.clone() if self._diagonal is None else self._diagonal(r_N)
        inner = self._pairs.along(r_N, self._d_N).view(2, -1)
        coefficients = torch.zeros_like(inner)
        coefficients[:, self._usable] = self._coefficients(*inner[:, self._usable])
        z_N = self._pairs.combine(coefficients.flatten(), self._d_N)
        if self._d_N is None:
            return z_N.add_(r_N, alpha=self._gamma)
        return z_N.addcdiv_(r_N, self._d_N, value=self._gamma)

    def view(self) -> str:
        diagonal = "" if self._diagonal is None else f", on {self._diagonal.view()}"
        inside = ", pairs of the same solve included" if self._inside else ""
        return f"L-BFGS of {len(self._usable)} pairs, γ: {self._rule}{inside}{diagonal}"

    def _coefficients(self, sr: torch.Tensor, yr: torch.Tensor) -> torch.Tensor:
        """What the two-loop recursion gives s_1 … s_m and D⁻¹y_1 … D⁻¹y_m, from Sᵀr (m,) and YᵀD⁻¹r (m,): (2, m).

        The first loop, over r − Σ aₖyₖ, is R a = Sᵀr with R the upper triangle of SᵀY; the second, over
        γD⁻¹(r − Σ aₖyₖ) + Σ cₖsₖ, is Rᵀc = diag(R) a − γ(YᵀD⁻¹r − YᵀD⁻¹Y a).
        """
        sy, yy = (matrix[self._usable][:, self._usable] for matrix in (self._sy, self._yy))
        upper = sy.triu()
        a = _solve(upper, sr, upper=True)
        c = _solve(upper.T, sy.diag() * a - self._gamma * (yr - yy @ a), upper=False)
        return torch.stack([c, -self._gamma * a])

    @property
    def _stale(self) -> bool:
        return (self._generation, self._appended) != (self._pairs.generation, self._pairs.appended)

    def _learn(self) -> None:
        """Take in the inner products of the pairs that came since the last time, and γ."""
        pairs, m = self._pairs, self._pairs.count
        new = m if self._generation != pairs.generation else min(m, pairs.appended - self._appended)
        old = m - new
        columns = pairs.gram(self._d_N, old).view(2, m, new) if new else torch.zeros(2, m, 0, dtype=torch.float64)
        sy, yy = torch.zeros(2, m, m, dtype=torch.float64)
        for matrix, before, column in ((sy, self._sy, columns[0]), (yy, self._yy, columns[1])):
            gone = len(before) - old
            matrix[:old, :old] = before[gone:, gone:]
            matrix[:, old:] = column
        yy[old:, :old] = yy[:old, old:].T
        self._sy, self._yy = sy, yy
        self._generation, self._appended = pairs.generation, pairs.appended
        curvature, square = sy.diag(), yy.diag()
        # storage in bf16, or a refresh after λ fell, may have cost a pair its positive curvature: it takes no part
        self._usable = torch.nonzero(curvature > 0).flatten()
        ratios = (curvature / square)[self._usable]
        self._gamma = 1.0 if not len(ratios) else float(ratios[-1] if self._rule == "last" else ratios.max())


def _solve(triangle: torch.Tensor, b: torch.Tensor, upper: bool) -> torch.Tensor:
    """x (m,) of triangle · x = b."""
    return torch.linalg.solve_triangular(triangle, b[:, None], upper=upper)[:, 0]
