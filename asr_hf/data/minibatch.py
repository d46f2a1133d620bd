"""Training sets in memory-mapped arks, and the tensors of one minibatch.

Shapes: B rows, T output frames, D feature dimension, s = subsampling (input frames per output frame),
W = left + s·(T − 1) + 1 + right input frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from asr_hf.data.plan import Minibatch

ROUNDED_TO = 8  # rows longer than this are padded to a multiple of it: few shapes occur, and each is traced once only


@dataclass(frozen=True)
class Batch:
    """The tensors of one minibatch.

    Attributes:
        x_BWD: input with `left` and `right` frames of context; at the ends of an utterance the edge frame is repeated.
        target_BT: int64 pdf of each output frame, 0 where masked.
        mask_BT: True where a frame counts.
        utterance_B: int64 index of the utterance of each row.
        supervision: of the rows, for criteria that learn from more than one pdf a frame; else None.
    """

    x_BWD: torch.Tensor
    target_BT: torch.Tensor
    mask_BT: torch.Tensor
    utterance_B: torch.Tensor
    supervision: Any = None

    def to(self, device: torch.device) -> "Batch":
        x, target, mask, utterance = (
            t.to(device) for t in (self.x_BWD, self.target_BT, self.mask_BT, self.utterance_B)
        )
        return replace(self, x_BWD=x, target_BT=target, mask_BT=mask, utterance_B=utterance)


class Supervision(Protocol):
    """What a sequence criterion learns from, cut for any pieces of utterances."""

    def of(self, pieces: np.ndarray, subsampling: int) -> Any:
        """Supervision of the rows of a minibatch.

        Args:
            pieces: int (n, 3): utterance, first frame, frames.
            subsampling: input frames per output frame.
        """
        ...


class TrainingSet:
    """Utterances with their features and frame targets.

    Args:
        ids: utterance ids, in the order of their indices.
        features: per utterance a float32 array (T, D); memory-mapped arrays stay where they are.
        targets: per utterance an int32 array (T,) of pdfs.
        window: True for frame models: every frame is a row of its own, with its context; False: every piece is a row.
        supervision: for sequence criteria, in the place of targets.
    """

    def __init__(
        self,
        ids: Sequence[str],
        features: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        window: bool,
        supervision: Supervision | None = None,
    ) -> None:
        if not len(ids) == len(features) == len(targets):
            raise ValueError("ids, features and targets must have the same length")
        self.ids = list(ids)
        self.features = [np.asarray(matrix) for matrix in features]
        self.lengths = np.array([len(matrix) for matrix in features], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.targets = np.concatenate([np.asarray(t, dtype=np.int32) for t in targets])
        self.window, self.supervision = window, supervision

    @property
    def frames(self) -> int:
        return int(self.starts[-1])

    @property
    def dim(self) -> int:
        return int(self.features[0].shape[1])

    def batch(self, minibatch: Minibatch, left: int, right: int, subsampling: int = 1) -> Batch:
        """Cut a minibatch out of the archive with the context that the model needs.

        Args:
            minibatch: the pieces; one of n frames has ⌈n/s⌉ output frames, at its frames 0, s, 2s, …
            left, right: input frames before the first and after the last output frame of a row.
            subsampling: s.
        """
        pieces = minibatch.pieces if not self.window else _single_frames(minibatch.pieces)
        longest = int(pieces[:, 2].max())
        if longest > ROUNDED_TO:
            longest += -longest % ROUNDED_TO
        steps = np.arange(0, longest, subsampling)  # of the output frames of a row
        width = left + int(steps[-1]) + 1 + right
        x = np.empty((len(pieces), width, self.dim), dtype=np.float32)
        for row, (utterance, first) in enumerate(pieces[:, :2].tolist()):
            self._copy(x[row], utterance, first - left, first - left + width)
        mask = steps[None, :] < pieces[:, 2:3]
        position = self.starts[pieces[:, 0]][:, None] + pieces[:, 1:2] + steps[None, :]
        target = np.where(mask, self.targets[np.where(mask, position, 0)], 0).astype(np.int64)
        return Batch(
            torch.from_numpy(x),
            torch.from_numpy(target),
            torch.from_numpy(mask),
            torch.from_numpy(pieces[:, 0].astype(np.int64)),
            None if self.supervision is None else self.supervision.of(pieces, subsampling),
        )

    def _copy(self, out: np.ndarray, utterance: int, begin: int, end: int) -> None:
        """out ← frames begin … end−1 of an utterance, its edge frames repeated outside."""
        matrix = self.features[utterance]
        if begin >= 0 and end <= len(matrix):
            out[:] = matrix[begin:end]
        else:
            out[:] = matrix[np.clip(np.arange(begin, end), 0, len(matrix) - 1)]


def _single_frames(pieces: np.ndarray) -> np.ndarray:
    """Pieces of any length as pieces of one frame."""
    if len(pieces) and int(pieces[:, 2].max()) == 1:
        return pieces
    repeats = pieces[:, 2]
    within = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    rows = np.repeat(pieces, repeats, axis=0)
    return np.stack([rows[:, 0], rows[:, 1] + within, np.ones_like(within)], axis=1).astype(np.int32)
