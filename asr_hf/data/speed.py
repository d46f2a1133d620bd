"""Speed perturbation: audio played faster or slower, tempo and pitch together (Ko et al. 2015).

As Kaldi's utils/perturb_data_dir_speed.sh (`sox … speed`): samples at speed s are those of a recording at s times its
sampling rate, brought back to that rate. n samples become ⌈n/s⌉, a tone of f Hz becomes one of s·f Hz.
"""

from dataclasses import replace
from fractions import Fraction

import torch

from asr_hf.data.kaldi_dir import Utterance
from asr_hf.options import require

SLOWEST, FASTEST = 0.5, 2.0
DECIMALS = 3  # the resampling filter has as many phases as the numerator of s, and the ids carry s
ZERO_CROSSINGS = 64  # of the windowed sinc, each side: flat to 96 % of the band, where torchaudio's 6 lose 5 dB


def check_speed(name: str, speed: float) -> None:
    """Refuse a factor outside 0.5 … 2 or with more than three decimals (OptionError)."""
    require(SLOWEST <= speed <= FASTEST, name, speed, f"must be in {SLOWEST:g} … {FASTEST:g}")
    require(round(speed, DECIMALS) == speed, name, speed, f"must have at most {DECIMALS} decimals")


def num_samples_at(speed: float, num_samples: int) -> int:
    """Samples that n samples become: ⌈n/s⌉."""
    ratio = _ratio(speed)
    return -(-num_samples * ratio.denominator // ratio.numerator)


def change_speed(waveform: torch.Tensor, speed: float) -> torch.Tensor:
    """Samples (…, n) at s times their speed, (…, ⌈n/s⌉) at the same sampling rate; s = 1 returns them as they are."""
    import torchaudio.functional

    ratio = _ratio(speed)
    return torchaudio.functional.resample(
        waveform, ratio.numerator, ratio.denominator, lowpass_filter_width=ZERO_CROSSINGS
    )


def at_speed(utterances: list[Utterance], speed: float) -> list[Utterance]:
    """Utterances and speakers with Kaldi's prefix, `sp0.9-`, beside which the original ones can stand; none at 1."""
    if speed == 1:
        return utterances
    prefix = f"sp{speed:g}-"
    return [replace(each, id=prefix + each.id, speaker=prefix + each.speaker) for each in utterances]


def _ratio(speed: float) -> Fraction:
    return Fraction(speed).limit_denominator(10**DECIMALS)
