"""How large the samples of gradient and curvature are, update after update.

Symbols: S_g, S_c gradient and curvature sample as shares of the training frames, i the number of HF steps so far.
Source: Sainath et al. (2013), geometric samples; Byrd, Chin, Nocedal and Wu (2012), the variance test.
"""

from dataclasses import dataclass

import torch

from asr_hf.options import option, require, require_choice
from asr_hf.solvers.vectors import dot


@dataclass
class GrowthOptions:
    """How samples grow."""

    schedule: str = option("constant", "constant, geometric (Sainath 2013), or variance (Byrd 2012)")
    gradient_factor: float = option(1.2, "geometric: factor of the gradient sample per update")
    curvature_factor: float = option(1.3, "geometric: factor of the curvature sample per update")
    curvature_cap: float = option(0.1, "largest share of the frames in a growing curvature sample")
    theta: float = option(0.5, "variance: ϑ, largest relative error of the sampled gradient")

    def __post_init__(self) -> None:
        require_choice("optimizer.growth.schedule", self.schedule, ("constant", "geometric", "variance"))
        for name in ("gradient_factor", "curvature_factor"):
            require(getattr(self, name) >= 1, f"optimizer.growth.{name}", getattr(self, name), "must be at least 1")
        for name in ("curvature_cap", "theta"):
            require(0 < getattr(self, name) <= 1, f"optimizer.growth.{name}", getattr(self, name), "must lie in (0, 1]")

    def after(self, gradient_share: float, curvature_share: float, wanted: float) -> tuple[float, float]:
        """The shares of the next update.

        Args:
            gradient_share, curvature_share: of this update.
            wanted: the gradient share that `variance_share` asked for; of account to the variance test alone.
        """
        if self.schedule == "constant":
            return gradient_share, curvature_share
        factor_g, factor_c = self.gradient_factor, self.curvature_factor
        if self.schedule == "variance":  # the curvature sample keeps its proportion to the gradient's
            factor_g = factor_c = max(1.0, wanted / gradient_share)
        cap = max(self.curvature_cap, curvature_share)
        return min(1.0, factor_g * gradient_share), min(cap, factor_c * curvature_share)


def variance_share(
    gradient: torch.Tensor, squares: torch.Tensor, frames: int, minibatches: int, share: float, theta: float
) -> float:
    """The share at which the gradient's sampling error is as large as the test allows: ‖Var‖₁/n ≤ ϑ²‖ḡ‖².

    The n minibatches of the sample, drawn at random, are taken as its n independent units.

    Args:
        gradient: ḡ (N,), mean over frames.
        squares: Σ over minibatches of their squared summed gradients (N,).
        frames, minibatches: of the sample.
        share: of the training frames that the sample holds.
        theta: ϑ.

    Returns:
        `share` where the test holds, else the share that satisfies it if variance and gradient stay as they are.

    Source: Byrd, Chin, Nocedal and Wu (2012), section 4.
    """
    n = minibatches
    if n < 2:
        return share
    per_unit = n / frames  # from a minibatch's sum to its mean per frame
    norm_1 = (float(squares.sum(dtype=torch.float64)) * per_unit**2 - n * dot(gradient, gradient)) / (n - 1)
    allowed = theta**2 * dot(gradient, gradient)
    if norm_1 / n <= allowed:
        return share
    return min(1.0, share * norm_1 / (n * allowed)) if allowed > 0 else 1.0
