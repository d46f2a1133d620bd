"""The LSTM against torch's nn.LSTM: projection, both directions, delay, chunks, padding, norms and dropout.

Shapes: B rows, W input frames, T output frames, D feature dimension, P pdfs.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from asr_hf.errors import OptionError
from asr_hf.models.lstm import Lstm, LstmOptions
from asr_hf.models.saved import MODELS, model_name

D, P, CELLS, LAYERS = 5, 6, 7, 2


def _build(**options: object) -> Lstm:
    return LstmOptions(layers=LAYERS, cells=CELLS, **options).build(D, P, seed=3).double()  # type: ignore[arg-type]


def _x(rows: int = 3, frames: int = 9) -> torch.Tensor:
    return torch.randn(rows, frames, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _reference(model: Lstm, bidirectional: bool, projection: int) -> nn.LSTM:
    """torch's network with the model's weights."""
    reference = nn.LSTM(
        D, CELLS, LAYERS, batch_first=True, bidirectional=bidirectional, proj_size=projection, dtype=torch.float64
    )
    directions = {"": "forwards", "_reverse": "backwards"} if bidirectional else {"": "forwards"}
    with torch.no_grad():
        for index in range(LAYERS):
            for suffix, direction in directions.items():
                ours = f"lstm{index + 1}.{direction}"
                values = {
                    "weight_ih": model.get_parameter(f"{ours}.input.weight"),
                    "weight_hh": model.get_parameter(f"{ours}.recurrent"),
                    "bias_ih": model.get_parameter(f"{ours}.input.bias"),
                    "bias_hh": torch.zeros(4 * CELLS),
                }
                if projection:
                    values["weight_hr"] = model.get_parameter(f"{ours}.projection")
                for name, value in values.items():
                    reference.get_parameter(f"{name}_l{index}{suffix}").copy_(value)
    return reference


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("projection", [0, 3])
def test_outputs_states_and_gradients_are_those_of_torch(bidirectional: bool, projection: int) -> None:
    model = _build(bidirectional=bidirectional, projection=projection, norm="none")
    reference, x = _reference(model, bidirectional, projection), _x()
    outputs = model(x, states=("lstm2",))
    h = reference(x)[0]
    assert set(outputs) == {"output", "lstm2"}
    assert torch.allclose(outputs["lstm2"], h, rtol=0, atol=1e-13)
    assert torch.allclose(outputs["output"], model.output(h), rtol=0, atol=1e-13)
    outputs["output"].square().sum().backward()
    model.output(h).square().sum().backward()
    ours = model.get_parameter("lstm1.forwards.recurrent").grad
    assert torch.allclose(ours, reference.weight_hh_l0.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_subsampled_layers_run_on_three_stacked_frames(bidirectional: bool) -> None:
    model = _build(subsampling=3, chunk=9, chunk_left=4, chunk_right=5 * bidirectional, bidirectional=bidirectional)
    plain = LstmOptions(layers=LAYERS, cells=CELLS, bidirectional=bidirectional).build(3 * D, P, seed=3).double()
    assert (model.left_context, model.right_context) == (3 * 2 + 1, 3 * 2 + 1 if bidirectional else 1)
    around = model.left_context + model.right_context + 1
    x = _x(frames=around + 3 * 4)  # five output frames
    outputs = model(x, states=("lstm1",))
    stacked = torch.stack([x[:, 3 * i : 3 * i + 3].flatten(1) for i in range(x.shape[1] // 3)], dim=1)
    expected = plain(stacked, states=("lstm1",))
    assert torch.allclose(outputs["output"], expected["output"][:, 2:7], rtol=0, atol=1e-13)
    assert torch.allclose(outputs["lstm1"], expected["lstm1"], rtol=0, atol=1e-13)


def test_a_second_output_comes_with_its_layer() -> None:
    model = _build()
    alone = model(_x())
    assert set(alone) == {"output"}
    model.add_branch(seed=1)
    both = model.double()(_x(), states=("lstm2",))
    assert set(both) == {"output", "cross_entropy", "lstm2"}
    assert torch.equal(both["output"], alone["output"])
    assert model.block_of("cross_entropy.weight") == model.block_of("output.weight") == "lstm2"


def test_a_delayed_output_is_read_that_many_frames_later() -> None:
    plain, delayed = _build(), _build(delay=3)
    x = _x(frames=12)
    assert (delayed.left_context, delayed.right_context) == (0, 3)
    assert torch.allclose(delayed(x)["output"], plain(x)["output"][:, 3:], rtol=0, atol=1e-13)


def test_a_chunk_starts_at_zero_state_before_its_left_context() -> None:
    plain, chunked = _build(), _build(chunk=6, chunk_left=4, delay=2)
    x = _x(frames=4 + 6 + 2)
    assert (chunked.left_context, chunked.right_context, chunked.chunk) == (4, 2, 6)
    assert torch.allclose(chunked(x)["output"], plain(x)["output"][:, 6:12], rtol=0, atol=1e-13)
    assert chunked.uses_per_frame("lstm1.forwards.recurrent") == pytest.approx(12 / 6)
    assert chunked.uses_per_frame("output.weight") == 1.0


def test_a_bidirectional_chunk_warms_up_from_both_sides() -> None:
    plain = _build(bidirectional=True)
    chunked = _build(bidirectional=True, chunk=6, chunk_left=4, chunk_right=3)
    x = _x(frames=4 + 6 + 3)
    assert torch.allclose(chunked(x)["output"], plain(x)["output"][:, 4:10], rtol=0, atol=1e-13)


PADDED = [
    {},
    {"projection": 3, "delay": 2},
    {"bidirectional": True},
    {"bidirectional": True, "projection": 3, "chunk": 6, "chunk_left": 2, "chunk_right": 1},
    {"bidirectional": True, "norm": "batch"},
    {"norm": "none"},
]


@pytest.mark.parametrize("options", PADDED, ids=str)
def test_padding_changes_no_real_frame(options: dict) -> None:
    model = _build(**options).eval()
    context = model.left_context + model.right_context
    lengths = [6, 2, 5]
    x = _x(3, 6 + context)
    mask = torch.arange(6)[None, :] < torch.tensor(lengths)[:, None]
    output = model(x, mask)["output"]
    assert output.shape == (3, 6, P)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, : length + context])["output"][0]
        assert torch.allclose(output[row, :length], alone, rtol=0, atol=1e-13)


def test_layer_norm_acts_between_layers() -> None:
    normed, plain = _build(), _build(norm="none")
    x = _x()
    assert torch.equal(normed(x, states=("lstm1",))["lstm1"], plain(x, states=("lstm1",))["lstm1"])
    h = normed(x, states=("lstm2",))["lstm2"]
    standard = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(normed(x)["output"], normed.output(standard), rtol=0, atol=1e-12)


def test_dropout_multiplies_what_goes_up() -> None:
    model = _build(dropout=0.3, projection=3, norm="none", bidirectional=True)
    assert model.dropouts == {"lstm1": (6, 0.3), "lstm2": (6, 0.3)}
    keep = {name: torch.ones(3, 1, 6, dtype=torch.float64) for name in model.dropouts}
    x = _x()
    assert torch.equal(model(x, keep=keep)["output"], model(x)["output"])
    keep["lstm2"] = torch.zeros(3, 1, 6, dtype=torch.float64)
    assert torch.allclose(model(x, keep=keep)["output"], model.output.bias.expand(3, 9, P))
    keep["lstm2"] = 2 * torch.ones(3, 1, 6, dtype=torch.float64)
    keep["lstm2"][1] = 0
    dropped = model(x, keep=keep, states=("lstm2",))
    assert torch.allclose(dropped["output"], model.output(dropped["lstm2"] * keep["lstm2"]), rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in forward_ad
@pytest.mark.parametrize("options", PADDED, ids=str)
def test_the_derivative_is_that_of_finite_differences(options: dict) -> None:
    model = _build(**options).eval()
    x = _x(3, 6 + model.left_context + model.right_context)
    mask = torch.arange(6)[None, :] < torch.tensor([6, 2, 5])[:, None]
    theta = {name: value.detach() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(5)
    v = {name: torch.randn(value.shape, dtype=value.dtype, generator=generator) for name, value in theta.items()}

    def output(move: Callable[[str], torch.Tensor]) -> torch.Tensor:
        return functional_call(model, {name: move(name) for name in theta}, (x, mask))["output"][mask]

    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(output(lambda name: forward_ad.make_dual(theta[name], v[name]))).tangent
    step = 1e-6
    above, below = (output(lambda name, s=s: theta[name] + s * step * v[name]) for s in (1, -1))
    assert torch.allclose(tangent, (above - below) / (2 * step), rtol=0, atol=1e-6 * float(tangent.abs().max()))


def test_blocks_are_layers_and_the_output_goes_with_the_topmost() -> None:
    model = _build(bidirectional=True)
    blocks = {name: model.block_of(name) for name, _ in model.named_parameters()}
    assert set(blocks.values()) == {"lstm1", "lstm2"}
    assert blocks["output.weight"] == blocks["lstm2.backwards.recurrent"] == "lstm2"
    assert blocks["lstm1.norm.weight"] == "lstm1"


def test_initial_weights_come_from_the_seed_and_the_literature() -> None:
    model, again = _build(projection=3), _build(projection=3)
    for name, value in model.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
    i, f, g, o = model.get_parameter("lstm1.forwards.input.bias").detach().chunk(4)
    assert (f == 1).all()
    assert not torch.cat([i, g, o]).any()
    for U_HR in model.get_parameter("lstm2.forwards.recurrent").detach().chunk(4):
        assert torch.allclose(U_HR.t() @ U_HR, torch.eye(3, dtype=torch.float64), atol=1e-5)
    bound = (6 / (D + CELLS)) ** 0.5
    weight = model.get_parameter("lstm1.forwards.input.weight").detach().abs()
    assert 0.7 * bound < float(weight.max()) <= bound


def test_it_is_registered_and_knows_its_chunk() -> None:
    assert model_name(LstmOptions()) == "lstm"
    assert MODELS["lstm"] is LstmOptions
    assert (LstmOptions().chunk, LstmOptions(chunk=20).chunk, _build(chunk=20).chunk) == (0, 20, 20)
    assert (LstmOptions.frame_model, Lstm.frame_model) == (False, False)


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("layers", {"layers": 0}),
        ("cells", {"cells": 0}),
        ("projection", {"projection": -1}),
        ("delay", {"delay": -1}),
        ("delay", {"delay": 2, "bidirectional": True}),
        ("chunk", {"chunk": -1}),
        ("chunk_left", {"chunk_left": 10}),
        ("chunk_right", {"chunk": 20, "chunk_right": 10}),
        ("norm", {"norm": "group"}),
        ("dropout", {"dropout": 1.0}),
    ],
)
def test_impossible_options_are_refused(option: str, options: dict) -> None:
    with pytest.raises(OptionError, match=f"model.{option}"):
        LstmOptions(**options)
