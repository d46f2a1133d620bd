"""The ranks of this run: collectives in which a waiting rank sleeps instead of burning its core, and the loss of ranks.

With `mpiexec --with-ft ulfm` the survivors of a death get an error in whatever collective they are in, leave the dead
behind (`Ranks.recover`) and go on (Bland et al. 2013, Post-failure recovery of MPI communication capability). Without
it a death ends the run.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
from mpi4py import MPI

from asr_hf.cluster.options import ClusterOptions
from asr_hf.cluster.protocol import HEADER, Command, write_sample
from asr_hf.cluster.watchdog import RESUME, TRY_AGAIN, Peer, Watchdog, leave, say
from asr_hf.data.plan import Sample

FIRST_SLEEP = 10e-6
LONGEST_SLEEP = 2e-3
LARGEST_MESSAGE = 1 << 28  # bytes
DETECTION = 10.0  # seconds in which MPI knows of a death that made a collective fail
LOST = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


class RankLost(Exception):
    """A rank died in, or before, this collective; `Ranks.recover` must come next."""


def tolerant() -> bool:
    """Whether the launcher lets the others go on when a rank dies."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "0") not in ("0", "false")  # noqa: SIM112 (its name)


def wait(request: MPI.Request) -> None:
    """Wait for a request, polling with a back-off from 10 µs to 2 ms."""
    pause = FIRST_SLEEP
    while not request.Test():
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_SLEEP)


@cache
def all_ranks() -> "Ranks":
    """The ranks of this process' run; all ranks must call it."""
    return Ranks()


class Ranks:
    """A communicator of the ranks that live; rank 0 is the master.

    Attributes:
        rank, size: of this process, and their number, now.
        peers: all ranks that the run began with.
        members: for each rank now, its number at the beginning.
        watchdog: of this rank.
    """

    def __init__(self) -> None:
        self.comm: MPI.Comm = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        where = self.comm.allgather((socket.gethostname(), os.getpid()))
        self.peers = [Peer(rank, *place) for rank, place in enumerate(where)]
        self.members = list(range(self.size))
        self._told = self._tasks = 0  # commands and tasks until now, on the master
        self.watchdog = Watchdog(MPI.COMM_WORLD.Dup(), self.peers, lambda: self.members)

    def watch(self, options: ClusterOptions) -> None:
        """Set how long this rank waits, and what it does then."""
        self.watchdog.patience, self.watchdog.master_patience = options.patience, options.master_patience
        self.watchdog.kill = options.stalled == "kill"

    def recover(self) -> list[Peer]:
        """Go on without the ranks that died; which these were.

        Every rank that lives must come here, and does: the communicator is revoked, so that nobody waits in it any
        longer, and then shrunk. If the master died, the run ends.
        """
        before = self.members
        with self.watchdog.waiting():
            with suppress(MPI.Exception):
                self.comm.Revoke()
            self.comm = self.comm.Shrink()
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        of_all, living = MPI.COMM_WORLD.Get_group(), self.comm.Get_group()
        self.members = [int(rank) for rank in MPI.Group.Translate_ranks(living, None, of_all)]
        if self.members[0] != 0:
            if self.rank == 0:
                say(f"error: the master, {self.peers[0]}, died; {RESUME}")
            leave(TRY_AGAIN)
        return [self.peers[rank] for rank in before if rank not in self.members]

    def tell(self, command: Command, sample: Sample | None = None, **fields: float) -> np.ndarray:
        """The master sends a command, with a sample and other fields of its record; the record."""
        self._told += 1
        header = np.zeros(1, dtype=HEADER)
        header["number"], header["command"] = self._told, command
        for name, value in fields.items():
            header[name] = value
        if sample is not None:
            write_sample(header, sample)
        self.broadcast(header)
        return header

    def new_task(self) -> int:
        """A number for a task, counted from 1."""
        self._tasks += 1
        return self._tasks

    def dismiss(self) -> None:
        """The master's last word: all ranks end."""
        if tolerant():  # wherever they are: somebody may have died just now
            self.watchdog.dismiss()
            leave(0)
        self.tell(Command.LEAVE)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A collective inside: watched, and RankLost where MPI says that ranks died."""
        with self.watchdog.waiting():
            try:
                yield
            except MPI.Exception as error:
                if self._is_loss(error):
                    raise RankLost from error
                raise

    def _is_loss(self, error: MPI.Exception) -> bool:
        """Whether a rank's death is behind an error; a collective that was half done says ERR_OTHER at first."""
        until = time.monotonic() + DETECTION
        while error.Get_error_class() not in LOST:
            if not tolerant() or time.monotonic() > until:
                return False
            if self.comm.Is_revoked() or self.comm.Get_failed().Get_size():
                return True
            time.sleep(LONGEST_SLEEP)
        return True

    def meet(self) -> None:
        """Wait, asleep, until every rank is here, so that the collective that follows does not spin."""
        with self._together():
            wait(self.comm.Ibarrier())

    def broadcast(self, array: np.ndarray) -> None:
        """Broadcast the master's contiguous array into everybody's, in place; ranks that come early sleep."""
        self.meet()
        whole = array.view(np.uint8).reshape(-1)
        with self._together():
            for begin in range(0, len(whole), LARGEST_MESSAGE):
                self.comm.Bcast(whole[begin : begin + LARGEST_MESSAGE], root=0)

    def sum_to_master(self, array: np.ndarray) -> None:
        """Add everybody's contiguous float64 or int64 array into the master's, in place."""
        self.meet()
        flat, step = array.reshape(-1), LARGEST_MESSAGE // array.itemsize
        with self._together():
            for begin in range(0, len(flat), step):
                part = flat[begin : begin + step]
                if self.rank == 0:
                    self.comm.Reduce(MPI.IN_PLACE, part, op=MPI.SUM, root=0)
                else:
                    self.comm.Reduce(part, None, op=MPI.SUM, root=0)

    def gather_to_master(self, row: np.ndarray) -> np.ndarray:
        """Everybody's row of equal length, stacked by rank on the master (an empty array elsewhere)."""
        self.meet()
        rows = np.empty((self.size, len(row)), dtype=row.dtype) if self.rank == 0 else None
        with self._together():
            self.comm.Gather(row, rows, root=0)
        return rows if rows is not None else np.empty((0, len(row)), dtype=row.dtype)

    def scatter(self, whole: np.ndarray, part: np.ndarray, bounds: Sequence[int]) -> None:
        """Cut the master's bytes at `bounds` (ranks + 1) into everybody's part, in place."""
        self.meet()
        with self._together():
            self.comm.Scatterv(self._cut(whole, bounds), part, root=0)

    def gather(self, part: np.ndarray, whole: np.ndarray, bounds: Sequence[int]) -> None:
        """Put everybody's bytes together in the master's whole, in place: `scatter` undone."""
        self.meet()
        with self._together():
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
        with self._together():
            return self.comm.bcast(thing, root=0)

    def gather_objects(self, thing: Any) -> list[Any]:
        """Everybody's small Python object, on the master: only on the rare path of bad utterances."""
        self.meet()
        with self._together():
            return self.comm.gather(thing, root=0) or []
