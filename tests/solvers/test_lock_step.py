"""Solves in lock-step against each alone, and their combination against the whole system."""

import math

import numpy as np
import pytest
import torch

from asr_hf.solvers.cg import CgOptions, CgResult, Iterate, cg_steps, conjugate_gradients
from asr_hf.solvers.lock_step import combine, lock_step
from asr_hf.solvers.pairs import Pairs
from asr_hf.solvers.preconditioners import Diagonal, Lbfgs
from asr_hf.solvers.stopping import StopReason

SIZES = (30, 7, 50, 12)


def matrix(size: int) -> torch.Tensor:
    random = np.random.default_rng(size)
    root = random.normal(size=(size, size))
    return torch.from_numpy(root @ root.T / size + (0.1 + 40 / size) * np.eye(size))


def product(dense: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (dense @ v.double()).to(v.dtype)


MATRICES = [matrix(size) for size in SIZES]
RIGHT_SIDES = [torch.from_numpy(np.random.default_rng(size).normal(size=size)).float() for size in SIZES]
STARTS = [0.3 * b if b.numel() != 50 else None for b in RIGHT_SIDES]
OPTIONS = CgOptions(60, progress_tolerance=1e-3, residual_tolerance=1e-4, drift_every=4)


def parts(vector_N: torch.Tensor) -> list[torch.Tensor]:
    return list(vector_N.split(SIZES))


def in_lock_step(options: CgOptions = OPTIONS, **arguments) -> tuple[list[CgResult], list[list[bool]]]:
    """The results, and which solves went on in each round."""
    rounds: list[list[bool]] = []

    def products(vectors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        rounds.append([v is not None for v in vectors])
        return [v if v is None else product(a, v) for a, v in zip(MATRICES, vectors, strict=True)]

    solves = [
        cg_steps(b, options, start, watch_drift=True, **arguments) for b, start in zip(RIGHT_SIDES, STARTS, strict=True)
    ]
    return lock_step(solves, products), rounds


def same_bits(ours: CgResult, theirs: CgResult) -> bool:
    return (
        torch.equal(ours.x, theirs.x)
        and (ours.quadratics, ours.residuals, ours.drift) == (theirs.quadratics, theirs.residuals, theirs.drift)
        and (ours.iterations, ours.reason) == (theirs.iterations, theirs.reason)
        and [kept.iteration for kept in ours.iterates] == [kept.iteration for kept in theirs.iterates]
        and all(torch.equal(one.x, two.x) for one, two in zip(ours.iterates, theirs.iterates, strict=True))
    )


@pytest.mark.parametrize("beta", ["standard", "flexible"])
def test_each_solve_gives_what_it_gives_alone(beta: str) -> None:
    options = CgOptions(60, progress_tolerance=1e-3, residual_tolerance=1e-4, drift_every=4, beta=beta)
    results, rounds = in_lock_step(options)
    for a, b, start, result in zip(MATRICES, RIGHT_SIDES, STARTS, results, strict=True):
        alone = conjugate_gradients(lambda v, a=a: product(a, v), b, options, start, watch_drift=True)
        assert same_bits(result, alone)
    assert len({result.iterations for result in results}) == len(SIZES)
    needed = [sum(column) for column in zip(*rounds, strict=True)]  # products that each was given
    expected = [r.iterations + (s is not None) + r.iterations // 4 for r, s in zip(results, STARTS, strict=True)]
    assert needed == expected
    assert len(rounds) == max(needed)
    for block, count in enumerate(needed):
        assert all(row[block] for row in rounds[:count])  # None from its end on, never before


def test_solves_with_preconditioners_and_pairs_stay_apart() -> None:
    stores = [Pairs(5) for _ in SIZES]
    options = CgOptions(8, progress_tolerance=0.0, beta="flexible")

    def solve(b: torch.Tensor, pairs: Pairs):
        diagonal = Diagonal(torch.linspace(1, 2, b.numel()))
        return cg_steps(b, options, preconditioner=Lbfgs(pairs, diagonal, inside=True), collect=pairs)

    def products(vectors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        return [v if v is None else product(a, v) for a, v in zip(MATRICES, vectors, strict=True)]

    together = lock_step([solve(b, pairs) for b, pairs in zip(RIGHT_SIDES, stores, strict=True)], products)
    for a, b, pairs, result in zip(MATRICES, RIGHT_SIDES, stores, together, strict=True):
        own = Pairs(5)
        alone = lock_step([solve(b, own)], lambda vectors, a=a: [product(a, v) for v in vectors])[0]
        assert same_bits(result, alone)
        assert torch.equal(pairs.vectors()[1], own.vectors()[1])


def test_one_block_is_conjugate_gradients_bit_for_bit() -> None:
    a, b, start = MATRICES[0], RIGHT_SIDES[0], STARTS[0]
    alone = conjugate_gradients(lambda v: product(a, v), b, OPTIONS, start)
    together = lock_step([cg_steps(b, OPTIONS, start)], lambda vectors: [product(a, v) for v in vectors])
    assert same_bits(together[0], alone)
    assert same_bits(combine(together, lambda xs: xs[0]), alone)


def test_the_combination_is_a_solution_of_the_whole() -> None:
    results, _ = in_lock_step()
    whole = combine(results, torch.cat)
    dense = torch.block_diag(*MATRICES)
    b = torch.cat(RIGHT_SIDES).double()
    exact = torch.linalg.solve(dense, b)
    assert (whole.x.double() - exact).norm() <= 1e-2 * exact.norm()
    assert whole.iterates[-1].x is whole.x
    assert whole.iterates[-1].iteration == whole.iterations == max(result.iterations for result in results)
    assert whole.reason is max(results, key=lambda result: result.iterations).reason
    union = sorted({kept.iteration for result in results for kept in result.iterates})
    assert [kept.iteration for kept in whole.iterates] == union
    for kept in whole.iterates:
        x = kept.x.double()
        assert kept.quadratic == pytest.approx(float(0.5 * x @ dense @ x - b @ x), rel=1e-5)
        for part, result in zip(parts(kept.x), results, strict=True):
            latest = [each for each in result.iterates if each.iteration <= kept.iteration][-1]
            assert torch.equal(part, latest.x)
    for i in (0, 1, whole.iterations):
        at = [(r.residuals[min(i, r.iterations)], r.quadratics[min(i, r.iterations)]) for r in results]
        assert whole.residuals[i] == pytest.approx(math.sqrt(sum(residual**2 for residual, _ in at)))
        assert whole.quadratics[i] == pytest.approx(sum(quadratic for _, quadratic in at))
    assert whole.quadratic == pytest.approx(whole.quadratics[-1])
    assert whole.drift == max(result.drift for result in results)


def test_a_block_that_has_kept_nothing_yet_gives_zeros() -> None:
    ones = torch.ones(2)
    early = CgResult(2 * ones, -2.0, 2, StopReason.RESIDUAL, [Iterate(ones, 1, -1.0), Iterate(2 * ones, 2, -2.0)])
    late = CgResult(5 * ones, -5.0, 5, StopReason.PROGRESS, [Iterate(5 * ones, 5, -5.0)])
    for result in (early, late):
        result.residuals = result.quadratics = [0.0] * (result.iterations + 1)
    found = [(kept.iteration, kept.x.tolist(), kept.quadratic) for kept in combine([early, late], torch.cat).iterates]
    assert found == [(1, [1, 1, 0, 0], -1.0), (2, [2, 2, 0, 0], -2.0), (5, [2, 2, 5, 5], -7.0)]


def test_the_worst_reason_speaks_for_all() -> None:
    def result(reason: StopReason, iterations: int, drift: float = 0.0) -> CgResult:
        kept = [Iterate(torch.ones(1), iterations, -1.0)] if iterations else []
        flat = [0.0] * (iterations + 1)
        return CgResult(torch.ones(1), -1.0, iterations, reason, kept, flat, flat, drift)

    healthy = [result(StopReason.PROGRESS, 3), result(StopReason.ITERATIONS, 9)]
    assert combine(healthy, torch.cat).reason is StopReason.ITERATIONS
    for reason in (StopReason.NEGATIVE_CURVATURE, StopReason.NON_FINITE, StopReason.INDEFINITE_PRECONDITIONER):
        found = combine([*healthy, result(reason, 0)], torch.cat)
        assert found.reason is reason
        assert found.iterations == 9
        assert found.x.tolist() == [1, 1, 1]  # where the broken block began
    both = combine([result(StopReason.NON_FINITE, 1), result(StopReason.DRIFT, 2, math.nan), *healthy], torch.cat)
    assert both.reason is StopReason.DRIFT
    assert math.isnan(both.drift)


def test_nothing_to_solve_in_one_block_or_in_all() -> None:
    zero = torch.zeros(4)
    calls = []

    def products(vectors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        calls.append(vectors[1])
        return [v if v is None else v.clone() for v in vectors]

    results = lock_step([cg_steps(torch.ones(3), OPTIONS), cg_steps(zero, OPTIONS)], products)
    assert calls == [None]
    assert combine(results, torch.cat).x.tolist() == [1, 1, 1, 0, 0, 0, 0]
    neither = combine(lock_step([cg_steps(zero, OPTIONS), cg_steps(zero, OPTIONS)], products), torch.cat)
    assert neither.reason is StopReason.ZERO_RHS
    assert not neither.iterates
    assert neither.x.shape == (8,)
    assert calls == [None]
