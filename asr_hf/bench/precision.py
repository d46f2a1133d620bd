"""The benchmark of precisions: whether reduced ones solve the system of a real Hessian-free run as well as fp32.

Symbols, per frame, on the gradient and curvature samples of one update of the run:
    θ, g (N,)  the parameters that the run holds, and the gradient there
    G          the Gauss-Newton matrix of those samples, regularisation and structural damping included; λ the damping
    φ(d)       gᵀd + ½ dᵀ(G + λI)d, as CG sees it with the products of a precision
    φ₃₂(d)     the same with products in fp32: what an iterate is worth, whatever precision found it
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from asr_hf.bench.curvature import Say, library_versions, machine_facts
from asr_hf.curvature.options import AUTO
from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.errors import InputError
from asr_hf.models.saved import model_name
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Objective
from asr_hf.optimizers.hf import HessianFree, HfOptions
from asr_hf.optimizers.regulariser import Regulariser
from asr_hf.options import require
from asr_hf.solvers.cg import CgResult, Iterate, conjugate_gradients
from asr_hf.solvers.vectors import dot, norm
from asr_hf.training.checkpoint import checkpoints, restore_latest
from asr_hf.training.run import Options, build, load_data

MARKS = (10, 20, 30)  # iterations after which precisions are compared, besides the last
REACHED = 0.99  # share of fp32's decrease that counts as reached


@dataclass(frozen=True)
class PrecisionSettings:
    """What is measured.

    Attributes:
        iterations: of CG, from zero and without early stop.
        update: whose curvature sample is drawn. None: the update that comes next in the run.
    """

    iterations: int = 50
    update: int | None = None

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "--iterations", self.iterations, "must be at least 1")
        require(self.update is None or self.update >= 1, "--update", self.update, "must be at least 1")


@dataclass(frozen=True)
class Run:
    """A run by Hessian-free: its folder, and the options in its config.yaml."""

    folder: Path
    options: Options


@dataclass(frozen=True)
class Solve:
    """A solve in one precision: CG's result, G·g (N,), frames of the curvature sample, median seconds of a product."""

    result: CgResult
    along_gradient: torch.Tensor
    frames: int
    product_seconds: float


def names_of(folders: Sequence[Path]) -> list[str]:
    """Names of run folders: their paths below the folder that all have in common."""
    resolved = [folder.resolve() for folder in folders]
    common = os.path.commonpath([folder.parent for folder in resolved])
    return [os.path.relpath(folder, common) for folder in resolved]


def bench_precision(
    runs: Mapping[str, Run], settings: PrecisionSettings, command: str, say: Say = print
) -> dict[str, Any]:
    """Solve the system of an update of each run in every precision, and return what the JSON file holds.

    Args:
        runs: by the name that rows bear.
        settings: what to measure.
        command: the command line, as it is to be written into the file.
        say: told what is being done.

    Returns:
        command, versions, machine, settings, `runs` (of each: where it stands, and the choice of `auto`), and `rows`.
        A row has run, model, precision; iterations and stop of CG; `ratio` = φ₃₂ of the final iterate in units of
        that of fp32, `ratios` = the same after 10, 20, 30 iterations, `reaches` = whether `ratio` is at least 0.99;
        quadratic_fp32 = φ₃₂, and quadratic = φ of CG's recursion (nats per frame); drift = largest
        ‖(b − Ax) − r‖/‖b‖, and falls_back = whether it is beyond what the run tolerates; product_error =
        ‖(G − G₃₂)g‖/‖G₃₂g‖; product_seconds; heldout = the loss per frame at θ + the final iterate (null: not finite).

    Raises:
        InputError: a run without checkpoint or of another optimiser, or whose corpus is gone.
    """
    for name, run in runs.items():
        if not isinstance(run.options["optimizer"], HfOptions):
            raise InputError(f"run {name} is not by Hessian-free", "Name runs of asr-hf train optimizer=hf.")
        if not checkpoints(_checkpoints(run)):
            raise InputError(f"{_checkpoints(run)} holds no checkpoint", "Let the run do an update first.")
        run.options["corpus"].require_paths()
    described: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        described[name], found = _measure(name, run, settings, say)
        rows += [{"run": name, "model": model_name(run.options["model"]), **row} for row in found]
    return {
        "command": command,
        "versions": library_versions(),
        "machine": machine_facts("cpu"),
        "settings": asdict(settings),
        "runs": described,
        "rows": rows,
    }


class NextUpdate(HessianFree):
    """A run by Hessian-free just before the solve of an update.

    Attributes:
        gradient: g (N,).
        sample: the curvature sample.
    """

    gradient: torch.Tensor
    sample: Sample

    def prepare(self, objective: Objective, update: int | None) -> None:
        """What an update does before it solves: g at θ, and the curvature sample."""
        state = self.state
        state.update = update or state.update + 1
        objective.begin_update()
        self._regulariser = Regulariser(objective, state.theta, self.options.weight_decay)
        self.gradient, _ = self._evaluate_gradient(objective)
        self.sample = self._sample(objective, "curvature")

    def solve_in(self, objective: Objective, precision: Precision, iterations: int) -> Solve:
        """CG on (G + λI)d = −g from zero, to the last iteration."""
        options = replace(
            self.options.cg,
            max_iterations=iterations,
            progress_tolerance=0.0,
            residual_tolerance=0.0,
            drift_tolerance=math.inf,
        )
        seconds: list[float] = []
        with objective.linearize(self.state.theta, self.sample, precision) as lin:
            along_gradient = lin.product(self.gradient).div_(lin.frames)
            operator = self.damped(lin)

            def timed_operator(v_N: torch.Tensor) -> torch.Tensor:
                begin = time.perf_counter()
                product = operator(v_N)
                seconds.append(time.perf_counter() - begin)
                return product

            result = conjugate_gradients(
                timed_operator, self.gradient.neg(), options, watch_drift=True, keep=options.kept().union(MARKS)
            )
        if not result.iterates:
            raise InputError(f"CG in {precision.value} made no step: {result.reason.value}", "Name another run.")
        return Solve(result, along_gradient, lin.frames, median(seconds))

    def worth(self, objective: Objective, iterates: Sequence[Iterate]) -> list[float]:
        """φ₃₂ of iterates."""
        with objective.linearize(self.state.theta, self.sample, Precision.FP32) as lin:
            operator = self.damped(lin)
            return [0.5 * dot(d.x, operator(d.x)) + dot(self.gradient, d.x) for d in iterates]

    def heldout_at(self, objective: Objective, d: torch.Tensor) -> float | None:
        """Held-out loss per frame at θ + d; None where it is not finite."""
        loss = self._heldout(objective, self.state.theta + d)
        return loss if math.isfinite(loss) else None


def _measure(name: str, run: Run, settings: PrecisionSettings, say: Say) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where a run stands, and its row of each precision."""
    optimizer, objective = _restored(run, say)
    optimizer.prepare(objective, settings.update)
    state = optimizer.state
    auto, why = objective.choose_precision(state.theta, optimizer.sample)
    solves = {}
    for precision in Precision:
        say(f"{name}, update {state.update}: {settings.iterations} CG iterations in {precision.value}")
        solves[precision] = optimizer.solve_in(objective, precision, settings.iterations)
    described = {
        "update": state.update,
        "damping": state.damping,
        "parameters": objective.layout.size,
        "curvature_frames": solves[Precision.FP32].frames,
        "gradient_norm": norm(optimizer.gradient),
        "heldout": state.heldout,
        "precision": state.precision,
        "drift_tolerance": optimizer.options.cg.drift_tolerance,
        "threads": torch.get_num_threads(),
        "auto": auto.value,
        "auto_why": why,
    }
    return described, _rows(optimizer, objective, solves)


def _checkpoints(run: Run) -> Path:
    return run.folder / "checkpoints"


def _restored(run: Run, say: Say) -> tuple[NextUpdate, LocalObjective]:
    """A run as its last checkpoint left it, with `curvature.precision=auto`."""
    options = {**run.options, "curvature": replace(run.options["curvature"], precision=AUTO)}
    torch.set_num_threads(options["cluster"].threads)
    _, evaluator = build(options, load_data(options, check=False))
    optimizer = NextUpdate(options["optimizer"], options["optimizer"].begin(torch.empty(0)), options["training"].seed)
    restore_latest(_checkpoints(run), optimizer.state, evaluator.layout.to_json(), say)
    objective = LocalObjective(evaluator, options["training"].bad_share, say)
    if optimizer.state.buffers.numel():
        objective.set_buffers(optimizer.state.buffers)
    return optimizer, objective


def _rows(optimizer: NextUpdate, objective: Objective, solves: Mapping[Precision, Solve]) -> list[dict[str, Any]]:
    worth: dict[Precision, dict[int, float]] = {}
    for precision, solve in solves.items():
        iterates = [kept for kept in solve.result.iterates if kept.iteration in (*MARKS, solve.result.iterations)]
        values = optimizer.worth(objective, iterates)
        worth[precision] = {kept.iteration: value for kept, value in zip(iterates, values, strict=True)}
    fp32 = solves[Precision.FP32]
    best = worth[Precision.FP32]
    rows = []
    for precision, solve in solves.items():
        result, found = solve.result, worth[precision]
        final = found[result.iterations] / best[fp32.result.iterations]
        rows.append(
            {
                "precision": precision.value,
                "iterations": result.iterations,
                "stop": result.reason.name,
                "ratio": final,
                "ratios": {str(mark): found[mark] / best[mark] for mark in MARKS if mark in found and mark in best},
                "reaches": final >= REACHED,
                "quadratic_fp32": found[result.iterations],
                "quadratic": result.quadratic,
                "drift": result.drift,
                "falls_back": not result.drift <= optimizer.options.cg.drift_tolerance,
                "product_error": norm(solve.along_gradient - fp32.along_gradient) / norm(fp32.along_gradient),
                "product_seconds": solve.product_seconds,
                "heldout": optimizer.heldout_at(objective, result.x),
            }
        )
    return rows
