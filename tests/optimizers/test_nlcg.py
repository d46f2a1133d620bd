"""Nonlinear CG: on a quadratic linear CG, its diagonal against dense BFGS, its searches, whole runs."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg

from asr_hf.errors import OptionError
from asr_hf.models.dnn import DnnOptions
from asr_hf.objective.layout import Layout, Slot
from asr_hf.optimizers.first_order import SgdOptions
from asr_hf.optimizers.nlcg import NlcgOptions, scale_gradient
from asr_hf.optimizers.nlcg_direction import BETAS, EPSILON, bfgs_diagonal, next_direction
from asr_hf.optimizers.nlcg_search import BANDS, Search, SearchOptions

N = 8
RANDOM = np.random.default_rng(0)
BASIS = np.linalg.qr(RANDOM.normal(size=(N, N)))[0]
A = BASIS @ np.diag(np.geomspace(1, 100, N)) @ BASIS.T  # so ill-conditioned that residuals grow now and then
B = RANDOM.normal(size=N)


def nonlinear(rule: str, clip: bool, iterations: int, restarts: bool = False) -> tuple[list[np.ndarray], list]:
    """The iterates of NLCG with exact steps on ½xᵀAx − bᵀx, and its directions."""
    matrix, x, before = torch.from_numpy(A), torch.zeros(N, dtype=torch.float64), None
    iterates, directions = [], []
    for _ in range(iterations):
        g = matrix @ x - torch.from_numpy(B)
        before = next_direction(g, None, before, rule, clip, restarts)
        x = x - before.d_N * (g @ before.d_N) / (before.d_N @ matrix @ before.d_N)
        iterates.append(x.numpy())
        directions.append(before)
    return iterates, directions


def linear(iterations: int, start: np.ndarray | None = None) -> list[np.ndarray]:
    iterates: list[np.ndarray] = []
    cg(A, B, start, rtol=0, atol=0, maxiter=iterations, callback=lambda x: iterates.append(x.copy()))
    return iterates


@pytest.mark.parametrize("rule", BETAS)
def test_with_exact_steps_and_no_clip_it_is_linear_cg(rule: str) -> None:
    iterates, _ = nonlinear(rule, False, N)
    for ours, theirs in zip(iterates, linear(N), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(iterates[-1], np.linalg.solve(A, B), rtol=0, atol=1e-10)


def test_the_clip_takes_a_beta_above_1_to_1_on_the_same_quadratic() -> None:
    free = nonlinear("fletcher_reeves", False, N)[1]
    clipped = nonlinear("fletcher_reeves", True, N)[1]
    betas = [each.beta for each in free]
    first = next(k for k, beta in enumerate(betas) if beta > 1)
    assert first >= 1
    for k in range(first):
        torch.testing.assert_close(clipped[k].d_N, free[k].d_N, rtol=1e-12, atol=0)
    assert clipped[first].beta == pytest.approx(betas[first])
    torch.testing.assert_close(clipped[first].d_N, clipped[first].s_N + clipped[first - 1].d_N)
    assert not torch.allclose(clipped[first].d_N, free[first].d_N)
    for k, each in enumerate(clipped[1:], 1):
        part = each.d_N - each.s_N
        assert part.norm() <= clipped[k - 1].d_N.norm() * (1 + 1e-12)


@pytest.mark.parametrize("rule", BETAS)
def test_where_it_is_told_to_the_clip_restarts_above_1_on_the_same_quadratic(rule: str) -> None:
    """From each β above 1 on, up to the next, the iterates are those of linear CG begun anew where that was met."""
    iterates, directions = nonlinear(rule, True, 2 * N, restarts=True)
    restarts = [k for k, each in enumerate(directions) if each.beta > 1]
    assert restarts[0] == next(k for k, each in enumerate(nonlinear(rule, False, N)[1]) if each.beta > 1)
    for k in restarts:
        assert torch.equal(directions[k].d_N, directions[k].s_N)
    bounds = [0, *restarts, 2 * N]
    for begin, end in itertools.pairwise(bounds):
        start = iterates[begin - 1] if begin else np.zeros(N)
        for ours, theirs in zip(iterates[begin:end], linear(end - begin, start), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_a_negative_beta_of_polak_and_ribiere_restarts_the_direction() -> None:
    before = next_direction(torch.tensor([1.0, 1.0]), None, None, "polak_ribiere", True)
    g = torch.tensor([0.5, 0.4])  # rᵀ(r − r_old) < 0
    assert next_direction(g, None, before, "polak_ribiere", False).beta == pytest.approx((0.41 - 0.9) / 2)
    assert torch.equal(next_direction(g, None, before, "polak_ribiere", True).d_N, -g)


def test_the_preconditioned_direction_is_that_of_scaled_variables() -> None:
    """With a fixed D the direction is D^(−½) times the one without it for D^(−½)g."""
    generator = torch.Generator().manual_seed(1)
    diagonal = torch.rand(N, generator=generator, dtype=torch.float64) + 0.5
    root = (diagonal + EPSILON).sqrt()
    for rule in BETAS:
        ours = plain = None
        for _ in range(3):
            g = torch.randn(N, generator=generator, dtype=torch.float64)
            ours = next_direction(g, diagonal, ours, rule, False)
            plain = next_direction(g / root, None, plain, rule, False)
            torch.testing.assert_close(ours.d_N, plain.d_N / root)


def test_the_diagonal_is_that_of_dense_bfgs() -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        diagonal, y, step = (torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(3))
        diagonal, y = diagonal.abs(), y * torch.sign(y @ step)
        b = torch.diag(diagonal)
        dense = b - torch.outer(b @ step, step @ b) / (step @ b @ step) + torch.outer(y, y) / (y @ step)
        updated = bfgs_diagonal(diagonal, y, step)
        assert updated is not None
        torch.testing.assert_close(updated, dense.diagonal().abs())


@pytest.mark.parametrize(("y", "step"), [(-1.0, 1.0), (1e-5, 1e-4), (1.0, 0.0), (float("nan"), 1.0), (1e9, 1e-8)])
def test_too_little_curvature_keeps_the_diagonal(y: float, step: float) -> None:
    assert bfgs_diagonal(torch.tensor([2.0]), torch.tensor([y]), torch.tensor([step])) is None


@pytest.mark.parametrize("kind", ["step", "online"])
@pytest.mark.parametrize("threshold", [1.0, 2.0])
@pytest.mark.parametrize(
    ("rise", "factor", "removed"),
    [(0.2, 0.5, 0.9), (0.14, 0.7, 0.7), (0.11, 0.8, 0.5), (0.08, 0.9, 0.3), (0.06, 0.95, 0.2), (0.03, 0.975, 0.1),
     (0.02, 1.0, 0.1), (0.005, None, 0.0), (-0.5, None, 0.0)],
)  # fmt: skip
def test_the_bands_of_the_search(
    kind: str, threshold: float, rise: float, factor: float | None, removed: float
) -> None:
    """By the table of the released code; ρ of "step" is of averages, so that the loss must rise by more."""
    options = SearchOptions(kind, threshold=threshold)
    weight = 1 - options.average if kind == "step" else 1.0
    growth = {"step": 1.05, "online": 1.02}[kind]
    for sign in (1.0, -1.0):  # a loss below zero, too, is worse when it is larger
        before = Search(0.8, 2.0 * sign, 2.0 * sign)
        after = options.after(before, 2.0 * sign + 2.0 * threshold * rise / weight, 10)
        assert after.multiplier == pytest.approx(0.8 * (growth if factor is None else factor))
        assert after.removed == removed


def test_the_step_search_checks_at_its_interval_and_stays_in_its_limits() -> None:
    options = SearchOptions(interval=3, floor=0.3)
    search, factors = Search(1.0, 0.0, 0.0), []
    for step, loss in enumerate([1.0, 1, 1, 9, 9, 9, 99, 99, 99, 9, 0, 0, 0, 0, 0, 0]):
        search = options.after(search, loss, step)
        factors.append(search.multiplier)
    # at steps 3 and 6 the averages have risen: half, then the floor; then growth
    assert factors == pytest.approx(
        [1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.315, 0.315, 0.315, 0.33075]
    )
    assert options.after(Search(0.99, 1.0, 1.0), 1.0, 3).multiplier == 1.0
    assert SearchOptions("none").after(Search(1.0, 1.0, 1.0), 9.0, 5).multiplier == 1.0
    assert [bound for bound, _, _ in BANDS] == sorted((bound for bound, _, _ in BANDS), reverse=True)


def started(**options):
    theta = torch.linspace(-1, 1, N)
    return NlcgOptions(**{"rate": 0.1, "schedule": "newbob", **options}).start(theta, seed=0)


def test_what_is_taken_back_is_what_the_step_before_has_added() -> None:
    """After a rise by 20 %: a tenth of half a step, less 0.9 of the displacement before, whoever made that."""
    optimizer, generator = started(search=SearchOptions("online"), preconditioner="none"), torch.Generator()
    first, second = (torch.randn(N, generator=generator) for _ in range(2))
    start = optimizer.state.theta.clone()
    optimizer.move(first.clone(), 1.0, Layout(()))
    optimizer.state.theta = optimizer.state.theta + 0.01  # a constraint of the model
    reached = optimizer.state.theta.clone()
    optimizer.move(second.clone(), 1.2, Layout(()))
    beta = min(1.0, float(second @ second / (first @ first)))
    direction = -second - beta * first
    expected = reached + 0.1 * (0.1 * 0.5) * direction - 0.9 * (reached - start)
    torch.testing.assert_close(optimizer.state.theta, expected)


def test_the_diagonal_learns_from_the_whole_displacement() -> None:
    optimizer, gradients = started(search=SearchOptions("none")), torch.eye(N)[:2] + 0.1
    start = optimizer.state.theta.clone()
    optimizer.move(gradients[0].clone(), 1.0, Layout(()))
    optimizer.state.theta = optimizer.state.theta + gradients[1] - gradients[0]  # far along y: the test holds
    reached = optimizer.state.theta.clone()
    optimizer.move(gradients[1].clone(), 1.0, Layout(()))
    y, step = gradients[1] - gradients[0], reached - start
    expected = (1 - step.square() / (step @ step) + y.square() / (y @ step)).abs()
    torch.testing.assert_close(optimizer.state.diagonal, expected)


def test_lars_scales_layers_and_the_factor_normalisations() -> None:
    shapes = {"layer1.weight": (3,), "layer1.bias": (2,), "layer1.norm.weight": (2,), "output.weight": (4,)}
    offsets = itertools.accumulate((shape[0] for shape in shapes.values()), initial=0)
    layout = Layout(tuple(
        Slot(name, shape, offset, name.split(".")[0], 1.0)
        for (name, shape), offset in zip(shapes.items(), offsets, strict=False)
    ))  # fmt: skip
    theta, gradient = torch.arange(11.0) + 1, torch.linspace(1, 2, 11)
    theta[3:5] = 0.0  # biases at their start
    scaled = gradient.clone()
    scale_gradient(scaled, theta, layout, 0.0, 0.01)
    expected = gradient.clone()
    expected[5:7] *= 0.01
    torch.testing.assert_close(scaled, expected)
    scaled = gradient.clone()
    scale_gradient(scaled, theta, layout, 0.001, 1.0)
    for part in (slice(0, 7), slice(7, 11)):
        size = 0.001 * theta[part].norm()
        torch.testing.assert_close(scaled[part], gradient[part] * size / (gradient[part].norm() + 0.1 * size + 1e-8))


FAST = NlcgOptions(rate=1.0, epochs=3, minibatch_frames=64, minibatches_per_step=3)
VARIANTS = {
    "paper": FAST,
    "polak_ribiere": replace(FAST, beta="polak_ribiere", search=SearchOptions("online"), restart=4),
    "lars": replace(FAST, rate=10.0, lars=0.001, norm_factor=0.01, schedule="newbob"),
    "plain": replace(FAST, preconditioner="none", clip_beta=False, search=SearchOptions("none")),
    "restarts": replace(FAST, clip_restarts=True),
    "whole": replace(FAST, minibatches_per_step=10**6, warmup=0.0),
}
LAYERS = DnnOptions(hidden_layers=1, width=16, activation="sigmoid", context=1, norm="layer")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_paused_and_restored_run_is_the_same_run_and_learns(name: str, small_objective) -> None:
    objective, theta = small_objective(model=LAYERS)
    whole = VARIANTS[name].start(theta.clone(), 0)
    reports = []
    while not whole.state.finished:
        reports.append(whole.step(objective))
    assert whole.state.best_heldout < objective.loss(theta, whole._epoch(objective, 0, 0)).mean
    assert reports[-1].heldout < reports[0].heldout

    parted, rows = VARIANTS[name].start(theta.clone(), 0), []
    while not parted.state.finished:
        parted.pause_after = 0.0
        rows.append(parted.step(objective))
        values = copy.deepcopy({**parted.state.tensors(), **parted.state.scalars()})
        parted = VARIANTS[name].start(theta.clone(), 0)
        for field, value in values.items():
            setattr(parted.state, field, value)
        assert not parted.state.fault()
    assert torch.equal(parted.best()[0], whole.best()[0])
    assert torch.equal(parted.state.theta, whole.state.theta)
    found = [row for row in rows if row is not None]
    assert [(row.heldout, row.note) for row in found] == [(row.heldout, row.note) for row in reports]


def test_a_step_communicates_as_one_of_sgd(small_objective) -> None:
    objective, theta = small_objective(model=LAYERS)
    shared = {"epochs": 1, "minibatch_frames": 64, "minibatches_per_step": 3}
    ours, theirs = (kind(**shared).start(theta.clone(), 0).step(objective) for kind in (NlcgOptions, SgdOptions))
    assert (
        ours.vectors == theirs.vectors == 2 * 5 + 1
    )  # θ and a gradient for each of 5 steps, θ for the held-out loss after them
    assert ours.equivalents == theirs.equivalents


@pytest.mark.parametrize(
    ("a_step", "said"),
    [(1, "15 steps"), (5, "3 steps"), (4, "4 steps, the last of 3 minibatches instead of 4"), (99, "1 steps")],
)
def test_a_row_says_how_short_the_last_step_was(small_objective, a_step: int, said: str) -> None:
    objective, theta = small_objective(model=LAYERS)
    row = SgdOptions(epochs=1, minibatch_frames=64, minibatches_per_step=a_step).start(theta, 0).step(objective)
    assert row.note == said


def test_impossible_options_and_states_are_refused() -> None:
    for options, name in (
        (lambda: NlcgOptions(beta="hestenes_stiefel"), r"optimizer\.beta"),
        (lambda: NlcgOptions(preconditioner="fisher"), r"optimizer\.preconditioner"),
        (lambda: NlcgOptions(restart=-1), r"optimizer\.restart"),
        (lambda: NlcgOptions(norm_factor=0.0), r"optimizer\.norm_factor"),
        (lambda: NlcgOptions(clip_beta=False, clip_restarts=True), r"optimizer\.clip_restarts"),
        (lambda: SearchOptions("armijo"), r"optimizer\.search\.kind"),
        (lambda: SearchOptions(growth=0.5), r"optimizer\.search\.growth"),
        (lambda: SearchOptions(average=1.0), r"optimizer\.search\.average"),
    ):
        with pytest.raises(OptionError, match=name):
            options()
    for name, value in (
        ("delta", -1.0),
        ("multiplier", 0.0),
        ("diagonal", -torch.ones(N)),
        ("residual", torch.ones(1)),
    ):
        state = started().state
        setattr(state, name, value)
        assert name in state.fault()
