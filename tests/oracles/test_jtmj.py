"""JᵀMJ·v, gradients and losses against dense float64 matrices and finite differences."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.curvature.linearise import Linearizer
from asr_hf.data.minibatch import TrainingSet
from asr_hf.data.plan import Sample
from asr_hf.errors import InputError
from asr_hf.models.dnn import Dnn, DnnOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective

P, D = 5, 3
LENGTHS = (9, 4, 13)


def training_set(window: bool, seed: int = 0) -> TrainingSet:
    random = np.random.default_rng(seed)
    features = [random.normal(size=(n, D)).astype(np.float32) for n in LENGTHS]
    targets = [random.integers(0, P, size=n).astype(np.int32) for n in LENGTHS]
    return TrainingSet([f"u{i}" for i in range(len(LENGTHS))], features, targets, window)


def objective_of(activation: str, window: bool = True) -> tuple[LocalObjective, Dnn, torch.Tensor]:
    model = DnnOptions(hidden_layers=2, width=4, activation=activation, context=1).build(D, P, seed=1)
    data = training_set(window)
    evaluator = Evaluator(model, CrossEntropy(), {"train": data, "heldout": data}, torch.device("cpu"))
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    theta += 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(2))
    return LocalObjective(evaluator), model, theta


def dense(objective: LocalObjective, model: Dnn, theta: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss, gradient and JᵀMJ in float64, from the definition, frame by frame."""
    layout, data = objective.layout, objective.evaluator.sets["train"]
    model64 = DnnOptions(2, 4, "relu" if isinstance(model.activation, torch.nn.ReLU) else "sigmoid", 1).build(D, P, 0)
    model64 = model64.double()
    at = theta.double()
    loss, gradient = 0.0, torch.zeros(layout.size, dtype=torch.float64)
    matrix = torch.zeros(layout.size, layout.size, dtype=torch.float64)
    for features, length, start in zip(data.features, LENGTHS, data.starts, strict=False):
        padded = np.concatenate([features[:1], features, features[-1:]])
        for t in range(length):
            x = torch.from_numpy(padded[t : t + 3]).double()[None]

            def outputs(vector: torch.Tensor, x: torch.Tensor = x) -> torch.Tensor:
                return functional_call(model64, layout.views(vector), (x,))["output"][0, 0]

            y, jacobian = outputs(at), torch.autograd.functional.jacobian(outputs, at)
            p, target = torch.softmax(y, 0), int(data.targets[start + t])
            loss -= float(torch.log(p[target]))
            gradient += jacobian.T @ (p - torch.nn.functional.one_hot(torch.tensor(target), P))
            matrix += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return loss, gradient, matrix


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


SAMPLES = [Sample("train", minibatch_frames=7), Sample("train", minibatch_frames=26, whole_utterances=True)]


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize(("window", "sample"), [(True, SAMPLES[0]), (False, SAMPLES[1])])
def test_loss_gradient_and_products_equal_the_dense_ones(activation: str, window: bool, sample: Sample) -> None:
    objective, model, theta = objective_of(activation, window)
    loss, gradient, matrix = dense(objective, model, theta)
    answer = objective.gradient(theta, sample)
    assert answer.frames == sum(LENGTHS) == objective.loss(theta, sample).frames
    assert answer.value == pytest.approx(loss, rel=1e-6)
    assert objective.loss(theta, sample).value == pytest.approx(loss, rel=1e-6)
    assert close(answer.vector, gradient) <= 1e-5
    generator = torch.Generator().manual_seed(0)
    with objective.linearize(theta, sample) as lin:
        for _ in range(5):
            v = torch.randn(theta.shape, generator=generator)
            assert close(lin.product(v), matrix @ v.double()) <= 1e-5


def test_products_are_symmetric_and_positive() -> None:
    objective, _, theta = objective_of("sigmoid")
    generator = torch.Generator().manual_seed(0)
    with objective.linearize(theta, SAMPLES[0]) as lin:
        for _ in range(10):
            u, v = (torch.randn(theta.shape, generator=generator) for _ in range(2))
            gu, gv = lin.product(u), lin.product(v)
            assert float(u @ gv) == pytest.approx(float(v @ gu), rel=1e-4, abs=1e-5)
            assert float(v @ gv) >= 0


def test_jacobian_is_its_transpose_and_the_difference_quotient() -> None:
    objective, model, theta = objective_of("sigmoid")
    batch = objective.evaluator.sets["train"].batch(objective.evaluator.plan(SAMPLES[0])[0], 1, 1)
    layout = objective.layout
    linearizer = Linearizer(lambda parameters, inputs: functional_call(model, parameters, inputs))
    jacobian = linearizer.at(layout.views(theta)).linearize((batch.x_BWD,))
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(theta.shape, generator=generator)
    u = torch.randn(jacobian.outputs["output"].shape, generator=generator)
    jv = jacobian.forward(layout.views(v))["output"]
    assert float((u * jv).sum()) == pytest.approx(
        float(layout.flatten(jacobian.transposed({"output": u})) @ v), rel=1e-4
    )
    model64, step = model.double(), 1e-5

    def outputs(at: torch.Tensor) -> torch.Tensor:
        return functional_call(model64, layout.views(at), (batch.x_BWD.double(),))["output"]

    quotient = (outputs(theta.double() + step * v) - outputs(theta.double() - step * v)) / (2 * step)
    assert close(jv, quotient.detach()) <= 1e-5


def test_a_closed_linearisation_answers_no_more() -> None:
    objective, _, theta = objective_of("relu")
    with objective.linearize(theta, SAMPLES[0]) as lin:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        lin.product(theta)


def test_a_model_without_forward_derivative_is_refused_by_name() -> None:
    lstm = torch.nn.LSTM(D, 4)
    parameters = dict(lstm.named_parameters())
    x = torch.randn(6, 1, D)
    with pytest.raises(InputError, match=r"lstm|rnn"):
        Linearizer(lambda p, i: {"output": functional_call(lstm, p, i)[0]}).at(parameters).linearize((x,))


def test_utterances_that_turn_non_finite_are_left_out_of_value_gradient_product_and_frames() -> None:
    objective, model, theta = objective_of("relu")
    good = objective.gradient(theta, SAMPLES[0])
    data = objective.evaluator.sets["train"]
    data.features[1] = np.full_like(data.features[1], np.inf)
    said: list[str] = []
    broken = LocalObjective(objective.evaluator, bad_share=0.5, say=said.append)
    answer = broken.gradient(theta, SAMPLES[0])
    assert answer.frames == good.frames - LENGTHS[1]
    assert torch.isfinite(answer.vector).all()
    assert "u1" in said[0]
    without = TrainingSet(
        ["u0", "u2"], [data.features[0], data.features[2]], [data.targets[:9], data.targets[13:]], window=True
    )
    evaluator = Evaluator(model, CrossEntropy(), {"train": without, "heldout": without}, torch.device("cpu"))
    reference = LocalObjective(evaluator)
    assert close(answer.vector, reference.gradient(theta, SAMPLES[0]).vector) <= 1e-6
    with broken.linearize(theta, SAMPLES[0]) as lin, reference.linearize(theta, SAMPLES[0]) as expected:
        assert lin.frames == expected.frames
        assert close(lin.product(theta), expected.product(theta)) <= 1e-6
    assert broken.loss(theta, SAMPLES[0]).value == pytest.approx(answer.value)
    broken.begin_update()
    assert broken.loss(theta, SAMPLES[0]).value == float("inf")  # a candidate is rejected, not mended
    strict = LocalObjective(objective.evaluator, bad_share=0.1, say=said.append)
    with pytest.raises(InputError, match="u1"):
        strict.gradient(theta, SAMPLES[0])
