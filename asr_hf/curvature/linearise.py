"""J·v and Jᵀ·u of a model at fixed parameters and inputs, by forward and reverse mode with everything cached.

J = ∂outputs/∂parameters. One linearisation serves a whole CG solve: a product then costs no forward pass of the model.
"""

import warnings
from collections.abc import Callable, Mapping

import torch

from asr_hf.errors import InputError

Named = Mapping[str, torch.Tensor]
Function = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]  # parameters -> named outputs

# What torch.func.linearize itself warns about on every call, with torch 2.11.
_TORCH_WARNINGS = (
    (DeprecationWarning, r".*torch\.jit\.script.*"),
    (UserWarning, r".*get_attr.*"),
)


class ModelLinearisation:
    """J of `function` at `parameters`.

    Args:
        function: parameters (name → tensor) to named outputs; made of operations that torch.func can differentiate.
        parameters: where to linearise.

    Attributes:
        outputs: function(parameters), detached.

    Raises:
        InputError: the model holds an operation without a forward-mode derivative; it names the operation.
    """

    def __init__(self, function: Function, parameters: Named) -> None:
        primal = {name: tensor.detach() for name, tensor in parameters.items()}
        try:
            with warnings.catch_warnings():
                for category, message in _TORCH_WARNINGS:
                    warnings.filterwarnings("ignore", message=message, category=category)
                outputs, self._forward = torch.func.linearize(function, primal)
            self._transposed = torch.func.vjp(function, primal)[1]
        except NotImplementedError as error:
            raise InputError(
                f"the model cannot be linearised: {str(error).splitlines()[0]}",
                "Build it from operations that torch.func differentiates in forward mode (nn.LSTM on CPU is not one).",
            ) from error
        self.outputs = {name: tensor.detach() for name, tensor in outputs.items()}

    def forward(self, tangent: Named) -> dict[str, torch.Tensor]:
        """J·v: tangents of the outputs for tangents of the parameters."""
        with torch.no_grad():
            return self._forward(dict(tangent))

    def transposed(self, cotangent: Named) -> dict[str, torch.Tensor]:
        """Jᵀ·u: cotangents of the parameters for cotangents of the outputs."""
        (result,) = self._transposed(dict(cotangent), retain_graph=True)
        return {name: tensor.detach() for name, tensor in result.items()}
