"""LocalObjective: the Objective evaluated by this process alone, and the bookkeeping that a cluster shares."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.errors import InputError
from asr_hf.objective.auto_precision import measured_precision
from asr_hf.objective.evaluator import Evaluator, Share
from asr_hf.objective.linearisation import LocalLinearisation
from asr_hf.objective.objective import GAUSS_NEWTON, Account, Matrix, Penalty, Sum, VectorSum


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
        self.windowed = evaluator.model.windowed
        self.subsampling = evaluator.model.subsampling
        self.chunk = evaluator.model.chunk
        self.penalty: Penalty | None = evaluator.model.penalty()
        self.normalisations = evaluator.normalisations
        self.account = Account()
        self._bad_share = bad_share
        self._say = say
        self._left_out: frozenset[int] = frozenset()

    def begin_update(self) -> None:
        self._left_out = frozenset()

    def frames(self, subset: str) -> int:
        return self.evaluator.sets[subset].frames

    def minibatches(self, sample: Sample) -> int:
        return len(self.evaluator.plan(sample))

    def loss(self, theta_N: torch.Tensor, sample: Sample) -> Sum:
        with self.account.measure("evaluation"):
            share = self._losses(theta_N, sample)
        value = float(np.sum(share.values))
        return Sum(value if np.isfinite(value) else float("inf"), int(share.frames.sum()))

    def gradient(self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool = False) -> VectorSum:
        with self.account.measure("gradient"):
            share = self._without_bad(lambda: self._gradient(theta_N, sample, batch_statistics))
        assert share.vector is not None
        return VectorSum(share.vector.float(), float(np.sum(share.values)), int(share.frames.sum()))

    def statistics(self, theta_N: torch.Tensor, sample: Sample) -> torch.Tensor:
        with self.account.measure("evaluation"):
            share = self._without_bad(lambda: self._moments(theta_N, sample))
        assert share.vector is not None
        return self.evaluator.buffers_from(share.vector)

    def set_buffers(self, buffers: torch.Tensor) -> None:
        self.evaluator.set_buffers(buffers)

    def choose_precision(self, theta_N: torch.Tensor, sample: Sample) -> tuple[Precision, str]:
        with self.account.measure("linearisation"):
            return measured_precision(self.evaluator, theta_N, sample)

    @contextmanager
    def linearize(
        self, theta_N: torch.Tensor, sample: Sample, precision: Precision = Precision.FP32
    ) -> Iterator[OpenLinearisation]:
        with self.account.measure("linearisation"):
            share = self._without_bad(lambda: self._open(theta_N, sample, precision))
        handle = OpenLinearisation(int(share.frames.sum()), self._timed_product)
        try:
            yield handle
        finally:
            handle.close()
            self._close()

    def _timed_product(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        with self.account.measure("products"):
            return self._product(v_N, matrix).float()

    def _without_bad(self, evaluate: Callable[[], Share]) -> Share:
        """Evaluate; while utterances turn non-finite, name them, leave them out and evaluate anew."""
        while True:
            share = evaluate()
            if not share.bad:
                return share
            self._left_out = self._left_out | share.bad
            ids = self.evaluator.sets["train"].ids
            names = ", ".join(ids[i] for i in sorted(share.bad)[:5]) + (" …" if len(share.bad) > 5 else "")
            self._say(f"not finite, left out of this update: {len(share.bad)} utterances ({names})")
            if len(self._left_out) > self._bad_share * len(ids):
                raise InputError(
                    f"{len(self._left_out)} of {len(ids)} training utterances are not finite at the current "
                    f"parameters ({names})",
                    "Check their features with asr-hf validate, or lower the step (optimizer options).",
                )

    # What a cluster does in another way.

    def _losses(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._alone(sample, lambda which: self.evaluator.losses(theta_N, sample, which, self._left_out))

    def _gradient(self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool) -> Share:
        return self._alone(
            sample,
            lambda which: self.evaluator.gradient(theta_N, sample, which, self._left_out, batch_statistics),
        )

    def _moments(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._alone(sample, lambda which: self.evaluator.batch_moments(theta_N, sample, which, self._left_out))

    def _open(self, theta_N: torch.Tensor, sample: Sample, precision: Precision) -> Share:
        def linearize(which: Sequence[int]) -> Share:
            share, self._opened = self.evaluator.linearize(theta_N, sample, which, self._left_out, precision)
            self.account.recomputed = self._opened.minibatches - self._opened.kept
            return share

        return self._alone(sample, linearize)

    _opened: LocalLinearisation | None = None

    def _product(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        assert self._opened is not None
        begin = time.perf_counter()
        product = self._opened.product(v_N, matrix)
        self.account.worked(0, self._opened.frames, time.perf_counter() - begin)
        return product

    def _close(self) -> None:
        self._opened = None

    def _alone(self, sample: Sample, evaluate: Callable[[Sequence[int]], Share]) -> Share:
        begin = time.perf_counter()
        share = evaluate(range(len(self.evaluator.plan(sample))))
        self.account.worked(0, int(share.frames.sum()), time.perf_counter() - begin)
        return share
