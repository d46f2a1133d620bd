"""Kaldi alignments and transition models in text form, taken over into an ALI folder.

A Kaldi transition-id names a (phone, HMM state, pdfs) tuple and one of the transitions out of it; the text form of
final.mdl (gmm-copy --binary=false, or copy-transition-model --binary=false) has all that is needed to number them.
"""

import gzip
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kaldiio
import numpy as np

from asr_hf.data.archive import FeatureArchive, read_int_vectors, write_int_vectors
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.data.folder import whole_folder
from asr_hf.errors import InputError
from asr_hf.hmm.alignment import AlignmentReport, check_length
from asr_hf.hmm.model import HmmModel
from asr_hf.options import require_choice

_REMEDY = "Write it with `gmm-copy --binary=false final.mdl final.txt` (nnet3: nnet3-am-copy)."


@dataclass(frozen=True)
class TransitionModel:
    """What a Kaldi transition model says about its transition-ids.

    Attributes:
        num_pdfs: highest pdf plus one.
        table: rows of phone, HMM state, pdf of leaving, pdf of the self-loop, one per tuple.
        tuple_of: for each transition-id its row in `table`; entry 0 is unused (−1).
        pdf_of: for each transition-id the pdf of a frame that takes it; entry 0 is unused (−1).
    """

    num_pdfs: int
    table: np.ndarray
    tuple_of: np.ndarray
    pdf_of: np.ndarray


class _Tokens:
    """The words of a text model, read forwards; messages name the file and the line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            lines = path.read_text(encoding="latin-1").splitlines()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", _REMEDY) from None
        self._words = [(word, number) for number, line in enumerate(lines, 1) for word in line.split()]
        self._next = 0
        if not self._words or "\0" in self._words[0][0]:
            raise InputError(f"{path} is empty or a binary model", _REMEDY)

    def peek(self) -> str:
        return self._words[self._next][0] if self._next < len(self._words) else ""

    def take(self) -> str:
        word = self.peek()
        self._next += 1
        return word

    def fail(self, what: str) -> InputError:
        line = self._words[max(0, min(self._next, len(self._words)) - 1)][1]
        return InputError(f"{self.path}:{line}: {what}", _REMEDY)

    def expect(self, *names: str) -> str:
        word = self.take()
        if word not in names:
            raise self.fail(f"found '{word}' where {' or '.join(names)} should stand")
        return word

    def number(self) -> int:
        word = self.take()
        try:
            return int(word)
        except ValueError:
            raise self.fail(f"found '{word}' where a whole number should stand") from None

    def numbers_until(self, end: str) -> list[int]:
        found = []
        while self.peek() != end:
            found.append(self.number())
        self.take()
        return found


_Topology = dict[int, list[list[int]]]  # phone -> for each HMM state the states its transitions lead to


def _read_topology(tokens: _Tokens) -> _Topology:
    topology: _Topology = {}
    tokens.expect("<Topology>")
    while tokens.expect("<TopologyEntry>", "</Topology>") == "<TopologyEntry>":
        tokens.expect("<ForPhones>")
        phones = tokens.numbers_until("</ForPhones>")
        states: list[list[int]] = []
        while tokens.expect("<State>", "</TopologyEntry>") == "<State>":
            if tokens.number() != len(states):
                raise tokens.fail("the states of a topology are not numbered 0, 1, 2, …")
            states.append(_read_transitions(tokens))
        topology.update((phone, states) for phone in phones)
    return topology


def _read_transitions(tokens: _Tokens) -> list[int]:
    """The states that a state leads to, after its optional pdf classes."""
    while tokens.peek() in ("<PdfClass>", "<ForwardPdfClass>", "<SelfLoopPdfClass>"):
        tokens.take()
        tokens.number()
    targets = []
    while tokens.expect("<Transition>", "</State>") == "<Transition>":
        targets.append(tokens.number())
        tokens.take()  # its initial probability
    return targets


def read_transition_model(path: Path | str) -> TransitionModel:
    """Read the <TransitionModel> at the head of a text final.mdl, in its <Triples> or <Tuples> form.

    Raises:
        InputError: binary, damaged or of another kind; names file and line.
    """
    tokens = _Tokens(Path(path))
    tokens.expect("<TransitionModel>")
    topology = _read_topology(tokens)
    kind = tokens.expect("<Triples>", "<Tuples>")
    width = 3 if kind == "<Triples>" else 4
    count = tokens.number()
    numbers = tokens.numbers_until(kind.replace("<", "</"))
    if len(numbers) != count * width or count == 0:
        raise tokens.fail(f"{kind} announces {count} rows of {width} numbers but holds {len(numbers)} numbers")
    table = np.array(numbers, dtype=np.int64).reshape(count, width)
    if width == 3:
        table = table[:, [0, 1, 2, 2]]  # one pdf for leaving and self-loop
    tuple_of, pdf_of = [-1], [-1]
    for row, (phone, state, forward, self_loop) in enumerate(table.tolist()):
        if phone not in topology or state >= len(topology[phone]):
            raise tokens.fail(f"row {row} of {kind} has phone {phone}, state {state}, which the topology lacks")
        for target in topology[phone][state]:
            tuple_of.append(row)
            pdf_of.append(self_loop if target == state else forward)
    _check_log_probabilities(tokens, len(pdf_of))
    return TransitionModel(int(table[:, 2:].max()) + 1, table, np.array(tuple_of), np.array(pdf_of, dtype=np.int32))


def _check_log_probabilities(tokens: _Tokens, expected: int) -> None:
    """Kaldi stores one log probability per transition-id, and one for the unused 0: their number must be ours."""
    tokens.expect("<LogProbs>")
    tokens.expect("[")
    count = 0
    while tokens.peek() not in ("]", ""):
        tokens.take()
        count += 1
    if count != expected:
        raise tokens.fail(f"there are {count - 1} transition-ids by <LogProbs> but {expected - 1} by the topology")


def _read_vectors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(utterance, integers) of an scp, an ark or a gzipped ark."""
    if path.suffix == ".scp":
        yield from read_int_vectors(path).items()
        return
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for utterance, vector in kaldiio.load_ark(file):
                if vector.ndim != 1 or vector.dtype.kind != "i":
                    raise InputError(f"{path}: utterance {utterance} is no vector of integers", "Name alignments.")
                yield utterance, vector
    except (OSError, ValueError, EOFError, AssertionError, RuntimeError, struct.error) as error:
        raise InputError(
            f"{path} cannot be read ({error or type(error).__name__})", "Name an ark of alignments."
        ) from None


def _labels_of(vectors: dict[str, np.ndarray], model: TransitionModel) -> str:
    """Whether alignments hold pdfs (from 0) or transition-ids (from 1 to beyond the pdfs)."""
    lowest = min(int(vector.min()) for vector in vectors.values())
    highest = max(int(vector.max()) for vector in vectors.values())
    if lowest == 0 and highest < model.num_pdfs:
        return "pdf"
    if lowest > 0 and model.num_pdfs <= highest < len(model.pdf_of):
        return "transition"
    raise InputError(
        f"the alignments hold numbers from {lowest} to {highest}; the model has {model.num_pdfs} pdfs and "
        f"{len(model.pdf_of) - 1} transition-ids",
        "If they belong together, say which they are with --labels pdf or --labels transition.",
    )


def import_kaldi_alignments(
    sources: Sequence[Path | str],
    model_path: Path | str,
    ali_dir: Path | str,
    feats_dir: Path | str | None = None,
    labels: str = "auto",
) -> AlignmentReport:
    """Write an ALI folder from Kaldi alignments and the text transition model that they belong to.

    Args:
        sources: arks, gzipped arks or scps of pdfs (ali-to-pdf) or of transition-ids (ali.*.gz as they are).
        model_path: final.mdl in text form.
        ali_dir: the folder to write; its hmm.json knows the number of pdfs and no topology.
        feats_dir: features of the same utterances, whose lengths must agree.
        labels: "pdf", "transition", or "auto", which looks at the numbers.

    Raises:
        InputError: names the utterance: twice there, empty, a number beyond the model, a length unlike its features.
    """
    require_choice("--labels", labels, ("auto", "pdf", "transition"))
    model = read_transition_model(model_path)
    fingerprint = read_fingerprint(feats_dir) if feats_dir is not None else None
    archive = FeatureArchive(Path(feats_dir) / "feats.scp") if feats_dir is not None else None
    vectors: dict[str, np.ndarray] = {}
    for source in sources:
        for utterance, vector in _read_vectors(Path(source)):
            if utterance in vectors or len(vector) == 0:
                fault = "is there twice" if utterance in vectors else "is empty"
                raise InputError(f"{source}: the alignment of utterance {utterance} {fault}", "Remove it.")
            vectors[utterance] = vector
    if not vectors:
        raise InputError(f"{', '.join(map(str, sources))}: no alignments", "Name arks of alignments.")
    if labels == "auto":
        labels = _labels_of(vectors, model)
    pdfs = {utterance: _to_pdfs(vector, utterance, model, labels) for utterance, vector in vectors.items()}
    if archive is not None:
        for utterance in pdfs.keys() & set(archive.keys()):
            check_length(utterance, len(pdfs[utterance]), archive, sources[0])
    with whole_folder(ali_dir, "hmm.json") as folder:
        write_int_vectors(folder / "pdf", sorted(pdfs.items()), final_dir=ali_dir)
        HmmModel(model.num_pdfs).save(folder)
        if fingerprint is not None:
            fingerprint.save(folder)
    missing = [] if archive is None else sorted(set(archive.keys()) - pdfs.keys())
    return AlignmentReport(len(pdfs), sum(map(len, pdfs.values())), missing)


def _to_pdfs(vector: np.ndarray, utterance: str, model: TransitionModel, labels: str) -> np.ndarray:
    lowest, end = (0, model.num_pdfs) if labels == "pdf" else (1, len(model.pdf_of))
    if vector.min() < lowest or vector.max() >= end:
        raise InputError(
            f"the alignment of utterance {utterance} has a {labels} number outside {lowest} … {end - 1}",
            "Give the transition model that the alignments were made with.",
        )
    return vector.astype(np.int32) if labels == "pdf" else model.pdf_of[vector]
