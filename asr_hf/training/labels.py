"""What a folder knows of utterances: the pdf of every frame (ALI), or the paths that a transcript allows (CHAIN)."""

import filecmp
from pathlib import Path
from typing import Protocol

import numpy as np

from asr_hf.data.archive import read_int_vectors
from asr_hf.data.minibatch import TrainingSet
from asr_hf.errors import InputError
from asr_hf.hmm.chain_folder import DENOMINATOR, FACTS, Chain
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.numerator import Composer
from asr_hf.hmm.pieces import PieceNumerators

_PATHS = ("hmm.json", DENOMINATOR)  # the files of a CHAIN folder that say which paths there are


class Labels(Protocol):
    """What a folder knows of utterances.

    Attributes:
        subsampling: input frames per output frame that the labels are for; 0: any.
        timed: whether it is known what a part of an utterance holds.
    """

    subsampling: int
    timed: bool

    def __contains__(self, utterance: object) -> bool: ...

    def frames(self, utterance: str) -> int:
        """Frames of an utterance."""
        ...

    def training_set(self, ids: list[str], features: list[np.ndarray], window: bool) -> TrainingSet:
        """Utterances with features and supervision; the pdfs of alignments are checked (InputError)."""
        ...


class PdfLabels:
    """One pdf a frame, from an ALI folder."""

    subsampling, timed = 0, True

    def __init__(self, folder: Path, num_pdfs: int) -> None:
        self._pdfs, self._num_pdfs = read_int_vectors(folder / "pdf.scp"), num_pdfs

    def __contains__(self, utterance: object) -> bool:
        return utterance in self._pdfs

    def frames(self, utterance: str) -> int:
        return len(self._pdfs[utterance])

    def training_set(self, ids: list[str], features: list[np.ndarray], window: bool) -> TrainingSet:
        for utterance in ids:
            pdfs = self._pdfs[utterance]
            if len(pdfs) and (pdfs.min() < 0 or pdfs.max() >= self._num_pdfs):
                raise InputError(
                    f"utterance '{utterance}': its alignment names pdf {pdfs.max()}, the model has 0 to "
                    f"{self._num_pdfs - 1}",
                    "Use alignments of the same tree.",
                )
        return TrainingSet(ids, features, [self._pdfs[utterance] for utterance in ids], window)


class ChainLabels:
    """Label graphs, from a CHAIN folder."""

    def __init__(self, folder: Path) -> None:
        chain = Chain.load(folder)
        self.subsampling, self.timed, self._graphs = chain.subsampling, not chain.flat_start, chain.supervision
        self._composer = Composer(chain.denominator)

    def __contains__(self, utterance: object) -> bool:
        return utterance in self._graphs

    def frames(self, utterance: str) -> int:
        return self._graphs[utterance].frames

    def training_set(self, ids: list[str], features: list[np.ndarray], window: bool) -> TrainingSet:
        targets = [np.zeros(len(matrix), dtype=np.int32) for matrix in features]
        numerators = PieceNumerators(self._composer, [self._graphs[utterance] for utterance in ids])
        return TrainingSet(ids, features, targets, window, numerators)


def labels_of(folder: Path, num_pdfs: int, sequence: bool) -> Labels:
    """The labels in a folder, for a criterion of sequences or of frames.

    Raises:
        InputError: the folder holds those of the other kind.
    """
    _require_kind(folder, sequence)
    return ChainLabels(folder) if sequence else PdfLabels(folder, num_pdfs)


def require_one_model(folder: Path, other: Path, sequence: bool) -> None:
    """Refuse a second folder with labels of other pdfs or, for a criterion of sequences, other paths (InputError).

    Numerators are parts of one denominator: over another the loss would be no share of paths.
    """
    counts = [HmmModel.load(each).num_pdfs for each in (folder, other)]
    if counts[0] != counts[1]:
        raise InputError(f"{other} has {counts[1]} pdfs and {folder} {counts[0]}", "Make both with one tree.")
    if sequence:
        _require_kind(folder, sequence)
        _require_kind(other, sequence)
        same, _, _ = filecmp.cmpfiles(folder, other, _PATHS, shallow=False)
        if len(same) < len(_PATHS):
            raise InputError(
                f"{other} has another denominator than {folder}", f"Make it with asr-hf chain --model {folder}."
            )


def _require_kind(folder: Path, sequence: bool) -> None:
    chain = (folder / FACTS).is_file()
    if sequence and not chain:
        raise InputError(f"{folder} is no CHAIN folder, which this criterion needs", "Make one with asr-hf chain.")
    if not sequence and chain and not (folder / "pdf.scp").is_file():
        raise InputError(
            f"{folder} was made without alignments: no pdf of a frame is known",
            "Give criterion=lfmmi, or name alignments.",
        )
