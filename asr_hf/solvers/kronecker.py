"""A preconditioner whose diagonal blocks are Kronecker products, damped factor by factor.

A block is of a weight W (M, K'), with its bias if it has one as the last column (M, K): V ↦ G V A. It is damped as
    (G + √λ/π I) V (A + π√λ I),    π² = (tr A / K) / (tr G / M)
which holds λI and of the cross terms the least that a split of λ can leave, measured by traces.

Source: Martens and Grosse (2015), section 6.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Factored:
    """A block: where its weight and its bias (None: it has none) stand, and the inverses of its damped factors."""

    weight: slice
    bias: slice | None
    a_inverse_KK: torch.Tensor
    g_inverse_MM: torch.Tensor


class Kronecker:
    """P⁻¹ by blocks: G⁻¹ V A⁻¹ for weights, 1/d for everything else.

    Args:
        factored: the blocks of weights.
        diagonals: where everything else stands, and its d.
    """

    def __init__(self, factored: Sequence[Factored], diagonals: Sequence[tuple[slice, torch.Tensor]]) -> None:
        self._factored, self._diagonals = factored, diagonals

    def __call__(self, r_N: torch.Tensor) -> torch.Tensor:
        z_N = torch.empty_like(r_N)
        for block in self._factored:
            v_MK = r_N[block.weight].view(len(block.g_inverse_MM), -1)
            if block.bias is not None:
                v_MK = torch.cat([v_MK, r_N[block.bias][:, None]], dim=1)
            z_MK = block.g_inverse_MM @ v_MK @ block.a_inverse_KK
            if block.bias is not None:
                z_N[block.bias] = z_MK[:, -1]
                z_MK = z_MK[:, :-1]
            z_N[block.weight] = z_MK.reshape(-1)
        for where, d in self._diagonals:
            z_N[where] = r_N[where] / d
        return z_N

    def view(self) -> str:
        return f"K-FAC of {len(self._factored)} weights"


def damped_inverses(a_KK: torch.Tensor, g_MM: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹, float32, computed in float64; not finite where a factor is not."""
    a_KK, g_MM = a_KK.double(), g_MM.double()
    of_a, of_g = float(a_KK.diagonal().mean()), float(g_MM.diagonal().mean())
    pi = math.sqrt(of_a / of_g) if of_a > 0 and of_g > 0 else 1.0
    return _inverse(a_KK, pi * math.sqrt(damping)), _inverse(g_MM, math.sqrt(damping) / pi)


def _inverse(matrix: torch.Tensor, plus: float) -> torch.Tensor:
    """(matrix + plus·I)⁻¹, symmetric to the bit."""
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    factor, _ = torch.linalg.cholesky_ex(matrix + plus * eye)
    inverse = torch.cholesky_inverse(factor)
    return (0.5 * (inverse + inverse.t())).float()
