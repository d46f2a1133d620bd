"""Hessian-free: its pieces against hand-made cases, the whole against a convex problem that scipy solves."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.data.minibatch import TrainingSet
from asr_hf.errors import OptionError
from asr_hf.models.dnn import DnnOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective
from asr_hf.optimizers.damping import DampingOptions
from asr_hf.optimizers.hf import HfOptions
from asr_hf.optimizers.line_search import ArmijoOptions, armijo, backtrack
from asr_hf.optimizers.regulariser import Regulariser
from asr_hf.solvers.cg import CgOptions, Iterate


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

    best, loss = backtrack(kept(losses), heldout, current=1.0)
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


def test_weight_decay_enters_loss_and_gradient_once() -> None:
    objective, theta = small_objective()
    plain, decayed = (HfOptions(updates=1, weight_decay=w).start(theta.clone(), 0) for w in (0.0, 0.5))
    for optimizer in (plain, decayed):
        optimizer._regulariser = Regulariser(objective, theta, optimizer.options.weight_decay)
    g, loss = plain._evaluate_gradient(objective)
    g_decayed, loss_decayed = decayed._evaluate_gradient(objective)
    assert torch.allclose(g_decayed, g + 0.5 * theta, atol=1e-6)
    assert loss_decayed == pytest.approx(loss + 0.25 * float(theta @ theta), rel=1e-6)


def small_objective() -> tuple[LocalObjective, torch.Tensor]:
    random = np.random.default_rng(1)
    means = random.normal(size=(6, 5))

    def utterances(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        targets = [random.integers(0, 6, size=30).astype(np.int32) for _ in range(count)]
        return [(means[t] + random.normal(size=(30, 5))).astype(np.float32) for t in targets], targets

    sets = {
        name: TrainingSet([f"{name}{i}" for i in range(count)], *utterances(count), window=True)
        for name, count in (("train", 30), ("heldout", 5))
    }
    model = DnnOptions(hidden_layers=2, width=16, activation="sigmoid", context=1).build(5, 6, seed=0)
    evaluator = Evaluator(model, CrossEntropy(), sets, torch.device("cpu"))
    return LocalObjective(evaluator), evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()


def test_accepted_updates_lower_the_heldout_loss_and_rejected_ones_leave_theta() -> None:
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
            assert optimizer.state.damping == pytest.approx(1.5 * damping)
            assert optimizer.state.direction.numel() == 0
            assert "rejected" in report.note
        assert report.cg_iterations is not None
        assert report.cg_iterations <= 30
    assert accepted >= 3
    assert rejected >= 1


def test_the_gradient_is_kept_after_a_rejection() -> None:
    objective, theta = small_objective()
    calls: list[int] = []
    evaluate = objective.gradient

    def counted(theta_N: torch.Tensor, sample: object):
        calls.append(optimizer.state.update)
        return evaluate(theta_N, sample)

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
