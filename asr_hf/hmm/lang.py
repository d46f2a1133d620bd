"""The LANG folder: words, phones, lexicon, n-gram, and the transducers L and G."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asr_hf.data.folder import whole_folder
from asr_hf.data.kaldi_dir import read_transcripts
from asr_hf.errors import InputError
from asr_hf.hmm.fst import write_fst
from asr_hf.hmm.lexicon import (
    BACKOFF,
    EPSILON,
    SENTENCE_END,
    SENTENCE_START,
    Lexicon,
    Pronunciation,
    disambiguate,
    lexicon_transducer,
    read_lexicon,
)
from asr_hf.hmm.ngram import arpa_to_acceptor, estimate
from asr_hf.options import option, require


@dataclass
class LangOptions:
    """Lexicon and n-gram of a LANG folder."""

    order: int = option(3, "n of the n-gram, 2 to 5")
    prune: float = option(0.0, "relative-entropy threshold below which n-grams are pruned; 0 keeps all")
    silence: str = option("SIL", "the phone of the optional silence at both ends and between words")
    silence_probability: float = option(0.5, "probability of a silence at each of those places")
    unknown: str = option("", "word that stands for words missing from the lexicon, e.g. <unk>; empty: they are errors")
    unknown_phone: str = option("SPN", "the phone of the unknown word, unless the lexicon has the word")

    def __post_init__(self) -> None:
        require(2 <= self.order <= 5, "lang.order", self.order, "must be 2 to 5")
        require(0 <= self.prune < 1, "lang.prune", self.prune, "must be in [0, 1)")
        require(
            0 <= self.silence_probability < 1, "lang.silence_probability", self.silence_probability, "not in [0, 1)"
        )
        for name in ("silence", "unknown_phone"):
            value = getattr(self, name)
            require(len(value.split()) == 1 and value[0] not in "#<", f"lang.{name}", value, "must be a phone name")
        require(
            self.unknown == "" or (len(self.unknown.split()) == 1 and self.unknown not in (EPSILON, BACKOFF)),
            "lang.unknown", self.unknown, "must be one word",
        )  # fmt: skip


@dataclass(frozen=True)
class Lang:
    """What a LANG folder says about words and phones.

    Attributes:
        folder: where it lies.
        words: {word: number}, with <eps> 0, #0, <s> and </s>.
        phones: {phone: number}, <eps> 0, the silence 1, then the others, then #0, #1, ….
        lexicon: the pronunciations.
        silence: name of the silence phone.
        silence_probability: of the optional silences.
        unknown: the word for words missing from the lexicon, or "".
    """

    folder: Path
    words: dict[str, int]
    phones: dict[str, int]
    lexicon: Lexicon
    silence: str
    silence_probability: float
    unknown: str

    @property
    def phone_names(self) -> tuple[str, ...]:
        """Real phones; the number of each is its place plus one."""
        return tuple(name for name in self.phones if name != EPSILON and not name.startswith("#"))

    @property
    def disambiguation(self) -> list[int]:
        """Numbers of #0, #1, … among the phones."""
        return [number for name, number in self.phones.items() if name.startswith("#")]

    @classmethod
    def load(cls, lang_dir: Path | str) -> "Lang":
        """Read a LANG folder (InputError when it is none)."""
        folder = Path(lang_dir)
        try:
            facts = json.loads((folder / "lang.json").read_text(encoding="utf-8"))
            words, phones = (_read_symbols(folder / name) for name in ("words.txt", "phones.txt"))
            silence, probability, unknown = (facts[key] for key in ("silence", "silence_probability", "unknown"))
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{folder} is no LANG folder: {error}", "Make it with asr-hf lang.") from None
        return cls(folder, words, phones, read_lexicon(folder / "lexicon.txt"), silence, probability, unknown)

    def known_words(self, utterance: str, words: Iterable[str], text: Path | str) -> tuple[str, ...]:
        """The words of a transcript, each missing one replaced by the unknown word (InputError if there is none)."""
        return tuple(self.unknown if self._missing(word, utterance, text) else word for word in words)

    def _missing(self, word: str, utterance: str, text: Path | str) -> bool:
        if word in self.lexicon.variants:
            return False
        if not self.unknown:
            raise InputError(
                f"{text}: utterance {utterance} has the word {word}, which is not in the lexicon",
                "Add it to the lexicon, or set lang.unknown=<unk> to map such words to an unknown word.",
            )
        return True


def _read_symbols(path: Path) -> dict[str, int]:
    table = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, number = line.split()
        table[name] = int(number)
    return table


def _number(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _write_symbols(path: Path, table: dict[str, int]) -> None:
    path.write_text("".join(f"{name} {number}\n" for name, number in table.items()), encoding="utf-8")


def make_lang(
    lang_dir: Path | str,
    lexicon_path: Path | str,
    text_path: Path | str,
    options: LangOptions,
    arpa: Path | None = None,
) -> Lang:
    """Write a LANG folder from a lexicon and training transcripts.

    Args:
        lang_dir: the folder to write.
        lexicon_path: lines `word [probability] phone phone …`.
        text_path: lines `utterance word word …`, from which the n-gram is estimated over the whole lexicon.
        options: see LangOptions.
        arpa: an ARPA model to use instead of an estimated one.

    Raises:
        InputError: a fault of the lexicon (file and line), or a transcript word that it does not have.
    """
    lexicon = read_lexicon(lexicon_path)
    if arpa is not None and not arpa.is_file():
        raise InputError(f"there is no ARPA model {arpa}", "Name the file of a language model.")
    if options.unknown:
        lexicon = lexicon.with_entry(Pronunciation(options.unknown, 1.0, (options.unknown_phone,)))
    words = _number((EPSILON, *lexicon.words, BACKOFF, SENTENCE_START, SENTENCE_END))
    phones = [options.silence, *(phone for phone in lexicon.phones if phone != options.silence)]
    symbols = [f"#{number}" for number in range(max(disambiguate(lexicon.entries)) + 2)]
    lang = Lang(
        Path(lang_dir), words, _number((EPSILON, *phones, *symbols)), lexicon,
        options.silence, options.silence_probability, options.unknown,
    )  # fmt: skip
    transcripts = read_transcripts(text_path)
    sentences = [lang.known_words(utterance, transcripts[utterance], text_path) for utterance in sorted(transcripts)]
    occurring = {word for sentence in sentences for word in sentence}
    vocabulary = [word for word in lexicon.words if word != options.unknown or word in occurring]
    with whole_folder(lang_dir, "lang.json") as folder:
        _write_symbols(folder / "words.txt", words)
        _write_symbols(folder / "phones.txt", lang.phones)
        (folder / "lexicon.txt").write_text(
            "".join(f"{entry.word} {entry.probability!r} {' '.join(entry.phones)}\n" for entry in lexicon.entries),
            encoding="utf-8",
        )
        if arpa is None:
            estimate(sentences, vocabulary, options.order, options.prune, folder / "lm.arpa")
        else:
            shutil.copyfile(arpa, folder / "lm.arpa")
        grammar = arpa_to_acceptor(folder / "lm.arpa", folder / "words.txt", BACKOFF)
        write_fst(grammar, folder / "G.fst")
        transducer = lexicon_transducer(lexicon, words, lang.phones, options.silence, options.silence_probability)
        write_fst(transducer.to_fst(), folder / "L_disambig.fst")
        facts = {
            "silence": options.silence, "silence_probability": options.silence_probability,
            "unknown": options.unknown, "order": options.order,
        }  # fmt: skip
        (folder / "lang.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return lang
