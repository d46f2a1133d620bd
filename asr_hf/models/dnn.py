"""The feed-forward acoustic model: spliced frames → hidden layers → pdfs.

Shapes: B rows, W = left + T + right input frames, D feature dimension, T output frames, P pdfs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from asr_hf.models.acoustic import AcousticModel
from asr_hf.options import option, require, require_choice

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


@dataclass
class DnnOptions:
    """A feed-forward network on spliced frames."""

    frame_model: ClassVar[bool] = True  # an output frame depends on its window alone: single frames can be drawn

    hidden_layers: int = option(4, "number of hidden layers")
    width: int = option(256, "units per hidden layer")
    activation: str = option("relu", "sigmoid or relu")
    context: int = option(6, "frames spliced on each side of the frame that is classified")

    def __post_init__(self) -> None:
        require(self.hidden_layers >= 0, "model.hidden_layers", self.hidden_layers, "must not be negative")
        require(self.width >= 1, "model.width", self.width, "must be at least 1")
        require(self.context >= 0, "model.context", self.context, "must not be negative")
        require_choice("model.activation", self.activation, tuple(ACTIVATIONS))

    def build(self, input_dim: int, num_pdfs: int, seed: int) -> "Dnn":
        return Dnn(self, input_dim, num_pdfs, seed)


class Dnn(AcousticModel):
    """Feed-forward network: `layer1 … layerN` with an activation each, and a linear `output`.

    Weights start as in Glorot and Bengio (2010), normalised uniform, for sigmoids (times 4, as they give for the
    logistic) and the output layer, and as in He et al. (2015) for ReLUs; biases start at 0.
    """

    frame_model = DnnOptions.frame_model

    def __init__(self, options: DnnOptions, input_dim: int, num_pdfs: int, seed: int) -> None:
        super().__init__(input_dim, num_pdfs, options.context, options.context)
        self.window = 2 * options.context + 1
        self.activation = ACTIVATIONS[options.activation]()
        widths = [input_dim * self.window] + [options.width] * options.hidden_layers
        self.depth = options.hidden_layers
        for index in range(self.depth):
            self.add_module(f"layer{index + 1}", nn.Linear(widths[index], widths[index + 1]))
        self.output = nn.Linear(widths[-1], num_pdfs)
        self._initialise(options.activation, seed)

    def _initialise(self, activation: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, layer in self.named_children():
            if not isinstance(layer, nn.Linear):
                continue
            fan_out, fan_in = layer.weight.shape
            glorot = math.sqrt(6.0 / (fan_in + fan_out))
            with torch.no_grad():
                layer.bias.zero_()
                if name != "output" and activation == "relu":
                    layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
                else:
                    bound = 4.0 * glorot if name != "output" else glorot
                    layer.weight.uniform_(-bound, bound, generator=generator)

    def forward(
        self,
        x_BWD: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        keep: Mapping[str, torch.Tensor] | None = None,
        states: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        """(B, W, D) → {"output": (B, W − 2·context, P)}."""
        hidden = x_BWD.unfold(1, self.window, 1).transpose(2, 3).flatten(2)  # (B, T, window·D)
        for index in range(self.depth):
            hidden = self.activation(self.get_submodule(f"layer{index + 1}")(hidden))
        return {"output": self.output(hidden)}
