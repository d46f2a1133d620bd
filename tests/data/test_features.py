"""Features of one utterance against kaldi-native-fbank (Kaldi's algorithm in C++) and against loops over frames."""

from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import pytest
import soundfile

from asr_hf.data.features import FeatureOptions, append_deltas, compute, dimension, num_frames, splice
from asr_hf.data.transform import estimate
from asr_hf.errors import InputError, OptionError

FBANK = FeatureOptions()
MFCC = FeatureOptions(kind="mfcc", num_mel_bins=23)


def by_kaldi(waveform: np.ndarray, rate: int, options: FeatureOptions) -> np.ndarray:
    settings = knf.FbankOptions() if options.kind == "fbank" else knf.MfccOptions()
    settings.frame_opts.samp_freq = rate
    settings.frame_opts.dither = 0
    settings.frame_opts.window_type = options.window
    settings.frame_opts.frame_length_ms = options.frame_length
    settings.frame_opts.frame_shift_ms = options.frame_shift
    settings.mel_opts.num_bins = options.num_mel_bins
    settings.mel_opts.low_freq = options.low_freq
    settings.mel_opts.high_freq = options.high_freq
    settings.use_energy = options.use_energy
    settings.raw_energy = options.raw_energy
    if options.kind == "mfcc":
        settings.num_ceps = options.num_ceps
        settings.cepstral_lifter = options.cepstral_lifter
    computer = (knf.OnlineFbank if options.kind == "fbank" else knf.OnlineMfcc)(settings)
    computer.accept_waveform(rate, waveform.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(frame) for frame in range(computer.num_frames_ready)])


def difference(waveform: np.ndarray, rate: int, options: FeatureOptions) -> float:
    """Largest difference in units of a log energy: cepstra are an orthonormal transform of those, times the lifter."""
    ours, theirs = compute(waveform, options, rate), by_kaldi(waveform, rate, options)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (num_frames(len(waveform), rate, options), ours.shape[1])
    scale = np.ones(ours.shape[1])
    if options.kind == "mfcc" and options.cepstral_lifter > 0:
        lifter = options.cepstral_lifter
        scale = 1 + lifter / 2 * np.sin(np.pi * np.arange(options.num_ceps) / lifter)
    return float((np.abs(ours - theirs) / scale).max())


def waveform_of(seconds: float, rate: int) -> np.ndarray:
    random = np.random.default_rng(1)
    time = np.arange(round(seconds * rate)) / rate
    voiced = sum(np.sin(2 * np.pi * harmonic * 130 * time) / harmonic for harmonic in range(1, 12))
    envelope = 0.02 + np.abs(np.sin(2 * np.pi * 2 * time))
    return (4000 * envelope * voiced + 50 * random.standard_normal(len(time))).round().astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize(
    "options",
    [
        FBANK,
        MFCC,
        FeatureOptions(use_energy=True, raw_energy=False, num_mel_bins=23, window="hamming"),
        FeatureOptions(kind="mfcc", num_mel_bins=23, use_energy=True, num_ceps=20, cepstral_lifter=0.0),
        FeatureOptions(low_freq=60.0, high_freq=-200.0, num_mel_bins=24, frame_length=32.0, frame_shift=8.0),
    ],
    ids=["fbank", "mfcc", "energy", "ceps", "edges"],
)
def test_equal_to_kaldi_on_a_synthetic_waveform(rate: int, options: FeatureOptions) -> None:
    assert difference(waveform_of(2.0, rate), rate, options) < 1e-3


@pytest.mark.an4
@pytest.mark.parametrize("options", [FBANK, MFCC], ids=["fbank", "mfcc"])
def test_equal_to_kaldi_on_an4(an4_root: Path, options: FeatureOptions) -> None:
    files = sorted((an4_root / "wav").rglob("*.sph"))
    assert len(files) == 1078
    worst = 0.0
    for file in files[::3]:
        samples, rate = soundfile.read(file, dtype="int16")
        worst = max(worst, difference(samples.astype(np.float32), rate, options))
    print(f"largest difference over {len(files[::3])} utterances of AN4: {worst:.2e}")
    assert worst < 1e-3


def test_options_may_name_the_rate() -> None:
    waveform = waveform_of(0.2, 8000)
    named = compute(waveform, FeatureOptions(sample_rate=8000, num_mel_bins=23))
    np.testing.assert_array_equal(named, compute(waveform, FeatureOptions(num_mel_bins=23), 8000))
    with pytest.raises(InputError, match="sampling rate"):
        compute(waveform, FBANK)


def test_dither_is_that_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    import torch

    waveform = waveform_of(0.2, 16000)
    noisy = FeatureOptions(dither=1.0)
    before = torch.get_rng_state()
    first, again, other = (compute(waveform, noisy, 16000, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first, again)
    assert 0 < np.abs(first - other).max() < 3
    assert not np.array_equal(first, compute(waveform, FBANK, 16000))


def test_one_window_is_one_frame_and_one_sample_less_none() -> None:
    waveform = waveform_of(1.0, 16000)
    assert compute(waveform[:400], FBANK, 16000).shape == (1, 40)
    assert compute(waveform[:559], FBANK, 16000).shape == (1, 40)
    assert compute(waveform[:560], FBANK, 16000).shape == (2, 40)
    with pytest.raises(InputError, match="24\\.9 ms of audio hold no window of 25 ms"):
        compute(waveform[:399], FBANK, 16000)


def deltas_by_loops(static: np.ndarray, order: int) -> np.ndarray:
    """Kaldi's add-deltas: one filter for each order, its index into the static features held at their edges."""
    window = np.arange(-2, 3) / 10
    filters = [np.ones(1)]
    for _ in range(order):
        filters.append(np.convolve(filters[-1], window))
    frames, dim = static.shape
    out = np.zeros((frames, dim * (order + 1)))
    for block, weights in enumerate(filters):
        reach = len(weights) // 2
        for frame in range(frames):
            for step in range(-reach, reach + 1):
                source = static[min(max(frame + step, 0), frames - 1)]
                out[frame, block * dim : (block + 1) * dim] += weights[step + reach] * source
    return out


@pytest.mark.parametrize("frames", [1, 3, 40])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_deltas_are_those_of_kaldi_at_the_edges_too(frames: int, order: int) -> None:
    static = np.random.default_rng(2).standard_normal((frames, 3)).astype(np.float32)
    ours = append_deltas(static, order)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, deltas_by_loops(static, order), atol=1e-6)


def test_splicing_stacks_neighbours_and_repeats_the_edges() -> None:
    frames = np.random.default_rng(3).standard_normal((5, 2)).astype(np.float32)
    spliced = splice(frames, 3, 1)
    for frame in range(5):
        expected = [frames[min(max(frame + step, 0), 4)] for step in (-3, -2, -1, 0, 1)]
        np.testing.assert_array_equal(spliced[frame], np.concatenate(expected))
    assert splice(frames, 0, 0) is frames


@pytest.mark.parametrize(
    "options",
    [FBANK, FeatureOptions(kind="mfcc", num_mel_bins=23, deltas=2), FeatureOptions(use_energy=True, splice_left=2)],
)
def test_dimension_is_that_of_the_finished_features(options: FeatureOptions) -> None:
    static = compute(waveform_of(0.2, 16000), options, 16000)
    finished = splice(append_deltas(static, options.deltas), options.splice_left, options.splice_right)
    assert dimension(options) == finished.shape[1]


@pytest.mark.parametrize("kind", ["speaker-cmvn", "speaker-cmn", "none"])
def test_transforms_normalise_all_frames_of_a_speaker(kind: str) -> None:
    random = np.random.default_rng(4)
    matrices = [(1000 + random.standard_normal((frames, 3)) * [0.1, 5, 0]).astype(np.float32) for frames in (7, 30, 1)]
    transform = estimate(kind, matrices)
    ours = np.concatenate([transform(matrix) for matrix in matrices])
    together = np.concatenate(matrices).astype(np.float64)
    expected = together
    if kind != "none":
        expected = together - together.mean(axis=0)
    if kind == "speaker-cmvn":
        deviation = together.std(axis=0)
        expected = expected / np.where(deviation > 0, deviation, 1)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-4)
    if kind == "none":
        np.testing.assert_array_equal(ours, np.concatenate(matrices))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"kind": "plp"}, "features.kind"),
        ({"window": "kaiser"}, "features.window"),
        ({"transform": "fmllr"}, "features.transform"),
        ({"deltas": 3}, "features.deltas"),
        ({"num_mel_bins": 2}, "features.num_mel_bins"),
        ({"frame_shift": 0.0}, "features.frame_shift"),
        ({"splice_left": -1}, "features.splice_left"),
        ({"sample_rate": 0}, "features.sample_rate"),
        ({"speed": 0.49}, "features.speed"),
        ({"speed": 2.1}, "features.speed"),
        ({"speed": 0.9001}, "features.speed.*at most 3 decimals"),
        ({"kind": "mfcc", "num_ceps": 41}, "features.num_ceps"),
    ],
)
def test_impossible_options_are_refused_by_name(values: dict, name: str) -> None:
    with pytest.raises(OptionError, match=name):
        FeatureOptions(**values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"high_freq": 7600.0}, "features.high_freq"),
        ({"low_freq": 3900.0, "high_freq": -200.0}, "features.low_freq"),
        ({"num_mel_bins": 120}, "features.num_mel_bins.*bins empty at 8000 Hz"),
        ({"frame_length": 0.1}, "features.frame_length"),
    ],
)
def test_options_that_do_not_fit_the_rate_are_refused_by_name(values: dict, name: str) -> None:
    with pytest.raises(OptionError, match=name):
        compute(waveform_of(0.2, 8000), FeatureOptions(**values), 8000)
