"""An objective that keeps account of every command: how long it took, and how long each rank computed."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from asr_hf.bench.cost_model import Spent
from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.objective.evaluator import Share
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Matrix

Result = TypeVar("Result")


@dataclass(frozen=True)
class Done:
    """A command that was done: its kind, frames of all ranks, wall seconds, and seconds that each rank computed."""

    kind: str
    frames: int
    seconds: float
    computing: tuple[float, ...]


class Watched(LocalObjective):
    """A LocalObjective that keeps `done`; with ClusterObjective as the next base class, that."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.done: list[Done] = []
        super().__init__(*arguments, **options)

    def _losses(self, theta_N: torch.Tensor, sample: Sample) -> Share:
        return self._watch("evaluation", lambda: super(Watched, self)._losses(theta_N, sample))

    def _gradient(self, theta_N: torch.Tensor, sample: Sample, batch_statistics: bool, squares: bool) -> Share:
        return self._watch(
            "gradient", lambda: super(Watched, self)._gradient(theta_N, sample, batch_statistics, squares)
        )

    def _open(self, theta_N: torch.Tensor, sample: Sample, precision: Precision) -> Share:
        return self._watch("linearisation", lambda: super(Watched, self)._open(theta_N, sample, precision))

    def _product(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        return self._watch("products", lambda: super(Watched, self)._product(v_N, matrix))

    def _watch(self, kind: str, command: Callable[[], Result]) -> Result:
        account = self.account
        frames, computed, begin = sum(account.rank_frames), list(account.rank_seconds), time.perf_counter()
        result = command()
        seconds = time.perf_counter() - begin
        computed += [0.0] * (len(account.rank_seconds) - len(computed))
        each = tuple(after - before for before, after in zip(computed, account.rank_seconds, strict=True))
        self.done.append(Done(kind, sum(account.rank_frames) - frames, seconds, each))
        return result


def spent(seconds: float, done: Iterable[Done], ranks: int) -> Spent:
    """Where the seconds of some work went, of which these commands were part; the rest was the master's alone."""
    compute = communication = idle = longest = 0.0
    alone = seconds
    for command in done:
        most, mean = max(command.computing), sum(command.computing) / ranks
        compute += mean
        idle += most - mean
        communication += command.seconds - most
        longest += most
        alone -= command.seconds
    balance = longest / compute
    return Spent(seconds, compute + alone / ranks, communication, idle + alone * (1 - 1 / ranks), balance)
