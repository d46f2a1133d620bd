"""Word errors of systems beside each other, pooled over seeds and folds; the speaker is the unit of chance."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
Speakers = Mapping[str, Sequence[int]]  # speaker -> errors, reference words


@dataclass(frozen=True)
class Difference:
    """WER of one system less that of another, and its 95 % interval, in per cent of the reference words."""

    value: float
    low: float
    high: float


def pooled(sets: Iterable[Speakers]) -> dict[str, tuple[int, int]]:
    """Errors and words of each speaker, summed; one name is one speaker, in whatever set it is."""
    sums: dict[str, tuple[int, int]] = {}
    for speakers in sets:
        for name, (errors, words) in speakers.items():
            before = sums.get(name, (0, 0))
            sums[name] = before[0] + errors, before[1] + words
    return sums


def wer(speakers: Speakers) -> float:
    """Word error rate in per cent."""
    return 100.0 * sum(errors for errors, _ in speakers.values()) / sum(words for _, words in speakers.values())


def difference(ours: Speakers, theirs: Speakers) -> Difference:
    """The difference of the WER of two systems on the same words of the same speakers.

    The interval is a paired bootstrap (Bisani and Ney 2004): speakers are drawn with replacement, 10,000 times with
    seed 0, for both systems alike.
    """
    names = sorted(ours)
    excess = np.array([ours[name][0] - theirs[name][0] for name in names], dtype=np.float64)
    words = np.array([ours[name][1] for name in names], dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(names), size=(DRAWS, len(names)))
    replicated = 100.0 * excess[drawn].sum(axis=1) / np.maximum(1.0, words[drawn].sum(axis=1))
    low, high = np.percentile(replicated, [2.5, 97.5])
    return Difference(100.0 * excess.sum() / words.sum(), float(low), float(high))
