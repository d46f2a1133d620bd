"""Dropout factors as a pure function of numbers, so that every rank, order and batch finds the same masks.

Shapes: B rows.
"""

import zlib
from collections.abc import Mapping

import numpy as np
import torch


def keep_factors(
    dropouts: Mapping[str, tuple[int, float]], seed: int, update: int, utterance_B: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Inverted-dropout factors, 0 with probability `rate` and else 1/(1 − rate), by which units are multiplied.

    An utterance has one mask for all its frames and pieces in an update (variational dropout, Gal and Ghahramani
    2016), so that the objective stays one function of θ within the update (Kiros 2013). Each mask is drawn from a
    counter (Philox) that is keyed by seed and place and begins at (update, utterance).

    Args:
        dropouts: place → (units, rate) with the rate in [0, 1), as in `AcousticModel.dropouts`.
        seed, update: what the masks depend on besides place and utterance.
        utterance_B: int64 index of the utterance of each row.

    Returns:
        place → float32 (B, 1, units), on the device of `utterance_B`.
    """
    distinct, row_B = np.unique(utterance_B.cpu().numpy(), return_inverse=True)
    factors = {}
    for place, (units, rate) in dropouts.items():
        key = [seed, zlib.crc32(place.encode())]
        kept = np.stack([_uniform(key, update, int(utterance), units) >= rate for utterance in distinct])
        scaled = torch.from_numpy((kept / (1.0 - rate)).astype(np.float32))
        factors[place] = scaled[torch.from_numpy(row_B), None].to(utterance_B.device)
    return factors


def _uniform(key: list[int], update: int, utterance: int, units: int) -> np.ndarray:
    """(units,) uniform numbers in [0, 1); the counter's first two words count within the draw."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, update, utterance])).random(units)
