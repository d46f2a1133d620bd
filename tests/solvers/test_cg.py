"""Conjugate gradients against dense solves in float64."""

import numpy as np
import pytest
import torch

from asr_hf.errors import OptionError
from asr_hf.solvers.cg import CgOptions, Progress, conjugate_gradients, scaled_directions, scaled_warm_start, view
from asr_hf.solvers.stopping import StopReason, kept_iterations, progress_stalled
from asr_hf.solvers.vectors import BLOCK, dot, norm

TO_THE_END = CgOptions(max_iterations=200, progress_tolerance=0.0, residual_tolerance=1e-6)


def positive_definite(size: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    root = random.normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


def system(size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return positive_definite(size, seed), np.random.default_rng(seed + 100).normal(size=size)


def operator(matrix: np.ndarray):
    dense = torch.from_numpy(matrix)
    return lambda v: (dense @ v.double()).float()


@pytest.mark.parametrize("seed", range(5))
def test_cg_solves_as_numpy_does(seed: int) -> None:
    matrix, b = system(seed=seed)
    result = conjugate_gradients(operator(matrix), torch.from_numpy(b).float(), TO_THE_END)
    exact = np.linalg.solve(matrix, b)
    assert result.reason is StopReason.RESIDUAL
    assert np.linalg.norm(result.x.numpy() - exact) <= 1e-4 * np.linalg.norm(exact)
    assert result.quadratic == pytest.approx(-0.5 * b @ exact, rel=1e-5)


def test_iterates_are_those_of_the_krylov_spaces() -> None:
    """Iterate i minimises φ over span{b, Ab, …, A^{i−1}b}: compared with that minimiser found densely."""
    matrix, b = system(size=20, seed=3)
    for i in (1, 2, 4):
        options = CgOptions(max_iterations=i, progress_tolerance=0.0)
        x = conjugate_gradients(operator(matrix), torch.from_numpy(b).float(), options).x.numpy()
        basis = np.linalg.qr(np.stack([np.linalg.matrix_power(matrix, k) @ b for k in range(i)], axis=1))[0]
        exact = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)
        assert np.linalg.norm(x - exact) <= 1e-4 * np.linalg.norm(exact)


def test_quadratic_falls_and_is_the_true_one() -> None:
    matrix, b = system(seed=1)
    seen: list[Progress] = []
    result = conjugate_gradients(
        operator(matrix),
        torch.from_numpy(b).float(),
        CgOptions(max_iterations=25),
        monitor=seen.append,
    )
    assert [progress.iteration for progress in seen] == list(range(1, result.iterations + 1))
    assert all(later < earlier for earlier, later in zip(result.quadratics, result.quadratics[1:], strict=False))
    for kept in result.iterates:
        x = kept.x.double().numpy()
        assert kept.quadratic == pytest.approx(0.5 * x @ matrix @ x - b @ x, rel=1e-5)


def test_warm_start_never_raises_the_quadratic() -> None:
    matrix, b = system(seed=2)
    exact = np.linalg.solve(matrix, b)
    for start in (exact, -exact, 50 * exact, np.random.default_rng(1).normal(size=len(b))):
        begin = torch.from_numpy(start).float()
        result = conjugate_gradients(operator(matrix), torch.from_numpy(b).float(), TO_THE_END, start=begin)
        assert result.quadratics[0] <= 1e-6
        assert np.linalg.norm(result.x.numpy() - exact) <= 1e-4 * np.linalg.norm(exact)


def test_scaled_warm_start_is_the_line_minimiser() -> None:
    matrix, b = system(seed=4)
    start = np.linalg.solve(matrix, b) * 3 + 0.1
    alpha = scaled_warm_start(*(torch.from_numpy(v).float() for v in (start, matrix @ start, b)))
    grid = np.linspace(0, 1, 2001)
    values = [0.5 * a * a * start @ matrix @ start - a * b @ start for a in grid]
    assert alpha == pytest.approx(grid[int(np.argmin(values))], abs=1e-3)


def test_negative_curvature_returns_the_best_so_far() -> None:
    matrix, b = system(size=30, seed=5)
    matrix[-1, :] = matrix[:, -1] = 0
    matrix[-1, -1] = -1.0
    b[-1] = 1e-3
    result = conjugate_gradients(operator(matrix), torch.from_numpy(b).float(), TO_THE_END)
    assert result.reason is StopReason.NEGATIVE_CURVATURE
    assert not result.reason.healthy
    assert result.quadratic == min(result.quadratics)
    assert torch.isfinite(result.x).all()


def test_non_finite_products_stop_the_solve() -> None:
    result = conjugate_gradients(lambda v: v * float("nan"), torch.ones(4), TO_THE_END)
    assert result.reason is StopReason.NON_FINITE
    assert result.iterations == 0
    assert not result.iterates


def test_zero_right_hand_side() -> None:
    result = conjugate_gradients(lambda v: v, torch.zeros(4), TO_THE_END)
    assert result.reason is StopReason.ZERO_RHS


def test_progress_test_is_martens() -> None:
    falling = [-float(i) for i in range(40)]
    assert not progress_stalled(falling, 5e-4)
    flat = [*falling[:20], *[-20.0 - 1e-6 * i for i in range(20)]]
    assert not progress_stalled(flat[:11], 5e-4)  # i = 10 is not above k = 10
    assert progress_stalled(flat, 5e-4)
    assert not progress_stalled([1.0] * 40, 5e-4)  # φ must be negative


def test_progress_stops_an_easy_solve_early() -> None:
    matrix, b = system(seed=6)
    result = conjugate_gradients(operator(matrix + 10 * np.eye(60)), torch.from_numpy(b).float(), CgOptions(200))
    assert result.reason is StopReason.PROGRESS
    assert result.iterations < 20


def test_kept_iterations_are_geometric() -> None:
    assert sorted(kept_iterations(30, first=5)) == [5, 7, 9, 11, 15, 19, 25]
    assert sorted(kept_iterations(30, first=1)) == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24]


def test_dot_accumulates_in_float64() -> None:
    size = 3 * BLOCK + 17
    a = torch.full((size,), 1.0)
    a[0] = 1e8
    exact = np.dot(a.double().numpy(), np.ones(size))
    assert dot(a, torch.ones(size)) == exact
    assert norm(torch.ones(size)) == pytest.approx(size**0.5, rel=1e-15)


@pytest.mark.parametrize(("name", "value"), [("max_iterations", 0), ("beta", "stiff"), ("truncation", 0)])
def test_impossible_options_are_refused(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"optimizer.cg.{name}"):
        CgOptions(**{name: value})


def test_imprecise_products_are_found_out_by_the_true_residual() -> None:
    matrix, b = system(seed=2)
    exact, calls = operator(matrix), [0]

    def imprecise(v: torch.Tensor) -> torch.Tensor:  # an error that no linear operator would make
        calls[0] += 1
        return exact(v) * (1.0 + 0.3 * (calls[0] % 2))

    options = CgOptions(max_iterations=40, progress_tolerance=0.0, drift_every=5, drift_tolerance=0.05)
    right_side = torch.from_numpy(b).float()
    result = conjugate_gradients(imprecise, right_side, options, watch_drift=True)
    assert result.reason is StopReason.DRIFT
    assert result.iterations == 5
    assert result.drift > 0.05
    assert not result.reason.healthy
    good = conjugate_gradients(exact, right_side, options, watch_drift=True)
    assert good.reason is StopReason.ITERATIONS
    assert good.drift <= 1e-5


def test_the_true_residual_is_there_when_it_was_computed() -> None:
    matrix, b = system(seed=3)
    seen: list[Progress] = []
    options = CgOptions(max_iterations=12, progress_tolerance=0.0, drift_every=4)
    conjugate_gradients(operator(matrix), torch.from_numpy(b).float(), options, monitor=seen.append, watch_drift=True)
    assert [progress.iteration for progress in seen if progress.true_residual is not None] == [4, 8, 12]
    for progress in seen:
        residual = np.linalg.norm(b - matrix @ progress.x.double().numpy())
        assert progress.residual == pytest.approx(residual, rel=1e-3)
        assert progress.true_residual in (None, pytest.approx(residual, rel=1e-4))


def test_iterates_are_kept_as_asked_and_the_last_always() -> None:
    matrix, b = system(seed=3)
    options = CgOptions(max_iterations=12, progress_tolerance=0.0, first_kept=5)
    seen: list[Progress] = []
    for keep, kept in ((None, [5, 7, 9, 11, 12]), ((), [12]), ({2, 3}, [2, 3, 12])):
        seen.clear()
        result = conjugate_gradients(
            operator(matrix), torch.from_numpy(b).float(), options, monitor=seen.append, keep=keep
        )
        assert [iterate.iteration for iterate in result.iterates] == kept
        assert result.iterates[-1].x is result.x
        for iterate in result.iterates:
            assert torch.equal(iterate.x, seen[iterate.iteration - 1].x)


def test_float64_stays_float64() -> None:
    matrix, b = system(seed=7)
    dense = torch.from_numpy(matrix)
    options = CgOptions(max_iterations=200, progress_tolerance=0.0, residual_tolerance=1e-13)
    result = conjugate_gradients(lambda v: dense @ v, torch.from_numpy(b), options)
    assert result.x.dtype == torch.float64
    np.testing.assert_allclose(result.x.numpy(), np.linalg.solve(matrix, b), rtol=0, atol=1e-11)


@pytest.mark.parametrize("beta", ["standard", "flexible"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_product_leaves_the_iterate_before_it(beta: str, bad: float) -> None:
    matrix, b = system(seed=8)
    right_side, exact, calls = torch.from_numpy(b).float(), operator(matrix), [0]

    def fourth_is_bad(v: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return exact(v).index_fill_(0, torch.tensor([7]), bad) if calls[0] == 4 else exact(v)

    result = conjugate_gradients(fourth_is_bad, right_side, CgOptions(progress_tolerance=0.0, beta=beta))
    before = conjugate_gradients(exact, right_side, CgOptions(3, progress_tolerance=0.0, beta=beta))
    assert result.reason is StopReason.NON_FINITE
    assert result.iterations == 3
    assert torch.equal(result.x, before.x)
    assert result.iterates[-1].x is result.x


def test_what_is_not_finite_elsewhere_stops_the_solve() -> None:
    matrix, b = system(seed=8)
    right_side, exact = torch.from_numpy(b).float(), operator(matrix)
    nan, first = torch.full_like(right_side, float("nan")), torch.tensor([0])
    for product, b_N, start in (
        (exact, nan, None),  # ‖b‖
        (exact, right_side, nan),  # the warm start
        (lambda v: exact(v) * float("nan"), right_side, right_side),  # its product
        (lambda v: v * 1e-30, right_side * 1e20, None),  # x beyond float32, and φ with it
        (lambda v: (0.1 * v).index_fill_(0, first, 3e38), right_side.index_fill(0, first, 0.0), None),  # r beyond it
    ):
        result = conjugate_gradients(product, b_N, TO_THE_END, start)
        assert result.reason is StopReason.NON_FINITE
        assert not result.iterates
        assert not result.x.any()


def test_scaled_directions_leave_float64_alone() -> None:
    matrix, b = system(seed=9)
    dense = torch.from_numpy(matrix)
    options = CgOptions(40, progress_tolerance=0.0)
    plain = conjugate_gradients(lambda v: dense @ v, torch.from_numpy(b), options)
    for length in (1e-6, 1.0, 12345.6):
        scaled = conjugate_gradients(scaled_directions(lambda v: dense @ v, length), torch.from_numpy(b), options)
        assert (scaled.x - plain.x).norm() <= 1e-12 * plain.x.norm()


def test_scaled_directions_save_a_product_in_half_precision() -> None:
    matrix, b = system(seed=9)
    half = torch.from_numpy(matrix).half()

    def product(v: torch.Tensor) -> torch.Tensor:
        return (half @ v.half()).float()

    right_side = torch.from_numpy(b * 1e-8).float()  # below the least number that float16 holds
    options = CgOptions(10, progress_tolerance=0.0)
    assert conjugate_gradients(product, right_side, options).reason is StopReason.NEGATIVE_CURVATURE
    result = conjugate_gradients(scaled_directions(product, 3.0), right_side, options)
    exact = conjugate_gradients(operator(matrix), right_side, options)
    assert result.quadratic == pytest.approx(exact.quadratic, rel=1e-2)
    assert not scaled_directions(product, 3.0)(torch.zeros(60)).any()


def test_the_solver_shows_itself() -> None:
    assert view(CgOptions(17)).startswith("CG: at most 17 iterations")
    assert view(CgOptions(beta="flexible", truncation=3)).startswith("flexible CG (truncation 3): at most 30")
