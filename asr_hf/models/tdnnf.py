"""The factorised time-delay neural network: semi-orthogonal bottlenecks inside the layers, bypasses around them.

Shapes: B rows, W = left + s·(T − 1) + 1 + right input frames, D feature dimension, T output frames, s subsampling.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from asr_hf.models.acoustic import SUBSAMPLINGS
from asr_hf.models.delays import Delays, chain
from asr_hf.models.hidden import require_hidden
from asr_hf.models.semi_orthogonal import SemiOrthogonal
from asr_hf.models.tdnn import TimeDelayLayer, TimeDelayModel
from asr_hf.options import option, require


@dataclass
class TdnnfOptions:
    """A factorised time-delay neural network (Povey et al. 2018)."""

    frame_model: ClassVar[bool] = False
    chunk: ClassVar[int] = 0

    width: int = option(256, "units per hidden layer")
    bottleneck: int = option(64, "units of the linear bottleneck inside each factorised layer")
    strides: list[int] = option(
        [1, 3, 3, 3], "for each factorised layer, s: its factors see frames -s, 0 and 0, s (0: no other frame)"
    )
    bypass_scale: float = option(0.66, "share of a factorised layer's input that is added to its output")
    norm: str = option("layer", "norm after each ReLU: layer, batch (stored statistics) or none")
    dropout: float = option(0.0, "share of each hidden layer's units that is dropped in training")
    subsampling: int = option(1, "feature frames per output frame: 1 or 3")
    semi_orthogonal: float = option(0.01, "weight of the penalty that keeps the bottlenecks semi-orthogonal (0: none)")

    def __post_init__(self) -> None:
        require(self.width >= 1, "model.width", self.width, "must be at least 1")
        inside = 1 <= self.bottleneck <= self.width
        require(inside, "model.bottleneck", self.bottleneck, "must lie between 1 and model.width")
        require(all(stride >= 0 for stride in self.strides), "model.strides", self.strides, "must not be negative")
        require(0 <= self.bypass_scale <= 1, "model.bypass_scale", self.bypass_scale, "must lie in [0, 1]")
        require_hidden("relu", self.norm, self.dropout)
        require(self.subsampling in SUBSAMPLINGS, "model.subsampling", self.subsampling, "must be 1 or 3")
        require(self.semi_orthogonal >= 0, "model.semi_orthogonal", self.semi_orthogonal, "must not be negative")

    def build(self, input_dim: int, num_pdfs: int, seed: int) -> "Tdnnf":
        return Tdnnf(self, input_dim, num_pdfs, seed)


class FactorisedLayer(TimeDelayLayer):
    """A layer with two linear factors, and a share of its input going round it.

    The factors are `bottleneck` over the input at frames −s, 0 (no bias), then `weight` and `bias` over that at 0, s.
    The bottleneck starts with orthonormal rows, drawn at random (Saxe et al. 2014).

    Args:
        delays: of the two factors.
    """

    def __init__(self, options: TdnnfOptions, delays: tuple[Delays, Delays], generator: torch.Generator) -> None:
        super().__init__(options.bottleneck, options.width, "relu", delays[1], options.norm, generator)
        self.bottleneck_delays = delays[0]
        self.bypass_scale = options.bypass_scale
        self.bottleneck = nn.Parameter(torch.empty(options.bottleneck, options.width * len(delays[0].offsets)))
        nn.init.orthogonal_(self.bottleneck, generator=generator)

    def forward(self, x_BFD: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.linear(self.bottleneck_delays.splice(x_BFD), self.bottleneck))

    def with_bypass(self, hidden_BTU: torch.Tensor, x_BFD: torch.Tensor) -> torch.Tensor:
        first, second = self.bottleneck_delays, self.delays
        whole = Delays((first.offsets[0], second.offsets[-1]), first.stride_in, second.stride)
        return hidden_BTU + self.bypass_scale * whole.at(x_BFD, 0)


class Tdnnf(TimeDelayModel):
    """A time-delay layer `layer1` on frames −1, 0, 1, factorised layers `layer2 … layerN` and a linear `output`.

    A factorised layer is bottleneck → affine map → ReLU → norm → dropout, plus `bypass_scale` times its input (Povey et
    al. 2018, sections 3 and 4; Kaldi's tdnnf-layer).
    """

    def __init__(self, options: TdnnfOptions, input_dim: int, num_pdfs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        factors = [offsets for stride in options.strides for offsets in _factors(stride)]
        first, *delays = chain([(-1, 0, 1), *factors], options.subsampling)
        layers: dict[str, TimeDelayLayer] = {
            "layer1": TimeDelayLayer(input_dim, options.width, "relu", first, options.norm, generator)
        }
        for pair in zip(delays[::2], delays[1::2], strict=True):
            layers[f"layer{len(layers) + 1}"] = FactorisedLayer(options, pair, generator)
        context = 1 + sum(options.strides)
        super().__init__(
            layers,
            options.width,
            options.dropout,
            input_dim,
            num_pdfs,
            (context, context),
            options.subsampling,
            generator,
        )
        self.semi_orthogonal = options.semi_orthogonal

    def penalty(self) -> SemiOrthogonal | None:
        if not self.semi_orthogonal:
            return None
        return SemiOrthogonal(tuple(f"{name}.bottleneck" for name in self.states[1:]), self.semi_orthogonal)

    def uses_per_frame(self, parameter: str) -> float:
        if parameter.endswith(".bottleneck"):
            layer = self.layer(self.block_of(parameter))
            assert isinstance(layer, FactorisedLayer)
            return float(self.subsampling // layer.bottleneck_delays.stride)
        return super().uses_per_frame(parameter)


def _factors(stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The offsets of a factorised layer's bottleneck and of its affine map."""
    return ((-stride, 0), (0, stride)) if stride else ((0,), (0,))
