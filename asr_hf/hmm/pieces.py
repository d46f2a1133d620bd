"""Numerators of pieces of utterances, composed when they are first needed and kept."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from asr_hf.hmm.chain_graph import Numerator
from asr_hf.hmm.numerator import Composer
from asr_hf.hmm.supervision import LabelGraph

KEPT = 1 << 15  # pieces; one takes some 10 kB


class PieceNumerators:
    """The supervision of lattice-free MMI for any pieces of some utterances (`data.minibatch.Supervision`).

    Args:
        composer: of the denominator.
        labels: the label graph of each utterance, by index.
    """

    def __init__(self, composer: Composer, labels: Sequence[LabelGraph]) -> None:
        self._labels, self._composer = labels, composer
        self._numerator = lru_cache(maxsize=KEPT)(self._composed)

    def of(self, pieces: np.ndarray, subsampling: int) -> list[Numerator]:
        """The numerator of each piece, a row (utterance, first frame, frames)."""
        return [self._numerator(*piece, subsampling) for piece in pieces.tolist()]

    def _composed(self, utterance: int, first: int, frames: int, subsampling: int) -> Numerator:
        return self._composer.numerator(self._labels[utterance], first, frames, subsampling)
