"""What commands to R ranks cost: a model whose constants are measured apart from what it predicts.

Symbols:
    R        ranks, the master one of them
    N        parameters
    c_k      seconds a frame of a command of kind k on a rank that computes beside as many others as it will have
    F(r)     frames that `data.plan.deal` deals to rank r
    a        seconds of the master's own vector algebra after a product (CG, damping, rounding): the serial part
    α, β     latency (seconds) and bandwidth (bytes a second) of the slowest link, by `asr-hf doctor`
    γ        seconds to add a float64 vector (N,)

A command of kind k with b broadcasts of a float32 vector (N,), s sums of float64 vectors (N,) and i iterations takes

    T(R) = c_k max_r F(r) + i a + w(R) + b B(R) + s S(R)
    B(R) = 2⌈log₂R⌉ α + 2(R−1)/R · 4N/β          scatter, then all gather
    S(R) = 2⌈log₂R⌉ α + 2(R−1)/R · 8N/β + γ      reduce and scatter, then gather
    w(R) = 5⌈log₂R⌉ α + 4 ms                     small messages; twice the 2 ms that a rank sleeps at most

and B = S = w = 0 on one rank. Of T, c_k mean_r F(r) + i a/R is a rank's computing on the mean, B, S and w are
communication, and the rest is idle. Imbalance is max_r F(r) / mean_r F(r). With R = 2 a collective is one message.
Source of B and S: Thakur, Rabenseifner and Gropp (2005), "Optimization of collective communication operations in
MPICH".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from asr_hf.data.plan import deal_frames

SMALL_MESSAGES = 5  # of a command: its record, frames, losses, flags
LATE = 2 * 2e-3  # seconds that a command loses to ranks that wake up late (cluster.ranks)
FLOAT32, FLOAT64 = 4, 8  # bytes


@dataclass(frozen=True)
class Machine:
    """What computing costs: N, c_k by kind (phases of `objective.Account`), a and γ in seconds."""

    parameters: int
    seconds_per_frame: Mapping[str, float]
    algebra: float
    add: float


@dataclass(frozen=True)
class Link:
    """The slowest link between ranks: α seconds, β bytes a second."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Command:
    """What the ranks are asked: a kind, the frames of each minibatch, vectors that are broadcast and summed, and CG
    iterations that follow on the master."""

    kind: str
    frames: tuple[int, ...]
    broadcasts: int = 0
    sums: int = 0
    iterations: int = 0


@dataclass(frozen=True)
class Spent:
    """Wall seconds; of these, on the mean over ranks, computing, communication, idle (their sum is `seconds`).

    Attributes:
        imbalance: largest over mean computing of a rank, command by command; the master's vector algebra is not in it.
    """

    seconds: float
    compute: float
    communication: float
    idle: float
    imbalance: float


def gradient(frames: tuple[int, ...]) -> Command:
    """A gradient at a new θ."""
    return Command("gradient", frames, broadcasts=1, sums=1)


def product(frames: tuple[int, ...], iterations: int = 0) -> Command:
    """A curvature product on an open linearisation."""
    return Command("products", frames, broadcasts=1, sums=1, iterations=iterations)


def evaluation(frames: tuple[int, ...]) -> Command:
    """The loss at a new θ."""
    return Command("evaluation", frames, broadcasts=1)


def update(
    of_gradient: tuple[int, ...],
    of_curvature: tuple[int, ...],
    heldout: tuple[int, ...],
    iterations: int,
    candidates: int = 1,
    trials: int = 0,
) -> list[Command]:
    """An update by Hessian-free, by the frames of each minibatch of its samples.

    Args:
        iterations: of CG.
        candidates: held-out losses at θ + d.
        trials: losses on the gradient sample at θ + d.
    """
    at_theta = [
        evaluation(heldout),
        replace(gradient(of_gradient), broadcasts=0),
        Command("linearisation", of_curvature),
    ]
    products = [product(of_curvature, iterations=1)] * iterations
    return at_theta + products + [evaluation(heldout)] * candidates + [evaluation(of_gradient)] * trials


def predict(commands: Iterable[Command], ranks: int, machine: Machine, link: Link | None) -> Spent:
    """What commands one after the other take on so many ranks; no link: one rank."""
    compute = communication = idle = longest = mean = 0.0
    for command in commands:
        second = machine.seconds_per_frame[command.kind]
        most, average = _loads(command.frames, ranks)
        algebra = command.iterations * machine.algebra
        longest += second * most
        mean += second * average
        compute += second * average + algebra / ranks
        idle += second * (most - average) + algebra * (1 - 1 / ranks)
        if link is not None:
            communication += exchange_seconds(machine, ranks, link, command.broadcasts, command.sums)
    return Spent(compute + communication + idle, compute, communication, idle, longest / mean)


def exchange_seconds(machine: Machine, ranks: int, link: Link, broadcasts: int, sums: int, late: float = LATE) -> float:
    """w + b B + s S, with other seconds than LATE in w if so wished."""
    if ranks == 1:
        return 0.0
    steps, share = math.ceil(math.log2(ranks)), 2 * (ranks - 1) / ranks

    def collective(size: int) -> float:
        return 2 * steps * link.latency + share * size * machine.parameters / link.bandwidth

    waits = SMALL_MESSAGES * steps * link.latency + late
    return waits + broadcasts * collective(FLOAT32) + sums * (collective(FLOAT64) + machine.add)


def imbalance(frames: Sequence[int], ranks: int) -> float:
    """Frames of the rank that is dealt most, in units of the mean."""
    most, average = _loads(tuple(frames), ranks)
    return most / average


def equal_minibatches(frames: int, size: int) -> tuple[int, ...]:
    """Frames of each minibatch of a sample that may be cut anywhere."""
    return (size,) * (frames // size) + ((frames % size,) if frames % size else ())


@lru_cache(maxsize=256)
def _loads(frames: tuple[int, ...], ranks: int) -> tuple[int, float]:
    """Most and mean frames of a rank."""
    loads = [sum(frames[index] for index in hand) for hand in deal_frames(frames, ranks)]
    return max(loads), sum(loads) / ranks
