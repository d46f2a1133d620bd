"""Curvature products must be repeatable: CG on an operator that changes between two products solves nothing."""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch

from asr_hf.errors import InputError

LOOSE = 1e-6  # relative difference that is allowed where bits may differ (CUDA without deterministic algorithms)


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within the block torch uses deterministic algorithms, if wanted, or refuses an operation that has none."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it before its first product
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class RepeatabilityGuard:
    """Evaluates the first product of a process twice and compares.

    Args:
        exact: whether the bits must agree (CPU, and CUDA with deterministic algorithms); else the relative difference
            must stay below LOOSE.
    """

    def __init__(self, exact: bool) -> None:
        self._exact = exact
        self._passed = False

    def check(self, product: Callable[[], torch.Tensor]) -> None:
        """Check once; later calls do nothing.

        Raises:
            InputError: two evaluations of the product differ.
        """
        if self._passed:
            return
        first, second = product(), product()
        if not torch.equal(first, second):
            finite = torch.isfinite(first) == torch.isfinite(second)
            difference = float((first - second).norm() / first.norm()) if bool(finite.all()) else float("inf")
            same_nan = torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))
            if not same_nan and (self._exact or not difference <= LOOSE):
                raise InputError(
                    f"two evaluations of one curvature product differ (relative difference {difference:.1e})",
                    "Use deterministic operations in the model, no random numbers and one thread per rank.",
                )
        self._passed = True
