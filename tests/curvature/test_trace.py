"""What is traced: once per shape, only what is needed, and nothing that cannot be linearised."""

import pytest
import torch
from torch import nn

from asr_hf.curvature import linearise
from asr_hf.curvature.linearise import Linearizer
from asr_hf.curvature.precision import Precision, fastest_full_setting
from asr_hf.errors import InputError


def network(parameters, inputs):
    (x,) = inputs
    hidden = torch.relu(x @ parameters["first"].t())
    return {"output": hidden @ parameters["second"].t(), "hidden": hidden}


def parameters(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) for n, s in (("first", (5, 3)), ("second", (4, 5)))}


def test_a_shape_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, trace = [], linearise.trace
    monkeypatch.setattr(linearise, "trace", lambda f, p, i: shapes.append(i[0].shape) or trace(f, p, i))
    linearizer = Linearizer(network)
    for seed in range(3):
        point = linearizer.at(parameters(seed))
        for rows in (7, 2):
            x = torch.randn(rows, 3)
            assert torch.equal(point.linearize((x,)).outputs["output"], network(parameters(seed), (x,))["output"])
    assert [tuple(shape) for shape in shapes] == [(7, 3), (2, 3)]


def test_a_blocks_program_reaches_no_lower_layer() -> None:
    at = Linearizer(network).at(parameters()).linearize((torch.randn(7, 3),))
    whole, top = (at._program(names) for names in (("first", "second"), ("second",)))

    def products(graph_module) -> int:
        aten = torch.ops.aten
        kinds = (aten.mm.default, aten.addmm.default, aten.addmm_.default)
        return sum(node.target in kinds for node in graph_module.graph.nodes)

    assert (products(whole.forward), products(whole.transposed)) == (3, 3)
    assert (products(top.forward), products(top.transposed)) == (1, 1)


def test_constants_are_held_in_the_precision_of_the_products_and_parameters_once() -> None:
    x = torch.randn(64, 3)
    for precision, size in ((Precision.FP32, 4), (Precision.BF16, 2)):
        at = Linearizer(network).at(parameters(), precision).linearize((x,))
        assert at.bytes_held == size * 64 * (3 + 5)  # the input and the hidden layer
        assert at.forward(parameters(1))["output"].dtype is torch.float32


def test_an_operation_without_forward_derivative_is_named() -> None:
    lstm = nn.LSTM(3, 4)

    def forward(named, inputs):
        return {"output": torch.func.functional_call(lstm, named, inputs)[0]}

    with pytest.raises(InputError, match=r"lstm|rnn"):
        Linearizer(forward).at(dict(lstm.named_parameters())).linearize((torch.randn(6, 1, 3),))


def test_random_numbers_inside_a_model_are_refused_by_name() -> None:
    def forward(named, inputs):
        return {"output": nn.functional.dropout(inputs[0] @ named["first"].t(), 0.5, training=True)}

    with pytest.raises(InputError, match="random"):
        Linearizer(forward).at(parameters()).linearize((torch.randn(6, 3),))


def test_a_branch_on_data_is_refused() -> None:
    def forward(named, inputs):
        y = inputs[0] @ named["first"].t()
        return {"output": y if y.sum() > 0 else -y}

    with pytest.raises(InputError, match="cannot be linearised"):
        Linearizer(forward).at(parameters()).linearize((torch.randn(6, 3),))


def test_an_output_that_depends_on_no_parameter_has_no_derivative() -> None:
    def forward(named, inputs):
        return {"output": inputs[0] @ named["first"].t(), "input": 2.0 * inputs[0]}

    at = Linearizer(forward).at({"first": torch.randn(5, 3)}).linearize((torch.randn(6, 3),))
    moved = at.forward({"first": torch.ones(5, 3)})
    assert torch.equal(moved["input"], torch.zeros(6, 3))
    assert at.transposed({"input": torch.ones(6, 3)})["first"].abs().sum() == 0


def test_the_full_setting_is_full_precision() -> None:
    before = torch.get_float32_matmul_precision()
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(1))
    exact = a.double() @ b.double()
    with Precision.FP32.matmul(a.device):
        assert torch.get_float32_matmul_precision() == fastest_full_setting()
        assert float(((a @ b).double() - exact).norm() / exact.norm()) <= 1e-6
    assert torch.get_float32_matmul_precision() == before
