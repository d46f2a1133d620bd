"""The HMM of one transcript: every pronunciation of its words, with optional silences, in phonetic context.

Shape suffixes: S emitting states, K incoming transitions of a state (padded).
"""

import math
from dataclasses import dataclass

import numpy as np

from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel

START, END = -1, -2  # ends of edges that are no phone
_ANY = -1  # neighbour of a phone whose states do not depend on it

Edge = tuple[int, int, float]  # (from, to, log probability)


@dataclass(frozen=True)
class TrainingGraph:
    """The emitting states of a transcript's HMM.

    Attributes:
        pdf: (S,) pdf of each state.
        state: (S,) its number among all phone-states of the model.
        source: (S, K) states from which each state is entered; column 0 is the state itself (its self-loop).
        log_probability: (S, K) of pronunciation and silence on those transitions, −inf where padded.
        initial, final: (S,) log probabilities of beginning and of ending there, −inf elsewhere.
    """

    pdf: np.ndarray
    state: np.ndarray
    source: np.ndarray
    log_probability: np.ndarray
    initial: np.ndarray
    final: np.ndarray


def phone_network(words: tuple[str, ...], lang: Lang) -> tuple[list[int], list[Edge]]:
    """Phone numbers, and edges between their places: optional silence, word, optional silence, …, word, silence."""
    phones: list[int] = []
    edges: list[Edge] = []
    silent = lang.silence_probability
    ends: list[tuple[int, float]] = [(START, 0.0)]

    def append_phones(names: tuple[str, ...], log_probability: float) -> int:
        first = len(phones)
        phones.extend(lang.phones[name] for name in names)
        edges.extend((end, first, log + log_probability) for end, log in ends)
        edges.extend((place, place + 1, 0.0) for place in range(first, len(phones) - 1))
        return len(phones) - 1

    def append_silence() -> list[tuple[int, float]]:
        if silent == 0:
            return ends
        silence = append_phones((lang.silence,), math.log(silent))
        return [*((end, log + math.log1p(-silent)) for end, log in ends), (silence, 0.0)]

    ends = append_silence()
    for word in words:
        ends = [(append_phones(v.phones, math.log(v.probability)), 0.0) for v in lang.lexicon.variants[word]]
        ends = append_silence()
    edges.extend((end, END, log) for end, log in ends if end != START)
    return phones, edges


def network_in_context(
    phones: list[int], edges: list[Edge], hmm: HmmModel
) -> tuple[list[tuple[int, int, int]], list[Edge]]:
    """Copies (left, phone, right) of every place for the neighbours it can have, and the edges between the copies."""

    def name(place: int) -> int:
        return phones[place] if place >= 0 else hmm.silence_number

    lefts: list[set[int]] = [set() for _ in phones]
    rights: list[set[int]] = [set() for _ in phones]
    for source, target, _ in edges:
        if target >= 0:
            lefts[target].add(name(source))
        if source >= 0:
            rights[source].add(name(target))
    copies: list[tuple[int, int, int]] = []
    copies_of: list[list[int]] = []
    for place, phone in enumerate(phones):
        contexts = [(_ANY, _ANY)]
        if hmm.depends_on_context(phone):
            contexts = [(left, right) for left in sorted(lefts[place]) for right in sorted(rights[place])]
        copies_of.append(list(range(len(copies), len(copies) + len(contexts))))
        copies.extend((left, phone, right) for left, right in contexts)
    between: list[Edge] = []
    for source, target, log in edges:
        out = [START] if source < 0 else [c for c in copies_of[source] if copies[c][2] in (_ANY, name(target))]
        into = [END] if target < 0 else [c for c in copies_of[target] if copies[c][0] in (_ANY, name(source))]
        between.extend((a, b, log) for a in out for b in into)
    return copies, between


def training_graph(words: tuple[str, ...], lang: Lang, hmm: HmmModel) -> TrainingGraph:
    """The HMM of a transcript, whose words the lexicon has.

    An edge of the utterance counts as silence in the context of its first and last phone.
    """
    copies, edges = network_in_context(*phone_network(words, lang), hmm)
    lengths = np.array([hmm.states[phone - 1] for _, phone, _ in copies])
    first = np.cumsum(lengths) - lengths
    last = first + lengths - 1
    total = int(lengths.sum())
    pdf = np.concatenate([hmm.pdfs(max(left, 0), phone, max(right, 0)) for left, phone, right in copies])
    state = np.concatenate([np.arange(n) + hmm.first_state[phone - 1]
                            for n, (_, phone, _) in zip(lengths, copies, strict=True)])  # fmt: skip
    incoming: list[list[tuple[int, float]]] = [[(s, 0.0), (s - 1, 0.0)] for s in range(total)]
    for begin in first:
        incoming[begin].pop()
    initial, final = np.full(total, -np.inf), np.full(total, -np.inf)
    for source, target, log in edges:
        if source == START:
            initial[first[target]] = max(initial[first[target]], log)
        elif target == END:
            final[last[source]] = max(final[last[source]], log)
        else:
            incoming[first[target]].append((int(last[source]), log))
    width = max(len(arcs) for arcs in incoming)
    source_SK = np.zeros((total, width), dtype=np.int64)
    log_SK = np.full((total, width), -np.inf)
    for s, arcs in enumerate(incoming):
        for k, (origin, log) in enumerate(arcs):
            source_SK[s, k], log_SK[s, k] = origin, log
    return TrainingGraph(pdf.astype(np.int64), state.astype(np.int64), source_SK, log_SK, initial, final)
