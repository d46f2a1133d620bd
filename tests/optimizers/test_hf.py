"""Hessian-free: its pieces against hand-made cases, the whole against a convex problem that scipy solves."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.data.minibatch import TrainingSet
from asr_hf.errors import OptionError
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.norm import frozen_norms
from asr_hf.models.tdnnf import TdnnfOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective
from asr_hf.optimizers.damping import DampingOptions
from asr_hf.optimizers.hf import HfOptions
from asr_hf.optimizers.line_search import ArmijoOptions, armijo, backtrack
from asr_hf.optimizers.regulariser import Regulariser
from asr_hf.optimizers.samples import whole_set
from asr_hf.solvers.cg import CgOptions, Iterate

Small = Callable[..., tuple[LocalObjective, torch.Tensor]]


def kept(losses: list[float]) -> list[Iterate]:
    return [Iterate(torch.tensor([loss]), index + 1, -1.0) for index, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "chosen", "evaluated"),
    [
        ([0.9, 0.5, 0.3], 3, 2),  # the last is good and the one before is worse: stop
        ([0.9, 0.3, 0.5, 0.6], 2, 4),  # improving on the way down
        ([0.8, 2.0, 3.0, 1.5], 1, 4),  # nothing below 1.0 at first: go on until something is
        ([2.0, 3.0, 4.0], 1, 3),  # nothing helps: the caller rejects
    ],
)
def test_backtracking_follows_kingsbury(losses: list[float], chosen: int, evaluated: int) -> None:
    seen: list[int] = []

    def heldout(iterate: Iterate) -> float:
        seen.append(iterate.iteration)
        return float(iterate.x)

    best, loss = backtrack(reversed(kept(losses)), heldout, current=1.0)
    assert best.iteration == chosen
    assert loss == pytest.approx(losses[chosen - 1])
    assert len(seen) == evaluated


def test_armijo_takes_the_first_step_that_keeps_its_promise() -> None:
    """L(α) = (1 − 3α)² has slope −6 at 0; α = 1 gives 4, and 0.8ᵏ first fulfils the condition at k = 2."""
    tried: list[float] = []

    def loss(alpha: float) -> float:
        tried.append(alpha)
        return (1 - 3 * alpha) ** 2

    found = armijo(loss, 1.0, -6.0, 4.0, ArmijoOptions())
    expected = next(0.8**k for k in range(60) if (1 - 3 * 0.8**k) ** 2 <= 1 - 1e-2 * 6 * 0.8**k)
    assert found is not None
    assert found[0] == pytest.approx(expected)
    assert armijo(loss, 1.0, +1.0, 0.5, ArmijoOptions()) is None  # not a direction of descent
    assert armijo(lambda alpha: 2.0, 1.0, -1.0, 2.0, ArmijoOptions(trials=7)) is None


def test_damping_follows_rho() -> None:
    options = DampingOptions(initial=1.0)
    assert options.after(1.0, 0.1) == pytest.approx(1.5)
    assert options.after(1.0, 0.5) == 1.0
    assert options.after(1.0, 0.9) == pytest.approx(0.5)
    assert options.after(1.0, None) == 1.0
    assert options.after(1.0, math.nan) == pytest.approx(1.5)
    assert options.after(options.largest, 0.0) == options.largest
    assert options.after_rejection(1.0) == 4.0
    assert DampingOptions(rejected=1.5).after_rejection(options.largest) == options.largest
    with pytest.raises(OptionError, match=r"damping\.drop"):
        DampingOptions(drop=0.0)


def convex_objective(seed: int = 0) -> tuple[LocalObjective, torch.Tensor]:
    """Softmax regression: convex, so that HF must reach the one minimum."""
    random = np.random.default_rng(seed)
    features = [random.normal(size=(40, 4)).astype(np.float32) for _ in range(6)]
    targets = [random.integers(0, 3, size=40).astype(np.int32) for _ in range(6)]
    data = TrainingSet([f"u{i}" for i in range(6)], features, targets, window=True)
    model = DnnOptions(hidden_layers=0, context=0).build(4, 3, seed=0)
    evaluator = Evaluator(model, CrossEntropy(), {"train": data, "heldout": data}, torch.device("cpu"))
    return LocalObjective(evaluator), evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()


def test_hf_reaches_the_minimum_that_scipy_finds() -> None:
    objective, theta = convex_objective()
    data = objective.evaluator.sets["train"]
    x = np.concatenate(data.features).astype(np.float64)
    onehot = np.eye(3)[data.targets]

    def regression(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[:12].reshape(3, 4), flat[12:]
        y = x @ weight.T + bias
        log_p = y - np.logaddexp.reduce(y, axis=1, keepdims=True)
        delta = (np.exp(log_p) - onehot) / len(x)
        loss = -(onehot * log_p).sum() / len(x)
        return loss, np.concatenate([(delta.T @ x).ravel(), delta.sum(axis=0)])

    exact = minimize(regression, theta.double().numpy(), jac=True, tol=1e-12)
    hf = HfOptions(updates=30, curvature_share=1.0, cg=CgOptions(40, 1e-9))
    hf.damping.initial = 0.1
    optimizer = hf.start(theta, seed=0)
    best = math.inf
    while not optimizer.state.finished:
        report = optimizer.step(objective)
        best = min(best, report.loss)
    assert best == pytest.approx(exact.fun, abs=1e-5)


def test_weight_decay_enters_loss_and_gradient_once(small_objective: Small) -> None:
    objective, theta = small_objective()
    plain, decayed = (HfOptions(updates=1, weight_decay=w).start(theta.clone(), 0) for w in (0.0, 0.5))
    for optimizer in (plain, decayed):
        optimizer._regulariser = Regulariser(objective, theta, optimizer.options.weight_decay)
    g, loss = plain._evaluate_gradient(objective)
    g_decayed, loss_decayed = decayed._evaluate_gradient(objective)
    assert torch.allclose(g_decayed, g + 0.5 * theta, atol=1e-6)
    assert loss_decayed == pytest.approx(loss + 0.25 * float(theta @ theta), rel=1e-6)


def test_accepted_updates_lower_the_heldout_loss_and_rejected_ones_leave_theta(small_objective: Small) -> None:
    objective, theta = small_objective()
    optimizer = HfOptions(updates=25, curvature_share=0.05, stop_rejections=25).start(theta, seed=0)
    optimizer.options.damping.initial = optimizer.state.damping = 1e-4  # too little: some updates must fail
    accepted = rejected = 0
    heldout = math.inf
    while not optimizer.state.finished:
        before, damping = optimizer.state.theta.clone(), optimizer.state.damping
        report = optimizer.step(objective)
        if report.accepted:
            accepted += 1
            assert report.heldout < heldout or heldout == math.inf
            heldout = report.heldout
        else:
            rejected += 1
            assert torch.equal(before, optimizer.state.theta)
            assert optimizer.state.damping == pytest.approx(4 * damping)
            assert optimizer.state.direction.numel() == 0
            assert "rejected" in report.note
        assert report.cg_iterations is not None
        assert report.cg_iterations <= 30
    assert accepted >= 3
    assert rejected >= 1


def test_the_gradient_is_kept_after_a_rejection(small_objective: Small) -> None:
    objective, theta = small_objective()
    calls: list[int] = []
    evaluate = objective.gradient

    def counted(*arguments: object, **options: object):
        calls.append(optimizer.state.update)
        return evaluate(*arguments, **options)

    objective.gradient = counted
    optimizer = HfOptions(updates=25, curvature_share=0.05, stop_rejections=25).start(theta, seed=0)
    optimizer.state.damping = 1e-4
    accepted_before = [True]
    while not optimizer.state.finished:
        accepted_before.append(optimizer.step(objective).accepted)
    assert calls == [update for update, moved in enumerate(accepted_before[:-1], start=1) if moved]
    assert len(calls) < 25


def test_impossible_options_are_refused() -> None:
    for name, value in (("curvature_share", 0.0), ("gradient_share", 1.5), ("warm_start", 1.0), ("updates", 0)):
        with pytest.raises(OptionError, match=name):
            HfOptions(**{name: value})
    with pytest.raises(OptionError, match=r"damping\.initial"):
        DampingOptions(initial=1e300, largest=1e300)


def test_a_damping_that_no_run_can_have_is_a_fault() -> None:
    state = HfOptions().start(torch.zeros(4), seed=0).state
    assert state.fault() == ""
    for state.damping in (0.0, 1e300):
        assert state.fault() == f"damping is {state.damping}"


def test_products_that_are_too_coarse_give_way_to_fp32_with_the_reason(small_objective: Small) -> None:
    results = []
    for precision, tolerance in (("bf16", 1e-9), ("fp32", 0.1)):
        objective, theta = small_objective(CurvatureOptions(precision=precision))
        cg = CgOptions(12, drift_every=3, drift_tolerance=tolerance)
        optimizer = HfOptions(updates=3, curvature_share=0.5, cg=cg).start(theta, seed=0)
        reports = [optimizer.step(objective) for _ in range(3)]
        results.append(optimizer.state.theta)
        assert [report.precision for report in reports] == ["fp32"] * 3
        assert ("gave way to fp32" in reports[0].note) == (precision == "bf16")
        assert all("gave way" not in report.note for report in reports[1:])
    assert torch.equal(*results)  # the coarse solve leaves no trace


def test_auto_takes_the_fastest_precision_that_is_accurate_enough_and_keeps_it(small_objective: Small) -> None:
    for tolerance, expected in ((1e-12, ("fp32",)), (0.5, ("fp32", "medium", "bf16"))):
        objective, theta = small_objective(CurvatureOptions(precision="auto", tolerance=tolerance))
        optimizer = HfOptions(updates=2, curvature_share=0.5).start(theta, seed=0)
        first, second = optimizer.step(objective), optimizer.step(objective)
        assert first.precision in expected
        assert first.precision == second.precision == optimizer.state.scalars()["precision"]
        assert "of fp32's time" in first.note
        assert "of fp32's time" not in second.note


@pytest.mark.parametrize("model", ["dnn", "lstm"])
def test_statistics_of_normalisations_are_refreshed_between_updates(model: str, small_objective: Small) -> None:
    options = DnnOptions(2, 16, "relu", 1, norm="batch")
    if model == "lstm":
        options = LstmOptions(layers=1, cells=8, norm="batch", chunk=15)
    objective, theta = small_objective(model=options)
    evaluator = objective.evaluator
    optimizer = HfOptions(updates=3, curvature_share=0.5).start(theta, seed=0)
    for _ in range(3):
        before = optimizer.state.buffers.clone()
        report = optimizer.step(objective)
        assert report.accepted
        assert not torch.equal(before, optimizer.state.buffers)
        assert torch.equal(evaluator.buffers.flatten(dict(evaluator.model.named_buffers())), optimizer.state.buffers)
        heldout = objective.loss(optimizer.state.theta, whole_set(objective, "heldout", 2048)).mean
        assert report.heldout == optimizer.state.heldout == pytest.approx(heldout, rel=1e-6)
    # the stored mean and variance of the lowest norm are those of its input over all training frames
    seen: list[torch.Tensor] = []
    norm = next(iter(frozen_norms(evaluator.model).values()))
    norm.record = lambda x, mask: seen.append(
        x.flatten(0, -2)[mask.flatten()] if mask is not None else x.flatten(0, -2)
    )
    objective.loss(optimizer.state.theta, whole_set(objective, "train", 2048))
    frames = torch.cat(seen).double()
    assert torch.allclose(norm.mean.double(), frames.mean(0), atol=1e-5)
    assert torch.allclose(norm.var.double(), frames.var(0, correction=0), rtol=1e-4, atol=1e-6)


def test_the_penalty_of_a_model_enters_loss_gradient_and_products(small_objective: Small) -> None:
    objective, theta = small_objective(model=TdnnfOptions(width=8, bottleneck=3, strides=[1], semi_orthogonal=0.5))
    layout, regulariser = objective.layout, Regulariser(objective, theta, 0.25)
    weight = layout.views(theta)[objective.penalty.names[0]].double()
    gram = weight @ weight.T
    residual = gram - (gram**2).sum() / gram.trace() * torch.eye(len(gram))
    expected = 0.125 * float(theta.double() @ theta.double()) + 0.25 * float((residual**2).sum())
    assert regulariser.value(theta) == pytest.approx(expected, rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    v, step = torch.randn(theta.shape, generator=generator), 1e-3
    slope = (regulariser.value(theta + step * v) - regulariser.value(theta - step * v)) / (2 * step)
    assert float(regulariser.add_gradient(torch.zeros_like(theta)) @ v) == pytest.approx(slope, rel=1e-3)
    moved = layout.views(v)[objective.penalty.names[0]].double()
    change = moved @ weight.T + weight @ moved.T  # of the residual along v, s² being constant
    curvature = 0.25 * float(v.double() @ v.double()) + 0.5 * float((change**2).sum())
    assert float(regulariser.add_product(torch.zeros_like(v), v) @ v) == pytest.approx(curvature, rel=1e-4)
    report = HfOptions(updates=1, curvature_share=0.5).start(theta, seed=0).step(objective)
    assert report.accepted
