"""The training corpus of models that take pieces: very short utterances work, empty ones are refused by name."""

from pathlib import Path

import numpy as np
import pytest

from asr_hf.data.archive import write_int_vectors, write_matrices
from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import write_fingerprint
from asr_hf.data.plan import Sample
from asr_hf.errors import InputError
from asr_hf.hmm.model import HmmModel
from asr_hf.training.corpus import CorpusOptions, load_corpus


def write_corpus(root: Path, lengths: dict[str, list[int]]) -> CorpusOptions:
    random, alignments = np.random.default_rng(0), []
    for subset, frames in lengths.items():
        (root / subset).mkdir()
        named = {f"{subset}-{index}": n for index, n in enumerate(frames)}
        write_matrices(root / subset / "feats", [(u, random.normal(size=(n, 2))) for u, n in named.items()])
        write_fingerprint(root / subset, FeatureOptions(), dim=2, sample_rate=8000)
        alignments += [(u, random.integers(0, 4, size=n)) for u, n in named.items()]
    (root / "ali").mkdir()
    write_int_vectors(root / "ali" / "pdf", alignments)
    HmmModel(num_pdfs=4).save(root / "ali")
    return CorpusOptions(str(root / "train"), str(root / "heldout"), str(root / "ali"))


@pytest.mark.parametrize("unit", ["all", "utterances", "chunks"])
def test_utterances_shorter_than_a_chunk_and_of_one_frame_are_learned_from(tmp_path: Path, unit: str) -> None:
    options = write_corpus(tmp_path, {"train": [1, 30, 7, 1, 12], "heldout": [1]})
    corpus = load_corpus(options, window=False, sequence=False)
    for subset, frames in (("train", 51), ("heldout", 1)):
        data = corpus.sets[subset]
        plan = Sample(subset, unit, 1.0, 24, whole_utterances=True, chunk=12).plan(data.lengths)
        batches = [data.batch(minibatch, left=20, right=20) for minibatch in plan]
        assert sum(int(batch.mask_BT.sum()) for batch in batches) == frames
        assert all(np.isfinite(batch.x_BWD.numpy()).all() for batch in batches)
        targets = np.concatenate([batch.target_BT[batch.mask_BT].numpy() for batch in batches])
        assert np.array_equal(np.sort(targets), np.sort(data.targets))


def test_an_utterance_without_frames_is_refused_by_name(tmp_path: Path) -> None:
    options = write_corpus(tmp_path, {"train": [5, 0, 7], "heldout": [4]})
    with pytest.raises(InputError, match=r"utterance 'train-1': .* the matrix empty"):
        load_corpus(options, window=False, sequence=False)
