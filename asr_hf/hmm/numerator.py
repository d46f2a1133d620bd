"""Numerators: the paths of the denominator graph that a label graph allows, for one piece of an utterance.

The label graph is made deterministic over units by subset construction, then composed with the denominator, so that a
state is (set of places, state of the denominator with the places' unit). No path of the denominator is counted twice,
whatever the ways through the transcript that it fits, so the numerator's sum is never larger than the denominator's.
Frames here are output frames of the piece; −1 is the moment before its first. Shape suffixes: S states of the
denominator, A its transitions, J states of one unit, N states and B transitions of the numerator, K places.
"""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from asr_hf.hmm.chain_graph import ChainGraph, Numerator
from asr_hf.hmm.supervision import LabelGraph

_NEVER = 1 << 40  # frame
_START = ()  # the set of places before an utterance begins

Places = tuple[int, ...]


@dataclass(frozen=True)
class _Block:
    """Transitions of the denominator from states of one unit to states of one unit, by their places within these."""

    src: np.ndarray
    dst: np.ndarray
    weight: np.ndarray


@dataclass
class _Set:
    """A set of places and the denominator's states under it.

    Attributes:
        unit: of all its places; −1 for the start.
        first, last: output frames that may be spent there; the hull of its places' windows.
        final: whether a path may end there.
        initial_J: weight before the first frame.
        earliest_J, latest_J: first and last frame at which some path is in the state; _NEVER, −_NEVER: none.
        onward: (the next set, the transitions to it).
    """

    unit: int
    first: int
    last: int
    final: bool
    initial_J: np.ndarray
    earliest_J: np.ndarray
    latest_J: np.ndarray
    onward: list[tuple["_Set", _Block]] = field(default_factory=list)


class Composer:
    """Composes label graphs with one denominator, whose transitions it sorts by units once."""

    def __init__(self, denominator: ChainGraph) -> None:
        self.graph = denominator
        stays_S = denominator.stay_S > 0  # all but the start of an utterance, which no place may be
        pdfs_S2 = np.stack([denominator.entry_S, denominator.loop_S], axis=1)
        self.pdfs_U2, unit_S = np.unique(pdfs_S2[stays_S], axis=0, return_inverse=True)
        self.unit_of = {tuple(pdfs): unit for unit, pdfs in enumerate(self.pdfs_U2.tolist())}
        self.unit_S = np.full(denominator.states, -1)
        self.unit_S[stays_S] = unit_S.ravel()
        order = np.argsort(self.unit_S, kind="stable")
        bounds = np.searchsorted(self.unit_S[order], np.arange(len(self.pdfs_U2) + 1))
        self.states_U = [order[begin:end] for begin, end in pairwise(bounds)]
        self.place_S = np.empty(denominator.states, dtype=np.int64)  # among the states of its unit
        for states in self.states_U:
            self.place_S[states] = np.arange(len(states))
        self.blocks = self._blocks()
        self.entered_S = np.bincount(
            denominator.dst_A, denominator.initial_S[denominator.src_A] * denominator.weight_A, denominator.states
        )

    def _blocks(self) -> dict[tuple[int, int], _Block]:
        """The transitions between each two units, but for those that leave the start."""
        src_A, dst_A, weight_A = self.graph.src_A, self.graph.dst_A, self.graph.weight_A
        units = len(self.pdfs_U2)
        key_A = self.unit_S[src_A] * units + self.unit_S[dst_A]
        order = np.argsort(key_A, kind="stable")
        order = order[self.unit_S[src_A[order]] >= 0]
        keys, begins = np.unique(key_A[order], return_index=True)
        parts = np.split(order, begins[1:])
        return {
            (key // units, key % units): _Block(self.place_S[src_A[part]], self.place_S[dst_A[part]], weight_A[part])
            for key, part in zip(keys.tolist(), parts, strict=True)
        }

    def block(self, source: int, target: int) -> _Block | None:
        """The transitions from one unit (−1: the state before an utterance begins) to another; None: there are none."""
        if source >= 0:
            return self.blocks.get((source, target))
        weight_J = self.entered_S[self.states_U[target]]
        dst = np.nonzero(weight_J)[0]
        return _Block(np.zeros_like(dst), dst, weight_J[dst]) if len(dst) else None

    def numerator(self, labels: LabelGraph, first: int, frames: int, subsampling: int) -> Numerator:
        """The numerator of a piece; it has no states where no path of the denominator fits labels and frames.

        A piece begins the utterance if no output frame comes before it, and ends it if none comes after it. One that
        begins the utterance starts anew, under the first places; any other starts in a place that may be occupied an
        output frame earlier. One that ends it ends in the last places.

        Args:
            labels: of the utterance.
            first: input frame where the piece begins.
            frames: its input frames.
            subsampling: input frames per output frame.

        Raises:
            ValueError: the piece does not lie in the utterance.
        """
        if not 0 <= first < first + frames <= labels.frames:
            raise ValueError(f"frames {first} to {first + frames} of {labels.frames}")
        return _Piece(self, labels, first, frames, subsampling).compose()


class _Piece:
    """The composition for one piece."""

    def __init__(self, composer: Composer, labels: LabelGraph, first: int, frames: int, subsampling: int) -> None:
        self.composer, self.labels = composer, labels
        self.last = -(-frames // subsampling) - 1
        self.begins = first < subsampling
        self.ends = first + subsampling * (self.last + 1) >= labels.frames
        self.first_K = -((first - labels.window_K2[:, 0]) // subsampling)
        self.last_K = (labels.window_K2[:, 1] - 1 - first) // subsampling
        self.unit_K = [composer.unit_of.get(tuple(pdfs), -1) for pdfs in labels.unit_K2.tolist()]
        self.next_K: list[list[int]] = [[] for _ in self.unit_K]
        for source, target in labels.edge_E2.tolist():
            self.next_K[source].append(target)
        self.sets: dict[Places, _Set] = {}

    def compose(self) -> Numerator:
        order = self._forward()
        for item in reversed(order):
            self._backward(item)
        return self._assembled([item for item in order if (item.latest_J >= item.earliest_J).any()])

    def _by_unit(self, places: list[int]) -> dict[int, Places]:
        """Places by their unit, without those whose unit the denominator lacks."""
        found: dict[int, set[int]] = defaultdict(set)
        for place in places:
            if self.unit_K[place] >= 0:
                found[self.unit_K[place]].add(place)
        return {unit: tuple(sorted(members)) for unit, members in found.items()}

    def _set(self, places: Places, unit: int) -> _Set:
        if places not in self.sets:
            members = list(places)
            last = int(self.last_K[members].max())
            ends = not self.ends or bool(self.labels.ends_K[members].any())
            count = len(self.composer.states_U[unit])
            self.sets[places] = _Set(
                unit, int(self.first_K[members].min()), min(last, self.last), ends and last >= self.last,
                np.zeros(count), np.full(count, _NEVER), np.full(count, -_NEVER),
            )  # fmt: skip
        return self.sets[places]

    def _initial_sets(self) -> None:
        """The sets that paths may be in before the first frame."""
        if self.begins:
            never = np.array([-_NEVER])
            self.sets[_START] = _Set(-1, -1, -1, False, np.ones(1), np.array([-1]), never)
            return
        occupied = np.nonzero((self.first_K <= -1) & (self.last_K >= -1))[0]
        for unit, places in self._by_unit(occupied.tolist()).items():
            item = self._set(places, unit)
            item.initial_J = self.composer.graph.initial_S[self.composer.states_U[unit]]
            item.earliest_J[item.initial_J > 0] = -1

    def _forward(self) -> list[_Set]:
        """All sets that paths reach in time, sources first, with their states' earliest frames."""
        self._initial_sets()
        waiting = list(self.sets)  # edges lead to higher places: in the order of tuples no set leads to an earlier one
        heapq.heapify(waiting)
        order = []
        while waiting:
            places = heapq.heappop(waiting)
            source = self.sets[places]
            order.append(source)
            if places == _START:
                following = np.nonzero(self.labels.starts_K)[0].tolist()
            else:
                following = [target for place in places for target in self.next_K[place]]
            for unit, targets in self._by_unit(following).items():
                block = self.composer.block(source.unit, unit)
                if block is None:
                    continue
                known = targets in self.sets
                target = self._set(targets, unit)
                arrival = np.maximum(source.earliest_J[block.src] + 1, target.first)
                in_time = arrival <= min(target.last, source.last + 1)
                if in_time.any():
                    np.minimum.at(target.earliest_J, block.dst[in_time], arrival[in_time])
                    source.onward.append((target, block))
                    if not known:
                        heapq.heappush(waiting, targets)
                elif not known:
                    del self.sets[targets]
        return order

    def _backward(self, item: _Set) -> None:
        """Latest frames of the states of a set whose successors have theirs; transitions that no path takes go."""
        if item.final:
            item.latest_J[item.earliest_J <= self.last] = self.last
        onward = []
        for target, block in item.onward:
            latest = np.minimum(item.last, target.latest_J[block.dst] - 1)
            taken = latest >= np.maximum(item.earliest_J[block.src], target.first - 1)
            if taken.any():
                part = _Block(block.src[taken], block.dst[taken], block.weight[taken])
                np.maximum.at(item.latest_J, part.src, latest[taken])
                onward.append((target, part))
        item.onward = onward

    def _assembled(self, sets: list[_Set]) -> Numerator:
        """The states that paths are in, numbered set by set, as a graph."""
        if not sets:
            return NO_PATHS
        graph, number = self.composer.graph, {}
        states, taken_J = [], []
        count = 0
        for item in sets:
            taken = item.latest_J >= item.earliest_J
            number[id(item)] = count + np.cumsum(taken) - 1
            taken_J.append(taken)
            count += int(taken.sum())
            own = self.composer.states_U[item.unit] if item.unit >= 0 else self.composer.states_U[0][:1]
            states.append(own[taken])
        arcs = [(item, target, block) for item in sets for target, block in item.onward]
        src = [number[id(item)][block.src] for item, _, block in arcs]
        dst = [number[id(target)][block.dst] for _, target, block in arcs]
        state_N = np.concatenate(states)
        stay_N = graph.stay_S[state_N]
        if sets[0].unit < 0:
            stay_N[0] = 0.0
        composed = ChainGraph.sorted(
            graph.entry_S[state_N], graph.loop_S[state_N], stay_N, _joined(sets, taken_J, "initial_J"),
            np.concatenate([_NONE, *src]), np.concatenate([_NONE, *dst]),
            np.concatenate([np.zeros(0), *(block.weight for _, _, block in arcs)]),
        )  # fmt: skip
        final_N = np.repeat([item.final for item in sets], [int(taken.sum()) for taken in taken_J])
        first_N = np.maximum(_joined(sets, taken_J, "earliest_J"), 0)
        return Numerator(composed, first_N, _joined(sets, taken_J, "latest_J"), final_N)


def _joined(sets: list[_Set], taken_J: list[np.ndarray], name: str) -> np.ndarray:
    return np.concatenate([getattr(item, name)[taken] for item, taken in zip(sets, taken_J, strict=True)])


_NONE = np.zeros(0, np.int64)
NO_PATHS = Numerator(
    ChainGraph(_NONE, _NONE, np.zeros(0), np.zeros(0), _NONE, _NONE, np.zeros(0)), _NONE, _NONE, np.zeros(0, bool)
)
