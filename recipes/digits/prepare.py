"""The digits corpus: connected digits spoken by espeak-ng voices, as Kaldi data directories; the same bytes every time.

    python recipes/digits/prepare.py exp/digits/data

Each voice variant is one speaker and belongs to one set. Every utterance is one to seven digits, at the speaker's own
rate and pitch, between stretches of silence, at 8 kHz, with a gain and a white noise of its own; all drawn from (seed,
speaker). espeak-ng keeps state from call to call, so each speaker is spoken by a process of its own, whatever the jobs.
"""

import argparse
import ctypes
import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from asr_hf.data.kaldi_dir import Utterance, write_data_dir
from asr_hf.data.table import write_table
from asr_hf.errors import InputError

SAMPLING_RATE = 8000
ACCENT = "en-us"
# Variants of espeak-ng that could be people: no robots, whispers or second versions, and the first three formants moved
# alike (within 25 % of each other), as a longer or shorter vocal tract does.
VOICES = (
    *("adam", "Alex", "Alicia", "Andrea", "anika", "Annie", "antonio", "aunty", "belinda", "benjamin", "caleb"),
    *("david", "Denis", "Diogo", "ed", "edward", "f1", "f2", "f3", "f4", "f5", "Gene", "grandpa", "Henrique", "Hugo"),
    *("ian", "iven", "john", "linda", "m1", "m2", "m3", "m4", "m6", "m7", "m8", "Mario", "max", "michel", "miguel"),
    *("Mike", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "steph", "victor", "zac"),
)
SUBSETS = ("train", "heldout", "dev", "test")
LEXICON = {
    "zero": "Z IH R OW",
    "one": "W AH N",
    "two": "T UW",
    "three": "TH R IY",
    "four": "F AO R",
    "five": "F AY V",
    "six": "S IH K S",
    "seven": "S EH V AH N",
    "eight": "EY T",
    "nine": "N AY N",
}
UTTERANCES_PER_SPEAKER = 20

# espeak-ng's C interface (speak_lib.h)
_SYNCHRONOUS, _RATE, _PITCH, _POSITION_CHARACTER = 2, 1, 3, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Voice:
    """One espeak-ng voice; speaks text to samples. Use one a process: espeak-ng is global and keeps state.

    Args:
        name: a variant of ACCENT's voice, a file of espeak-ng's `voices/!v`.
        rate: words per minute.
        pitch: 0 to 100.
        seed: of the voice's breath, which espeak-ng would draw from the clock.

    Raises:
        InputError: espeakng-loader is missing, or knows no such voice.
    """

    def __init__(self, name: str, rate: int, pitch: int, seed: int) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise InputError(
                "espeakng-loader is not installed, the voices of the digits corpus", "pip install 'asr-hf[synthetic]'."
            ) from None
        data = Path(espeakng_loader.get_data_path())
        if not (data / "voices" / "!v" / name).is_file():
            raise InputError(f"espeak-ng has no voice variant '{name}' in {data}", "Install espeakng-loader as pinned.")
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._chunks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._receive)  # kept alive as long as the voice
        with tempfile.TemporaryDirectory() as folder:  # espeak-ng takes paths of at most 160 characters
            os.symlink(data, Path(folder, "espeak-ng-data"))
            self.sampling_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(folder), 0)
            self._library.espeak_SetSynthCallback(self._callback)
            failed = self.sampling_rate <= 0 or self._library.espeak_SetVoiceByName(f"{ACCENT}+{name}".encode())
        if failed:
            raise InputError(f"espeak-ng cannot load the voice {ACCENT}+{name}", "Install espeakng-loader as pinned.")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str) -> np.ndarray:
        """The samples of a text: int16, (number of samples,), at `sampling_rate`."""
        self._chunks.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, 1, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._chunks)


@dataclass(frozen=True)
class Speaker:
    """One speaker of the corpus: how many utterances to speak into which folder, and the seed of everything random."""

    voice: str
    number: int
    utterances: int
    seed: int
    folder: Path


def subset_of(number: int) -> str:
    """The set of a speaker: of every 12 in the order of their names two are test, one dev and one heldout."""
    return {1: "heldout", 3: "test", 6: "dev", 9: "test"}.get(number % 12, "train")


def at_corpus_rate(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """int16 samples -> float64 samples at SAMPLING_RATE; in float64, so that the last bits vanish in the rounding."""
    return resample(torch.from_numpy(samples.astype(np.float64)), sampling_rate, SAMPLING_RATE).numpy()


def record(speech: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Clean speech as recorded, int16: silence around it, peak at -24 to -6 dB, white noise 20 to 40 dB below."""
    before, after = (random.uniform(0.1, 0.4, size=2) * SAMPLING_RATE).astype(int)
    speech = speech / np.abs(speech).max() * 32767 * 10 ** (-random.uniform(6, 24) / 20)
    noise_rms = np.sqrt(np.mean(speech**2)) * 10 ** (-random.uniform(20, 40) / 20)
    samples = np.pad(speech, (before, after))
    samples += noise_rms * random.standard_normal(len(samples))
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


def speak_all(speaker: Speaker) -> list[Utterance]:
    """Write the WAV files of one speaker."""
    torch.set_num_threads(1)
    random = np.random.default_rng((speaker.seed, speaker.number))
    rate, pitch, breath = random.integers((140, 35, 1), (200, 65, 2**31)).tolist()
    voice = Voice(speaker.voice, rate, pitch, breath)
    name = speaker.voice.lower()
    spoken = []
    for number in range(speaker.utterances):
        words = tuple(random.choice(list(LEXICON), size=random.integers(1, 8)).tolist())
        pauses = random.random(len(words)) < 0.15  # a comma is a short pause
        text = " ".join(word + "," * bool(pause) for word, pause in zip(words, pauses, strict=True))
        samples = record(at_corpus_rate(voice.speak(text), voice.sampling_rate), random)
        wav = speaker.folder / f"{name}-{number:03d}.wav"
        soundfile.write(wav, samples, SAMPLING_RATE, subtype="PCM_16")
        spoken.append(Utterance(wav.stem, name, words, wav.name))
    return spoken


def prepare(
    out_dir: Path | str, seed: int = 0, utterances: int = UTTERANCES_PER_SPEAKER, jobs: int = 1
) -> dict[str, int]:
    """Speak the corpus into `out_dir`: wav/, train/, heldout/, dev/, test/ and lexicon.txt; an earlier one is replaced.

    Args:
        out_dir: the folder to make.
        seed: of transcripts, rates, pitches, pauses, gains and noise.
        utterances: how many each speaker speaks.
        jobs: speakers spoken at the same time; changes no byte.

    Returns:
        Number of utterances of each set.

    Raises:
        InputError: see Voice; `out_dir` holds something else.
    """
    out = Path(out_dir).resolve()
    if out.exists() and not (out / "lexicon.txt").is_file():
        raise InputError(f"{out} exists and is no corpus of this recipe", "Name a new folder, or remove it yourself.")
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "wav").mkdir(parents=True)
    speakers = [Speaker(voice, number, utterances, seed, fresh / "wav") for number, voice in enumerate(VOICES)]
    # fork: a child starts with numpy and torch imported and espeak-ng not yet loaded
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        spoken = pool.map(speak_all, speakers, chunksize=1)
    counts = {}
    for subset in SUBSETS:
        its = [u for number, heard in enumerate(spoken) if subset_of(number) == subset for u in heard]
        write_data_dir(fresh / subset, [Utterance(u.id, u.speaker, u.words, f"{out}/wav/{u.recording}") for u in its])
        counts[subset] = len(its)
    write_table(fresh / "lexicon.txt", LEXICON.items())
    shutil.rmtree(out, ignore_errors=True)
    os.replace(fresh, out)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_dir", help="the folder to make, e.g. exp/digits/data")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--utterances", type=int, default=UTTERANCES_PER_SPEAKER, help="of each speaker (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="speakers at the same time (default: %(default)s)")
    args = parser.parse_args()
    try:
        counts = prepare(args.out_dir, args.seed, args.utterances, args.jobs)
    except InputError as error:
        print(f"recipes/digits/prepare.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(", ".join(f"{subset} {count} utterances" for subset, count in counts.items()))


if __name__ == "__main__":
    main()
