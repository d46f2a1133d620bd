"""The beam search against dynamic programming over (frame, state, words so far)."""

from dataclasses import replace

import numpy as np
import pytest

from asr_hf.decoding.search import Decoder, DecodingOptions
from asr_hf.errors import InputError, OptionError

PLAIN = DecodingOptions(acoustic_scale=0.1)
EXACT = {"beam": 1e6, "max_active": 2**31 - 1}


def best_cost(arcs, states, loglikes, words=None):
    """Lowest cost (S,) of reaching each state after the last frame; with `words`, of paths that say exactly these."""
    length = 0 if words is None else len(words)

    def relax(costs, arc, emitted, out):
        src, dst, _, olabel, cost = arc
        for said in range(length + 1):
            now = said
            if words is not None and olabel:
                if said == length or words[said] != olabel:
                    continue
                now = said + 1
            out[dst, now] = min(out[dst, now], costs[src, said] + cost - emitted)

    def close(costs):
        """Bellman-Ford over the input-epsilon arcs."""
        for _ in range(states * (length + 1)):
            for arc in arcs:
                if arc[2] == 0:
                    relax(costs, arc, 0.0, costs)
        return costs

    costs = np.full((states, length + 1), np.inf)
    costs[0, 0] = 0.0
    costs = close(costs)
    for frame in loglikes:
        after = np.full_like(costs, np.inf)
        for arc in arcs:
            if arc[2]:
                relax(costs, arc, frame[arc[2] - 1], after)
        costs = close(after)
    return costs[:, length]


def random_task(seed):
    """A random graph with epsilons, small whole-number costs (so that many paths tie) and log-likelihoods."""
    rng = np.random.default_rng(seed)
    states, pdfs, frames = (int(rng.integers(low, high)) for low, high in ((2, 7), (1, 4), (1, 6)))
    arcs = [(states - 1, states - 1, 1, 0, 0.0)]
    for _ in range(rng.integers(3, 20)):
        src, dst = rng.integers(states, size=2)
        ilabel = 0 if rng.random() < 0.3 else rng.integers(1, pdfs + 1)
        olabel = rng.integers(1, 4) if rng.random() < 0.5 else 0
        cost = rng.integers(0, 3) if ilabel == 0 else rng.integers(-2, 3)  # no epsilon cycle pays
        arcs.append(tuple(map(int, (src, dst, ilabel, olabel, cost))))
    final = {int(s): float(rng.integers(0, 3)) for s in rng.choice(states, size=rng.integers(0, 3), replace=False)}
    loglikes = rng.integers(-3, 2, size=(frames, pdfs)).astype(np.float32)
    return arcs, states, final, loglikes


def total_cost(arcs, states, final, loglikes, words=None):
    """Lowest cost with final costs, or without them if no final state can be reached; and whether one can be."""
    costs = best_cost(arcs, states, loglikes, words)
    finals = np.array([final.get(state, np.inf) for state in range(states)])
    finished = bool(np.isfinite(best_cost(arcs, states, loglikes) + finals).any())
    return float((costs + finals if finished else costs).min()), finished


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("penalty", [0.0, 1.5, -0.5])
def test_best_path_of_random_graphs(make_graph, seed, penalty):
    arcs, states, final, loglikes = random_task(seed)
    if penalty < 0:  # words on epsilon cycles would earn without end
        arcs = [arc for arc in arcs if arc[2] or not arc[3]]
    options = DecodingOptions(acoustic_scale=0.5, word_penalty=penalty, **EXACT)
    got = Decoder(make_graph(arcs, final, loglikes.shape[1]), options).decode(loglikes)

    charged = [(*arc[:4], arc[4] + penalty * (arc[3] > 0)) for arc in arcs]
    want, finished = total_cost(charged, states, final, 0.5 * loglikes)
    assert got.cost == pytest.approx(want, abs=1e-5)
    assert got.survived == np.isfinite(want)
    if got.survived:  # where words tie any of them will do, but they must be worth the cost
        labels = [int(word[1:]) for word in got.words]
        assert got.reached_final == finished
        assert total_cost(charged, states, final, 0.5 * loglikes, labels)[0] == pytest.approx(want, abs=1e-5)


def test_random_graphs_cover_every_case():
    """The 50 graphs have paths that end, paths that do not, and none."""
    found = [total_cost(arcs, states, final, x) for arcs, states, final, x in map(random_task, range(50))]
    assert sum(np.isfinite(cost) and finished for cost, finished in found) >= 15
    assert sum(np.isfinite(cost) and not finished for cost, finished in found) >= 5
    assert sum(not np.isfinite(cost) for cost, _ in found) >= 2


def test_a_narrow_beam_loses_the_path_that_is_late_to_win(make_graph):
    """The bad first frame of the only path that ends prunes it; the wide beam keeps it."""
    arcs = [(0, 1, 1, 1, 0.0), (0, 2, 2, 2, 9.0), (1, 1, 1, 0, 0.0), (2, 2, 2, 0, 0.0)]
    graph = make_graph(arcs, {2: 0.0}, 2)
    loglikes = np.zeros((3, 2), dtype=np.float32)
    narrow = Decoder(graph, DecodingOptions(acoustic_scale=1.0, beam=2.0, min_active=0)).decode(loglikes)
    wide = Decoder(graph, DecodingOptions(acoustic_scale=1.0, beam=20.0)).decode(loglikes)
    assert (narrow.words, narrow.reached_final) == (("w1",), False)
    assert (wide.words, wide.reached_final, wide.cost) == (("w2",), True, 9.0)


def test_no_surviving_path_gives_the_empty_hypothesis(make_graph):
    graph = make_graph([(0, 1, 1, 1, 0.0)], {1: 0.0}, 1)  # accepts one frame only
    decoder = Decoder(graph, PLAIN)
    for frames in (0, 2):
        got = decoder.decode(np.zeros((frames, 1), dtype=np.float32))
        assert (got.words, got.survived, got.reached_final) == ((), False, False)
    impossible = decoder.decode(np.full((1, 1), -np.inf, dtype=np.float32))
    assert not impossible.survived
    assert decoder.decode(np.zeros((1, 1), dtype=np.float32)).words == ("w1",)


def test_a_decoder_outlives_the_names_of_its_graph(make_graph):
    decoder = Decoder(make_graph([(0, 0, 1, 1, 1.0)], {0: 0.0}, 1), replace(PLAIN, word_penalty=1.0))
    for _ in range(3):
        assert decoder.decode(np.zeros((4, 1), dtype=np.float32)).cost == 8.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_scores_name_utterance_and_frame(make_graph, bad):
    loglikes = np.zeros((3, 1), dtype=np.float32)
    loglikes[1] = bad
    with pytest.raises(InputError, match=r"utterance u7.*frame 1"):
        Decoder(make_graph([(0, 0, 1, 1, 1.0)], {0: 0.0}, 1), PLAIN).decode(loglikes, "u7")


def test_scores_of_another_number_of_pdfs_are_refused(make_graph):
    with pytest.raises(InputError, match=r"u7.*2 pdfs"):
        Decoder(make_graph([(0, 0, 1, 1, 1.0)], {0: 0.0}, 2), PLAIN).decode(np.zeros((3, 1)), "u7")


@pytest.mark.parametrize(
    "values",
    [{"acoustic_scale": 0.0}, {"acoustic_scale": float("inf")}, {"beam": -1.0}, {"max_active": 1},
     {"min_active": 9000}, {"word_penalty": float("nan")}],
)  # fmt: skip
def test_impossible_options_are_refused(values):
    with pytest.raises(OptionError, match=f"decoding.{next(iter(values))}"):
        DecodingOptions(**values)
