"""The benchmark of curvature products: how many gradients one costs, how exact it is, how much memory it takes.

Symbols: G = JᵀMJ the Gauss-Newton matrix of cross-entropy, v a direction, G₆₄v the same product in float64.
"""

import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from asr_hf import __version__
from asr_hf.bench.kinks import away_from_kinks
from asr_hf.bench.memory import Peak, peak_of
from asr_hf.bench.methods import (
    GRADIENT,
    METHODS,
    PRECISIONS,
    Case,
    exact_gradient,
    exact_product,
    matmul_precision,
    modules_for,
    prepare,
)
from asr_hf.bench.plain import Named
from asr_hf.bench.sizes import SIZES, Problem, Size, gradient_flops, make_problem
from asr_hf.bench.timing import Times, interleaved, timed
from asr_hf.curvature.precision import fastest_full_setting
from asr_hf.errors import InputError
from asr_hf.options import require
from asr_hf.report.published import machine_shape

PRODUCTS = 50  # that share a linearisation: a CG solve
BLOCKS = (1, 2, 4)
PACKAGES = ("torch", "numpy", "curvlinops-for-pytorch", "backpack-for-pytorch")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        models: of SIZES.
        methods: of METHODS; one that is named must run. None: all that can.
        precisions: of PRECISIONS.
        repeats: timed rounds.
        device: cpu or cuda.
        peaks: measure memory too, in a process per case.
    """

    models: Sequence[str] = tuple(SIZES)
    methods: Sequence[str] | None = None
    precisions: Sequence[str] = PRECISIONS
    repeats: int = 7
    device: str = "cpu"
    peaks: bool = True

    def __post_init__(self) -> None:
        for name, chosen, known in (
            ("--model", self.models, SIZES),
            ("--method", self.methods or (), METHODS),
            ("--precision", self.precisions, PRECISIONS),
        ):
            for each in chosen:
                require(each in known, name, each, f"must be of {', '.join(known)}")
        require(self.repeats >= 1, "--repeats", self.repeats, "must be at least 1")
        usable = self.device == "cpu" or (self.device.startswith("cuda") and torch.cuda.is_available())
        require(usable, "--device", self.device, "must be cpu, or cuda where torch finds a GPU")


def bench_curvature(
    settings: Settings, command: str, say: Say = print, sizes: Mapping[str, Size] = SIZES
) -> dict[str, Any]:
    """Measure, and return what the JSON file holds.

    Args:
        settings: what to measure.
        command: the command line, as it is to be written into the file.
        say: told what is being done, and why a method is left out.
        sizes: other sizes, for tests.

    Returns:
        command, versions, machine, settings, `unit` (of each model: ms and speed of the gradient), and `rows`. A row
        has model, method, precision, what (gradient, product, linearize, blocks2, blocks4), ratio_to_gradient = (one
        linearisation + 50 products) / 50 in gradients (of `linearize` the one linearisation), rel_error =
        ‖Gv − G₆₄v‖/‖G₆₄v‖, and peak_mib (null without `peaks`). Products of blocks are one of each block.

    Raises:
        InputError: a method that the settings name cannot run.
    """
    torch.set_num_threads(1)
    units: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that are measured
        cases = {name: _runnable(settings, sizes[name], say) for name in settings.models}
        for name in settings.models:
            say(f"{name}: {len(cases[name])} cases, {settings.repeats} rounds")
            units[name], found = _measure(settings, sizes[name], cases[name])
            rows += found
    return {
        "command": command,
        "versions": library_versions(),
        "machine": machine_facts(settings.device),
        "settings": {
            **asdict(settings),
            "threads": 1,
            "sizes": {name: asdict(sizes[name]) for name in settings.models},
        },
        "unit": units,
        "rows": rows,
    }


def _runnable(settings: Settings, size: Size, say: Say) -> list[Case]:
    """The cases of a model: the gradient on every module; each method on the module where one trial was fastest."""
    problem = make_problem(size, settings.device)
    cases = [Case(size, GRADIENT, module) for module in modules_for(size, GRADIENT)]
    for method in settings.methods or METHODS:
        for precision in settings.precisions:
            if precision in METHODS[method]:
                cases += _fastest(size, method, precision, problem, settings, say)
    return cases


def _fastest(size: Size, method: str, precision: str, problem: Problem, settings: Settings, say: Say) -> list[Case]:
    if method == "asr_hf":
        return [Case(size, method, size.model, precision, blocks) for blocks in BLOCKS]
    milliseconds: dict[Case, float] = {}
    reasons: list[str] = []
    for module in modules_for(size, method):
        case = Case(size, method, module, precision)
        try:
            ready = prepare(case, problem)
            with matmul_precision(precision, settings.device):
                kept = ready.linearize()
                milliseconds[case] = timed(partial(ready.product, kept), settings.device)[0]
        except InputError as error:
            reasons.append(str(error))
        except RuntimeError as error:
            reasons.append(f"{module}: {str(error).splitlines()[0]}")
    if milliseconds:
        return [min(milliseconds, key=lambda case: milliseconds[case])]
    reason = "; ".join(dict.fromkeys(reasons))
    if settings.methods is not None:
        raise InputError(f"{method} cannot run on {size.model} in {precision}: {reason}", "Leave it out of --method.")
    say(f"{size.model} {method} {precision}: left out ({reason})")
    return []


def _measure(settings: Settings, size: Size, cases: list[Case]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The unit and the rows of one model."""
    problem = away_from_kinks(size, make_problem(size, settings.device))
    exact = {blocks: exact_product(size, problem, blocks) for blocks in {case.blocks for case in cases}}
    times, peak_gflops = interleaved(
        {case: prepare(case, problem) for case in cases}, settings.repeats, settings.device
    )

    gradients = {case: times[case].product_ms for case in cases if case.method == GRADIENT}
    unit = min(gradients, key=lambda case: gradients[case])
    gflops = gradient_flops(size) / gradients[unit] / 1e6
    described = {
        "ms": gradients[unit],
        "module": unit.module,
        "gflops": gflops,
        "peak_gflops": peak_gflops,
        "share_of_peak": gflops / peak_gflops,
        "modules_ms": {case.module: ms for case, ms in gradients.items()},
    }
    rows = []
    for case in cases:
        if case.method == GRADIENT and case != unit:
            continue
        found = times[case].found
        error = relative_error(found, exact_gradient(size, problem) if case == unit else exact[case.blocks])
        peak = peak_of(case, settings.device) if settings.peaks else None
        rows += _rows(case, times[case], gradients[unit], error, peak)
    return described, rows


def _rows(case: Case, times: Times, unit_ms: float, error: float, peak: Peak | None) -> list[dict[str, Any]]:
    def row(what: str, ratio: float, milliseconds: float, peak_mib: float | None) -> dict[str, Any]:
        return {
            "model": case.size.model,
            "method": case.method,
            "precision": case.precision,
            "what": what,
            "ratio_to_gradient": ratio,
            "rel_error": error,
            "peak_mib": peak_mib,
            "ms": milliseconds,
            "module": case.module,
        }

    product_peak = peak.product if peak else None
    if case.method == GRADIENT:
        return [row("gradient", 1.0, unit_ms, product_peak)]
    share = times.linearize_ms / PRODUCTS + times.product_ms
    what = "product" if case.blocks == 1 else f"blocks{case.blocks}"
    rows = [row(what, share / unit_ms, times.product_ms, product_peak)]
    if case.method == "asr_hf" and case.blocks == 1:
        linearize_ms = times.linearize_ms
        rows.append(row("linearize", linearize_ms / unit_ms, linearize_ms, peak.linearize if peak else None))
    return rows


def relative_error(found: Named, exact: Named) -> float:
    """‖found − exact‖ / ‖exact‖ over all parameters together, in float64."""
    difference = sum(float((found[name].double() - exact[name]).square().sum()) for name in exact)
    norm = sum(float(exact[name].square().sum()) for name in exact)
    return (difference / norm) ** 0.5


def library_versions() -> dict[str, str]:
    """Versions of asr_hf, Python, torch and the libraries that are measured beside them."""
    versions = {"asr_hf": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def machine_facts(device: str) -> dict[str, Any]:
    """Shape of the machine, the instructions that decide about bf16, and what multiplies torch's matrices."""
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else ():
        if line.startswith("flags"):
            flags = set(line.split(":", 1)[1].split())
            break
    machine = machine_shape() | {
        "amx_bf16": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "full_float32_matmul": fastest_full_setting(),
    }
    if torch.device(device).type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine
