"""Stores of curvature pairs that are cut over ranks: the bits of a store on one process, and who holds what."""

import json
from pathlib import Path

import numpy as np
import pytest

from asr_hf.solvers.vectors import BLOCK

SCRIPT = Path(__file__).with_name("sharded_pairs.py")


@pytest.mark.parametrize(("ranks", "dedicated", "held"), [(2, False, 1), (2, True, 0), (3, False, 1)])
def test_sharded_stores_give_the_bits_of_one_process(
    ranks: int, dedicated: bool, held: int, tiny_corpus: Path, tmp_path: Path, mpiexec
) -> None:
    done = mpiexec(ranks, SCRIPT, tiny_corpus, tmp_path / "out.json", *["dedicated"] * dedicated)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    check_cuts(found.pop("cuts"))
    assert found == {
        "differences": [],
        "held": held,  # blocks of three that the master keeps
        "vectors": 2 * 2 + 1 + 1 + 1,  # two pairs, the diagonal once, r, and what is combined
        "runs": [[True, 2], [True, 2]],  # the same θ; the stores of the two blocks, and no other, are left
        "shelf": [1, 2, 1],  # a worker frees what the master drops
    }


def check_cuts(cuts: dict[str, list[int]]) -> None:
    """Every block is in a slice; slices are equal but for one block, and the master's is not a larger one."""
    for case, bounds in cuts.items():
        size, ranks, reserved = map(int, case.split())
        counts = np.diff(bounds)
        assert (bounds[0], bounds[-1], len(counts)) == (0, -(-size // BLOCK), ranks)
        assert not counts[:reserved].any()
        held = counts[reserved:]
        assert held[0] == held.min() >= held.max() - 1
