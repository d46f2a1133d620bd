"""The Objective protocol: θ and a sample in, sums with their frame counts out. Optimisers see nothing else.

θ, g and every product are float32 vectors (N,) on `objective.device`; L, g and Gv are sums over frames and the
optimiser divides by the frames, once: L/frames, g/frames, Gv/frames.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from asr_hf.curvature.kronecker import LinearMap
from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.objective.layout import Layout
from asr_hf.solvers.pairs import PairStore

Named = Mapping[str, torch.Tensor]
PHASES = ("gradient", "linearisation", "products", "evaluation", "statistics", "preconditioner", "communication")
# gradient-equivalents of a phase over as many frames as the training set has; the other phases are known by their time
COSTS = {"gradient": 1.0, "linearisation": 1 / 3, "products": 4 / 3, "evaluation": 1 / 3}


class OutOfMemory(Exception):
    """A minibatch does not fit in the memory of a device: the update begins again with smaller ones."""


class UpdateLost(Exception):
    """Ranks died with parts of vectors that nobody else has: the update begins again from what was saved."""


@dataclass(frozen=True)
class Sum:
    """A loss summed over frames (nats; +∞ where an utterance was not finite), and the frames it covers."""

    value: float
    frames: int

    @property
    def mean(self) -> float:
        return self.value / self.frames if self.frames else math.inf


@dataclass(frozen=True)
class VectorSum:
    """A gradient (N,) summed over frames, the loss that was found on the way, and the frames both cover.

    Attributes:
        squares: (N,), Σ over minibatches of (that minibatch's summed gradient)², element by element; None unless asked.
    """

    vector: torch.Tensor
    value: float
    frames: int
    squares: torch.Tensor | None = None


@dataclass(frozen=True)
class KroneckerSums:
    """Sums of Kronecker factors, and diagonals where there are none (`curvature.kronecker`).

    Attributes:
        maps: the weights that have factors.
        layout: of `vector`: the sums of each map, then one of squares for each other parameter.
        vector: all sums, float32.
        frames: that they cover.
    """

    maps: tuple[LinearMap, ...]
    layout: Layout
    vector: torch.Tensor
    frames: int

    def means(self) -> torch.Tensor:
        """The vector per frame, the A of each map per position."""
        means = self.vector / self.frames
        named = self.layout.views(means)
        for each in self.maps:
            named[each.a].div_(named[each.positions].clamp(min=1 / self.frames))
        return means


@dataclass(frozen=True)
class Matrix:
    """Which JᵀMJ a product is of.

    Attributes:
        name: M on the outputs, one of the criterion's `matrices`.
        structural: weight of structural damping, added to M on the hidden states named in `curvature.states`.
        groups: a partition of (some) blocks of the layout; the product is then with the diagonal blocks of these
            groups, and zero elsewhere. Empty: the whole matrix.
    """

    name: str = "gauss_newton"
    structural: float = 0.0
    groups: tuple[tuple[str, ...], ...] = ()


GAUSS_NEWTON = Matrix()


class Penalty(Protocol):
    """A term of the loss in θ alone, with its own Gauss-Newton matrix (positive semi-definite), by parameter name."""

    def refresh(self, named: Named) -> None:
        """Fix at θ what the penalty holds constant within an update."""
        ...

    def value(self, named: Named) -> float: ...

    def gradient(self, named: Named) -> dict[str, torch.Tensor]: ...

    def product(self, named: Named, tangent: Named) -> dict[str, torch.Tensor]: ...

    def step(self, named: Named) -> dict[str, torch.Tensor]:
        """New values of the parameters after the constraint's own step, for first-order methods."""
        ...


@dataclass
class Account:
    """Where the seconds went, and what was done: the columns of the log.

    Attributes:
        seconds: per phase of PHASES, wall seconds of this process.
        equivalents: per phase of COSTS, work in gradient-equivalents: one is a gradient over the training set's frames.
            It counts frames of plans and shares of flops, so that it depends neither on ranks nor on the machine.
        vectors: number of vectors (N,) that a cluster sends or reduces, a part of one as a fraction; counted on one
            process too, but for those of curvature pairs that only a cluster cuts.
        recomputed: minibatches of the last linearisation that did not fit the byte budget, on all ranks.
        rank_frames, rank_seconds: per rank, frames evaluated and seconds spent computing.
        idle_ranks: the fewest ranks that a gradient left without a minibatch (None: nobody counted).
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    equivalents: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))
    vectors: float = 0.0
    recomputed: int = 0
    rank_frames: list[int] = field(default_factory=list)
    rank_seconds: list[float] = field(default_factory=list)
    idle_ranks: int | None = None

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the wall seconds of the block to a phase, less what inner blocks added to others."""
        begin, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[phase] += time.perf_counter() - begin - inner

    @property
    def gradient_equivalents(self) -> float:
        """Work of all counted phases."""
        return sum(self.equivalents.values())

    def count(self, phase: str, sets: float) -> None:
        """Enter work over `sets` times the training set's frames, where the phase is counted at all."""
        if phase in COSTS:
            self.equivalents[phase] += COSTS[phase] * sets

    def worked(self, rank: int, frames: int, seconds: float) -> None:
        self.rank_frames += [0] * (rank + 1 - len(self.rank_frames))
        self.rank_seconds += [0.0] * (rank + 1 - len(self.rank_seconds))
        self.rank_frames[rank] += frames
        self.rank_seconds[rank] += seconds

    def idled(self, ranks: int) -> None:
        """Enter that so many ranks had no minibatch of a gradient."""
        self.idle_ranks = ranks if self.idle_ranks is None else min(ranks, self.idle_ranks)


class Linearisation(Protocol):
    """J, M and the sample, fixed at one θ; products may be asked for until it is closed."""

    frames: int

    def product(self, v_N: torch.Tensor, matrix: Matrix = GAUSS_NEWTON) -> torch.Tensor:
        """JᵀMJ·v summed over the frames of the sample (N,); raises RuntimeError once closed."""
        ...


class Objective(Protocol):
    """What an optimiser may ask; LocalObjective and ClusterObjective have this one face."""

    layout: Layout
    device: torch.device
    frame_model: bool
    windowed: bool  # an output frame depends on its window alone: utterances may be cut anywhere
    subsampling: int  # input frames per output frame
    chunk: int  # frames of the pieces that utterances are cut into for training, 0: whole utterances
    account: Account
    penalty: Penalty | None  # of θ alone: to be added by the optimiser, once
    normalisations: int  # number of normalisations with stored statistics

    def begin_update(self) -> None:
        """Forget which utterances were left out: a new update begins."""
        ...

    def frames(self, subset: str) -> int:
        """Frames of a subset."""
        ...

    def minibatches(self, sample: Sample) -> int:
        """Number of minibatches in the plan of a sample."""
        ...

    def loss(self, theta_N: torch.Tensor, sample: Sample) -> Sum:
        """L(θ) on the sample; +∞ where an utterance's loss is not finite."""
        ...

    def gradient(
        self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool = False, squares: bool = False
    ) -> VectorSum:
        """∇L(θ) on the sample; utterances that turn non-finite are named and left out, with their frames.

        With `batch_statistics` batch normalisations use those of the minibatch (first-order methods); with `squares`
        the squared gradients of the minibatches are summed as well.
        """
        ...

    def squared_gradients(self, theta_N: torch.Tensor, sample: Sample) -> VectorSum:
        """The gradient with its `squares`, accounted for as a statistic.

        Of a sample whose minibatches are single utterances (unit "utterances", minibatch_frames 1, whole_utterances)
        the squares are Σ_u (∇ℓ_u)², the diagonal of the empirical Fisher matrix of utterances.
        """
        ...

    def kronecker_factors(self, theta_N: torch.Tensor, sample: Sample, reduce: bool = False) -> KroneckerSums:
        """Kronecker factors of the Fisher matrix at θ, of labels drawn by (seed, update, masks, minibatch).

        With `reduce` the positions of a piece at which a weight is used are put together first.
        """
        ...

    def linearize(
        self, theta_N: torch.Tensor, sample: Sample, precision: Precision = Precision.FP32
    ) -> AbstractContextManager[Linearisation]:
        """Fix θ, sample, J and the criterion's caches for any number of products, in one precision."""
        ...

    def choose_precision(self, theta_N: torch.Tensor, sample: Sample) -> tuple[Precision, str]:
        """The precision of products that the options ask for, and why: `auto` is measured here, on this rank."""
        ...

    def statistics(self, theta_N: torch.Tensor, sample: Sample) -> torch.Tensor:
        """The statistics of batch normalisations over the sample, as the flat vector of the model's buffers."""
        ...

    def set_buffers(self, buffers: torch.Tensor) -> None:
        """Store the statistics of normalisations, on every rank."""
        ...

    def pair_store(self, limit: int, dtype: torch.dtype, sharded: bool) -> PairStore:
        """An empty store of at most `limit` curvature pairs; `sharded`: cut over the ranks, where there are several."""
        ...
