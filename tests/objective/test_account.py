"""What work costs, against counts by hand: gradient-equivalents, a block's share of the flops, vectors."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from asr_hf.data.plan import Sample
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.rnn import RnnOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.objective.objective import Account, Matrix
from asr_hf.optimizers.samples import whole_set

ALL, HELDOUT = Sample("train", minibatch_frames=16), Sample("heldout", minibatch_frames=16)
DNN = DnnOptions(hidden_layers=2, width=7, context=1)


def test_each_evaluation_costs_what_it_covers(objective_of) -> None:
    objective, theta = objective_of(DNN)
    frames, heldout = objective.frames("train"), objective.frames("heldout")
    assert (frames, heldout) == (99, 20)
    part = Sample("train", "frames", 0.2, 8, seed=3, purpose="curvature")  # 20 of 99 frames
    objective.gradient(theta, ALL)
    objective.loss(theta, HELDOUT)
    objective.loss(theta, ALL)
    with objective.linearize(theta, part) as lin:
        for _ in range(3):
            lin.product(theta)
    objective.squared_gradients(theta, ALL)
    expected = {
        "gradient": 1.0,
        "evaluation": (20 + 99) / 99 / 3,
        "linearisation": 20 / 99 / 3,
        "products": 3 * 20 / 99 * 4 / 3,
    }
    assert objective.account.equivalents == pytest.approx(expected)
    assert objective.account.gradient_equivalents == pytest.approx(sum(expected.values()))
    assert objective.account.seconds["statistics"] > 0  # timed, not counted


def test_a_subsampled_model_costs_by_the_frames_of_its_features(objective_of) -> None:
    objective, theta = objective_of(TdnnOptions(contexts=[[-1, 0, 1], [-3, 0, 3]], width=6, subsampling=3))
    answer = objective.gradient(theta, whole_set(objective, "train", 40))
    assert answer.frames < 99 / 2
    assert objective.account.gradient_equivalents == pytest.approx(1.0)


def test_an_evaluation_that_is_repeated_without_bad_utterances_counts_twice(objective_of) -> None:
    objective, theta = objective_of(DNN)
    data = objective.evaluator.sets["train"]
    data.features[3] = np.full_like(data.features[3], np.inf)
    objective.gradient(theta, ALL)
    assert objective.account.equivalents["gradient"] == pytest.approx(2.0)
    assert objective.account.vectors == 1 + 2  # θ once, each gradient


def test_vectors_are_counted_as_a_cluster_sends_them(objective_of) -> None:
    objective, theta = objective_of(DNN)

    def sent(evaluate) -> int:
        objective.account = Account()
        evaluate()
        return objective.account.vectors

    assert sent(lambda: objective.gradient(theta, ALL)) == 2  # θ and the gradient
    assert sent(lambda: objective.loss(theta, ALL)) == 0  # the same θ
    assert sent(lambda: objective.loss(theta + 1.0, ALL)) == 1
    assert sent(lambda: objective.loss(theta, ALL)) == 1
    theta += 0.1
    assert sent(lambda: objective.gradient(theta, ALL, squares=True)) == 3
    objective.layout.views(theta)["output.bias"].zero_()
    with objective.linearize(theta, ALL) as lin:
        assert sent(lambda: objective.loss(theta, ALL)) == 0  # sent to be linearised at
        assert sent(lambda: lin.product(theta, Matrix(groups=objective.layout.partition(2)))) == 2


def product_costs(objective, theta: torch.Tensor, sample: Sample, *groups: tuple[str, ...]) -> float:
    """Gradient-equivalents of one product."""
    with objective.linearize(theta, sample) as lin:
        objective.account = Account()
        lin.product(theta, Matrix(groups=groups))
    return objective.account.equivalents["products"]


def test_a_block_of_a_dnn_costs_its_share_of_the_multiplications(objective_of) -> None:
    """J·v of layer k: ẆX of k, and W of all layers above; Jᵀ·u: Wᵀ of all above, and the gradient of k's weights."""
    objective, theta = objective_of(DNN)
    weights = {"layer1": 9 * 7, "layer2": 7 * 7, "output": 7 * 5}
    names = list(weights)
    # of all layers: ẆX and Wẏ forwards, the weights' gradient and Wᵀu backwards; layer 1's input has neither ẏ nor u
    whole = 4 * sum(weights.values()) - 2 * weights["layer1"]

    def by_hand(group: tuple[str, ...]) -> Fraction:
        lowest = min(names.index(name) for name in group)
        through = sum(weights[name] for name in names[lowest + 1 :])
        return Fraction(2 * sum(weights[name] for name in group) + 2 * through, whole)

    assert product_costs(objective, theta, ALL) == pytest.approx(4 / 3)
    for groups in [
        (("layer1",),),
        (("layer2",),),
        (("output",),),
        (("layer1",), ("layer2", "output")),
        (tuple(names),),
    ]:
        share = sum(map(by_hand, groups))
        assert product_costs(objective, theta, ALL, *groups) == pytest.approx(4 / 3 * float(share), rel=1e-12)
    part = Sample("train", "frames", 0.2, 8, seed=3)
    assert product_costs(objective, theta, part, ("layer2",)) == pytest.approx(
        4 / 3 * 20 / 99 * float(by_hand(("layer2",)))
    )


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_a_block_of_a_recurrent_model_costs_its_share_of_the_multiplications(objective_of, kind: str) -> None:
    """Every frame has the products of a DNN's layer, every frame but the first the recurrent ones."""
    frames = 32  # of the first minibatch, the longest utterance, padded
    if kind == "rnn":
        objective, theta = objective_of(RnnOptions(layers=2, width=6, norm="none"))
        inputs, recurrent, output = [frames * 3 * 6, frames * 6 * 6], (frames - 1) * 6 * 6, frames * 6 * 5
    else:
        objective, theta = objective_of(LstmOptions(layers=2, cells=6, projection=4, norm="none"))
        inputs, output = [frames * 3 * 24, frames * 4 * 24], frames * 4 * 5
        recurrent = (frames - 1) * 4 * 24 + frames * 6 * 4  # and the projection
    lower, upper = objective.layout.blocks  # the output belongs to the upper one
    of_upper = 2 * inputs[1] + 4 * recurrent + 4 * output
    of_lower = 2 * inputs[0] + 4 * recurrent + 2 * (inputs[1] + recurrent + output)
    whole = 2 * inputs[0] + 4 * (recurrent + inputs[1] + recurrent + output)
    sample = whole_set(objective, "train", 40)
    for groups, cost in [([(lower,)], of_lower), ([(upper,)], of_upper), ([(lower,), (upper,)], of_lower + of_upper)]:
        assert product_costs(objective, theta, sample, *groups) == pytest.approx(4 / 3 * cost / whole, rel=1e-12)
    assert product_costs(objective, theta, sample, (lower, upper)) == pytest.approx(4 / 3, rel=1e-12)
