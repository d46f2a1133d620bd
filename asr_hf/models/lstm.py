"""The long short-term memory acoustic model, with projection, output delay and training on chunks.

Shapes: W frames of time, B rows, D inputs, H cells, R recurrent units.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from asr_hf.models.acoustic import SUBSAMPLINGS
from asr_hf.models.hidden import start_weight
from asr_hf.models.lstm_operator import lstm
from asr_hf.models.norm import NORMS
from asr_hf.models.recurrent import RecurrentLayer, RecurrentModel
from asr_hf.options import option, require, require_choice


@dataclass
class LstmOptions:
    """A long short-term memory network (Sak, Senior and Beaufays 2014), on whole utterances or on chunks."""

    frame_model: ClassVar[bool] = False

    layers: int = option(2, "number of LSTM layers")
    cells: int = option(256, "memory cells per layer and direction")
    projection: int = option(0, "units of the recurrent projection (0: none)")
    bidirectional: bool = option(False, "a second recurrence in each layer, from the last frame to the first")
    delay: int = option(0, "output frames by which outputs are read late, to know what follows (forward LSTM)")
    subsampling: int = option(1, "feature frames per output frame: 1 or 3; the LSTM then runs on 3 stacked frames")
    chunk: int = option(0, "train on pieces of that many frames (0: whole utterances)")
    chunk_left: int = option(0, "frames before a chunk that warm up the state")
    chunk_right: int = option(0, "frames behind a chunk that warm up the state of the other direction")
    norm: str = option("layer", "norm of a layer's output: layer, batch (stored statistics) or none")
    dropout: float = option(0.0, "share of the units dropped on the way up from each layer")

    def __post_init__(self) -> None:
        require(self.layers >= 1, "model.layers", self.layers, "must be at least 1")
        require(self.cells >= 1, "model.cells", self.cells, "must be at least 1")
        require(self.projection >= 0, "model.projection", self.projection, "must not be negative")
        require(self.delay >= 0, "model.delay", self.delay, "must not be negative")
        require(not (self.delay and self.bidirectional), "model.delay", self.delay, "must be 0 with bidirectional")
        require(self.subsampling in SUBSAMPLINGS, "model.subsampling", self.subsampling, "must be 1 or 3")
        for name in ("chunk", "chunk_left", "chunk_right"):
            value = getattr(self, name)
            require(value >= 0, f"model.{name}", value, "must not be negative")
            require(value == 0 or self.chunk > 0, f"model.{name}", value, "needs model.chunk")
        behind = self.chunk_right == 0 or self.bidirectional
        require(behind, "model.chunk_right", self.chunk_right, "needs model.bidirectional=true")
        require_choice("model.norm", self.norm, tuple(NORMS))
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must lie in [0, 1)")

    def build(self, input_dim: int, num_pdfs: int, seed: int) -> "Lstm":
        return Lstm(self, input_dim, num_pdfs, seed)


class _Recurrence(nn.Module):
    """One direction of a layer.

    Input weights and projection start as in Glorot and Bengio (2010), recurrent ones orthogonal, both gate by gate; the
    bias of the forget gate starts at 1 (Jozefowicz, Zaremba and Sutskever 2015), the others at 0.
    """

    def __init__(self, inputs: int, cells: int, projection: int, reverse: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.reverse = reverse
        self.input = nn.Linear(inputs, 4 * cells)
        self.recurrent = nn.Parameter(torch.empty(4 * cells, projection or cells))
        self.projection = nn.Parameter(torch.empty(projection, cells)) if projection else None
        for gate in range(4):
            start_weight(self.input.weight[gate * cells : (gate + 1) * cells], "linear", generator)
            nn.init.orthogonal_(self.recurrent[gate * cells : (gate + 1) * cells], generator=generator)
        if self.projection is not None:
            start_weight(self.projection, "linear", generator)
        nn.init.zeros_(self.input.bias)
        nn.init.ones_(self.input.bias[cells : 2 * cells])

    def forward(self, x_WBD: torch.Tensor, mask_WB1: torch.Tensor | None) -> torch.Tensor:
        return lstm(self.input(x_WBD), self.recurrent, self.projection, mask_WB1, self.reverse)


class Lstm(RecurrentModel):
    """LSTM layers `lstm1 … lstmN` and a linear `output`.

    A chunk has `chunk_left` frames of left context, at the first of which the state is zero; its right context is
    `chunk_right` frames for the other direction, or the `delay` of a forward LSTM. At the ends of an utterance the
    edge frame stands for the missing context, as everywhere, in training and decoding alike.
    """

    def __init__(self, options: LstmOptions, input_dim: int, num_pdfs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def layer(inputs: int) -> RecurrentLayer:
            def recurrence(reverse: bool) -> nn.Module:
                return _Recurrence(inputs, options.cells, options.projection, reverse, generator)

            units = options.projection or options.cells
            return RecurrentLayer(recurrence, units, options.bidirectional, options.norm)

        super().__init__(
            "lstm",
            layer,
            options.layers,
            options.dropout,
            input_dim,
            num_pdfs,
            generator,
            delay=options.delay,
            chunk=options.chunk,
            left_context=-(-options.chunk_left // options.subsampling),
            right_context=-(-options.chunk_right // options.subsampling) + options.delay,  # one of them is 0
            subsampling=options.subsampling,
        )
