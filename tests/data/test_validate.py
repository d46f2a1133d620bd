"""Every fault of a data directory is listed with file and line; a sound one has none."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_hf.cli import main as cli
from asr_hf.data.archive import write_matrices
from asr_hf.data.features import FeatureOptions
from asr_hf.data.kaldi_dir import Utterance, write_data_dir
from asr_hf.data.validate import inspect, validate

Edit = Callable[[Path, Callable[[list[str]], list[str]]], None]
FIRST = "spk0-utt000"


def faults_of(folder: Path, **options: object) -> list[str]:
    return [str(fault).replace(f"{folder}/", "") for fault in validate(folder, **options)]  # type: ignore[arg-type]


def audio_of(corpus: Path, utt: str = FIRST) -> Path:
    return corpus.parent / f"{corpus.name}-audio" / f"{utt}.wav"


def test_a_sound_directory_has_no_fault(corpus: Path) -> None:
    found = inspect(corpus)
    assert found.faults == []
    assert (found.utterances, found.speakers) == (6, 3)
    assert found.seconds == pytest.approx(3 * (0.5 + 0.51))


TEXT_FAULTS = {
    "duplicate id": (
        "text",
        lambda lines: [lines[0], *lines],
        r"^text:2: duplicate id 'spk0-utt000' \(first in line 1\)",
    ),
    "unsorted": ("text", lambda lines: [lines[1], lines[0], *lines[2:]], r"^text:2: unsorted: 'spk0-utt000' after"),
    "no text": ("text", lambda lines: lines[1:], r"^wav.scp:1: utterance 'spk0-utt000' has no transcript"),
    "empty text": ("text", lambda lines: [FIRST, *lines[1:]], r"^text:1: utterance 'spk0-utt000' has no transcript"),
    "no speaker": ("utt2spk", lambda lines: lines[1:], r"^wav.scp:1: utterance 'spk0-utt000' has no speaker"),
    "empty speaker": ("utt2spk", lambda lines: [FIRST, *lines[1:]], r"^utt2spk:1: utterance .* has no speaker"),
    "two speakers": ("utt2spk", lambda lines: [f"{FIRST} a b", *lines[1:]], r"^utt2spk:1: .* several speakers, 'a b'"),
    "no audio line": ("wav.scp", lambda lines: lines[:-1], r"^text:6: utterance 'spk2-utt001' is not in wav.scp"),
    "no path": ("wav.scp", lambda lines: [FIRST, *lines[1:]], r"^wav.scp:1: 'spk0-utt000' names no file"),
    "pipe": (
        "wav.scp",
        lambda lines: [f"{FIRST} cat |", *lines[1:]],
        r"^wav.scp:1: 'spk0-utt000' is read through a pipe",
    ),
    "missing audio": (
        "wav.scp",
        lambda lines: [f"{FIRST} no.wav", *lines[1:]],
        r"^wav.scp:1: audio file no.wav does not",
    ),
    "spk2utt": (
        "spk2utt",
        lambda lines: ["spk0 spk0-utt000", *lines[1:]],
        r"^spk2utt:1: the utterances of speaker 'spk0'",
    ),
    "spk2utt speaker": ("spk2utt", lambda lines: lines[:2], r"^spk2utt: speaker 'spk2' of utt2spk is missing"),
    "empty line": ("text", lambda lines: ["", *lines], r"^text:1: the line is empty"),
    "empty file": ("text", lambda lines: [], r"^text: holds no line"),
}


@pytest.mark.parametrize("name", TEXT_FAULTS)
def test_faults_of_text_files(corpus: Path, edit: Edit, name: str) -> None:
    file, change, expected = TEXT_FAULTS[name]
    edit(corpus / file, change)
    faults = faults_of(corpus)
    assert any(re.search(expected, fault) for fault in faults), faults
    assert all(re.search(r"\. [A-Z`].*\.$", fault) for fault in faults), "every fault has a remedy"


def test_every_fault_is_listed_not_the_first_alone(corpus: Path, edit: Edit) -> None:
    edit(corpus / "text", lambda lines: lines[2:])
    edit(corpus / "utt2spk", lambda lines: lines[:-1])
    audio_of(corpus, "spk1-utt000").unlink()
    faults = faults_of(corpus)
    assert sum("no transcript" in fault for fault in faults) == 2
    assert sum("no speaker" in fault for fault in faults) == 1
    assert sum("does not exist" in fault for fault in faults) == 1


def test_text_that_is_not_utf8_is_named_by_its_line(corpus: Path) -> None:
    content = (corpus / "text").read_bytes().splitlines()
    content[3] += b" caf\xe9"
    (corpus / "text").write_bytes(b"\n".join(content) + b"\n")
    assert any(re.search(r"^text:4: byte \d+ of the line is not UTF-8", fault) for fault in faults_of(corpus))


def test_missing_files_and_folders(corpus: Path) -> None:
    (corpus / "utt2spk").unlink()
    assert any(fault.startswith("utt2spk: cannot be read") for fault in faults_of(corpus))
    assert "is no folder" in str(validate(corpus / "nowhere")[0])


def rewrite(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    soundfile.write(path, samples, rate, subtype="PCM_16")


AUDIO_FAULTS = {
    "rate": (lambda path: rewrite(path, np.full(8000, 0.1), 8000), r"wav.scp:1: .* sampled at 8000 Hz, not 16000"),
    "empty": (lambda path: rewrite(path, np.zeros(0)), r"wav.scp:1: utterance 'spk0-utt000': no samples"),
    "silent": (lambda path: rewrite(path, np.zeros(8000)), r"wav.scp:1: utterance 'spk0-utt000': every sample is zero"),
    "short": (
        lambda path: rewrite(path, np.full(300, 0.1)),
        r"wav.scp:1: utterance 'spk0-utt000': 18.8 ms are shorter",
    ),
    "stereo": (lambda path: rewrite(path, np.full((8000, 2), 0.1)), r"wav.scp:1: .* has 2 channels"),
    "garbage": (lambda path: path.write_bytes(b"RIFF no audio at all"), r"wav.scp:1: audio .* cannot be read"),
    "nothing": (lambda path: path.write_bytes(b""), r"wav.scp:1: audio .* cannot be read"),
}


@pytest.mark.parametrize("name", AUDIO_FAULTS)
def test_faults_of_audio(corpus: Path, name: str) -> None:
    break_it, expected = AUDIO_FAULTS[name]
    break_it(audio_of(corpus))
    faults = faults_of(corpus)
    assert len(faults) == 1, faults
    assert re.search(expected, faults[0])


def test_a_damaged_flac_is_unreadable(make_corpus) -> None:
    corpus = make_corpus(form="flac")
    path = audio_of(corpus).with_suffix(".flac")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    assert any(re.search(r"^wav.scp:1: .*cannot be read", fault) for fault in faults_of(corpus))


def test_all_audio_of_another_rate_than_asked_for(corpus: Path) -> None:
    assert len(validate(corpus, options=FeatureOptions(sample_rate=8000))) == 6


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("b r 0.2 9.0", r"^segments:2: utterance 'b': segment 0.2 … 9 s is beyond the 1.00 s"),
        ("b r 5.0 -1", r"^segments:2: utterance 'b': segment 5 … end is beyond the 1.00 s"),
        ("b r 0.5 0.5", r"^segments:2: utterance 'b': start 0.5 s is not before end 0.5 s"),
        ("b r 0.5 0.2", r"^segments:2: utterance 'b': start 0.5 s is not before end 0.2 s"),
        ("b r -0.5 0.2", r"^segments:2: utterance 'b': start -0.5 s is not a time"),
        ("b r nan 0.2", r"^segments:2: utterance 'b': start nan s is not a time"),
        ("b r 0.1 0.11", r"^segments:2: utterance 'b': 10.0 ms are shorter than a window"),
        ("b r now 0.2", r"^segments:2: utterance 'b': 'now 0.2' are no times"),
        ("b r 0.2", r"^segments:2: utterance 'b': 3 columns, not 4"),
        ("b q 0.2 0.4", r"^segments:2: utterance 'b': recording 'q' is not in wav.scp"),
    ],
)
def test_faults_of_segments(tmp_path: Path, edit: Edit, line: str, expected: str) -> None:
    path = tmp_path / "r.wav"
    rewrite(path, 0.1 * np.random.default_rng(0).standard_normal(16000))
    parts = [Utterance("a", "s", ("one",), str(path), 0.0, 0.5), Utterance("b", "s", ("two",), str(path), 0.5, 1.0)]
    write_data_dir(tmp_path / "data", parts)
    assert faults_of(tmp_path / "data") == []
    edit(tmp_path / "data" / "segments", lambda lines: [lines[0], line])
    faults = faults_of(tmp_path / "data")
    assert any(re.search(expected, fault) for fault in faults), faults


def test_words_missing_from_the_lexicon(corpus: Path, tmp_path: Path) -> None:
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("one W AH N\none W AH\n")
    faults = faults_of(corpus, lexicon=lexicon)
    assert len(faults) == 1
    assert re.search(r"^text:2: word 'two' \(3 times\) is not in the lexicon", faults[0])
    lexicon.write_text("one W AH N\ntwo T UW\n")
    assert faults_of(corpus, lexicon=lexicon) == []


def test_pipes_are_run_where_allowed(corpus: Path, edit: Edit) -> None:
    edit(corpus / "wav.scp", lambda lines: [f"{FIRST} cat {audio_of(corpus)} |", *lines[1:]])
    options = FeatureOptions(allow_pipes=True)
    assert validate(corpus, options=options) == []
    edit(corpus / "wav.scp", lambda lines: [f"{FIRST} echo lost >&2; exit 3 |", *lines[1:]])
    assert re.search(r"wav.scp:1: .*ended with status 3 lost", str(validate(corpus, options=options)[0]))


def test_a_folder_of_features_is_validated_by_its_archives(corpus: Path) -> None:
    (corpus / "wav.scp").unlink()
    utterances = [line.split()[0] for line in (corpus / "text").read_text().splitlines()]
    matrices = {utt: np.ones((30, 2)) for utt in utterances}
    write_matrices(corpus / "feats", matrices.items())
    assert faults_of(corpus) == []
    matrices[FIRST][7, 1] = np.nan
    write_matrices(corpus / "feats", matrices.items())
    assert re.search(rf"^feats.scp:1: .*'{FIRST}': NaN or infinity in frame 7", faults_of(corpus)[0])


def test_the_command_prints_faults_and_ends_with_status_2(corpus: Path, edit: Edit, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["asr-hf", "validate", str(corpus)])
    cli.main()
    assert "6 utterances, 3 speakers" in capsys.readouterr().out
    edit(corpus / "text", lambda lines: lines[1:])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{corpus}/wav.scp:1: utterance '{FIRST}' has no transcript in text. Add it to text")
    assert "1 fault. Mend" in printed.err
