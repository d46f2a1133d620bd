"""A worker holds data, waits for commands and returns its share of each sum; the master does its share the same way."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from asr_hf.cluster.protocol import HEADER, Command, read_sample
from asr_hf.cluster.ranks import Ranks
from asr_hf.data.plan import Sample, deal
from asr_hf.objective.evaluator import Evaluator, LocalLinearisation, Share


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
        self._reserved = 1 if dedicated_master and ranks.size > 1 else 0
        self._open: LocalLinearisation | None = None
        self._handle = 0

    def dealt(self, sample: Sample) -> Sequence[int]:
        """Indices of the sample's minibatches that are this rank's."""
        hands = deal(self.evaluator.plan(sample), self.ranks.size - self._reserved)
        seat = self.ranks.rank - self._reserved
        return hands[seat] if seat >= 0 else []

    def evaluate(
        self, command: Command, number: int, theta_N: torch.Tensor, sample: Sample, left_out: frozenset[int]
    ) -> tuple[Share, np.ndarray]:
        """This rank's share of a LOSS, GRADIENT or LINEARIZE, summed into the master's, who sees all ranks' work."""
        begin, which = time.perf_counter(), self.dealt(sample)
        if command is Command.LOSS:
            share = self.evaluator.losses(theta_N, sample, which, left_out)
        elif command is Command.GRADIENT:
            share = self.evaluator.gradient(theta_N, sample, which, left_out)
        else:
            share, self._open = self.evaluator.linearize(theta_N, sample, which, left_out)
            self._handle = number
        work = self._report(int(share.frames.sum()), time.perf_counter() - begin, len(share.bad))
        self.ranks.sum_to_master(share.values)
        self.ranks.sum_to_master(share.frames)
        if share.vector is not None:
            self.ranks.sum_to_master(share.vector.cpu().numpy())
        return share, work

    def product(self, handle: int, v_N: torch.Tensor, matrix: str) -> tuple[torch.Tensor, np.ndarray]:
        """This rank's share of a product on the open linearisation, summed into the master's (float64)."""
        if self._open is None or handle != self._handle:
            raise RuntimeError(f"product on linearisation {handle}, but {self._handle or 'none'} is open")
        begin = time.perf_counter()
        product = self._open.product(v_N, matrix)
        work = self._report(self._open.frames, time.perf_counter() - begin, 0)
        self.ranks.sum_to_master(product.cpu().numpy())
        return product, work

    def close(self) -> None:
        self._open, self._handle = None, 0

    def _report(self, frames: int, seconds: float, bad: int) -> np.ndarray:
        """(ranks, 3) on the master: frames, seconds and number of bad utterances of every rank."""
        return self.ranks.gather_to_master(np.array([frames, seconds, bad], dtype=np.float64))


def serve(ranks: Ranks, evaluator: Evaluator, dedicated_master: bool) -> None:
    """Obey the master's commands until STOP."""
    station = Station(ranks, evaluator, dedicated_master)
    theta = np.zeros(evaluator.layout.size, dtype=np.float32)
    vector = np.zeros_like(theta)
    matrices = evaluator.criterion.matrices
    tensor: Callable[[np.ndarray], torch.Tensor] = lambda array: torch.from_numpy(array).to(evaluator.device)  # noqa: E731
    header = np.zeros(1, dtype=HEADER)
    expected = 0
    while True:
        ranks.broadcast(header)
        expected += 1
        command, number = Command(int(header["command"][0])), int(header["number"][0])
        if number != expected:
            raise RuntimeError(f"rank {ranks.rank} got command {number} and expected {expected}")
        if command is Command.STOP:
            return
        if command is Command.CLOSE:
            station.close()
            continue
        if command is Command.PRODUCT:
            ranks.broadcast(vector)
            station.product(int(header["handle"][0]), tensor(vector), matrices[int(header["matrix"][0])])
            continue
        left_out = np.zeros(int(header["left_out"][0]), dtype=np.int64)
        if len(left_out):
            ranks.broadcast(left_out)
        if header["theta_follows"][0]:
            ranks.broadcast(theta)
        sample = read_sample(header)
        share, _ = station.evaluate(command, number, tensor(theta.copy()), sample, frozenset(left_out.tolist()))
        if ranks.broadcast_flag():
            ranks.gather_objects(share.bad)
