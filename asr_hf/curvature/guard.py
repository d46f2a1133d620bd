"""Curvature products must be repeatable: CG on an operator that changes between two products solves nothing."""

from collections.abc import Callable

import torch

from asr_hf.errors import InputError

LOOSE = 1e-6  # relative difference that is allowed where bits may differ (CUDA)


class RepeatabilityGuard:
    """Evaluates the first product of a process twice and compares.

    Args:
        exact: whether the bits must agree (CPU); else the relative difference must stay below LOOSE.
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
