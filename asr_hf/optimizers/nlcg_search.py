"""The searches of stochastic nonlinear conjugate gradients: no evaluation of their own, only the losses of the steps.

They watch an exponential average of the loss. Where it has risen, the factor μ of the step falls, and a part of the
displacement before is taken back; where it has not, μ grows towards 1.
Source: Adya, Palakkode and Tuzel (2018), the numbers from the code that they released.
"""

from dataclasses import dataclass

from asr_hf.options import option, require, require_choice

SEARCHES = ("step", "online", "none")
# relative rise of the loss (times the threshold) above which, factor of μ, share of the displacement that is taken back
BANDS = (
    (0.15, 0.5, 0.9),
    (0.125, 0.7, 0.7),
    (0.10, 0.8, 0.5),
    (0.075, 0.9, 0.3),
    (0.05, 0.95, 0.2),
    (0.025, 0.975, 0.1),
    (0.01, 1.0, 0.1),
)
GROWTH = {"step": 1.05, "online": 1.02}  # of μ, where the options name no other


@dataclass(frozen=True)
class Search:
    """A search after a step.

    Attributes:
        multiplier: μ, factor of the step, at most 1.
        average: exponential average of the loss per frame.
        checked: that average at the last check of the search "step".
        removed: share of the displacement before that this step takes back.
    """

    multiplier: float
    average: float
    checked: float
    removed: float = 0.0


@dataclass
class SearchOptions:
    """How the step is found from the losses of the steps before."""

    kind: str = option("step", "step (a check every few steps), online (at every step), or none")
    interval: int = option(5, "steps between the checks of step")
    threshold: float = option(1.0, "per cent of rise of the loss from which on the step is cut; 15 times that halve it")
    growth: float = option(0.0, "factor of the step, up to 1, if the loss did not rise; 0: 1.05 (step), 1.02 (online)")
    average: float = option(0.7, "share of the old in the exponential average of the loss")
    floor: float = option(1e-4, "least factor of the step")

    def __post_init__(self) -> None:
        name = "optimizer.search"
        require_choice(f"{name}.kind", self.kind, SEARCHES)
        require(self.interval >= 1, f"{name}.interval", self.interval, "must be at least 1")
        require(self.threshold > 0, f"{name}.threshold", self.threshold, "must be positive")
        require(self.growth == 0 or self.growth >= 1, f"{name}.growth", self.growth, "must be 0 or at least 1")
        require(0 <= self.average < 1, f"{name}.average", self.average, "must lie in [0, 1)")
        require(0 < self.floor <= 1, f"{name}.floor", self.floor, "must lie in (0, 1]")

    def after(self, before: Search, loss: float, steps: int) -> Search:
        """The search at a step with this loss, `steps` steps after its begin, where nothing is compared.

        "step" compares the average with itself at the last check. "online" compares the loss with the average of
        those before; the released code leaves open whether the average holds this loss already.
        """
        if steps == 0:
            return Search(before.multiplier, loss, loss)
        average = self.average * before.average + (1 - self.average) * loss
        if self.kind == "online":
            return self._compared(before, average, before.checked, loss, before.average)
        if self.kind == "step" and steps % self.interval == 0:
            return self._compared(before, average, average, average, before.checked)
        return Search(before.multiplier, average, before.checked)

    def _compared(self, before: Search, average: float, checked: float, now: float, then: float) -> Search:
        rise = (now - then) / (abs(then) or 1.0) / self.threshold
        for bound, factor, removed in BANDS:
            if rise > bound:
                return Search(max(self.floor, factor * before.multiplier), average, checked, removed)
        growth = self.growth or GROWTH[self.kind]
        return Search(min(1.0, growth * before.multiplier), average, checked)
