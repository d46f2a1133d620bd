"""SGD with momentum and Adam against torch's own, and the newbob schedule."""

import math

import numpy as np
import pytest
import torch

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.data.minibatch import TrainingSet
from asr_hf.errors import OptionError
from asr_hf.models.tdnnf import TdnnfOptions
from asr_hf.objective.evaluator import Evaluator
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
        optimizer.move(gradient.clone())
        assert torch.allclose(optimizer.state.theta, parameter.detach(), rtol=1e-4, atol=1e-6)


class Scripted:
    """An objective whose held-out losses are written down: what newbob does depends on them alone."""

    def __init__(self, heldout: list[float]) -> None:
        self.heldout = list(heldout)
        self.account = None
        self.frame_model = self.windowed = True
        self.normalisations, self.penalty, self.chunk, self.subsampling = 0, None, 0, 1

    def begin_update(self) -> None: ...

    def minibatches(self, sample) -> int:
        return 4

    def loss(self, theta, sample):
        from asr_hf.objective.objective import Sum

        return Sum(self.heldout.pop(0), 1)

    def gradient(self, theta, sample, batch_statistics=False):
        from asr_hf.objective.objective import VectorSum

        return VectorSum(torch.ones_like(theta), 1.0, 1)


def test_newbob_halves_once_gains_are_small_and_stops_once_they_vanish() -> None:
    heldout = [2.0, 1.0, 0.999, 0.9, 0.8999]  # start; a good epoch; a poor one: halve from now on; good; poor: stop
    optimizer = SgdOptions(rate=0.4, momentum=0.0).start(torch.zeros(3), seed=0)
    objective, rates = Scripted(heldout), []
    while not optimizer.state.finished:
        report = optimizer.step(objective)
        rates.append(report.step)
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.1])
    assert "newbob" in optimizer.state.finished
    assert optimizer.state.steps == 16


def test_an_epoch_that_hurts_is_taken_back() -> None:
    optimizer = SgdOptions(rate=0.1, momentum=0.0, epochs=2).start(torch.zeros(3), seed=0)
    objective = Scripted([2.0, 1.0, math.inf])
    optimizer.step(objective)
    after_one = optimizer.state.theta.clone()
    report = optimizer.step(objective)
    assert not report.accepted
    assert torch.equal(optimizer.state.theta, after_one)
    assert torch.equal(optimizer.best()[0], after_one)


def test_the_gradient_is_clipped() -> None:
    optimizer = SgdOptions(rate=1.0, momentum=0.0, clip=0.5, epochs=1).start(torch.zeros(4), seed=0)
    optimizer.step(Scripted([2.0, 1.0]))
    assert float(optimizer.state.theta.norm()) == pytest.approx(4 * 0.5)


def test_impossible_options_are_refused() -> None:
    for options, name, value in (
        (SgdOptions, "momentum", 1.0),
        (AdamOptions, "beta2", -0.1),
        (SgdOptions, "rate", 0.0),
    ):
        with pytest.raises(OptionError, match=name):
            options(**{name: value})


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
