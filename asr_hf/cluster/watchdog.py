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
ASK, ALIVE, KILL, LEAVE, BYE = 1, 2, 3, 4, 5  # tags
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
        self._state = (False, time.monotonic())  # whether the main thread waits or computes, and since when: it says
        self._looked = 0.0  # when a stall was last looked into
        self._asked = 0  # times that the master asked
        self._sent: list[tuple[MPI.Request, np.ndarray]] = []  # held until it is gone
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The main thread waits for other ranks inside."""
        self._state = (True, time.monotonic())
        try:
            yield
        finally:
            self._state = (False, time.monotonic())

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """The master is as patient inside as the others are with it."""
        usual, self.patience = self.patience, max(self.patience, self.master_patience)
        try:
            yield
        finally:
            self.patience = usual

    def dismiss(self) -> None:
        """Let the other ranks go: their watchdogs end them, wherever they wait, before the master ends."""
        here = set(self._others())
        for rank in here:
            self._send(rank, LEAVE)
        until = time.monotonic() + ANSWER
        while here and time.monotonic() < until:
            for rank in list(here):
                with suppress(MPI.Exception):
                    if self._control.Iprobe(source=rank, tag=BYE):
                        here.remove(rank)
            time.sleep(TICK / 10)

    def _watch(self) -> None:
        while True:
            time.sleep(TICK)
            if self.me.rank:
                self._obey()
            state = waits, since = self._state
            waited = time.monotonic() - since
            if not waits or len(self._peers) == 1:
                continue
            if self.me.rank == 0 and min(waited, time.monotonic() - self._looked) > self.patience:
                self._end_the_stall(state)
            elif self.me.rank and waited > self.master_patience:
                self._end_run(f"the master gave no work for {waited:.0f} s")

    def _obey(self) -> None:
        """Answer what the master sent."""
        with suppress(MPI.Exception):  # the master died: the main thread sees to that
            while self._control.Iprobe(source=0):
                status, words = MPI.Status(), np.zeros(2)
                self._control.Recv(words, source=0, status=status)
                if status.tag == ASK:
                    waits, since = self._state
                    self._send(0, ALIVE, words[0], 0.0 if waits else time.monotonic() - since)
                elif status.tag == KILL:
                    kill(int(words[0]))
                elif status.tag == LEAVE:
                    self._send(0, BYE)
                    until = time.monotonic() + ANSWER
                    while self._unsent() and time.monotonic() < until:
                        time.sleep(TICK / 10)
                    leave(0)

    def _end_the_stall(self, state: tuple[bool, float]) -> None:
        """Find who holds up the run in this wait, and kill them or end the run."""
        computing = self._ask()
        self._looked = time.monotonic()
        stalled = [self._peers[rank] for rank in self._others() if computing.get(rank, np.inf) > 0]
        if self._state is not state or not stalled:  # somebody came while they were asked, or died
            return
        waited = time.monotonic() - state[1]
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

    def _ask(self) -> dict[int, float]:
        """Seconds that each rank that answers has been computing; 0: it waits."""
        computing: dict[int, float] = {}
        self._asked += 1
        for rank in self._others():
            self._send(rank, ASK, float(self._asked))
        until = time.monotonic() + ANSWER
        while len(computing) < len(self._others()) and time.monotonic() < until:
            for rank in self._others():
                with suppress(MPI.Exception):
                    if self._control.Iprobe(source=rank, tag=ALIVE):
                        words = np.zeros(2)
                        self._control.Recv(words, source=rank, tag=ALIVE)
                        if words[0] == self._asked:  # no late answer to an earlier question
                            computing[rank] = float(words[1])
            time.sleep(TICK / 10)
        return computing

    def _others(self) -> list[int]:
        return [rank for rank in self._members() if rank != self.me.rank]

    def _send(self, rank: int, tag: int, *words: float) -> None:
        self._unsent()
        message = np.zeros(2)
        message[: len(words)] = words
        with suppress(MPI.Exception):  # it died
            self._sent.append((self._control.Isend(message, dest=rank, tag=tag), message))

    def _unsent(self) -> int:
        """How many messages are still under way; those to the dead are not."""

        def under_way(request: MPI.Request) -> bool:
            try:
                return not request.Test()
            except MPI.Exception:
                return False

        self._sent = [each for each in self._sent if under_way(each[0])]
        return len(self._sent)

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
