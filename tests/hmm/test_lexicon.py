from pathlib import Path

import pytest

from asr_hf.errors import InputError
from asr_hf.hmm.lexicon import Pronunciation, disambiguate, read_lexicon


def test_reads_variants_probabilities_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("# note\n;;; note\nA  AH\nA(2)  EY\nTHE 0.25 DH AH\n\nÉTÉ e t e\n", encoding="utf-8")
    lexicon = read_lexicon(path)
    assert lexicon.words == ["A", "THE", "ÉTÉ"]
    assert [entry.phones for entry in lexicon.variants["A"]] == [("AH",), ("EY",)]
    assert lexicon.variants["THE"] == [Pronunciation("THE", 0.25, ("DH", "AH"))]
    assert lexicon.phones == ["AH", "DH", "EY", "e", "t"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"WORD", "no phones"),
        (b"WORD 0.5", "no phones"),
        (b"WORD 1.5 a", "1.5"),
        (b"WORD 0 a", "0.0"),
        (b"<s> a", "reserved"),
        (b"WORD #1", "#1"),
        (b"A a b", "line 1"),
        (b"A(2) a b", "line 1"),
        (b"caf\xe9 k a f", "UTF-8"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_bytes(b"A a b\n# comment\n" + line + b"\n")
    with pytest.raises(InputError) as caught:
        read_lexicon(path)
    assert f"{path}:3:" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "# nothing\n"])
def test_missing_or_empty_lexicon(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "lexicon.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="lexicon"):
        read_lexicon(path)


def test_disambiguation_makes_sequences_unique_and_prefix_free() -> None:
    phones = ["a b", "a b", "a", "a b c", "d", "a"]
    entries = [Pronunciation(f"W{i}", 1.0, tuple(sequence.split())) for i, sequence in enumerate(phones)]
    marked = [
        (*entry.phones, f"#{number}") if number else entry.phones
        for entry, number in zip(entries, disambiguate(entries), strict=True)
    ]
    assert len(set(marked)) == len(marked)
    for one in marked:
        assert not any(other != one and other[: len(one)] == one for other in marked)
    assert disambiguate(entries[4:5]) == [0]
