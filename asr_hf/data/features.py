"""Filterbank and MFCC features of one utterance as Kaldi computes them, by torchaudio.compliance.kaldi.

T frames, D feature dimension, n samples. The order is Kaldi's: change of speed (asr_hf.data.speed), static features,
then the per-speaker transform (asr_hf.data.transform), then deltas, then splicing.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from asr_hf.data.speed import change_speed, check_speed, num_samples_at
from asr_hf.data.transform import TRANSFORMS
from asr_hf.errors import InputError
from asr_hf.options import option, require, require_choice

KINDS = ("fbank", "mfcc")
WINDOWS = ("povey", "hamming", "hanning", "rectangular", "blackman")


@dataclass
class FeatureOptions:
    """How features are computed from audio."""

    kind: str = option("fbank", "fbank (log mel filterbank) or mfcc")
    sample_rate: int | None = option(None, "Hz; null takes what the audio has, which must be one rate")
    speed: float = option(1.0, "factor of the audio's speed; ids of 0.9 begin with sp0.9- (not in the fingerprint)")
    num_mel_bins: int = option(40, "triangular mel bins")
    num_ceps: int = option(13, "cepstra of mfcc, C0 included")
    low_freq: float = option(20.0, "lower edge of the mel bins, Hz")
    high_freq: float = option(0.0, "upper edge of the mel bins, Hz; 0 or less counts down from half the sampling rate")
    frame_length: float = option(25.0, "length of the window, ms")
    frame_shift: float = option(10.0, "shift between frames, ms")
    window: str = option("povey", f"window function, one of {', '.join(WINDOWS)}")
    dither: float = option(0.0, "standard deviation of noise added to the samples, seeded by the utterance's id")
    use_energy: bool = option(False, "add the log energy to fbank as first dimension, or put it in place of C0")
    energy_floor: float = option(0.0, "floor of the energy of a frame, 0 for none")
    raw_energy: bool = option(True, "energy before pre-emphasis and window")
    cepstral_lifter: float = option(22.0, "liftering of mfcc, 0 for none")
    deltas: int = option(0, "order of the appended time derivatives: 0, 1 or 2")
    transform: str = option("speaker-cmvn", f"per-speaker transform of the static features: {', '.join(TRANSFORMS)}")
    splice_left: int = option(0, "frames of left context stacked onto each frame in the archive")
    splice_right: int = option(0, "frames of right context stacked onto each frame in the archive")
    allow_pipes: bool = option(False, "run the commands of wav.scp lines that end in |")
    skip_bad: bool = option(False, "name impossible utterances and leave them out instead of ending")

    def __post_init__(self) -> None:
        require_choice("features.kind", self.kind, KINDS)
        require_choice("features.window", self.window, WINDOWS)
        require_choice("features.transform", self.transform, TRANSFORMS)
        check_speed("features.speed", self.speed)
        require(self.deltas in (0, 1, 2), "features.deltas", self.deltas, "must be 0, 1 or 2")
        require(self.num_mel_bins > 3, "features.num_mel_bins", self.num_mel_bins, "must be more than 3")
        for name in ("frame_length", "frame_shift"):
            require(getattr(self, name) > 0, f"features.{name}", getattr(self, name), "must be positive")
        for name in ("low_freq", "dither", "energy_floor", "cepstral_lifter", "splice_left", "splice_right"):
            require(getattr(self, name) >= 0, f"features.{name}", getattr(self, name), "must not be negative")
        if self.sample_rate is not None:
            require(self.sample_rate > 0, "features.sample_rate", self.sample_rate, "must be positive")
        if self.kind == "mfcc":
            fits = 1 <= self.num_ceps <= self.num_mel_bins
            require(fits, "features.num_ceps", self.num_ceps, f"must be in 1 … num_mel_bins={self.num_mel_bins}")


def dimension(options: FeatureOptions) -> int:
    """D of the finished features: static, deltas, splicing."""
    static = options.num_ceps if options.kind == "mfcc" else options.num_mel_bins + options.use_energy
    return static * (1 + options.deltas) * (options.splice_left + 1 + options.splice_right)


def num_frames(num_samples: int, sample_rate: int, options: FeatureOptions) -> int:
    """T: the windows that fit wholly into the samples at the speed of the options."""
    num_samples = num_samples_at(options.speed, num_samples)
    window, shift = _in_samples(options.frame_length, sample_rate), _in_samples(options.frame_shift, sample_rate)
    return 0 if num_samples < window else 1 + (num_samples - window) // shift


def compute(waveform: np.ndarray, options: FeatureOptions, sample_rate: int | None = None, seed: int = 0) -> np.ndarray:
    """Static features (T, D) float32 of one utterance at options.speed, natural logarithm, equal to Kaldi's.

    Args:
        waveform: samples (n,) in the range of 16-bit integers.
        sample_rate: Hz; None takes options.sample_rate.
        seed: of the dither.

    Raises:
        InputError: fewer samples than one window, or options that do not fit the sampling rate.
    """
    import torchaudio.compliance.kaldi as kaldi

    rate = sample_rate or options.sample_rate
    if rate is None:
        raise InputError("the sampling rate of the waveform is not known", "Set features.sample_rate.")
    check_rate(options, rate)
    if num_frames(len(waveform), rate, options) == 0:
        length = 1000 * num_samples_at(options.speed, len(waveform)) / rate
        raise InputError(f"{length:.1f} ms of audio hold no window of {options.frame_length:g} ms", "Leave it out.")
    # In float64: float32 arithmetic alone moves some log energies by 5e-4.
    samples = torch.from_numpy(np.asarray(waveform, dtype=np.float64)).unsqueeze(0)
    samples = change_speed(samples, options.speed)
    settings = _settings(options, rate)
    with torch.random.fork_rng(devices=[], enabled=options.dither > 0):
        if options.dither > 0:
            torch.manual_seed(seed)
        if options.kind == "fbank":
            static = kaldi.fbank(samples, **settings)
        else:
            lifter = options.cepstral_lifter
            static = kaldi.mfcc(samples, num_ceps=options.num_ceps, cepstral_lifter=lifter, **settings)
    return static.to(torch.float32).numpy()


def append_deltas(static: np.ndarray, order: int) -> np.ndarray:
    """Append time derivatives, regressions over ±2 frames: (T, D) to (T, D (1 + order)), as Kaldi's add-deltas.

    Kaldi repeats the edge frames of the static features, not of the deltas: they are extended before differentiating.
    """
    from torchaudio.functional import compute_deltas

    if order == 0:
        return static
    reach = 2 * order
    current_DT = torch.from_numpy(np.pad(static, ((reach, reach), (0, 0)), mode="edge").T.copy())
    blocks = [static]
    for _ in range(order):
        current_DT = compute_deltas(current_DT, win_length=5)
        blocks.append(current_DT[:, reach:-reach].T.numpy())
    return np.concatenate(blocks, axis=1)


def splice(frames: np.ndarray, left: int, right: int) -> np.ndarray:
    """Stack each frame with its neighbours: (T, D) to (T, D (left + 1 + right)); edge frames are repeated."""
    if left == right == 0:
        return frames
    centre = np.arange(len(frames))[:, None]
    index = np.clip(centre + np.arange(-left, right + 1), 0, len(frames) - 1)
    return frames[index].reshape(len(frames), -1)


@lru_cache(maxsize=8)
def _empty_bins(bins: int, padded: int, rate: int, low: float, high: float) -> int:
    from torchaudio.compliance.kaldi import get_mel_banks

    weights, _ = get_mel_banks(bins, padded, rate, low, high, 100.0, -500.0, 1.0)
    return int((weights.sum(dim=1) == 0).sum())


def check_rate(options: FeatureOptions, rate: int) -> None:
    """Refuse options that do not fit a sampling rate in Hz (OptionError): edges beyond it, empty windows or bins."""
    nyquist = rate / 2
    high = options.high_freq if options.high_freq > 0 else nyquist + options.high_freq
    rule = f"does not fit audio of {rate} Hz"
    require(high <= nyquist, "features.high_freq", options.high_freq, rule)
    require(options.low_freq < high, "features.low_freq", options.low_freq, f"must be below high_freq={high:g} Hz")
    window = _in_samples(options.frame_length, rate)
    require(window >= 2, "features.frame_length", options.frame_length, rule)
    require(_in_samples(options.frame_shift, rate) >= 1, "features.frame_shift", options.frame_shift, rule)
    padded = 1 << (window - 1).bit_length()
    empty = _empty_bins(options.num_mel_bins, padded, rate, options.low_freq, high)
    require(empty == 0, "features.num_mel_bins", options.num_mel_bins, f"leaves {empty} bins empty at {rate} Hz")


def _in_samples(milliseconds: float, rate: int) -> int:
    return int(rate * milliseconds * 0.001)


def _settings(options: FeatureOptions, rate: int) -> dict[str, float | int | bool | str]:
    """The options of torchaudio that fbank and mfcc share."""
    return {
        "sample_frequency": float(rate),
        "num_mel_bins": options.num_mel_bins,
        "low_freq": options.low_freq,
        "high_freq": options.high_freq,
        "frame_length": options.frame_length,
        "frame_shift": options.frame_shift,
        "window_type": options.window,
        "dither": options.dither,
        "use_energy": options.use_energy,
        "energy_floor": options.energy_floor,
        "raw_energy": options.raw_energy,
    }
