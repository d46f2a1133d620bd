"""The time-delay neural network: every hidden layer sees the layer below at a few frames around its own.

Shapes: B rows, W = left + s·(T − 1) + 1 + right input frames, D feature dimension, T output frames, s subsampling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from asr_hf.models.acoustic import BRANCH, OUTPUT, SUBSAMPLINGS, AcousticModel
from asr_hf.models.delays import Delays, chain
from asr_hf.models.hidden import ACTIVATIONS, HiddenLayer, drop, output_layer, require_hidden
from asr_hf.models.norm import frame_mask
from asr_hf.options import option, require


@dataclass
class TdnnOptions:
    """A time-delay neural network (Waibel et al. 1989; Peddinti et al. 2015)."""

    frame_model: ClassVar[bool] = False
    chunk: ClassVar[int] = 0

    contexts: list[list[int]] = option(
        [[-1, 0, 1], [-1, 0, 1], [-3, 0, 3], [-3, 0, 3], [-3, 0, 3]],
        "for each hidden layer, the frames of the layer below that it sees, as offsets from its own frame",
    )
    width: int = option(256, "units per hidden layer")
    activation: str = option("relu", "sigmoid, tanh, relu or maxout (the larger of two linear units)")
    norm: str = option("layer", "norm after each activation: layer, batch (stored statistics) or none")
    dropout: float = option(0.0, "share of each hidden layer's units that is dropped in training")
    subsampling: int = option(1, "feature frames per output frame: 1 or 3")

    def __post_init__(self) -> None:
        require(len(self.contexts) >= 1, "model.contexts", self.contexts, "must name at least one layer")
        for offsets in self.contexts:
            ascending = len(offsets) >= 1 and sorted(set(offsets)) == list(offsets)
            require(ascending, "model.contexts", self.contexts, "must hold ascending offsets for each layer")
        require(
            sum(offsets[0] for offsets in self.contexts) <= 0, "model.contexts", self.contexts, "must not start ahead"
        )
        require(
            sum(offsets[-1] for offsets in self.contexts) >= 0, "model.contexts", self.contexts, "must not end behind"
        )
        require(self.width >= 1, "model.width", self.width, "must be at least 1")
        require_hidden(self.activation, self.norm, self.dropout)
        require(self.subsampling in SUBSAMPLINGS, "model.subsampling", self.subsampling, "must be 1 or 3")

    def build(self, input_dim: int, num_pdfs: int, seed: int) -> "Tdnn":
        return Tdnn(self, input_dim, num_pdfs, seed)


class TimeDelayLayer(HiddenLayer):
    """A hidden layer on spliced frames; the weight has the columns of the lowest offset first."""

    def __init__(
        self, inputs: int, units: int, activation: str, delays: Delays, norm: str, generator: torch.Generator
    ) -> None:
        super().__init__(inputs * len(delays.offsets), units, activation, norm, generator)
        self.delays = delays
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x_BFD: torch.Tensor) -> torch.Tensor:
        """The activations (B, frames of the layer, units)."""
        return self.activation(functional.linear(self.delays.splice(x_BFD), self.weight, self.bias))

    def with_bypass(self, hidden_BTU: torch.Tensor, x_BFD: torch.Tensor) -> torch.Tensor:
        """What the next layer sees, from the layer's units after norm and dropout and from its input."""
        return hidden_BTU


class TimeDelayModel(AcousticModel):
    """Time-delay layers upon each other and a linear `output`.

    With subsampling, the layers from which on every third frame suffices are evaluated at every third frame.

    Args:
        layers: name → layer, the lowest first.
        units: of each layer.
        dropout: rate, of every layer.
    """

    windowed = True

    def __init__(
        self,
        layers: Mapping[str, TimeDelayLayer],
        units: int,
        dropout: float,
        input_dim: int,
        num_pdfs: int,
        context: tuple[int, int],
        subsampling: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(input_dim, num_pdfs, *context, subsampling)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.output = output_layer(units, num_pdfs, generator)
        self.states = tuple(layers)
        if dropout:
            self.dropouts = dict.fromkeys(layers, (units, dropout))

    def forward(
        self,
        x_BWD: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        keep: Mapping[str, torch.Tensor] | None = None,
        states: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        """(B, W, D) → {"output": (B, T, P)} and the states, (B, frames of the layer, units)."""
        hidden, outputs = x_BWD, {}
        for name in self.states:
            layer = self.layer(name)
            active = layer(hidden)
            if name in states:
                outputs[name] = active
            mask = None if mask_BT is None else frame_mask(mask_BT, active.shape[1], self.rate_of(name))
            hidden = layer.with_bypass(drop(layer.norm(active, mask), name, keep), hidden)
        return {**self.outputs(hidden), **outputs}

    def layer(self, name: str) -> TimeDelayLayer:
        layer = self.get_submodule(name)
        assert isinstance(layer, TimeDelayLayer)
        return layer

    def rate_of(self, state: str) -> int:
        return self.subsampling // self.layer(state).delays.stride

    def uses_per_frame(self, parameter: str) -> float:
        """Frames at which the parameter's layer is evaluated per output frame."""
        layer = self.block_of(parameter)
        return 1.0 if layer in (OUTPUT, BRANCH) else float(self.rate_of(layer))


class Tdnn(TimeDelayModel):
    """Time-delay layers `layer1 … layerN` (see `hidden` for what they are and how they start), linear `output`."""

    def __init__(self, options: TdnnOptions, input_dim: int, num_pdfs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        layers: dict[str, TimeDelayLayer] = {}
        for delays in chain(options.contexts, options.subsampling):
            inputs = options.width if layers else input_dim
            layers[f"layer{len(layers) + 1}"] = TimeDelayLayer(
                inputs, options.width, options.activation, delays, options.norm, generator
            )
        context = -sum(offsets[0] for offsets in options.contexts), sum(offsets[-1] for offsets in options.contexts)
        super().__init__(
            layers, options.width, options.dropout, input_dim, num_pdfs, context, options.subsampling, generator
        )
