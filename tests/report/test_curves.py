"""Step curves against hand-made numbers and numpy."""

import numpy as np
import pytest

from asr_hf.report.curves import best_at, cost_to_reach, geometric_mean, saving, step_band, update_band


def curve(costs, losses):
    return [
        {"cost": cost, "heldout": loss, "update": n, "seconds": 10.0 * cost, "vectors": 3 * n, "damping": 2.0**-n}
        for n, (cost, loss) in enumerate(zip(costs, losses, strict=True), 1)
    ]


SLOW = curve([10, 20, 30, 40], [5.0, 4.0, None, 3.0])
FAST = curve([4, 8, 12], [4.5, 4.6, 3.0])


def test_best_so_far_and_its_cost() -> None:
    assert [best_at(SLOW, limit) for limit in (9, 10, 25, 35, 40)] == [None, 5.0, 4.0, 4.0, 3.0]
    assert best_at(FAST, 9) == 4.5  # a loss that rises again is not the best
    assert best_at(SLOW, 3, "update") == 4.0
    assert [cost_to_reach(SLOW, loss) for loss in (6, 4, 3.5, 2)] == [10, 20, 40, None]


def test_savings_on_a_hand_made_pair() -> None:
    # after 50 % of 40 the reference has 4.0, at cost 20; the other has that at 12
    assert saving(SLOW, FAST, 0.5) == pytest.approx(20 / 12)
    assert saving(SLOW, FAST, 0.8) == pytest.approx(20 / 12)  # at cost 32 it still has 4.0
    assert saving(SLOW, FAST, 1.0) == pytest.approx(40 / 12)
    assert saving(FAST, SLOW, 0.5) == pytest.approx(4 / 20)
    assert saving(SLOW, SLOW, 0.8) == 1.0
    assert saving(SLOW, FAST, 0.2) is None  # no loss yet
    assert saving(SLOW, curve([1], [3.5]), 1.0) is None  # never reached
    assert saving([], FAST, 1.0) is None
    assert saving(SLOW, [], 1.0) is None
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_a_step_band_is_what_a_dense_evaluation_gives() -> None:
    band = step_band([SLOW, FAST], "cost")
    dense = np.arange(10, 41) + 0.5

    def of(one, x):
        return np.array([min(r["heldout"] for r in one if r["heldout"] is not None and r["cost"] <= at) for at in x])

    both = np.stack([of(SLOW, dense), of(FAST, dense)])

    def drawn(y):  # the last of the points at or before
        return [y[max(i for i, x in enumerate(band.x) if x <= at)] for at in dense]

    np.testing.assert_allclose(drawn(band.mean), both.mean(0))
    np.testing.assert_allclose(drawn(band.low), both.min(0))
    np.testing.assert_allclose(drawn(band.high), both.max(0))
    assert band.x[0] == 10  # before, one of them has no loss yet
    assert all(a == b or y == z for a, b, y, z in zip(band.x, band.x[1:], band.mean, band.mean[1:], strict=False))
    assert step_band([], "cost").x == []


def test_an_update_band_takes_those_that_have_the_column() -> None:
    longer = [{**row, "damping": 1.0 if row["update"] > 1 else None} for row in SLOW]
    band = update_band([longer, FAST], "damping")
    assert band.x == [1, 2, 3, 4]
    assert band.mean == [0.5, (1 + 0.25) / 2, (1 + 0.125) / 2, 1.0]
    assert (band.low, band.high) == ([0.5, 0.25, 0.125, 1.0], [0.5, 1, 1, 1])
