"""The denominator graph: all phone sequences of a phone n-gram, in the context that the pdfs need.

A state is a history of the n-gram after a phone, the phone's entry and loop pdf, and the set of phones that may follow
(with the edge of the utterance). Where pdfs depend on the right neighbour there is a state for each pair of pdfs, whose
set holds the neighbours that give it: that one of them follows is paid for on entry, which of them on leaving. So for
any part of an utterance the weights of all phone sequences are the n-gram's.
Shape suffixes: S states, A transitions, H histories.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.phone_lm import EDGE, PhoneLm

_OCCUPANCY_STEPS = 100
_DIGITS = 12  # weights that agree to so many are equal


class _State(NamedTuple):
    history: int
    phone: int
    pdfs: tuple[int, ...]  # entry, loop
    following: frozenset[int]  # phones, or EDGE


@dataclass(frozen=True)
class _Arc:
    """What the n-gram says of a phone after a history."""

    history: int
    probability: float


class _Builder:
    """States in the order in which they are reached from the start of an utterance."""

    def __init__(self, lm: PhoneLm, hmm: HmmModel) -> None:
        self.hmm = hmm
        self.arcs: list[dict[int, _Arc]] = [{EDGE: _Arc(-1, end)} if end > 0 else {} for end in lm.end_H.tolist()]
        table = zip(lm.src_A.tolist(), lm.phone_A.tolist(), lm.dst_A.tolist(), lm.probability_A.tolist(), strict=True)
        for src, phone, dst, probability in table:
            self.arcs[src][phone] = _Arc(dst, probability)

    def _entries(self, history: int, left: int, phone: int) -> list[tuple[_State, float]]:
        """The states of a phone, with the probability of what may follow it; `history` is that after the phone."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for right in self.arcs[history]:
            groups[self.hmm.pdfs(left, phone, right)].append(right)
        return [
            (_State(history, phone, pdfs, frozenset(rights)), self._share(history, frozenset(rights)))
            for pdfs, rights in groups.items()
        ]

    def _share(self, history: int, phones: frozenset[int]) -> float:
        return sum(self.arcs[history][phone].probability for phone in sorted(phones))

    def _leaving(self, state: _State) -> dict[_State, float]:
        """Probability of each state that may come next (less than 1 together where the utterance may end)."""
        share = self._share(state.history, state.following)
        onward: dict[_State, float] = defaultdict(float)
        for phone in sorted(state.following - {EDGE}):
            arc = self.arcs[state.history][phone]
            for entered, probability in self._entries(arc.history, state.phone, phone):
                onward[entered] += arc.probability / share * probability
        return onward

    def build(self) -> ChainGraph:
        """All states that can be reached; the whole initial weight is the start's."""
        start = _State(0, EDGE, (), frozenset(self.arcs[0]))
        number = {start: 0}
        transitions: list[tuple[int, int, float]] = []
        states = [start]
        for src, state in enumerate(states):  # grows
            leave = 1.0 if state is start else 1.0 - self.hmm.self_loop[state.pdfs[0]]
            for entered, probability in self._leaving(state).items():
                if entered not in number:
                    number[entered] = len(states)
                    states.append(entered)
                transitions.append((src, number[entered], leave * probability))
        pdfs_S2 = np.array([state.pdfs or states[1].pdfs for state in states])
        stay_S = self.hmm.self_loop[pdfs_S2[:, 0]]
        stay_S[0] = 0.0
        src_A, dst_A, weight_A = (np.array(column) for column in zip(*transitions, strict=True))
        return ChainGraph.sorted(pdfs_S2[:, 0], pdfs_S2[:, 1], stay_S, np.eye(len(states))[0], src_A, dst_A, weight_A)


def denominator_graph(lm: PhoneLm, hmm: HmmModel) -> ChainGraph:
    """Compose the phone n-gram with context and topology, without epsilons, and minimise.

    Transitions weigh the probability of leaving times the n-gram's, staying weighs its own probability. State 0 is the
    start of an utterance, which no transition enters and no path stays in; its pdfs are another state's. Initial
    weights are the mean occupancy of the first 100 frames from there, as in Kaldi's chain.

    Args:
        lm: over the phones of `hmm`.
        hmm: a chain model.
    """
    graph = _Builder(lm, hmm).build()
    return minimised(graph.with_initial(mean_occupancy(graph)))


def mean_occupancy(graph: ChainGraph) -> np.ndarray:
    """(S,) share of each state in the first 100 steps of running the HMM, sum 1; what ends is left out of each step."""
    now_S = graph.initial_S / graph.initial_S.sum()
    total_S = np.zeros(graph.states)
    for _ in range(_OCCUPANCY_STEPS):
        total_S += now_S
        entered_S = np.bincount(graph.dst_A, now_S[graph.src_A] * graph.weight_A, graph.states)
        now_S = entered_S + graph.stay_S * now_S
        now_S /= now_S.sum()
    return total_S / total_S.sum()


def minimised(graph: ChainGraph) -> ChainGraph:
    """The graph with states merged that read the same and weigh what follows the same; weights are not pushed.

    Partition refinement: states of a class have the same pdfs and staying weight, and the same sum of weights to each
    class. The first state of a class speaks for it; initial weights add.
    """
    reads = np.stack([graph.entry_S, graph.loop_S, _rounded(graph.stay_S)], axis=1)
    class_S = np.unique(reads, axis=0, return_inverse=True)[1].ravel()
    while True:
        finer_S = _refined(graph, class_S)
        if finer_S.max() == class_S.max():
            break
        class_S = finer_S
    _, first_C, class_S = np.unique(class_S, return_index=True, return_inverse=True)
    order = np.argsort(first_C)  # classes in the order of their first states
    class_S, first_C = np.argsort(order)[class_S], first_C[order]
    spoken = np.isin(graph.src_A, first_C)
    pair, weight_A = _summed(class_S[graph.src_A[spoken]], class_S[graph.dst_A[spoken]], graph.weight_A[spoken])
    return ChainGraph.sorted(
        graph.entry_S[first_C], graph.loop_S[first_C], graph.stay_S[first_C],
        np.bincount(class_S, graph.initial_S), pair[:, 0], pair[:, 1], weight_A,
    )  # fmt: skip


def _refined(graph: ChainGraph, class_S: np.ndarray) -> np.ndarray:
    """Classes split by the sum of weights to each class."""
    pair, weight = _summed(graph.src_A, class_S[graph.dst_A], graph.weight_A)
    _, kind = np.unique(np.stack([pair[:, 1], _rounded(weight)], axis=1), axis=0, return_inverse=True)
    bounds = np.searchsorted(pair[:, 0], np.arange(graph.states + 1)).tolist()
    kind = kind.ravel()
    number: dict[tuple[int, bytes], int] = {}
    return np.array(
        [
            number.setdefault((own, kind[begin:end].tobytes()), len(number))
            for own, begin, end in zip(class_S.tolist(), bounds[:-1], bounds[1:], strict=True)
        ]
    )


def _summed(src: np.ndarray, dst: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of equal (src, dst) added: (pairs sorted, sums)."""
    pairs, place = np.unique(np.stack([src, dst], axis=1), axis=0, return_inverse=True)
    return pairs, np.bincount(place.ravel(), weight, len(pairs))


def _rounded(weight: np.ndarray) -> np.ndarray:
    """Integers that are equal where weights agree to 12 decimals of their logarithm."""
    return np.round(np.log(np.maximum(weight, 1e-300)) * 10**_DIGITS).astype(np.int64)
