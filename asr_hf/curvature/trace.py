"""The forward derivative of a model, traced once per shape and cut in two graphs.

The trace runs on fake tensors: nothing is computed. Operations that do not depend on the tangents make the *primal*
graph, run once per minibatch: it yields the outputs and the constants of the derivative. The others make the *linear*
graph, which maps (constants, tangents) to tangents of the outputs. Constants are taken below views, so that a
parameter is never copied.

Source: the split is Pearlmutter's R-operator (1994), as program transformation "linearize" (Radul et al. 2022).
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from asr_hf.errors import InputError

Named = Mapping[str, torch.Tensor]
# parameters and inputs (any nest of tensors) -> named outputs
Function = Callable[[dict[str, torch.Tensor], Any], dict[str, torch.Tensor]]

aten = torch.ops.aten
VIEWS = {
    aten.alias.default, aten.detach.default, aten.expand.default, aten.permute.default, aten.select.int,
    aten.slice.Tensor, aten.squeeze.dim, aten.squeeze.default, aten.t.default, aten.transpose.int,
    aten.unsqueeze.default, aten.view.default, aten._unsafe_view.default, aten.split.Tensor,
}  # fmt: skip
ZEROS = {aten.zeros.default, aten._efficientzerotensor.default, aten.zeros_like.default, aten.new_zeros.default}
MULTIPLICATIVE = {aten.mul.Tensor, aten.mm.default, aten.bmm.default}


@dataclass(frozen=True)
class Trace:
    """The two graphs of a model at given shapes.

    Attributes:
        parameters, outputs: their names, in the order of the graphs.
        primal: (parameters …, inputs …) → (outputs …, constants that are no parameters …).
        linear: placeholders are the constants, then the tangents of the parameters; the results are the tangents of
            the outputs, None where an output depends on no parameter.
        constants: for each constant of `linear` its fake value.
        parameter_constants: index of the constant → name of the parameter that it is; the others come from `primal`.
        shapes: shape of each output.
    """

    parameters: tuple[str, ...]
    outputs: tuple[str, ...]
    primal: fx.GraphModule
    linear: fx.Graph
    constants: tuple[torch.Tensor, ...]
    parameter_constants: dict[int, str]
    shapes: tuple[tuple[int, ...], ...]


def trace(function: Function, parameters: Named, inputs: Any) -> Trace:
    """Trace the derivative of `function` in its parameters at the shapes of `parameters` and `inputs`.

    Raises:
        InputError: an operation has no forward derivative, draws random numbers or branches on data; it is named.
    """
    names = tuple(parameters)
    outputs: list[str] = []

    def both(primals: list[torch.Tensor], others: Any, tangents: list[torch.Tensor]) -> list[torch.Tensor | None]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
            result = function(dict(zip(names, duals, strict=True)), others)
            outputs[:] = list(result)
            unpacked = [forward_ad.unpack_dual(y) for y in result.values()]
        return [y.primal for y in unpacked] + [y.tangent for y in unpacked]

    # Never filled, only their shapes matter; and not θ's own views, whose tangents would have to be views as well.
    primals, tangents = ([torch.empty_like(tensor) for tensor in parameters.values()] for _ in range(2))
    try:
        with torch.no_grad():
            module = traced(both, primals, inputs, tangents)
    except RuntimeError as error:
        raise InputError(
            f"the model cannot be linearised: {str(error).splitlines()[0]}",
            "Build it from operations that torch.func differentiates in forward mode (nn.LSTM on CPU is not one).",
        ) from error
    _refuse_random(module.graph)
    return _split(module, names, tuple(outputs))


def traced(function: Callable[..., Any], *examples: Any) -> fx.GraphModule:
    """The operations of a function at the shapes of its examples, found with fake tensors: nothing is computed."""
    with warnings.catch_warnings():  # what torch 2.11 itself warns about in every trace
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=DeprecationWarning)
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)


def _refuse_random(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise InputError(
                f"the model draws random numbers ({node.target}), so that it is another function at every product",
                "Take dropout factors from `keep` instead.",
            )


def _split(module: fx.GraphModule, names: tuple[str, ...], outputs: tuple[str, ...]) -> Trace:
    nodes = list(module.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    primals, tangents = placeholders[: len(names)], placeholders[len(placeholders) - len(names) :]
    results = pytree.tree_leaves(nodes[-1].args[0], is_leaf=lambda leaf: leaf is None)
    values, derivatives = results[: len(outputs)], results[len(outputs) :]

    depends = dependants(nodes, tangents)
    needed = _needed(nodes, derivatives)
    linear_nodes = [node for node in nodes if node in needed and node in depends and node.op == "call_function"]
    zeros = zero_nodes(nodes)  # tangents of what has none: no constants
    constants: dict[fx.Node, None] = {}
    views: dict[fx.Node, None] = {}
    for node in linear_nodes:
        for argument in node.all_input_nodes:
            if argument not in depends and argument not in zeros:
                constants[_below_views(argument, views)] = None

    linear, image = fx.Graph(), {}
    for index, node in enumerate(constants):
        image[node] = linear.placeholder(f"c{index}")
        image[node].meta = dict(node.meta)
    for index, node in enumerate(tangents):
        image[node] = linear.placeholder(f"v{index}")
        image[node].meta = dict(node.meta)
    kept = {*views, *linear_nodes}
    for node in nodes:
        if node in kept:
            image[node] = linear.node_copy(node, lambda n: image[n])
        elif node in zeros:
            value = node.meta["val"]
            options = {"dtype": value.dtype, "device": value.device}
            image[node] = linear.call_function(aten.zeros.default, (list(value.shape),), options)
            image[node].meta = dict(node.meta)
    linear.output([image[node] if isinstance(node, fx.Node) and node in depends else None for node in derivatives])

    computed = [node for node in constants if node not in primals]
    primal = fx.Graph()
    copied = _needed(nodes, [*values, *computed])
    image = {}
    for node in nodes:
        if (node.op == "placeholder" and node not in tangents) or (node.op != "placeholder" and node in copied):
            image[node] = primal.node_copy(node, lambda n: image[n])
    primal.output([image[node] for node in [*values, *computed]])

    return Trace(
        names,
        outputs,
        fx.GraphModule(module, primal),
        linear,
        tuple(node.meta["val"] for node in constants),
        {index: names[primals.index(node)] for index, node in enumerate(constants) if node in primals},
        tuple(tuple(node.meta["val"].shape) for node in values),
    )


def _below_views(node: fx.Node, views: dict[fx.Node, None]) -> fx.Node:
    """The node that `node` is a view of; the views on the way are entered into `views`."""
    while node.op == "call_function" and node.target in VIEWS:
        views[node] = None
        node = node.all_input_nodes[0]
    return node


def dependants(nodes: Iterable[fx.Node], sources: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes, in topological order, that depend on one of `sources`, these included."""
    found = set(sources)
    for node in nodes:
        if any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


def zero_nodes(
    nodes: Iterable[fx.Node], given: Iterable[fx.Node] = (), moving: Collection[fx.Node] = ()
) -> set[fx.Node]:
    """The nodes that are zero whatever the data: made so, products and views of zero, linear operations on zeros.

    Args:
        nodes: in topological order.
        given: nodes that are zero.
        moving: the nodes that depend on tangents; an operation is linear in those among its arguments.
    """
    found = set(given)
    for node in nodes:
        arguments = node.all_input_nodes
        tangents = [argument for argument in arguments if argument in moving]
        product = node.target in MULTIPLICATIVE or node.target in VIEWS
        carried = product and any(argument in found for argument in arguments)
        linear = bool(tangents) and all(argument in found for argument in tangents)
        if node.target in ZEROS or carried or linear:
            found.add(node)
    return found


def _needed(nodes: Sequence[fx.Node], results: Iterable[Any]) -> set[fx.Node]:
    """The nodes that `results` are computed from, these included."""
    found = {node for node in results if isinstance(node, fx.Node)}
    for node in reversed(nodes):
        if node in found:
            found.update(node.all_input_nodes)
    return found
