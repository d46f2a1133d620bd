"""Reading and writing Kaldi data directories."""

from pathlib import Path

import pytest

from asr_hf.data.kaldi_dir import (
    Utterance,
    read_data_dir,
    read_text,
    read_transcripts,
    read_utt2spk,
    write_data_dir,
)
from asr_hf.errors import InputError


def test_written_directories_are_read_back(tmp_path: Path) -> None:
    utterances = [
        Utterance("b-2", "b", ("grün", "tea"), "/audio/b 2.wav"),
        Utterance("a-1", "a", ("one",), "/audio/a1.wav"),
    ]
    write_data_dir(tmp_path / "d", utterances)
    assert read_data_dir(tmp_path / "d") == sorted(utterances, key=lambda utterance: utterance.id)
    assert not (tmp_path / "d" / "segments").exists()
    assert (tmp_path / "d" / "spk2utt").read_text() == "a a-1\nb b-2\n"
    assert read_text(tmp_path / "d") == {"a-1": ("one",), "b-2": ("grün", "tea")}
    assert read_utt2spk(tmp_path / "d") == {"a-1": "a", "b-2": "b"}


def test_written_segments_are_read_back_exactly(tmp_path: Path) -> None:
    utterances = [
        Utterance("a-1", "a", ("one",), "/x/same.wav", 0.0, 1.25),
        Utterance("a-2", "a", ("two",), "/x/same.wav", 12345.678, None),
        Utterance("b-1", "b", ("two",), "/y/same.wav", 0.125, 98765.4321),
    ]
    write_data_dir(tmp_path, utterances)
    assert read_data_dir(tmp_path) == utterances
    assert len((tmp_path / "wav.scp").read_text().splitlines()) == 2


def test_earlier_segments_do_not_outlive_a_rewrite(tmp_path: Path) -> None:
    write_data_dir(tmp_path, [Utterance("a-1", "a", ("one",), "/x.wav", 0.5, 1.0)])
    whole = [Utterance("a-1", "a", ("one",), "/x.wav")]
    write_data_dir(tmp_path, whole)
    assert read_data_dir(tmp_path) == whole


def test_relative_recordings_are_found_beside_the_directory(corpus: Path, edit) -> None:
    audio = corpus.parent / "data-audio"
    audio.rename(corpus / "wav")
    edit(corpus / "wav.scp", lambda lines: [line.replace(str(audio), "wav") for line in lines])
    assert all(Path(utterance.recording).is_file() for utterance in read_data_dir(corpus))


def test_two_utterances_of_one_id_are_not_written(tmp_path: Path) -> None:
    one = Utterance("a-1", "a", ("one",), "/x.wav")
    with pytest.raises(InputError, match="a-1"):
        write_data_dir(tmp_path, [one, one])


def test_an_id_with_white_space_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="white space"):
        write_data_dir(tmp_path, [Utterance("a 1", "a", ("one",), "/x.wav")])


def test_the_first_fault_is_raised_with_file_and_line(corpus: Path, edit) -> None:
    edit(corpus / "utt2spk", lambda lines: lines[:2] + lines[3:])
    edit(corpus / "text", lambda lines: ["spk0-utt000", *lines[1:]])
    with pytest.raises(InputError, match=r"text:1: utterance 'spk0-utt000' has no transcript .1 more.") as caught:
        read_data_dir(corpus)
    assert "asr-hf validate" in caught.value.remedy


def test_pipes_are_refused_unless_allowed(corpus: Path, edit) -> None:
    edit(corpus / "wav.scp", lambda lines: [f"{lines[0].split()[0]} cat x.wav |", *lines[1:]])
    with pytest.raises(InputError, match=r"wav\.scp:1: .*pipe.*features\.allow_pipes=true"):
        read_data_dir(corpus)
    assert read_data_dir(corpus, allow_pipes=True)[0].recording == "cat x.wav |"


def test_hypotheses_may_be_empty_and_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("b one two\na\n")
    assert read_transcripts(tmp_path / "text") == {"a": (), "b": ("one", "two")}


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a one\nb tw\xf6\n", r"text:2: byte 5 .*UTF-8"), (b"a one\na two\n", r"text:2: duplicate id 'a'")],
)
def test_faulty_transcripts_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_transcripts(tmp_path / "text")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"text: cannot be read \(No such file"):
        read_transcripts(tmp_path / "text")


def test_an_utterance_without_speaker_is_named(tmp_path: Path) -> None:
    (tmp_path / "utt2spk").write_text("a spk\nb\n")
    with pytest.raises(InputError, match=r"utt2spk:2: utterance 'b' has no speaker"):
        read_utt2spk(tmp_path)
