import itertools
import math
from collections.abc import Callable
from pathlib import Path

import kaldifst
import pytest

from asr_hf.errors import InputError
from asr_hf.hmm.fst import FstArrays, read_fst
from asr_hf.hmm.lang import Lang, LangOptions, make_lang


def read_arpa(path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    """{n-gram: (ln probability, ln back-off)}, read without any library."""
    table = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        columns = line.split("\t")
        if len(columns) >= 2:
            backoff = float(columns[2]) if len(columns) > 2 else 0.0
            table[tuple(columns[1].split())] = (float(columns[0]) * math.log(10), backoff * math.log(10))
    return table


def log_probability(table: dict[tuple[str, ...], tuple[float, float]], history: tuple[str, ...], word: str) -> float:
    if (*history, word) in table:
        return table[(*history, word)][0]
    return table.get(history, (0.0, 0.0))[1] + log_probability(table, history[1:], word)


@pytest.mark.parametrize("order", [2, 3])
def test_every_history_sums_to_one_over_the_whole_vocabulary(
    tmp_path: Path, order: int, write_text: Callable[..., None]
) -> None:
    words = ["A", "B", "C", "NEVER"]
    (tmp_path / "lexicon.txt").write_text("".join(f"{word} p{word}\n" for word in words))
    # after A came every word but NEVER; after B and C only some
    write_text(tmp_path / "text", [("A", "A", "B", "A", "C", "A"), ("A", "B"), ("C", "A", "B"), ("B", "A"), ()])
    make_lang(tmp_path / "lang", tmp_path / "lexicon.txt", tmp_path / "text", LangOptions(order=order))
    table = read_arpa(tmp_path / "lang" / "lm.arpa")
    histories = [h for n in range(order) for h in itertools.product(["<s>", *words], repeat=n)]
    for history in histories:
        total = sum(math.exp(log_probability(table, history, word)) for word in [*words, "</s>"])
        assert total == pytest.approx(1.0, abs=1e-5), history
    assert math.exp(table[("NEVER",)][0]) > 0.01


def test_grammar_accepts_every_sentence_at_the_cost_of_the_arpa_model(toy_lang: Lang) -> None:
    table = read_arpa(toy_lang.folder / "lm.arpa")
    grammar = read_fst(toy_lang.folder / "G.fst")
    backoff = toy_lang.words["#0"]
    arrays = FstArrays.from_fst(grammar)
    arrays.ilabel[arrays.ilabel == backoff] = 0
    grammar = arrays.to_fst()
    kaldifst.arcsort(grammar, sort_type="ilabel")
    for length in range(4):
        for words in itertools.product(toy_lang.lexicon.words, repeat=length):
            acceptor = kaldifst.make_linear_acceptor([toy_lang.words[word] for word in words])
            best = kaldifst.shortest_path(kaldifst.compose(acceptor, grammar))
            cost = _total_cost(best)
            history = ("<s>", *words)
            exact = -sum(
                log_probability(table, history[max(0, i - 1) : i + 1], word) for i, word in enumerate([*words, "</s>"])
            )
            assert cost == pytest.approx(exact, abs=1e-3)


def _total_cost(path: kaldifst.StdVectorFst) -> float:
    arrays = FstArrays.from_fst(path)
    return float(arrays.cost.sum() + arrays.final[arrays.final < float("inf")].sum())


def test_unknown_word_error_names_utterance_and_word(tmp_path: Path, write_text: Callable[..., None]) -> None:
    (tmp_path / "lexicon.txt").write_text("A a\n")
    write_text(tmp_path / "text", [("A",), ("A", "ZEBRA")])
    with pytest.raises(InputError, match=r"u001 has the word ZEBRA") as caught:
        make_lang(tmp_path / "lang", tmp_path / "lexicon.txt", tmp_path / "text", LangOptions())
    assert "lang.unknown" in caught.value.remedy
    assert not (tmp_path / "lang").exists()


def test_unknown_word_option_maps_words_and_adds_a_pronunciation(
    tmp_path: Path, write_text: Callable[..., None]
) -> None:
    (tmp_path / "lexicon.txt").write_text("A a\n")
    write_text(tmp_path / "text", [("A",), ("A", "ZEBRA")])
    options = LangOptions(unknown="<unk>")
    lang = make_lang(tmp_path / "lang", tmp_path / "lexicon.txt", tmp_path / "text", options)
    assert lang.lexicon.variants["<unk>"][0].phones == ("SPN",)
    assert lang.known_words("u", ("ZEBRA", "A"), "text") == ("<unk>", "A")
    assert ("A", "<unk>") in read_arpa(tmp_path / "lang" / "lm.arpa")


def test_load_gives_back_what_was_made(toy_lang: Lang) -> None:
    assert toy_lang.phone_names == ("SIL", "d", "e", "i", "r")
    assert toy_lang.words["<eps>"] == 0
    assert toy_lang.silence_probability == 0.3
    assert toy_lang.disambiguation == [toy_lang.phones[f"#{number}"] for number in range(4)]
    assert [entry.probability for entry in toy_lang.lexicon.variants["READ"]] == [0.5, 1.0]


def test_a_damaged_arpa_file_is_refused(tmp_path: Path, write_text: Callable[..., None]) -> None:
    (tmp_path / "lexicon.txt").write_text("A a\n")
    write_text(tmp_path / "text", [("A",)])
    with pytest.raises(InputError, match=r"no ARPA model .*lm\.arpa"):
        make_lang(tmp_path / "lang", tmp_path / "lexicon.txt", tmp_path / "text", LangOptions(), tmp_path / "lm.arpa")
    (tmp_path / "lm.arpa").write_text("no language model\n")
    with pytest.raises(InputError, match="ARPA"):
        make_lang(tmp_path / "lang", tmp_path / "lexicon.txt", tmp_path / "text", LangOptions(), tmp_path / "lm.arpa")


def test_pruning_leaves_fewer_ngrams_and_a_whole_model(tmp_path: Path, write_text: Callable[..., None]) -> None:
    (tmp_path / "lexicon.txt").write_text("A a\nB b\nC c\n")
    write_text(tmp_path / "text", [("A", "B", "C"), ("A", "B", "A"), ("C", "A", "B"), ("B", "C")] * 3)
    sizes = []
    for threshold in (0.0, 0.05):
        make_lang(tmp_path / "lang", tmp_path / "lexicon.txt", tmp_path / "text", LangOptions(prune=threshold))
        table = read_arpa(tmp_path / "lang" / "lm.arpa")
        sizes.append(len(table))
        for history in itertools.product("ABC", repeat=2):
            total = sum(math.exp(log_probability(table, history, word)) for word in ("A", "B", "C", "</s>"))
            assert total == pytest.approx(1.0, abs=1e-4)
    assert sizes[1] < sizes[0]
