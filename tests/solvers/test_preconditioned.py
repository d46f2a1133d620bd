"""Preconditioned and flexible conjugate gradients against dense solves and transformed systems in float64."""

import gc
import itertools

import numpy as np
import pytest
import torch

from asr_hf.solvers.cg import CgOptions, CgResult, cg_steps, conjugate_gradients, view
from asr_hf.solvers.pairs import Pairs
from asr_hf.solvers.preconditioners import Diagonal, Lbfgs
from asr_hf.solvers.stopping import StopReason

BETAS = ("standard", "flexible")


class Given:
    """A preconditioner of given matrices (N, N), one after the other, and the last ever after."""

    def __init__(self, *inverses: np.ndarray) -> None:
        self._inverses = [torch.from_numpy(inverse) for inverse in inverses]
        self.calls = 0

    def __call__(self, r_N: torch.Tensor) -> torch.Tensor:
        inverse = self._inverses[min(self.calls, len(self._inverses) - 1)]
        self.calls += 1
        return (inverse @ r_N.double()).to(r_N.dtype)

    def view(self) -> str:
        return "given"


def positive_definite(size: int, seed: int, condition: float = 1e3) -> np.ndarray:
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(size, size)))[0]
    return basis @ np.diag(np.geomspace(1.0, condition, size)) @ basis.T


def system(size: int = 60, seed: int = 0, condition: float = 1e3) -> tuple[np.ndarray, np.ndarray]:
    return positive_definite(size, seed, condition), np.random.default_rng(seed + 100).normal(size=size)


def near_inverse(matrix: np.ndarray, seed: int) -> np.ndarray:
    """P⁻¹ with P close to A, but not A."""
    return np.linalg.inv(matrix + 0.3 * np.diag(np.random.default_rng(seed).uniform(0, 5, size=len(matrix))))


def solve(matrix: np.ndarray, b: np.ndarray, options: CgOptions, dtype=torch.float64, **arguments) -> CgResult:
    dense = torch.from_numpy(matrix)
    return conjugate_gradients(
        lambda v: (dense @ v.double()).to(dtype), torch.from_numpy(b).to(dtype), options, **arguments
    )


def relative(found: torch.Tensor, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preconditioned_cg_solves_as_numpy_does(seed: int, beta: str, dtype: torch.dtype) -> None:
    matrix, b = system(seed=seed)
    tolerance = 1e-6 if dtype is torch.float32 else 1e-13
    options = CgOptions(300, progress_tolerance=0.0, residual_tolerance=tolerance, beta=beta)
    result = solve(matrix, b, options, dtype, preconditioner=Given(near_inverse(matrix, seed)))
    assert result.reason is StopReason.RESIDUAL
    assert result.x.dtype == dtype
    assert relative(result.x, np.linalg.solve(matrix, b)) <= 100 * tolerance
    plain = solve(matrix, b, CgOptions(300, progress_tolerance=0.0, residual_tolerance=tolerance), dtype)
    assert result.iterations < plain.iterations


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("seed", range(3))
def test_preconditioned_cg_is_cg_on_the_transformed_system(beta: str, seed: int) -> None:
    """With P = LLᵀ: x = L⁻ᵀx̃, x̃ by plain CG on L⁻¹A L⁻ᵀ x̃ = L⁻¹b, iterate by iterate."""
    matrix, b = system(size=30, seed=seed)
    lower = np.linalg.cholesky(positive_definite(30, seed + 50, condition=20))
    inverse = np.linalg.inv(lower)
    options = CgOptions(12, progress_tolerance=0.0, beta=beta)
    found = solve(matrix, b, options, preconditioner=Given(inverse.T @ inverse))
    transformed = solve(inverse @ matrix @ inverse.T, inverse @ b, CgOptions(12, progress_tolerance=0.0))
    assert len(found.iterates) > 5
    for ours, theirs in zip(found.iterates, transformed.iterates, strict=True):
        assert relative(ours.x, inverse.T @ theirs.x.numpy()) <= 1e-8
        assert ours.quadratic == pytest.approx(theirs.quadratic, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("truncation", [1, 3])
def test_standard_and_flexible_agree_while_the_preconditioner_stays(seed: int, truncation: int) -> None:
    matrix, b = system(seed=seed)
    for fixed in (None, Given(near_inverse(matrix, seed))):
        standard, flexible = (
            solve(matrix, b, CgOptions(15, 0.0, beta=beta, truncation=truncation), preconditioner=fixed)
            for beta in BETAS
        )
        assert relative(flexible.x, standard.x.numpy()) <= 1e-9
        assert flexible.quadratics == pytest.approx(standard.quadratics, rel=1e-9)


def test_a_changing_preconditioner_parts_them() -> None:
    """Two preconditioners in turn: flexible β is conjugate to its last direction, standard β is not."""
    matrix, b = system(seed=1)
    turns = [near_inverse(matrix, 1), np.eye(60) / 30] * 10
    angle = {}
    for beta in BETAS:
        directions = []
        steps = cg_steps(torch.from_numpy(b), CgOptions(12, 0.0, beta=beta), preconditioner=Given(*turns))
        p = next(steps)
        for _ in range(11):
            directions.append(p.numpy().copy())
            p = steps.send(torch.from_numpy(matrix) @ p)
        cosines = [
            abs(p @ matrix @ q) / np.sqrt((p @ matrix @ p) * (q @ matrix @ q))
            for p, q in itertools.pairwise(directions)
        ]
        angle[beta] = max(cosines)
    assert angle["flexible"] <= 1e-10
    assert angle["standard"] >= 0.1


@pytest.fixture(scope="module")
def two_systems() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Thirty large eigenvalues among 400, and a perturbation of that system."""
    random, size = np.random.default_rng(0), 400
    basis = np.linalg.qr(random.normal(size=(size, size)))[0]
    values = np.concatenate([np.geomspace(1, 1000, 30), 10 ** random.uniform(-2, 0, size - 30)])
    noise = random.normal(size=(size, size))
    first = basis @ np.diag(values) @ basis.T + 0.05 * np.eye(size)
    second = first + 0.02 * noise @ noise.T / size
    b = random.normal(size=size)
    return first, b, second, b + 0.3 * random.normal(size=size)


def decrease(matrix: np.ndarray, b: np.ndarray, beta: str, dtype: torch.dtype, **arguments) -> float:
    """The share of the optimal decrease of φ that is reached after 25 iterations."""
    options = CgOptions(25, progress_tolerance=0.0, beta=beta)
    return solve(matrix, b, options, dtype, keep=(), **arguments).quadratic / (-0.5 * b @ np.linalg.solve(matrix, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_of_the_same_solve_call_for_flexible_beta(two_systems, dtype: torch.dtype) -> None:
    _, _, matrix, b = two_systems
    reached = {}
    for beta in BETAS:
        pairs = Pairs(64, dtype)
        preconditioner = Lbfgs(pairs, inside=True)
        reached[beta] = decrease(matrix, b, beta, dtype, preconditioner=preconditioner, collect=pairs)
    assert reached["flexible"] >= 0.9
    assert reached["standard"] <= 0.4


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("gamma", ["last", "largest"])
def test_pairs_of_the_previous_solve_beat_none(two_systems, beta: str, gamma: str) -> None:
    first, first_b, matrix, b = two_systems
    warm = Pairs(64)
    solve(first, first_b, CgOptions(50, progress_tolerance=0.0), torch.float32, collect=warm)
    few = Pairs(16)
    few.restore(*(rows[-16:] for rows in warm.vectors()))
    none = decrease(matrix, b, beta, torch.float32)
    some = decrease(matrix, b, beta, torch.float32, preconditioner=Lbfgs(few, gamma=gamma))
    many = decrease(matrix, b, beta, torch.float32, preconditioner=Lbfgs(warm, gamma=gamma))
    assert none <= some - 0.05
    assert some <= many - 0.001
    assert many >= 0.999


@pytest.mark.parametrize("seed", range(3))
def test_truncation_to_all_directions_ends_in_n_iterations_in_spite_of_noise(seed: int) -> None:
    matrix, b = system(seed=seed, condition=1e4)
    dense, exact = torch.from_numpy(matrix), np.linalg.solve(matrix, b)
    error = {}
    for truncation in (1, 60):
        random = torch.Generator().manual_seed(seed)

        def noisy(v: torch.Tensor, random: torch.Generator = random) -> torch.Tensor:
            product = dense @ v
            noise = torch.randn(60, dtype=torch.float64, generator=random)
            return product.add_(noise, alpha=float(1e-6 * product.norm() / 60**0.5))

        options = CgOptions(60, progress_tolerance=0.0, beta="flexible", truncation=truncation)
        rest = conjugate_gradients(noisy, torch.from_numpy(b), options).x.numpy() - exact
        error[truncation] = np.sqrt(rest @ matrix @ rest / (exact @ matrix @ exact))
    assert error[60] <= 1e-3
    assert error[1] >= 0.05


@pytest.mark.parametrize("beta", BETAS)
def test_an_indefinite_preconditioner_returns_the_best_so_far(beta: str) -> None:
    matrix, b = system(seed=2)
    good = near_inverse(matrix, 2)
    options = CgOptions(20, progress_tolerance=0.0, beta=beta)
    for bad, reason in (
        (-good, StopReason.INDEFINITE_PRECONDITIONER),
        (0 * good, StopReason.INDEFINITE_PRECONDITIONER),
        (good * np.nan, StopReason.NON_FINITE),
    ):
        result = solve(matrix, b, options, preconditioner=Given(good, good, good, bad))
        before = solve(matrix, b, CgOptions(3, progress_tolerance=0.0, beta=beta), preconditioner=Given(good))
        assert result.reason is reason
        assert not result.reason.healthy
        assert result.iterations == 3
        assert torch.equal(result.x, before.x)
        assert result.quadratic == min(result.quadratics)
        assert result.iterates[-1].x is result.x


@pytest.mark.parametrize("beta", BETAS)
def test_negative_curvature_returns_the_best_so_far(beta: str) -> None:
    matrix, b = system(size=30, seed=5)
    matrix[-1, :] = matrix[:, -1] = 0
    matrix[-1, -1] = -1.0
    b[-1] = 1e-2
    options = CgOptions(30, progress_tolerance=0.0, beta=beta)
    result = solve(matrix, b, options, preconditioner=Given(np.diag(np.linspace(0.1, 1, 30))))
    assert result.reason is StopReason.NEGATIVE_CURVATURE
    assert result.iterations > 0
    assert result.quadratic == min(result.quadratics)
    assert relative(result.x, result.iterates[-1].x.numpy()) == 0


@pytest.mark.parametrize("beta", BETAS)
def test_warm_starts_and_drift_go_with_preconditioners(beta: str) -> None:
    matrix, b = system(seed=6)
    exact = np.linalg.solve(matrix, b)
    options = CgOptions(100, progress_tolerance=0.0, residual_tolerance=1e-10, beta=beta)
    preconditioner = Given(near_inverse(matrix, 6))
    start = torch.from_numpy(exact + 0.1 * np.random.default_rng(0).normal(size=60))
    result = solve(matrix, b, options, preconditioner=preconditioner, start=start, watch_drift=True)
    assert result.quadratics[0] < 0
    assert result.drift <= 1e-10
    assert relative(result.x, exact) <= 1e-8
    assert preconditioner.calls == result.iterations


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_collected_with_what_the_matrix_makes_of_them(beta: str, dtype: torch.dtype) -> None:
    matrix, b = system(seed=7)
    pairs, options = Pairs(40, dtype), CgOptions(10, progress_tolerance=0.0, beta=beta, truncation=2)
    preconditioner = Given(near_inverse(matrix, 7))
    result = solve(matrix, b, options, dtype, preconditioner=preconditioner, keep=range(20), collect=pairs, start=None)
    plain = solve(matrix, b, options, dtype, preconditioner=preconditioner)
    assert torch.equal(plain.x, result.x)
    xs = [np.zeros(60), *(iterate.x.double().numpy() for iterate in result.iterates)]
    s_mN, y_mN = (rows.double().numpy() for rows in pairs.vectors())
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    np.testing.assert_allclose(s_mN, np.diff(xs, axis=0), rtol=0, atol=tolerance * np.abs(s_mN).max())
    np.testing.assert_allclose(y_mN, s_mN @ matrix, rtol=0, atol=tolerance * np.abs(y_mN).max())


def live(size: int) -> int:
    """Vectors of this size that are held at this moment."""
    held = {
        each.data_ptr() for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.numel() == size
    }
    return len(held)


@pytest.mark.parametrize(("beta", "truncation", "during"), [("standard", 1, 4), ("flexible", 1, 4), ("flexible", 3, 8)])
def test_few_vectors_are_held(beta: str, truncation: int, during: int) -> None:
    """b, x, r, p while a product is made, and flexible steps before the last; then Ap, which becomes y, and s."""
    size = 4321
    d = torch.linspace(1, 50, size)
    counts: dict[str, list[int]] = {"product": [], "preconditioner": [], "append": []}

    class Counting(Pairs):
        def append(self, s_N: torch.Tensor, y_N: torch.Tensor) -> None:
            counts["append"].append(live(size))
            super().append(s_N, y_N)

    class Damped(Diagonal):
        def __call__(self, r_N: torch.Tensor) -> torch.Tensor:
            counts["preconditioner"].append(live(size))
            return super().__call__(r_N)

    def product(v: torch.Tensor) -> torch.Tensor:
        counts["product"].append(live(size))
        return v * d

    before = live(size) + 1  # and d of the preconditioner
    conjugate_gradients(
        product,
        torch.ones(size),
        CgOptions(5, progress_tolerance=0.0, beta=beta, truncation=truncation),
        start=torch.ones(size),
        keep=(),
        preconditioner=Damped(torch.linspace(1, 2, size)),
        collect=Counting(2),
    )
    assert [len(each) for each in counts.values()] == [6, 5, 5]
    most = {name: max(each) - before for name, each in counts.items()}
    assert most["product"] == during
    assert most["preconditioner"] == during + 1
    assert most["append"] == during + (2 if beta == "standard" else 1)


def test_the_preconditioner_shows_itself() -> None:
    lines = view(CgOptions(), Diagonal(torch.tensor([1.0, 4.0]))).splitlines()
    assert lines[1] == "preconditioner: diagonal (1 … 4)"
