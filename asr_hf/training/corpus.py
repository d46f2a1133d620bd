"""The training corpus of a run: features and pdf alignments, checked before any work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_hf.data.archive import FeatureArchive, read_int_vectors
from asr_hf.data.fingerprint import Fingerprint, read_fingerprint, require_same
from asr_hf.data.minibatch import TrainingSet
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.model import HmmModel
from asr_hf.options import option


@dataclass
class CorpusOptions:
    """Where the training data lie."""

    train: str = option("", "FEATS folder of the training set")
    heldout: str = option("", "FEATS folder of the held-out set: other training speakers, which choose among updates")
    alignments: str = option("", "ALI folder with the pdf of every frame of the training set (and of the held-out set)")
    heldout_alignments: str = option("", "ALI folder of the held-out set, if it is another")

    def require_paths(self) -> None:
        """Refuse missing folders by option name (OptionError)."""
        for name in ("train", "heldout", "alignments"):
            path = getattr(self, name)
            if not path:
                raise OptionError(f"option corpus.{name} is not set", f"Give corpus.{name}=FOLDER.")
            if not Path(path).is_dir():
                raise OptionError(f"option corpus.{name}={path}: no such folder", "Make it with the command before.")


@dataclass(frozen=True)
class Corpus:
    """What a run learns from.

    Attributes:
        sets: "train" and "heldout".
        num_pdfs: P.
        pdf_counts: int64 (P,), frames of each pdf in the training alignments.
        fingerprint: of the features.
        hmm: ALI folder whose hmm.json belongs to the pdfs.
    """

    sets: dict[str, TrainingSet]
    num_pdfs: int
    pdf_counts: np.ndarray
    fingerprint: Fingerprint
    hmm: Path


def load_corpus(options: CorpusOptions, window: bool, check: bool = True, say: Callable[[str], None] = print) -> Corpus:
    """Open features and alignments.

    Args:
        options: the folders.
        window: whether the model classifies single frames with their context.
        check: read every feature once for NaN (the master does, workers need not).
        say: receives a line about utterances without alignment, which are left out.

    Raises:
        InputError: features of train and held-out that differ in kind, an alignment as long as other features, a pdf
            outside the model, NaN features, a set without utterances; it names folder and utterance.
    """
    options.require_paths()
    ali = Path(options.alignments)
    num_pdfs = HmmModel.load(ali).num_pdfs
    fingerprint = read_fingerprint(options.train)
    require_same(fingerprint, read_fingerprint(options.heldout), options.train, options.heldout)
    heldout_ali = Path(options.heldout_alignments or ali)
    if heldout_ali != ali and HmmModel.load(heldout_ali).num_pdfs != num_pdfs:
        raise InputError(f"{heldout_ali} has other pdfs than {ali}", "Align both sets with one model.")
    alignments = {"train": read_int_vectors(ali / "pdf.scp")}
    alignments["heldout"] = alignments["train"] if heldout_ali == ali else read_int_vectors(heldout_ali / "pdf.scp")
    folders = {"train": options.train, "heldout": options.heldout}
    sets = {
        name: _open(name, Path(folder), alignments[name], num_pdfs, window, check, say)
        for name, folder in folders.items()
    }
    shared = set(sets["train"].ids) & set(sets["heldout"].ids)
    if shared:
        raise InputError(
            f"utterance '{min(shared)}' is in {options.train} and in {options.heldout}",
            "Cut the held-out set off the training set by speaker.",
        )
    counts = np.bincount(sets["train"].targets, minlength=num_pdfs)
    return Corpus(sets, num_pdfs, counts, fingerprint, ali)


def _open(
    name: str,
    folder: Path,
    alignments: dict[str, np.ndarray],
    num_pdfs: int,
    window: bool,
    check: bool,
    say: Callable[[str], None],
) -> TrainingSet:
    archive = FeatureArchive(folder / "feats.scp", check_finite=check)
    ids = [utterance for utterance in archive if utterance in alignments]
    missing = len(archive) - len(ids)
    if missing:
        absent = [utterance for utterance in archive if utterance not in alignments]
        say(f"{name}: {missing} utterances of {folder} have no alignment and are left out ({', '.join(absent[:3])} …)")
    if not ids:
        raise InputError(f"no utterance of {folder} has an alignment", "Align it with asr-hf align.")
    features = []
    for utterance in ids:
        matrix, pdfs = archive[utterance], alignments[utterance]
        if len(matrix) != len(pdfs):
            raise InputError(
                f"utterance '{utterance}': {len(pdfs)} frames of alignment and {len(matrix)} of features in {folder}",
                "Align the same features, or compute both with the same frame shift.",
            )
        if len(pdfs) and (pdfs.min() < 0 or pdfs.max() >= num_pdfs):
            raise InputError(
                f"utterance '{utterance}': its alignment names pdf {pdfs.max()}, the model has 0 to {num_pdfs - 1}",
                "Use alignments of the same tree.",
            )
        features.append(matrix)
    return TrainingSet(ids, features, [alignments[utterance] for utterance in ids], window)
