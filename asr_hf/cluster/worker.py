"""A worker holds data, waits for commands and returns its share of each sum; the master does its share the same way."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from asr_hf.cluster.pairs import Shelf
from asr_hf.cluster.protocol import HEADER, PRECISIONS, Command, CommandError, check, read_groups, read_sample
from asr_hf.cluster.ranks import RankLost, Ranks
from asr_hf.data.plan import Sample, deal
from asr_hf.objective.evaluator import Evaluator, Share
from asr_hf.objective.linearisation import LocalLinearisation
from asr_hf.objective.objective import Matrix


class Station:
    """One rank's part in every command: evaluate the minibatches dealt to it and reduce.

    Args:
        ranks: the communicator.
        evaluator: model, criterion and data of this rank.
        dedicated_master: rank 0 is dealt nothing.
    """

    def __init__(self, ranks: Ranks, evaluator: Evaluator, dedicated_master: bool) -> None:
        self.ranks = ranks
        self.evaluator = evaluator
        self._dedicated = dedicated_master
        self._open: LocalLinearisation | None = None
        self._handle = 0

    @property
    def reserved(self) -> int:
        """Ranks, from the master on, that hold nothing."""
        return 1 if self._dedicated and self.ranks.size > 1 else 0

    def dealt(self, sample: Sample) -> Sequence[int]:
        """Indices of the sample's minibatches that are this rank's."""
        hands = deal(self.evaluator.plan(sample), self.ranks.size - self.reserved)
        seat = self.ranks.rank - self.reserved
        return hands[seat] if seat >= 0 else []

    def evaluate(
        self, header: np.ndarray, theta_N: torch.Tensor, sample: Sample, left_out: frozenset[int]
    ) -> tuple[Share, np.ndarray]:
        """This rank's share of a command on a sample, summed into the master's, who sees all ranks' work."""
        begin, which = time.perf_counter(), self.dealt(sample)
        try:
            share, exhausted = self._share(header, theta_N, sample, which, left_out), False
        except torch.OutOfMemoryError:
            share, exhausted = self._share(header, theta_N, sample, [], left_out), True
        recomputed = self._open.minibatches - self._open.kept if self._open else 0
        work = self._report(int(share.frames.sum()), time.perf_counter() - begin, len(share.bad), recomputed, exhausted)
        self.ranks.sum_to_master(share.values)
        self.ranks.sum_to_master(share.frames)
        for vector in (share.vector, share.squares):
            if vector is not None:
                self._sum(vector)
        return share, work

    def _share(
        self,
        header: np.ndarray,
        theta_N: torch.Tensor,
        sample: Sample,
        which: Sequence[int],
        left_out: frozenset[int],
    ) -> Share:
        command = Command(int(header["command"][0]))
        if command is Command.LOSS:
            return self.evaluator.losses(theta_N, sample, which, left_out)
        if command is Command.GRADIENT:
            asked = bool(header["batch_statistics"][0]), bool(header["squares"][0])
            return self.evaluator.gradient(theta_N, sample, which, left_out, *asked)
        if command is Command.MOMENTS:
            return self.evaluator.batch_moments(theta_N, sample, which, left_out)
        if command is Command.FACTORS:
            return self.evaluator.kronecker_factors(theta_N, sample, which, left_out, bool(header["reduce"][0]))
        self.close()  # before the next needs its memory
        precision = PRECISIONS[int(header["precision"][0])]
        share, self._open = self.evaluator.linearize(theta_N, sample, which, left_out, precision)
        self._handle = int(header["number"][0])
        return share

    def product(self, handle: int, v_N: torch.Tensor, matrix: Matrix) -> tuple[torch.Tensor, np.ndarray]:
        """This rank's share of a product on the open linearisation, summed into the master's (float64)."""
        if self._open is None or handle != self._handle:
            raise CommandError(f"it is about linearisation {handle}, but {self._handle or 'none'} is open")
        begin = time.perf_counter()
        try:
            product, exhausted = self._open.product(v_N, matrix), False
        except torch.OutOfMemoryError:
            product, exhausted = torch.zeros_like(v_N, dtype=torch.float64), True
        work = self._report(self._open.frames, time.perf_counter() - begin, exhausted=exhausted)
        self._sum(product)
        return product, work

    def _sum(self, vector: torch.Tensor) -> None:
        """Sum a float64 vector of any device into the master's."""
        staged = vector.cpu()
        self.ranks.sum_to_master(staged.numpy())
        if staged is not vector and self.ranks.rank == 0:
            vector.copy_(staged)

    def close(self) -> None:
        self._open, self._handle = None, 0

    def _report(
        self, frames: int, seconds: float, bad: int = 0, recomputed: int = 0, exhausted: bool = False
    ) -> np.ndarray:
        """(ranks, 5) on the master, of every rank.

        Frames, seconds, bad utterances, minibatches beyond the byte budget, and whether its memory was exhausted.
        """
        return self.ranks.gather_to_master(np.array([frames, seconds, bad, recomputed, exhausted], dtype=np.float64))


class Worker:
    """A worker's side of the protocol: what it holds, and what it does at each command.

    Args:
        ranks: the communicator.
        prepare: makes of the master's task the evaluator, and says whether the master is dedicated.
    """

    def __init__(self, ranks: Ranks, prepare: Callable[[object], tuple[Evaluator, bool]]) -> None:
        self.ranks, self._prepare = ranks, prepare
        self._expected: int | None = 1  # number of the next command; None: any, after a loss of ranks
        self._task = 0  # number of the task that it is prepared for

    def serve(self) -> None:
        """Obey the master's commands until LEAVE; where ranks die, leave them behind and go on."""
        while True:
            try:
                if not self._obey_next():
                    return
            except RankLost:
                self.ranks.recover()
                self._expected = None
                if self._task:
                    self._station.close()
                    self._clear_shelf()

    def _obey_next(self) -> bool:
        header = np.zeros(1, dtype=HEADER)
        self.ranks.broadcast(header)
        record = header[0]
        check(record)
        command, number = Command(int(record["command"])), int(record["number"])
        if self._expected not in (None, number):
            raise CommandError(f"it has number {number}, not {self._expected}")
        if not self._task and command not in (Command.TASK, Command.LEAVE):
            raise CommandError(f"{command.name} came before a task")
        self._expected = number + 1
        if command is Command.LEAVE:
            return False
        if command is Command.TASK:
            self._begin(int(record["handle"]), self.ranks.broadcast_object())
            self.ranks.meet()
        elif command is Command.CLOSE:
            self._station.close()
        elif command is Command.PAIRS:
            try:
                self._shelf.obey(record)
            except (ValueError, IndexError, RuntimeError) as error:
                raise CommandError(f"store {record['store']}: {error}") from error
        elif command is Command.BUFFERS:
            self.ranks.broadcast(self._buffers)
            self._station.evaluator.set_buffers(self._tensor(self._buffers))
        elif command is Command.PRODUCT:
            self._product(record)
        else:
            self._evaluate(header)
        return True

    def _begin(self, number: int, task: object) -> None:
        if number == self._task:  # told again after a loss
            return
        evaluator, dedicated = self._prepare(task)
        self._task, self._station = number, Station(self.ranks, evaluator, dedicated)
        self._clear_shelf()
        self._theta, self._vector = (np.zeros(evaluator.layout.size, dtype=np.float32) for _ in range(2))
        self._buffers = np.zeros(evaluator.buffers.size, dtype=np.float32)

    def _clear_shelf(self) -> None:
        self._shelf = Shelf(self.ranks, self._station.reserved, self._station.evaluator.device)

    def _product(self, record: np.void) -> None:
        evaluator = self._station.evaluator
        groups: tuple[tuple[str, ...], ...] = ()
        if record["grouped"]:
            group_of = np.zeros(len(evaluator.layout.blocks), dtype=np.int64)
            self.ranks.broadcast(group_of)
            groups = read_groups(group_of, evaluator.layout.blocks)
        self.ranks.broadcast(self._vector)
        matrices, index = evaluator.criterion.matrices, int(record["matrix"])
        if index >= len(matrices):
            raise CommandError(f"its matrix is {index}, of {len(matrices)}")
        name = matrices[index]
        matrix = Matrix(name, float(record["structural"]), groups)
        self._station.product(int(record["handle"]), self._tensor(self._vector), matrix)

    def _evaluate(self, header: np.ndarray) -> None:
        record, station = header[0], self._station
        utterances = len(station.evaluator.sets["train"].ids)
        if record["left_out"] > utterances:
            raise CommandError(f"it leaves out {record['left_out']} of {utterances} utterances")
        left_out = np.zeros(int(record["left_out"]), dtype=np.int64)
        if len(left_out):
            self.ranks.broadcast(left_out)
        if record["theta_follows"]:
            self.ranks.broadcast(self._theta)
        theta_N = self._tensor(self._theta.copy())
        share, _ = station.evaluate(header, theta_N, read_sample(header), frozenset(left_out.tolist()))
        if self.ranks.broadcast_flag():
            self.ranks.gather_objects(share.bad)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._station.evaluator.device)
