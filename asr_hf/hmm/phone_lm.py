"""The phone n-gram of a denominator graph: no smoothing and hard back-off, so that it has few arcs.

Histories are the last n − 1 phones. There are no back-off arcs: a history that is pruned disappears, and its counts go
to the history without its first phone (Povey et al. 2016, "Purely sequence-trained neural networks for ASR based on
lattice-free MMI", section 2.1; Kaldi's chain-est-phone-lm). Log-likelihoods are natural.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from asr_hf.errors import InputError
from asr_hf.options import option, require

EDGE = 0  # the beginning of an utterance in a history, its end as the next phone

History = tuple[int, ...]


@dataclass
class PhoneLmOptions:
    """Phone n-gram of the denominator."""

    order: int = option(4, "n of the phone n-gram")
    unpruned_order: int = option(3, "n-grams up to this order are never pruned, of what the data hold")
    extra_states: int = option(1000, "histories kept beyond those of the unpruned order")

    def __post_init__(self) -> None:
        require(self.order >= 2, "chain.lm.order", self.order, "must be at least 2")
        require(self.unpruned_order >= 2, "chain.lm.unpruned_order", self.unpruned_order, "must be at least 2")
        require(self.extra_states >= 0, "chain.lm.extra_states", self.extra_states, "must be 0 or more")


@dataclass(frozen=True)
class PhoneLm:
    """An n-gram as an automaton: H histories, A arcs sorted by (src, phone); probabilities of a history sum to 1.

    Attributes:
        histories: the phones of each; the first is the beginning of an utterance, (EDGE,).
        src_A, phone_A, dst_A: int64, from a history by a phone to a history.
        probability_A: float64.
        end_H: float64, probability that the utterance ends.
    """

    histories: tuple[History, ...]
    src_A: np.ndarray
    phone_A: np.ndarray
    dst_A: np.ndarray
    probability_A: np.ndarray
    end_H: np.ndarray

    def __str__(self) -> str:
        return f"{len(self.histories)} histories, {len(self.src_A)} arcs"


def estimate_phone_lm(sentences: Iterable[tuple[int, ...]], options: PhoneLmOptions) -> PhoneLm:
    """Count, prune and normalise.

    Args:
        sentences: phone numbers (1, 2, …) of utterances.
        options: see PhoneLmOptions.

    Raises:
        InputError: there is no phone.
    """
    counts = count_ngrams(sentences, options.order)
    if not any(phone != EDGE for following in counts.values() for phone in following):
        raise InputError("the phone n-gram has no phone to count", "Give alignments or transcripts with words.")
    return _automaton(_Pruning(counts, options).run())


def count_ngrams(sentences: Iterable[tuple[int, ...]], order: int) -> dict[History, Counter[int]]:
    """{history of up to order − 1 phones: {next phone or EDGE: count}}; histories begin with one EDGE."""
    counts: dict[History, Counter[int]] = {}
    for sentence in sentences:
        history: History = (EDGE,)
        for phone in (*sentence, EDGE):
            counts.setdefault(history, Counter())[phone] += 1
            history = (*history, phone)[-(order - 1) :]
    return counts


def log_likelihood(counts: Counter[int]) -> float:
    """Σ_p c_p log(c_p/Σc) of one history's counts."""
    total = counts.total()
    return sum(count * math.log(count / total) for count in counts.values())


class _Pruning:
    """Merges histories into shorter ones, always the one that costs least log-likelihood.

    A history may go if it is as long as the unpruned order or longer, no longer history ends in it, and none continues
    it by one phone.
    """

    def __init__(self, counts: dict[History, Counter[int]], options: PhoneLmOptions) -> None:
        self.counts, self.options = counts, options
        self.longer: dict[History, set[History]] = {}  # histories with one phone more before
        self.continuations: Counter[History] = Counter(history[:-1] for history in counts)
        basic = {history for history in counts if self._is_basic(history)}
        for history in counts:
            while not self._is_basic(history):
                self.longer.setdefault(history[1:], set()).add(history)
                history = history[1:]
            basic.add(history)
        self.wanted = len(basic) + options.extra_states
        self.queue: list[tuple[float, History]] = []

    def _is_basic(self, history: History) -> bool:
        return len(history) < self.options.unpruned_order

    def run(self) -> dict[History, Counter[int]]:
        for history in sorted(self.counts):
            self._offer(history)
        while self.queue and len(self.counts) > self.wanted:
            loss, history = heapq.heappop(self.queue)
            if self._may_go(history) and loss == self._loss(history):
                self._merge(history)
        return self.counts

    def _may_go(self, history: History) -> bool:
        return (
            history in self.counts
            and not self._is_basic(history)
            and not self.longer.get(history)
            and not self.continuations[history]
        )

    def _loss(self, history: History) -> float:
        own, shorter = self.counts[history], self.counts.get(history[1:], Counter())
        return log_likelihood(own) + log_likelihood(shorter) - log_likelihood(own + shorter)

    def _offer(self, history: History) -> None:
        if self._may_go(history):
            heapq.heappush(self.queue, (self._loss(history), history))

    def _merge(self, history: History) -> None:
        shorter = history[1:]
        own = self.counts.pop(history)
        if shorter not in self.counts:
            self.counts[shorter] = Counter()
            self.continuations[shorter[:-1]] += 1
        self.counts[shorter].update(own)
        self.longer[shorter].remove(history)
        self.continuations[history[:-1]] -= 1
        for changed in sorted({*self.longer[shorter], shorter, history[:-1]}):
            self._offer(changed)


def _automaton(counts: dict[History, Counter[int]]) -> PhoneLm:
    histories = sorted(counts, key=lambda history: (history != (EDGE,), history))
    number = {history: place for place, history in enumerate(histories)}

    def after(history: History, phone: int) -> int:
        longest = (*history, phone)
        return next(number[longest[cut:]] for cut in range(len(longest) + 1) if longest[cut:] in number)

    arcs = [
        (number[history], phone, after(history, phone), count / counts[history].total())
        for history in histories
        for phone, count in sorted(counts[history].items())
        if phone != EDGE
    ]
    src_A, phone_A, dst_A = (np.array([arc[k] for arc in arcs], dtype=np.int64) for k in range(3))
    end_H = np.array([counts[history][EDGE] / counts[history].total() for history in histories])
    return PhoneLm(tuple(histories), src_A, phone_A, dst_A, np.array([arc[3] for arc in arcs]), end_H)
