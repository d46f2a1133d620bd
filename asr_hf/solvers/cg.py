"""Conjugate gradients for A x = b with A symmetric positive definite, known by its products alone.

Symbols, all vectors of shape (N,) in float32, all scalars in float64:
    φ(x) = ½ xᵀA x − bᵀx      the quadratic model that is minimised
    r    = b − A x            its negative gradient
    z    = P⁻¹r               the preconditioned residual; r itself without a preconditioner
    p                         the search direction, made conjugate to earlier ones as `directions` says
Source: Hestenes and Stiefel (1952); Nocedal and Wright, Numerical Optimization, algorithms 5.2 and 5.3.
"""

import math
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field

import torch

from asr_hf.options import option, require, require_choice
from asr_hf.solvers.directions import Directions, Flexible, Standard
from asr_hf.solvers.pairs import PairStore
from asr_hf.solvers.preconditioners import Preconditioner
from asr_hf.solvers.stopping import StopReason, kept_iterations, progress_stalled
from asr_hf.solvers.vectors import dot, norm

Operator = Callable[[torch.Tensor], torch.Tensor]  # v ↦ A v (N,), a new tensor, which a solve overwrites

BETAS = ("standard", "flexible")
MAX_EXPONENT = 126  # of a power of two that float32 holds with its inverse


@dataclass
class CgOptions:
    """When conjugate gradients stop."""

    max_iterations: int = option(30, "limit of CG iterations (products) per solve")
    progress_tolerance: float = option(5e-4, "Martens' test: relative progress of φ per iteration; 0 switches it off")
    residual_tolerance: float = option(0.0, "stop when ‖r‖ ≤ this times ‖b‖; 0 switches the test off")
    drift_every: int = option(10, "iterations between true residuals b − Ax, where products are imprecise")
    drift_tolerance: float = option(0.1, "largest ‖(b − Ax) − r‖ in units of ‖b‖ that imprecise products may cause")
    beta: str = option("standard", "standard, or flexible: for preconditioners that change within a solve")
    truncation: int = option(1, "earlier directions that flexible β makes a new one conjugate to (two vectors each)")
    first_kept: int = option(1, "first iterate kept for backtracking (then every 1.3 times later); 5 in Martens' code")

    def __post_init__(self) -> None:
        require(self.first_kept >= 1, "optimizer.cg.first_kept", self.first_kept, "must be at least 1")
        require_choice("optimizer.cg.beta", self.beta, BETAS)
        require(self.truncation >= 1, "optimizer.cg.truncation", self.truncation, "must be at least 1")
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

    def kept(self) -> set[int]:
        """Iterations whose iterates are kept for backtracking."""
        return kept_iterations(self.max_iterations, self.first_kept)


@dataclass(frozen=True)
class Iterate:
    """An iterate that was kept: x (N,), its iteration and φ(x)."""

    x: torch.Tensor
    iteration: int
    quadratic: float


@dataclass(frozen=True)
class Progress:
    """A solve after an iteration.

    Attributes:
        iteration: its number, from 1.
        x: the iterate (N,).
        quadratic: φ(x).
        residual: ‖r‖ of the recursion.
        true_residual: ‖b − A x‖, where it was computed.
    """

    iteration: int
    x: torch.Tensor
    quadratic: float
    residual: float
    true_residual: float | None = None


@dataclass
class CgResult:
    """What a solve returns.

    Attributes:
        x: the last iterate (N,): where the solve broke down, the best one so far.
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


Monitor = Callable[[Progress], None]
Steps = Generator[torch.Tensor, torch.Tensor, CgResult]  # a solve: yields directions, is sent their products


def scaled_warm_start(start: torch.Tensor, product: torch.Tensor, b: torch.Tensor) -> float:
    """The α in [0, 1] that minimises φ(α·start), given product = A·start.

    A warm start from another sample may raise φ; scaled this way it never does.
    """
    slope, curvature = dot(b, start), dot(start, product)
    if not (math.isfinite(slope) and math.isfinite(curvature)) or slope <= 0 or curvature <= 0:
        return 0.0
    return min(1.0, slope / curvature)


def view(options: CgOptions, preconditioner: Preconditioner | None = None) -> str:
    """The solver as configured, on one line, and its preconditioner on another."""
    flexible = options.beta == "flexible"
    text = (
        f"{f'flexible CG (truncation {options.truncation})' if flexible else 'CG'}: at most {options.max_iterations} "
        f"iterations, progress tolerance {options.progress_tolerance:g} an iteration, residual tolerance "
        f"{options.residual_tolerance:g}"
    )
    return text if preconditioner is None else f"{text}\npreconditioner: {preconditioner.view()}"


def scaled_directions(product: Operator, length: float) -> Operator:
    """v ↦ (1/ρ) A(ρv) with ρ the power of two that brings ‖v‖ nearest to `length`, usually ‖θ‖.

    A power of two leaves the bits of an exactly linear product alone, and keeps one in half precision from
    underflow. Source: Haider et al. (2021).
    """

    def scaled(v: torch.Tensor) -> torch.Tensor:
        v_norm = norm(v)
        if not (0 < v_norm < math.inf and length > 0):
            return product(v)
        rho = 2.0 ** max(-MAX_EXPONENT, min(MAX_EXPONENT, round(math.log2(length / v_norm))))
        return product(v * rho).div_(rho)

    return scaled


def conjugate_gradients(
    product: Operator,
    b: torch.Tensor,
    options: CgOptions,
    start: torch.Tensor | None = None,
    monitor: Monitor | None = None,
    watch_drift: bool = False,
    keep: Collection[int] | None = None,
    preconditioner: Preconditioner | None = None,
    collect: PairStore | None = None,
) -> CgResult:
    """Minimise φ(x) = ½xᵀAx − bᵀx by conjugate gradients: `cg_steps` with the products made here.

    Args:
        product: v ↦ A v.

    Returns:
        CgResult, with the reason of the stop.
    """
    steps = cg_steps(b, options, start, monitor, watch_drift, keep, preconditioner, collect)
    del start  # a vector less to hold
    try:
        direction = next(steps)
        while True:
            direction = steps.send(product(direction))
    except StopIteration as stop:
        return stop.value


def cg_steps(
    b: torch.Tensor,
    options: CgOptions,
    start: torch.Tensor | None = None,
    monitor: Monitor | None = None,
    watch_drift: bool = False,
    keep: Collection[int] | None = None,
    preconditioner: Preconditioner | None = None,
    collect: PairStore | None = None,
) -> Steps:
    """A solve by conjugate gradients that yields vectors, is sent their products with A, and returns a CgResult.

    A yielded vector is not to be changed, and changes itself once its product is sent; the product becomes the solve's.

    Args:
        b: right-hand side (N,).
        options: limits, tolerances, β.
        start: first iterate (N,), scaled so that φ(start) ≤ 0; None starts from zero and saves a product.
        monitor: called after every iteration.
        watch_drift: compare r with the true residual every `options.drift_every` iterations (a product each), and
            stop where they part: for products in reduced precision.
        keep: iterations whose iterates are kept; None: those of the options. The last one is kept in any case.
        preconditioner: r ↦ P⁻¹r; None: P = I.
        collect: takes in s = α p and y = α A p of every iteration.
    """
    b_norm = norm(b)
    x = torch.zeros_like(b)
    if b_norm == 0.0:
        return CgResult(x, 0.0, 0, StopReason.ZERO_RHS, [], [0.0], [0.0])
    if not math.isfinite(b_norm):
        return CgResult(x, 0.0, 0, StopReason.NON_FINITE, [], [b_norm], [0.0])
    r = b.clone()
    if start is not None:
        a_start = yield start
        scale = scaled_warm_start(start, a_start, b)
        x.add_(start, alpha=scale)
        r.sub_(a_start, alpha=scale)
        del start, a_start
    rr, quadratic = dot(r, r), _quadratic(b, x, r)
    if not (math.isfinite(rr) and math.isfinite(quadratic)):
        return CgResult(torch.zeros_like(b), 0.0, 0, StopReason.NON_FINITE, [], [b_norm], [0.0])
    result = CgResult(x, quadratic, 0, StopReason.ITERATIONS, [], [math.sqrt(rr)], [quadratic])
    keep = options.kept() if keep is None else keep
    directions: Directions = Flexible(options.truncation) if options.beta == "flexible" else Standard()
    for i in range(1, options.max_iterations + 1):
        if rr == 0.0:
            result.reason = StopReason.RESIDUAL
            break
        z = r if preconditioner is None else preconditioner(r)
        rz = rr if preconditioner is None else dot(r, z)
        if fault := _fault(rz, StopReason.INDEFINITE_PRECONDITIONER):
            result.reason = fault
            break
        p = directions.next(r, z, rz)
        del z
        ap = yield p
        curvature = dot(p, ap)
        if fault := _fault(curvature, StopReason.NEGATIVE_CURVATURE):
            result.reason = fault
            break
        alpha = directions.slope(r) / curvature
        x = torch.add(x, p, alpha=alpha)
        r.sub_(ap, alpha=alpha)
        rr, quadratic = dot(r, r), _quadratic(b, x, r)
        if not (math.isfinite(rr) and math.isfinite(quadratic)):
            result.reason = StopReason.NON_FINITE
            break
        result.x, result.quadratic, result.iterations = x, quadratic, i
        directions.taken(alpha, ap, curvature, collect)
        del p, ap
        result.residuals.append(math.sqrt(rr))
        result.quadratics.append(quadratic)
        if i in keep:
            result.iterates.append(Iterate(x, i, quadratic))
        true_residual = None
        if watch_drift and i % options.drift_every == 0:
            ax = yield x
            rest = torch.sub(b, ax, out=ax)
            true_residual = norm(rest)
            drift = norm(rest.sub_(r)) / b_norm
            del ax, rest
            result.drift = drift if not drift <= result.drift else result.drift  # a NaN stays
        if monitor is not None:
            monitor(Progress(i, x, quadratic, result.residuals[-1], true_residual))
        if reason := _finished(result, options, b_norm):
            result.reason = reason
            break
    if result.iterations > 0 and (not result.iterates or result.iterates[-1].iteration != result.iterations):
        result.iterates.append(Iterate(result.x, result.iterations, result.quadratic))
    return result


def _quadratic(b: torch.Tensor, x: torch.Tensor, r: torch.Tensor) -> float:
    """φ(x) = −½(bᵀx + rᵀx), which needs no product."""
    return -0.5 * (dot(b, x) + dot(r, x))


def _fault(reduction: float, not_positive: StopReason) -> StopReason | None:
    """Why a solve has to end at an inner product that ought to be positive, if it has to."""
    if not math.isfinite(reduction):
        return StopReason.NON_FINITE
    return not_positive if reduction <= 0.0 else None


def _finished(result: CgResult, options: CgOptions, b_norm: float) -> StopReason | None:
    """Which of the tests after an iteration ends the solve, if one does."""
    if not result.drift <= options.drift_tolerance:
        return StopReason.DRIFT
    if result.residuals[-1] <= options.residual_tolerance * b_norm:
        return StopReason.RESIDUAL
    if progress_stalled(result.quadratics, options.progress_tolerance):
        return StopReason.PROGRESS
    return None
