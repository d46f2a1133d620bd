"""The feed-forward acoustic model: spliced frames → hidden layers → pdfs.

Shapes: B rows, W = left + T + right input frames, D feature dimension, T output frames, P pdfs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.hidden import ACTIVATIONS, HiddenLayer, drop, output_layer, require_hidden
from asr_hf.options import option, require


@dataclass
class DnnOptions:
    """A feed-forward network on spliced frames."""

    frame_model: ClassVar[bool] = True  # an output frame depends on its window alone: single frames can be drawn
    before: ClassVar[dict[str, Any]] = {"norm": "none"}  # what models saved before an option existed had in its place

    hidden_layers: int = option(4, "number of hidden layers")
    width: int = option(256, "units per hidden layer")
    activation: str = option("relu", "sigmoid, tanh, relu or maxout (the larger of two linear units)")
    context: int = option(6, "frames spliced on each side of the frame that is classified")
    norm: str = option("layer", "norm after each activation: layer, batch (stored statistics) or none")
    dropout: float = option(0.0, "share of each hidden layer's units that is dropped in training")

    def __post_init__(self) -> None:
        require(self.hidden_layers >= 0, "model.hidden_layers", self.hidden_layers, "must not be negative")
        require(self.width >= 1, "model.width", self.width, "must be at least 1")
        require(self.context >= 0, "model.context", self.context, "must not be negative")
        require_hidden(self.activation, self.norm, self.dropout)

    def build(self, input_dim: int, num_pdfs: int, seed: int) -> "Dnn":
        return Dnn(self, input_dim, num_pdfs, seed)


class Dnn(AcousticModel):
    """Feed-forward network: `layer1 … layerN` (see `hidden` for what a layer is and how it starts), linear `output`."""

    frame_model = DnnOptions.frame_model
    windowed = True

    def __init__(self, options: DnnOptions, input_dim: int, num_pdfs: int, seed: int) -> None:
        super().__init__(input_dim, num_pdfs, options.context, options.context)
        generator = torch.Generator().manual_seed(seed)
        self.window = 2 * options.context + 1
        self.activation = ACTIVATIONS[options.activation]()
        self.states = tuple(f"layer{index + 1}" for index in range(options.hidden_layers))
        inputs = input_dim * self.window
        for name in self.states:
            self.add_module(name, HiddenLayer(inputs, options.width, options.activation, options.norm, generator))
            inputs = options.width
        self.output = output_layer(inputs, num_pdfs, generator)
        if options.dropout:
            self.dropouts = dict.fromkeys(self.states, (options.width, options.dropout))

    def forward(
        self,
        x_BWD: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        keep: Mapping[str, torch.Tensor] | None = None,
        states: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        """(B, W, D) → {"output": (B, W − 2·context, P)} and the states, (B, T, width)."""
        hidden = x_BWD.unfold(1, self.window, 1).transpose(2, 3).flatten(2)  # (B, T, window·D)
        outputs = {}
        for name in self.states:
            layer = self.get_submodule(name)
            assert isinstance(layer, HiddenLayer)
            hidden = self.activation(functional.linear(hidden, layer.weight, layer.bias))
            if name in states:
                outputs[name] = hidden
            hidden = drop(layer.norm(hidden, mask_BT), name, keep)
        return {**self.outputs(hidden), **outputs}
