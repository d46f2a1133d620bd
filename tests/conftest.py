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
    """The extracted AN4 corpus, a folder with `etc/` and `wav/`: AN4_ROOT is that folder, the one above it or the tarball."""
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
