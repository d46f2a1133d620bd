"""Why a solver stopped, and Martens' test of relative progress."""

import enum
import math
from collections.abc import Sequence


class StopReason(enum.Enum):
    """Why a solve ended; the value is a sentence for people."""

    PROGRESS = "the quadratic model fell too little over the last iterations (Martens' test)"
    RESIDUAL = "the residual fell below the tolerance"
    ITERATIONS = "the iteration limit was reached"
    ZERO_RHS = "the right-hand side is zero: there is nothing to solve"
    NEGATIVE_CURVATURE = "a direction of zero or negative curvature appeared: the best iterate so far is returned"
    INDEFINITE_PRECONDITIONER = "the preconditioner is not positive definite: the best iterate so far is returned"
    DRIFT = "the true residual parted from the recursion: the products are too imprecise"
    NON_FINITE = "a product or an inner product was not finite: the best iterate so far is returned"

    @property
    def healthy(self) -> bool:
        """Whether the last iterate may be trusted as a minimiser in progress."""
        return self not in UNHEALTHY


UNHEALTHY = (  # the worst first: drift discredits whatever else the same products show
    StopReason.DRIFT,
    StopReason.NON_FINITE,
    StopReason.NEGATIVE_CURVATURE,
    StopReason.INDEFINITE_PRECONDITIONER,
)


def progress_stalled(quadratics: Sequence[float], tolerance: float) -> bool:
    """Martens' test: with k = max(10, ⌈i/10⌉), stop at i > k when φᵢ < 0 and (φᵢ − φᵢ₋ₖ)/φᵢ < k·tolerance.

    Args:
        quadratics: φ₀ … φᵢ, the quadratic model at every iterate so far.
        tolerance: relative progress per iteration; 5e-4 in Martens' released code, 0 switches it off.

    Source: Martens, Deep learning via Hessian-free optimization (2010), section 4.4, and its released code.
    """
    i = len(quadratics) - 1
    k = max(10, math.ceil(0.1 * i))
    if tolerance == 0 or i <= k or quadratics[i] >= 0:
        return False
    return (quadratics[i] - quadratics[i - k]) / quadratics[i] < k * tolerance


def kept_iterations(limit: int, first: int, ratio: float = 1.3) -> set[int]:
    """Iterations whose iterates are kept for backtracking: ⌈first·ratioʲ⌉ for j = 0, 1, … up to the limit.

    Source: Martens' released code, where first is 5 and ratio 1.3.
    """
    kept: set[int] = set()
    value = float(first)
    while value <= limit:
        kept.add(math.ceil(value))
        value *= ratio
    return kept
