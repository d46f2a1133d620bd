"""ClusterObjective: the face of an Objective, summed over MPI ranks by their master."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from asr_hf.cluster.pairs import ShardedPairs, Slice
from asr_hf.cluster.protocol import PRECISIONS, Command, Operation, write_groups
from asr_hf.cluster.ranks import RankLost, Ranks
from asr_hf.cluster.worker import Station
from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.objective.evaluator import Evaluator, Share
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Matrix, OutOfMemory, UpdateLost
from asr_hf.solvers.pairs import PairStore

Result = TypeVar("Result")


class ClusterObjective(LocalObjective):
    """The Objective of the master: tells the workers, does its own share, and sums.

    Where ranks die in a command it goes on with the others: it gives them what they must know, opens the linearisation
    again, and repeats the command. Sums do not depend on who computes, so nothing else changes.

    Args:
        ranks: the communicator; the other ranks are in `worker.Worker.serve`.
        task: from which the workers make their evaluators.
        evaluator, bad_share, say: as for LocalObjective.
        dedicated_master: rank 0 is dealt no minibatches.
    """

    def __init__(
        self,
        ranks: Ranks,
        task: object,
        evaluator: Evaluator,
        dedicated_master: bool = False,
        bad_share: float = 0.01,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(evaluator, bad_share, say)
        self.ranks, self._task, self._task_number = ranks, task, ranks.new_task()
        self._station = Station(ranks, evaluator, dedicated_master)
        self._stores = 0  # of pairs, made so far
        self._lost_stores = 0  # of these, how many are lost
        self._sent_buffers: torch.Tensor | None = None
        self._linearised: Callable[[], Share] | None = None  # opens the linearisation that is open
        self._handle = 0  # of it; 0: it is not open now
        self._fresh = True  # the workers know nothing yet
        self._in_command = False  # an exception left a command unfinished: the ranks no longer listen alike
        self._repeated(lambda: None)

    def _repeated(self, command: Callable[[], Result]) -> Result:
        """Give a command, again after every loss of ranks."""
        while True:
            try:
                self._in_command = True
                self._inform()
                result = command()
                self._in_command = False
                return result
            except RankLost:
                self._recover()

    def _inform(self) -> None:
        """Tell workers that know nothing, at the beginning or after a loss, what they must know for any command."""
        if self._fresh:
            self.ranks.tell(Command.TASK, handle=self._task_number)
            self.ranks.broadcast_object(self._task)
            with self.ranks.watchdog.unhurried():  # the workers read their data
                self.ranks.meet()
            self._seen, self._fresh = (None, 0), False
            if self._sent_buffers is not None:
                self._broadcast_buffers(self._sent_buffers)
        if self._linearised is not None and not self._handle:
            self._linearised()

    def _recover(self) -> None:
        begin = time.perf_counter()
        lost = self.ranks.recover()
        if lost:
            self._say(f"died: {', '.join(map(str, lost))}; going on with {self.ranks.size} ranks")
        self._station.close()
        self._handle, self._fresh = 0, True
        self.account.seconds["communication"] += time.perf_counter() - begin
        if self._stores > self._lost_stores:
            self._lost_stores, self._linearised = self._stores, None
            raise UpdateLost

    def set_buffers(self, buffers: torch.Tensor) -> None:
        self._repeated(lambda: self._broadcast_buffers(buffers))
        self._sent_buffers = buffers.clone()
        super().set_buffers(buffers)

    def _broadcast_buffers(self, buffers: torch.Tensor) -> None:
        self.ranks.tell(Command.BUFFERS)
        self.ranks.broadcast(buffers.contiguous().cpu().numpy())

    def pair_store(self, limit: int, dtype: torch.dtype, sharded: bool) -> PairStore:
        if not sharded or self.ranks.size == 1:
            return super().pair_store(limit, dtype, sharded)
        self._stores += 1
        communicating = lambda: self.account.measure("communication")  # noqa: E731
        own = Slice(self.ranks, self._station.reserved, limit, dtype, self.device, communicating)
        return ShardedPairs(own, functools.partial(self._tell_store, self._stores))

    @contextmanager
    def _tell_store(self, store: int, operation: Operation, moved: int = 0, **fields: float) -> Iterator[None]:
        """A command PAIRS, open while the master does its own part; a store that lost a slice can only be dropped."""
        if store <= self._lost_stores:
            if operation is not Operation.DROP:
                raise UpdateLost
            yield
            return
        self._in_command = True
        try:
            with self.account.measure("communication"):
                self._inform()
                self.ranks.tell(Command.PAIRS, None, store=store, operation=operation, **fields)
            self.account.vectors += moved / self.layout.size
            yield
        except RankLost:
            self._recover()
        self._in_command = False

    def _evaluate(self, command: Command, theta_N: torch.Tensor, sample: Sample, **fields: int) -> Share:
        return self._repeated(lambda: self._evaluate_once(command, theta_N, sample, self._left_out, **fields))

    def _evaluate_once(
        self, command: Command, theta_N: torch.Tensor, sample: Sample, left_out: frozenset[int], **fields: int
    ) -> Share:
        begin = time.perf_counter()
        fresh = self._sends(theta_N)
        named = np.array(sorted(left_out), dtype=np.int64)
        header = self.ranks.tell(command, sample, theta_follows=int(fresh), left_out=len(named), **fields)
        if len(named):
            self.ranks.broadcast(named)
        if fresh:
            self.ranks.broadcast(theta_N.contiguous().cpu().numpy())
        share, work = self._station.evaluate(header, theta_N, sample, left_out)
        if self.ranks.broadcast_flag(bool(work[:, 2].any())):
            share.bad.update(*self.ranks.gather_objects(share.bad))
        self._enter(work, time.perf_counter() - begin)
        if command is Command.GRADIENT:
            self.account.idled(len(work) - self._station.reserved - int(np.count_nonzero(work[:, 0])))
        if command is Command.LINEARIZE:
            self._handle = int(header["number"][0])
            self.account.recomputed = int(work[:, 3].sum())
        return share

    def _enter(self, work: np.ndarray, elapsed: float) -> None:
        """Account for every rank's work; what the master did not compute was communication and waiting."""
        for rank, (frames, seconds, *_) in zip(self.ranks.members, work, strict=True):
            self.account.worked(rank, int(frames), float(seconds))
        if work[:, 4].any():
            self._in_command = False  # it was done to its end
            where = ", ".join(str(self.ranks.peers[self.ranks.members[int(at)]]) for at in work[:, 4].nonzero()[0])
            raise OutOfMemory(f"out of memory: {where}")
        self.account.seconds["communication"] += max(0.0, elapsed - float(work[0, 1]))

    def _losses(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._evaluate(Command.LOSS, theta_N, sample)

    def _gradient(self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool, squares: bool) -> Share:
        asked = {"batch_statistics": int(batch_statistics), "squares": int(squares)}
        return self._evaluate(Command.GRADIENT, theta_N, sample, **asked)

    def _moments(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._evaluate(Command.MOMENTS, theta_N, sample)

    def _factors(self, theta_N: torch.Tensor, sample: Sample, reduce: bool) -> Share:
        return self._evaluate(Command.FACTORS, theta_N, sample, reduce=int(reduce))

    def _open(self, theta_N: torch.Tensor, sample: Sample, precision: Precision) -> Share:
        number, left_out = PRECISIONS.index(precision), self._left_out

        def linearise() -> Share:
            return self._evaluate_once(Command.LINEARIZE, theta_N, sample, left_out, precision=number)

        share = self._repeated(linearise)
        self._linearised = linearise
        return share

    def _product(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        return self._repeated(lambda: self._product_once(v_N, matrix))

    def _product_once(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        begin = time.perf_counter()
        index, grouped = self.evaluator.criterion.matrices.index(matrix.name), int(bool(matrix.groups))
        self.ranks.tell(
            Command.PRODUCT, handle=self._handle, matrix=index, structural=matrix.structural, grouped=grouped
        )
        if grouped:
            self.ranks.broadcast(write_groups(matrix.groups, self.layout.blocks))
        self.ranks.broadcast(v_N.contiguous().cpu().numpy())
        product, work = self._station.product(self._handle, v_N, matrix)
        self._enter(work, time.perf_counter() - begin)
        return product

    def _close(self) -> None:
        self._linearised = None
        if not self._in_command:
            self._repeated(lambda: self.ranks.tell(Command.CLOSE))
        self._station.close()
        self._handle = 0
