"""LocalObjective: the Objective evaluated by this process alone, and the bookkeeping that a cluster shares."""

import functools
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.errors import Diverged
from asr_hf.objective.auto_precision import measured_precision
from asr_hf.objective.evaluator import Evaluator, Share
from asr_hf.objective.linearisation import LocalLinearisation
from asr_hf.objective.objective import (
    GAUSS_NEWTON,
    Account,
    KroneckerSums,
    Matrix,
    OutOfMemory,
    Penalty,
    Sum,
    VectorSum,
)
from asr_hf.solvers.pairs import Pairs, PairStore


@contextmanager
def memory_watched() -> Iterator[None]:
    """OutOfMemory where a device has none left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error).split(". ")[0]) from None


class OpenLinearisation:
    """The handle that an optimiser holds between `linearize` and its end."""

    def __init__(self, frames: int, product: Callable[[torch.Tensor, Matrix], torch.Tensor]) -> None:
        self.frames = frames
        self._product: Callable[[torch.Tensor, Matrix], torch.Tensor] | None = product

    def product(self, v_N: torch.Tensor, matrix: Matrix = GAUSS_NEWTON) -> torch.Tensor:
        """JᵀMJ·v summed over the frames of the sample (N,), float32."""
        if self._product is None:
            raise RuntimeError("this linearisation is closed: open another with objective.linearize(θ, sample)")
        return self._product(v_N, matrix)

    def close(self) -> None:
        self._product = None


class LocalObjective:
    """The Objective on one process.

    Args:
        evaluator: model, criterion and data.
        bad_share: largest share of the training utterances that may turn non-finite within an update.
        say: receives a line whenever utterances are left out.
    """

    def __init__(self, evaluator: Evaluator, bad_share: float = 0.01, say: Callable[[str], None] = print) -> None:
        self.evaluator = evaluator
        self.layout = evaluator.layout
        self.device = evaluator.device
        self.frame_model = evaluator.frame_model
        self.windowed = evaluator.model.windowed and not evaluator.criterion.sequence
        self.subsampling = evaluator.model.subsampling
        self.chunk = evaluator.model.chunk or evaluator.criterion.chunk
        self.penalty: Penalty | None = evaluator.model.penalty()
        self.normalisations = evaluator.normalisations
        self.account = Account()
        self.halvings = 0  # by how many halves minibatches are smaller than samples ask for
        self._bad_share = bad_share
        self._say = say
        self._left_out: frozenset[int] = frozenset()
        self._seen: tuple[weakref.ref[torch.Tensor] | None, int] = (None, 0)  # θ of the evaluation before, its version

    def begin_update(self) -> None:
        self._left_out = frozenset()

    def frames(self, subset: str) -> int:
        return self.evaluator.sets[subset].frames

    def _fitting(self, sample: Sample) -> Sample:
        return replace(sample, minibatch_frames=max(1, sample.minibatch_frames >> self.halvings))

    def minibatches(self, sample: Sample) -> int:
        return len(self.evaluator.plan(self._fitting(sample)))

    def loss(self, theta_N: torch.Tensor, sample: Sample) -> Sum:
        sample = self._fitting(sample)
        with self.account.measure("evaluation"):
            share = self._counted("evaluation", sample, lambda: self._losses(theta_N, sample))
        value = float(np.sum(share.values))
        return Sum(value if np.isfinite(value) else float("inf"), int(share.frames.sum()))

    def gradient(
        self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool = False, squares: bool = False
    ) -> VectorSum:
        return self._vector_sum("gradient", theta_N, sample, batch_statistics, squares)

    def squared_gradients(self, theta_N: torch.Tensor, sample: Sample) -> VectorSum:
        return self._vector_sum("statistics", theta_N, sample, batch_statistics=False, squares=True)

    def _vector_sum(
        self, phase: str, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool, squares: bool
    ) -> VectorSum:
        sample = self._fitting(sample)
        with self.account.measure(phase):
            share = self._without_bad(
                phase, sample, lambda: self._gradient(theta_N, sample, batch_statistics, squares), 1 + squares
            )
            assert share.vector is not None
            summed = None if share.squares is None else share.squares.float()
            return VectorSum(share.vector.float(), float(np.sum(share.values)), int(share.frames.sum()), summed)

    def statistics(self, theta_N: torch.Tensor, sample: Sample) -> torch.Tensor:
        sample = self._fitting(sample)
        with self.account.measure("statistics"):
            share = self._without_bad("statistics", sample, lambda: self._moments(theta_N, sample))
        assert share.vector is not None
        return self.evaluator.buffers_from(share.vector)

    def kronecker_factors(self, theta_N: torch.Tensor, sample: Sample, reduce: bool = False) -> KroneckerSums:
        sample, maps, layout = self._fitting(sample), self.evaluator.maps, self.evaluator.factors
        with self.account.measure("statistics"):
            share = self._without_bad(
                "statistics", sample, lambda: self._factors(theta_N, sample, reduce), layout.size / self.layout.size
            )
        assert share.vector is not None
        return KroneckerSums(maps, layout, share.vector.float(), int(share.frames.sum()))

    def set_buffers(self, buffers: torch.Tensor) -> None:
        self.evaluator.set_buffers(buffers)

    def pair_store(self, limit: int, dtype: torch.dtype, sharded: bool) -> PairStore:
        return Pairs(limit, dtype)

    def choose_precision(self, theta_N: torch.Tensor, sample: Sample) -> tuple[Precision, str]:
        with self.account.measure("linearisation"), memory_watched():
            return measured_precision(self.evaluator, theta_N, self._fitting(sample))

    @contextmanager
    def linearize(
        self, theta_N: torch.Tensor, sample: Sample, precision: Precision = Precision.FP32
    ) -> Iterator[OpenLinearisation]:
        sample = self._fitting(sample)
        with self.account.measure("linearisation"):
            share = self._without_bad("linearisation", sample, lambda: self._open(theta_N, sample, precision))
        handle = OpenLinearisation(int(share.frames.sum()), functools.partial(self._counted_product, sample))
        try:
            yield handle
        finally:
            handle.close()
            self._close()

    def _counted_product(self, sample: Sample, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        share_of_flops = self.evaluator.share_of_flops(matrix.groups, sample)
        self.account.count("products", self._sets(sample) * share_of_flops)
        self.account.vectors += 2
        with self.account.measure("products"):
            return self._product(v_N, matrix).float()

    def _counted(self, phase: str, sample: Sample, evaluate: Callable[[], Share], reduced: float = 0) -> Share:
        """Evaluate, and enter into the account what that costs; `reduced` vectors (N,) come of it."""
        self.account.count(phase, self._sets(sample))
        self.account.vectors += reduced
        return evaluate()

    def _sets(self, sample: Sample) -> float:
        """Frames of the sample's plan (of the features, as the utterances' lengths) per frame of the training set."""
        return sum(minibatch.frames for minibatch in self.evaluator.plan(sample)) / self.frames("train")

    def _sends(self, theta_N: torch.Tensor) -> bool:
        """Whether θ is another tensor than at the evaluation before, or was written to: a cluster sends it then."""
        seen, version = self._seen
        fresh = seen is None or seen() is not theta_N or version != theta_N._version
        self._seen = weakref.ref(theta_N), theta_N._version
        self.account.vectors += fresh
        return fresh

    def _without_bad(self, phase: str, sample: Sample, evaluate: Callable[[], Share], reduced: float = 0) -> Share:
        """Evaluate; while utterances turn non-finite, name them, leave them out and evaluate anew."""
        while True:
            share = self._counted(phase, sample, evaluate, reduced)
            if not share.bad:
                return share
            self._left_out = self._left_out | share.bad
            ids = self.evaluator.sets["train"].ids
            names = ", ".join(ids[i] for i in sorted(share.bad)[:5]) + (" …" if len(share.bad) > 5 else "")
            self._say(f"not finite, left out of this update: {len(share.bad)} utterances ({names})")
            if len(self._left_out) > self._bad_share * len(ids):
                raise Diverged(
                    f"{len(self._left_out)} of {len(ids)} training utterances are not finite at the current "
                    f"parameters ({names})",
                    "Check features (asr-hf validate) and labels, or lower the step (optimizer options).",
                )

    # What a cluster does in another way.

    def _losses(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._alone(theta_N, sample, self.evaluator.losses)

    def _gradient(self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool, squares: bool) -> Share:
        gradient = functools.partial(self.evaluator.gradient, batch_statistics=batch_statistics, squares=squares)
        return self._alone(theta_N, sample, gradient)

    def _moments(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._alone(theta_N, sample, self.evaluator.batch_moments)

    def _factors(self, theta_N: torch.Tensor, sample: Sample, reduce: bool) -> Share:
        return self._alone(theta_N, sample, functools.partial(self.evaluator.kronecker_factors, reduce=reduce))

    def _open(self, theta_N: torch.Tensor, sample: Sample, precision: Precision) -> Share:
        def linearize(theta_N: torch.Tensor, sample: Sample, which: Sequence[int], left_out: frozenset[int]) -> Share:
            share, self._opened = self.evaluator.linearize(theta_N, sample, which, left_out, precision)
            self.account.recomputed = self._opened.minibatches - self._opened.kept
            return share

        return self._alone(theta_N, sample, linearize)

    _opened: LocalLinearisation | None = None

    def _product(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        assert self._opened is not None
        begin = time.perf_counter()
        with memory_watched():
            product = self._opened.product(v_N, matrix)
        self.account.worked(0, self._opened.frames, time.perf_counter() - begin)
        return product

    def _close(self) -> None:
        self._opened = None

    def _alone(self, theta_N: torch.Tensor, sample: Sample, evaluate: Callable[..., Share]) -> Share:
        """All minibatches of the sample, evaluated here."""
        begin = time.perf_counter()
        self._sends(theta_N)
        with memory_watched():
            share = evaluate(theta_N, sample, range(len(self.evaluator.plan(sample))), self._left_out)
        self.account.worked(0, int(share.frames.sum()), time.perf_counter() - begin)
        return share
