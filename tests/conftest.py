"""What all tests share: one thread, and the AN4 corpus where the machine has it."""

import os
import tarfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the ranks that tests start

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# --hypothesis-profile=thorough --timeout=0 generates 10,000 examples a test, others at every call
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("quick", max_examples=40, derandomize=True, database=None, deadline=None)
settings.register_profile(
    "thorough", max_examples=10_000, database=None, deadline=None, suppress_health_check=SLOW, print_blob=True
)
settings.load_profile("quick")


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
    """A small made-up corpus on disk: FEATS folders `train` and `heldout`, ALI `ali` and CHAIN `chain` of both.

    12 pdfs, 8-dimensional features drawn around a mean for each pdf, 60 + 8 utterances of 20 to 80 frames. For CHAIN
    the pdfs 2p and 2p + 1 are phone p, without context, and the network has an output frame every third frame.
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
    _write_chain(root / "chain", dict(alignments))
    return root


def _write_chain(folder: Path, alignments: dict) -> None:
    import json

    import numpy as np

    from asr_hf.hmm.chain import chain_model
    from asr_hf.hmm.chain_folder import DENOMINATOR, FACTS
    from asr_hf.hmm.denominator import denominator_graph
    from asr_hf.hmm.phone_lm import PhoneLmOptions, estimate_phone_lm
    from asr_hf.hmm.supervision import LabelGraph, Supervision

    hmm = chain_model(("SIL", "a", "b", "c", "d", "e"), "SIL", "mono")
    phones = {name: pdf_T[::4] // 2 + 1 for name, pdf_T in alignments.items()}
    labels = {}
    for name, phone_K in phones.items():
        frames, place = len(alignments[name]), np.arange(len(phone_K))
        window = np.stack([np.maximum(4 * place - 2, 0), np.minimum(4 * place + 6, frames)], axis=1)
        units = np.array([hmm.pdfs(0, phone, 0) for phone in phone_K.tolist()])
        edges = np.stack([place[:-1], place[1:]], axis=1)
        labels[name] = LabelGraph(frames, units, window, place == 0, place == place[-1], edges)
    lm = estimate_phone_lm([tuple(phone_K.tolist()) for phone_K in phones.values()], PhoneLmOptions(order=2))
    folder.mkdir()
    hmm.save(folder)
    denominator_graph(lm, hmm).save(folder / DENOMINATOR)
    Supervision.of(labels).save(folder)
    (folder / FACTS).write_text(json.dumps({"flat_start": False, "options": {"subsampling": 3, "tolerance": 2}}))
