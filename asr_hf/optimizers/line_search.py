"""Choosing among CG iterates on held-out data, and Armijo's step on the gradient sample."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from asr_hf.options import option, require
from asr_hf.solvers.cg import Iterate


@dataclass
class ArmijoOptions:
    """Armijo's backtracking."""

    slope: float = option(1e-2, "share of the slope's promise that a step must keep")
    rate: float = option(0.8, "factor of the step after each failure")
    trials: int = option(60, "trials before the update is rejected")

    def __post_init__(self) -> None:
        require(0 < self.slope < 1, "optimizer.armijo.slope", self.slope, "must lie in (0, 1)")
        require(0 < self.rate < 1, "optimizer.armijo.rate", self.rate, "must lie in (0, 1)")
        require(self.trials >= 1, "optimizer.armijo.trials", self.trials, "must be at least 1")


def backtrack(
    iterates: Iterable[Iterate], heldout: Callable[[Iterate], float], current: float
) -> tuple[Iterate, float]:
    """Walk down the kept iterates from the last, until held-out loss has begun to fall below `current` and rises again.

    Args:
        iterates: kept iterates, the last of CG first.
        heldout: loss at θ + iterate.
        current: held-out loss at θ.

    Returns:
        The iterate and its held-out loss; it may be worse than `current`, then the update is to be rejected.

    Source: Kingsbury et al. (2012), algorithm 1; Martens (2010), section 4.6.
    """
    candidates = iter(iterates)
    best = next(candidates)
    best_loss = heldout(best)
    for candidate in candidates:
        loss = heldout(candidate)
        if current >= best_loss and loss >= best_loss:
            break
        if loss < best_loss:
            best, best_loss = candidate, loss
    return best, best_loss


def minimum_along(descent: float, curvature: float) -> tuple[float, float]:
    """α and φ(αd) at the minimum of φ(αd) = −α bᵀd + ½α² dᵀAd; both 0 where d does not go downhill.

    Args:
        descent: bᵀd, b the negative gradient.
        curvature: dᵀAd.
    """
    if descent <= 0 or curvature <= 0:
        return 0.0, 0.0
    return descent / curvature, -0.5 * descent * descent / curvature


def armijo(
    loss: Callable[[float], float], current: float, slope: float, first: float, options: ArmijoOptions
) -> tuple[float, float] | None:
    """The largest α in {1, rate, rate², …} with L(α) ≤ L(0) + c·α·slope.

    Args:
        loss: α ↦ L(θ + α d) per frame.
        current: L(0).
        slope: gᵀd, negative along a descent direction.
        first: L(1), known already.
        options: c, rate, trials.

    Returns:
        (α, L(α)), or None if no trial fulfils the condition or d is no descent direction.
    """
    if slope >= 0 or not math.isfinite(slope):
        return None
    alpha, value = 1.0, first
    for _ in range(options.trials):
        if value <= current + options.slope * alpha * slope:
            return alpha, value
        alpha *= options.rate
        value = loss(alpha)
    return None
