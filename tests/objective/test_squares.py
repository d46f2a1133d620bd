"""Sums of squared gradients against one float64 gradient by autograd for each utterance, each minibatch."""

from typing import Any

import pytest
import torch
from torch.func import functional_call

from asr_hf.data.plan import Sample
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.objective.local import LocalObjective

MODELS = {
    "dnn": DnnOptions(hidden_layers=2, width=6, activation="sigmoid", context=1),
    "tdnn": TdnnOptions(contexts=[[-1, 0, 1], [-3, 0]], width=5, activation="tanh", subsampling=3),
    "lstm": LstmOptions(layers=1, cells=5, bidirectional=True),
}
UTTERANCES = Sample("train", "utterances", minibatch_frames=1, whole_utterances=True, purpose="curvature")


def squares_by_autograd(objective: LocalObjective, options: Any, theta: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Σ over minibatches of (∇ of its loss)², in float64."""
    evaluator, total = objective.evaluator, torch.zeros(theta.numel(), dtype=torch.float64)
    model = options.build(3, 5, seed=1).double().eval()
    for minibatch in evaluator.plan(sample):
        batch = evaluator.sets["train"].batch(minibatch, model.left_context, model.right_context, model.subsampling)
        at = theta.double().requires_grad_()
        outputs = functional_call(model, objective.layout.views(at), (batch.x_BWD.double(), batch.mask_BT))["output"]
        log_p = torch.log_softmax(outputs, -1).gather(-1, batch.target_BT[..., None])[..., 0]
        (gradient,) = torch.autograd.grad(-(log_p * batch.mask_BT).sum(), at)
        total += gradient**2
    return total


@pytest.mark.parametrize("name", MODELS)
def test_squares_per_utterance(objective_of, name: str) -> None:
    objective, theta = objective_of(MODELS[name])
    assert [m.pieces.tolist()[0][2] for m in objective.evaluator.plan(UTTERANCES)] == [31, 27, 20, 12, 9]
    answer = objective.squared_gradients(theta, UTTERANCES)
    assert answer.squares is not None
    assert answer.squares.dtype == torch.float32
    torch.testing.assert_close(
        answer.squares.double(), squares_by_autograd(objective, MODELS[name], theta, UTTERANCES), rtol=2e-4, atol=1e-7
    )
    plain = objective.gradient(theta, UTTERANCES)
    assert torch.equal(answer.vector, plain.vector)
    assert (answer.value, answer.frames) == (plain.value, plain.frames)
    assert plain.squares is None
    assert objective.account.equivalents["gradient"] == pytest.approx(1.0)  # the statistic is not counted


def test_squares_per_minibatch_beside_a_gradient(objective_of) -> None:
    objective, theta = objective_of(MODELS["dnn"])
    frames = Sample("train", "frames", 0.6, 10, seed=4)
    answer = objective.gradient(theta, frames, squares=True)
    assert answer.squares is not None
    torch.testing.assert_close(
        answer.squares.double(), squares_by_autograd(objective, MODELS["dnn"], theta, frames), rtol=2e-4, atol=1e-7
    )
