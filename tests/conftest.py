"""What all tests share: one thread, and the AN4 corpus where the machine has it."""

import os
import tarfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the ranks that tests start

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def an4_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extracted AN4 corpus (`etc/` and `wav/`): AN4_ROOT is that folder, the one above it or the tarball."""
    named = os.environ.get("AN4_ROOT")
    if not named:
        pytest.skip("AN4_ROOT is not set: it names the CMU AN4 corpus, a folder or an4_sphere.tar.gz")
    root = Path(named).resolve()
    if root.is_file():
        folder = tmp_path_factory.mktemp("an4")
        with tarfile.open(root) as archive:
            archive.extractall(folder, filter="data")
        root = folder
    for corpus in (root, root / "an4"):
        if (corpus / "etc").is_dir() and (corpus / "wav").is_dir():
            return corpus
    raise FileNotFoundError(f"AN4_ROOT={named} holds no etc/ and wav/")


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small made-up corpus on disk: FEATS folders `train` and `heldout` and the ALI folder `ali` of both.

    12 pdfs, 8-dimensional features drawn around a mean for each pdf, 60 + 8 utterances of 20 to 80 frames.
    """
    import numpy as np

    from asr_hf.data.archive import write_int_vectors, write_matrices
    from asr_hf.data.features import FeatureOptions
    from asr_hf.data.fingerprint import write_fingerprint
    from asr_hf.hmm.model import HmmModel

    root = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(7)
    means = random.normal(size=(12, 8))
    alignments: list[tuple[str, np.ndarray]] = []
    for name, count in (("train", 60), ("heldout", 8)):
        (root / name).mkdir()
        features = []
        for index in range(count):
            frames = int(random.integers(20, 81))
            pdfs = np.repeat(random.integers(0, 12, size=frames // 4 + 1), 4)[:frames].astype(np.int32)
            utterance = f"{name}-{index:03d}"
            features.append((utterance, (means[pdfs] + random.normal(size=(frames, 8))).astype(np.float32)))
            alignments.append((utterance, pdfs))
        write_matrices(root / name / "feats", features)
        write_fingerprint(root / name, FeatureOptions(), dim=8, sample_rate=8000)
    (root / "ali").mkdir()
    write_int_vectors(root / "ali" / "pdf", sorted(alignments))
    HmmModel(num_pdfs=12).save(root / "ali")
    return root
