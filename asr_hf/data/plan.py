"""Plans of minibatches: which frames of which utterances, in which order, made from numbers alone.

A plan depends on the lengths of the utterances and on the request (seed, update, purpose …), never on the number of
ranks. A minibatch is the atom that ranks are dealt; no rank cuts one.
"""

import zlib
from dataclasses import dataclass

import numpy as np

PURPOSES = ("gradient", "curvature", "heldout", "epoch")
SUBSETS = ("train", "heldout")
UNITS = ("all", "frames", "utterances")


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
        unit: "all" (every frame in order), "frames" (single frames drawn without replacement) or "utterances".
        share: share of the subset's frames (or utterances) that is drawn, in (0, 1]; 1 with "frames" shuffles all.
        minibatch_frames: frames per minibatch (the last one may be smaller).
        whole_utterances: cut between utterances only (sequence models and criteria).
        seed, update, purpose: what the draw depends on, and nothing else.
        first, count: the window of minibatches taken from the plan (count 0: all from `first` on).
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

    def __post_init__(self) -> None:
        if self.subset not in SUBSETS or self.unit not in UNITS or self.purpose not in PURPOSES:
            raise ValueError(f"unknown subset, unit or purpose in {self}")
        if not 0 < self.share <= 1 or self.minibatch_frames < 1:
            raise ValueError(f"share must lie in (0, 1] and minibatch_frames be positive in {self}")

    def generator(self) -> np.random.Generator:
        """Random numbers of this draw: a function of (seed, update, purpose) alone."""
        return np.random.default_rng([self.seed, self.update, zlib.crc32(self.purpose.encode())])

    def plan(self, lengths: np.ndarray) -> tuple[Minibatch, ...]:
        """The minibatches of this sample.

        Args:
            lengths: int (U,), frames of each utterance of the subset.
        """
        if self.unit == "frames":
            minibatches = _cut_frames(_draw_frames(lengths, self.share, self.generator()), self.minibatch_frames)
        else:
            utterances = np.arange(len(lengths))
            if self.unit == "utterances":
                utterances = _draw_utterances(lengths, self.share, self.generator())
            if self.whole_utterances:
                minibatches = _cut_between_utterances(utterances, lengths, self.minibatch_frames)
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


def _draw_utterances(lengths: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Utterances drawn without replacement until their frames reach the share of the whole, in random order."""
    order = generator.permutation(len(lengths))
    reached = np.cumsum(lengths[order])
    count = int(np.searchsorted(reached, share * reached[-1])) + 1
    return order[: min(count, len(order))]


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


def _cut_between_utterances(utterances: np.ndarray, lengths: np.ndarray, minibatch_frames: int) -> list[Minibatch]:
    """Whole utterances of similar length together (least padding), at most minibatch_frames frames or one utterance."""
    order = utterances[np.argsort(-lengths[utterances], kind="stable")]
    minibatches: list[Minibatch] = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = min(len(order), start + max(1, minibatch_frames // max(1, longest)))
        chosen = order[start:stop]
        pieces = np.stack([chosen, np.zeros_like(chosen), lengths[chosen]], axis=1).astype(np.int32)
        minibatches.append(Minibatch(pieces))
        start = stop
    return minibatches


def deal(plan: tuple[Minibatch, ...], ranks: int) -> list[list[int]]:
    """Deal whole minibatches to ranks, longest first to the rank with the fewest frames.

    Returns:
        For each rank the indices of its minibatches, ascending. Ties go to the lower rank: every rank finds the same.
    """
    load = [0] * ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(plan)), key=lambda i: (-plan[i].frames, i)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        hands[rank].append(index)
        load[rank] += plan[index].frames
    return [sorted(hand) for hand in hands]
