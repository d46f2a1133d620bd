"""`curvature.precision=auto`: the fastest precision whose products are accurate enough, measured on one minibatch."""

import functools
import time
from collections.abc import Callable

import torch

from asr_hf.curvature.options import AUTO
from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import Sample
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.objective import GAUSS_NEWTON

TRIALS = 3


def measured_precision(evaluator: Evaluator, theta_N: torch.Tensor, sample: Sample) -> tuple[Precision, str]:
    """The precision that the options name, or for `auto` the fastest within the tolerance; and a sentence on why.

    Args:
        evaluator: of this process.
        theta_N: where the run starts.
        sample: a curvature sample; its first minibatch is measured.
    """
    options = evaluator.curvature
    if options.precision != AUTO:
        return Precision(options.precision), f"curvature products in {options.precision}"
    v_N = torch.randn(theta_N.shape, generator=torch.Generator().manual_seed(0)).to(theta_N.device)
    exact: torch.Tensor | None = None
    seconds, errors = {}, {}
    for precision in Precision:  # fp32 first
        _, lin = evaluator.linearize(theta_N, sample, [0], frozenset(), precision)
        product, seconds[precision] = _fastest(functools.partial(lin.product, v_N, GAUSS_NEWTON))
        exact = product if exact is None else exact
        errors[precision] = float((product - exact).norm() / exact.norm())
    fits = [p for p in Precision if p is Precision.FP32 or 0 < errors[p] <= options.tolerance]  # 0: it is fp32 itself
    chosen = min(fits, key=lambda precision: seconds[precision])
    found = ", ".join(
        f"{p.value} {seconds[p] / seconds[Precision.FP32]:.2f} of fp32's time, error {errors[p]:.1e}"
        for p in Precision
        if p is not Precision.FP32
    )
    return chosen, f"curvature products in {chosen.value} ({found}; tolerance {options.tolerance:g})"


def _fastest(evaluate: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The result, and the least seconds of some trials after a first one."""
    result, best = evaluate(), float("inf")
    for _ in range(TRIALS):
        begin = time.perf_counter()
        evaluate()
        best = min(best, time.perf_counter() - begin)
    return result, best
