"""Latency and bandwidth between ranks, and the time of the two collectives of training: medians of repeats."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from asr_hf.cluster.doctor.guard import Stage

MOST_LINKS = 16
PING, SMALL_BYTES, SMALL_TRIPS = 7, 8, 100
LARGE_BYTES, LARGE_TRIPS = 1 << 22, 9
VECTOR_REPEATS = 5
NAP = 1e-3  # seconds


@dataclass(frozen=True)
class Link:
    """From rank 0 to another rank: seconds one way of a message of 8 bytes, bytes a second of one of 4 MiB."""

    rank: int
    host: str
    same_host: bool
    latency_seconds: float
    bytes_per_second: float


@dataclass(frozen=True)
class VectorTimes:
    """Seconds to broadcast a float32 vector until every rank has it, and to sum a float64 vector of all into rank 0."""

    elements: int
    broadcast_seconds: float
    sum_seconds: float


def sampled(hosts: Sequence[str], most: int = MOST_LINKS) -> list[int]:
    """At most so many ranks to measure from rank 0, given every rank's host: one of each other host first."""
    others = range(1, len(hosts))
    first = [rank for rank in others if hosts[rank] != hosts[0] and rank == hosts.index(hosts[rank])]
    rest = [rank for rank in others if rank not in set(first)]
    return sorted([*_spread(first, most), *_spread(rest, most - min(len(first), most))])


def _spread(ranks: list[int], most: int) -> list[int]:
    """At most so many, evenly spaced."""
    count = min(len(ranks), most)
    return [ranks[index * len(ranks) // count] for index in range(count)]


def measure_links(comm: MPI.Intracomm, hosts: Sequence[str], stage: Stage) -> list[Link]:
    """The links from rank 0 to a sample of ranks, one after the other, while all others sleep; empty but on rank 0."""
    links, rank = [], comm.Get_rank()
    for other in sampled(hosts):
        stage(f"exchanging messages between ranks 0 and {other} ({hosts[0]} and {hosts[other]})")
        if rank == 0:
            small = statistics.median(_trips(comm, other, SMALL_BYTES, SMALL_TRIPS)) / 2
            large = statistics.median(_trips(comm, other, LARGE_BYTES, LARGE_TRIPS)) / 2
            rate = LARGE_BYTES / max(large - small, 1e-9)
            links.append(Link(other, hosts[other], hosts[other] == hosts[0], small, rate))
        elif rank == other:
            _answer(comm, SMALL_BYTES, SMALL_TRIPS)
            _answer(comm, LARGE_BYTES, LARGE_TRIPS)
        _meet(comm)
    return links


def _trips(comm: MPI.Intracomm, other: int, size: int, repeats: int) -> list[float]:
    """Seconds of each round trip of a message; the first, which opens the connection, is not among them."""
    sent, received, seconds = bytearray(size), bytearray(size), []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        comm.Send([sent, MPI.BYTE], other, PING)
        comm.Recv([received, MPI.BYTE], other, PING)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def _answer(comm: MPI.Intracomm, size: int, repeats: int) -> None:
    message = bytearray(size)
    for _ in range(repeats + 1):
        comm.Recv([message, MPI.BYTE], 0, PING)
        comm.Send([message, MPI.BYTE], 0, PING)


def measure_vector(comm: MPI.Intracomm, elements: int, stage: Stage) -> VectorTimes:
    """The collectives of training on vectors of so many elements; rank 0's times count."""
    theta = np.zeros(elements, dtype=np.float32)
    total = np.zeros(elements, dtype=np.float64)
    broadcasts, sums = [], []
    for repeat in range(VECTOR_REPEATS + 1):
        stage(f"broadcasting and summing a vector of {elements:,} elements ({repeat} of {VECTOR_REPEATS} done)")
        _meet(comm)
        begin = time.perf_counter()
        comm.Bcast(theta, root=0)
        comm.Barrier()
        middle = time.perf_counter()
        comm.Reduce(MPI.IN_PLACE if comm.Get_rank() == 0 else total, total, op=MPI.SUM, root=0)
        sums.append(time.perf_counter() - middle)
        broadcasts.append(middle - begin)
    return VectorTimes(elements, statistics.median(broadcasts[1:]), statistics.median(sums[1:]))


def _meet(comm: MPI.Intracomm) -> None:
    """Wait for all ranks, asleep, so as not to take a core from those that measure."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(NAP)
