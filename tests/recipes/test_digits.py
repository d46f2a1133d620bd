"""The digits corpus: enough of it, the same bytes every time, no voice in two sets, the signal as described."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from asr_hf.data.kaldi_dir import Utterance, read_data_dir
from asr_hf.errors import InputError


@pytest.fixture(scope="session")
def corpus(digits: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole corpus, as the recipe makes it."""
    pytest.importorskip("espeakng_loader", reason="needs the synthetic extra")
    folder = tmp_path_factory.mktemp("digits") / "data"
    digits.prepare(folder, jobs=2)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "wav").iterdir())}


def utterances(corpus: Path, digits: ModuleType) -> dict[str, list[Utterance]]:
    return {subset: read_data_dir(corpus / subset) for subset in digits.SUBSETS}


def test_same_bytes_every_time(digits: ModuleType, corpus: Path, tmp_path: Path) -> None:
    whole = hashes(corpus)
    excerpts = []
    for number, jobs in enumerate((1, 3)):
        digits.prepare(tmp_path / str(number), utterances=2, jobs=jobs)
        excerpts.append(hashes(tmp_path / str(number)))
    assert excerpts[0] == excerpts[1]
    assert excerpts[0].items() <= whole.items()
    for subset in digits.SUBSETS:
        assert (tmp_path / "0" / subset / "text").read_bytes() == (tmp_path / "1" / subset / "text").read_bytes()


def test_another_seed_is_another_corpus(digits: ModuleType, corpus: Path, tmp_path: Path) -> None:
    digits.prepare(tmp_path / "other", seed=1, utterances=1, jobs=2)
    assert not set(hashes(tmp_path / "other").values()) & set(hashes(corpus).values())


def test_size_voices_and_sets(digits: ModuleType, corpus: Path) -> None:
    sets = utterances(corpus, digits)
    speakers = {subset: {u.speaker for u in found} for subset, found in sets.items()}
    everyone = [speaker for its in speakers.values() for speaker in its]
    assert len(everyone) == len(set(everyone)) >= 20
    infos = [soundfile.info(u.recording) for found in sets.values() for u in found]
    assert sum(info.duration for info in infos) >= 30 * 60
    assert {(info.samplerate, info.subtype, info.channels) for info in infos} == {(8000, "PCM_16", 1)}
    for found in sets.values():
        assert {len(u.words) for u in found} == set(range(1, 8))
        assert {word for u in found for word in u.words} == set(digits.LEXICON)


def test_voices_move_their_formants_alike(digits: ModuleType) -> None:
    espeakng_loader = pytest.importorskip("espeakng_loader", reason="needs the synthetic extra")
    for voice in digits.VOICES:
        lines = Path(espeakng_loader.get_data_path(), "voices", "!v", voice).read_text(errors="replace").splitlines()
        named = (line.split() for line in lines if line.startswith("formant"))
        percent = dict.fromkeys("123", 100.0) | {words[1]: float(words[2]) for words in named if words[1] in "123"}
        assert max(percent.values()) <= 1.25 * min(percent.values()), voice
    assert list(digits.VOICES) == sorted(set(digits.VOICES), key=str.lower)


def test_longer_transcripts_are_longer_speech(digits: ModuleType, corpus: Path) -> None:
    found = utterances(corpus, digits)["train"]
    words = np.array([len(u.words) for u in found])
    seconds = np.array([soundfile.info(u.recording).duration for u in found])
    assert np.corrcoef(words, seconds)[0, 1] > 0.8
    assert 0.2 < np.polyfit(words, seconds, 1)[0] < 0.6  # seconds a digit


def test_record_has_the_stated_level_noise_and_silence(digits: ModuleType) -> None:
    speech = 1000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    for seed in range(20):
        samples = digits.record(speech, np.random.default_rng(seed)).astype(float)
        around = len(samples) - len(speech)
        assert 0.2 * 8000 - 2 <= around <= 0.8 * 8000
        edge = int(0.1 * 8000)  # nothing but noise
        noise_rms = np.sqrt(np.mean(np.concatenate([samples[:edge], samples[-edge:]]) ** 2))
        peak = np.sort(np.abs(samples))[-100]  # a robust maximum of speech with noise
        level, ratio = 20 * np.log10(peak / 32768), 20 * np.log10(peak / np.sqrt(2) / noise_rms)
        assert -25.5 < level < -5
        assert 18 < ratio < 42


def test_resampling_keeps_a_tone(digits: ModuleType) -> None:
    seconds = np.arange(22050) / 22050
    tone = np.rint(20000 * np.sin(2 * np.pi * 1000 * seconds)).astype(np.int16)
    resampled = digits.at_corpus_rate(tone, 22050)
    wanted = 20000 * np.sin(2 * np.pi * 1000 * np.arange(len(resampled)) / 8000)
    assert len(resampled) == 8000
    assert np.abs(resampled - wanted)[200:-200].max() < 200


def test_foreign_folder_is_kept(digits: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(InputError, match="no corpus of this recipe"):
        digits.prepare(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_unknown_voice_is_named(digits: ModuleType) -> None:
    pytest.importorskip("espeakng_loader", reason="needs the synthetic extra")
    with pytest.raises(InputError, match="no voice variant 'nobody'"):
        digits.Voice("nobody", 170, 50, 1)


def test_missing_espeak_is_named(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path / "out")])
    main: Callable[[], None] = digits.main
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "asr-hf[synthetic]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
