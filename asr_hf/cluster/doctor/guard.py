"""A process that watches another, so nothing hangs doctor: not even the start of MPI, which holds Python's lock."""

import os
import select
import signal
import sys
from collections.abc import Callable

Stage = Callable[[str], None]


def watch(name: str, patience: float) -> Stage:
    """Go on in a child of this process, which the process itself watches and whose exit status it returns.

    The child must say what it does next, `stage("reading data")`, before `patience` seconds are over. If it does not,
    the watcher names it and what it was doing on stderr, kills it and exits with status 2. To be called before any
    thread starts.

    Returns:
        the function with which the child says so.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        return lambda doing: _say(writer, doing)
    os.close(writer)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    late = _silent(reader, patience)
    if late:
        print(f"asr-hf doctor: {name}: {late} has not ended within {patience:g} s", file=sys.stderr, flush=True)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(2 if late else status if status >= 0 else 128 - status)


def _silent(reader: int, patience: float) -> str:
    """What the child was doing when it fell silent, or an empty string when it has ended."""
    doing = "the start"
    while select.select([reader], [], [], patience)[0]:
        said = os.read(reader, 65536).decode()
        if not said:
            return ""
        doing = said.splitlines()[-1]
    return doing


def _say(writer: int, doing: str) -> None:
    os.write(writer, f"{doing}\n".encode())
