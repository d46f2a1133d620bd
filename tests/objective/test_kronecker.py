"""Kronecker factors against dense Fisher matrices, and against sums over positions written out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from asr_hf.criteria.criterion import Outputs
from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.curvature.kronecker import LinearMap, Uses
from asr_hf.data.minibatch import Batch, TrainingSet
from asr_hf.data.plan import Sample
from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.rnn import RnnOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.models.tdnnf import TdnnfOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.layout import Layout
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import KroneckerSums

P, D = 3, 4


class DeepLinear(AcousticModel):
    """Three linear maps upon each other, one of them without a bias."""

    frame_model = windowed = True

    def __init__(self) -> None:
        super().__init__(D, P, 0, 0)
        torch.manual_seed(3)
        self.layer1, self.layer2 = nn.Linear(D, 5), nn.Linear(5, 4, bias=False)
        self.output = nn.Linear(4, P)

    def forward(self, x_BWD: torch.Tensor, *rest: Any) -> Outputs:
        return {"output": self.output(self.layer2(self.layer1(x_BWD)))}


class Gaussian:
    """½‖y − t‖² of targets t: labels are drawn by y + noise, and P rows of the same input get √P·e_1 … √P·e_P for it.

    Their mean of δδᵀ is I, as of normal noise, and without its sampling error.
    """

    sequence = branched = False
    chunk = 0

    def values(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        return 0.5 * (outputs["output"] - 1.0).square().sum(dim=(1, 2)).double()

    def sampled_score(self, outputs: Outputs, batch: Batch, generator: torch.Generator) -> Outputs:
        axes_BP = torch.eye(P).repeat(len(batch.mask_BT) // P, 1)
        return {"output": P**0.5 * axes_BP[:, None]}


def block_of(layout: Layout, each: LinearMap) -> list[int]:
    """Where [W b] stands in θ, row by row."""
    slots = {slot.name: slot for slot in layout.slots}
    weight = np.arange(slots[each.weight].size).reshape(slots[each.weight].shape) + slots[each.weight].offset
    if each.bias:
        weight = np.concatenate([weight, slots[each.bias].offset + np.arange(len(weight))[:, None]], axis=1)
    return weight.ravel().tolist()


def block(sums: KroneckerSums, each: LinearMap, means: torch.Tensor | None = None) -> np.ndarray:
    named = sums.layout.views(sums.means() if means is None else means)
    return np.kron(named[each.g].double().numpy(), named[each.a].double().numpy())


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("reduce", [False, True])
def test_of_a_deep_linear_network_they_are_the_fisher_matrix_blocks(reduce: bool) -> None:
    model, random = DeepLinear(), np.random.default_rng(0)
    features = [np.repeat(random.normal(size=(n, D)), P, axis=0).astype(np.float32) for n in (7, 4, 9)]
    data = TrainingSet(["a", "b", "c"], features, [np.zeros(len(x)) for x in features], window=True)
    objective = LocalObjective(Evaluator(model, Gaussian(), {"train": data}, torch.device("cpu")))  # type: ignore[arg-type]
    theta = objective.layout.flatten(dict(model.named_parameters())).detach()
    sums = objective.kronecker_factors(theta, Sample("train", minibatch_frames=6 * P), reduce)
    x = torch.from_numpy(np.concatenate(features)[::P]).double()

    def outputs(vector: torch.Tensor) -> torch.Tensor:
        return functional_call(model.double(), objective.layout.views(vector), (x,))["output"].flatten()

    jacobian = torch.autograd.functional.jacobian(outputs, theta.double()).numpy()
    fisher = jacobian.T @ jacobian / len(x)
    assert sums.frames == P * len(x)
    assert [each.weight for each in sums.maps] == ["layer1.weight", "layer2.weight", "output.weight"]
    for each in sums.maps:
        place = block_of(objective.layout, each)
        assert relative(block(sums, each), fisher[np.ix_(place, place)]) < 1e-6


MODELS: dict[str, Any] = {
    "dnn": DnnOptions(hidden_layers=2, width=4, activation="maxout", context=1),
    "tdnn": TdnnOptions(contexts=[[-1, 0, 1], [-3, 0]], width=5, subsampling=3),
    "tdnnf": TdnnfOptions(strides=[1, 3], width=6, bottleneck=3, norm="batch", subsampling=3),
    "rnn": RnnOptions(layers=2, width=4, bidirectional=True),
    "lstm": LstmOptions(2, 5, projection=3, bidirectional=True, chunk=8, chunk_left=2, chunk_right=1),
}
NO_MAPS = {"lstm": ".projection"}


@pytest.mark.parametrize("name", MODELS)
def test_inputs_and_gradients_of_all_positions_make_the_gradient(objective_of: Callable, name: str) -> None:
    """Σ_n g_n ā_nᵀ is autograd's gradient of [W b]; no weight but a recurrence's projection lacks a map."""
    objective, theta = objective_of(MODELS[name])
    evaluator = objective.evaluator
    model, sample = evaluator.model, Sample("train", minibatch_frames=60, whole_utterances=True)
    batch = evaluator.sets["train"].batch(
        evaluator.plan(sample)[0], model.left_context, model.right_context, model.subsampling
    )
    named = {n: t.detach().requires_grad_() for n, t in objective.layout.views(theta).items()}
    with Uses(named) as uses:
        y_BTP = functional_call(model, named, (batch.x_BWD, batch.mask_BT))["output"]
    score = torch.randn(y_BTP.shape, generator=torch.Generator().manual_seed(1)) * batch.mask_BT[..., None]
    wanted = [*(use.z for use in uses.found), *named.values()]
    found = list(torch.autograd.grad(y_BTP, wanted, score))
    exact = dict(zip(named, found[len(uses.found) :], strict=True))
    for use, g in zip(uses.found, found, strict=False):
        each = use.linear_map
        torch.testing.assert_close(torch.einsum("...m,...k->mk", g, use.a), exact[each.weight], rtol=1e-4, atol=1e-5)
        if each.bias:
            torch.testing.assert_close(g.flatten(0, -2).sum(0), exact[each.bias], rtol=1e-4, atol=1e-5)
    assert {use.linear_map for use in uses.found} == set(evaluator.maps)
    without = {
        slot.name
        for slot in objective.layout.slots
        if slot.name in objective.evaluator.factors.views(torch.empty(objective.evaluator.factors.size))
    }
    assert all(".norm." in n or n.endswith(NO_MAPS.get(name, ".norm.")) for n in without)


class FixedScore(Gaussian):
    """A made-up δ, a function of the targets alone."""

    sequence = True

    def values(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        return outputs["output"].sum(dim=(1, 2)).double()

    def sampled_score(self, outputs: Outputs, batch: Batch, generator: torch.Generator) -> Outputs:
        delta = nn.functional.one_hot(batch.target_BT, P) - 0.3
        return {"output": torch.where(batch.mask_BT[..., None], delta, 0.0)}


@pytest.mark.parametrize("reduce", [False, True])
def test_shared_weights_position_by_position(reduce: bool) -> None:
    """A time-delay network by hand: utterances of unequal lengths, so that a minibatch has padding."""
    random, lengths = np.random.default_rng(2), (9, 5, 12)
    features = [random.normal(size=(n, D)).astype(np.float32) for n in lengths]
    targets = [random.integers(0, P, size=n) for n in lengths]
    model = TdnnOptions([[-1, 0, 1]], width=5, activation="tanh", norm="none").build(D, P, seed=1)
    data = TrainingSet(["a", "b", "c"], features, targets, window=False)
    objective = LocalObjective(Evaluator(model, FixedScore(), {"train": data}, torch.device("cpu")))  # type: ignore[arg-type]
    theta = objective.layout.flatten(dict(model.named_parameters())).detach()
    sums = objective.kronecker_factors(theta, Sample("train", minibatch_frames=30, whole_utterances=True), reduce)
    w = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    exact = {name: np.zeros(shape) for each in sums.maps for name, shape in each.shapes.items()}
    for x, target in zip(features, targets, strict=True):
        padded = np.concatenate([x[:1], x, x[-1:]])
        a1 = np.concatenate([padded[:-2], padded[1:-1], padded[2:], np.ones((len(x), 1))], axis=1)
        h = np.tanh(a1 @ np.concatenate([w["layer1.weight"], w["layer1.bias"][:, None]], axis=1).T)
        a2 = np.concatenate([h, np.ones((len(x), 1))], axis=1)
        g2 = np.eye(P)[target] - 0.3
        g1 = (g2 @ w["output.weight"]) * (1 - h * h)
        for each, a, g in zip(sums.maps, (a1, a2), (g1, g2), strict=True):
            if reduce:
                a, g = a.mean(axis=0, keepdims=True), g.sum(axis=0, keepdims=True)
            exact[each.a] += a.T @ a
            exact[each.g] += g.T @ g
            exact[each.positions] += len(a)
    for name, value in sums.layout.views(sums.vector).items():
        np.testing.assert_allclose(value.numpy(), exact[name], rtol=1e-5, atol=1e-5)


class Softmax(CrossEntropy):
    """Cross-entropy with every label in turn instead of one drawn: P rows of the same input, √(P·p_k)·δ of label k."""

    def sampled_score(self, outputs: Outputs, batch: Batch, generator: torch.Generator) -> Outputs:
        p_BTP = torch.softmax(outputs["output"], dim=-1)
        label_B11 = torch.arange(P).repeat(len(p_BTP) // P)[:, None, None]
        onehot_BTP = torch.zeros_like(p_BTP).scatter_(-1, label_B11, 1.0)
        return {"output": (P * p_BTP.gather(-1, label_B11)).sqrt() * (p_BTP - onehot_BTP)}


def test_of_a_softmax_they_are_near_the_fisher_matrix() -> None:
    """What K-FAC neglects: that inputs and gradients are not independent."""
    random = np.random.default_rng(0)
    features = [np.repeat(random.normal(size=(n, D)), P, axis=0).astype(np.float32) for n in (40, 60)]
    targets = [random.integers(0, P, size=len(x)) for x in features]
    data = TrainingSet(["a", "b"], features, targets, window=True)
    model = DnnOptions(hidden_layers=2, width=6, activation="sigmoid", context=0, norm="none").build(D, P, seed=1)
    objective = LocalObjective(Evaluator(model, Softmax(), {"train": data}, torch.device("cpu")))
    theta = objective.layout.flatten(dict(model.named_parameters())).detach()
    sample = Sample("train", minibatch_frames=20 * P)
    with objective.linearize(theta, sample) as lin:
        fisher = np.stack([lin.product(e).double().numpy() / lin.frames for e in torch.eye(len(theta))], axis=1)
    sums = objective.kronecker_factors(theta, sample)
    places = [block_of(objective.layout, each) for each in sums.maps]
    errors = [
        relative(block(sums, each), fisher[np.ix_(place, place)]) for each, place in zip(sums.maps, places, strict=True)
    ]
    assert errors == pytest.approx([0.527, 0.245, 0.016], abs=1e-3)  # measured, and the same frame by frame in numpy


def test_diagonals_expect_those_of_the_fisher_matrix(objective_of: Callable) -> None:
    """Of norms, averaged over 10 draws of labels for 25 minibatches: a standard error of √(2/250) = 9 %."""
    objective, theta = objective_of(DnnOptions(hidden_layers=1, width=4, activation="sigmoid", context=1))
    sample = Sample("train", minibatch_frames=4)
    with objective.linearize(theta, sample) as lin:
        fisher = np.stack([lin.product(e).double().numpy() / lin.frames for e in torch.eye(len(theta))], axis=1)
    answers = [objective.kronecker_factors(theta, replace(sample, update=u)) for u in range(10)]
    named = answers[0].layout.views(sum(each.means() for each in answers) / 10)  # type: ignore[arg-type]
    exact = objective.layout.views(torch.from_numpy(fisher.diagonal().copy()))
    for name in ("layer1.norm.weight", "layer1.norm.bias"):
        assert relative(named[name].numpy(), exact[name].numpy()) < 0.25


def test_labels_are_drawn_by_sample_and_minibatch_alone(objective_of: Callable) -> None:
    objective, theta = objective_of(MODELS["tdnn"])
    whole = Sample("train", minibatch_frames=40, whole_utterances=True, seed=1, update=2, masks=2)

    def drawn(**changes: int) -> torch.Tensor:
        sample = Sample(
            "train", minibatch_frames=40, whole_utterances=True, **{"seed": 1, "update": 2, "masks": 2, **changes}
        )
        return objective.kronecker_factors(theta, sample).vector

    once = objective.kronecker_factors(theta, whole).vector
    assert torch.equal(once, drawn())
    for changed in ({"seed": 3}, {"update": 3}, {"masks": 3}):
        assert not torch.equal(once, drawn(**changed))
    parts = [drawn(first=index, count=1) for index in range(objective.minibatches(whole))]
    assert len(parts) > 2
    torch.testing.assert_close(sum(parts), once, rtol=1e-6, atol=1e-6)


def test_it_is_a_statistic_without_bad_utterances(objective_of: Callable) -> None:
    objective, theta = objective_of(MODELS["dnn"])
    data, sample = objective.evaluator.sets["train"], Sample("train", minibatch_frames=16)
    data.features[3] = np.full_like(data.features[3], np.inf)
    sums = objective.kronecker_factors(theta, sample)
    assert sums.frames == data.frames - 9
    assert bool(torch.isfinite(sums.vector).all())
    assert objective.account.gradient_equivalents == 0
    assert objective.account.seconds["statistics"] > 0
    assert objective.account.vectors == pytest.approx(1 + 2 * sums.vector.numel() / len(theta))  # θ, the factors twice
