import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from asr_hf.errors import InputError
from asr_hf.hmm.model import HmmModel, Split, leaves, monophone_model
from asr_hf.hmm.tree import ContextStats, TreeOptions, build_tree, derive_questions, log_likelihood
from asr_hf.hmm.triphone import contexts_of

FLOOR = np.full(2, 1e-3)


def stats_of(x: np.ndarray) -> np.ndarray:
    return np.concatenate([[len(x)], x.sum(0), (x**2).sum(0)])


def toy_frames() -> tuple[np.ndarray, np.ndarray]:
    """Frames of 4 phones (1 is silence); phones 2 and 3 sound alike, and colour a phone 4 that follows them."""
    random = np.random.default_rng(0)
    left, phone, right = (random.integers(1, 5, size=6000) for _ in range(3))
    state = random.integers(0, 3, size=6000)
    x = random.normal(size=(6000, 2)) + np.array([[0, 0], [9, 0], [0, 6], [0.5, 6.5], [9, 9]])[phone]
    x[:, 0] += 4.0 * ((phone == 4) & ((left == 2) | (left == 3)))
    return np.stack([left, phone, right, state], axis=1), x


@pytest.fixture
def mono() -> HmmModel:
    return monophone_model(("SIL", "b", "c", "d"), "SIL", 3, 3)


def test_likelihood_equals_scipy_and_gains_follow() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(30, 2)), 2 + random.normal(size=(50, 2))
    for frames in (x, y, np.concatenate([x, y])):
        exact = scipy.stats.norm.logpdf(frames, frames.mean(0), frames.std(0)).sum()
        assert log_likelihood(stats_of(frames), FLOOR) == pytest.approx(exact)
    floored = scipy.stats.norm.logpdf(x, x.mean(0), np.sqrt([4.0, 5.0])).sum()
    assert log_likelihood(stats_of(x), np.array([4.0, 5.0])) == pytest.approx(floored)
    assert log_likelihood(np.zeros(5), FLOOR) == 0.0


def test_statistics_are_sums_over_contexts_and_merge_in_parts() -> None:
    contexts, x = toy_frames()
    whole = ContextStats.from_frames(contexts, x)
    for row in (0, 17, len(whole.contexts) - 1):
        chosen = (contexts == whole.contexts[row]).all(1)
        np.testing.assert_allclose(whole.stats[row], stats_of(x[chosen]))
    parts = [ContextStats.from_frames(contexts[i::3], x[i::3]) for i in range(3)]
    merged = ContextStats.merged(parts)
    assert np.array_equal(merged.contexts, whole.contexts)
    np.testing.assert_allclose(merged.stats, whole.stats)


def test_questions_hold_what_sounds_alike(mono: HmmModel) -> None:
    contexts, x = toy_frames()
    questions = derive_questions(ContextStats.from_frames(contexts, x), mono.states, FLOOR)
    assert frozenset([2, 3]) in questions
    assert {frozenset([phone]) for phone in (1, 2, 3, 4)} <= set(questions)
    assert len(questions) == len(set(questions)) == 6  # 4 phones and the clusters of 2 merges
    assert frozenset([1, 2, 3, 4]) not in questions


def test_first_split_has_the_largest_gain_by_direct_computation(mono: HmmModel) -> None:
    contexts, x = toy_frames()
    stats = ContextStats.from_frames(contexts, x)
    tree = build_tree(stats, mono, FLOOR, TreeOptions(leaves=13, min_occupancy=50, min_gain=0))
    assert tree.num_pdfs == 13
    split = [(phone, state, node) for phone, trees in enumerate(tree.trees, 1)
             for state, node in enumerate(trees) if isinstance(node, Split)]  # fmt: skip
    assert len(split) == 1
    best = (-np.inf, 0, 0, "", frozenset([0]))
    for phone in (2, 3, 4):
        for state in range(3):
            at = (contexts[:, 1] == phone) & (contexts[:, 3] == state)
            for side, column in (("left", 0), ("right", 2)):
                for question in derive_questions(stats, mono.states, FLOOR):
                    yes = at & np.isin(contexts[:, column], list(question))
                    no = at & ~yes
                    gain = sum(scipy.stats.norm.logpdf(x[part], x[part].mean(0), x[part].std(0)).sum()
                               for part in (yes, no))  # fmt: skip
                    gain -= scipy.stats.norm.logpdf(x[at], x[at].mean(0), x[at].std(0)).sum()
                    best = max(best, (gain, phone, state, side, question), key=lambda entry: entry[0])
    phone, state, node = split[0]
    assert (phone, state, node.side) == best[1:4]
    assert node.phones in (best[4], frozenset([1, 2, 3, 4]) - best[4])
    assert node.phones == frozenset([2, 3])


def test_limits_hold_and_every_context_has_a_leaf(mono: HmmModel) -> None:
    contexts, x = toy_frames()
    stats = ContextStats.from_frames(contexts, x)
    tree = build_tree(stats, mono, FLOOR, TreeOptions(leaves=30, min_occupancy=60, min_gain=0))
    assert 12 < tree.num_pdfs <= 30
    assert sorted(pdf for trees in tree.trees for node in trees for pdf in leaves(node)) == list(range(tree.num_pdfs))
    assert all(isinstance(node, int) for node in tree.trees[0])  # silence is not split
    occupancy = np.zeros(tree.num_pdfs)
    for (left, phone, right, state), row in zip(stats.contexts.tolist(), stats.stats, strict=True):
        occupancy[tree.pdfs(left, phone, right)[state]] += row[0]
    assert occupancy.min() >= 60
    for left in range(5):
        for right in range(5):
            pdfs = tree.pdfs(left, 4, right)
            assert len(pdfs) == 3
            assert pdfs == tree.pdfs(left or 1, 4, right or 1)  # an edge counts as silence
    few = build_tree(stats, mono, FLOOR, TreeOptions(leaves=5))
    assert few.num_pdfs == 12
    assert not few.context


def test_model_file_gives_back_the_tree(tmp_path: Path, mono: HmmModel) -> None:
    contexts, x = toy_frames()
    tree = build_tree(ContextStats.from_frames(contexts, x), mono, FLOOR, TreeOptions(leaves=30, min_occupancy=60))
    tree.save(tmp_path)
    loaded = HmmModel.load(tmp_path)
    assert loaded.trees == tree.trees
    assert (loaded.num_pdfs, loaded.phones, loaded.silence, loaded.states) == (
        tree.num_pdfs, tree.phones, "SIL", (3, 3, 3, 3),
    )  # fmt: skip
    np.testing.assert_allclose(loaded.self_loop, tree.self_loop, atol=1e-6)


def test_missing_and_damaged_model_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hmm\.json is missing"):
        HmmModel.load(tmp_path)
    for content in ("{", json.dumps({"num_pdfs": 3}), json.dumps([1])):
        (tmp_path / "hmm.json").write_text(content)
        with pytest.raises(InputError, match=r"hmm\.json is damaged"):
            HmmModel.load(tmp_path)


def test_contexts_of_a_state_alignment(mono: HmmModel) -> None:
    # b b (each 3 states), then silence: the second b begins where state 0 follows state 2
    states = np.array([3, 3, 4, 5, 3, 4, 4, 5, 0, 1, 2])
    expected_phones = [(1, 2, 2)] * 4 + [(2, 2, 1)] * 4 + [(2, 1, 1)] * 3
    found = contexts_of(states, mono)
    assert [tuple(row) for row in found[:, :3]] == expected_phones
    assert found[:, 3].tolist() == [0, 0, 1, 2, 0, 1, 1, 2, 0, 1, 2]
