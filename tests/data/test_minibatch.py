"""The tensors of a minibatch against frames picked one by one: context, padding, targets, subsampling."""

import numpy as np
import pytest

from asr_hf.data.minibatch import ROUNDED_TO, Batch, TrainingSet
from asr_hf.data.plan import Minibatch, Sample

LENGTHS = (9, 1, 4)


def training_set(window: bool) -> TrainingSet:
    """Frame t of utterance u is (u, t), its target 10·u + t."""
    features = [np.stack([np.full(n, u), np.arange(n)], axis=1).astype(np.float32) for u, n in enumerate(LENGTHS)]
    targets = [10 * u + np.arange(n, dtype=np.int32) for u, n in enumerate(LENGTHS)]
    return TrainingSet([f"u{u}" for u in range(len(LENGTHS))], features, targets, window)


def minibatch(*pieces: tuple[int, int, int]) -> Minibatch:
    return Minibatch(np.array(pieces, dtype=np.int32))


def check(batch: Batch, pieces: list[tuple[int, int, int]], left: int, right: int, s: int) -> None:
    """Hold every number of a batch against the definition."""
    longest = max(n for _, _, n in pieces)
    outputs = len(range(0, longest if longest <= ROUNDED_TO else -(-longest // ROUNDED_TO) * ROUNDED_TO, s))
    assert batch.x_BWD.shape == (len(pieces), left + s * (outputs - 1) + 1 + right, 2)
    assert batch.target_BT.shape == batch.mask_BT.shape == (len(pieces), outputs)
    for row, (u, first, n) in enumerate(pieces):
        assert int(batch.utterance_B[row]) == u
        for w, frame in enumerate(batch.x_BWD[row].tolist()):
            assert frame == [u, min(max(first - left + w, 0), LENGTHS[u] - 1)]
        for j in range(outputs):
            real = s * j < n
            assert bool(batch.mask_BT[row, j]) == real
            assert int(batch.target_BT[row, j]) == (10 * u + first + s * j if real else 0)


@pytest.mark.parametrize("subsampling", [1, 2, 3])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 1), (12, 15)])
@pytest.mark.parametrize(
    "pieces",
    [[(0, 0, 9), (1, 0, 1), (2, 0, 4)], [(0, 3, 6), (2, 3, 1)], [(1, 0, 1)], [(0, 0, 6), (0, 6, 3), (2, 0, 4)]],
)
def test_a_piece_is_a_row(pieces: list[tuple[int, int, int]], left: int, right: int, subsampling: int) -> None:
    batch = training_set(window=False).batch(minibatch(*pieces), left, right, subsampling)
    check(batch, pieces, left, right, subsampling)


def test_a_frame_is_a_row_of_a_frame_model() -> None:
    batch = training_set(window=True).batch(minibatch((0, 2, 3), (1, 0, 1), (0, 8, 1)), left=2, right=1)
    check(batch, [(0, 2, 1), (0, 3, 1), (0, 4, 1), (1, 0, 1), (0, 8, 1)], 2, 1, 1)
    assert batch.mask_BT.all()


@pytest.mark.parametrize("subsampling", [1, 3])
def test_every_target_of_a_set_is_asked_for_once_whatever_the_chunk(subsampling: int) -> None:
    data = training_set(window=False)
    for chunk in (0, 3, 6, 12):
        plan = Sample("train", minibatch_frames=12, whole_utterances=True, chunk=chunk).plan(data.lengths)
        batches = [data.batch(minibatch, 1, 1, subsampling) for minibatch in plan]
        targets = sorted(t for batch in batches for t in batch.target_BT[batch.mask_BT].tolist())
        assert targets == sorted(10 * u + t for u, n in enumerate(LENGTHS) for t in range(0, n, subsampling))
