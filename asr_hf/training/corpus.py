"""The training corpus of a run: features and pdf alignments, checked before any work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_hf.data.archive import FeatureArchive
from asr_hf.data.fingerprint import Fingerprint, read_fingerprint, require_same
from asr_hf.data.minibatch import TrainingSet
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.model import HmmModel
from asr_hf.options import option
from asr_hf.training.labels import Labels, labels_of, require_one_model


@dataclass
class CorpusOptions:
    """Where the training data lie."""

    train: str = option("", "FEATS folder of the training set")
    heldout: str = option("", "FEATS folder of the held-out set: other training speakers, which choose among updates")
    alignments: str = option(
        "", "ALI folder with the pdf of every frame of training and held-out set; CHAIN folder for criterion=lfmmi"
    )
    heldout_alignments: str = option("", "ALI or CHAIN folder of the held-out set, if it is another")

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
        pdf_counts: int64 (P,), frames of each pdf in the training alignments; 0 without them.
        fingerprint: of the features.
        hmm: ALI or CHAIN folder whose hmm.json belongs to the pdfs.
        subsampling: input frames per output frame that the supervision is for; 0: any.
        timed: whether the supervision knows what a part of an utterance holds; if not, none may be cut.
    """

    sets: dict[str, TrainingSet]
    num_pdfs: int
    pdf_counts: np.ndarray
    fingerprint: Fingerprint
    hmm: Path
    subsampling: int = 0
    timed: bool = True


def load_corpus(
    options: CorpusOptions, window: bool, sequence: bool, check: bool = True, say: Callable[[str], None] = print
) -> Corpus:
    """Open features and alignments, or for sequence criteria the supervision of CHAIN folders in their place.

    Args:
        options: the folders.
        window: whether the model classifies single frames with their context.
        sequence: whether the criterion is of sequences.
        check: read every feature once for NaN (the master does, workers need not).
        say: receives a line about utterances without alignment, which are left out.

    Raises:
        InputError: features or labels of train and held-out that differ in kind, an alignment as long as other
            features, a pdf outside the model, NaN features, a set without utterances; it names folder and utterance.
    """
    options.require_paths()
    ali = Path(options.alignments)
    num_pdfs = HmmModel.load(ali).num_pdfs
    fingerprint = read_fingerprint(options.train)
    require_same(fingerprint, read_fingerprint(options.heldout), options.train, options.heldout)
    heldout_ali = Path(options.heldout_alignments or ali)
    if heldout_ali != ali:
        require_one_model(ali, heldout_ali, sequence)
    labels = {"train": labels_of(ali, num_pdfs, sequence)}
    labels["heldout"] = labels["train"] if heldout_ali == ali else labels_of(heldout_ali, num_pdfs, sequence)
    if labels["heldout"].subsampling != labels["train"].subsampling:
        raise InputError(
            f"{heldout_ali} is for another subsampling than {ali}", "Make both with one chain.subsampling."
        )
    folders = {"train": options.train, "heldout": options.heldout}
    sets = {
        name: _open(name, Path(folder), labels[name], window and not sequence, check, say)
        for name, folder in folders.items()
    }
    shared = set(sets["train"].ids) & set(sets["heldout"].ids)
    if shared:
        raise InputError(
            f"utterance '{min(shared)}' is in {options.train} and in {options.heldout}",
            "Cut the held-out set off the training set by speaker.",
        )
    counts = np.bincount(sets["train"].targets, minlength=num_pdfs) * (not sequence)
    return Corpus(sets, num_pdfs, counts, fingerprint, ali, labels["train"].subsampling, labels["train"].timed)


def _open(
    name: str,
    folder: Path,
    labels: Labels,
    window: bool,
    check: bool,
    say: Callable[[str], None],
) -> TrainingSet:
    archive = FeatureArchive(folder / "feats.scp", check_finite=check)
    ids = [utterance for utterance in archive if utterance in labels]
    missing = len(archive) - len(ids)
    if missing:
        absent = [utterance for utterance in archive if utterance not in labels]
        say(f"{name}: {missing} utterances of {folder} have no alignment and are left out ({', '.join(absent[:3])} …)")
    if not ids:
        raise InputError(f"no utterance of {folder} has an alignment", "Align it with asr-hf align.")
    features = []
    for utterance in ids:
        matrix, frames = archive[utterance], labels.frames(utterance)
        if len(matrix) != frames:
            raise InputError(
                f"utterance '{utterance}': {frames} frames of alignment and {len(matrix)} of features in {folder}",
                "Align the same features, or compute both with the same frame shift.",
            )
        features.append(matrix)
    return labels.training_set(ids, features, window)
