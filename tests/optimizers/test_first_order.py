"""SGD with momentum and Adam against torch's own, and what first-order methods share."""

import numpy as np
import pytest
import torch

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.data.minibatch import TrainingSet
from asr_hf.errors import OptionError
from asr_hf.models.tdnnf import TdnnfOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.layout import Layout
from asr_hf.objective.local import LocalObjective
from asr_hf.optimizers.first_order import AdamOptions, SgdOptions


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (SgdOptions(rate=0.1, momentum=0.9), lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9)),
        (AdamOptions(rate=0.01), lambda p: torch.optim.Adam([p], lr=0.01)),
    ],
)
def test_steps_are_those_of_torch(options, theirs) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=generator)
    parameter = torch.nn.Parameter(theta.clone())
    reference, optimizer = theirs(parameter), options.start(theta.clone(), seed=0)
    for _ in range(20):
        gradient = torch.randn(50, generator=generator)
        parameter.grad = gradient.clone()
        reference.step()
        optimizer.state.steps += 1
        optimizer.move(gradient.clone(), 0.0, Layout(()))
        assert torch.allclose(optimizer.state.theta, parameter.detach(), rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped(scripted) -> None:
    optimizer = SgdOptions(rate=1.0, momentum=0.0, clip=0.5, epochs=1).start(torch.zeros(4), seed=0)
    optimizer.step(scripted([2.0, 1.0]))
    assert float(optimizer.state.theta.norm()) == pytest.approx(4 * 0.5)


def test_impossible_options_are_refused() -> None:
    for options, name, value in (
        (SgdOptions, "momentum", 1.0),
        (AdamOptions, "beta2", -0.1),
        (SgdOptions, "rate", 0.0),
        (AdamOptions, "rate", 1e300),
        (SgdOptions, "weight_decay", 1e300),
    ):
        with pytest.raises(OptionError, match=name):
            options(**{name: value})


def test_a_rate_that_no_run_can_have_is_a_fault() -> None:
    state = AdamOptions().start(torch.zeros(4), seed=0).state
    assert state.fault() == ""
    for state.rate in (0.0, 1e300):
        assert state.fault() == f"rate is {state.rate}"


def test_the_bottlenecks_of_a_tdnnf_stay_semi_orthogonal() -> None:
    random = np.random.default_rng(0)
    features = [random.normal(size=(60, 5)).astype(np.float32) for _ in range(8)]
    data = TrainingSet(
        [f"u{i}" for i in range(8)],
        features,
        [random.integers(0, 4, 60).astype(np.int32) for _ in range(8)],
        window=False,
    )
    model = TdnnfOptions(width=12, bottleneck=4, strides=[1]).build(5, 4, seed=0)
    evaluator = Evaluator(model, CrossEntropy(), {"train": data, "heldout": data}, torch.device("cpu"))
    objective = LocalObjective(evaluator)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    distances = {}
    for every in (1, 1_000_000):  # with the constraint's step after each step, and without it
        optimizer = SgdOptions(rate=0.1, minibatch_frames=60, constraint_steps=every).start(theta.clone(), seed=0)
        for _ in range(8):
            optimizer._one_step(objective, 1)
        (name,) = objective.penalty.names
        weight = objective.layout.views(optimizer.state.theta)[name].double()
        gram = weight @ weight.T
        scale = (gram**2).sum() / gram.trace()
        distances[every] = float((gram / scale - torch.eye(4)).norm())
    assert distances[1] < 0.05
    assert distances[1_000_000] > 3 * distances[1]
