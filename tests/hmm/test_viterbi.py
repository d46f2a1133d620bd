"""Viterbi against enumeration: state sequences of random graphs; pronunciations and durations of transcripts."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel, Split, monophone_model
from asr_hf.hmm.training_graph import TrainingGraph, training_graph
from asr_hf.hmm.viterbi import best_paths


def random_graph(random: np.random.Generator, states: int, pdfs: int) -> TrainingGraph:
    width = 3
    source = np.stack([np.arange(states), *(random.integers(0, states, size=(2, states)))], axis=1)
    log_probability = np.log(random.random((states, width)))
    log_probability[random.random((states, width)) < 0.2] = -np.inf
    initial = np.where(random.random(states) < 0.5, np.log(random.random(states)), -np.inf)
    final = np.where(random.random(states) < 0.5, np.log(random.random(states)), -np.inf)
    pdf = random.integers(0, pdfs, size=states)
    return TrainingGraph(pdf, np.arange(states), source, log_probability, initial, final)


def enumerate_paths(
    graph: TrainingGraph, emission_TS: np.ndarray, stay_P: np.ndarray, leave_P: np.ndarray
) -> Iterator[tuple[float, tuple[int, ...]]]:
    frames, states = emission_TS.shape
    for path in itertools.product(range(states), repeat=frames):
        score = graph.initial[path[0]] + emission_TS[0, path[0]]
        for t in range(1, frames):
            before, now = path[t - 1], path[t]
            moves = [
                graph.log_probability[now, k] + leave_P[graph.pdf[before]]
                for k in range(1, graph.source.shape[1])
                if graph.source[now, k] == before
            ]
            if now == before:
                moves.append(stay_P[graph.pdf[now]])
            score += max(moves, default=-np.inf) + emission_TS[t, now]
        yield score + graph.final[path[-1]] + leave_P[graph.pdf[path[-1]]], path


def test_best_paths_equal_enumeration_on_random_graphs_of_several_sizes() -> None:
    random = np.random.default_rng(0)
    stay_P = np.log(random.uniform(0.1, 0.9, size=5))
    leave_P = np.log1p(-np.exp(stay_P))
    graphs = [random_graph(random, int(random.integers(2, 5)), 5) for _ in range(25)]
    emissions = [random.normal(size=(int(random.integers(1, 6)), len(g.pdf))).astype(np.float32) for g in graphs]
    found = best_paths(graphs, emissions, stay_P, leave_P)
    missing = 0
    for graph, emission, path in zip(graphs, emissions, found, strict=True):
        best, states = max(enumerate_paths(graph, emission, stay_P, leave_P))
        if best == -np.inf:
            missing += 1
            assert path is None
        else:
            assert path is not None
            assert path.log_likelihood == pytest.approx(best, abs=1e-5)
            assert tuple(path.states_T) == states
    assert 0 < missing < 15


def triphone_model(mono: HmmModel, random: np.random.Generator) -> HmmModel:
    """Every state of every phone but the silence asks about its left and, on one side, its right neighbour."""
    trees, pdf = [], itertools.count()
    for phone, states in enumerate(mono.states, 1):
        row: list[Split | int] = []
        for _ in range(states):
            if phone == mono.silence_number:
                row.append(next(pdf))
                continue
            left, right = (frozenset(random.permutation(5)[:2].tolist()) for _ in range(2))
            row.append(Split("left", left, next(pdf), Split("right", right, next(pdf), next(pdf))))
        trees.append(tuple(row))
    count = next(pdf)
    return replace(mono, num_pdfs=count, trees=tuple(trees), self_loop=random.uniform(0.2, 0.8, size=count))


def sayings(words: tuple[str, ...], lang: Lang) -> Iterator[tuple[float, list[int]]]:
    """Every phone sequence of a transcript with its log probability, written down from the definition."""
    silent = lang.silence_probability
    for variants in itertools.product(*(lang.lexicon.variants[word] for word in words)):
        for silences in itertools.product((False, True), repeat=len(words) + 1):
            log = sum(math.log(silent if s else 1 - silent) for s in silences)
            log += sum(math.log(variant.probability) for variant in variants)
            phones = [lang.silence] if silences[0] else []
            for variant, silence in zip(variants, silences[1:], strict=True):
                phones += [*variant.phones, *([lang.silence] if silence else [])]
            if phones:
                yield log, [lang.phones[phone] for phone in phones]


def best_by_enumeration(words: tuple[str, ...], lang: Lang, hmm: HmmModel, scores_TP: np.ndarray) -> float:
    stay_P, leave_P = hmm.log_stay_and_leave()
    best = -np.inf
    frames = len(scores_TP)
    for log, phones in sayings(words, lang):
        padded = [hmm.silence_number, *phones, hmm.silence_number]
        pdfs = [pdf for i in range(len(phones)) for pdf in hmm.pdfs(*padded[i : i + 3])]
        for cuts in itertools.combinations(range(1, frames), len(pdfs) - 1):
            bounds = (0, *cuts, frames)
            score = log
            for pdf, begin, end in zip(pdfs, bounds, bounds[1:], strict=False):
                score += scores_TP[begin:end, pdf].sum() + (end - begin - 1) * stay_P[pdf] + leave_P[pdf]
            best = max(best, score)
    return best


@pytest.mark.parametrize("words", [("RE",), ("READ",), ("RE", "RE"), ()])
@pytest.mark.parametrize("context", [False, True])
def test_training_graphs_equal_enumeration_of_pronunciations_silences_and_durations(
    toy_lang: Lang, words: tuple[str, ...], context: bool
) -> None:
    random = np.random.default_rng(1)
    mono = monophone_model(toy_lang.phone_names, toy_lang.silence, 2, 2)
    hmm = triphone_model(mono, random) if context else replace(mono, self_loop=random.uniform(0.2, 0.8, mono.num_pdfs))
    graph = training_graph(words, toy_lang, hmm)
    for frames in (1, 5, 9, 11):
        scores_TP = (3 * random.normal(size=(frames, hmm.num_pdfs))).astype(np.float32)
        exact = best_by_enumeration(words, toy_lang, hmm, scores_TP)
        (path,) = best_paths([graph], [scores_TP[:, graph.pdf]], *hmm.log_stay_and_leave())
        assert (path.log_likelihood if path else -np.inf) == pytest.approx(exact, abs=1e-4)


def test_a_path_is_the_same_alone_and_among_others(toy_lang: Lang) -> None:
    random = np.random.default_rng(2)
    hmm = monophone_model(toy_lang.phone_names, toy_lang.silence, 3, 3)
    transcripts = [("RE",), ("DID", "READ", "RED"), ("READ", "RE"), ("RE", "RE", "RE")]
    graphs = [training_graph(words, toy_lang, hmm) for words in transcripts]
    emissions = [
        random.normal(size=(frames, len(graph.pdf))).astype(np.float32)
        for frames, graph in zip((40, 60, 12, 90), graphs, strict=True)
    ]
    together = best_paths(graphs, emissions, *hmm.log_stay_and_leave())
    assert together[2] is None  # 12 frames, 15 states
    for graph, emission, path in zip(graphs, emissions, together, strict=True):
        (alone,) = best_paths([graph], [emission], *hmm.log_stay_and_leave())
        if path is None or alone is None:
            assert path is alone
        else:
            assert alone.log_likelihood == path.log_likelihood
            assert np.array_equal(alone.states_T, path.states_T)
