"""Hidden layers of the feed-forward models: linear map → activation → norm → dropout, in this order everywhere.

The order is that of Kaldi's relu-batchnorm-dropout layers: the next layer sees normalised units. The *state* of a layer
is its activations, before norm and dropout.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from asr_hf.models.norm import NORMS
from asr_hf.options import require, require_choice


class Maxout(nn.Module):
    """The larger of two linear units for each output unit (Goodfellow et al. 2013): (…, 2·units) → (…, units)."""

    pieces = 2

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.maximum(*z.chunk(2, dim=-1))


ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "maxout": Maxout}


def require_hidden(activation: str, norm: str, dropout: float) -> None:
    """Refuse impossible options of hidden layers (OptionError)."""
    require_choice("model.activation", activation, tuple(ACTIVATIONS))
    require_choice("model.norm", norm, tuple(NORMS))
    require(0 <= dropout < 1, "model.dropout", dropout, "must lie in [0, 1)")


class HiddenLayer(nn.Module):
    """The parameters of one hidden layer: weight (pieces·units, inputs), bias and norm.

    Biases start at 0; weights as `start_weight` says.
    """

    def __init__(self, inputs: int, units: int, activation: str, norm: str, generator: torch.Generator) -> None:
        super().__init__()
        rows = units * getattr(ACTIVATIONS[activation], "pieces", 1)
        self.weight = nn.Parameter(torch.empty(rows, inputs))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.norm = NORMS[norm](units)
        start_weight(self.weight, activation, generator)


def output_layer(inputs: int, num_pdfs: int, generator: torch.Generator) -> nn.Linear:
    """The linear layer to the pdfs: normalised uniform weights, biases 0."""
    layer = nn.Linear(inputs, num_pdfs)
    start_weight(layer.weight, "linear", generator)
    nn.init.zeros_(layer.bias)
    return layer


def start_weight(weight: torch.Tensor, activation: str, generator: torch.Generator) -> None:
    """Draw the initial values of a weight (units, inputs).

    Normalised uniform for linear and tanh units, 4 times that for the logistic (Glorot and Bengio 2010); normal with
    variance 2/inputs for ReLUs (He et al. 2015), 1/inputs for maxout: E[max(a, b)²] = E[a²] for independent symmetric
    a and b of equal variance, so this keeps the units' second moment as theirs does.
    """
    fan_out, fan_in = weight.shape
    with torch.no_grad():
        if activation in ("relu", "maxout"):
            weight.normal_(0.0, math.sqrt((2.0 if activation == "relu" else 1.0) / fan_in), generator=generator)
        else:
            bound = (4.0 if activation == "sigmoid" else 1.0) * math.sqrt(6.0 / (fan_in + fan_out))
            weight.uniform_(-bound, bound, generator=generator)


def drop(hidden: torch.Tensor, name: str, keep: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
    """Multiply hidden units (B, ·, units) by the factors (B, 1, units) of their place, if there are any."""
    return hidden * keep[name] if keep is not None and name in keep else hidden
