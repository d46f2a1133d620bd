"""Plans of minibatches: what they cover, what they depend on, and how they are dealt."""

from dataclasses import replace

import numpy as np
import pytest

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


CHUNKED = [
    Sample("train", "all", 1.0, 16, whole_utterances=True, chunk=5),
    Sample("train", "utterances", 0.5, 16, whole_utterances=True, chunk=5),
    Sample("train", "chunks", 0.5, 16, chunk=5),
    Sample("train", "chunks", 1.0, 16, chunk=5, purpose="epoch"),
]


@pytest.mark.parametrize("sample", CHUNKED, ids=lambda sample: f"{sample.unit}-{sample.share}")
def test_pieces_are_cut_at_multiples_of_the_chunk_and_padded_rows_fit(sample: Sample) -> None:
    plan = sample.plan(LENGTHS)
    possible = {(u, first, min(5, n - first)) for u, n in enumerate(LENGTHS.tolist()) for first in range(0, n, 5)}
    found = [tuple(piece) for minibatch in plan for piece in minibatch.pieces.tolist()]
    assert len(found) == len(set(found))
    assert set(found) <= possible
    assert (set(found) == possible) == (sample.share == 1.0)
    assert all(len(m.pieces) * m.pieces[:, 2].max() <= 16 for m in plan)
    assert sum(m.frames for m in plan) >= sample.share * LENGTHS.sum()


@pytest.mark.parametrize("sample", CHUNKED, ids=lambda sample: f"{sample.unit}-{sample.share}")
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_a_shift_leaves_out_the_first_frames_and_utterances_that_have_no_others(sample: Sample, shift: int) -> None:
    pieces = [tuple(row) for m in replace(sample, shift=shift).plan(LENGTHS) for row in m.pieces.tolist()]
    possible = [(u, first, min(5, n - first)) for u, n in enumerate(LENGTHS.tolist()) for first in range(shift, n, 5)]
    assert pieces
    assert set(pieces) <= set(possible)
    assert len(pieces) == len(set(pieces))
    if sample.share == 1:
        assert sorted(pieces) == possible
    if sample.unit == "utterances":  # all pieces of those that are drawn
        drawn = {u for u, _, _ in pieces}
        assert sorted(pieces) == [piece for piece in possible if piece[0] in drawn]


def test_a_draw_of_chunks_is_just_large_enough_and_takes_many_utterances() -> None:
    lengths = np.full(40, 100)
    plan = Sample("train", "chunks", 0.1, 50, chunk=10).plan(lengths)
    assert sum(m.frames for m in plan) == 400
    assert len({u for u, _ in frames_of(plan)}) > 15
    whole = Sample("train", "utterances", 0.1, 50, whole_utterances=True).plan(lengths)
    assert {u for u, _ in frames_of(Sample("train", "chunks", 0.1, 50).plan(lengths))} == {
        u for u, _ in frames_of(whole)
    }


def test_chunks_of_equal_length_go_together_in_minibatches_of_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=200)
    plan = Sample("train", "chunks", 1.0, 80, chunk=20, purpose="epoch").plan(lengths)
    padded = sum(len(m.pieces) * m.pieces[:, 2].max() for m in plan)
    assert padded < 1.03 * lengths.sum()
    longest = [int(m.pieces[:, 2].max()) for m in plan]
    assert longest != sorted(longest, reverse=True)
    other = Sample("train", "chunks", 1.0, 80, chunk=20, purpose="epoch", update=1).plan(lengths)
    assert frames_of(plan) != frames_of(other)
    assert sorted(frames_of(plan)) == sorted(frames_of(other))


def test_an_utterance_longer_than_a_minibatch_stands_alone_and_one_without_frames_nowhere() -> None:
    plan = Sample("train", minibatch_frames=16, whole_utterances=True).plan(np.array([40, 0, 1]))
    assert [m.pieces.tolist() for m in plan] == [[[0, 0, 40]], [[2, 0, 1]]]


def test_dropout_masks_have_no_influence_on_the_plan() -> None:
    for sample in (*CHUNKED, Sample("train", "frames", 0.5, 8)):
        assert frames_of(replace(sample, masks=3).plan(LENGTHS)) == frames_of(sample.plan(LENGTHS))


def test_impossible_requests_are_refused() -> None:
    for fields in ({"unit": "words"}, {"share": 0.0}, {"minibatch_frames": 0}, {"chunk": -1}, {"masks": -1}):
        with pytest.raises(ValueError):
            Sample("train", **fields)


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
