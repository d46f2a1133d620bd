"""The repeatability guard: the same bits twice, or the run stops."""

import pytest
import torch

from asr_hf.curvature.guard import RepeatabilityGuard, deterministic_algorithms
from asr_hf.errors import InputError


def test_the_same_bits_twice_pass_and_only_the_first_product_is_checked() -> None:
    guard, calls = RepeatabilityGuard(exact=True), []

    def product() -> torch.Tensor:
        calls.append(1)
        return torch.tensor([1.0, float("nan")])

    guard.check(product)
    guard.check(product)
    assert len(calls) == 2


@pytest.mark.parametrize(("exact", "difference"), [(True, 1e-7), (False, 1e-5)])
def test_products_that_change_stop_the_run(exact: bool, difference: float) -> None:
    values = iter([torch.ones(4), torch.ones(4) + difference])
    with pytest.raises(InputError, match="differ"):
        RepeatabilityGuard(exact).check(lambda: next(values))


def test_a_device_may_differ_in_the_last_bits() -> None:
    values = iter([torch.ones(4), torch.ones(4) + 2e-7])
    RepeatabilityGuard(exact=False).check(lambda: next(values))


def test_deterministic_algorithms_are_on_within_the_block_only() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    for wanted in (True, False):
        with deterministic_algorithms(wanted):
            assert torch.are_deterministic_algorithms_enabled() == (wanted or before)
        assert torch.are_deterministic_algorithms_enabled() == before
