"""Word errors of systems beside each other, pooled over seeds and folds; the speaker is the unit of chance."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr_hf.errors import InputError

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


def read_speakers(path: Path | str) -> dict[str, tuple[int, int]]:
    """Errors and words of each speaker in a score.json (InputError when it is none)."""
    try:
        speakers = json.loads(Path(path).read_text(encoding="utf-8"))["speakers"]
        return {name: (int(row["errors"]), int(row["words"])) for name, row in speakers.items()}
    except OSError:
        raise InputError(f"{path} cannot be read", "Name a score.json that asr-hf score wrote.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no score.json ({error!r})", "Name a file that asr-hf score wrote.") from None


def compared(ours: Sequence[Path | str], theirs: Sequence[Path | str]) -> dict[str, Any]:
    """WER of two systems, each over several score.json (seeds, folds), and their difference, paired by speaker.

    Raises:
        InputError: the systems were not scored on the same words of the same speakers.
    """
    both = [pooled(map(read_speakers, files)) for files in (ours, theirs)]
    words = [{name: words for name, (_, words) in speakers.items()} for speakers in both]
    if words[0] != words[1] or not any(words[0].values()):
        odd = sorted(set(words[0].items()) ^ set(words[1].items()))
        raise InputError(
            f"the systems were not scored on the same words: speaker {odd[0][0]} differs"
            if odd
            else "the systems were scored on no words at all",
            "Name as many files of one system as of the other, of the same sets.",
        )
    rows = [
        {"files": list(map(str, files)), "wer": wer(speakers), "errors": sum(e for e, _ in speakers.values())}
        for files, speakers in zip((ours, theirs), both, strict=True)
    ]
    total, less = sum(words[0].values()), difference(*both)
    return {"system": rows[0], "reference": rows[1], "words": total, "speakers": len(words[0]), **asdict(less)}
