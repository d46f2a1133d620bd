"""Samples of an utterance from WAV, FLAC or NIST SPHERE files (soundfile), or from a command's output where allowed."""

import io
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from asr_hf.data.kaldi_dir import Utterance
from asr_hf.errors import InputError

FULL_SCALE = 32768.0  # Kaldi computes on the range of 16-bit integers


def read_audio(utterance: Utterance) -> tuple[np.ndarray, int]:
    """The samples (n,) float32 of one utterance in the range of 16-bit integers, and the sampling rate in Hz.

    Raises:
        InputError: missing or unreadable audio, more than one channel, a start beyond the end of the recording.
    """
    if utterance.is_piped:
        samples, rate = _read_pipe(utterance.recording)
        stop = None if utterance.end is None else round(utterance.end * rate)
        samples = samples[round(utterance.start * rate) : stop]
    else:
        samples, rate = _read_file(utterance.recording, utterance.start, utterance.end)
    if samples.ndim != 1:
        raise InputError(
            f"{utterance.recording} has {samples.shape[1]} channels", "Give a mono file (sox in.wav out.wav remix 1)."
        )
    return samples * np.float32(FULL_SCALE), rate


def sampling_rate(utterance: Utterance) -> int:
    """The sampling rate in Hz of an utterance's recording; raises InputError where it cannot be read."""
    return read_audio(utterance)[1]


def _read_file(path: str, start: float, end: float | None) -> tuple[np.ndarray, int]:
    if not Path(path).is_file():
        raise InputError(f"audio file {path} does not exist", "Correct wav.scp or put the file there.")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            first = round(start * rate)
            if first > file.frames:
                length = file.frames / rate
                raise InputError(f"start {start:g} s is beyond the {length:.2f} s of {path}", "Correct segments.")
            file.seek(first)
            count = -1 if end is None else round(end * rate) - first
            return file.read(count, dtype="float32"), rate
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error


@lru_cache(maxsize=1)
def _read_pipe(command: str) -> tuple[np.ndarray, int]:
    """Run a command of wav.scp (allowed by the user) and read its standard output; the last one is kept."""
    done = subprocess.run(command.rstrip(" |"), shell=True, capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InputError(f"'{command}' ended with status {done.returncode} {' '.join(said)}".strip(), "Mend wav.scp.")
    try:
        return soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(command, error) from error


def _unreadable(what: str, error: Exception) -> InputError:
    reason = str(error).rstrip(".").split(": ")[-1]
    return InputError(
        f"audio {what} cannot be read ({reason})",
        "Give WAV, FLAC or uncompressed SPHERE (sph2pipe undoes shorten); test the file with another player.",
    )
