"""Curves of training runs as steps: the best held-out loss so far, what it cost, and the same over several seeds.

A curve is the rows of a run, in order of time: each has `heldout` (nats per frame; None: not finite) and what was spent
until then, under `cost` (gradient-equivalents), `update`, `vectors` and `seconds`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

Curve = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value of several curves at the same places x."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def best_at(curve: Curve, limit: float = math.inf, spent: str = "cost") -> float | None:
    """The best held-out loss among the rows that spent at most `limit`; None where there is none."""
    return min((row["heldout"] for row in curve if row["heldout"] is not None and row[spent] <= limit), default=None)


def cost_to_reach(curve: Curve, loss: float) -> float | None:
    """The cost of the first row whose held-out loss is at most `loss`; None where there is none."""
    return next((row["cost"] for row in curve if row["heldout"] is not None and row["heldout"] <= loss), None)


def saving(reference: Curve, other: Curve, share: float) -> float | None:
    """How many times less `other` cost than `reference`, at the loss that `reference` has after a share of its cost.

    None where `reference` has no loss yet by then, or `other` never reaches it.
    """
    loss = best_at(reference, share * reference[-1]["cost"]) if reference else None
    if loss is None:
        return None
    ours, theirs = cost_to_reach(reference, loss), cost_to_reach(other, loss)
    return ours / theirs if ours is not None and theirs is not None else None


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers, at least one."""
    return math.exp(fmean(map(math.log, values)))


def step_band(curves: Sequence[Curve], spent: str) -> Band:
    """The best held-out loss so far by what was spent, with the two ends of every step; from where all curves have one.

    A curve that ends before the others keeps its last value.
    """
    places = sorted({float(row[spent]) for curve in curves for row in curve})
    known = [(x, [best_at(curve, x, spent) for curve in curves]) for x in places]
    values = [(x, [y for y in ys if y is not None]) for x, ys in known if None not in ys]
    steps = [end for (_, before), (x, now) in pairwise(values) for end in ((x, before), (x, now))]
    return _band(values[:1] + steps)


def update_band(curves: Sequence[Curve], key: str) -> Band:
    """A column by the number of the update, of those curves that have it there."""
    by_update: dict[float, list[float]] = {}
    for curve in curves:
        for row in curve:
            if row[key] is not None:
                by_update.setdefault(float(row["update"]), []).append(float(row[key]))
    return _band(sorted(by_update.items()))


def _band(values: Sequence[tuple[float, Sequence[float]]]) -> Band:
    return Band(
        [x for x, _ in values],
        [fmean(ys) for _, ys in values],
        [min(ys) for _, ys in values],
        [max(ys) for _, ys in values],
    )
