"""The feed-forward network against plain numpy, its initial weights, and models on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_hf.errors import InputError, OptionError
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.saved import load_model, log_prior, save_model


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "maxout"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_outputs_are_those_of_matrix_products(activation: str, norm: str) -> None:
    model = DnnOptions(hidden_layers=2, width=5, activation=activation, context=2, norm=norm).build(3, 4, seed=0)
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1))
    output = model(x)["output"].detach().numpy()
    assert output.shape == (2, 5, 4)
    f = {
        "relu": lambda a: np.maximum(a, 0),
        "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
        "tanh": np.tanh,
        "maxout": lambda a: np.maximum(a[:5], a[5:]),
    }[activation]
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    for row in range(2):
        for t in range(5):
            h = x[row, t : t + 5].double().numpy().reshape(-1)
            for layer in ("layer1", "layer2"):
                h = f(weights[f"{layer}.weight"] @ h + weights[f"{layer}.bias"])
                if norm == "layer":
                    h = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
            expected = weights["output.weight"] @ h + weights["output.bias"]
            assert np.allclose(output[row, t], expected, atol=1e-5)


def test_initial_weights_come_from_the_seed_and_have_the_scale_of_the_literature() -> None:
    options = DnnOptions(hidden_layers=2, width=400, activation="relu", context=0)
    model = options.build(300, 200, seed=5)
    again, other = options.build(300, 200, seed=5), options.build(300, 200, seed=6)
    assert torch.equal(model.output.weight, again.output.weight)
    assert not torch.equal(model.output.weight, other.output.weight)
    assert float(model.get_parameter("layer1.weight").detach().std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert float(model.output.weight.detach().abs().max()) == pytest.approx((6 / 600) ** 0.5, rel=0.02)
    sigmoid = DnnOptions(hidden_layers=1, width=400, activation="sigmoid", context=0).build(300, 200, seed=5)
    assert float(sigmoid.get_parameter("layer1.weight").detach().abs().max()) == pytest.approx(
        4 * (6 / 700) ** 0.5, rel=0.02
    )
    assert not model.get_parameter("layer1.bias").any()


@pytest.mark.parametrize("activation", ["relu", "tanh", "maxout"])
def test_initial_weights_keep_the_second_moment_of_the_units(activation: str) -> None:
    options = DnnOptions(hidden_layers=3, width=400, activation=activation, context=0, norm="none")
    x = torch.randn(200, 1, 400, generator=torch.Generator().manual_seed(100))
    if activation == "tanh":
        x *= 0.1  # where it is nearly linear
    tops = [options.build(400, 3, seed=seed)(x, states=["layer3"])["layer3"].detach() for seed in range(8)]
    assert float(torch.stack(tops).square().mean() / x.square().mean()) == pytest.approx(1.0, rel=0.1)


def test_dropout_and_states() -> None:
    model = DnnOptions(hidden_layers=2, width=4, context=1, dropout=0.5).build(3, 6, seed=0)
    assert model.dropouts == {"layer1": (4, 0.5), "layer2": (4, 0.5)}
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    asked = model(x, states=["layer2"])
    assert set(asked) == {"output", "layer2"}
    assert asked["layer2"].shape == (2, 3, 4)
    keep = {"layer2": torch.tensor([[[2.0, 0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])}
    hidden = torch.nn.functional.layer_norm(asked["layer2"], (4,)) * keep["layer2"]
    assert torch.allclose(model(x, keep=keep)["output"], model.output(hidden), atol=1e-6)
    assert model.block_of("layer1.norm.weight") == "layer1"


def test_a_model_starts_from_the_prior() -> None:
    model = DnnOptions(hidden_layers=1, width=4, context=0).build(3, 3, seed=0)
    prior = log_prior(np.array([10, 30, 0]), floor=1e-3)
    assert np.allclose(prior, np.log([0.25, 0.75, 1e-3]))
    model.start_from_prior(torch.from_numpy(prior))
    assert np.allclose(model.output.bias.detach().numpy(), prior)


def saved(folder: Path) -> None:
    options = DnnOptions(hidden_layers=1, width=4, context=1)
    save_model(folder, options.build(3, 6, seed=0), options, log_prior(np.arange(6), 1e-5))


def test_a_saved_model_comes_back_and_repeats_edge_frames(tmp_path: Path) -> None:
    options = DnnOptions(hidden_layers=1, width=4, context=1)
    module = options.build(3, 6, seed=0)
    save_model(tmp_path / "m", module, options, log_prior(np.arange(6), 1e-5))
    model = load_model(tmp_path / "m")
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    padded = np.concatenate([features[:1], features, features[-1:]])
    expected = torch.log_softmax(module(torch.from_numpy(padded)[None])["output"][0], dim=-1)
    assert np.allclose(model.log_posteriors(features), expected.detach().numpy(), atol=1e-6)
    assert np.allclose(np.exp(model.log_posteriors(features)).sum(axis=1), 1, atol=1e-5)
    assert model.num_pdfs == 6


def test_a_model_saved_before_there_were_norms_loads_as_it_was(tmp_path: Path) -> None:
    options = DnnOptions(hidden_layers=1, width=4, context=1, norm="none")
    module = options.build(3, 6, seed=0)
    save_model(tmp_path, module, options, log_prior(np.arange(6), 1e-5))
    description = json.loads((tmp_path / "model.json").read_text())
    for name in ("norm", "dropout"):
        del description["options"][name]
    (tmp_path / "model.json").write_text(json.dumps(description))
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(tmp_path).module(x)["output"], module(x)["output"])


def test_damaged_models_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished model"):
        load_model(tmp_path / "none")
    saved(tmp_path / "cut")
    tensors = tmp_path / "cut" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-5])
    with pytest.raises(InputError, match="cut cannot be read"):
        load_model(tmp_path / "cut")
    saved(tmp_path / "other")
    description = json.loads((tmp_path / "other" / "model.json").read_text())
    description["options"]["width"] = 5
    (tmp_path / "other" / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="other cannot be read"):
        load_model(tmp_path / "other")


def test_impossible_options_are_refused() -> None:
    with pytest.raises(OptionError, match=r"model\.activation"):
        DnnOptions(activation="swish")
    with pytest.raises(OptionError, match=r"model\.width"):
        DnnOptions(width=0)
    with pytest.raises(OptionError, match=r"model\.norm"):
        DnnOptions(norm="group")
    with pytest.raises(OptionError, match=r"model\.dropout"):
        DnnOptions(dropout=-0.1)
