"""Word error rate of hypotheses against references, with alignments and a confidence interval, by kaldialign.

Costs of the alignment are 1 for substitution, deletion and insertion alike, as in Kaldi's compute-wer, so the number of
errors is the plain edit distance.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import kaldialign

from asr_hf.errors import InputError

Words = Sequence[str]
GAP = ""  # stands where one side of an alignment has no word; no word is empty


@dataclass
class Counts:
    """Reference words and errors of a set of utterances."""

    utterances: int = 0
    utterances_wrong: int = 0
    words: int = 0
    correct: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float | None:
        """Errors in per cent of the reference words; None where there is no reference word."""
        return 100.0 * self.errors / self.words if self.words else None

    def add(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Count one utterance by its aligned (reference, hypothesis) words."""
        before = self.errors
        for ref, hyp in pairs:
            self.words += ref != GAP
            self.correct += ref == hyp
            self.insertions += ref == GAP
            self.deletions += hyp == GAP
            self.substitutions += GAP not in (ref, hyp) and ref != hyp
        self.utterances += 1
        self.utterances_wrong += self.errors > before


@dataclass
class Score:
    """Everything that is known about a set of hypotheses.

    `ci95` is the 95 % interval of the WER in per cent, bootstrapped over utterances (Bisani & Ney 2004).
    """

    totals: Counts
    ci95: tuple[float, float]
    speakers: dict[str, Counts]
    alignments: dict[str, list[tuple[str, str]]]
    speaker_of: dict[str, str]
    confusions: Counter[tuple[str, str]] = field(default_factory=Counter)
    insertions: Counter[str] = field(default_factory=Counter)
    deletions: Counter[str] = field(default_factory=Counter)

    @property
    def wer(self) -> float:
        """Word error rate in per cent."""
        assert self.totals.wer is not None  # score() refuses references without a word
        return self.totals.wer


def confidence_interval(refs: Sequence[Words], hyps: Sequence[Words]) -> tuple[float, float]:
    """95 % interval of the WER in per cent: kaldialign's bootstrap over utterances, 10,000 replications, seed 0.

    Utterances without a reference word join the one before them, so that no replication is without words.
    """
    units: list[tuple[list[str], list[str]]] = []
    leading: list[str] = []
    for ref, hyp in zip(refs, hyps, strict=True):
        if not ref:
            (units[-1][1] if units else leading).extend(hyp)
        else:
            units.append((list(ref), leading + list(hyp)))
            leading = []
    interval = kaldialign.bootstrap_wer_ci([ref for ref, _ in units], [hyp for _, hyp in units])
    return max(0.0, 100 * interval["ci95min"]), 100 * interval["ci95max"]


def check_ids(ref: Mapping[str, Words], hyp: Mapping[str, Words]) -> None:
    """Hypotheses must be of exactly the utterances that have a reference (InputError)."""
    missing = sorted(ref.keys() - hyp.keys())
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ref)} utterances have no hypothesis, the first is {missing[0]}",
            "Decode the whole set again; an utterance in which nothing was recognised has a line with its id alone.",
        )
    foreign = sorted(hyp.keys() - ref.keys())
    if foreign:
        raise InputError(
            f"{len(foreign)} hypotheses are of utterances without a reference, the first is {foreign[0]}",
            "Score the hypotheses against the data directory that was decoded.",
        )
    if not any(ref.values()):
        raise InputError("no utterance has a reference word", "Give a data directory with a filled text file.")


def score(ref: Mapping[str, Words], hyp: Mapping[str, Words], utt2spk: Mapping[str, str]) -> Score:
    """Align and count hypotheses; an utterance with an empty reference counts its words as insertions.

    Args:
        ref, hyp: words of each utterance.
        utt2spk: the speaker of each utterance of `ref`.

    Raises:
        InputError: a hypothesis is missing or foreign, a speaker is missing, or there is no reference word at all.
    """
    check_ids(ref, hyp)
    speakerless = sorted(ref.keys() - utt2spk.keys())
    if speakerless:
        raise InputError(f"utterance {speakerless[0]} has no speaker in utt2spk", "Add its line to utt2spk.")
    result = Score(Counts(), (0.0, 0.0), {}, {}, {})
    for utterance in sorted(ref):
        pairs = kaldialign.align(ref[utterance], hyp[utterance], GAP)
        speaker = utt2spk[utterance]
        result.alignments[utterance] = pairs
        result.speaker_of[utterance] = speaker
        result.totals.add(pairs)
        result.speakers.setdefault(speaker, Counts()).add(pairs)
        result.insertions.update(h for r, h in pairs if r == GAP)
        result.deletions.update(r for r, h in pairs if h == GAP)
        result.confusions.update((r, h) for r, h in pairs if GAP not in (r, h) and r != h)
    ids = sorted(ref)
    result.ci95 = confidence_interval([ref[u] for u in ids], [hyp[u] for u in ids])
    assert all(map(math.isfinite, (result.wer, *result.ci95)))
    return result
