"""The phone n-gram against one that is counted, pruned and followed naively, on small data."""

import math
from collections import Counter

import numpy as np
import pytest

from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.phone_lm import PhoneLm, PhoneLmOptions, estimate_phone_lm

Sentences = list[tuple[int, ...]]


def sentences(seed: int, count: int = 40, phones: int = 4) -> Sentences:
    random = np.random.default_rng(seed)
    likely = random.dirichlet(np.full(phones, 0.4), size=phones + 1)
    found = []
    for _ in range(count):
        sentence = [0]
        for _ in range(int(random.integers(0, 9))):
            sentence.append(1 + int(random.choice(phones, p=likely[sentence[-1]])))
        found.append(tuple(sentence[1:]))
    return found


def naive(data: Sentences, options: PhoneLmOptions) -> dict[tuple[int, ...], Counter[int]]:
    """Histories and counts, each merge chosen by trying all of them and adding up the log-likelihood of all data."""

    def total(table: dict[tuple[int, ...], Counter[int]]) -> float:
        return sum(n * math.log(n / sum(c.values())) for c in table.values() for n in c.values())

    table: dict[tuple[int, ...], Counter[int]] = {}
    for sentence in data:
        padded = (0, *sentence, 0)
        for i in range(1, len(padded)):
            table.setdefault(padded[max(0, i - options.order + 1) : i], Counter())[padded[i]] += 1
    ends = {h[cut:] for h in table for cut in range(len(h))}
    basic = {
        h for h in ends if len(h) < options.unpruned_order and (h in table or len(h) + 1 == options.unpruned_order)
    }
    while len(table) > len(basic) + options.extra_states:
        merges = []
        for history in table:
            if len(history) < options.unpruned_order:
                continue
            if any(other != history and other[-len(history) :] == history for other in table):
                continue
            if any(other[:-1] == history for other in table):
                continue
            merged = {h: Counter(c) for h, c in table.items() if h != history}
            merged.setdefault(history[1:], Counter()).update(table[history])
            merges.append((round(total(table) - total(merged), 9), history, merged))
        if not merges:
            break
        table = min(merges, key=lambda merge: merge[:2])[2]
    return table


def probability(lm: PhoneLm, sentence: tuple[int, ...]) -> float:
    arcs = {(src, phone): (dst, p) for src, phone, dst, p in zip(lm.src_A, lm.phone_A, lm.dst_A, lm.probability_A)}  # noqa: B905
    state, result = 0, 1.0
    for phone in sentence:
        if (state, phone) not in arcs:
            return 0.0
        state, p = arcs[state, phone]
        result *= p
    return result * lm.end_H[state]


@pytest.mark.parametrize(
    "options",
    [
        PhoneLmOptions(order=4, unpruned_order=3, extra_states=5),
        PhoneLmOptions(order=4, unpruned_order=3, extra_states=0),
        PhoneLmOptions(order=4, unpruned_order=2, extra_states=7),
        PhoneLmOptions(order=3, unpruned_order=3, extra_states=1000),
        PhoneLmOptions(order=5, unpruned_order=2, extra_states=4),
        PhoneLmOptions(order=2, unpruned_order=2, extra_states=0),
    ],
    ids=str,
)
def test_histories_counts_and_probabilities_are_those_of_a_naive_estimate(options: PhoneLmOptions) -> None:
    for seed in range(3):
        data = sentences(seed)
        lm, expected = estimate_phone_lm(data, options), naive(data, options)
        assert sorted(lm.histories) == sorted(expected)
        assert lm.histories[0] == (0,)
        for src, phone, dst, p in zip(lm.src_A, lm.phone_A, lm.dst_A, lm.probability_A, strict=True):
            history = lm.histories[src]
            assert p == pytest.approx(expected[history][phone] / expected[history].total())
            longest = (*history, int(phone))
            assert lm.histories[dst] == next(longest[c:] for c in range(9) if longest[c:] in expected)
        for state, history in enumerate(lm.histories):
            assert lm.probability_A[lm.src_A == state].sum() + lm.end_H[state] == pytest.approx(1.0)
            assert set(lm.phone_A[lm.src_A == state]) == set(expected[history]) - {0}
        assert all(probability(lm, sentence) > 0 for sentence in data)
        again = estimate_phone_lm(data, options)
        assert again.histories == lm.histories
        assert np.array_equal(again.probability_A, lm.probability_A)


def test_pruning_loses_little_likelihood_and_no_history_is_shorter_than_needed() -> None:
    data = sentences(5, count=300, phones=6)
    sizes, levels = [], []
    for extra in (10_000, 60, 20, 0):
        lm = estimate_phone_lm(data, PhoneLmOptions(extra_states=extra))
        sizes.append(len(lm.histories))
        levels.append(sum(math.log(probability(lm, sentence)) for sentence in data))
        assert all(len(history) >= 2 or history == (0,) for history in lm.histories)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert levels[0] > levels[1] > levels[2] > levels[3]


def test_no_phones_and_impossible_orders_are_refused() -> None:
    with pytest.raises(InputError, match="no phone"):
        estimate_phone_lm([(), ()], PhoneLmOptions())
    with pytest.raises(OptionError, match=r"chain\.lm\.order"):
        PhoneLmOptions(order=1)
    with pytest.raises(OptionError, match=r"chain\.lm\.unpruned_order"):
        PhoneLmOptions(unpruned_order=1)
    with pytest.raises(OptionError, match=r"chain\.lm\.extra_states"):
        PhoneLmOptions(extra_states=-1)
