"""How the learning rate of a first-order method goes: newbob on held-out loss, or warm-up and cuts at fixed times."""

from dataclasses import dataclass

from asr_hf.options import LARGEST_FACTOR, option, require, require_choice


@dataclass
class ScheduleOptions:
    """The learning rate of a run, and how long the run is."""

    rate: float = option(0.1, "learning rate: of newbob at the start, of milestones after the warm-up")
    epochs: int = option(20, "largest number of epochs")
    schedule: str = option("newbob", "newbob (halved once held-out loss gains little), or milestones (in advance)")
    newbob_start: float = option(
        0.005, "relative fall of held-out loss in an epoch below which the rate starts to halve"
    )
    newbob_stop: float = option(0.001, "relative fall of held-out loss in an epoch below which a halving run ends")
    warmup: float = option(0.125, "milestones: share of the epochs in which the rate grows, step by step (0: none)")
    warmup_from: float = option(0.1, "milestones: share of the rate at which the warm-up begins")
    warmup_power: float = option(0.5, "milestones: p of the warm-up's polynomial 1 - (1 - warmup_from)(1 - t)^p")
    milestones: list[float] = option([0.51, 0.765], "milestones: shares of the epochs after which the rate is cut")
    decay: float = option(0.1, "milestones: factor of the rate at each cut")

    def __post_init__(self) -> None:
        require_choice("optimizer.schedule", self.schedule, ("newbob", "milestones"))
        fits = 0 < self.rate <= LARGEST_FACTOR
        require(fits, "optimizer.rate", self.rate, f"must lie in (0, {LARGEST_FACTOR:g}]")
        require(self.epochs >= 1, "optimizer.epochs", self.epochs, "must be at least 1")
        for name in ("newbob_start", "newbob_stop"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must not be negative")
        require(0 <= self.warmup <= 1, "optimizer.warmup", self.warmup, "must lie in [0, 1]: a share of the epochs")
        for name in ("warmup_from", "decay"):
            require(0 < getattr(self, name) <= 1, f"optimizer.{name}", getattr(self, name), "must lie in (0, 1]")
        require(self.warmup_power > 0, "optimizer.warmup_power", self.warmup_power, "must be positive")
        shares = all(0 < share < 1 for share in self.milestones)
        require(shares, "optimizer.milestones", self.milestones, "must lie in (0, 1): shares of the epochs")

    def view(self) -> str:
        """The schedule as configured."""
        if self.schedule == "newbob":
            return f"newbob {self.newbob_start:g}/{self.newbob_stop:g}"
        cuts = ", ".join(f"{share * self.epochs:g}" for share in self.milestones) or "none"
        return f"warm-up of {self.warmup * self.epochs:g} epochs, times {self.decay:g} after epochs {cuts}"

    def milestones_rate(self, done: float) -> float:
        """The rate of the next step once a share `done` of all epochs lies behind it.

        In the warm-up it is rate·(1 − (1 − warmup_from)(1 − t)^p), t from 0 to 1: for p < 1 it grows fastest at the
        end. Source: the examples that Adya, Palakkode and Tuzel (2018) released, 25 of 200 epochs with p = ½, cuts
        after 102 and 153.
        """
        if done < self.warmup:
            return self.rate * (1 - (1 - self.warmup_from) * (1 - done / self.warmup) ** self.warmup_power)
        return self.rate * self.decay ** sum(share <= done for share in self.milestones)

    def newbob(self, rate: float, halving: bool, gain: float) -> tuple[float, bool, str]:
        """Rate, whether it halves from now on, and why the run is over (empty: it is not), after an epoch.

        Args:
            rate, halving: of that epoch.
            gain: relative fall of the held-out loss below the best before.
        """
        stop = halving and gain < self.newbob_stop
        finished = f"newbob: held-out loss fell by less than {self.newbob_stop:g} of itself" if stop else ""
        halving = halving or gain < self.newbob_start
        return (0.5 * rate if halving else rate), halving, finished
