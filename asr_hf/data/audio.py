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
OVERSHOOT = 0.1  # seconds that a segment may end after its recording, by rounding of its times


def read_audio(utterance: Utterance) -> tuple[np.ndarray, int]:
    """The samples (n,) float32 of one utterance in the range of 16-bit integers, and the sampling rate in Hz.

    Raises:
        InputError: missing or unreadable audio, more than one channel, a segment beyond the recording.
    """
    if utterance.is_piped:
        whole, rate = _read_pipe(utterance.recording)
        first, count = _span(utterance, rate, len(whole))
        samples = whole[first : first + count]
    else:
        with _open(utterance.recording) as file:
            rate = file.samplerate
            first, count = _span(utterance, rate, file.frames)
            try:
                file.seek(first)
                samples = file.read(count, dtype="float32")
            except (soundfile.SoundFileError, OSError) as error:
                raise _unreadable(utterance.recording, error) from error
    _check_mono(utterance.recording, 1 if samples.ndim == 1 else samples.shape[1])
    return samples * np.float32(FULL_SCALE), rate


def sampling_rate(recording: str) -> int:
    """The sampling rate in Hz of a mono recording, from its header; raises InputError where it cannot be read."""
    if recording.endswith("|"):
        samples, rate = _read_pipe(recording)
        channels = 1 if samples.ndim == 1 else samples.shape[1]
    else:
        with _open(recording) as file:
            rate, channels = file.samplerate, file.channels
    _check_mono(recording, channels)
    return rate


def _open(path: str) -> soundfile.SoundFile:
    if not Path(path).is_file():
        raise InputError(f"audio file {path} does not exist", "Correct wav.scp or put the file there.")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error


def _span(utterance: Utterance, rate: int, total: int) -> tuple[int, int]:
    """First sample and number of samples of an utterance in a recording of `total` samples."""
    first = round(utterance.start * rate)
    if utterance.end is None:
        stop = total
    else:
        stop = min(round(utterance.end * rate), total)
    if first > total or (utterance.end is not None and utterance.end > total / rate + OVERSHOOT):
        span = f"{utterance.start:g} … {'end' if utterance.end is None else f'{utterance.end:g} s'}"
        raise InputError(
            f"segment {span} is beyond the {total / rate:.2f} s of {utterance.recording}", "Correct segments."
        )
    return first, stop - first


def _check_mono(recording: str, channels: int) -> None:
    if channels != 1:
        raise InputError(f"{recording} has {channels} channels", "Give a mono file (sox in.wav out.wav remix 1).")


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
