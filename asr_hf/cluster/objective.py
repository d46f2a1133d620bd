"""ClusterObjective: the face of an Objective, summed over MPI ranks by their master."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from asr_hf.cluster.pairs import ShardedPairs, Slice
from asr_hf.cluster.protocol import HEADER, Command, Operation, write_groups, write_sample
from asr_hf.cluster.ranks import Ranks
from asr_hf.cluster.worker import PRECISIONS, Station
from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.objective.evaluator import Evaluator, Share
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Matrix
from asr_hf.solvers.pairs import PairStore


class ClusterObjective(LocalObjective):
    """The Objective of the master: tells the workers, does its own share, and sums.

    Args:
        ranks: the communicator; the other ranks are in `worker.serve`.
        evaluator, bad_share, say: as for LocalObjective.
        dedicated_master: rank 0 is dealt no minibatches.
    """

    def __init__(
        self,
        ranks: Ranks,
        evaluator: Evaluator,
        dedicated_master: bool = False,
        bad_share: float = 0.01,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(evaluator, bad_share, say)
        self.ranks = ranks
        self._station = Station(ranks, evaluator, dedicated_master)
        self._number = 0
        self._handle = 0
        self._stores = 0  # of pairs, made so far
        self._in_command = False  # an exception left a command unfinished: the ranks no longer listen alike

    def stop(self) -> None:
        """Let the workers go; the objective cannot be used afterwards."""
        self._tell(Command.STOP)

    def set_buffers(self, buffers: torch.Tensor) -> None:
        self._tell(Command.BUFFERS)
        self.ranks.broadcast(buffers.contiguous().cpu().numpy())
        super().set_buffers(buffers)

    def pair_store(self, limit: int, dtype: torch.dtype, sharded: bool) -> PairStore:
        if not sharded or self.ranks.size == 1:
            return super().pair_store(limit, dtype, sharded)
        self._stores += 1
        communicating = lambda: self.account.measure("communication")  # noqa: E731
        own = Slice(self.ranks, self._station.reserved, limit, dtype, self.device, communicating)
        return ShardedPairs(own, functools.partial(self._tell_store, self._stores))

    @contextmanager
    def _tell_store(self, store: int, operation: Operation, moved: int = 0, **fields: float) -> Iterator[None]:
        """A command PAIRS, open while the master does its own part."""
        self._in_command = True
        with self.account.measure("communication"):
            self._tell(Command.PAIRS, None, store=store, operation=operation, **fields)
        self.account.vectors += moved / self.layout.size
        yield
        self._in_command = False

    def _tell(self, command: Command, sample: Sample | None = None, **fields: float) -> np.ndarray:
        self._number += 1
        header = np.zeros(1, dtype=HEADER)
        header["number"], header["command"] = self._number, command
        for name, value in fields.items():
            header[name] = value
        if sample is not None:
            write_sample(header, sample)
        self.ranks.broadcast(header)
        return header

    def _evaluate(self, command: Command, theta_N: torch.Tensor, sample: Sample, **fields: int) -> Share:
        begin, self._in_command = time.perf_counter(), True
        fresh = self._sends(theta_N)
        left_out = np.array(sorted(self._left_out), dtype=np.int64)
        header = self._tell(command, sample, theta_follows=int(fresh), left_out=len(left_out), **fields)
        if len(left_out):
            self.ranks.broadcast(left_out)
        if fresh:
            self.ranks.broadcast(theta_N.contiguous().cpu().numpy())
        share, work = self._station.evaluate(header, theta_N, sample, self._left_out)
        self._enter(work, time.perf_counter() - begin)
        if self.ranks.broadcast_flag(bool(work[:, 2].any())):
            share.bad.update(*self.ranks.gather_objects(share.bad))
        if command is Command.LINEARIZE:
            self.account.recomputed = int(work[:, 3].sum())
        self._in_command = False
        return share

    def _enter(self, work: np.ndarray, elapsed: float) -> None:
        """Account for every rank's work; what the master did not compute was communication and waiting."""
        for rank, (frames, seconds, *_) in enumerate(work):
            self.account.worked(rank, int(frames), float(seconds))
        self.account.seconds["communication"] += max(0.0, elapsed - float(work[0, 1]))

    def _losses(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._evaluate(Command.LOSS, theta_N, sample)

    def _gradient(self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool, squares: bool) -> Share:
        asked = {"batch_statistics": int(batch_statistics), "squares": int(squares)}
        return self._evaluate(Command.GRADIENT, theta_N, sample, **asked)

    def _moments(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._evaluate(Command.MOMENTS, theta_N, sample)

    def _open(self, theta_N: torch.Tensor, sample: Sample, precision: Precision) -> Share:
        share = self._evaluate(Command.LINEARIZE, theta_N, sample, precision=PRECISIONS.index(precision))
        self._handle = self._number
        return share

    def _product(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        begin, self._in_command = time.perf_counter(), True
        index, grouped = self.evaluator.criterion.matrices.index(matrix.name), int(bool(matrix.groups))
        structural = matrix.structural
        self._tell(Command.PRODUCT, handle=self._handle, matrix=index, structural=structural, grouped=grouped)
        if grouped:
            self.ranks.broadcast(write_groups(matrix.groups, self.layout.blocks))
        self.ranks.broadcast(v_N.contiguous().cpu().numpy())
        product, work = self._station.product(self._handle, v_N, matrix)
        self._enter(work, time.perf_counter() - begin)
        self._in_command = False
        return product

    def _close(self) -> None:
        if not self._in_command:
            self._tell(Command.CLOSE)
        self._station.close()
        self._handle = 0
