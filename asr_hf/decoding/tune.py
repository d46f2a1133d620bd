"""Acoustic scale and word insertion penalty, chosen on a dev set and then frozen.

Tune on speakers that the model never saw in training, and never on the test set.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import kaldialign

from asr_hf.data.kaldi_dir import read_text
from asr_hf.decoding.output import write_json
from asr_hf.decoding.recognize import Task, Workers
from asr_hf.decoding.score import Words
from asr_hf.decoding.search import DecodingOptions
from asr_hf.errors import InputError
from asr_hf.options import require

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # on the acoustic scale that decoding takes by itself
PENALTIES = (0.0, 1.0, 2.0, 3.0)
EXTENSIONS = 6  # a grid grows by at most so many values on either end, and then the best point moves so often
Point = tuple[float, float]  # acoustic scale, word penalty


@dataclass(frozen=True)
class Tuned:
    """The best scales found, their WER in per cent on the dev set, and every point tried."""

    acoustic_scale: float
    word_penalty: float
    wer: float
    errors: int
    words: int
    grid: list[dict[str, float]]


def tune(
    feats_dir: Path | str,
    graph_dir: Path | str,
    model_dir: Path | str,
    out_dir: Path | str,
    options: DecodingOptions,
    scales: Sequence[float] | None = None,
    penalties: Sequence[float] = PENALTIES,
    jobs: int = 1,
) -> Tuned:
    """Choose acoustic scale and word penalty by WER on FEATS; writes OUT/tuned.json for `decode --tuned`.

    Without `scales`, these are FACTORS of the acoustic scale that decoding takes by itself. Log-likelihoods are
    computed once. See `best_point` for the order in which the grid is tried.

    Raises:
        InputError: FEATS has no transcripts, or features, graph and model do not belong together.
    """
    for scale in scales or ():
        require(0 < scale < float("inf"), "--scales", scale, "must be > 0")
    for penalty in penalties:
        require(abs(penalty) < float("inf"), "--penalties", penalty, "must be finite")
    refs = read_text(feats_dir)
    with Workers(Task(str(feats_dir), str(graph_dir), str(model_dir), keep=True), jobs) as workers:
        ids = workers.utterances
        words = _count_words(refs, ids, feats_dir)
        if scales is None:
            own = workers.recognizer.model.acoustic_scale
            scales = [float(f"{own * factor:.3g}") for factor in FACTORS]

        def errors(point: Point) -> int:
            title = f"scale {point[0]:g}, penalty {point[1]:g}"
            found = workers.recognize(options.at(*point), title)
            hyps = [found[utterance][0].words for utterance in ids]
            return int(kaldialign.batch_error_rate([refs[utterance] for utterance in ids], hyps)["total"])

        tried, best = best_point(errors, scales, penalties)
    grid = [
        {"acoustic_scale": scale, "word_penalty": penalty, "wer": 100 * n / words, "errors": n}
        for (scale, penalty), n in sorted(tried.items())
    ]
    tuned = Tuned(*best, 100 * tried[best] / words, tried[best], words, grid)
    write_json(Path(out_dir) / "tuned.json", {**asdict(tuned), "options": asdict(options.at(*best))})
    return tuned


def read_tuned(path: Path | str) -> Point:
    """Acoustic scale and word penalty of a tuned.json (InputError if it is none)."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return float(value["acoustic_scale"]), float(value["word_penalty"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no tuned.json ({type(error).__name__}: {error})", "Write it with asr-hf tune."
        ) from None


def best_point(
    errors: Callable[[Point], int], scales: Sequence[float], penalties: Sequence[float]
) -> tuple[dict[Point, int], Point]:
    """Fewest errors over a grid that grows where the best lies on its end.

    All scales are tried at the middle penalty, all penalties at the best scale; then the best point moves to the best
    of its eight neighbours (a larger scale wants a larger penalty) until none is better.

    Returns:
        the errors of every point tried, and the best point.
    """
    tried: dict[Point, int] = {}

    def at(point: Point) -> int:
        if point not in tried:
            tried[point] = errors(point)
        return tried[point]

    scales, penalties = sorted(set(scales)), sorted(set(penalties))
    penalty = _middle(penalties)
    scale = best_on_line(lambda value: at((value, penalty)), scales, _next_ratio)
    penalty = best_on_line(lambda value: at((scale, value)), penalties, _next_difference)
    best = scale, penalty
    for _ in range(EXTENSIONS if at(best) else 0):
        around = product(_around(scales, best[0], _next_ratio), _around(penalties, best[1], _next_difference))
        nearby = min(around, key=at)
        if at(nearby) >= at(best):
            break
        best = nearby
    return tried, best


def best_on_line(errors: Callable[[float], int], values: list[float], beyond: Callable[[float, float], float]) -> float:
    """The value with fewest errors, of equals the middle one.

    Walks from the middle up, then down (low scales, where the search is slow, come last), until clearly worse. At the
    end of `values` it goes on only while the last value alone is best, to `beyond(last, the one before)`, which
    `values` then holds too.
    """
    start = _middle(values)
    found = {start: errors(start)}
    for upwards in (True, False):
        value = start
        for _ in range(len(values) + EXTENSIONS):
            line = sorted(values, reverse=not upwards)
            fewest = min(found.values())
            if value == line[-1]:
                if len(line) < 2 or [x for x in found if found[x] == fewest] != [value]:
                    break
                values.append(beyond(line[-1], line[-2]))
                line.append(values[-1])
            value = line[line.index(value) + 1]
            found[value] = errors(value)
            if clearly_worse(found[value], fewest):
                break
    fewest = min(found.values())
    return _middle(sorted(value for value in found if found[value] == fewest))


def clearly_worse(now: int, best: int) -> bool:
    """Worse by more than chance on a small dev set: a tenth of the errors, and more than two."""
    return now > best + max(2, best // 10)


def _around(values: list[float], value: float, beyond: Callable[[float, float], float]) -> list[float]:
    """A value and its neighbours; `values` grows where it lies on an end."""
    if len(values) > 1:
        values.sort()
        if value == values[-1]:
            values.append(beyond(values[-1], values[-2]))
        if value == values[0]:
            values.insert(0, beyond(values[0], values[1]))
    place = values.index(value)
    return values[max(0, place - 1) : place + 2]


def _count_words(refs: Mapping[str, Words], ids: Sequence[str], feats_dir: Path | str) -> int:
    """Reference words of the utterances (InputError where one has no transcript, or none has a word)."""
    for utterance in ids:
        if utterance not in refs:
            raise InputError(f"{Path(feats_dir) / 'text'}: no transcript of utterance {utterance}", "Add its line.")
    words = sum(len(refs[utterance]) for utterance in ids)
    if not words:
        raise InputError(f"{Path(feats_dir) / 'text'} has no word to tune on", "Tune on transcribed speech.")
    return words


def _middle(values: Sequence[float]) -> float:
    return values[len(values) // 2]


def _next_ratio(last: float, before: float) -> float:
    return float(f"{last * last / before:.3g}")


def _next_difference(last: float, before: float) -> float:
    return float(f"{2 * last - before:.6g}")
