"""Streams of commands, right and wrong: a worker obeys, or says which field cannot be; it never hangs.

The ranks and the evaluator are stand-ins: the master's records come from a list, and minibatches cost nothing.
"""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr_hf.cluster.protocol import HEADER, Command, CommandError, Operation, write_sample
from asr_hf.cluster.worker import Worker
from asr_hf.data.plan import Sample
from asr_hf.objective.evaluator import Share

N, LENGTHS = 12, np.array([30, 50, 20])


class ScriptedRanks:
    """Rank 1 of 2: broadcasts bring the records of a script, and zeros otherwise; a script that is over ends."""

    rank, size = 1, 2

    def __init__(self, script: list[np.ndarray]) -> None:
        self.script = list(script)

    def broadcast(self, array: np.ndarray) -> None:
        if array.dtype == HEADER:
            if not self.script:
                raise EOFError
            array[:] = self.script.pop(0)
        else:
            array[...] = 0

    def broadcast_object(self, thing: Any = None) -> Any:
        return "the task"

    def broadcast_flag(self, flag: bool = False) -> bool:
        return False

    def gather_to_master(self, row: np.ndarray) -> np.ndarray:
        return np.empty((0, len(row)))

    def meet(self) -> None: ...

    def sum_to_master(self, array: np.ndarray) -> None: ...

    def scatter(self, whole: np.ndarray, part: np.ndarray, bounds: list[int]) -> None: ...

    def gather(self, part: np.ndarray, whole: np.ndarray, bounds: list[int]) -> None: ...


class Evaluator:
    """Plans are real, sums are zero."""

    layout = SimpleNamespace(size=N, blocks=("a", "b"))
    buffers = SimpleNamespace(size=2)
    criterion = SimpleNamespace(matrices=("gauss_newton", "fisher"))
    device = torch.device("cpu")
    sets: ClassVar = {"train": SimpleNamespace(ids=["u0", "u1", "u2"]), "heldout": SimpleNamespace(ids=["v0"])}

    def plan(self, sample: Sample) -> tuple:
        return sample.plan(LENGTHS)

    def losses(self, theta: torch.Tensor, sample: Sample, *rest: Any, **more: Any) -> Share:
        count = len(self.plan(sample))
        return Share(np.zeros(count), np.zeros(count, dtype=np.int64))

    def gradient(self, *arguments: Any) -> Share:
        share = self.losses(*arguments)
        share.vector = torch.zeros(N, dtype=torch.float64)
        return share

    batch_moments = kronecker_factors = gradient

    def linearize(self, theta: torch.Tensor, sample: Sample, *rest: Any) -> tuple[Share, Any]:
        product = lambda v_N, matrix: torch.zeros(N, dtype=torch.float64)  # noqa: E731
        return self.losses(theta, sample), SimpleNamespace(minibatches=1, kept=1, frames=3, product=product)

    def set_buffers(self, buffers: torch.Tensor) -> None:
        assert buffers.numel() == 2


def record(number: int, command: int, sample: Sample | None = None, **fields: float) -> np.ndarray:
    header = np.zeros(1, dtype=HEADER)
    header["number"], header["command"] = number, command
    for name, value in fields.items():
        header[name] = value
    if sample is not None:
        write_sample(header, sample)
    return header


DRAWN = Sample("train", "chunks", 0.5, 40, True, seed=1, chunk=10)
RIGHT = [
    record(1, Command.TASK, handle=1),
    record(2, Command.BUFFERS),
    record(3, Command.LOSS, Sample("heldout"), theta_follows=1),
    record(4, Command.GRADIENT, DRAWN, left_out=2),
    record(5, Command.LINEARIZE, DRAWN, precision=1),
    record(6, Command.PRODUCT, handle=5, matrix=1, grouped=1),
    record(7, Command.PAIRS, store=1, operation=Operation.NEW, rows=4),
    record(8, Command.PAIRS, store=1, operation=Operation.APPEND, size=N),
    record(9, Command.PAIRS, store=1, operation=Operation.DROP),
    record(10, Command.CLOSE),
    record(11, Command.FACTORS, DRAWN, reduce=1),
    record(12, Command.LEAVE),
]


def serve(script: list[np.ndarray]) -> None:
    Worker(ScriptedRanks(script), lambda task: (Evaluator(), False)).serve()  # type: ignore[arg-type, return-value]


def test_a_right_stream_is_obeyed() -> None:
    serve(RIGHT)


VALUES = st.one_of(st.integers(-3, 14), st.integers(-(2**62), 2**62), st.floats(width=64))


@st.composite
def streams(draw: st.DrawFn) -> list[np.ndarray]:
    """The right stream with fields changed, and records left out, repeated or out of their order."""
    order = draw(st.one_of(st.just(list(range(len(RIGHT)))), st.lists(st.integers(0, len(RIGHT) - 1), max_size=14)))
    script = [RIGHT[place].copy() for place in order]
    if draw(st.booleans()):
        for number, header in enumerate(script, 1):
            header["number"] = number
    for _ in range(draw(st.integers(0, 3)) if script else 0):
        header = draw(st.sampled_from(script))
        name = draw(st.sampled_from(HEADER.names))
        value = draw(VALUES)
        if header.dtype[name].kind == "i":
            value = int(value) if np.isfinite(value) and abs(value) < 2**62 else -1
        header[name] = value
    return script


@given(streams())
def test_a_wrong_stream_is_refused_by_name(script: list[np.ndarray]) -> None:
    with suppress(EOFError, CommandError):  # EOFError: a right stream that had not come to its end
        serve(script)


@pytest.mark.parametrize(
    ("place", "field", "value", "said"),
    [
        (2, "command", 77, "command is 77"), (3, "number", 9, "number 9, not 4"), (3, "share", float("nan"), "share"),
        (3, "unit", 9, "unit is 9"), (3, "minibatch_frames", 0, "0 frames a minibatch"), (3, "left_out", 4, "4 of 3"),
        (5, "handle", 4, "linearisation 4, but 5"), (5, "matrix", 2, "matrix is 2"), (7, "store", 2, "no store 2"),
        (7, "size", 2**41, "size is 2199023255552"), (4, "precision", -1, "precision is -1"),
        (7, "operation", 0, "operation is 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(place: int, field: str, value: float, said: str) -> None:
    script = [header.copy() for header in RIGHT]
    script[place][field] = value
    with pytest.raises(CommandError, match=said):
        serve(script)


def test_no_command_before_a_task() -> None:
    with pytest.raises(CommandError, match="LOSS came before a task"):
        serve([record(1, Command.LOSS, DRAWN)])
