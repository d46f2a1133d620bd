"""A small corpus of noisy tones: 6 utterances of 3 speakers, and the way to make others."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_hf.data.kaldi_dir import Utterance, write_data_dir

MakeCorpus = Callable[..., Path]


def tone(seconds: float, rate: int, seed: int) -> np.ndarray:
    """A glide with noise, in [-1, 1]: a speech-like range of log energies without speech."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 40 * seed % 300
    return 0.3 * np.sin(2 * np.pi * (pitch * time + 150 * time**2)) + 0.02 * random.standard_normal(len(time))


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """make(name, speakers, utterances of each, rate, form, seconds) writes audio and a data directory, its path."""

    def make(
        name: str = "data",
        speakers: int = 3,
        each: int = 2,
        rate: int = 16000,
        form: str = "wav",
        seconds: float = 0.5,
    ) -> Path:
        audio = tmp_path / f"{name}-audio"
        audio.mkdir()
        utterances = []
        for speaker in range(speakers):
            for number in range(each):
                utt = f"spk{speaker}-utt{number:03d}"
                path = audio / f"{utt}.{form}"
                samples = tone(seconds + 0.01 * number, rate, seed=10 * speaker + number)
                soundfile.write(path, samples, rate, subtype="PCM_16")
                words = ("one", "two")[: 1 + number % 2]
                utterances.append(Utterance(utt, f"spk{speaker}", words, str(path)))
        write_data_dir(tmp_path / name, utterances)
        return tmp_path / name

    return make


@pytest.fixture
def corpus(make_corpus: MakeCorpus) -> Path:
    return make_corpus()


@pytest.fixture
def edit() -> Callable[[Path, Callable[[list[str]], list[str]]], None]:
    """edit(file, change) rewrites a text file by a function of its lines."""

    def apply(path: Path, change: Callable[[list[str]], list[str]]) -> None:
        path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))

    return apply
