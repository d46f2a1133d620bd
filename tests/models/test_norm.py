"""Norms against torch's own, statistics of real frames against a loop."""

import pytest
import torch
from torch.nn import functional

from asr_hf.models.dnn import DnnOptions
from asr_hf.models.norm import EPSILON, FrozenNorm, LayerNorm, frame_mask, frozen_norms, moments

UNITS = 5
X = torch.randn(4, 7, UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(7) < torch.tensor([7, 3, 0, 5])[:, None]


def frozen() -> FrozenNorm:
    generator = torch.Generator().manual_seed(1)
    norm = FrozenNorm(UNITS).double()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.mean):
            tensor.copy_(torch.randn(UNITS, generator=generator))
        norm.var.uniform_(0.5, 2.0, generator=generator)
    return norm


def test_stored_statistics_are_used_as_torch_uses_them() -> None:
    norm = frozen().eval()
    expected = functional.batch_norm(
        X.flatten(0, 1), norm.mean, norm.var, norm.weight, norm.bias, training=False, eps=EPSILON
    )
    assert torch.allclose(norm(X, MASK).flatten(0, 1), expected)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_minibatch_statistics_and_their_gradient_are_those_of_torch_on_the_real_frames(mask) -> None:
    norm = frozen().train()
    real = torch.ones_like(MASK) if mask is None else mask
    weights = torch.randn(int(real.sum()), UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours_at, theirs_at = X.clone().requires_grad_(), X.clone().requires_grad_()
    ours = norm(ours_at, mask)[real]
    theirs = functional.batch_norm(theirs_at[real], None, None, norm.weight, norm.bias, training=True, eps=EPSILON)
    assert torch.allclose(ours, theirs)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), theirs_at)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), ours_at)
    assert torch.allclose(gradient, expected)


def test_layer_norm_is_that_of_torch() -> None:
    norm = LayerNorm(UNITS).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    theirs = torch.nn.LayerNorm(UNITS, eps=EPSILON).double()
    theirs.load_state_dict(norm.state_dict())
    assert torch.allclose(norm(X, MASK), theirs(X))


def test_moments_count_real_frames_alone() -> None:
    count, total, squares = moments(X.float(), MASK)
    real = [X.float()[row, t].double() for row in range(4) for t in range(7) if MASK[row, t]]
    assert count == len(real) == 15
    assert torch.allclose(total, sum(real))
    assert torch.allclose(squares, sum(frame**2 for frame in real))
    assert count.dtype == total.dtype == squares.dtype == torch.float64
    assert moments(X, None)[0] == 28


def test_the_norms_of_a_model_are_found_in_order_and_record_their_input() -> None:
    model = DnnOptions(hidden_layers=2, width=UNITS, context=0, norm="batch").build(3, 4, seed=0).eval()
    norms = frozen_norms(model)
    assert list(norms) == ["layer1.norm", "layer2.norm"]
    assert not frozen_norms(DnnOptions(hidden_layers=2).build(3, 4, seed=0))
    seen = {}
    for name, norm in norms.items():
        norm.record = lambda x, mask, name=name: seen.update({name: (x, mask)})
    x = torch.randn(4, 7, 3)
    states = model(x, MASK, states=model.states)
    assert torch.equal(seen["layer2.norm"][0], states["layer2"])
    assert torch.equal(seen["layer1.norm"][1], MASK)


def test_padding_inside_a_model_comes_at_the_rate_of_the_layer() -> None:
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    at_output_rate, thrice = frame_mask(mask, 9, 1), frame_mask(mask, 20, 3)
    assert at_output_rate.sum(1).tolist() == [9, 6, 0]  # a row that is left out has no real frame at all
    assert thrice.sum(1).tolist() == [20, 11, 0]
    assert at_output_rate[1].tolist() == [True] * 6 + [False] * 3
