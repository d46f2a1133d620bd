"""Whatever tensors and numbers a state holds come back with the same bits; what is written is on disk; which stay."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from asr_hf.errors import InputError
from asr_hf.optimizers.optimizer import State
from asr_hf.training.checkpoint import SCALARS, SUMS, TENSORS, checkpoints, restore_latest, write_checkpoint

N = 11


@dataclass
class PairsState(State):
    """A state like those of preconditioned methods."""

    s_mN: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    y_mN: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    best: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    count: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    residuals: list[float] = field(default_factory=list)
    heldout: float = math.nan


def same(ours: State, theirs: State) -> bool:
    tensors, others = ours.tensors(), theirs.tensors()
    bits = all(
        tensors[name].dtype == others[name].dtype
        and tensors[name].shape == others[name].shape
        and tensors[name].contiguous().view(torch.uint8).equal(others[name].contiguous().view(torch.uint8))
        for name in tensors
    )
    return bits and repr(ours.scalars()) == repr(theirs.scalars())


def back(state: State, folder: Path) -> State:
    write_checkpoint(folder, state, [], keep=1)
    empty = type(state)(torch.zeros(N))
    assert restore_latest(folder, empty, []) is not None
    return empty


def test_matrices_in_bf16_and_empty_tensors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    ring_mN = torch.randn(6, N, generator=generator).bfloat16()
    state = PairsState(torch.randn(N, generator=generator), 3, spent=1 / 3, residuals=[0.1, 1e-30], heldout=math.inf)
    state.s_mN, state.y_mN = ring_mN[:4], ring_mN[4:]  # views of one memory
    state.count = torch.tensor([2**40])
    assert same(state, back(state, tmp_path))
    state.s_mN, state.y_mN = ring_mN[:0], ring_mN.T  # (0, N), and not contiguous
    assert same(state, back(state, tmp_path))


def test_two_names_for_one_tensor_become_two(tmp_path: Path) -> None:
    state = PairsState(torch.arange(N, dtype=torch.float32))
    state.best = state.theta
    restored = back(state, tmp_path)
    assert same(state, restored)
    restored.theta.zero_()
    assert isinstance(restored, PairsState)
    assert torch.equal(restored.best, state.best)


def test_files_and_folder_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch) -> None:
    fsync, replace, done = os.fsync, os.replace, []

    def flushed(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        assert {path.name for path in source.iterdir()} == {TENSORS, SCALARS, SUMS}
        assert {*source.iterdir(), source} <= set(done)
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    final = write_checkpoint(tmp_path / "checkpoints", PairsState(torch.zeros(N), 1), [], keep=1)
    assert done[0] == tmp_path
    assert done[-2:] == [final, tmp_path / "checkpoints"]
    assert not (tmp_path / "checkpoints" / ".part").exists()


def losses(folder: Path, values: list[float], keep: int) -> list[int]:
    """The updates whose checkpoints stay when these held-out losses come one after the other."""
    for update, heldout in enumerate(values, 1):
        write_checkpoint(folder, PairsState(torch.zeros(N), update, heldout=heldout), [], keep)
    return [int(path.name.split("-")[0]) for path in checkpoints(folder)]


@pytest.mark.parametrize(
    ("heldout", "keep", "stay"),
    [
        ([3.0, 1.0, 2.0, 2.5, 2.2], 2, [2, 4, 5]),
        ([3.0, 2.0, 1.0], 2, [2, 3]),
        ([1.0, 2.0, 3.0, 4.0], 1, [1, 4]),
        ([2.0, 1.0, 1.0, 5.0], 1, [3, 4]),  # of equal ones the newest
        ([math.nan] * 4, 2, [3, 4]),  # not known of any
        ([math.nan, 2.0, math.inf, math.inf], 1, [2, 4]),
    ],
)
def test_the_last_ones_and_the_best_stay(tmp_path: Path, heldout: list[float], keep: int, stay: list[int]) -> None:
    assert losses(tmp_path, heldout, keep) == stay


@dataclass
class EpochState(State):
    heldout: float = math.nan
    position: int = 0


def test_a_checkpoint_within_an_epoch_is_not_the_best(tmp_path: Path) -> None:
    """Its held-out loss is that of the epoch's start."""
    for position in (0, 10, 20, 30):
        write_checkpoint(tmp_path, EpochState(torch.zeros(N), 1, heldout=1.0, position=position), [], keep=1)
    write_checkpoint(tmp_path, EpochState(torch.zeros(N), 2, heldout=2.0), [], keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["000001-00000000", "000002-00000000"]


def test_a_damaged_one_of_a_later_update_makes_no_earlier_one_go(tmp_path: Path) -> None:
    losses(tmp_path, [3.0, 2.0, 1.0], keep=3)
    (tmp_path / "000003-00000000" / TENSORS).write_bytes(b"")
    state = PairsState(torch.zeros(N))
    assert restore_latest(tmp_path, state, [], lambda line: None) == tmp_path / "000002-00000000"
    state.update, state.heldout = 3, 0.5
    write_checkpoint(tmp_path, state, [], keep=1)  # in the place of the damaged one
    assert [path.name for path in checkpoints(tmp_path)] == ["000003-00000000"]
    assert restore_latest(tmp_path, PairsState(torch.zeros(N)), []) is not None
    (tmp_path / "000003-00000000").rename(tmp_path / "000009-00000000")
    write_checkpoint(tmp_path, PairsState(torch.zeros(N), 4), [], keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["000004-00000000", "000009-00000000"]
    said: list[str] = []
    assert restore_latest(tmp_path, PairsState(torch.zeros(N)), [], said.append) == tmp_path / "000004-00000000"
    assert "000009-00000000 is damaged (it is of update 3, minibatch 0)" in said[0]


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, PairsState(torch.zeros(N), 1, spent=1.0), [], keep=1)
    description = json.loads((path / SCALARS).read_text())
    description["scalars"]["spent"] = 0.0
    (path / SCALARS).write_text(json.dumps(description, indent=1) + "\n")
    with pytest.raises(InputError, match=r"no checkpoint .* is whole \(000001-00000000: its checksum is wrong\)"):
        restore_latest(tmp_path, PairsState(torch.zeros(N)), [], lambda line: None)


def test_another_end_of_a_line_of_the_checksums_is_noticed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, PairsState(torch.zeros(N), 1), [], keep=1)
    (path / SUMS).write_bytes((path / SUMS).read_bytes().replace(b"\n", b"\r"))
    with pytest.raises(InputError, match="its checksum is wrong"):
        restore_latest(tmp_path, PairsState(torch.zeros(N)), [], lambda line: None)
