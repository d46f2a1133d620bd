"""Stores of curvature pairs against dense float64 matrices."""

import numpy as np
import pytest
import torch

from asr_hf.solvers.pairs import Pairs, in_order
from asr_hf.solvers.vectors import BLOCK


def filled(limit: int, number: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Pairs:
    """A store that has been given a number of pairs of a diagonal matrix."""
    random, pairs = torch.Generator().manual_seed(seed), Pairs(limit, dtype)
    a_N = torch.rand(size, generator=random) + 0.5
    for _ in range(number):
        s_N = torch.randn(size, generator=random)
        pairs.append(s_N, a_N * s_N)
    return pairs


def dense(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    s_mN, y_mN = pairs.vectors()
    return s_mN.double().numpy().copy(), y_mN.double().numpy().copy()


def test_the_last_pairs_are_kept_oldest_first() -> None:
    pairs = Pairs(3)
    given = [torch.tensor([1.0, float(k)]) for k in range(1, 6)]
    for number, s_N in enumerate(given, start=1):
        pairs.append(s_N, 2 * s_N)
        s_mN, y_mN = pairs.vectors()
        expected = torch.stack(given[max(0, number - 3) : number])
        assert torch.equal(s_mN, expected)
        assert torch.equal(y_mN, 2 * expected)
    assert (pairs.count, pairs.appended) == (3, 5)
    pairs.clear()
    assert pairs.count == 0
    assert [len(rows) for rows in pairs.vectors()] == [0, 0]
    pairs.append(given[4], given[4])
    assert torch.equal(pairs.vectors()[0], given[4][None])


def test_pairs_without_positive_curvature_are_refused() -> None:
    pairs, one = Pairs(4), torch.tensor([1.0, 0.0], dtype=torch.float64)
    round_off = torch.tensor([1e-13, 1.0], dtype=torch.float64)
    for s_N, y_N in ((one, -one), (one * 0, one), (one, one * 0), (one, round_off), (one, one * float("nan"))):
        pairs.append(s_N, y_N)
    assert (pairs.count, pairs.refused) == (0, 5)
    pairs.append(one, torch.tensor([1e-11, 1.0], dtype=torch.float64))
    assert (pairs.count, pairs.refused) == (1, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("number", [2, 5, 8])
@pytest.mark.parametrize("with_diagonal", [False, True])
def test_inner_products_and_combinations_are_those_of_dense_matrices(
    dtype: torch.dtype, number: int, with_diagonal: bool
) -> None:
    size = BLOCK + 1234
    pairs, random = filled(5, number, size, dtype), torch.Generator().manual_seed(1)
    m = pairs.count
    r_N, d_N = torch.randn(size, generator=random), torch.rand(size, generator=random) + 0.5
    coefficients = torch.randn(2 * m, generator=random, dtype=torch.float64)
    given = d_N if with_diagonal else None
    (s, y), r, d = dense(pairs), r_N.double().numpy(), d_N.double().numpy() if with_diagonal else np.ones(size)
    np.testing.assert_allclose(pairs.along(r_N, given), np.concatenate([s @ r, y @ (r / d)]), rtol=0, atol=1e-8)
    gram = np.concatenate([s @ y.T, (y / d) @ y.T])
    np.testing.assert_allclose(pairs.gram(given), gram, rtol=0, atol=1e-7)
    np.testing.assert_allclose(pairs.gram(given, first=m - 1), gram[:, m - 1 :], rtol=0, atol=1e-7)
    combined = pairs.combine(coefficients, given)
    c = coefficients.numpy()
    assert combined.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    np.testing.assert_allclose(combined, c[:m] @ s + (c[m:] @ y) / d, rtol=0, atol=1e-5)


def test_a_store_cut_at_blocks_gives_the_same_bits() -> None:
    size = 3 * BLOCK + 77
    whole, random = filled(4, 6, size), torch.Generator().manual_seed(2)
    r_N, d_N = torch.randn(size, generator=random), torch.rand(size, generator=random) + 0.5
    coefficients = torch.randn(8, generator=random, dtype=torch.float64)
    slices = [slice(0, BLOCK), slice(BLOCK, 3 * BLOCK), slice(3 * BLOCK, size)]
    parts = []
    for where in slices:
        part = Pairs(4)
        for s_N, y_N in zip(*whole.vectors(), strict=True):
            part.put(s_N[where], y_N[where])
        parts.append(part)
    cut = list(zip(parts, slices, strict=True))
    along = in_order(torch.cat([part.along_blocks(r_N[where], d_N[where]) for part, where in cut]))
    assert torch.equal(along, whole.along(r_N, d_N))
    for first in (0, 3):
        gram = in_order(torch.cat([part.gram_blocks(d_N[where], first) for part, where in cut]))
        assert torch.equal(gram, whole.gram(d_N, first))
    combined = torch.cat([part.combine(coefficients, d_N[where]) for part, where in cut])
    assert torch.equal(combined, whole.combine(coefficients, d_N))


def test_what_is_restored_gives_the_same_bits() -> None:
    kept, restored = filled(4, 7, 5000), Pairs(4)
    restored.append(torch.ones(5000), torch.ones(5000))
    restored.restore(*kept.vectors())
    r_N = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(restored.vectors(), kept.vectors(), strict=True))
    assert torch.equal(restored.along(r_N), kept.along(r_N))
    assert torch.equal(restored.gram(), kept.gram())
    assert torch.equal(restored.combine(torch.ones(8).double()), kept.combine(torch.ones(8).double()))
    restored.restore(*Pairs(4).vectors())
    assert restored.count == 0
    with pytest.raises(ValueError, match="4 pairs for a store of 3"):
        Pairs(3).restore(*kept.vectors())
    with pytest.raises(ValueError, match="0 pairs"):
        Pairs(0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("change", [0.7, -0.3])
def test_refreshed_pairs_are_those_of_the_matrix_with_other_damping(
    dtype: torch.dtype, tolerance: float, change: float
) -> None:
    pairs = filled(3, 5, 6000, dtype)
    before_s, before_y = dense(pairs)
    generation = pairs.generation
    pairs.refresh(change)
    s, y = dense(pairs)
    assert pairs.generation != generation
    np.testing.assert_array_equal(s, before_s)
    np.testing.assert_allclose(y, before_y + change * before_s, rtol=tolerance, atol=tolerance)


def test_bf16_halves_the_memory() -> None:
    full, half = filled(3, 3, 5000), filled(3, 3, 5000, torch.bfloat16)
    bytes_of = [sum(rows.numel() * rows.element_size() for rows in pairs.vectors()) for pairs in (full, half)]
    assert bytes_of[0] == 2 * bytes_of[1]
    np.testing.assert_allclose(dense(half)[0], dense(full)[0], rtol=2**-8)
