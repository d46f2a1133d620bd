"""The standard recurrent acoustic model: h_t = a(W x_t + b + U h_{t−1}), layer upon layer.

Shapes: W frames of time, B rows, D inputs, H units.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from asr_hf.models.hidden import start_weight
from asr_hf.models.norm import NORMS
from asr_hf.models.recurrent import RecurrentLayer, RecurrentModel
from asr_hf.models.rnn_operator import RNN_ACTIVATIONS, rnn
from asr_hf.options import option, require, require_choice


@dataclass
class RnnOptions:
    """A standard recurrent network (Elman 1990), trained on whole utterances."""

    frame_model: ClassVar[bool] = False
    chunk: ClassVar[int] = 0

    layers: int = option(2, "number of recurrent layers")
    width: int = option(256, "units per layer and direction")
    activation: str = option("tanh", "tanh, relu or sigmoid")
    bidirectional: bool = option(False, "a second recurrence in each layer, from the last frame to the first")
    norm: str = option("layer", "norm of a layer's output: layer, batch (stored statistics) or none")
    dropout: float = option(0.0, "share of the units dropped on the way up from each layer")

    def __post_init__(self) -> None:
        require(self.layers >= 1, "model.layers", self.layers, "must be at least 1")
        require(self.width >= 1, "model.width", self.width, "must be at least 1")
        require_choice("model.activation", self.activation, RNN_ACTIVATIONS)
        require_choice("model.norm", self.norm, tuple(NORMS))
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must lie in [0, 1)")

    def build(self, input_dim: int, num_pdfs: int, seed: int) -> "Rnn":
        return Rnn(self, input_dim, num_pdfs, seed)


class _Recurrence(nn.Module):
    """One direction of a layer; input weights start as in `start_weight`, recurrent ones orthogonal, biases at 0."""

    def __init__(self, inputs: int, width: int, activation: str, reverse: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.activation, self.reverse = activation, reverse
        self.input = nn.Linear(inputs, width)
        self.recurrent = nn.Parameter(torch.empty(width, width))
        start_weight(self.input.weight, activation, generator)
        nn.init.zeros_(self.input.bias)
        nn.init.orthogonal_(self.recurrent, generator=generator)

    def forward(self, x_WBD: torch.Tensor, mask_WB1: torch.Tensor | None) -> torch.Tensor:
        return rnn(self.input(x_WBD), self.recurrent, self.activation, mask_WB1, self.reverse)


class Rnn(RecurrentModel):
    """Recurrent layers `rnn1 … rnnN` and a linear `output`; no context but the utterance itself."""

    def __init__(self, options: RnnOptions, input_dim: int, num_pdfs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def layer(inputs: int) -> RecurrentLayer:
            def recurrence(reverse: bool) -> nn.Module:
                return _Recurrence(inputs, options.width, options.activation, reverse, generator)

            return RecurrentLayer(recurrence, options.width, options.bidirectional, options.norm)

        super().__init__("rnn", layer, options.layers, options.dropout, input_dim, num_pdfs, generator)
