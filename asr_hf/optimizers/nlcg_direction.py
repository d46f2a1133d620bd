"""Directions of preconditioned nonlinear conjugate gradients, and the diagonal that preconditions them.

Symbols, vectors (N,) unless said otherwise:
    g        gradient; r = −g; y = g − (the gradient before)
    D        diagonal of the approximate Hessian
    s        r / (D + ε), the preconditioned residual
    δ        rᵀs (a number)
    d        direction: s + β × (the direction before)
    Δ        what the step before has really added to θ
Source: Adya, Palakkode and Tuzel (2018), "Nonlinear conjugate gradients for scaling synchronous distributed DNN
training", and the code that they released.
"""

from dataclasses import dataclass

import torch

from asr_hf.solvers.vectors import dot

EPSILON = 1e-8  # ε, and the least curvature that a step may show
BETAS = ("fletcher_reeves", "polak_ribiere")


@dataclass(frozen=True)
class Direction:
    """A direction, and what the next one is made from.

    Attributes:
        d_N: the direction.
        s_N: the preconditioned residual, of account to Polak-Ribière alone.
        delta: δ.
        beta: β as its formula gives it, before the clip; 0 where there was no direction before.
    """

    d_N: torch.Tensor
    s_N: torch.Tensor
    delta: float
    beta: float = 0.0


def next_direction(
    g_N: torch.Tensor,
    diagonal_N: torch.Tensor | None,
    before: Direction | None,
    rule: str,
    clip: bool,
    restarts: bool = False,
) -> Direction:
    """d = s + βd, with β by Fletcher and Reeves, δ/δ_old, or by Polak and Ribière, (δ − rᵀs_old)/δ_old.

    The clip takes β to the nearest number in [0, 1]. A negative β, which only Polak-Ribière can give, becomes 0: the
    direction restarts from s. One above 1, of a residual that has grown, becomes 1: the directions before are kept
    and not blown up; or it becomes 0, so that the direction restarts there, too. Without the clip β is the formula's,
    and on a quadratic with exact steps the iterates are those of linear conjugate gradients.

    Args:
        g_N: the gradient.
        diagonal_N: D; None: s = r.
        before: the direction before; None: d = s.
        rule: of BETAS.
        clip: whether β is clipped, as in the released code.
        restarts: whether the clip takes a β above 1 to 0 and not to 1; not in the released code.
    """
    s_N = g_N.neg()
    if diagonal_N is not None:
        s_N.div_(diagonal_N + EPSILON)
    delta = -dot(g_N, s_N)
    if before is None or before.delta == 0.0:
        return Direction(s_N, s_N, delta)
    growth = delta if rule == "fletcher_reeves" else delta + dot(g_N, before.s_N)
    beta = growth / before.delta
    used = beta
    if clip:
        used = 0.0 if restarts and beta > 1.0 else min(max(beta, 0.0), 1.0)
    return Direction(torch.add(s_N, before.d_N, alpha=used), s_N, delta, beta)


def bfgs_diagonal(diagonal_N: torch.Tensor, y_N: torch.Tensor, displacement_N: torch.Tensor) -> torch.Tensor | None:
    """|D − (DΔ)²/(ΔᵀDΔ) + y²/(yᵀΔ)|, the diagonal of the BFGS update of diag(D); None where it is to be kept.

    It is kept where yᵀΔ or ΔᵀDΔ is below ε (or NaN): the step showed too little curvature, or a negative one.
    """
    scaled_N = diagonal_N * displacement_N
    curvature, length = dot(y_N, displacement_N), dot(displacement_N, scaled_N)
    if not (curvature >= EPSILON and length >= EPSILON):
        return None
    updated_N = diagonal_N - scaled_N.square_().div_(length)
    return updated_N.addcmul_(y_N, y_N, value=1 / curvature).abs_()
