"""A toy language with homophones, variants and a prefix word, and toy speech drawn from its HMMs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asr_hf.data.archive import write_matrices
from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import write_fingerprint
from asr_hf.hmm.chain import chain_model
from asr_hf.hmm.lang import Lang, LangOptions, make_lang
from asr_hf.hmm.model import HmmModel, Split

LEXICON = """\
# a comment
;;; another
RED  r e d
READ 0.5 r e d
READ(2) r i d
RE   r e
DID  d i d
"""
SENTENCES = (
    ("RED",), ("RE", "DID"), ("READ", "DID"), ("DID", "RED", "RE"), ("RED", "RED"), ("DID",), ("RE", "READ"),
    ("DID", "DID", "RED"), (),
)  # fmt: skip


@pytest.fixture
def write_text() -> Callable[[Path, list[tuple[str, ...]]], None]:
    def write(path: Path, sentences: list[tuple[str, ...]]) -> None:
        lines = (" ".join((f"u{number:03d}", *words)) + "\n" for number, words in enumerate(sentences))
        path.write_text("".join(lines), encoding="utf-8")

    return write


@pytest.fixture
def toy_lang(tmp_path: Path, write_text: Callable[..., None]) -> Lang:
    (tmp_path / "lexicon.txt").write_text(LEXICON)
    write_text(tmp_path / "text", list(SENTENCES))
    make_lang(tmp_path / "lang", tmp_path / "lexicon.txt", tmp_path / "text", LangOptions(silence_probability=0.3))
    return Lang.load(tmp_path / "lang")


@pytest.fixture
def toy_feats(tmp_path: Path, toy_lang: Lang, write_text: Callable[..., None]) -> Path:
    """FEATS of 48 utterances: every state of every phone has a Gaussian of its own, coloured by the next phone."""
    random = np.random.default_rng(3)
    folder = tmp_path / "feats"
    folder.mkdir()
    means = random.normal(scale=3.0, size=(len(toy_lang.phone_names) + 1, 3, 4))
    shift = random.normal(scale=1.0, size=(len(toy_lang.phone_names) + 1, 4))
    sentences, matrices = [], []
    for number in range(48):
        words = SENTENCES[number % len(SENTENCES)]
        phones = [toy_lang.silence] if random.random() < 0.6 or not words else []
        for word in words:
            variants = toy_lang.lexicon.variants[word]
            phones += variants[int(random.integers(len(variants)))].phones
            phones += [toy_lang.silence] if random.random() < 0.3 else []
        numbers = [toy_lang.phones[phone] for phone in phones]
        frames = [
            means[phone, state] + shift[following] * (phone != 1) + random.normal(size=4)
            for phone, following in zip(numbers, [*numbers[1:], 1], strict=True)
            for state in range(3)
            for _ in range(1 + int(random.geometric(0.4)))
        ]
        sentences.append(words)
        matrices.append((f"u{number:03d}", np.array(frames, dtype=np.float32)))
    write_matrices(folder / "feats", matrices)
    write_fingerprint(folder, FeatureOptions(), 4, 8000)
    write_text(folder / "text", sentences)
    return folder


@pytest.fixture(params=["mono", "biphone", "triphone"])
def chain_hmm(request: pytest.FixtureRequest) -> HmmModel:
    """A chain model over silence (1) and three phones; the triphones ask about both neighbours of two of them."""
    phones = ("SIL", "a", "b", "c")
    if request.param != "triphone":
        return chain_model(phones, "SIL", request.param)
    trees = (
        (0, 1),
        (Split("right", frozenset([1, 3]), 2, 3), Split("left", frozenset([2, 3]), 4, 5)),
        (6, 7),
        (Split("left", frozenset([2]), Split("right", frozenset([2]), 8, 9), 10), 11),
    )
    return replace(chain_model(phones, "SIL", "mono"), num_pdfs=12, trees=trees, self_loop=np.full(12, 0.5))


@pytest.fixture
def phone_sentences() -> list[tuple[int, ...]]:
    """Phone numbers of utterances over silence and three phones, of which some follow others more often."""
    random = np.random.default_rng(11)
    likely = random.dirichlet(np.full(4, 0.5), size=5)
    sentences = []
    for length in random.integers(1, 7, size=25):
        phones = [0]
        for _ in range(int(length)):
            phones.append(1 + int(random.choice(4, p=likely[phones[-1]])))
        sentences.append(tuple(phones[1:]))
    return sentences
