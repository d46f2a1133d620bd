"""Inverses of damped Kronecker factors against dense matrices, np.kron being V ↦ G V A on rows laid end to end."""

import math

import numpy as np
import pytest
import torch

from asr_hf.solvers.kronecker import Factored, Kronecker, damped_inverses

K, M = 4, 3


def factor(size: int, rank: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(size, rank))
    return root @ root.T / rank


def damped(a: np.ndarray, g: np.ndarray, damping: float) -> np.ndarray:
    pi = math.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    return np.kron(g + math.sqrt(damping) / pi * np.eye(len(g)), a + math.sqrt(damping) * pi * np.eye(len(a)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ranks", [(9, 9), (2, 1)])
def test_it_is_the_dense_inverse(bias: bool, ranks: tuple[int, int]) -> None:
    a, g = factor(K, ranks[0], 1), factor(M, ranks[1], 2)
    d = np.array([0.5, 2.0])
    dense = np.zeros((M * K + 2, M * K + 2))
    dense[2:, 2:], dense[:2, :2] = damped(a, g, 0.3), np.diag(d)
    # in θ: two other parameters, the weight row by row, and where there is one the bias behind it
    place = np.arange(2, 2 + M * K).reshape(M, K)
    order = np.concatenate([[0, 1], place[:, :-1].ravel(), place[:, -1]] if bias else [[0, 1], place.ravel()])
    size = M * (K - bias)
    block = Factored(
        slice(2, 2 + size),
        slice(2 + size, 2 + M * K) if bias else None,
        *damped_inverses(torch.from_numpy(a), torch.from_numpy(g), 0.3),
    )
    found = Kronecker([block], [(slice(0, 2), torch.from_numpy(d).float())])
    columns = [found(e).numpy() for e in torch.eye(M * K + 2)]
    exact = np.linalg.inv(dense)[np.ix_(order, order)]
    np.testing.assert_allclose(np.stack(columns, axis=1), exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_without_damping_it_is_the_exact_inverse() -> None:
    a, g = factor(K, 9, 1), factor(M, 9, 2)
    for inverse, matrix in zip(damped_inverses(torch.from_numpy(a), torch.from_numpy(g), 0.0), (a, g), strict=True):
        np.testing.assert_allclose(inverse.double().numpy(), np.linalg.inv(matrix), rtol=1e-6)
        assert torch.equal(inverse, inverse.t())


@pytest.mark.parametrize("dead", [0, 1])
def test_a_weight_that_gets_no_gradient_keeps_a_finite_inverse(dead: int) -> None:
    factors = [torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)]
    factors[dead].zero_()
    inverses = damped_inverses(*factors, 0.04)
    torch.testing.assert_close(inverses[dead], torch.eye(3) / 0.2)
    torch.testing.assert_close(inverses[1 - dead], torch.eye(3) / 1.2)


def test_factors_that_are_not_finite_say_so_by_their_inverse() -> None:
    assert not torch.isfinite(damped_inverses(torch.full((2, 2), torch.nan), torch.eye(2), 0.1)[0]).any()
