"""A model linearised at one θ and one minibatch: its outputs, J·v, Jᵀ·u, and what they cost in memory.

The structure (`trace`, `program`) is made once per shape; here are the numbers.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from asr_hf.curvature.flops import flops
from asr_hf.curvature.precision import Precision
from asr_hf.curvature.program import LinearProgram, cast_type, linear_program
from asr_hf.curvature.trace import Function, Named, Trace, trace

TRACES_KEPT = 64  # shapes of minibatches whose trace is remembered


class Linearizer:
    """Makes linearisations of one function; remembers the trace of every shape of its inputs.

    Args:
        function: (parameters, inputs) to named outputs; made of operations that torch.func can differentiate.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._traces: dict[Any, tuple[Trace, Any, Any]] = {}

    def at(self, parameters: Named, precision: Precision = Precision.FP32) -> "Point":
        """Fix θ, and the precision of the products."""
        return Point(self, parameters, precision)

    def flops(self, parameters: Named, inputs: Any, names: tuple[str, ...]) -> int:
        """Floating-point operations of a J·v and a Jᵀ·u in the named parameters, at the shapes of the arguments."""
        _, _, costs = self.trace(parameters, inputs)
        return costs(names, next(iter(parameters.values())).dtype)

    def trace(self, parameters: Named, inputs: Any) -> tuple[Trace, Any, Any]:
        """The trace for these shapes, the programs made from it so far, and what they cost."""
        leaves, structure = pytree.tree_flatten(inputs)
        shapes = tuple((x.shape, x.dtype, x.stride()) if isinstance(x, torch.Tensor) else x for x in leaves)
        key = (structure, shapes, tuple((name, p.dtype) for name, p in parameters.items()))
        if key not in self._traces:
            while len(self._traces) >= TRACES_KEPT:
                self._traces.pop(next(iter(self._traces)))
            made = trace(self._function, parameters, inputs)
            programs = functools.cache(lambda names, dtype: linear_program(made, names, dtype))
            sizes = {name: parameter.shape for name, parameter in parameters.items()}
            costs = functools.cache(lambda names, dtype: flops(programs(names, dtype), made, sizes))
            self._traces[key] = made, programs, costs
        return self._traces[key]


class Point:
    """One θ: the parameters as the primal graph and as the products want them.

    Args:
        linearizer: of the function.
        parameters: name → tensor.
        precision: of the products.
    """

    def __init__(self, linearizer: Linearizer, parameters: Named, precision: Precision) -> None:
        self.linearizer = linearizer
        self.precision = precision
        self.parameters = {name: tensor.detach() for name, tensor in parameters.items()}
        self.device = next(iter(self.parameters.values())).device
        self.cast = {name: tensor.to(precision.dtype_of(tensor)) for name, tensor in self.parameters.items()}

    def linearize(self, inputs: Any) -> "ModelLinearisation":
        """Evaluate the function at θ and these inputs and keep what its derivative needs.

        Raises:
            InputError: the function holds an operation without a forward-mode derivative; it is named.
        """
        return ModelLinearisation(self, inputs)


class ModelLinearisation:
    """J of a model at one θ and one minibatch.

    Attributes:
        outputs: named outputs, in full precision; J needs them no longer: `forget_outputs` lets their memory go.
        bytes_held: size of the constants that are kept beside the parameters.
    """

    def __init__(self, point: Point, inputs: Any) -> None:
        self._point = point
        self._trace, self._programs, _ = point.linearizer.trace(point.parameters, inputs)
        leaves = pytree.tree_leaves(inputs)
        with torch.no_grad(), Precision.FP32.matmul(point.device):
            results = list(self._trace.primal(*point.parameters.values(), *leaves))
        count = len(self._trace.outputs)
        self.outputs = dict(zip(self._trace.outputs, results[:count], strict=True))
        self._types = [y.dtype for y in self.outputs.values()]
        self._dtype = point.precision.dtype_of(next(iter(point.parameters.values())))
        computed = [_cast(results.pop(), self._dtype) for _ in range(len(results) - count)]  # from the last on
        self.bytes_held = _bytes(computed)
        self._constants = [
            point.cast[self._trace.parameter_constants[i]] if i in self._trace.parameter_constants else computed.pop()
            for i in range(len(self._trace.constants))
        ]

    def forget_outputs(self) -> None:
        """Drop `outputs`, once the criterion has seen them."""
        self.outputs = {}

    def forward(self, tangent: Named) -> dict[str, torch.Tensor]:
        """J·v: tangents of the outputs for tangents of some parameters, those of the others being zero."""
        program = self._program(tuple(tangent))
        v = [tangent[name].to(self._dtype) for name in program.parameters]
        with torch.no_grad(), self._point.precision.matmul(self._point.device):
            results = program.forward(*self._constants, *v)
        named = zip(self._trace.outputs, results, self._types, strict=True)
        return {name: y.to(dtype) for name, y, dtype in named}

    def transposed(self, cotangent: Named, parameters: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Jᵀ·u: cotangents of the named parameters (None: of all) for cotangents of the outputs (absent: zero)."""
        program = self._program(tuple(parameters or self._trace.parameters))
        u = [
            cotangent[name].to(self._dtype)
            if name in cotangent
            else torch.zeros(shape, dtype=self._dtype, device=self._point.device)
            for name, shape in zip(self._trace.outputs, self._trace.shapes, strict=True)
        ]
        with torch.no_grad(), self._point.precision.matmul(self._point.device):
            results = program.transposed(self._constants, u)
        like = self._point.parameters
        return {name: w.to(like[name].dtype) for name, w in zip(program.parameters, results, strict=True)}

    def _program(self, names: tuple[str, ...]) -> LinearProgram:
        return self._programs(names, self._dtype)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(cast_type(tensor.dtype, dtype))


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
