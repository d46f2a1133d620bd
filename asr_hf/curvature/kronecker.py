"""Kronecker factors of the Fisher matrix: a block for each weight that enters the outputs as a linear map.

A weight W is used as z_n = W a_n + b at positions n: frames of pieces, their inputs spliced where the layer splices.
With g_n the derivative of the loss at z_n, and ā = (a, 1), the derivative of [W b] is Σ_n g_n ā_nᵀ. Where labels are
drawn from the model's own distribution, its second moment is the Fisher matrix' block. Per frame, as V ↦ G V A:
    A = 1/R Σ_n ā_n ā_nᵀ        G = 1/F Σ_n g_n g_nᵀ
F frames; R positions, those at which a gradient arrives: padding has none, and does not count. Positions of a piece are
taken as independent ("expand"), or put together first, their a averaged and their g summed ("reduce"). A block is exact
where a and g are independent of each other, as in a deep linear network.

Recurrent weights are maps of h_{t−1} with the g of their gates, independent over time. What is no such map (gains and
biases of norms, a projection inside a recurrence) has the diagonal of its block: sums over minibatches of the squared
gradient, since scores of drawn labels have mean zero and do not correlate.

Source: Martens and Grosse (2015), section 3; shared weights: Grosse and Martens (2016), in the names of Eschenhagen et
al. (2023); recurrent ones: Martens, Ba and Johnson (2018).

Shape suffixes: B rows, T frames, R positions, W and D as in `models.acoustic`, K inputs of a map (a 1 for its bias
included), M outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

from asr_hf.models.acoustic import AcousticModel

Named = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LinearMap:
    """A weight (M, K or K − 1) and its bias ("": none), by name; `a`, `g` and `positions` name its sums."""

    weight: str
    bias: str
    inputs: int
    outputs: int

    @property
    def a(self) -> str:
        return f"{self.weight}:A"

    @property
    def g(self) -> str:
        return f"{self.weight}:G"

    @property
    def positions(self) -> str:
        return f"{self.weight}:R"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its sums."""
        return {self.a: (self.inputs, self.inputs), self.g: (self.outputs, self.outputs), self.positions: ()}


@dataclass(frozen=True)
class Use:
    """A linear map within one evaluation of the model: inputs a and outputs z at (rows, frames), or (frames, rows)."""

    linear_map: LinearMap
    a: torch.Tensor
    z: torch.Tensor
    time: int  # the dimension of frames


class Uses(TorchFunctionMode):
    """Within the block the linear maps of the named parameters are watched; `found` has them in order of evaluation."""

    def __init__(self, parameters: Named) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self.found: list[Use] = []

    def __enter__(self) -> Self:
        self._hook = register_module_forward_hook(self._recurrence)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._hook.remove()
        super().__exit__(*exception)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        if function is functional.linear:
            a, weight, *rest = arguments
            biases = [bias for bias in rest if bias is not None]
            self._add(a, weight, biases, result, time=1)
        return result

    def _recurrence(self, module: nn.Module, _: Any, h_TBR: torch.Tensor) -> None:
        """After a recurrence: its map of inputs came just before, frames first; its recurrent map has the same z."""
        weight = getattr(module, "recurrent", None)
        if weight is None:
            return
        of_input = self.found.pop()
        self.found.append(Use(of_input.linear_map, of_input.a, of_input.z, time=0))
        zero_1BR = torch.zeros_like(h_TBR[:1])
        before_TBR = torch.cat([h_TBR[1:], zero_1BR] if module.reverse else [zero_1BR, h_TBR[:-1]])
        self._add(before_TBR, weight, [], of_input.z, time=0)

    def _add(
        self, a: torch.Tensor, weight: torch.Tensor, biases: list[torch.Tensor], z: torch.Tensor, time: int
    ) -> None:
        bias = "".join(self._names[id(bias)] for bias in biases)
        linear_map = LinearMap(self._names[id(weight)], bias, a.shape[-1] + len(biases), z.shape[-1])
        self.found.append(Use(linear_map, a.detach(), z, time))


def linear_maps(model: AcousticModel) -> tuple[LinearMap, ...]:
    """The linear maps of a model, found by evaluating it on one frame of zeros."""
    parameters = dict(model.named_parameters())
    width = model.left_context + 1 + model.right_context
    x_BWD = torch.zeros(1, width, model.input_dim, device=next(iter(parameters.values())).device)
    with torch.no_grad(), Uses(parameters) as uses:
        model(x_BWD)
    return tuple(use.linear_map for use in uses.found)


def kronecker_sums(
    uses: Sequence[Use], others: Named, outputs: Named, score: Named, reduce: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, what a minibatch adds): sums of every map (`LinearMap.shapes`), squares of the other gradients.

    Args:
        uses: of the evaluation that gave `outputs`.
        others: the parameters that are no linear maps.
        score: the loss' derivative in (some) outputs, for labels drawn from the model's distribution.
        reduce: put the positions of a piece together.
    """
    ends, wanted = [outputs[name] for name in score], [*(use.z for use in uses), *others.values()]
    found = torch.autograd.grad(ends, wanted, list(score.values()), materialize_grads=True)
    for use, g in zip(uses, found, strict=False):
        yield from _of_use(use, g, reduce)
    for name, gradient in zip(others, found[len(uses) :], strict=True):
        yield name, gradient.double().square_()


def _of_use(use: Use, g: torch.Tensor, reduce: bool) -> Iterator[tuple[str, torch.Tensor]]:
    real = (g != 0).any(dim=-1, keepdim=True).to(g.dtype)
    a = use.a if not use.linear_map.bias else functional.pad(use.a, (0, 1), value=1.0)
    a = a * real
    if reduce:
        a, g = a.sum(use.time) / real.sum(use.time).clamp(min=1.0), g.sum(use.time)
        real = real.amax(use.time)
    a_RK, g_RM = a.flatten(0, -2), g.flatten(0, -2)
    yield use.linear_map.a, a_RK.t() @ a_RK
    yield use.linear_map.g, g_RM.t() @ g_RM
    yield use.linear_map.positions, real.sum()
