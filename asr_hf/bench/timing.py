"""Times of several cases in one process, taken in turns, and the speed of the processor's matrix products."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from asr_hf.bench.methods import Case, Method, matmul_precision
from asr_hf.bench.plain import Named

GEMM_SIZES = (1024, 2048)  # square products that show the processor's peak


@dataclass
class Times:
    """Milliseconds, one entry a round; `found` is what the untimed first round computed."""

    found: Named
    linearize: list[float] = field(default_factory=list)
    product: list[float] = field(default_factory=list)

    @property
    def linearize_ms(self) -> float:
        return median(self.linearize)

    @property
    def product_ms(self) -> float:
        return median(self.product)


def interleaved(methods: dict[Case, Method], repeats: int, device: str) -> tuple[dict[Case, Times], float]:
    """Time all cases round-robin: each linearises once and does one product a round; the first round only warms up.

    Returns:
        The times of each case, and the best speed of a matrix product seen in the rounds (GFLOP/s).
    """
    times: dict[Case, Times] = {}
    peak = 0.0
    for round_number in range(repeats + 1):
        peak = max(peak, gemm_gflops(device))
        gc.collect()
        for case, method in methods.items():
            with matmul_precision(case.precision, device):
                linearize_ms, kept = timed(method.linearize, device)
                product_ms, found = timed(partial(method.product, kept), device)
            del kept
            if round_number == 0:
                times[case] = Times(found)
            else:
                times[case].linearize.append(linearize_ms)
                times[case].product.append(product_ms)
    return times, peak


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Milliseconds of a call, and its result."""
    _finish(device)
    start = time.perf_counter()
    result = call()
    _finish(device)
    return 1e3 * (time.perf_counter() - start), result


def gemm_gflops(device: str) -> float:
    """The best of a few square products in full float32 (GFLOP/s)."""
    best = 0.0
    with matmul_precision("fp32", device):
        for n in GEMM_SIZES:
            a, b = torch.randn(2, n, n, device=device)
            for _ in range(3):
                best = max(best, 2e-6 * n**3 / timed(partial(torch.matmul, a, b), device)[0])
    return best


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
