"""Results as data: the rows of results.json, one for each system, set and seed."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asr_hf.decoding.output import write_json
from asr_hf.errors import InputError


@dataclass(frozen=True)
class Row:
    """One measured result: `wer` and its 95 % interval `ci95` in per cent, `seconds` of making the system."""

    system: str
    set: str
    seed: int
    wer: float
    errors: int
    words: int
    ci95: tuple[float, float]
    seconds: float

    def __post_init__(self) -> None:
        numbers = (self.wer, *self.ci95, self.seconds)
        if len(self.ci95) != 2 or not all(math.isfinite(float(x)) for x in numbers):
            raise ValueError("wer, ci95 and seconds must be finite numbers")

    @property
    def key(self) -> tuple[str, str, int]:
        return self.system, self.set, self.seed


def read_results(path: Path | str) -> list[Row]:
    """Read the rows of results.json or of a published file; none if the file does not exist.

    Raises:
        InputError: the file is damaged; names the row.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(values, dict):
            values = values.get("rows")
        if not isinstance(values, list):
            raise ValueError("no list of rows")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}", "Remove it and add the rows again.") from None
    return [_row(value, f"{path}: row {number}") for number, value in enumerate(values, 1)]


def _row(value: Any, where: str) -> Row:
    try:
        return Row(**{**value, "ci95": tuple(value["ci95"])})
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{where} is damaged: {error}", "Remove the file and add the rows again.") from None


def add_result(path: Path | str, system: str, set: str, seed: int, score_json: Path | str, seconds: float) -> Row:
    """Add the row of a score.json to results.json, in place of an earlier row of the same system, set and seed.

    Raises:
        InputError: score.json is missing or damaged.
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise InputError(f"--seconds {seconds} is no duration", "Give a number of seconds, 0 or more.")
    try:
        score = json.loads(Path(score_json).read_text(encoding="utf-8"))
        low, high = score["ci95"]
        counts = int(score["errors"]), int(score["words"])
        row = Row(system, set, seed, float(score["wer"]), *counts, (float(low), float(high)), seconds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{score_json} is no score ({type(error).__name__}: {error})", "Write it with asr-hf score."
        ) from None
    rows = read_results(path)
    places = [place for place, old in enumerate(rows) if old.key == row.key]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    write_json(path, [asdict(each) for each in rows])
    return row


def find_results(rows: list[Row], system: str, set: str, seed: int | None = None) -> list[Row]:
    """The rows of a system on a set (InputError, naming what there is, when there is none)."""
    found = [row for row in rows if (row.system, row.set) == (system, set) and seed in (None, row.seed)]
    if not found:
        there = ", ".join(sorted({f"{row.system} {row.set}" for row in rows})) or "nothing"
        raise InputError(f"no result of system {system} on {set}", f"There is: {there}.")
    return found
