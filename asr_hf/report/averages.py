"""The table of `asr-hf bench averages`: averages beside their members and the models that these began from."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from asr_hf.report.tables import aligned
from asr_hf.report.word_errors import Speakers, difference, pooled, wer

KINDS = ("start", "members", "average")
SETS = ("dev", "test")
Judged = Mapping[str, Any]


def averages_text(averages: Mapping[str, Judged]) -> str:
    """A line for the start, the members (mean, lowest–highest) and the average of each; word errors pooled below."""
    decoded = all("wer" in found["average"] for found in averages.values())
    lines = [["", "model", "held-out", "dev loss", *(f"WER {name}" for name in SETS if decoded)]]
    for name, found in averages.items():
        for kind in KINDS:
            models = _models(found, kind)
            if models:
                columns = [[model[loss] for model in models] for loss in ("heldout", "dev")]
                cells = [_range(column, ".4f") for column in columns]
                cells += [_range([wer(m["wer"][each]["speakers"]) for m in models], ".2f") for each in SETS if decoded]
                lines.append([name, kind, *cells])
    parts = [aligned(lines, names=2)]
    if decoded:
        parts.append(_words(averages))
    return "\n\n".join(parts)


def _models(found: Judged, kind: str) -> Sequence[Judged]:
    return found["members"] if kind == "members" else [found[kind]] if found[kind] is not None else []


def _words(averages: Mapping[str, Judged]) -> str:
    """WER over all averages, and what the average has less than the others, each as often as it has members."""
    lines = [["model", *(cell for each in SETS for cell in (f"WER {each}", "less the average's"))]]
    kinds = [kind for kind in KINDS if all(_models(found, kind) for found in averages.values())]
    for kind in kinds:
        cells = [kind]
        for each in SETS:
            theirs, ours = _speakers(averages, kind, each), _speakers(averages, "average", each)
            cells.append(f"{wer(theirs):.2f}")
            found = difference(theirs, ours)
            cells.append("-" if kind == "average" else f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")
        lines.append(cells)
    title = "errors over all words of all averages; differences with 95 % intervals, bootstrapped over speakers"
    return f"{title}\n{aligned(lines, names=1)}"


def _speakers(averages: Mapping[str, Judged], kind: str, which: str) -> Speakers:
    sets = []
    for found in averages.values():
        models = _models(found, kind)
        repeats = len(found["members"]) // len(models)  # so that all kinds have the same words
        sets += [model["wer"][which]["speakers"] for model in models] * repeats
    return pooled(sets)


def _range(values: Sequence[float], digits: str) -> str:
    if len(values) == 1:
        return format(values[0], digits)
    return f"{fmean(values):{digits}} ({min(values):{digits}}–{max(values):{digits}})"
