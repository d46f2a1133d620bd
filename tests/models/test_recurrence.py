"""The recurrences and their R-operator against torch's nn.LSTM and nn.RNN, finite differences and inner products.

Shapes: T frames, B rows, H cells, R recurrent units, D inputs.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from asr_hf.models.lstm_operator import lstm
from asr_hf.models.rnn_operator import RNN_ACTIVATIONS, rnn

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in forward_ad

T, B, D, H, R = 7, 4, 5, 6, 3
Tensors = tuple[torch.Tensor, ...]
LENGTHS = torch.tensor([7, 4, 1, 6])


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _mask(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.arange(T)[:, None] < LENGTHS).to(dtype)[:, :, None]


# name -> (recurrence, its differentiable arguments)
CASES: dict[str, tuple[Callable[..., torch.Tensor], Tensors]] = {
    **{
        activation: (
            lambda pre, U, mask, reverse, activation=activation: rnn(pre, U, activation, mask, reverse),
            (_random(T, B, H), 0.5 * _random(H, H, seed=1)),
        )
        for activation in RNN_ACTIVATIONS
    },
    "lstm": (
        lambda pre, U, mask, reverse: lstm(pre, U, None, mask, reverse),
        (_random(T, B, 4 * H), _random(4 * H, H)),
    ),
    "projected": (
        lambda pre, U, P, mask, reverse: lstm(pre, U, P, mask, reverse),
        (_random(T, B, 4 * H), _random(4 * H, R), _random(R, H)),
    ),
}
each_case = pytest.mark.parametrize("case", CASES)
both_directions = pytest.mark.parametrize("reverse", [False, True])
masked_or_not = pytest.mark.parametrize("mask", [None, _mask()], ids=["unpadded", "padded"])


def _tangents(inputs: Tensors) -> Tensors:
    return tuple(_random(*x.shape, seed=10 + i) for i, x in enumerate(inputs))


def _jvp(function: Callable[..., torch.Tensor], inputs: Tensors, tangents: tuple[torch.Tensor | None, ...]) -> Tensors:
    with forward_ad.dual_level():
        duals = [x if t is None else forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        value, tangent = forward_ad.unpack_dual(function(*duals))
        return value, tangent


def _vjp(function: Callable[..., torch.Tensor], inputs: Tensors, cotangent: torch.Tensor) -> Tensors:
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    return torch.autograd.grad(function(*inputs), inputs, cotangent)


@both_directions
@pytest.mark.parametrize("projection", [0, R])
def test_lstm_and_its_gradient_are_those_of_torch(projection: int, reverse: bool) -> None:
    torch.manual_seed(0)
    reference = nn.LSTM(D, H, proj_size=projection).double()
    weights = [reference.weight_hh_l0] + ([reference.weight_hr_l0] if projection else [])
    x_TBD = _random(T, B, D)
    pre = nn.functional.linear(x_TBD, reference.weight_ih_l0, reference.bias_ih_l0 + reference.bias_hh_l0)
    ours = lstm(pre, *weights, reverse=reverse)
    theirs = reference(x_TBD.flip(0))[0].flip(0) if reverse else reference(x_TBD)[0]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)
    u = _random(*ours.shape, seed=2)
    for mine, expected in zip(
        torch.autograd.grad(ours, [*weights, reference.weight_ih_l0], u),
        torch.autograd.grad(theirs, [*weights, reference.weight_ih_l0], u),
        strict=True,
    ):
        assert torch.allclose(mine, expected, rtol=0, atol=1e-12)


@both_directions
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rnn_and_its_gradient_are_those_of_torch(activation: str, reverse: bool) -> None:
    torch.manual_seed(0)
    reference = nn.RNN(D, H, nonlinearity=activation).double()
    x_TBD = _random(T, B, D)
    pre = nn.functional.linear(x_TBD, reference.weight_ih_l0, reference.bias_ih_l0 + reference.bias_hh_l0)
    ours = rnn(pre, reference.weight_hh_l0, activation, reverse=reverse)
    theirs = reference(x_TBD.flip(0))[0].flip(0) if reverse else reference(x_TBD)[0]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)
    u = _random(*ours.shape, seed=2)
    weights = [reference.weight_hh_l0, reference.weight_ih_l0]
    for mine, expected in zip(
        torch.autograd.grad(ours, weights, u), torch.autograd.grad(theirs, weights, u), strict=True
    ):
        assert torch.allclose(mine, expected, rtol=0, atol=1e-12)


def test_rnn_with_sigmoid_is_the_plain_loop() -> None:
    pre, U = CASES["sigmoid"][1]
    h = torch.zeros(B, H, dtype=torch.float64)
    for t, ours in enumerate(rnn(pre, U, "sigmoid")):
        h = torch.sigmoid(pre[t] + h @ U.t())
        assert torch.allclose(ours, h, rtol=0, atol=1e-14)


@each_case
@both_directions
@masked_or_not
def test_tangent_is_the_slope_along_it(case: str, reverse: bool, mask: torch.Tensor | None) -> None:
    function, inputs = CASES[case]
    tangents, step = _tangents(inputs), 1e-6

    def at(distance: float) -> torch.Tensor:
        moved = (x + distance * t for x, t in zip(inputs, tangents, strict=True))
        return function(*moved, mask, reverse)

    _, tangent = _jvp(lambda *args: function(*args, mask, reverse), inputs, tangents)
    slope = (at(step) - at(-step)) / (2 * step)
    assert torch.allclose(tangent, slope, rtol=0, atol=1e-6 * float(slope.abs().max()))


@each_case
@both_directions
@masked_or_not
def test_transposed_is_the_adjoint_of_the_tangent(case: str, reverse: bool, mask: torch.Tensor | None) -> None:
    function, inputs = CASES[case]
    tangents = _tangents(inputs)

    def masked(*args: torch.Tensor) -> torch.Tensor:
        return function(*args, mask, reverse)

    value, tangent = _jvp(masked, inputs, tangents)
    u = _random(*value.shape, seed=3)
    cotangents = _vjp(masked, inputs, u)
    assert all(cotangent.shape == x.shape for cotangent, x in zip(cotangents, inputs, strict=True))
    paired = sum(float((c * t).sum()) for c, t in zip(cotangents, tangents, strict=True))
    assert paired == pytest.approx(float((u * tangent).sum()), rel=1e-11)


@each_case
@both_directions
def test_autograd_through_the_tangent_is_the_transposed(case: str, reverse: bool) -> None:
    """So the engine transposes a linear program that holds the tangent's node."""
    function, inputs = CASES[case]
    tangents = tuple(t.requires_grad_() for t in _tangents(inputs))
    value, tangent = _jvp(lambda *args: function(*args, None, reverse), inputs, tangents)
    u = _random(*value.shape, seed=3)
    through = torch.autograd.grad(tangent, tangents, u)
    direct = _vjp(lambda *args: function(*args, None, reverse), inputs, u)
    for mine, expected in zip(through, direct, strict=True):
        assert torch.allclose(mine, expected, rtol=0, atol=1e-12)


@each_case
@both_directions
def test_absent_tangents_are_zero_tangents(case: str, reverse: bool) -> None:
    function, inputs = CASES[case]
    tangents = _tangents(inputs)
    for chosen in range(len(inputs)):
        absent = tuple(t if i == chosen else None for i, t in enumerate(tangents))
        zero = tuple(t if i == chosen else torch.zeros_like(t) for i, t in enumerate(tangents))
        _, sparse = _jvp(lambda *args: function(*args, None, reverse), inputs, absent)
        _, full = _jvp(lambda *args: function(*args, None, reverse), inputs, zero)
        assert torch.allclose(sparse, full, rtol=0, atol=1e-14)


@each_case
@both_directions
def test_padding_changes_nothing_and_receives_nothing(case: str, reverse: bool) -> None:
    function, (pre, *weights) = CASES[case]
    u = _random(*function(pre, *weights, None, reverse).shape, seed=3)

    def padded(*args: torch.Tensor) -> torch.Tensor:
        return function(*args, _mask(), reverse)

    value, tangent = _jvp(padded, (pre, *weights), _tangents((pre, *weights)))
    pre_bar, *weight_bars = _vjp(padded, (pre, *weights), u)
    sums = [torch.zeros_like(w) for w in weights]
    for row, length in enumerate(LENGTHS.tolist()):
        alone = (pre[:length, row : row + 1], *weights)
        pre_t, *weight_t = _tangents((pre, *weights))
        value_row, tangent_row = _jvp(
            lambda *args: function(*args, None, reverse), alone, (pre_t[:length, row : row + 1], *weight_t)
        )
        assert torch.allclose(value[:length, row : row + 1], value_row, rtol=0, atol=1e-13)
        assert torch.allclose(tangent[:length, row : row + 1], tangent_row, rtol=0, atol=1e-12)
        bars = _vjp(lambda *args: function(*args, None, reverse), alone, u[:length, row : row + 1])
        assert torch.allclose(pre_bar[:length, row : row + 1], bars[0], rtol=0, atol=1e-12)
        assert not value[length:, row].any()
        assert not tangent[length:, row].any()
        assert not pre_bar[length:, row].any()
        sums = [total + bar for total, bar in zip(sums, bars[1:], strict=True)]
    for mine, expected in zip(weight_bars, sums, strict=True):
        assert torch.allclose(mine, expected, rtol=0, atol=1e-12)


@each_case
def test_one_frame_has_no_recurrence(case: str) -> None:
    function, (pre, *weights) = CASES[case]
    inputs = (pre[:1], *weights)
    tangents = _tangents(inputs)
    value, tangent = _jvp(lambda *args: function(*args, None, False), inputs, tangents)
    bars = _vjp(lambda *args: function(*args, None, False), inputs, torch.ones_like(value))
    assert not bars[1].any()
    assert float(tangent.sum()) == pytest.approx(sum(float((b * t).sum()) for b, t in zip(bars, tangents, strict=True)))


@each_case
def test_float32_and_bfloat16_programs_agree_with_float64(case: str) -> None:
    """The engine casts tangents and constants of the linear program; so do we, op by op."""
    function, inputs = CASES[case]
    name = "rnn" if case in RNN_ACTIVATIONS else "lstm"
    tangents = _tangents(inputs)
    graph = make_fx(_traced(function), tracing_mode="fake")(inputs, tangents)
    recorded = _arguments(graph, inputs, tangents, f"{name}_tangent")
    exact = getattr(torch.ops.asr_hf, f"{name}_tangent")(*recorded)
    u = _random(*exact.shape, seed=3)
    count = 2 if name == "rnn" else 3
    constants = recorded[count:]
    exact_bars = getattr(torch.ops.asr_hf, f"{name}_transposed")(u, *constants, True)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        cast = [x.to(dtype) if isinstance(x, torch.Tensor) else x for x in recorded]
        tangent = getattr(torch.ops.asr_hf, f"{name}_tangent")(*cast)
        bars = getattr(torch.ops.asr_hf, f"{name}_transposed")(u.to(dtype), *cast[count:], True)
        for mine, expected in zip((tangent, *bars), (exact, *exact_bars), strict=True):
            assert mine.dtype == dtype
            assert float((mine.double() - expected).norm()) <= tolerance * float(expected.norm())


def _traced(function: Callable[..., torch.Tensor]) -> Callable[[Tensors, Tensors], Tensors]:
    return lambda inputs, tangents: _jvp(lambda *args: function(*args, None, False), inputs, tangents)


def _arguments(graph: torch.fx.GraphModule, inputs: Tensors, tangents: Tensors, name: str) -> list:
    """What a node of a traced program is called with."""
    found: list = []

    class Recorder(torch.fx.Interpreter):
        def call_function(self, target: object, args: tuple, kwargs: dict) -> object:
            if str(target) == f"asr_hf.{name}.default":
                found.extend(args)
            return super().call_function(target, args, kwargs)

    Recorder(graph).run(*inputs, *tangents)
    return found


@each_case
def test_a_traced_program_holds_one_node_per_recurrence(case: str) -> None:
    function, inputs = CASES[case]
    tangents = _tangents(inputs)
    graph = make_fx(_traced(function), tracing_mode="fake")(inputs, tangents)
    ours = [str(node.target) for node in graph.graph.nodes if str(node.target).startswith("asr_hf.")]
    name = "rnn" if case in RNN_ACTIVATIONS else "lstm"
    assert ours == [f"asr_hf.{name}_forward.default", f"asr_hf.{name}_tangent.default"]
    expected = _traced(function)(inputs, tangents)
    for mine, theirs in zip(graph(inputs, tangents), expected, strict=True):
        assert torch.equal(mine, theirs)


@each_case
def test_the_operations_keep_the_rules_of_torch_library(case: str) -> None:
    function, inputs = CASES[case]
    name = "rnn" if case in RNN_ACTIVATIONS else "lstm"
    inputs = tuple(x.float() for x in inputs)
    tangents = tuple(x.float() for x in _tangents(inputs))
    graph = make_fx(_traced(function), tracing_mode="fake")(inputs, tangents)
    rules = ("test_schema", "test_faketensor")
    for part in ("forward", "tangent"):
        args = _arguments(graph, inputs, tangents, f"{name}_{part}")
        operation = getattr(torch.ops.asr_hf, f"{name}_{part}").default
        torch.library.opcheck(operation, tuple(args), test_utils=rules)
    count = 2 if name == "rnn" else 3
    transposed = getattr(torch.ops.asr_hf, f"{name}_transposed").default
    u = function(*inputs, None, False)
    for weights in (False, True):
        torch.library.opcheck(transposed, (u, *args[count:], weights), test_utils=rules)
    wanted = tuple(x.requires_grad_() if i < len(inputs) else x for i, x in enumerate(args))
    tangent = getattr(torch.ops.asr_hf, f"{name}_tangent").default
    torch.library.opcheck(tangent, wanted, test_utils=(*rules, "test_autograd_registration"))
