"""What a scheduler's signals do to a run: it ends at a state that is on disk, says so, and exits so as to be requeued.

SIGUSR1 and SIGUSR2 warn (Slurm's --signal=USR1@120, -notify of SGE, the run limit of LSF): the run ends after the
present update. SIGTERM ends it at once, and the update in work is lost; but a first-order method, which can be saved
within an epoch, ends after the present step for either. A second SIGTERM kills.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from asr_hf.cluster.signals import SIGNALS


class Preempted(BaseException):
    """A signal ends the run here."""


class Preemption:
    """Heeds a scheduler's signals while it is open; turns Preempted into a line for people and SystemExit.

    Args:
        status: exit status of a preempted run.

    Attributes:
        checkpoint: the folder from which the same command goes on, None while there is none.
        pause: makes the optimiser's step return soon, in a state for a checkpoint; None if it cannot.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        self.checkpoint: Path | None = None
        self.pause: Callable[[], None] | None = None
        self._received = 0
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():  # Python allows no other to set handlers
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._deferred, preempted = True, isinstance(error, Preempted)
        for number, handler in self._before.items():  # the launcher may send again what the scheduler sent already
            signal.signal(number, signal.SIG_IGN if preempted and number != signal.SIGTERM else handler)
        if preempted:
            on = f"goes on from {self.checkpoint}" if self.checkpoint else "starts anew: no checkpoint was written yet"
            name = signal.Signals(self._received).name
            print(f"{name}: the run ends here with exit status {self.status}; the same command {on}", flush=True)
            raise SystemExit(self.status) from None

    def end_if_asked(self) -> None:
        """Raise Preempted if a signal came."""
        if self._received:
            raise Preempted

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Nothing is interrupted within the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if self.pause is not None:
            self.pause()
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self.pause is None and not self._deferred:
                raise Preempted
