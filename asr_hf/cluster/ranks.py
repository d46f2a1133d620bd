"""The ranks of this run: collectives in which a waiting rank sleeps instead of burning its core."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

FIRST_SLEEP = 10e-6
LONGEST_SLEEP = 2e-3


def wait(request: MPI.Request) -> None:
    """Wait for a request, polling with a back-off from 10 µs to 2 ms."""
    pause = FIRST_SLEEP
    while not request.Test():
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_SLEEP)


class Ranks:
    """A communicator of all ranks of the run; rank 0 is the master."""

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self.comm = comm or MPI.COMM_WORLD
        self.rank = self.comm.Get_rank()
        self.size = self.comm.Get_size()

    def meet(self) -> None:
        """Wait, asleep, until every rank is here, so that the collective that follows does not spin."""
        wait(self.comm.Ibarrier())

    def broadcast(self, array: np.ndarray) -> None:
        """Broadcast the master's contiguous array into everybody's, in place; ranks that come early sleep."""
        self.meet()
        self.comm.Bcast(array.view(np.uint8).reshape(-1), root=0)

    def sum_to_master(self, array: np.ndarray) -> None:
        """Add everybody's float64 or int64 array into the master's, in place."""
        self.meet()
        if self.rank == 0:
            self.comm.Reduce(MPI.IN_PLACE, array, op=MPI.SUM, root=0)
        else:
            self.comm.Reduce(array, None, op=MPI.SUM, root=0)

    def gather_to_master(self, row: np.ndarray) -> np.ndarray:
        """Everybody's row of equal length, stacked by rank on the master (an empty array elsewhere)."""
        self.meet()
        rows = np.empty((self.size, len(row)), dtype=row.dtype) if self.rank == 0 else None
        self.comm.Gather(row, rows, root=0)
        return rows if rows is not None else np.empty((0, len(row)), dtype=row.dtype)

    def scatter(self, whole: np.ndarray, part: np.ndarray, bounds: Sequence[int]) -> None:
        """Cut the master's bytes at `bounds` (ranks + 1) into everybody's part, in place."""
        self.meet()
        self.comm.Scatterv(self._cut(whole, bounds), part, root=0)

    def gather(self, part: np.ndarray, whole: np.ndarray, bounds: Sequence[int]) -> None:
        """Put everybody's bytes together in the master's whole, in place: `scatter` undone."""
        self.meet()
        self.comm.Gatherv(part, self._cut(whole, bounds), root=0)

    def _cut(self, whole: np.ndarray, bounds: Sequence[int]) -> list[Any] | None:
        """A buffer of varying parts as MPI wants it, on the master."""
        return [whole, np.diff(bounds), bounds[:-1], MPI.BYTE] if self.rank == 0 else None

    def broadcast_flag(self, flag: bool = False) -> bool:
        """The master's yes or no."""
        answer = np.array([flag], dtype=np.uint8)
        self.broadcast(answer)
        return bool(answer[0])

    def broadcast_object(self, thing: Any = None) -> Any:
        """Broadcast a small Python object from the master: once per run, never per product."""
        self.meet()
        return self.comm.bcast(thing, root=0)

    def gather_objects(self, thing: Any) -> list[Any]:
        """Everybody's small Python object, on the master: only on the rare path of bad utterances."""
        self.meet()
        return self.comm.gather(thing, root=0) or []
