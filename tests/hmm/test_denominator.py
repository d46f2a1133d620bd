"""The denominator graph against all phone sequences and durations, written down from the n-gram and the model."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from asr_hf.errors import InputError
from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.hmm.denominator import denominator_graph, mean_occupancy, minimised
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.phone_lm import PhoneLm, PhoneLmOptions, estimate_phone_lm

Weights = dict[tuple[int, ...], float]  # by the pdf of every frame


@pytest.fixture
def lm(phone_sentences: list[tuple[int, ...]]) -> PhoneLm:
    return estimate_phone_lm(phone_sentences, PhoneLmOptions(extra_states=6))


def path_weights(graph: ChainGraph, frames: int) -> Weights:
    """Weight of all paths of a graph together that read the same pdfs, for all that can be read."""
    now: dict[tuple[int, tuple[int, ...]], float] = {(s, ()): w for s, w in enumerate(graph.initial_S) if w}
    for _ in range(frames):
        then: dict[tuple[int, tuple[int, ...]], float] = defaultdict(float)
        for (state, read), weight in now.items():
            if graph.stay_S[state]:
                then[state, (*read, graph.loop_S[state])] += weight * graph.stay_S[state]
            for arc in np.nonzero(graph.src_A == state)[0]:
                then[graph.dst_A[arc], (*read, graph.entry_S[graph.dst_A[arc]])] += weight * graph.weight_A[arc]
        now = then
    total: Weights = defaultdict(float)
    for (_, read), weight in now.items():
        total[tuple(int(pdf) for pdf in read)] += weight
    return total


def sequences(lm: PhoneLm, longest: int) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """(phones, history after them, probability) of all phone sequences from the start of an utterance."""
    todo: list[tuple[tuple[int, ...], int, float]] = [((), 0, 1.0)]
    while todo:
        phones, state, p = todo.pop()
        yield phones, state, p
        if len(phones) < longest:
            for arc in np.nonzero(lm.src_A == state)[0]:
                todo.append(((*phones, int(lm.phone_A[arc])), int(lm.dst_A[arc]), p * lm.probability_A[arc]))


def durations(phones: int, frames: int) -> Iterator[tuple[int, ...]]:
    if phones == 1:
        yield (frames,)
        return
    for first in range(1, frames - phones + 2):
        yield from ((first, *rest) for rest in durations(phones - 1, frames - first))


def everything(lm: PhoneLm, hmm: HmmModel, frames: int) -> Weights:
    """Weights by the n-gram, a half for every frame that stays and every phone that is left, over right neighbours."""
    total: Weights = defaultdict(float)
    for phones, state, p in sequences(lm, frames):
        if not phones:
            continue
        rights = {int(lm.phone_A[arc]): lm.probability_A[arc] for arc in np.nonzero(lm.src_A == state)[0]}
        rights[0] = lm.end_H[state]
        for right, p_right in rights.items():
            padded = (0, *phones, right)
            pdfs = [hmm.pdfs(*padded[k : k + 3]) for k in range(len(phones))]
            for lengths in durations(len(phones), frames):
                read = [
                    pdf for (entry, loop), n in zip(pdfs, lengths, strict=True) for pdf in [entry] + [loop] * (n - 1)
                ]
                weight = p * p_right * 0.5 ** (frames - len(phones)) * 0.5 ** (len(phones) - 1)
                if weight:
                    total[tuple(read)] += weight
    return total


def from_start(graph: ChainGraph) -> ChainGraph:
    return graph.with_initial(np.eye(graph.states)[0])


def same(found: Weights, expected: Weights) -> None:
    assert set(found) == set(expected)
    for read, weight in expected.items():
        assert found[read] == pytest.approx(weight, rel=1e-9), read


def test_every_phone_sequence_has_the_weight_of_ngram_and_topology(lm: PhoneLm, chain_hmm: HmmModel) -> None:
    graph = denominator_graph(lm, chain_hmm)
    for frames in (1, 2, 4):
        same(path_weights(from_start(graph), frames), everything(lm, chain_hmm, frames))


def test_the_graph_is_one(lm: PhoneLm, chain_hmm: HmmModel) -> None:
    graph = denominator_graph(lm, chain_hmm)
    order = np.lexsort((graph.src_A, graph.dst_A))
    assert np.array_equal(order, np.arange(len(order)))
    assert len(np.unique(np.stack([graph.src_A, graph.dst_A]), axis=1).T) == len(graph.src_A)
    assert graph.initial_S.sum() == pytest.approx(1.0)
    assert graph.initial_S.min() > 0
    assert 0 not in graph.dst_A
    assert graph.stay_S[0] == 0
    leaving_S = np.bincount(graph.src_A, graph.weight_A, graph.states) + graph.stay_S
    assert leaving_S.max() <= 1 + 1e-12  # the rest is the end of the utterance
    assert leaving_S.min() >= 0.5 - 1e-12


def test_initial_weights_are_the_mean_occupancy_of_a_hundred_frames(lm: PhoneLm, chain_hmm: HmmModel) -> None:
    graph = from_start(denominator_graph(lm, chain_hmm))
    step = scipy.sparse.coo_array((graph.weight_A, (graph.src_A, graph.dst_A)), shape=(graph.states,) * 2).toarray()
    step += np.diag(graph.stay_S)
    powers = [np.linalg.matrix_power(step, n)[0] for n in range(100)]
    expected = np.mean([row / row.sum() for row in powers], axis=0)
    np.testing.assert_allclose(mean_occupancy(graph), expected, rtol=1e-9)
    np.testing.assert_allclose(denominator_graph(lm, chain_hmm).initial_S, expected, rtol=1e-9)


def doubled(graph: ChainGraph) -> ChainGraph:
    """The same graph with two copies of every state but the first, which share what comes in."""
    states, random = graph.states, np.random.default_rng(2)
    share_S = random.uniform(0.2, 0.8, states)
    first = np.arange(2 * states) != states  # drop the second copy of state 0
    place = np.cumsum(first) - 1
    share = np.concatenate([np.append(1.0, share_S[1:]), np.append(0.0, 1 - share_S[1:])])
    src, dst, weight = [], [], []
    for a, b, w in zip(graph.src_A, graph.dst_A, graph.weight_A, strict=True):
        for copy_a in (a, a + states) if a else (a,):
            for copy_b in (b, b + states):
                src.append(place[copy_a])
                dst.append(place[copy_b])
                weight.append(w * share[copy_b])
    twice = [np.tile(field, 2)[first] for field in (graph.entry_S, graph.loop_S, graph.stay_S)]
    initial = (np.tile(graph.initial_S, 2) * share)[first]
    return ChainGraph.sorted(*twice, initial, np.array(src), np.array(dst), np.array(weight))


def test_minimisation_undoes_copies_and_keeps_every_weight(lm: PhoneLm, chain_hmm: HmmModel) -> None:
    graph = denominator_graph(lm, chain_hmm)
    copies = doubled(graph)
    assert copies.states == 2 * graph.states - 1
    small = minimised(copies)
    assert (small.states, len(small.src_A)) == (graph.states, len(graph.src_A))
    same(path_weights(small, 3), path_weights(copies, 3))
    shared = replace(graph, entry_S=graph.entry_S // 4, loop_S=graph.loop_S // 4)  # more states look alike
    merged = minimised(shared)
    same(path_weights(merged, 3), path_weights(shared, 3))


def test_equal_futures_merge() -> None:
    """Two phones that share pdfs and are followed by the same have one state."""
    lm = estimate_phone_lm([(2, 4), (3, 4), (2, 4)], PhoneLmOptions())
    hmm = HmmModel(
        4, ("SIL", "a", "b", "c"), "SIL", (2,) * 4, ((0, 1), (2, 3), (2, 3), (0, 1)), np.full(4, 0.5), "chain"
    )
    graph = denominator_graph(lm, hmm)
    assert (graph.states, len(graph.src_A)) == (3, 2)
    np.testing.assert_allclose(graph.weight_A, [1.0, 0.5])


def test_a_saved_graph_is_read_back_and_a_damaged_one_refused(lm: PhoneLm, chain_hmm: HmmModel, tmp_path: Path) -> None:
    graph, path = denominator_graph(lm, chain_hmm), tmp_path / "den.safetensors"
    graph.save(path)
    again = ChainGraph.load(path, chain_hmm.num_pdfs)
    for name in ("entry_S", "loop_S", "stay_S", "initial_S", "src_A", "dst_A", "weight_A"):
        assert np.array_equal(getattr(again, name), getattr(graph, name))
    with pytest.raises(InputError, match="entry_S has values out of range"):
        ChainGraph.load(path, 3)
    with pytest.raises(InputError, match="is missing"):
        ChainGraph.load(tmp_path / "none", 3)
    faults = {
        "out of order": {"src_A": graph.src_A[::-1].copy(), "dst_A": graph.dst_A[::-1].copy()},
        "weights of 0": {"weight_A": np.zeros(len(graph.src_A))},
        "stay_S has values": {"stay_S": graph.stay_S * math.nan},
        "initial_S has shape": {"initial_S": graph.initial_S[1:]},
        "dst_A has values": {"dst_A": graph.dst_A + graph.states},
    }
    for said, change in faults.items():
        replace(graph, **change).save(path)
        with pytest.raises(InputError, match=rf"den\.safetensors is damaged .*{said}"):
            ChainGraph.load(path, chain_hmm.num_pdfs)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="is damaged"):
        ChainGraph.load(path, chain_hmm.num_pdfs)
