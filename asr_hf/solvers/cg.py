"""Conjugate gradients for A x = b with A symmetric positive definite, known by its products alone.

Symbols, all vectors of shape (N,) in float32, all scalars in float64:
    φ(x) = ½ xᵀA x − bᵀx      the quadratic model that is minimised
    r    = b − A x            its negative gradient
    p                         the search direction
Source: Hestenes and Stiefel (1952); Nocedal and Wright, Numerical Optimization, algorithm 5.2.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from asr_hf.options import option, require
from asr_hf.solvers.stopping import StopReason, kept_iterations, progress_stalled
from asr_hf.solvers.vectors import dot, norm

Operator = Callable[[torch.Tensor], torch.Tensor]
Monitor = Callable[[int, float, float], None]  # iteration, φ, ‖r‖


@dataclass
class CgOptions:
    """When conjugate gradients stop."""

    max_iterations: int = option(30, "limit of CG iterations (products) per solve")
    progress_tolerance: float = option(5e-4, "Martens' test: relative progress of φ per iteration; 0 switches it off")
    residual_tolerance: float = option(0.0, "stop when ‖r‖ ≤ this times ‖b‖; 0 switches the test off")
    drift_every: int = option(10, "iterations between true residuals b − Ax, where products are imprecise")
    drift_tolerance: float = option(0.1, "largest ‖(b − Ax) − r‖ in units of ‖b‖ that imprecise products may cause")
    first_kept: int = option(1, "first iterate kept for backtracking (then every 1.3 times later); 5 in Martens' code")

    def __post_init__(self) -> None:
        require(self.first_kept >= 1, "optimizer.cg.first_kept", self.first_kept, "must be at least 1")
        require(self.max_iterations >= 1, "optimizer.cg.max_iterations", self.max_iterations, "must be at least 1")
        require(
            self.progress_tolerance >= 0,
            "optimizer.cg.progress_tolerance",
            self.progress_tolerance,
            "must not be negative",
        )
        require(self.drift_every >= 1, "optimizer.cg.drift_every", self.drift_every, "must be at least 1")
        require(self.drift_tolerance > 0, "optimizer.cg.drift_tolerance", self.drift_tolerance, "must be positive")
        require(
            0 <= self.residual_tolerance < 1,
            "optimizer.cg.residual_tolerance",
            self.residual_tolerance,
            "must lie in [0, 1)",
        )


@dataclass(frozen=True)
class Iterate:
    """An iterate that was kept: x (N,), its iteration and φ(x)."""

    x: torch.Tensor
    iteration: int
    quadratic: float


@dataclass
class CgResult:
    """What a solve returns.

    Attributes:
        x: the last iterate (N,); after negative curvature or a non-finite number the best one so far.
        quadratic: φ(x).
        iterations: number of CG iterations done (each one product; a warm start costs one more).
        reason: why it stopped.
        iterates: the kept iterates in order, the last of them x itself (none if not one step was made).
        residuals: ‖r‖ after every iteration, from 0.
        quadratics: φ after every iteration, from 0.
        drift: largest ‖(b − Ax) − r‖/‖b‖ that was seen (0 where it was not watched).
    """

    x: torch.Tensor
    quadratic: float
    iterations: int
    reason: StopReason
    iterates: list[Iterate] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    quadratics: list[float] = field(default_factory=list)
    drift: float = 0.0


def scaled_warm_start(start: torch.Tensor, product: torch.Tensor, b: torch.Tensor) -> float:
    """The α in [0, 1] that minimises φ(α·start), given product = A·start.

    A warm start from another sample may raise φ; scaled this way it never does.
    """
    slope, curvature = dot(b, start), dot(start, product)
    if not (math.isfinite(slope) and math.isfinite(curvature)) or slope <= 0 or curvature <= 0:
        return 0.0
    return min(1.0, slope / curvature)


def view(options: CgOptions) -> str:
    """The solver as configured, on one line."""
    return (
        f"CG: at most {options.max_iterations} iterations, progress tolerance {options.progress_tolerance:g} an "
        f"iteration, residual tolerance {options.residual_tolerance:g}"
    )


def conjugate_gradients(
    product: Operator,
    b: torch.Tensor,
    options: CgOptions,
    start: torch.Tensor | None = None,
    monitor: Monitor | None = None,
    watch_drift: bool = False,
    keep: Collection[int] = (),
) -> CgResult:
    """Minimise φ(x) = ½xᵀAx − bᵀx by conjugate gradients.

    Args:
        product: v ↦ A v.
        b: right-hand side (N,).
        options: limits and tolerances.
        start: first iterate (N,), scaled so that φ(start) ≤ 0; None starts from zero and saves a product.
        monitor: called with (iteration, φ, ‖r‖) after every iteration.
        watch_drift: compare r with the true residual every `options.drift_every` iterations (a product each), and
            stop where they part: for products in reduced precision.
        keep: iterations whose iterates are kept besides those that the options keep.

    Returns:
        CgResult, with the reason of the stop.
    """
    b_norm = norm(b)
    x = torch.zeros_like(b)
    if b_norm == 0.0:
        return CgResult(x, 0.0, 0, StopReason.ZERO_RHS, [], [0.0], [0.0])
    if not math.isfinite(b_norm):
        return CgResult(x, 0.0, 0, StopReason.NON_FINITE, [], [b_norm], [0.0])
    r = b.clone()
    if start is not None:
        a_start = product(start)
        scale = scaled_warm_start(start, a_start, b)
        x.add_(start, alpha=scale)
        r.sub_(a_start, alpha=scale)
    p = r.clone()
    rr = dot(r, r)
    quadratic = -0.5 * (dot(b, x) + dot(r, x))
    result = CgResult(x, quadratic, 0, StopReason.ITERATIONS, [], [math.sqrt(rr)], [quadratic])
    kept = kept_iterations(options.max_iterations, options.first_kept).union(keep)
    for i in range(1, options.max_iterations + 1):
        if rr == 0.0:
            result.reason = StopReason.RESIDUAL
            break
        ap = product(p)
        curvature = dot(p, ap)
        if not math.isfinite(curvature):
            result.reason = StopReason.NON_FINITE
            break
        if curvature <= 0.0:
            result.reason = StopReason.NEGATIVE_CURVATURE
            break
        alpha = rr / curvature
        x = torch.add(x, p, alpha=alpha)
        r.sub_(ap, alpha=alpha)
        rr_next = dot(r, r)
        quadratic = -0.5 * (dot(b, x) + dot(r, x))
        if not (math.isfinite(rr_next) and math.isfinite(quadratic)):
            result.reason = StopReason.NON_FINITE
            break
        result.x, result.quadratic, result.iterations = x, quadratic, i
        result.residuals.append(math.sqrt(rr_next))
        result.quadratics.append(quadratic)
        if i in kept:
            result.iterates.append(Iterate(x, i, quadratic))
        if monitor is not None:
            monitor(i, quadratic, result.residuals[-1])
        if watch_drift and i % options.drift_every == 0:
            drift = norm(b - product(x) - r) / b_norm
            result.drift = drift if not drift <= result.drift else result.drift  # a NaN stays
            if not drift <= options.drift_tolerance:
                result.reason = StopReason.DRIFT
                break
        if result.residuals[-1] <= options.residual_tolerance * b_norm:
            result.reason = StopReason.RESIDUAL
            break
        if progress_stalled(result.quadratics, options.progress_tolerance):
            result.reason = StopReason.PROGRESS
            break
        p = torch.add(r, p, alpha=rr_next / rr)
        rr = rr_next
    if result.iterations > 0 and (not result.iterates or result.iterates[-1].iteration != result.iterations):
        result.iterates.append(Iterate(result.x, result.iterations, result.quadratic))
    return result
