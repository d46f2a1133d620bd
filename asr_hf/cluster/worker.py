"""A worker holds data, waits for commands and returns its share of each sum; the master does its share the same way."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from asr_hf.cluster.pairs import Shelf
from asr_hf.cluster.protocol import HEADER, Command, read_groups, read_sample
from asr_hf.cluster.ranks import Ranks
from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample, deal
from asr_hf.objective.evaluator import Evaluator, Share
from asr_hf.objective.linearisation import LocalLinearisation
from asr_hf.objective.objective import Matrix

PRECISIONS = tuple(Precision)  # as numbered in the protocol


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
        self.reserved = 1 if dedicated_master and ranks.size > 1 else 0  # ranks, from the master on, that hold nothing
        self._open: LocalLinearisation | None = None
        self._handle = 0

    def dealt(self, sample: Sample) -> Sequence[int]:
        """Indices of the sample's minibatches that are this rank's."""
        hands = deal(self.evaluator.plan(sample), self.ranks.size - self.reserved)
        seat = self.ranks.rank - self.reserved
        return hands[seat] if seat >= 0 else []

    def evaluate(
        self, header: np.ndarray, theta_N: torch.Tensor, sample: Sample, left_out: frozenset[int]
    ) -> tuple[Share, np.ndarray]:
        """This rank's share of a command on a sample, summed into the master's, who sees all ranks' work."""
        begin, which, recomputed = time.perf_counter(), self.dealt(sample), 0
        command = Command(int(header["command"][0]))
        if command is Command.LOSS:
            share = self.evaluator.losses(theta_N, sample, which, left_out)
        elif command is Command.GRADIENT:
            asked = bool(header["batch_statistics"][0]), bool(header["squares"][0])
            share = self.evaluator.gradient(theta_N, sample, which, left_out, *asked)
        elif command is Command.MOMENTS:
            share = self.evaluator.batch_moments(theta_N, sample, which, left_out)
        else:
            precision = PRECISIONS[int(header["precision"][0])]
            share, self._open = self.evaluator.linearize(theta_N, sample, which, left_out, precision)
            self._handle = int(header["number"][0])
            recomputed = self._open.minibatches - self._open.kept
        work = self._report(int(share.frames.sum()), time.perf_counter() - begin, len(share.bad), recomputed)
        self.ranks.sum_to_master(share.values)
        self.ranks.sum_to_master(share.frames)
        for vector in (share.vector, share.squares):
            if vector is not None:
                self.ranks.sum_to_master(vector.cpu().numpy())
        return share, work

    def product(self, handle: int, v_N: torch.Tensor, matrix: Matrix) -> tuple[torch.Tensor, np.ndarray]:
        """This rank's share of a product on the open linearisation, summed into the master's (float64)."""
        if self._open is None or handle != self._handle:
            raise RuntimeError(f"product on linearisation {handle}, but {self._handle or 'none'} is open")
        begin = time.perf_counter()
        product = self._open.product(v_N, matrix)
        work = self._report(self._open.frames, time.perf_counter() - begin)
        self.ranks.sum_to_master(product.cpu().numpy())
        return product, work

    def close(self) -> None:
        self._open, self._handle = None, 0

    def _report(self, frames: int, seconds: float, bad: int = 0, recomputed: int = 0) -> np.ndarray:
        """(ranks, 4) on the master: frames, seconds, bad utterances and minibatches beyond the budget of every rank."""
        return self.ranks.gather_to_master(np.array([frames, seconds, bad, recomputed], dtype=np.float64))


def serve(ranks: Ranks, evaluator: Evaluator, dedicated_master: bool) -> None:
    """Obey the master's commands until STOP."""
    station = Station(ranks, evaluator, dedicated_master)
    shelf = Shelf(ranks, station.reserved, evaluator.device)
    theta = np.zeros(evaluator.layout.size, dtype=np.float32)
    vector = np.zeros_like(theta)
    buffers = np.zeros(evaluator.buffers.size, dtype=np.float32)
    blocks, matrices = evaluator.layout.blocks, evaluator.criterion.matrices
    tensor: Callable[[np.ndarray], torch.Tensor] = lambda array: torch.from_numpy(array).to(evaluator.device)  # noqa: E731
    header = np.zeros(1, dtype=HEADER)
    expected = 0
    while True:
        ranks.broadcast(header)
        expected += 1
        record = header[0]
        command, number = Command(int(record["command"])), int(record["number"])
        if number != expected:
            raise RuntimeError(f"rank {ranks.rank} got command {number} and expected {expected}")
        if command is Command.STOP:
            return
        if command is Command.CLOSE:
            station.close()
            continue
        if command is Command.PAIRS:
            shelf.obey(record)
            continue
        if command is Command.BUFFERS:
            ranks.broadcast(buffers)
            evaluator.set_buffers(tensor(buffers))
            continue
        if command is Command.PRODUCT:
            groups: tuple[tuple[str, ...], ...] = ()
            if record["grouped"]:
                group_of = np.zeros(len(blocks), dtype=np.int64)
                ranks.broadcast(group_of)
                groups = read_groups(group_of, blocks)
            ranks.broadcast(vector)
            matrix = Matrix(matrices[int(record["matrix"])], float(record["structural"]), groups)
            station.product(int(record["handle"]), tensor(vector), matrix)
            continue
        left_out = np.zeros(int(record["left_out"]), dtype=np.int64)
        if len(left_out):
            ranks.broadcast(left_out)
        if record["theta_follows"]:
            ranks.broadcast(theta)
        share, _ = station.evaluate(header, tensor(theta.copy()), read_sample(header), frozenset(left_out.tolist()))
        if ranks.broadcast_flag():
            ranks.gather_objects(share.bad)
