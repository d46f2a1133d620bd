"""An objective on a small made-up training set."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.data.minibatch import TrainingSet
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective

PDFS, DIM = 5, 3
TRAIN, HELDOUT = (20, 12, 31, 9, 27), (14, 6)


def utterances(lengths: Sequence[int], seed: int, window: bool) -> TrainingSet:
    random = np.random.default_rng(seed)
    features = [random.normal(size=(n, DIM)).astype(np.float32) for n in lengths]
    targets = [random.integers(0, PDFS, size=n).astype(np.int32) for n in lengths]
    return TrainingSet([f"u{i}" for i in range(len(lengths))], features, targets, window)


@pytest.fixture
def objective_of() -> Callable[[Any], tuple[LocalObjective, torch.Tensor]]:
    """objective_of(model options): the objective, and a θ."""

    def made(options: Any) -> tuple[LocalObjective, torch.Tensor]:
        model, window = options.build(DIM, PDFS, seed=1), options.frame_model
        sets = {"train": utterances(TRAIN, 1, window), "heldout": utterances(HELDOUT, 2, window)}
        evaluator = Evaluator(model, CrossEntropy(), sets, torch.device("cpu"))
        theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
        theta += 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(2))
        return LocalObjective(evaluator, bad_share=0.5), theta

    return made
