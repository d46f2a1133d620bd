"""Preconditioners against dense matrices in float64: the BFGS update, written out."""

import numpy as np
import pytest
import torch

from asr_hf.solvers.cg import CgOptions, conjugate_gradients
from asr_hf.solvers.pairs import Pairs
from asr_hf.solvers.preconditioners import Diagonal, Lbfgs, jacobi, product_of, use_counts
from asr_hf.solvers.stopping import StopReason

SIZE = 40


def matrix(seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return root @ root.T / SIZE + 0.3 * np.eye(SIZE)


def steps(number: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, SIZE))


def store(a: np.ndarray, s_mN: np.ndarray, limit: int = 20) -> Pairs:
    pairs = Pairs(limit, torch.float64)
    for s_N in s_mN:
        pairs.append(torch.from_numpy(s_N), torch.from_numpy(a @ s_N))
    return pairs


def diagonal(seed: int = 2) -> Diagonal:
    return Diagonal(torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 3, size=SIZE)))


def inverse_bfgs(s_mN: np.ndarray, y_mN: np.ndarray, d: np.ndarray, gamma: str = "last") -> np.ndarray:
    """H ← (I − ρsyᵀ)H(I − ρysᵀ) + ρssᵀ for one pair after the other, from γD⁻¹."""
    ratios = [s @ y / (y @ (y / d)) for s, y in zip(s_mN, y_mN, strict=True)]
    h = (ratios[-1] if gamma == "last" else max(ratios)) * np.diag(1 / d)
    for s, y in zip(s_mN, y_mN, strict=True):
        rho = 1 / (s @ y)
        left = np.eye(SIZE) - rho * np.outer(s, y)
        h = left @ h @ left.T + rho * np.outer(s, s)
    return h


def as_matrix(preconditioner: Lbfgs | Diagonal) -> np.ndarray:
    return np.stack([preconditioner(e).numpy() for e in torch.eye(SIZE, dtype=torch.float64)], axis=1)


@pytest.mark.parametrize("number", [1, 2, 5, 20])
@pytest.mark.parametrize("gamma", ["last", "largest"])
@pytest.mark.parametrize("on", [None, diagonal()])
def test_lbfgs_is_the_dense_inverse_bfgs_matrix(number: int, gamma: str, on: Diagonal | None) -> None:
    a, s_mN = matrix(), steps(number)
    d = np.ones(SIZE) if on is None else on.d_N.numpy()
    found = as_matrix(Lbfgs(store(a, s_mN), on, gamma))
    exact = inverse_bfgs(s_mN, s_mN @ a, d, gamma)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-11 * np.abs(exact).max())
    assert np.linalg.eigvalsh((found + found.T) / 2).min() > 0


@pytest.mark.parametrize("number", [1, 3, 16])
@pytest.mark.parametrize("on", [None, diagonal()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_secant_equation_holds_for_the_last_pair(number: int, on: Diagonal | None, dtype: torch.dtype) -> None:
    a, s_mN = matrix(3), steps(number, 4)
    pairs = Pairs(16, dtype)
    pairs.restore(torch.from_numpy(s_mN), torch.from_numpy(s_mN @ a))
    if on is not None and dtype is torch.float32:
        on = Diagonal(on.d_N.float())
    s_N, y_N = (rows[-1] for rows in pairs.vectors())
    error = (Lbfgs(pairs, on)(y_N) - s_N).norm() / s_N.norm()
    assert error <= (1e-12 if dtype is torch.float64 else 1e-5)


def test_without_pairs_it_is_the_diagonal() -> None:
    r_N, on = torch.from_numpy(steps(1)[0]), diagonal()
    same = Lbfgs(Pairs(4))(r_N)
    assert torch.equal(same, r_N)
    assert same is not r_N
    assert torch.equal(Lbfgs(Pairs(4), on)(r_N), r_N / on.d_N)


@pytest.mark.parametrize("change", [0.8, -0.2])
def test_refreshed_pairs_precondition_the_matrix_with_other_damping(change: float) -> None:
    a, s_mN = matrix(5), steps(6)
    pairs = store(a, s_mN)
    pairs.refresh(change)
    other = s_mN @ (a + change * np.eye(SIZE))
    np.testing.assert_allclose(as_matrix(Lbfgs(pairs)), inverse_bfgs(s_mN, other, np.ones(SIZE)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("on", [None, diagonal()])
def test_pairs_of_the_same_solve_are_used_at_once(on: Diagonal | None) -> None:
    """Appended one or two at a time, past the limit, refreshed and cleared: always that of the pairs that are held."""
    a, s_mN = matrix(6), steps(9)
    pairs = store(a, s_mN[:1], limit=4)
    growing = Lbfgs(pairs, on, inside=True)
    d = np.ones(SIZE) if on is None else on.d_N.numpy()
    for number in (2, 3, 5, 6, 9):
        for s_N in s_mN[pairs.appended : number]:
            pairs.append(torch.from_numpy(s_N), torch.from_numpy(a @ s_N))
        held = s_mN[max(0, number - 4) : number]
        np.testing.assert_allclose(as_matrix(growing), inverse_bfgs(held, held @ a, d), rtol=0, atol=1e-11)
    pairs.refresh(0.5)
    exact = inverse_bfgs(held, held @ a + 0.5 * held, d)
    np.testing.assert_allclose(as_matrix(growing), exact, rtol=0, atol=1e-11)
    pairs.clear()
    np.testing.assert_allclose(as_matrix(growing), np.diag(1 / d), rtol=1e-15)


def test_pairs_must_not_change_unless_it_is_asked_for() -> None:
    a, s_mN = matrix(), steps(3)
    pairs = store(a, s_mN[:2])
    fixed = Lbfgs(pairs)
    pairs.append(torch.from_numpy(s_mN[2]), torch.from_numpy(a @ s_mN[2]))
    with pytest.raises(ValueError, match="changed during a solve"):
        fixed(torch.ones(SIZE, dtype=torch.float64))
    with pytest.raises(ValueError, match="gamma"):
        Lbfgs(pairs, gamma="first")


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_pair_that_has_lost_its_curvature_takes_no_part(bad: int) -> None:
    a, s_mN = matrix(7), steps(5)
    y_mN = s_mN @ a
    y_mN[bad] *= -1
    pairs, good = Pairs(8, torch.float64), [k for k in range(5) if k != bad]
    pairs.restore(torch.from_numpy(s_mN), torch.from_numpy(y_mN))
    exact = inverse_bfgs(s_mN[good], y_mN[good], np.ones(SIZE))
    preconditioner = Lbfgs(pairs)
    np.testing.assert_allclose(as_matrix(preconditioner), exact, rtol=0, atol=1e-11)
    assert "4 pairs" in preconditioner.view()


def test_bf16_pairs_give_a_positive_definite_matrix_close_to_the_exact_one() -> None:
    a, s_mN = matrix(8), steps(6)
    pairs = Pairs(8, torch.bfloat16)
    for s_N in s_mN:
        pairs.append(torch.from_numpy(s_N).float(), torch.from_numpy(a @ s_N).float())
    preconditioner = Lbfgs(pairs)
    found = np.stack([preconditioner(e).double().numpy() for e in torch.eye(SIZE)], axis=1)
    exact = inverse_bfgs(s_mN, s_mN @ a, np.ones(SIZE))
    assert np.linalg.norm(found - exact) <= 0.03 * np.linalg.norm(exact)
    assert np.linalg.eigvalsh((found + found.T) / 2).min() > 0


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_diagonal_has_to_be_positive(value: float) -> None:
    with pytest.raises(ValueError, match="diagonal preconditioner"):
        Diagonal(torch.tensor([1.0, value, 2.0]))


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_squared_gradients_that_overflow_end_cg_by_name(value: float) -> None:
    a, b = torch.from_numpy(matrix()).float(), torch.ones(SIZE)
    mean_square = torch.ones(SIZE)
    mean_square[3] = value
    result = conjugate_gradients(lambda v: a @ v, b, CgOptions(), preconditioner=jacobi(mean_square, 1.0))
    overflows = not value < float("inf")
    assert (result.reason is StopReason.NON_FINITE) == overflows
    assert bool(result.x.any()) != overflows  # a large one alone is none


def test_diagonals_and_their_products() -> None:
    mean_square, uses = torch.tensor([0.0, 1.0, 15.0]), torch.tensor([1.0, 3.0, 50.0])
    one, other = jacobi(mean_square, damping=1.0), use_counts(uses, power=2.0)
    np.testing.assert_allclose(one.d_N, [1.0, 2**0.75, 8.0], rtol=1e-6)
    np.testing.assert_allclose(jacobi(mean_square, 1.0, exponent=0.5).d_N, [1.0, 2**0.5, 4.0], rtol=1e-6)
    np.testing.assert_allclose(other.d_N, [1.0, 9.0, 2500.0], rtol=1e-6)
    both, r_N = product_of([one, other]), torch.tensor([1.0, 2.0, -3.0])
    np.testing.assert_allclose(both(r_N), other(one(r_N)), rtol=1e-6)
    assert torch.equal(mean_square, torch.tensor([0.0, 1.0, 15.0]))
    assert both.view() == "Jacobi^0.75 (1 … 8) × use counts^2 (1 … 2.5e+03) (1 … 2e+04)"
    assert Lbfgs(Pairs(3), one).view() == "L-BFGS of 0 pairs, γ: last, on Jacobi^0.75 (1 … 8)"
    with pytest.raises(ValueError, match="use counts"):
        use_counts(uses, 0.5)
    with pytest.raises(ValueError, match="Jacobi"):
        jacobi(mean_square, damping=0.0)
