"""Small chain graphs, and what the sums over their paths are when every path is written out (float64)."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from asr_hf.hmm.chain_graph import ChainGraph, Numerator


@pytest.fixture
def random_graph() -> Callable[..., ChainGraph]:
    def make(seed: int, states: int = 5, pdfs: int = 4) -> ChainGraph:
        random = np.random.default_rng(seed)
        arcs = random.random((states, states)) < 0.4
        arcs[np.arange(states), (np.arange(states) + 1) % states] = True
        dst, src = np.nonzero(arcs)
        stay = np.where(np.arange(states) % 3 == 2, 0.0, random.random(states))
        entry, loop = random.integers(0, pdfs, (2, states))
        initial = random.random(states)
        initial[0] = 0.0
        return ChainGraph(entry, loop, stay, initial / initial.sum(), src, dst, random.random(len(src)))

    return make


@dataclass
class Enumerated:
    """Every sequence of (state, whether it was entered, pdf) and its share of Z."""

    sequences: list[tuple[tuple[int, bool, int], ...]]
    share_N: np.ndarray
    log_total: float
    indicators_NX: np.ndarray  # X = T·P: pdf of each frame, one-hot

    @property
    def posteriors(self) -> np.ndarray:
        return self.share_N @ self.indicators_NX

    @property
    def covariance(self) -> np.ndarray:
        mean_X = self.posteriors
        return (self.indicators_NX.T * self.share_N) @ self.indicators_NX - np.outer(mean_X, mean_X)


@pytest.fixture
def enumerate_paths() -> Callable[..., Enumerated]:
    return _enumerate


def _enumerate(numerator: Numerator | ChainGraph, y_TP: np.ndarray, leak: float = 0.0) -> Enumerated:
    """Write out all paths of a row; a path may leak before every frame and after the last."""
    if isinstance(numerator, ChainGraph):
        states = numerator.states
        numerator = Numerator(numerator, np.zeros(states, int), np.full(states, len(y_TP)), np.ones(states, bool))
    graph, (frames, pdfs) = numerator.graph, y_TP.shape
    arcs = zip(graph.src_A, graph.dst_A, graph.weight_A, strict=True)
    moves = [(src, dst, w, True, int(graph.entry_S[dst])) for src, dst, w in arcs]
    moves += [(j, j, w, False, int(graph.loop_S[j])) for j, w in enumerate(graph.stay_S) if w > 0]
    weight: dict[tuple, float] = {((), j): w for j, w in enumerate(graph.initial_S) if w > 0}
    for t in range(frames):
        longer: dict[tuple, float] = defaultdict(float)
        for (path, state), now in _leaked(weight, graph, leak).items():
            for src, dst, w, enters, pdf in moves:
                if src == state and numerator.first_S[dst] <= t <= numerator.last_S[dst]:
                    longer[(*path, (int(dst), enters, pdf)), dst] += now * w
        weight = longer
    total: dict[tuple, float] = defaultdict(float)
    for (path, state), now in _leaked(weight, graph, leak).items():
        if numerator.final_S[state]:
            total[path] += now
    sequences = list(total)
    indicators = np.zeros((len(sequences), frames, pdfs))
    for n, path in enumerate(sequences):
        indicators[n, np.arange(frames), [pdf for _, _, pdf in path]] = 1
    indicators = indicators.reshape(len(sequences), frames * pdfs)
    log_N = np.log([total[path] for path in sequences]) + indicators @ y_TP.reshape(-1)
    log_total = np.logaddexp.reduce(log_N) if sequences else -np.inf
    return Enumerated(sequences, np.exp(log_N - log_total), float(log_total), indicators)


def _leaked(weight: dict[tuple, float], graph: ChainGraph, leak: float) -> dict[tuple, float]:
    after = defaultdict(float, weight)
    for (path, _), now in weight.items() if leak else ():
        for j in np.nonzero(graph.initial_S)[0]:
            after[path, int(j)] += now * leak * graph.initial_S[j]
    return after
