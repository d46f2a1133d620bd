"""Plans of minibatches: what they cover, what they depend on, and how they are dealt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from asr_hf.data.minibatch import TrainingSet
from asr_hf.data.plan import Minibatch, Sample, deal

LENGTHS = np.array([7, 30, 1, 12, 25, 3])


def frames_of(plan: tuple[Minibatch, ...]) -> list[tuple[int, int]]:
    return [
        (utterance, frame)
        for minibatch in plan
        for utterance, first, count in minibatch.pieces.tolist()
        for frame in range(first, first + count)
    ]


EVERY_FRAME = sorted((u, t) for u, length in enumerate(LENGTHS) for t in range(length))


@pytest.mark.parametrize("whole", [False, True])
def test_all_covers_every_frame_once(whole: bool) -> None:
    plan = Sample("train", minibatch_frames=16, whole_utterances=whole).plan(LENGTHS)
    assert sorted(frames_of(plan)) == EVERY_FRAME
    if whole:
        assert all((m.pieces[:, 1] == 0).all() and (m.pieces[:, 2] == LENGTHS[m.pieces[:, 0]]).all() for m in plan)
    else:
        assert [m.frames for m in plan] == [16, 16, 16, 16, 14]


def test_a_draw_of_frames_has_no_frame_twice_and_the_right_size() -> None:
    drawn = frames_of(Sample("train", "frames", 0.5, 8).plan(LENGTHS))
    assert len(drawn) == len(set(drawn)) == 39
    shuffled = frames_of(Sample("train", "frames", 1.0, 8).plan(LENGTHS))
    assert sorted(shuffled) == EVERY_FRAME
    assert shuffled != EVERY_FRAME


def test_a_draw_of_utterances_reaches_its_share() -> None:
    chosen = {u for u, _ in frames_of(Sample("train", "utterances", 0.5, 8, whole_utterances=True).plan(LENGTHS))}
    assert LENGTHS[sorted(chosen)].sum() >= 0.5 * LENGTHS.sum()
    assert len(chosen) < len(LENGTHS)


def test_a_draw_depends_on_seed_update_and_purpose() -> None:
    sample = Sample("train", "frames", 0.5, 8, seed=1, update=2, purpose="curvature")
    base = frames_of(sample.plan(LENGTHS))
    assert base == frames_of(sample.plan(LENGTHS))
    for other in (replace(sample, seed=2), replace(sample, update=3), replace(sample, purpose="gradient")):
        assert base != frames_of(other.plan(LENGTHS))


def test_a_window_is_part_of_the_plan() -> None:
    sample = Sample("train", "frames", 1.0, 8, purpose="epoch")
    whole = sample.plan(LENGTHS)
    window = replace(sample, first=2, count=3).plan(LENGTHS)
    assert frames_of(window) == frames_of(whole[2:5])


def test_deal_gives_each_minibatch_once_and_balances() -> None:
    plan = Sample("train", minibatch_frames=5).plan(np.array([400, 3, 57]))
    for ranks in (1, 2, 3, 4, 8):
        hands = deal(plan, ranks)
        assert sorted(i for hand in hands for i in hand) == list(range(len(plan)))
        loads = [sum(plan[i].frames for i in hand) for hand in hands]
        assert max(loads) - min(loads) <= 5
    longest_first = deal((*plan[:3], Minibatch(np.array([[0, 0, 100]], dtype=np.int32))), 2)
    assert longest_first == [[3], [0, 1, 2]]


def test_batches_repeat_edge_frames_and_mask_padding() -> None:
    features = [np.arange(n * 2, dtype=np.float32).reshape(n, 2) for n in (4, 2)]
    targets = [np.arange(n, dtype=np.int32) for n in (4, 2)]
    pieces = Minibatch(np.array([[0, 0, 4], [1, 0, 2]], dtype=np.int32))
    padded = TrainingSet(["a", "b"], features, targets, window=False).batch(pieces, left=1, right=1)
    assert padded.x_BWD.shape == (2, 6, 2)
    assert padded.x_BWD[0, :, 0].tolist() == [0, 0, 2, 4, 6, 6]
    assert padded.x_BWD[1, :, 0].tolist() == [0, 0, 2, 2, 2, 2]
    assert padded.mask_BT.tolist() == [[True] * 4, [True, True, False, False]]
    assert padded.target_BT.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    single = TrainingSet(["a", "b"], features, targets, window=True).batch(pieces, left=1, right=1)
    assert single.x_BWD.shape == (6, 3, 2)
    assert torch.equal(single.x_BWD[3], padded.x_BWD[0, 3:6])
    assert single.target_BT.flatten().tolist() == [0, 1, 2, 3, 0, 1]
    assert single.utterance_B.tolist() == [0, 0, 0, 0, 1, 1]
