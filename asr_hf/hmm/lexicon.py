"""Pronunciation lexicons: reading them, disambiguation symbols, and the transducer L from phones to words.

L and its symbols follow Mohri, Pereira & Riley 2008, "Speech recognition with weighted finite-state transducers".
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from asr_hf.errors import InputError
from asr_hf.hmm.fst import FstArrays

EPSILON, BACKOFF, SENTENCE_START, SENTENCE_END = "<eps>", "#0", "<s>", "</s>"
RESERVED = (EPSILON, BACKOFF, SENTENCE_START, SENTENCE_END)
_VARIANT = re.compile(r"\(\d+\)$")


@dataclass(frozen=True)
class Pronunciation:
    """One way to say a word, with its probability (the best variant of a word usually has 1)."""

    word: str
    probability: float
    phones: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """Pronunciations in the order of their file."""

    entries: tuple[Pronunciation, ...]

    @cached_property
    def variants(self) -> dict[str, list[Pronunciation]]:
        """{word: its pronunciations}."""
        table: dict[str, list[Pronunciation]] = {}
        for entry in self.entries:
            table.setdefault(entry.word, []).append(entry)
        return table

    @cached_property
    def words(self) -> list[str]:
        return sorted(self.variants)

    @cached_property
    def phones(self) -> list[str]:
        return sorted({phone for entry in self.entries for phone in entry.phones})

    def with_entry(self, entry: Pronunciation) -> "Lexicon":
        """This lexicon and one more pronunciation, unless the word has one already."""
        return self if entry.word in self.variants else Lexicon((*self.entries, entry))


def _parse(line: str, where: str) -> Pronunciation:
    word, *rest = line.split()
    word = _VARIANT.sub("", word)
    if word in RESERVED:
        raise InputError(f"{where}: the word {word} is reserved", "Remove the line or rename the word.")
    probability = 1.0
    try:
        probability = float(rest[0])
        rest = rest[1:]
    except (ValueError, IndexError):
        pass
    if not 0.0 < probability <= 1.0:
        raise InputError(f"{where}: pronunciation probability {probability} of {word} is not in (0, 1]", "Correct it.")
    if not rest:
        raise InputError(f"{where}: the word {word} has no phones", "Write 'word [probability] phone phone …'.")
    for phone in rest:
        if phone.startswith("#") or phone == EPSILON:
            raise InputError(f"{where}: the phone name {phone} is reserved", "Rename the phone.")
    return Pronunciation(word, probability, tuple(rest))


def read_lexicon(path: Path | str) -> Lexicon:
    """Read a lexicon of lines `word [probability] phone phone …`.

    Lines that begin with # or ;;; are comments; the CMU marks of variants, as in A(2), are taken off.

    Raises:
        InputError: names file and line: not UTF-8, no phones, an impossible probability, a repeated or reserved entry.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read the lexicon {path}: {error.strerror}", "Name a lexicon file.") from None
    entries: list[Pronunciation] = []
    seen: dict[tuple[str, tuple[str, ...]], int] = {}
    for number, raw in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise InputError(f"{where}: not UTF-8", "Convert the file to UTF-8.") from None
        if not line or line.startswith(("#", ";;;")):
            continue
        entry = _parse(line, where)
        first = seen.setdefault((entry.word, entry.phones), number)
        if first != number:
            raise InputError(f"{where}: repeats the pronunciation of {entry.word} in line {first}", "Remove one.")
        entries.append(entry)
    if not entries:
        raise InputError(f"the lexicon {path} has no entries", "Write 'word [probability] phone phone …' lines.")
    return Lexicon(tuple(entries))


def disambiguate(entries: Iterable[Pronunciation]) -> list[int]:
    """Number of the symbol #n that ends each pronunciation, 0 for none.

    A phone sequence that several words share, or that begins a longer one, gets a number of its own per word, so that
    L∘G can be determinised.
    """
    entries = list(entries)
    shared = Counter(entry.phones for entry in entries)
    prefixes = {entry.phones[:length] for entry in entries for length in range(1, len(entry.phones))}
    used: Counter[tuple[str, ...]] = Counter()
    numbers = []
    for entry in entries:
        if shared[entry.phones] > 1 or entry.phones in prefixes:
            used[entry.phones] += 1
            numbers.append(used[entry.phones])
        else:
            numbers.append(0)
    return numbers


def lexicon_transducer(
    lexicon: Lexicon,
    words: Mapping[str, int],
    phones: Mapping[str, int],
    silence: str,
    silence_probability: float,
) -> FstArrays:
    """L: any sequence of pronunciations to its words, with optional silence at both ends and between words.

    Costs are −log probabilities. Every disambiguation symbol #1, #2, … of `phones` may occur; the highest marks the
    end of an optional silence, and #0 passes through from G.
    """
    start, loop, silent, marked = range(4)
    with_silence = -math.log(silence_probability) if silence_probability > 0 else None
    without = -math.log1p(-silence_probability) if silence_probability < 1 else None
    last = phones[f"#{max(disambiguate(lexicon.entries)) + 1}"]
    arcs: list[tuple[int, int, int, int, float]] = [
        (silent, marked, phones[silence], 0, 0.0),
        (marked, loop, last, 0, 0.0),
        (loop, loop, phones[BACKOFF], words[BACKOFF], 0.0),
    ]
    if without is not None:
        arcs.append((start, loop, 0, 0, without))
    if with_silence is not None:
        arcs.append((start, silent, 0, 0, with_silence))
    free = 4
    for entry, number in zip(lexicon.entries, disambiguate(lexicon.entries), strict=True):
        labels = [phones[phone] for phone in entry.phones] + ([phones[f"#{number}"]] if number else [])
        state, word, cost = loop, words[entry.word], -math.log(entry.probability)
        for label in labels[:-1]:
            arcs.append((state, free, label, word, cost))
            state, word, cost, free = free, 0, 0.0, free + 1
        if without is not None:
            arcs.append((state, loop, labels[-1], word, cost + without))
        if with_silence is not None:
            arcs.append((state, silent, labels[-1], word, cost + with_silence))
    return FstArrays.from_lists(arcs, {loop: 0.0})
