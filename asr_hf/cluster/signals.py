"""The signals by which a scheduler says that a job is about to end, and what a worker does with them: nothing."""

import signal
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


def leave_signals_to_master() -> None:
    """Ignore the warnings and the first SIGTERM, which every rank gets: the master decides when all end."""
    for number in SIGNALS:
        signal.signal(number, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
