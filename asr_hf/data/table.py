"""Kaldi's two-column text files: a key, white space, the rest of the line; read with the place of every fault."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asr_hf.errors import InputError


@dataclass(frozen=True)
class Fault:
    """One fault of a data directory: the file and line (0: the file as a whole), what is wrong and the remedy."""

    file: str
    line: int
    message: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}. {self.remedy}"

    def error(self) -> InputError:
        """The same as an exception."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return InputError(f"{place}: {self.message}", self.remedy)


@dataclass(frozen=True)
class Entry:
    """The rest of one line, with its number (from 1)."""

    line: int
    value: str


Table = dict[str, Entry]


def scan_table(path: str | Path, must_be_sorted: bool = False, unique: bool = True) -> tuple[Table, list[Fault]]:
    """Read a two-column file and list its faults: not UTF-8, empty lines, duplicate and unsorted keys.

    The order is that of bytes (LC_ALL=C), as Kaldi wants it. Of a duplicate key the first line is kept.

    Returns:
        key -> Entry in the order of the file, and the faults.
    """
    name = str(path)
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        return {}, [Fault(name, 0, f"cannot be read ({error.strerror})", "Name an existing, readable file.")]
    table: Table = {}
    faults: list[Fault] = []
    previous = ""
    for number, raw in enumerate(lines[:-1] if lines[-1] == b"" else lines, start=1):
        try:
            key, value = [*raw.decode("utf-8").strip().split(maxsplit=1), "", ""][:2]
        except UnicodeDecodeError as error:
            faults.append(
                Fault(name, number, f"byte {error.start + 1} of the line is not UTF-8", "Convert it (iconv -t UTF-8).")
            )
            continue
        if not key:
            faults.append(Fault(name, number, "the line is empty", "Remove it."))
            continue
        if key in table and unique:
            faults.append(
                Fault(name, number, f"duplicate id '{key}' (first in line {table[key].line})", "Keep one of the lines.")
            )
            continue
        if must_be_sorted and key < previous:
            faults.append(
                Fault(name, number, f"unsorted: '{key}' after '{previous}'", "Sort the file (LC_ALL=C sort).")
            )
        previous = key
        table.setdefault(key, Entry(number, value))
    return table, faults


def read_table(path: str | Path) -> Table:
    """Read a two-column file in any order; raises InputError with file and line of the first fault."""
    table, faults = scan_table(path)
    if faults:
        raise faults[0].error()
    return table


def write_table(path: str | Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a two-column file sorted by key, beside and renamed; InputError where a key is empty or has blanks."""
    ordered = sorted(rows)
    for key, _ in ordered:
        if key.split() != [key]:
            raise InputError(f"{path}: the id '{key}' is empty or holds white space", "Give it another name.")
    beside = Path(f"{path}.tmp")
    lines = [f"{key} {value}".rstrip() + "\n" for key, value in ordered]
    beside.write_text("".join(lines), encoding="utf-8")
    os.replace(beside, path)
