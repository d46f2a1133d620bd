"""Pooled word error rates; the bootstrap against every draw there is, and against its limit."""

from itertools import product

import numpy as np
import pytest

from asr_hf.report.word_errors import difference, pooled, wer

OURS = {"a": (3, 20), "b": (5, 40), "c": (2, 10), "d": (0, 30)}
THEIRS = {"a": (5, 20), "b": (6, 40), "c": (1, 10), "d": (4, 30)}


def test_sums_over_sets() -> None:
    both = pooled([OURS, {"a": (1, 20), "e": (2, 5)}])
    assert both == {**OURS, "a": (4, 40), "e": (2, 5)}
    assert wer(both) == pytest.approx(100 * (4 + 5 + 2 + 0 + 2) / (40 + 40 + 10 + 30 + 5))


def test_the_interval_is_that_of_all_draws() -> None:
    found = difference(OURS, THEIRS)
    assert found.value == pytest.approx(wer(OURS) - wer(THEIRS))
    every = []
    for draw in product(OURS, repeat=4):
        words = sum(OURS[name][1] for name in draw)
        every.append(100 * sum(OURS[name][0] - THEIRS[name][0] for name in draw) / words)
    assert found.low == pytest.approx(np.percentile(every, 2.5), abs=0.5)
    assert found.high == pytest.approx(np.percentile(every, 97.5), abs=0.5)


def test_with_many_speakers_the_interval_is_that_of_the_ratio_estimator() -> None:
    rng = np.random.default_rng(4)
    words = rng.integers(50, 200, size=200)
    errors = rng.binomial(words, [[0.1], [0.13]])
    ours, theirs = ({str(n): (int(e), int(w)) for n, (e, w) in enumerate(zip(each, words, strict=True))}
                    for each in errors)  # fmt: skip
    found = difference(ours, theirs)
    excess = errors[0] - errors[1]
    deviation = 100 * np.sqrt(np.sum((excess - excess.sum() / words.sum() * words) ** 2)) / words.sum()
    assert found.low == pytest.approx(found.value - 1.96 * deviation, abs=0.05)
    assert found.high == pytest.approx(found.value + 1.96 * deviation, abs=0.05)
    same = difference(ours, ours)
    assert (same.value, same.low, same.high) == (0, 0, 0)
