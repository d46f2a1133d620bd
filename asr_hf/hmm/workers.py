"""Work on utterances in parallel processes, with the same results for any number of them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from types import TracebackType
from typing import Any

import torch

from asr_hf.errors import InputError
from asr_hf.options import require

_room: Any = None  # what this worker process works on


def _enter(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _room
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _room = make(*arguments)


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its jobs itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(method: str, task: Any) -> Any:
    return getattr(_room, method)(task)


class Workers:
    """Processes that each hold an object made by `make(*arguments)` and call its methods on tasks.

    Results come in the order of the tasks. One job works in this process. Every job uses one thread, so that numbers do
    not depend on how many there are.
    """

    def __init__(self, jobs: int, make: Callable[..., Any], *arguments: Any) -> None:
        require(jobs >= 1, "--jobs", jobs, "must be at least 1")
        self._threads = torch.get_num_threads()
        self._pool: ProcessPoolExecutor | None = None
        if jobs > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([make.__module__])
            self._pool = ProcessPoolExecutor(jobs, context, _enter, (make, arguments))
        else:
            torch.set_num_threads(1)
            self._here = make(*arguments)

    def map(self, method: str, tasks: Iterable[Any]) -> list[Any]:
        if self._pool is None:
            return [getattr(self._here, method)(task) for task in tasks]
        try:
            return list(self._pool.map(_call, repeat(method), tasks))
        except BrokenProcessPool as error:
            raise InputError("a worker process died: killed, or out of memory", "Give fewer --jobs.") from error

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            torch.set_num_threads(self._threads)
        else:
            self._pool.shutdown(cancel_futures=True)
