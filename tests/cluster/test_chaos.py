"""Ranks that are killed or stopped in every phase: the run ends by itself with the bits of an undisturbed one.

scripts/chaos runs all of `EVERYTHING` and writes what happened to CHAOS_OUT; otherwise an excerpt is run.
"""

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asr_hf.bench.curvature import library_versions, machine_facts

HERE = Path(__file__).parent
RANKS, PATIENCE, NOTICED, LONGEST = 6, 8.0, 30.0, 300.0  # seconds
SMALL = [
    *("model.width=12", "optimizer.updates=6", "optimizer.curvature_share=0.3", "optimizer.minibatch_frames=200"),
    *("optimizer.curvature_minibatch_frames=100", "optimizer.cg.max_iterations=6", "cluster.stalled=kill"),
]
CRITERIA = {
    "ce": ["model.hidden_layers=1", "model.context=1"],
    "lfmmi": [
        "criterion=lfmmi",
        "model=tdnn",
        "model.contexts=[[-1,0,1]]",
        "model.subsampling=3",
        "criterion.chunk=30",
    ],
}


def events(phase: str, signal: str, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
    return [{"rank": rank, "phase": phase, "nth": nth, "signal": signal} for rank, nth in places]


ONCE_AN_UPDATE = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
OFTEN = [(1, 2), (2, 7), (3, 12), (4, 20), (5, 30)]
PLACES = {
    **dict.fromkeys(("gradient", "linearisation", "checkpoint", "between"), ONCE_AN_UPDATE),
    **dict.fromkeys(("broadcast", "product", "reduction"), OFTEN),
    "evaluation": [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)],
}


def disturbances(signal: str) -> dict[str, list[dict[str, Any]]]:
    """Five ranks a phase; those lost during a recovery need others that cause it."""
    first, second = events("product", "KILL", [(1, 3)]), events("product", "KILL", [(4, 9)])
    recovery = {
        "recovery": [*first, *events("recovery", signal, [(2, 1), (3, 1)])],
        "recovery, twice": [
            *first,
            *events("recovery", signal, [(2, 1)]),
            *second,
            *events("recovery", signal, [(3, 2), (5, 2)]),
        ],
    }
    return {phase: events(phase, signal, places) for phase, places in PLACES.items()} | recovery


EVERYTHING = [
    pytest.param(criterion, plan, id=f"{criterion}, {signal}, {name}")
    for criterion in CRITERIA
    for signal in ("KILL", "STOP")
    for name, plan in disturbances(signal).items()
]
EXCERPT = [
    pytest.param("ce", [
        *events("product", "KILL", [(1, 3)]),
        *events("broadcast", "STOP", [(2, 9)]),
        *events("recovery", "KILL", [(3, 2)]),
        *events("checkpoint", "KILL", [(4, 3)]),
        *events("evaluation", "KILL", [(5, 12)]),
    ], id="ce"),
    pytest.param("lfmmi", [
        *events("linearisation", "KILL", [(1, 1)]),
        *events("gradient", "KILL", [(2, 2)]),
        *events("between", "KILL", [(3, 3)]),
        *events("reduction", "STOP", [(4, 60)]),
        *events("product", "KILL", [(5, 30)]),
    ], id="lfmmi"),
]  # fmt: skip
MASTER = ("broadcast", "gradient", "linearisation", "product", "evaluation", "reduction", "checkpoint", "between")
OUT = os.environ.get("CHAOS_OUT")


@dataclass
class Ended:
    """How a run ended: exit status, its lines with the seconds at which they came, and its model's digest."""

    status: int
    lines: list[tuple[float, str]]
    digest: str | None

    def seconds_from(self, begin: str, end: str) -> float:
        """From a line that holds `begin` to the next one that holds `end`."""
        start = next(seconds for seconds, line in self.lines if begin in line)
        return next((seconds for seconds, line in self.lines if seconds >= start and end in line), float("inf")) - start


Launch = Callable[..., Ended]


@pytest.fixture
def launch(tiny_corpus: Path) -> Launch:
    """launch(run, criterion, ranks, events): a run under mpiexec with failures tolerated; a hang fails."""

    def run(folder: Path, criterion: str, ranks: int, plan: list[dict[str, Any]]) -> Ended:
        labels = "chain" if criterion == "lfmmi" else "ali"
        data = [f"corpus.train={tiny_corpus}/train", f"corpus.heldout={tiny_corpus}/heldout"]
        data += [f"corpus.alignments={tiny_corpus}/{labels}", f"cluster.patience={PATIENCE}"]
        launcher = Path(sys.executable).parent / "mpiexec"
        command = [launcher, "--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none", "-n", ranks, sys.executable]
        command += [HERE / "disturbed.py", json.dumps(plan), "train", folder, *data, *SMALL, *CRITERIA[criterion]]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        return watched([str(word) for word in command], environment, folder / "model.safetensors")

    return run


def watched(command: list[str], environment: dict[str, str], model: Path) -> Ended:
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    lines: queue.Queue[tuple[float, str]] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put((time.monotonic(), line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        status = process.wait(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("the run hangs: " + "".join(line for _, line in list(lines.queue)[-20:]))
    reader.join(timeout=10)
    assert process.stdout is not None
    process.stdout.close()
    digest = hashlib.sha256(model.read_bytes()).hexdigest() if status == 0 else None
    return Ended(status, list(lines.queue), digest)


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, str | None]:
    """The digest of each criterion's model without disturbance, once it is known."""
    return {}


@pytest.fixture
def expected(undisturbed: dict[str, str | None], launch: Launch, tmp_path: Path) -> Callable[[str], str | None]:
    def digest(criterion: str) -> str | None:
        if criterion not in undisturbed:
            undisturbed[criterion] = launch(tmp_path / "alone", criterion, 1, []).digest
        return undisturbed[criterion]

    return digest


@pytest.fixture(scope="session")
def record() -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    yield rows
    if OUT:
        what = {"command": "scripts/chaos", "versions": library_versions(), "machine": machine_facts("cpu")}
        Path(OUT).write_text(json.dumps({**what, "rows": rows}, indent=1) + "\n")


@pytest.mark.timeout(2 * LONGEST)
@pytest.mark.parametrize(("criterion", "plan"), EVERYTHING if OUT else EXCERPT)
def test_workers_are_lost_and_the_bits_stay(criterion, plan, launch, expected, record, tmp_path) -> None:
    ended = launch(tmp_path / "run", criterion, RANKS, plan)
    said = "".join(line for _, line in ended.lines)
    assert ended.status == 0, said
    for event in plan:
        mark = f"disturbed: {json.dumps(event)}"
        assert mark in said, said  # it came to that
        seconds = ended.seconds_from(mark, "died: ")
        same = ended.digest == expected(criterion)
        record.append({"criterion": criterion, **event, "seconds_to_notice": round(seconds, 2), "same_bits": same})
        assert seconds < NOTICED, said
        assert same, said


@pytest.mark.timeout(3 * LONGEST)
@pytest.mark.parametrize("criterion", CRITERIA if OUT else ["ce"])
@pytest.mark.parametrize("phase", MASTER if OUT else ["product"])
def test_the_master_is_killed_and_the_same_command_goes_on(
    criterion, phase, launch, expected, record, tmp_path
) -> None:
    event = {"rank": 0, "phase": phase, "nth": 14 if PLACES[phase] is OFTEN else 3, "signal": "KILL"}
    for resumed_on in (1, 2, 4) if OUT else (2,):
        run = tmp_path / f"run{resumed_on}"
        ended = launch(run, criterion, 3, [event])
        said = "".join(line for _, line in ended.lines)
        assert ended.status not in (0, 2), said
        assert f"disturbed: {json.dumps(event)}" in said
        assert "the same command goes on from the last checkpoint" in said
        again = launch(run, criterion, resumed_on, [])
        assert again.status == 0, again.lines
        same = again.digest == expected(criterion)
        record.append({"criterion": criterion, **event, "resumed_on": resumed_on, "same_bits": same})
        assert same, said
