"""The watchdog of a rank: a thread that keeps every wait for other ranks from lasting for ever.

A rank that died is MPI's to notice. One that lives but does not come - stopped, lost in a file system, far slower than
the others - is found by asking: when the master has waited for `patience` seconds it asks all ranks, whose watchdogs
answer how long their main thread has been computing. Those that compute, or do not answer, hold up the run. They are
named, and then killed by a rank of their host, or else the run ends. A worker that has waited for `master_patience`
seconds for the master ends the run.

Messages go over a communicator of their own that is never revoked. Ranks are those of the whole run here.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

TICK = 0.1  # seconds between two looks
ANSWER = 3.0  # seconds in which a rank that is not stopped answers
ASK, ALIVE, KILL, LEAVE = 1, 2, 3, 4  # tags
TRY_AGAIN = 75  # exit status of a run that can go on (sysexits.h: EX_TEMPFAIL)
RESUME = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Peer:
    """Where a rank of the run is."""

    rank: int
    host: str
    process: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


class Watchdog:
    """Watches the waits of this rank's main thread, and answers the master.

    Args:
        control: a communicator of all ranks of the run.
        peers: all ranks of the run.
        members: those that are still in it.

    Attributes:
        patience: seconds that the master waits for a rank.
        master_patience: seconds that a rank waits for the master.
        kill: kill a rank that holds up the others, if another one shares its host; else the run ends.
    """

    def __init__(self, control: MPI.Intracomm, peers: Sequence[Peer], members: Callable[[], Sequence[int]]) -> None:
        self.patience, self.master_patience, self.kill = 600.0, 7200.0, False
        self._control, self._peers, self._members = control, peers, members
        self.me = peers[control.Get_rank()]
        self._changed = time.monotonic()  # since when the main thread has waited, or computed
        self._waiting = False
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The main thread waits for other ranks inside."""
        self._changed, self._waiting = time.monotonic(), True
        try:
            yield
        finally:
            self._changed, self._waiting = time.monotonic(), False

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """The master is as patient inside as the others are with it."""
        usual, self.patience = self.patience, max(self.patience, self.master_patience)
        try:
            yield
        finally:
            self.patience = usual

    def dismiss(self) -> None:
        """Let the other ranks go: their watchdogs end them, wherever they wait."""
        for rank in self._others():
            self._send(rank, LEAVE, 0.0)

    def _watch(self) -> None:
        while True:
            time.sleep(TICK)
            if self.me.rank:
                self._obey()
            waited = time.monotonic() - self._changed
            if not self._waiting or self._peers[1:] == []:
                continue
            if self.me.rank == 0 and waited > self.patience:
                self._end_the_stall(waited)
            elif self.me.rank and waited > self.master_patience:
                self._end_run(f"the master gave no work for {waited:.0f} s")

    def _obey(self) -> None:
        """Answer what the master sent."""
        with suppress(MPI.Exception):  # the master died: the main thread sees to that
            while self._control.Iprobe(source=0):
                status, word = MPI.Status(), np.zeros(1)
                self._control.Recv(word, source=0, status=status)
                if status.tag == ASK:
                    computing = 0.0 if self._waiting else time.monotonic() - self._changed
                    self._send(0, ALIVE, computing)
                elif status.tag == KILL:
                    kill(int(word[0]))
                elif status.tag == LEAVE:
                    leave(0)

    def _end_the_stall(self, waited: float) -> None:
        """Find who holds up the run, and kill them or end the run."""
        computing = self._ask()
        stalled = [self._peers[rank] for rank in self._others() if computing.get(rank, np.inf) > 0]
        if not stalled or not self._waiting:
            self._changed = time.monotonic()  # all wait now: somebody came, or died
            return
        for peer in stalled:
            seconds = computing.get(peer.rank)
            does = "does not answer" if seconds is None else f"has been computing for {seconds:.0f} s"
            say(f"the run has waited for {waited:.0f} s: {peer} {does}")
        able = [self.me, *(self._peers[rank] for rank, seconds in computing.items() if seconds == 0)]
        killers = [next((one for one in able if one.host == peer.host), None) for peer in stalled]
        if not self.kill or None in killers:
            why = "no other rank shares its host" if self.kill else "cluster.stalled=kill would go on without it"
            self._end_run(f"a rank holds up the others ({why})")
        for peer, killer in zip(stalled, killers, strict=True):
            assert killer is not None
            say(f"killing {peer}")
            if killer is self.me:
                kill(peer.process)
            else:
                self._send(killer.rank, KILL, float(peer.process))
        self._changed = time.monotonic()

    def _ask(self) -> dict[int, float]:
        """Seconds that each rank that answers has been computing; 0: it waits."""
        computing: dict[int, float] = {}
        for rank in self._others():
            self._send(rank, ASK, 0.0)
        until = time.monotonic() + ANSWER
        while len(computing) < len(self._others()) and time.monotonic() < until:
            for rank in self._others():
                with suppress(MPI.Exception):
                    if self._control.Iprobe(source=rank, tag=ALIVE):
                        word = np.zeros(1)
                        self._control.Recv(word, source=rank, tag=ALIVE)
                        computing[rank] = float(word[0])
            time.sleep(TICK / 10)
        return computing

    def _others(self) -> list[int]:
        return [rank for rank in self._members() if rank != self.me.rank]

    def _send(self, rank: int, tag: int, number: float) -> None:
        with suppress(MPI.Exception):  # it died
            self._control.Isend(np.array([number]), dest=rank, tag=tag).Free()

    def _end_run(self, why: str) -> None:
        say(f"error: {why}; {RESUME}")
        MPI.COMM_WORLD.Abort(TRY_AGAIN)


def say(line: str) -> None:
    print(f"asr-hf: {line}", file=sys.stderr, flush=True)


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def leave(status: int) -> None:
    """End this process without MPI's finalisation, which can wait for the dead."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
