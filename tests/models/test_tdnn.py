"""TDNN and TDNN-F against an evaluation frame by frame, with padding, subsampling and dropout."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from asr_hf.errors import OptionError
from asr_hf.models.norm import frozen_norms, moments
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.models.tdnnf import TdnnfOptions

D, P, WIDTH = 3, 5, 6
TDNN = TdnnOptions(contexts=[[-2, 0, 1], [-1, 2], [-3, 0, 3], [0]], width=WIDTH)
TDNNF = TdnnfOptions(width=WIDTH, bottleneck=4, strides=[1, 0, 3, 3])
MODELS = pytest.mark.parametrize("options", [TDNN, TDNNF], ids=["tdnn", "tdnnf"])


def build(options: Any, **changes: Any) -> Any:
    """A float64 model with random biases and norms."""
    model = dataclasses.replace(options, **changes).build(D, P, seed=0).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("bias") or ".norm." in name:
                value.uniform_(0.5, 1.5, generator=generator)
    return model


def windows(model: Any, rows: int, frames: int) -> torch.Tensor:
    width = model.left_context + model.subsampling * (frames - 1) + 1 + model.right_context
    return torch.randn(rows, width, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def normed(layer: torch.nn.Module, h: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(h, (WIDTH,), layer.norm.weight, layer.norm.bias)


def tdnn_frame(model: Any, x_WD: torch.Tensor, depth: int, t: int) -> torch.Tensor:
    """Layer `depth` at input frame t, from the definition: a recursion over the frames that it sees."""
    if depth == 0:
        return x_WD[t]
    layer = model.get_submodule(f"layer{depth}")
    seen = torch.cat([tdnn_frame(model, x_WD, depth - 1, t + offset) for offset in TDNN.contexts[depth - 1]])
    return normed(layer, torch.relu(layer.weight @ seen + layer.bias))


def tdnnf_frame(model: Any, x_WD: torch.Tensor, depth: int, t: int) -> torch.Tensor:
    layer = model.get_submodule(f"layer{depth}")
    if depth == 1:
        return normed(layer, torch.relu(layer.weight @ x_WD[t - 1 : t + 2].flatten() + layer.bias))
    s = TDNNF.strides[depth - 2]

    def at(time: int) -> torch.Tensor:
        return tdnnf_frame(model, x_WD, depth - 1, time)

    def factor(time: int) -> torch.Tensor:
        return layer.bottleneck @ (torch.cat([at(time - s), at(time)]) if s else at(time))

    seen = torch.cat([factor(t), factor(t + s)]) if s else factor(t)
    return normed(layer, torch.relu(layer.weight @ seen + layer.bias)) + 0.66 * at(t)


@pytest.mark.parametrize(
    ("options", "frame", "depth"), [(TDNN, tdnn_frame, 4), (TDNNF, tdnnf_frame, 5)], ids=["tdnn", "tdnnf"]
)
def test_outputs_are_those_of_the_definition_frame_by_frame(options, frame, depth) -> None:
    model = build(options)
    x = windows(model, rows=2, frames=2)
    output = model(x)["output"]
    assert output.shape == (2, 2, P)
    for row in range(2):
        for t in range(2):
            hidden = frame(model, x[row], depth, model.left_context + t)
            assert torch.allclose(output[row, t], model.output.weight @ hidden + model.output.bias)


@MODELS
def test_context_and_frames(options) -> None:
    assert (build(TDNN).left_context, build(TDNN).right_context) == (6, 6)
    assert (build(TDNNF).left_context, build(TDNNF).right_context) == (8, 8)
    for subsampling in (1, 3):
        model = build(options, subsampling=subsampling)
        assert not model.frame_model
        for frames in (1, 2, 5):
            assert model(windows(model, 1, frames))["output"].shape == (1, frames, P)


@MODELS
def test_a_subsampled_model_yields_every_third_frame(options) -> None:
    sparse, full = build(options, subsampling=3), build(options)
    full.load_state_dict(sparse.state_dict())
    x = windows(sparse, rows=2, frames=4)
    assert torch.allclose(sparse(x)["output"], full(x)["output"][:, ::3])


def test_layers_are_evaluated_at_every_third_frame_from_where_that_suffices() -> None:
    model = build(TDNN, subsampling=3)
    states = model(windows(model, 1, 4), states=model.states)
    # from above: [0] and [-3, 0, 3] and [-1, 2] need every third frame; [-2, 0, 1] every frame of the input
    assert [states[name].shape[1] for name in model.states] == [7, 6, 4, 4]
    assert {model.uses_per_frame(name) for name, _ in model.named_parameters()} == {1.0}
    mixed = build(TDNN, subsampling=3, contexts=[[-1, 0, 1], [-1, 0, 1], [0]])
    assert [mixed.rate_of(name) for name in mixed.states] == [3, 1, 1]
    assert mixed.uses_per_frame("layer1.norm.weight") == 3
    assert mixed.uses_per_frame("output.weight") == 1
    factored = build(TDNNF, subsampling=3, strides=[3, 1, 3])
    parameters = ["layer1.weight", "layer2.bottleneck", "layer2.weight", "layer3.bottleneck", "layer3.weight"]
    assert [factored.uses_per_frame(name) for name in parameters] == [3, 3, 3, 3, 1]
    assert factored.block_of("layer2.norm.bias") == factored.block_of("layer2.bottleneck") == "layer2"


@MODELS
@pytest.mark.parametrize("subsampling", [1, 3])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_padding_changes_no_real_frame_and_no_statistic(options, subsampling: int, norm: str) -> None:
    model = build(options, subsampling=subsampling, norm=norm)
    x, frames = windows(model, rows=3, frames=6), (6, 2, 4)
    mask = torch.arange(6) < torch.tensor(frames)[:, None]
    sums: dict[str, list[tuple[torch.Tensor, ...]]] = {name: [] for name in frozen_norms(model)}
    for name, layer in frozen_norms(model).items():
        layer.record = lambda h, m, name=name: sums[name].append(moments(h, m))
    together = model(x, mask)["output"]
    for row, real in enumerate(frames):
        alone = model(x[row : row + 1, : x.shape[1] - subsampling * (6 - real)])["output"]
        assert torch.allclose(together[row, :real], alone[0])
    for whole, *rows in sums.values():
        for index in range(3):
            assert torch.allclose(whole[index], sum(row[index] for row in rows))


@MODELS
def test_dropout_multiplies_the_units_that_the_next_layer_sees(options) -> None:
    model = build(options, norm="none", dropout=0.25)
    assert model.dropouts == dict.fromkeys(model.states, (WIDTH, 0.25))
    assert build(options).dropouts == {}
    x = windows(model, rows=2, frames=3)
    plain = model(x, states=model.states)
    last = model.states[-1]
    factors = torch.tensor([[[0.0, 4 / 3, 0.0, 4 / 3, 4 / 3, 0.0]], [[4 / 3, 0.0, 4 / 3, 0.0, 0.0, 4 / 3]]]).double()
    dropped = model(x, keep={last: factors}, states=model.states)
    assert torch.equal(dropped[last], plain[last])  # a state is what stands before norm and dropout
    lost = (plain[last] * (factors - 1)) @ model.output.weight.T
    assert torch.allclose(dropped["output"], plain["output"] + lost)
    first = model(x, keep={"layer1": torch.zeros(2, 1, WIDTH).double()})["output"]
    assert torch.allclose(first, first[:1, :1].expand_as(first))  # nothing of the input comes through


@MODELS
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch.func itself, with torch 2.11
def test_forward_derivative_is_the_difference_quotient(options) -> None:
    model = build(options, norm="batch", subsampling=3)
    x, mask = windows(model, rows=2, frames=3), torch.tensor([[True, True, True], [True, False, False]])
    at = {name: value.detach() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(5)
    v = {n: torch.randn(t.shape, dtype=torch.float64, generator=generator) for n, t in at.items()}

    def outputs(named: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, named, (x, mask))["output"]

    _, jv = torch.func.jvp(outputs, (at,), (v,))
    ends = [outputs({n: at[n] + sign * 1e-7 * v[n] for n in at}) for sign in (1, -1)]
    assert torch.allclose(jv, (ends[0] - ends[1]) / 2e-7, rtol=1e-5, atol=1e-5)


def test_initial_weights_come_from_the_seed_and_have_the_scale_of_the_literature() -> None:
    model = TdnnOptions(width=300).build(100, 200, seed=5)
    again, other = TdnnOptions(width=300).build(100, 200, seed=5), TdnnOptions(width=300).build(100, 200, seed=6)
    assert torch.equal(model.output.weight, again.output.weight)
    assert not torch.equal(model.output.weight, other.output.weight)
    assert float(model.get_parameter("layer2.weight").detach().std()) == pytest.approx((2 / 900) ** 0.5, rel=0.02)
    factor = TdnnfOptions(width=30, bottleneck=12).build(D, P, seed=0).get_parameter("layer2.bottleneck").detach()
    assert torch.allclose(factor @ factor.T, torch.eye(12), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (TDNN, {"contexts": []}),
        (TDNN, {"contexts": [[0, -1]]}),
        (TDNN, {"contexts": [[1, 2]]}),
        (TDNN, {"subsampling": 2}),
        (TDNN, {"norm": "group"}),
        (TDNN, {"dropout": 1.0}),
        (TDNNF, {"bottleneck": 7}),
        (TDNNF, {"strides": [-1]}),
        (TDNNF, {"bypass_scale": 2.0}),
        (TDNNF, {"semi_orthogonal": -1.0}),
    ],
)
def test_impossible_options_are_refused(options, change) -> None:
    with pytest.raises(OptionError, match=rf"model\.{next(iter(change))}"):
        dataclasses.replace(options, **change)
