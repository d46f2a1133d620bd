"""Speed perturbation against tones written down at the other speed; ids; folders of several speeds joined."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr_hf.cli import main as cli
from asr_hf.data.archive import FeatureArchive
from asr_hf.data.extract import extract_features
from asr_hf.data.features import FeatureOptions, compute, num_frames
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.data.kaldi_dir import Utterance, read_data_dir, read_text, read_utt2spk, write_data_dir
from asr_hf.data.speed import change_speed, num_samples_at
from asr_hf.data.validate import validate
from asr_hf.errors import InputError, OptionError

RATE = 16000
EDGE = 200  # samples at either end that the filter's silence outside the waveform reaches
COMMON = Path(__file__).parents[2] / "recipes" / "common.sh"


def tone(hz: float, samples: int) -> np.ndarray:
    return 8000 * np.sin(2 * np.pi * hz * np.arange(samples) / RATE)


@pytest.mark.parametrize("speed", [0.5, 0.9, 0.937, 1.1, 2.0])
@pytest.mark.parametrize("hz", [130.0, 1000.0, 3300.0])
def test_a_tone_becomes_the_tone_of_the_speed(speed: float, hz: float) -> None:
    changed = change_speed(torch.from_numpy(tone(hz, RATE)), speed).numpy()
    assert len(changed) == num_samples_at(speed, RATE) == np.ceil(RATE / speed)
    error = np.abs(changed - tone(speed * hz, len(changed)))[EDGE:-EDGE]
    assert error.max() < 8  # a thousandth of the amplitude
    peak = np.abs(np.fft.rfft(changed)).argmax() * RATE / len(changed)
    assert abs(peak - speed * hz) < RATE / len(changed)


def test_what_leaves_the_band_is_gone_and_what_stays_is_whole() -> None:
    gone = change_speed(torch.from_numpy(tone(7600, RATE)), 1.1).numpy()[EDGE:-EDGE]  # to 8360 Hz: above 8000
    assert np.abs(gone).max() < 8
    whole = change_speed(torch.from_numpy(tone(6900, RATE)), 1.1).numpy()
    assert np.abs(whole - tone(7590, len(whole)))[EDGE:-EDGE].max() < 80


def test_speed_1_changes_nothing() -> None:
    waveform = torch.from_numpy(tone(440, 999))
    assert torch.equal(change_speed(waveform, 1.0), waveform)


@pytest.mark.parametrize("speed", [0.9, 1.1, 1.333])
def test_lengths_are_those_of_the_samples(speed: float) -> None:
    for samples in (1, 7, 399, 400, 16001):
        assert change_speed(torch.ones(samples), speed).shape == (num_samples_at(speed, samples),)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_features_are_those_of_the_changed_samples(speed: float) -> None:
    noise = np.random.default_rng(0).standard_normal(RATE) * 300
    options = FeatureOptions(speed=speed)
    static = compute(noise, options, RATE)
    assert len(static) == num_frames(RATE, RATE, options)
    np.testing.assert_array_equal(
        static, compute(change_speed(torch.from_numpy(noise), speed).numpy(), FeatureOptions(), RATE)
    )
    ours = compute(tone(1000, RATE), options, RATE)[2:-2]
    written_down = compute(tone(1000 * speed, num_samples_at(speed, RATE)), FeatureOptions(), RATE)[2:-2]
    loud = written_down.mean(axis=0) > written_down.max() - 7  # the bins about the tone; elsewhere the filter's floor
    assert 2 <= loud.sum() < 20
    np.testing.assert_allclose(ours[:, loud], written_down[:, loud], atol=0.01)


def test_the_window_must_fit_at_the_speed() -> None:
    assert compute(tone(440, 400), FeatureOptions(speed=0.9), RATE).shape == (1, 40)
    assert num_frames(400, RATE, FeatureOptions(speed=1.1)) == 0
    with pytest.raises(InputError, match=r"22\.8 ms of audio hold no window of 25 ms"):
        compute(tone(440, 400), FeatureOptions(speed=1.1), RATE)


def test_segments_are_of_the_original_audio(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    recording = read_data_dir(make_corpus(speakers=1, each=1))[0].recording
    write_data_dir(tmp_path / "parts", [Utterance("a", "s", ("x",), recording, 0.1, 0.3)])
    extract_features(tmp_path / "parts", tmp_path / "feats", FeatureOptions(transform="none", speed=0.9))
    samples, _ = soundfile.read(recording, dtype="int16")
    segment = torch.from_numpy(samples[1600:4800].astype(np.float64))
    expected = compute(change_speed(segment, 0.9).numpy(), FeatureOptions(), RATE)
    np.testing.assert_array_equal(FeatureArchive(tmp_path / "feats" / "feats.scp")["sp0.9-a"], expected)


def test_utterances_and_speakers_of_another_speed_have_a_prefix(corpus: Path, tmp_path: Path) -> None:
    cli.run(["features", str(corpus), str(tmp_path / "feats"), "features.speed=1.1"])
    assert read_text(tmp_path / "feats") == {f"sp1.1-{utt}": words for utt, words in read_text(corpus).items()}
    assert read_utt2spk(tmp_path / "feats") == {
        f"sp1.1-{utt}": f"sp1.1-{speaker}" for utt, speaker in read_utt2spk(corpus).items()
    }
    extract_features(corpus, tmp_path / "plain", FeatureOptions(speed=1.0))
    assert read_text(tmp_path / "plain") == read_text(corpus)
    assert read_fingerprint(tmp_path / "feats") == read_fingerprint(tmp_path / "plain")


def test_folders_of_three_speeds_are_joined(corpus: Path, tmp_path: Path) -> None:
    folders = [tmp_path / f"feats-{speed}" for speed in (0.9, 1.0, 1.1)]
    for speed, folder in zip((0.9, 1.0, 1.1), folders, strict=True):
        extract_features(corpus, folder, FeatureOptions(speed=speed))
    script = f'corpus=mini; source {COMMON}; join_feats "$@"'
    subprocess.run(["bash", "-c", script, "bash", tmp_path / "joined", *folders], check=True, timeout=60)
    assert validate(tmp_path / "joined") == []
    joined = FeatureArchive(tmp_path / "joined" / "feats.scp")
    assert len(joined) == 18 == sum(len(read_text(folder)) for folder in folders)
    for utt in read_text(corpus):
        slow, plain, fast = (joined.num_frames(prefix + utt) for prefix in ("sp0.9-", "", "sp1.1-"))
        assert slow > plain > fast
    assert read_fingerprint(tmp_path / "joined") == read_fingerprint(folders[1])


def test_features_that_are_there_have_no_speed(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"features\.speed=0\.9 changes audio"):
        extract_features(corpus, tmp_path / "feats", FeatureOptions(speed=0.9), from_feats=True)
