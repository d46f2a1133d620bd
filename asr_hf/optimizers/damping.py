"""Levenberg-Marquardt damping: λ per frame follows how well the quadratic model predicted the loss."""

import math
from dataclasses import dataclass

from asr_hf.options import LARGEST_FACTOR, option, require


@dataclass
class DampingOptions:
    """Levenberg-Marquardt damping."""

    initial: float = option(
        1.0, "λ per frame at the start; 0.1 to 1 from random weights, a third of that after an epoch"
    )
    drop: float = option(0.5, "factor of λ when ρ > high_rho: the quadratic model is trusted more")
    boost: float = option(3 / 2, "factor of λ when ρ < low_rho")
    rejected: float = option(
        4.0, "factor of λ when the update is rejected, which cost a whole update; 3/2 in the papers"
    )
    low_rho: float = option(0.25, "ρ below which λ is raised")
    high_rho: float = option(0.75, "ρ above which λ is lowered")
    smallest: float = option(1e-6, "floor of λ")
    largest: float = option(1e6, "ceiling of λ")

    def __post_init__(self) -> None:
        require(
            0 < self.smallest <= self.initial <= self.largest <= LARGEST_FACTOR,
            "optimizer.damping.initial",
            self.initial,
            f"must lie in [smallest, largest], these above 0 and up to {LARGEST_FACTOR:g}",
        )
        require(0 < self.drop <= 1, "optimizer.damping.drop", self.drop, "must lie in (0, 1]")
        for name in ("boost", "rejected"):
            require(getattr(self, name) >= 1, f"optimizer.damping.{name}", getattr(self, name), "must be at least 1")
        require(0 <= self.low_rho < self.high_rho, "optimizer.damping.low_rho", self.low_rho, "must lie below high_rho")

    def after(self, damping: float, rho: float | None) -> float:
        """λ after an update with reduction ratio ρ; ρ None (the model predicted nothing to speak of) leaves it.

        Source: Martens (2010), section 4.1, and Kingsbury et al. (2012), algorithm 1.
        """
        if rho is None:
            return damping
        if rho < self.low_rho or not math.isfinite(rho):
            return min(self.largest, damping * self.boost)
        if rho > self.high_rho:
            return max(self.smallest, damping * self.drop)
        return damping

    def after_rejection(self, damping: float) -> float:
        """λ after an update that was rejected."""
        return min(self.largest, damping * self.rejected)
