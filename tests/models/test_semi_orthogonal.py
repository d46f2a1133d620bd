"""The semi-orthogonal penalty against finite differences and dense Jacobians, and the step that Kaldi takes."""

import pytest
import torch

from asr_hf.models.semi_orthogonal import SemiOrthogonal
from asr_hf.models.tdnnf import TdnnfOptions

WEIGHT = 0.3
SHAPES = {"a": (3, 5), "b": (4, 4)}


def random(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in SHAPES.items()}
    return {**named, "other": torch.ones(2, dtype=torch.float64)}


def penalty_at(named: dict[str, torch.Tensor]) -> SemiOrthogonal:
    penalty = SemiOrthogonal(tuple(SHAPES), WEIGHT)
    penalty.refresh(named)
    return penalty


def scale(matrix: torch.Tensor) -> torch.Tensor:
    gram = matrix @ matrix.T
    return torch.trace(gram @ gram.T) / torch.trace(gram)


def test_value_is_the_definition_and_the_scale_stays_fixed() -> None:
    at, moved = random(0), random(1)
    penalty = penalty_at(at)
    for named in (at, moved):
        residuals = [named[n] @ named[n].T - scale(at[n]) * torch.eye(len(named[n])) for n in SHAPES]
        assert penalty.value(named) == pytest.approx(sum(0.5 * WEIGHT * float((r**2).sum()) for r in residuals))


def test_gradient_is_the_difference_quotient() -> None:
    at, direction, step = random(0), random(1), 1e-6
    penalty = penalty_at(random(2))
    gradient = penalty.gradient(at)
    assert set(gradient) == set(SHAPES)
    ends = [penalty.value({n: at[n] + sign * step * direction[n] for n in at}) for sign in (1, -1)]
    slope = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-7)


def test_product_is_that_of_the_dense_jacobian_of_the_residual() -> None:
    at, tangent = random(0), random(1)
    product = penalty_at(at).product(at, tangent)
    assert set(product) == set(SHAPES)
    for name, (rows, columns) in SHAPES.items():
        jacobian = torch.autograd.functional.jacobian(lambda m: m @ m.T, at[name])
        dense = jacobian.reshape(rows * rows, rows * columns)
        expected = WEIGHT * dense.T @ dense @ tangent[name].flatten()
        assert torch.allclose(product[name].flatten(), expected)


@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0])
def test_steps_lead_to_semi_orthogonal_matrices_of_any_scale(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start, _ = torch.linalg.qr(torch.randn(30, 12, dtype=torch.float64, generator=generator))
    matrix = 7.0 * (start.T + spread * torch.randn(12, 30, dtype=torch.float64, generator=generator))
    penalty = SemiOrthogonal(("a",), WEIGHT)

    def distance(m: torch.Tensor) -> float:
        return float((m @ m.T / scale(m) - torch.eye(12)).norm())

    first = previous = distance(matrix)
    for _ in range(30):
        matrix = penalty.step({"a": matrix})["a"]
        assert distance(matrix) < max(previous, 1e-12)
        previous = distance(matrix)
    assert previous < 1e-6 * first


def test_the_step_halves_its_speed_far_from_the_constraint() -> None:
    for values, speed in (([1.0, 1.1], 1 / 8), ([1.0, 1.3], 1 / 16), ([1.0, 2.0], 1 / 32)):  # ratios 1.01, 1.07, 1.36
        matrix = torch.diag(torch.tensor(values, dtype=torch.float64))
        gram, s2 = matrix @ matrix.T, scale(matrix)
        expected = matrix - 4 * speed / s2 * (gram - s2 * torch.eye(2)) @ matrix
        assert torch.allclose(SemiOrthogonal(("a",), WEIGHT).step({"a": matrix})["a"], expected)


def test_the_scale_must_be_set_first() -> None:
    with pytest.raises(RuntimeError, match="refresh"):
        SemiOrthogonal(tuple(SHAPES), WEIGHT).value(random(0))


def test_a_tdnnf_names_its_bottlenecks_and_starts_without_penalty() -> None:
    model = TdnnfOptions(width=6, bottleneck=4, strides=[1, 0]).build(3, 5, seed=0)
    named = dict(model.named_parameters())
    penalty = model.penalty()
    assert penalty is not None
    assert penalty.names == ("layer2.bottleneck", "layer3.bottleneck")
    penalty.refresh(named)
    assert penalty.value(named) == pytest.approx(0, abs=1e-9)
    assert TdnnfOptions(semi_orthogonal=0.0).build(3, 5, seed=0).penalty() is None
