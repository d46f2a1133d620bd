"""Plans of minibatches: which frames of which utterances, in which order, made from numbers alone.

A plan depends on the lengths of the utterances and on the request (seed, update, purpose …), never on the number of
ranks. A minibatch is the atom that ranks are dealt; no rank cuts one.
"""

import heapq
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PURPOSES = ("gradient", "curvature", "heldout", "epoch")
SUBSETS = ("train", "heldout")
UNITS = ("all", "frames", "utterances", "chunks")


@dataclass(frozen=True)
class Minibatch:
    """Pieces of utterances that are evaluated together.

    Attributes:
        pieces: int32 (n, 3), one row a piece: index of the utterance, first frame, number of frames.
    """

    pieces: np.ndarray

    @property
    def frames(self) -> int:
        return int(self.pieces[:, 2].sum())


@dataclass(frozen=True)
class Sample:
    """The request from which every rank makes the same plan of minibatches.

    Attributes:
        subset: "train" or "heldout".
        unit: "all" (every frame in order), or what is drawn without replacement: single "frames", whole "utterances" or
            "chunks" (pieces of `chunk` frames).
        share: share of the subset's frames that is drawn, in (0, 1]; 1 with "frames" or "chunks" shuffles all.
        minibatch_frames: frames per minibatch (fewer where no other piece fits); padded rows count as long as the
            longest, and a single piece may be longer.
        whole_utterances: cut minibatches between pieces only (sequence models and criteria); of "chunks" always so.
        seed, update, purpose: what the draw depends on, and nothing else.
        first, count: the window of minibatches taken from the plan (count 0: all from `first` on).
        chunk: frames of the pieces into which utterances are cut from their first frame on, the rest of each shorter
            (0: utterances are not cut); of no account where minibatches may be cut anywhere.
        masks: the update whose dropout masks apply (0: no dropout); plans do not depend on it.
        shift: pieces begin that many frames later, so that a subsampled model sees other frames; of no account where
            minibatches may be cut anywhere.
    """

    subset: str
    unit: str = "all"
    share: float = 1.0
    minibatch_frames: int = 2048
    whole_utterances: bool = False
    seed: int = 0
    update: int = 0
    purpose: str = "gradient"
    first: int = 0
    count: int = 0
    chunk: int = 0
    masks: int = 0
    shift: int = 0

    def __post_init__(self) -> None:
        if self.subset not in SUBSETS or self.unit not in UNITS or self.purpose not in PURPOSES:
            raise ValueError(f"unknown subset, unit or purpose in {self}")
        if not 0 < self.share <= 1 or self.minibatch_frames < 1:
            raise ValueError(f"share must lie in (0, 1] and minibatch_frames be positive in {self}")
        if self.chunk < 0 or self.masks < 0 or self.shift < 0:
            raise ValueError(f"chunk, masks and shift must not be negative in {self}")

    def generator(self) -> np.random.Generator:
        """Random numbers of this draw: a function of (seed, update, purpose) alone."""
        return np.random.default_rng([self.seed, self.update, zlib.crc32(self.purpose.encode())])

    def plan(self, lengths: np.ndarray) -> tuple[Minibatch, ...]:
        """The minibatches of this sample.

        Args:
            lengths: int (U,), frames of each utterance of the subset.
        """
        generator = self.generator()
        if self.unit == "frames":
            minibatches = _cut_frames(_draw_frames(lengths, self.share, generator), self.minibatch_frames)
        elif self.unit == "chunks":
            pieces = _pieces(np.arange(len(lengths)), lengths, self.chunk, self.shift)
            drawn = pieces[_draw(pieces[:, 2], self.share, generator)]
            by_length = _cut_between_pieces(drawn, self.minibatch_frames)
            minibatches = [by_length[i] for i in generator.permutation(len(by_length))]
        else:
            utterances = np.arange(len(lengths))
            if self.unit == "utterances":
                utterances = _draw(lengths, self.share, generator)
            if self.whole_utterances:
                minibatches = _cut_between_pieces(
                    _pieces(utterances, lengths, self.chunk, self.shift), self.minibatch_frames
                )
            else:
                minibatches = _cut_anywhere(utterances, lengths, self.minibatch_frames)
        stop = self.first + self.count if self.count else len(minibatches)
        return tuple(minibatches[self.first : stop])


def _draw_frames(lengths: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Frames drawn without replacement, in random order, as pieces (n, 3) of one frame."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total = int(starts[-1])
    wanted = max(1, round(share * total))
    flat = generator.permutation(total)[:wanted]
    utterances = np.searchsorted(starts, flat, side="right") - 1
    return np.stack([utterances, flat - starts[utterances], np.ones_like(flat)], axis=1).astype(np.int32)


def _draw(frames: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Indices drawn without replacement, in random order, until their frames reach the share of the whole."""
    order = generator.permutation(len(frames))
    reached = np.cumsum(frames[order])
    count = int(np.searchsorted(reached, share * frames.sum())) + 1
    return order[: min(count, len(order))]


def _pieces(utterances: np.ndarray, lengths: np.ndarray, chunk: int, shift: int) -> np.ndarray:
    """Utterances cut from frame `shift` on into pieces (n, 3) of `chunk` frames, the last of each shorter."""
    lengths = lengths - shift
    size = chunk or max(1, int(lengths.max()))
    counts = np.maximum(0, -(-lengths[utterances] // size))  # ⌈frames / size⌉
    owner = np.repeat(utterances, counts)
    first = size * (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts))
    frames = np.minimum(size, lengths[owner] - first)
    return np.stack([owner, first + shift, frames], axis=1).astype(np.int32)


def _cut_frames(pieces: np.ndarray, minibatch_frames: int) -> list[Minibatch]:
    return [Minibatch(pieces[i : i + minibatch_frames]) for i in range(0, len(pieces), minibatch_frames)]


def _cut_anywhere(utterances: np.ndarray, lengths: np.ndarray, minibatch_frames: int) -> list[Minibatch]:
    """Consecutive frames in minibatches of equal size: utterances are cut where a minibatch is full."""
    minibatches: list[Minibatch] = []
    pieces: list[tuple[int, int, int]] = []
    room = minibatch_frames
    for utterance in utterances.tolist():
        begin, left = 0, int(lengths[utterance])
        while left:
            taken = min(left, room)
            pieces.append((utterance, begin, taken))
            begin, left, room = begin + taken, left - taken, room - taken
            if room == 0:
                minibatches.append(Minibatch(np.array(pieces, dtype=np.int32)))
                pieces, room = [], minibatch_frames
    if pieces:
        minibatches.append(Minibatch(np.array(pieces, dtype=np.int32)))
    return minibatches


def _cut_between_pieces(pieces: np.ndarray, minibatch_frames: int) -> list[Minibatch]:
    """Pieces of similar length together (least padding): rows × longest ≤ minibatch_frames, or one piece alone."""
    ordered = pieces[np.argsort(-pieces[:, 2], kind="stable")]
    minibatches: list[Minibatch] = []
    start = 0
    while start < len(ordered):
        stop = start + max(1, minibatch_frames // int(ordered[start, 2]))
        minibatches.append(Minibatch(ordered[start:stop]))
        start = stop
    return minibatches


def deal(plan: tuple[Minibatch, ...], ranks: int) -> list[list[int]]:
    """Deal whole minibatches to ranks, longest first to the rank with the fewest frames.

    Returns:
        For each rank the indices of its minibatches, ascending. Ties go to the lower rank: every rank finds the same.
    """
    return deal_frames([minibatch.frames for minibatch in plan], ranks)


def deal_frames(frames: Sequence[int], ranks: int) -> list[list[int]]:
    """The same from the frames of each minibatch alone."""
    loads = [(0, rank) for rank in range(ranks)]  # a heap
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(frames)), key=lambda i: (-frames[i], i)):
        load, rank = loads[0]
        hands[rank].append(index)
        heapq.heapreplace(loads, (load + frames[index], rank))
    return [sorted(hand) for hand in hands]
