"""The door of per-speaker transforms, `features.transform`: estimated from all frames of a speaker."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

TRANSFORMS = ("speaker-cmvn", "speaker-cmn", "none")
VARIANCE_FLOOR = 1e-10  # a dimension that never varies stays at 0 after its mean is taken away


@dataclass(frozen=True)
class SpeakerTransform:
    """x ↦ (x − shift) · scale on every frame of one speaker; shift and scale (D,) float64."""

    shift: np.ndarray
    scale: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(T, D) float32 to (T, D) float32."""
        return ((features - self.shift) * self.scale).astype(np.float32)


def estimate(kind: str, matrices: Iterable[np.ndarray]) -> SpeakerTransform:
    """Estimate the transform of one speaker from the static features (T, D) of the speaker's utterances.

    `speaker-cmn` takes the mean away, `speaker-cmvn` also divides by the standard deviation (population variance),
    `none` changes nothing. Sums are float64, in the order given; there must be at least one matrix.
    """
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for matrix in matrices:
        frames = matrix.astype(np.float64)
        count += len(frames)
        total = total + frames.sum(axis=0)
        squares = squares + np.square(frames).sum(axis=0)
    mean = total / count
    variance = squares / count - np.square(mean)
    one = np.ones_like(mean)
    if kind == "none":
        return SpeakerTransform(np.zeros_like(mean), one)
    if kind == "speaker-cmn":
        return SpeakerTransform(mean, one)
    return SpeakerTransform(mean, 1.0 / np.sqrt(np.maximum(variance, VARIANCE_FLOOR)))
