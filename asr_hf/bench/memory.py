"""Peak memory of one case, measured in a process of its own.

The process prepares the case (model, data, direction), after a tiny one of its kind has loaded the libraries' code, and
notes what it holds. Then it linearises and computes two products: reported is the peak above what it held.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import gc
import multiprocessing
import resource
import warnings
from pathlib import Path

import torch

from asr_hf.bench.methods import Case, matmul_precision, prepare
from asr_hf.bench.sizes import TINY, make_problem

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Peak:
    """MiB above what the prepared process holds: after linearising, and after two products as well."""

    linearize: float
    product: float


def peak_of(case: Case, device: str) -> Peak:
    """The peak memory of a case; starts a process for it."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(measure_here, case, device).result()


def measure_here(case: Case, device: str) -> Peak:
    """The peak memory of a case in this process, which must be fresh."""
    torch.set_num_threads(1)
    meter = _CudaMeter() if torch.device(device).type == "cuda" else _ProcessMeter()
    warm = dataclasses.replace(case, size=TINY[case.size.model])
    with matmul_precision(case.precision, device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that are measured
        method = prepare(warm, make_problem(warm.size, device))
        method.product(method.linearize())
        method = prepare(case, make_problem(case.size, device))
        gc.collect()
        meter.start()
        kept = method.linearize()
        linearized = meter.peak_mib()
        for _ in range(2):
            method.product(kept)
        return Peak(linearized, meter.peak_mib())


class _ProcessMeter:
    """Resident memory of this process.

    Linux resets its high-water mark on request; elsewhere the mark of the whole life is read, which misses a peak below
    that of the preparation.
    """

    def start(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that was not given back would hide what comes
        try:
            CLEAR_REFS.write_text("5", encoding="ascii")
            self.held = _status_kib("VmRSS")
        except OSError:
            self.held = _high_water_kib()

    def peak_mib(self) -> float:
        return (_high_water_kib() - self.held) / 1024


class _CudaMeter:
    """Memory of torch's tensors on the GPU."""

    def start(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.held = torch.cuda.memory_allocated()

    def peak_mib(self) -> float:
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - self.held) / 2**20


def _high_water_kib() -> int:
    try:
        return _status_kib("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status_kib(key: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"no {key} in {STATUS}")
