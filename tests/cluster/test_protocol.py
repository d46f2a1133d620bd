"""The record that carries a sample to the workers; what travels after a gradient; accounts that agree on any ranks."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from asr_hf.cluster.protocol import HEADER, read_sample, write_sample
from asr_hf.data.plan import Sample


def test_a_sample_survives_the_record() -> None:
    plain = Sample("train")
    other = Sample("heldout", "chunks", 0.25, 512, True, 7, 9, "epoch", 3, 4, 40, 11, 2)
    names = [field.name for field in fields(Sample)]
    assert all(getattr(plain, name) != getattr(other, name) for name in names)
    for sample in (plain, other, *(replace(plain, **{name: getattr(other, name)}) for name in names)):
        header = np.zeros(1, dtype=HEADER)
        write_sample(header, sample)
        assert read_sample(header) == sample


ACCOUNTS = Path(__file__).with_name("accounts.py")


@pytest.fixture(scope="module")
def alone(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("alone") / "out.json"
    subprocess.run([sys.executable, ACCOUNTS, tiny_corpus, out], check=True, timeout=120)
    return json.loads(out.read_text())


@pytest.mark.parametrize(("ranks", "dedicated"), [(2, False), (3, True)])
def test_squares_and_accounts_are_the_same_on_any_number_of_ranks(
    ranks: int, dedicated: bool, alone: dict, tiny_corpus: Path, tmp_path: Path, mpiexec
) -> None:
    done = mpiexec(ranks, ACCOUNTS, tiny_corpus, tmp_path / "out.json", *["dedicated"] * dedicated)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == alone
    assert alone["vectors"] == 3 + (1 + 2 + 2) + 2 * 2  # three θ, what three gradients yield, two products
