"""J·v and Jᵀ·u as two straight lists of operations on the constants of a trace.

The transpose is traced from the linear graph by reverse mode. A block's program follows from the whole one by taking
the other parameters' tangents for zero and dropping what is zero then: it shares the constants of the whole.

Symbols: v tangents of the parameters, u cotangents of the outputs, J = ∂outputs/∂parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from asr_hf.curvature.trace import Trace, dependants, traced, zero_nodes

aten = torch.ops.aten
FUSED = (aten.addmm.default, aten.addmm_.default)


@dataclass(frozen=True)
class LinearProgram:
    """J of one trace in one number type, restricted to some parameters.

    Attributes:
        parameters: names of the parameters that v covers.
        forward: (constants …, v …) → tangents of the outputs.
        transposed: (constants …, u …) → cotangents of `parameters`.
    """

    parameters: tuple[str, ...]
    forward: fx.GraphModule
    transposed: fx.GraphModule


def linear_program(trace: Trace, parameters: Sequence[str], dtype: torch.dtype) -> LinearProgram:
    """The program of a trace for some of its parameters, for constants and tangents of a number type."""
    chosen = tuple(name for name in trace.parameters if name in set(parameters))
    graph = _restricted(trace, chosen, dtype)
    forward = fx.GraphModule(torch.nn.Module(), graph)
    constants = [torch.empty_strided(c.size(), c.stride(), dtype=cast_type(c.dtype, dtype)) for c in trace.constants]
    placeholders = [node for node in trace.linear.nodes if node.op == "placeholder"][len(trace.constants) :]
    shapes = dict(zip(trace.parameters, (node.meta["val"].shape for node in placeholders), strict=True))
    device = placeholders[0].meta["val"].device

    def transpose(constants: list[torch.Tensor], cotangents: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.enable_grad():
            tangents = [torch.zeros(shapes[n], dtype=dtype, device=device, requires_grad=True) for n in chosen]
            results = forward(*constants, *tangents)
            pairs = [(y, u) for y, u in zip(results, cotangents, strict=True) if y.requires_grad]
            found = torch.autograd.grad([y for y, _ in pairs], tangents, [u for _, u in pairs], materialize_grads=True)
        return list(found)

    cotangents = [torch.empty(shape, dtype=dtype) for shape in trace.shapes]
    constants = [c.to(device) for c in constants]
    transposed = traced(transpose, constants, [u.to(device) for u in cotangents])
    for module in (forward, transposed):
        _drop_unused(module.graph)
        _fuse_additions(module.graph)
        module.recompile()
    return LinearProgram(chosen, forward, transposed)


def cast_type(dtype: torch.dtype, to: torch.dtype) -> torch.dtype:
    """Floating-point constants are held in the type of the products; masks and indices stay."""
    return to if dtype.is_floating_point else dtype


def _restricted(trace: Trace, chosen: tuple[str, ...], dtype: torch.dtype) -> fx.Graph:
    """The linear graph with the tangents of all other parameters zero, and what is zero then left out."""
    nodes = list(trace.linear.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    tangents = dict(zip(trace.parameters, placeholders[len(trace.constants) :], strict=True))
    absent = [node for name, node in tangents.items() if name not in chosen]
    zero = zero_nodes(nodes[:-1], absent, dependants(nodes, list(tangents.values())))
    graph, image = fx.Graph(), {}
    for node in placeholders:
        if node not in tangents.values() or node not in zero:
            image[node] = graph.placeholder(node.name)
            image[node].meta = dict(node.meta)
    for node in nodes:
        if node.op == "call_function" and node not in zero:
            image[node] = _without_zeros(node, zero, graph, image, dtype)
            image[node].meta = dict(node.meta)
    results = []
    for result, shape in zip(nodes[-1].args[0], trace.shapes, strict=True):
        present = result is not None and result not in zero
        results.append(image[result] if present else _zeros(graph, shape, dtype, placeholders[0].meta["val"].device))
    graph.output(results)
    return graph


def _without_zeros(
    node: fx.Node, zero: set[fx.Node], graph: fx.Graph, image: dict[fx.Node, fx.Node], dtype: torch.dtype
) -> fx.Node:
    """The image of a node that is not zero but may have arguments that are."""
    value = node.meta["val"]
    if any(argument in zero for argument in node.all_input_nodes) and node.target in (aten.add.Tensor, aten.sub.Tensor):
        left, right = node.args[:2]
        other = left if right in zero else right
        plain = other is left or (node.target is aten.add.Tensor and not node.kwargs)
        if plain and other.meta["val"].shape == value.shape:  # type: ignore[union-attr]
            return image[other]  # type: ignore[index]
        if plain:
            return graph.call_function(aten.expand.default, (image[other], list(value.shape)))  # type: ignore[index]

    def argument_image(argument: fx.Node) -> fx.Node | None:
        if argument not in zero:
            return image[argument]
        if argument in optional:
            return None
        held = argument.meta["val"]
        return _zeros(graph, held.shape, dtype if held.is_floating_point() else held.dtype, held.device)

    schema = getattr(node.target, "_schema", None)
    optional = {
        argument
        for argument, description in zip(node.args, schema.arguments if schema else (), strict=False)
        if isinstance(argument, fx.Node) and str(description.type).startswith("Optional")
    }
    arguments = fx.map_arg(node.args, argument_image)
    keywords = fx.map_arg(node.kwargs, argument_image)
    if keywords.get("dtype") in (torch.float32, torch.float64):
        keywords = {**keywords, "dtype": dtype}
    return graph.call_function(node.target, arguments, keywords)  # type: ignore[arg-type]


def _zeros(graph: fx.Graph, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> fx.Node:
    return graph.call_function(aten.zeros.default, (list(shape),), {"dtype": dtype, "device": device})


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def _fuse_additions(graph: fx.Graph) -> None:
    """x + a·b as one operation where the product has no other use; in place where x is a product without other use."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or not isinstance(node.args[1], fx.Node):
            continue
        for factors, other in (node.args, node.args[::-1]):
            alone = factors.target is aten.mm.default and len(factors.users) == 1 and factors is not other
            if alone and factors.meta["val"].shape == node.meta["val"].shape:
                fresh = other.target in (aten.mm.default, *FUSED) and len(other.users) == 1
                with graph.inserting_before(node):
                    fused = graph.call_function(FUSED[fresh], (other, *factors.args))
                fused.meta = dict(node.meta)
                node.replace_all_uses_with(fused)
                graph.erase_node(node)
                graph.erase_node(factors)
                break
