"""The systems of a comparison as files: what each sets, its tuning trials, and winners of an earlier comparison."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load_all

from asr_hf.errors import InputError, OptionError

KEYS = {"name", "options", "trials"}
OWN = ("training.seed", "training.budget")  # options that a comparison sets itself
NAME = re.compile(r"[A-Za-z0-9][\w+-]*")
REMEDY = "asr-hf compare --help says what a system file holds."


@dataclass(frozen=True)
class SystemFile:
    """A system file: overrides that every run of the system has, and those of each tuning trial."""

    path: Path
    options: list[str]
    trials: list[list[str]]


@dataclass(frozen=True)
class Winner:
    """The overrides of a system's best trial, and the number of trials it was chosen from."""

    overrides: list[str]
    trials: int


def read_systems(paths: Sequence[Path]) -> dict[str, SystemFile]:
    """The systems of the files (a YAML document each), by name.

    Raises:
        InputError: a file that is none, an unknown key, a name that is no name of a folder, two systems of one name, an
            option that the comparison sets itself.
    """
    files: dict[str, SystemFile] = {}
    for path in paths:
        for content in _documents(path):
            name, file = _read_system(path, content)
            if name in files:
                raise InputError(f"{path} and {files[name].path} both name system '{name}'", "Give each its own name.")
            files[name] = file
    return files


def require_equal_trials(files: Mapping[str, SystemFile]) -> None:
    """Every system is to be tuned with the same number of trials, at least one.

    Raises:
        InputError: names the odd ones.
    """
    counts = {name: len(file.trials) for name, file in files.items()}
    for name, count in counts.items():
        if not count:
            raise InputError(f"{files[name].path} lists no trials", "List at least 8, or name a file by --tuned.")
    usual = Counter(counts.values()).most_common(1)[0][0]
    odd = [f"{name} has {count}" for name, count in counts.items() if count != usual]
    if odd:
        raise InputError(f"systems have {usual} trials, but {', '.join(odd)}", "Give every system as many.")


def read_winners(path: Path, names: Sequence[str]) -> dict[str, Winner]:
    """The winners of systems in a compare.json, by name.

    Raises:
        InputError: the file is no compare.json, or has no winner of a system.
    """
    winners = {}
    try:
        systems = json.loads(path.read_text(encoding="utf-8"))["systems"]
        for name in names:
            winner = systems[name]["winner"] if name in systems else None
            if winner is None:
                raise InputError(f"{path} has no winner of system '{name}'", "Run its trials first.")
            winners[name] = Winner(list(winner["overrides"]), int(winner["trials"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no compare.json ({error})", "Write it with asr-hf compare.") from None
    return winners


def refuse_own(overrides: Sequence[str], where: str) -> None:
    """Refuse options that the comparison sets itself (OptionError)."""
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if key in OWN:
            raise OptionError(f"{where} sets {key}, as --seeds and --budget do", "Leave it to these.")


def _documents(path: Path) -> list[Any]:
    try:
        return list(safe_load_all(path.read_text(encoding="utf-8"))) or [None]
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no system file ({' '.join(str(error).split())})", REMEDY) from None


def _read_system(path: Path, content: Any) -> tuple[str, SystemFile]:
    if not isinstance(content, dict):
        raise InputError(f"{path} is no system file", REMEDY)
    if not set(content) <= KEYS:
        raise InputError(f"{path}: unknown key {', '.join(map(str, set(content) - KEYS))}", REMEDY)
    name, options, trials = content.get("name"), content.get("options", []), content.get("trials", [])
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{path}: name '{name}' is no name for a folder", "Use letters, digits, _, + and -.")
    if not isinstance(trials, list) or not all(map(_are_overrides, [options, *trials])):
        raise InputError(f"{path}: options or trials are not lists of overrides like optimizer.updates=5", REMEDY)
    for overrides in [options, *trials]:
        refuse_own(overrides, str(path))
    return name, SystemFile(path, options, trials)


def _are_overrides(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and "=" in each for each in value)
