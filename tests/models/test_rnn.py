"""The standard recurrent network against torch's nn.RNN, and what its options do.

Shapes: B rows, W input frames, D feature dimension, P pdfs.
"""

import pytest
import torch
from torch import nn

from asr_hf.errors import OptionError
from asr_hf.models.rnn import Rnn, RnnOptions
from asr_hf.models.saved import MODELS, model_name

D, P, WIDTH, LAYERS = 5, 6, 7, 2


def _build(**options: object) -> Rnn:
    return RnnOptions(layers=LAYERS, width=WIDTH, **options).build(D, P, seed=3)  # type: ignore[arg-type]


def _reference(model: Rnn, bidirectional: bool, activation: str) -> nn.RNN:
    """torch's network with the model's weights."""
    reference = nn.RNN(
        D, WIDTH, LAYERS, nonlinearity=activation, batch_first=True, bidirectional=bidirectional, dtype=torch.float64
    )
    directions = {"": "forwards", "_reverse": "backwards"} if bidirectional else {"": "forwards"}
    with torch.no_grad():
        for index in range(LAYERS):
            for suffix, direction in directions.items():
                ours = f"rnn{index + 1}.{direction}"
                values = {
                    "weight_ih": model.get_parameter(f"{ours}.input.weight"),
                    "weight_hh": model.get_parameter(f"{ours}.recurrent"),
                    "bias_ih": model.get_parameter(f"{ours}.input.bias"),
                    "bias_hh": torch.zeros(WIDTH),
                }
                for name, value in values.items():
                    reference.get_parameter(f"{name}_l{index}{suffix}").copy_(value)
    return reference


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_outputs_and_states_are_those_of_torch(bidirectional: bool, activation: str) -> None:
    model = _build(bidirectional=bidirectional, activation=activation, norm="none").double()
    x = torch.randn(3, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = model(x, states=("rnn2",))
    h = _reference(model, bidirectional, activation)(x)[0]
    assert set(outputs) == {"output", "rnn2"}
    assert torch.allclose(outputs["rnn2"], h, rtol=0, atol=1e-13)
    assert torch.allclose(outputs["output"], model.output(h), rtol=0, atol=1e-13)


def test_initial_weights_come_from_the_seed_and_the_literature() -> None:
    model, again = _build(), _build()
    for name, value in model.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
    other = RnnOptions(layers=LAYERS, width=WIDTH).build(D, P, seed=4)
    assert not torch.equal(model.output.weight, other.output.weight)
    U = model.get_parameter("rnn1.forwards.recurrent").detach()
    assert torch.allclose(U @ U.t(), torch.eye(WIDTH), atol=1e-5)
    bound = (6 / (D + WIDTH)) ** 0.5
    weight = model.get_parameter("rnn1.forwards.input.weight").detach().abs()
    assert 0.7 * bound < float(weight.max()) <= bound


def test_it_is_registered_and_whole_utterances_are_its_pieces() -> None:
    assert model_name(RnnOptions()) == "rnn"
    assert MODELS["rnn"] is RnnOptions
    model = _build()
    assert (model.chunk, RnnOptions.chunk, model.frame_model, RnnOptions.frame_model) == (0, 0, False, False)
    assert (model.left_context, model.right_context) == (0, 0)
    assert {model.uses_per_frame(name) for name, _ in model.named_parameters()} == {1.0}


@pytest.mark.parametrize(
    ("option", "value"), [("layers", 0), ("width", 0), ("activation", "gelu"), ("norm", "group"), ("dropout", 1.0)]
)
def test_impossible_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"model.{option}"):
        RnnOptions(**{option: value})  # type: ignore[arg-type]
