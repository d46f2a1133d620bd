"""The benchmark of lattice-free MMI: what forward-backward of a denominator costs, and a product with its Hessian.

Symbols: log Z the log-sum over all paths of the denominator, γ = ∂log Z/∂y, H = ∂²log Z/∂y², v a direction. There is
no leak, for k2 has none; method asr_hf_leaky alone has that of training.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from asr_hf.bench.curvature import Say, library_versions, machine_facts
from asr_hf.bench.lfmmi_graphs import Problem, all_frames, from_folders, synthetic
from asr_hf.bench.lfmmi_rivals import Product, UnderAutograd, linear_domain, log_domain
from asr_hf.bench.timing import timed
from asr_hf.criteria.denominator import Denominator, DenominatorPaths
from asr_hf.criteria.lfmmi import LfmmiOptions
from asr_hf.errors import InputError
from asr_hf.options import require

FORWARD_BACKWARD, PRODUCT = "forward_backward", "curvature_product"
BEAMS = {"k2": 1e10, "k2_pruned": 10.0}  # output beam of intersect_dense; the first prunes nothing
K2_BACKEND = Path(__file__).parents[1] / "criteria" / "k2_backend.py"
ROUNDS = (3, 40)  # at least and at most
LEAKY = "asr_hf_leaky"


@dataclass(frozen=True)
class LfmmiSettings:
    """What is measured.

    Attributes:
        chain, model, feats: folders of the graph "an4"; none of them: the synthetic graph alone.
        k2_python: a Python that has k2; None: k2 is left out.
        rows: pieces of the features in a minibatch.
        seconds: about how long each graph is measured, without k2 and the float64 reference.
    """

    chain: Path | None = None
    model: Path | None = None
    feats: Path | None = None
    k2_python: Path | None = None
    rows: int = 16
    seconds: float = 40.0

    def __post_init__(self) -> None:
        given = [folder is not None for folder in (self.chain, self.model, self.feats)]
        if any(given) and not all(given):
            raise InputError("--chain, --model and --feats belong together", "Give all of them, or none.")
        require(self.rows >= 1, "--rows", self.rows, "must be at least 1")
        require(self.seconds > 0, "--seconds", self.seconds, "must be positive")


def bench_lfmmi(
    settings: LfmmiSettings, command: str, say: Say = print, drawn: Callable[[], Problem] = synthetic
) -> dict[str, Any]:
    """Measure, and return what the JSON file holds.

    Args:
        settings: what to measure.
        command: the command line, as it is to be written into the file.
        say: told what is being done and what is left out.
        drawn: makes the synthetic problem.

    Returns:
        command, versions, machine, settings, `graphs` (the size of each), and `rows`. A row has graph, method, what
        (forward_backward: log Z and γ; curvature_product: H·v, what does not depend on v done before), ms (the median)
        and min_ms, ratio_to_forward_backward = ms over that of asr_hf on the graph, and rel_error = ‖x − x₆₄‖/‖x₆₄‖ of
        γ or H·v, x₆₄ by autograd in float64 in the log domain (of asr_hf_leaky by asr_hf in float64).

    Raises:
        InputError: the folders do not fit each other, or k2 did not run.
    """
    torch.set_num_threads(1)
    versions = library_versions()
    problems = {"synthetic": drawn()}
    if settings.chain and settings.model and settings.feats:
        problems["an4"] = from_folders(settings.chain, settings.model, settings.feats, settings.rows)
    if settings.k2_python is None:
        say("k2: left out (no --k2-python)")
    rows = []
    for name, problem in problems.items():
        say(f"{name}: {problem.graph}")
        results = _measured(problem, settings.seconds)
        if settings.k2_python is not None:
            k2_versions, by_k2 = _by_k2(problem, settings.k2_python)
            versions |= k2_versions
            results |= by_k2
        exact = _exact(UnderAutograd(log_domain(problem.graph, torch.float64)), problem)
        exact_with_leak = _exact(Ours(problem, LfmmiOptions().leak), problem)
        rows += _rows(name, results, exact, exact_with_leak)
    return {
        "command": command,
        "versions": versions,
        "machine": machine_facts("cpu"),
        "settings": {"rows": settings.rows, "seconds": settings.seconds, "threads": 1},
        "graphs": {name: problem.describe() for name, problem in problems.items()},
        "rows": rows,
    }


@dataclass
class Result:
    """Milliseconds of each round, and what was computed."""

    ms: list[float]
    found: torch.Tensor


Results = dict[tuple[str, str], Result]  # by method and what


class Method(Protocol):
    """A way to forward-backward and to curvature products."""

    def forward_backward(self, y_BTP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log Z (B,) and γ (B, T, P)."""
        ...

    def linearize(self, y_BTP: torch.Tensor) -> Product:
        """v → H·v."""
        ...


class Ours:
    """asr_hf's denominator."""

    def __init__(self, problem: Problem, leak: float) -> None:
        self.denominator = Denominator(problem.graph, problem.y_BTP.shape[2], leak)

    def forward_backward(self, y_BTP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        paths = self._paths(y_BTP)
        return paths.log_total_B, paths.posteriors_BTP

    def linearize(self, y_BTP: torch.Tensor) -> Product:
        return self._paths(y_BTP).covariance

    def _paths(self, y_BTP: torch.Tensor) -> DenominatorPaths:
        return self.denominator.paths(y_BTP, all_frames(y_BTP))


def _methods(problem: Problem) -> dict[str, Method]:
    graph, pdfs = problem.graph, problem.y_BTP.shape[2]
    return {
        "asr_hf": Ours(problem, 0.0),
        LEAKY: Ours(problem, LfmmiOptions().leak),
        "torch_autograd": UnderAutograd(linear_domain(graph, pdfs, torch.float32)),
        "torch_log": UnderAutograd(log_domain(graph, torch.float32)),
    }


def _measured(problem: Problem, seconds: float) -> Results:
    """All methods of this process in turns; the first round only warms up."""
    y_BTP, v_BTP = problem.y_BTP, problem.v_BTP
    calls: dict[tuple[str, str], Callable[[], torch.Tensor]] = {}
    for name, method in _methods(problem).items():
        calls[name, FORWARD_BACKWARD] = lambda method=method: method.forward_backward(y_BTP)[1]  # type: ignore[misc]
        calls[name, PRODUCT] = partial(method.linearize(y_BTP), v_BTP)
    results = {key: Result([], call()) for key, call in calls.items()}
    while _wants_more(results, seconds):
        for key, call in calls.items():
            results[key].ms.append(timed(call, "cpu")[0])
    return results


def _wants_more(results: Results, seconds: float) -> bool:
    rounds = len(next(iter(results.values())).ms)
    spent = sum(sum(result.ms) for result in results.values()) / 1e3
    least, most = ROUNDS
    return rounds < least or (rounds < most and spent < seconds)


def _by_k2(problem: Problem, python: Path) -> tuple[dict[str, str], Results]:
    """Versions and results of k2 in its own process, on one thread."""
    fields = {name: torch.as_tensor(array) for name, array in asdict(problem.graph).items()}
    shared: dict[str, Any] = {"denominator": fields, "y_BTP": problem.y_BTP, "frames_B": all_frames(problem.y_BTP)}
    shared["repeats"] = ROUNDS[0] + 1
    with tempfile.TemporaryDirectory() as folder:
        jobs, results = Path(folder) / "jobs", Path(folder) / "results"
        torch.save([{**shared, "output_beam": beam} for beam in BEAMS.values()], jobs)
        command = [python, K2_BACKEND, jobs, results]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread)
            done = torch.load(results)
        except (OSError, subprocess.CalledProcessError) as error:
            last = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
            raise InputError(f"{python} does not run k2: {last}", "scripts/k2_env makes one that does.") from None
    found = {
        (method, FORWARD_BACKWARD): Result(result["ms"][1:], result["posteriors_BTP"])
        for method, result in zip(BEAMS, done["results"], strict=True)
    }
    return {"k2": done["versions"]["k2"], "torch of k2": done["versions"]["torch"]}, found


def _exact(method: Method, problem: Problem) -> dict[str, torch.Tensor]:
    """γ and H·v in float64, row by row for the sake of memory."""
    gamma, product = [], []
    for y_TP, v_TP in zip(problem.y_BTP.double(), problem.v_BTP.double(), strict=True):
        gamma.append(method.forward_backward(y_TP[None])[1])
        product.append(method.linearize(y_TP[None])(v_TP[None]))
    return {FORWARD_BACKWARD: torch.cat(gamma), PRODUCT: torch.cat(product)}


def _rows(
    graph: str, results: Results, exact: Mapping[str, torch.Tensor], exact_with_leak: Mapping[str, torch.Tensor]
) -> list[dict[str, Any]]:
    unit = median(results["asr_hf", FORWARD_BACKWARD].ms)
    rows = []
    for (method, what), result in results.items():
        wanted = (exact_with_leak if method == LEAKY else exact)[what]
        row = {
            "graph": graph,
            "method": method,
            "what": what,
            "ms": median(result.ms),
            "ratio_to_forward_backward": median(result.ms) / unit,
            "rel_error": float((result.found.double() - wanted).norm() / wanted.norm()),
            "min_ms": min(result.ms),
        }
        rows.append(row)
    return rows
