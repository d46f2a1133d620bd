"""Phonetic decision trees: questions derived from the data, and splits by likelihood gain.

Each state of each phone (but the silence) has a tree of its own that asks about the left and the right neighbour.
A leaf is scored as one diagonal Gaussian (Young, Odell & Woodland 1994). The questions are the clusters of a bottom-up
clustering of the phones, as in Kaldi, so nobody needs to write any.
Shape suffixes: M contexts, D feature dim, Q questions, V phones (0 unused), C = 1 + 2D statistics (count, Σx, Σx²).
"""

import heapq
from dataclasses import dataclass, field, replace

import numpy as np

from asr_hf.hmm.model import HmmModel, Node, Split, leaves
from asr_hf.options import option, require

_COLUMNS = {"left": 0, "right": 2}  # of a context


@dataclass
class TreeOptions:
    """Growth of the decision trees."""

    leaves: int = option(500, "pdfs at most")
    min_occupancy: float = option(100.0, "frames that every leaf must have")
    min_gain: float = option(100.0, "least gain of log-likelihood (natural log, over all frames) of a split")

    def __post_init__(self) -> None:
        require(self.leaves >= 1, "tree.leaves", self.leaves, "must be at least 1")
        require(self.min_occupancy > 0, "tree.min_occupancy", self.min_occupancy, "must be positive")
        require(self.min_gain >= 0, "tree.min_gain", self.min_gain, "must be 0 or more")


@dataclass(frozen=True)
class ContextStats:
    """Statistics of every phone-state in every context that occurs.

    Attributes:
        contexts: (M, 4) left phone, phone, right phone, HMM state; sorted, no row twice.
        stats: (M, C) float64: frames, Σx, Σx².
    """

    contexts: np.ndarray
    stats: np.ndarray

    @classmethod
    def from_frames(cls, contexts_T4: np.ndarray, feats_TD: np.ndarray) -> "ContextStats":
        contexts, row = np.unique(contexts_T4, axis=0, return_inverse=True)
        order = np.argsort(row, kind="stable")
        starts = np.searchsorted(row[order], np.arange(len(contexts)))
        x = feats_TD[order].astype(np.float64)
        values = np.concatenate([np.ones((len(x), 1)), x, x * x], axis=1)
        return cls(contexts, np.add.reduceat(values, starts, axis=0))

    @classmethod
    def merged(cls, parts: list["ContextStats"]) -> "ContextStats":
        """The sum of several, added in their order."""
        contexts, row = np.unique(np.concatenate([part.contexts for part in parts]), axis=0, return_inverse=True)
        stats = np.zeros((len(contexts), parts[0].stats.shape[1]))
        begin = 0
        for part in parts:
            stats[row[begin : begin + len(part.stats)]] += part.stats
            begin += len(part.stats)
        return cls(contexts, stats)


def log_likelihood(stats: np.ndarray, floor_D: np.ndarray) -> np.ndarray:
    """Natural-log likelihood of frames (…, C) under the diagonal Gaussian of maximum likelihood; 0 without frames.

    With variance σ² = max(Σx²/N − (Σx/N)², floor):  −½ Σ_d (N log 2πσ²_d + (Σx²_d − (Σx_d)²/N)/σ²_d).
    """
    dim = len(floor_D)
    count = stats[..., :1]
    safe = np.maximum(count, 1e-10)
    scatter = stats[..., 1 + dim :] - stats[..., 1 : 1 + dim] ** 2 / safe
    variance = np.maximum(scatter / safe, floor_D)
    return -0.5 * (count * np.log(2 * np.pi * variance) + scatter / variance).sum(-1) * (count[..., 0] > 0)


def derive_questions(phones: ContextStats, states: tuple[int, ...], floor_D: np.ndarray) -> list[frozenset[int]]:
    """Sets of phones to ask about: every cluster of a bottom-up clustering by least loss of likelihood.

    A phone is described by its middle state, over all its contexts. Single phones are questions; the set of all is not.
    """
    middle = np.array([(count - 1) // 2 for count in states])
    clusters: dict[frozenset[int], np.ndarray] = {}
    for phone in range(1, len(states) + 1):
        rows = (phones.contexts[:, 1] == phone) & (phones.contexts[:, 3] == middle[phone - 1])
        clusters[frozenset([phone])] = phones.stats[rows].sum(0)
    questions = list(clusters)
    while len(clusters) > 2:
        names, stats = list(clusters), np.stack(list(clusters.values()))
        alone = log_likelihood(stats, floor_D)
        together = log_likelihood(stats[:, None] + stats[None], floor_D)
        loss = alone[:, None] + alone[None] - together
        loss[np.tril_indices(len(names))] = np.inf
        a, b = np.unravel_index(np.argmin(loss), loss.shape)
        merged = clusters.pop(names[a]) + clusters.pop(names[b])
        clusters[names[a] | names[b]] = merged
        questions.append(names[a] | names[b])
    return questions


@dataclass
class _Leaf:
    """A leaf while trees grow: the contexts that reach it and, once split, its question and children."""

    rows: np.ndarray
    question: tuple[str, frozenset[int]] | None = None
    children: list["_Leaf"] = field(default_factory=list)


@dataclass(frozen=True)
class _BestSplit:
    gain: float
    side: str
    question: int


class _Grower:
    """Splits leaves by the question of largest gain."""

    def __init__(
        self,
        stats: ContextStats,
        questions: list[frozenset[int]],
        phones: int,
        floor_D: np.ndarray,
        options: TreeOptions,
        sides: tuple[str, ...],
    ) -> None:
        self.stats, self.questions, self.options, self.floor_D = stats, questions, options, floor_D
        self.sides = sides
        self.member_QV = np.zeros((len(questions), phones + 1))
        for row, question in enumerate(questions):
            self.member_QV[row, list(question)] = 1.0

    def best_split(self, rows: np.ndarray) -> _BestSplit | None:
        """The question of largest gain at a leaf, or None where none gains enough or leaves enough frames."""
        stats = self.stats.stats[rows]
        total = stats.sum(0)
        base = float(log_likelihood(total, self.floor_D))
        best: _BestSplit | None = None
        for side in self.sides:
            column = _COLUMNS[side]
            by_phone_VC = np.zeros((self.member_QV.shape[1], stats.shape[1]))
            np.add.at(by_phone_VC, self.stats.contexts[rows, column], stats)
            yes_QC = self.member_QV @ by_phone_VC
            no_QC = total - yes_QC
            gain_Q = log_likelihood(yes_QC, self.floor_D) + log_likelihood(no_QC, self.floor_D) - base
            gain_Q[np.minimum(yes_QC[:, 0], no_QC[:, 0]) < self.options.min_occupancy] = -np.inf
            question = int(gain_Q.argmax())
            if gain_Q[question] > max(self.options.min_gain, best.gain if best else 0.0):
                best = _BestSplit(float(gain_Q[question]), side, question)
        return best

    def grow(self, roots: list[_Leaf], fixed: int) -> None:
        """Split the leaf of largest gain until there are `leaves` pdfs, `fixed` of them elsewhere."""
        heap: list[tuple[float, int, _Leaf, _BestSplit]] = []
        ticket = 0  # breaks ties by age

        def offer(leaf: _Leaf) -> None:
            nonlocal ticket
            split = self.best_split(leaf.rows)
            if split is not None:
                heapq.heappush(heap, (-split.gain, ticket, leaf, split))
                ticket += 1

        for root in roots:
            offer(root)
        count = fixed + len(roots)
        while heap and count < self.options.leaves:
            _, _, leaf, split = heapq.heappop(heap)
            question = self.questions[split.question]
            neighbour = self.stats.contexts[leaf.rows, _COLUMNS[split.side]]
            yes = self.member_QV[split.question, neighbour] > 0
            leaf.question = (split.side, question)
            leaf.children = [_Leaf(leaf.rows[yes]), _Leaf(leaf.rows[~yes])]
            for child in leaf.children:
                offer(child)
            count += 1


def build_tree(
    stats: ContextStats,
    hmm: HmmModel,
    floor_D: np.ndarray,
    options: TreeOptions,
    sides: tuple[str, ...] = ("left", "right"),
) -> HmmModel:
    """HMMs with the same phones and states whose pdfs depend on the neighbours, by greedy likelihood gain.

    The states of silence keep one pdf each, whatever the neighbours. With fewer `leaves` than phone-states no question
    is asked. Self-loops are those of the model given, averaged over the pdfs of a state.

    Args:
        stats: statistics of the states of `hmm` in context.
        hmm: the topology, usually of a monophone model.
        floor_D: least variance by dimension.
        options: see TreeOptions.
        sides: the neighbours that questions may ask about.
    """
    questions = derive_questions(stats, hmm.states, floor_D)
    grower = _Grower(stats, questions, len(hmm.phones), floor_D, options, sides)
    roots: dict[tuple[int, int], _Leaf] = {}
    for phone, count in enumerate(hmm.states, 1):
        for state in range(count):
            rows = (stats.contexts[:, 1] == phone) & (stats.contexts[:, 3] == state)
            roots[phone, state] = _Leaf(np.nonzero(rows)[0])
    free = [leaf for (phone, _), leaf in roots.items() if phone != hmm.silence_number]
    grower.grow(free, fixed=len(roots) - len(free))
    self_loop: list[float] = []

    def number(leaf: _Leaf, stay: float) -> Node:
        if leaf.question is None:
            self_loop.append(stay)
            return len(self_loop) - 1
        yes, no = (number(child, stay) for child in leaf.children)
        return Split(*leaf.question, yes, no)

    trees = tuple(
        tuple(number(roots[phone, state], _mean_self_loop(hmm, phone, state)) for state in range(count))
        for phone, count in enumerate(hmm.states, 1)
    )
    return replace(hmm, num_pdfs=len(self_loop), trees=trees, self_loop=np.array(self_loop))


def _mean_self_loop(hmm: HmmModel, phone: int, state: int) -> float:
    return float(np.mean([hmm.self_loop[pdf] for pdf in leaves(hmm.trees[phone - 1][state])]))
