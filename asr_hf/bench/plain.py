"""The networks of the benchmark as plain torch modules, several ways of each: the unit, and what rivals run on.

Every module maps its own arrangement of the inputs to logits (·, P) or (·, P, ·), and the targets are arranged alike.
Which way is the fastest depends on the machine.

Shapes: B rows, W input frames, D feature dimension, T output frames, P pdfs, H units.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from asr_hf.bench.sizes import DnnSize, LstmSize, Problem, Size, TdnnSize

Layout = Callable[[torch.Tensor], torch.Tensor]
Named = dict[str, torch.Tensor]


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """One parameter of an implementation: its canonical name, and its layout there and back (a permutation)."""

    canonical: str
    to_own: Layout = same
    to_canonical: Layout = same


@dataclass(frozen=True)
class ParameterMap:
    """The parameters of an implementation, own name → rule; a bijection that keeps the norm."""

    rules: dict[str, Rule]

    def own(self, tensors: Named) -> Named:
        return {name: rule.to_own(tensors[rule.canonical]).contiguous() for name, rule in self.rules.items()}

    def canonical(self, tensors: Named) -> Named:
        return {self.rules[name].canonical: self.rules[name].to_canonical(tensor) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Plain:
    """A module at the problem's θ, and its data.

    Attributes:
        module: x → logits, pdfs in dimension 1; its trainable parameters are those of `parameters`.
        parameters: own names to canonical ones.
        x, target: inputs as the module wants them, and one pdf a frame as cross_entropy wants them for its logits.
    """

    module: nn.Module
    parameters: ParameterMap
    x: torch.Tensor
    target: torch.Tensor


class Spliced(nn.Module):
    """A time-major TDNN layer (W,B,D) → (W−2,B,H): the three frames side by side, one matrix product."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3 * inputs))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_WBD: torch.Tensor) -> torch.Tensor:
        spliced = torch.cat([x_WBD[:-2], x_WBD[1:-1], x_WBD[2:]], dim=2)
        return nn.functional.linear(spliced, self.weight, self.bias)


class ByOffset(nn.Module):
    """A time-major TDNN layer (W,B,D) → (W−2,B,H): a matrix product per offset, nothing copied."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, width, inputs))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_WBD: torch.Tensor) -> torch.Tensor:
        frames, rows = x_WBD.shape[0] - 2, x_WBD.shape[1]
        sum_FH: torch.Tensor = self.bias
        for offset, weight_HD in enumerate(self.weight):
            x_FD = x_WBD[offset : offset + frames].flatten(0, 1)
            sum_FH = torch.addmm(sum_FH, x_FD, weight_HD.t())
        return sum_FH.unflatten(0, (frames, rows))


class TorchLstm(nn.Module):
    """torch's own LSTM and a linear layer, time-major; of its two biases one stays at 0."""

    def __init__(self, size: LstmSize) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size.input_dim, size.width, size.layers)
        self.output = nn.Linear(size.width, size.pdfs)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_hh"):
                nn.init.zeros_(parameter)
                parameter.requires_grad_(False)

    def forward(self, x_TBD: torch.Tensor) -> torch.Tensor:
        return self.output(self.lstm(x_TBD)[0].flatten(0, 1))


class LstmCells(nn.Module):
    """The same written out: input products as one GEMM over time, then a loop over frames."""

    def __init__(self, size: LstmSize) -> None:
        super().__init__()
        for name, shape in size.parameter_shapes().items():
            if name.startswith("layer"):
                self.register_parameter(name.replace(".", "_"), nn.Parameter(torch.empty(shape)))
        self.layers = size.layers
        self.output = nn.Linear(size.width, size.pdfs)

    def forward(self, x_TBD: torch.Tensor) -> torch.Tensor:
        below = x_TBD
        for layer in range(1, self.layers + 1):
            weight, recurrent, bias = (getattr(self, f"layer{layer}_{part}") for part in ("input", "recurrent", "bias"))
            pre_TBG = nn.functional.linear(below, weight, bias)
            h_BH = c_BH = pre_TBG.new_zeros(pre_TBG.shape[1], recurrent.shape[1])
            outputs = []
            for pre_BG in pre_TBG:
                i, f, g, o = torch.addmm(pre_BG, h_BH, recurrent.t()).chunk(4, dim=1)
                c_BH = torch.sigmoid(f) * c_BH + torch.sigmoid(i) * torch.tanh(g)
                h_BH = torch.sigmoid(o) * torch.tanh(c_BH)
                outputs.append(h_BH)
            below = torch.stack(outputs)
        return self.output(below.flatten(0, 1))


def _sequential_dnn(size: DnnSize, problem: Problem) -> Plain:
    layers = _Stack()
    for layer in range(size.layers):
        layers.add(nn.Linear(_inputs(size, layer), size.width), f"layer{layer + 1}")
        layers.add(nn.ReLU())
    layers.add(nn.Linear(size.width, size.pdfs), "output")
    return _filled(layers.module, layers.rules, problem, problem.x_BWD.flatten(1), problem.target_BT.flatten())


def _spliced_tdnn(size: TdnnSize, problem: Problem) -> Plain:
    return _time_major_tdnn(size, problem, Spliced, Rule)


def _by_offset_tdnn(size: TdnnSize, problem: Problem) -> Plain:
    return _time_major_tdnn(size, problem, ByOffset, _offset_first)


def _time_major_tdnn(
    size: TdnnSize, problem: Problem, layer_class: Callable[[int, int], nn.Module], rule: Callable[[str], Rule]
) -> Plain:
    layers = _Stack()
    for layer in range(size.layers):
        layers.add(layer_class(_inputs(size, layer), size.width), f"layer{layer + 1}", rule)
        layers.add(nn.ReLU())
    layers.add(nn.Flatten(0, 1))
    layers.add(nn.Linear(size.width, size.pdfs), "output")
    return _filled(layers.module, layers.rules, problem, *_time_major(problem))


def _conv1d_tdnn(size: TdnnSize, problem: Problem) -> Plain:
    layers = _Stack()
    for layer in range(size.layers):
        layers.add(nn.Conv1d(_inputs(size, layer), size.width, 3), f"layer{layer + 1}", _offset_last)
        layers.add(nn.ReLU())
    layers.add(nn.Conv1d(size.width, size.pdfs, 1), "output", _pointwise)
    return _filled(layers.module, layers.rules, problem, problem.x_BWD.mT.contiguous(), problem.target_BT)


def _lstm_cells(size: LstmSize, problem: Problem) -> Plain:
    rules = {name.replace(".", "_"): Rule(name) for name in size.parameter_shapes() if name.startswith("layer")}
    rules |= {"output.weight": Rule("output.weight"), "output.bias": Rule("output.bias")}
    return _filled(LstmCells(size), rules, problem, *_time_major(problem))


def _torch_lstm(size: LstmSize, problem: Problem) -> Plain:
    rules = {"output.weight": Rule("output.weight"), "output.bias": Rule("output.bias")}
    for layer in range(size.layers):
        for own, part in (("weight_ih", "input"), ("weight_hh", "recurrent"), ("bias_ih", "bias")):
            rules[f"lstm.{own}_l{layer}"] = Rule(f"layer{layer + 1}.{part}")
    return _filled(TorchLstm(size), rules, problem, *_time_major(problem))


class _Stack:
    """An nn.Sequential in the making, with the rules of its parameters."""

    def __init__(self) -> None:
        self.module = nn.Sequential()
        self.rules: dict[str, Rule] = {}

    def add(self, layer: nn.Module, canonical: str = "", weight_rule: Callable[[str], Rule] = Rule) -> None:
        """Append a layer; `canonical` names it if it has a weight and a bias."""
        if canonical:
            place = len(self.module)
            self.rules[f"{place}.weight"] = weight_rule(f"{canonical}.weight")
            self.rules[f"{place}.bias"] = Rule(f"{canonical}.bias")
        self.module.append(layer)


def _pointwise(canonical: str) -> Rule:
    """(H, D) ↔ (H, D, 1)."""
    return Rule(canonical, lambda w_HD: w_HD[:, :, None], lambda w_HD1: w_HD1.squeeze(2))


def _offset_last(canonical: str) -> Rule:
    """(H, 3·D) ↔ (H, D, 3)."""
    return Rule(canonical, lambda w: w.unflatten(1, (3, -1)).mT, lambda w_HD3: w_HD3.mT.flatten(1))


def _offset_first(canonical: str) -> Rule:
    """(H, 3·D) ↔ (3, H, D)."""
    return Rule(
        canonical, lambda w: w.unflatten(1, (3, -1)).transpose(0, 1), lambda w_3HD: w_3HD.transpose(0, 1).flatten(1)
    )


def _inputs(size: DnnSize | TdnnSize, layer: int) -> int:
    """Inputs of a layer, of one frame."""
    first = size.input_dim * (2 * size.context + 1) if isinstance(size, DnnSize) else size.input_dim
    return first if layer == 0 else size.width


def _time_major(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (W, B, D) and targets (T·B,)."""
    return problem.x_BWD.transpose(0, 1).contiguous(), problem.target_BT.t().flatten()


def _filled(
    module: nn.Module, rules: dict[str, Rule], problem: Problem, x: torch.Tensor, target: torch.Tensor
) -> Plain:
    parameters = ParameterMap(rules)
    module.to(problem.x_BWD.device)
    with torch.no_grad():
        for name, value in parameters.own(problem.weights).items():
            module.get_parameter(name).copy_(value)
    return Plain(module, parameters, x, target)


# model -> name -> how to make it; the first of each is what the float64 reference runs on.
MODULES: dict[str, dict[str, Callable[..., Plain]]] = {
    "dnn": {"linear": _sequential_dnn},
    "tdnn": {"splice": _spliced_tdnn, "by_offset": _by_offset_tdnn, "conv1d": _conv1d_tdnn},
    "lstm": {"cells": _lstm_cells, "nn_lstm": _torch_lstm},
}


def plain(size: Size, module: str, problem: Problem) -> Plain:
    """The module of that name at the problem's θ and data."""
    return MODULES[size.model][module](size, problem)
