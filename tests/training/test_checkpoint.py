"""Whatever tensors and numbers a state holds come back with the same bits."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from asr_hf.optimizers.optimizer import State
from asr_hf.training.checkpoint import restore_latest, write_checkpoint

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
