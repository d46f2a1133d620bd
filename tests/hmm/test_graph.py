"""HCLG against a list of everything it must accept, written down from lexicon, n-gram and HMMs."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kaldifst
import numpy as np
import pytest

from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.fst import FstArrays, add_word_penalty, read_fst, write_fst
from asr_hf.hmm.graph import GraphOptions, make_graph, with_self_loops
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel, Split, monophone_model

Key = tuple[tuple[int, ...], tuple[str, ...]]  # pdfs of the states passed through, words


def toy_model(lang: Lang, context: bool) -> HmmModel:
    random = np.random.default_rng(4)
    hmm = monophone_model(lang.phone_names, lang.silence, 2, 3)
    if context:
        pdf = itertools.count()
        trees: list[tuple[Split | int, ...]] = [tuple(next(pdf) for _ in range(3))]
        for phone in range(2, 6):
            vowels = frozenset([lang.phones["e"], lang.phones["i"]])
            first = Split("left", frozenset([1, phone]), next(pdf), next(pdf))
            last = Split("right", vowels, next(pdf), Split("left", vowels, next(pdf), next(pdf)))
            trees.append((first, last))
        hmm = replace(hmm, num_pdfs=next(pdf), trees=tuple(trees))
    return replace(hmm, self_loop=random.uniform(0.2, 0.8, size=hmm.num_pdfs))


def ngram(lang: Lang) -> dict[tuple[str, ...], tuple[float, float]]:
    table = {}
    for line in (lang.folder / "lm.arpa").read_text().splitlines():
        columns = line.split("\t")
        if len(columns) >= 2:
            backoff = float(columns[2]) if len(columns) > 2 else 0.0
            table[tuple(columns[1].split())] = (float(columns[0]) * math.log(10), backoff * math.log(10))
    return table


def lm_cost(table: dict[tuple[str, ...], tuple[float, float]], words: tuple[str, ...]) -> float:
    def log_probability(history: tuple[str, ...], word: str) -> float:
        if (*history, word) in table:
            return table[(*history, word)][0]
        return table.get(history, (0.0, 0.0))[1] + log_probability(history[1:], word)

    padded = ("<s>", *words, "</s>")
    return -sum(log_probability(padded[max(0, i - 2) : i], padded[i]) for i in range(1, len(padded)))


def everything(lang: Lang, hmm: HmmModel, options: GraphOptions, longest: int) -> dict[Key, float]:
    """Cost of every (pdfs, words) of up to `longest` words, each state held for one frame."""
    table, silent = ngram(lang), lang.silence_probability
    _, leave_P = hmm.log_stay_and_leave()
    accepted: dict[Key, float] = {}
    for words in (w for n in range(longest + 1) for w in itertools.product(lang.lexicon.words, repeat=n)):
        base = lm_cost(table, words) + options.word_penalty * len(words)
        for variants in itertools.product(*(lang.lexicon.variants[word] for word in words)):
            for silences in itertools.product((False, True), repeat=len(words) + 1):
                cost = base - sum(math.log(silent if s else 1 - silent) for s in silences)
                cost -= sum(math.log(variant.probability) for variant in variants)
                phones = [lang.silence] if silences[0] else []
                for variant, silence in zip(variants, silences[1:], strict=True):
                    phones += [*variant.phones, *([lang.silence] if silence else [])]
                numbers = [1, *(lang.phones[phone] for phone in phones), 1]
                pdfs = tuple(p for i in range(len(phones)) for p in hmm.pdfs(*numbers[i : i + 3]))
                cost -= options.transition_scale * sum(leave_P[pdf] for pdf in pdfs)
                accepted[pdfs, words] = min(cost, accepted.get((pdfs, words), np.inf))
    return accepted


def best_cost(graph: kaldifst.StdVectorFst, frames: list[int], words: list[int]) -> float:
    """Cost of the best path of a graph that reads these pdfs and writes these words; infinite if there is none."""
    spoken = kaldifst.compose(kaldifst.make_linear_acceptor([pdf + 1 for pdf in frames]), graph)
    kaldifst.arcsort(spoken, sort_type="olabel")
    path = kaldifst.shortest_path(kaldifst.compose(spoken, kaldifst.make_linear_acceptor(words)))
    if path.num_states == 0:
        return np.inf
    arrays = FstArrays.from_fst(path)
    return float(arrays.cost.sum() + arrays.final[np.isfinite(arrays.final)].sum())


@pytest.fixture(params=[False, True], ids=["monophone", "triphone"])
def graph_and_oracle(
    request: pytest.FixtureRequest, toy_lang: Lang, tmp_path: Path
) -> tuple[kaldifst.StdVectorFst, dict[Key, float], HmmModel, Lang, GraphOptions]:
    options = GraphOptions(self_loop_scale=0.3, transition_scale=0.7, word_penalty=0.4)
    hmm = toy_model(toy_lang, request.param)
    (tmp_path / "model").mkdir()
    hmm.save(tmp_path / "model")
    hmm = HmmModel.load(tmp_path / "model")
    report = make_graph(toy_lang.folder, tmp_path / "model", tmp_path / "graph", options)
    graph = read_fst(tmp_path / "graph" / "HCLG.fst")
    facts = json.loads((tmp_path / "graph" / "graph.json").read_text())
    assert facts["num_pdfs"] == hmm.num_pdfs
    assert (report.states, facts["word_penalty"]) == (graph.num_states, 0.4)
    kaldifst.arcsort(graph, sort_type="ilabel")
    return graph, everything(toy_lang, hmm, options, longest=3), hmm, toy_lang, options


def test_every_word_sequence_has_its_cost_with_any_durations(
    graph_and_oracle: tuple[kaldifst.StdVectorFst, dict[Key, float], HmmModel, Lang, GraphOptions],
) -> None:
    graph, accepted, hmm, lang, options = graph_and_oracle
    stay_P, _ = hmm.log_stay_and_leave()
    random = np.random.default_rng(0)
    short = [key for key in accepted if len(key[1]) <= 2 and key[0]]
    assert len({words for _, words in short}) == 1 + 4 + 16
    for place in random.permutation(len(short))[:250]:
        pdfs, words = short[place]
        repeats = random.integers(1, 4, size=len(pdfs))
        expected = accepted[pdfs, words]
        expected -= options.self_loop_scale * sum((n - 1) * stay_P[p] for p, n in zip(pdfs, repeats, strict=True))
        frames = np.repeat(pdfs, repeats).tolist()
        found = best_cost(graph, frames, [lang.words[word] for word in words])
        assert found == pytest.approx(expected, abs=0.02), (pdfs, words)  # determinisation rounds to 1/1024 an arc


def random_walks(graph: FstArrays, count: int, longest: int) -> Iterator[tuple[float, list[int], list[int]]]:
    """(cost, input labels, output labels) of random complete paths without epsilons."""
    random = np.random.default_rng(1)
    out: list[list[int]] = [[] for _ in graph.final]
    for arc, src in enumerate(graph.src):
        out[src].append(arc)
    while count:
        state, cost, inputs, outputs = graph.start, 0.0, [], []
        while len(inputs) <= longest:
            if np.isfinite(graph.final[state]) and random.random() < 0.5:
                yield cost + float(graph.final[state]), inputs, outputs
                count -= 1
                break
            if not out[state]:
                break
            arc = out[state][random.integers(len(out[state]))]
            cost += float(graph.cost[arc])
            inputs += [int(graph.ilabel[arc])] if graph.ilabel[arc] else []
            outputs += [int(graph.olabel[arc])] if graph.olabel[arc] else []
            state = int(graph.dst[arc])


def test_nothing_else_is_accepted_and_nothing_is_cheaper(
    graph_and_oracle: tuple[kaldifst.StdVectorFst, dict[Key, float], HmmModel, Lang, GraphOptions],
) -> None:
    graph, accepted, hmm, lang, options = graph_and_oracle
    stay_P, _ = hmm.log_stay_and_leave()
    names = {number: word for word, number in lang.words.items()}
    checked = 0
    for cost, inputs, outputs in random_walks(FstArrays.from_fst(graph), 400, longest=60):
        if len(outputs) > 3:
            continue
        pdfs = tuple(label - 1 for label, _ in itertools.groupby(inputs))
        held = sum((len(list(run)) - 1) * stay_P[label - 1] for label, run in itertools.groupby(inputs))
        key = (pdfs, tuple(names[label] for label in outputs))
        assert key in accepted
        assert cost >= accepted[key] - options.self_loop_scale * held - 0.02
        checked += 1
    assert checked > 100


def test_self_loops_are_not_met_on_another_way() -> None:
    """State 1 is reached by pdf 0, by pdf 1 and by epsilon: the loop of each belongs to its own arrival."""
    hmm = HmmModel(2, self_loop=np.array([0.5, 0.25]))
    graph = FstArrays.from_lists(
        [(0, 1, 1, 0, 0.0), (0, 1, 2, 0, 0.0), (0, 2, 0, 0, 0.0), (2, 1, 0, 0, 0.0), (1, 3, 1, 7, 0.0)], {3: 0.0}
    )
    looped = with_self_loops(graph, hmm, GraphOptions(self_loop_scale=1.0, transition_scale=1.0)).to_fst()
    kaldifst.arcsort(looped, sort_type="ilabel")
    leave = [math.log(2), -math.log(0.75)]
    assert best_cost(looped, [1, 1, 0], [7]) == pytest.approx(leave[1] - math.log(0.25) + leave[0], abs=1e-5)
    assert best_cost(looped, [0, 0], [7]) == pytest.approx(leave[0] + min(leave[0] + 0, math.log(2)), abs=1e-5)
    assert best_cost(looped, [0], [7]) == pytest.approx(leave[0], abs=1e-5)  # by epsilon
    assert best_cost(looped, [0, 1, 0], [7]) == np.inf
    assert best_cost(looped, [1, 0, 1], [7]) == np.inf


def test_arrays_and_fsts_are_the_same(toy_lang: Lang, tmp_path: Path) -> None:
    grammar = read_fst(toy_lang.folder / "G.fst")
    again = FstArrays.from_fst(grammar).to_fst()
    assert again.to_str(show_weight_one=True) == grammar.to_str(show_weight_one=True)
    assert again.start == grammar.start
    write_fst(again, tmp_path / "again.fst")
    assert read_fst(tmp_path / "again.fst").to_str() == grammar.to_str()
    empty = FstArrays.from_fst(kaldifst.StdVectorFst())
    assert empty.to_fst().num_states == 0
    with pytest.raises(InputError, match="no OpenFst file"):
        read_fst(tmp_path / "missing.fst")


def test_word_penalty_is_paid_per_word() -> None:
    graph = FstArrays.from_lists([(0, 1, 1, 5, 0.5), (1, 2, 1, 0, 0.25), (2, 2, 1, 6, 1.0)], {2: 0.125}).to_fst()
    paid = add_word_penalty(graph, 0.75)
    assert best_cost(graph, [0, 0, 0, 0], [5, 6, 6]) == pytest.approx(0.5 + 0.25 + 2.0 + 0.125)
    assert best_cost(paid, [0, 0, 0, 0], [5, 6, 6]) == pytest.approx(0.5 + 0.25 + 2.0 + 0.125 + 3 * 0.75)


def test_other_phones_imported_models_and_bad_scales_are_refused(toy_lang: Lang, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    HmmModel(5).save(tmp_path / "model")
    with pytest.raises(InputError, match="imported"):
        make_graph(toy_lang.folder, tmp_path / "model", tmp_path / "graph", GraphOptions())
    monophone_model(("SIL", "x"), "SIL", 3, 3).save(tmp_path / "model")
    with pytest.raises(InputError, match="different phones"):
        make_graph(toy_lang.folder, tmp_path / "model", tmp_path / "graph", GraphOptions())
    assert not (tmp_path / "graph").exists()
    with pytest.raises(OptionError, match=r"graph\.self_loop_scale"):
        GraphOptions(self_loop_scale=-1.0)
    with pytest.raises(InputError, match="LANG"):
        Lang.load(tmp_path / "nowhere")
