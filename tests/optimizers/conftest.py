"""A small objective that all optimisers are tested on, and its matrices made by autograd, utterance by utterance."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.data.minibatch import TrainingSet
from asr_hf.models.dnn import DnnOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.layout import Layout
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Sum, VectorSum


class Scripted:
    """An objective of 4 minibatches an epoch, whose held-out losses are written down; its gradient is 1 everywhere.

    Attributes:
        visited: where it was asked for a gradient.
    """

    def __init__(self, heldout: list[float]) -> None:
        self.heldout, self.visited, self.account, self.layout = list(heldout), [], None, Layout(())
        self.frame_model = self.windowed = True
        self.normalisations, self.penalty, self.chunk, self.subsampling = 0, None, 0, 1

    def begin_update(self) -> None: ...

    def minibatches(self, sample) -> int:
        return 4

    def loss(self, theta, sample) -> Sum:
        return Sum(self.heldout.pop(0), 1)

    def gradient(self, theta, sample, batch_statistics=False) -> VectorSum:
        self.visited.append(theta.clone())
        return VectorSum(torch.ones_like(theta), 1.0, 1)


@pytest.fixture
def scripted() -> type[Scripted]:
    """scripted(held-out losses): what a schedule does depends on them alone."""
    return Scripted


Small = Callable[..., tuple[LocalObjective, torch.Tensor]]


@pytest.fixture(scope="session")
def small_objective() -> Small:
    """small_objective(curvature, model): 30 + 5 utterances of 30 frames, 6 pdfs; the objective and θ₀."""

    def make(curvature: CurvatureOptions | None = None, model: Any = None) -> tuple[LocalObjective, torch.Tensor]:
        random = np.random.default_rng(1)
        means = random.normal(size=(6, 5))

        def utterances(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
            targets = [random.integers(0, 6, size=30).astype(np.int32) for _ in range(count)]
            return [(means[t] + random.normal(size=(30, 5))).astype(np.float32) for t in targets], targets

        options = model or DnnOptions(hidden_layers=2, width=16, activation="sigmoid", context=1, norm="none")
        sets = {
            name: TrainingSet([f"{name}{i}" for i in range(count)], *utterances(count), window=options.frame_model)
            for name, count in (("train", 30), ("heldout", 5))
        }
        built = options.build(5, 6, seed=0)
        evaluator = Evaluator(built, CrossEntropy(), sets, torch.device("cpu"), curvature)
        return LocalObjective(evaluator), evaluator.layout.flatten(dict(built.named_parameters())).detach().clone()

    return make
