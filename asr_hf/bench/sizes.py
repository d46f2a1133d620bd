"""The sizes that are measured: what a network is made of, how much data it sees, what its gradient costs.

The parameters have canonical names and shapes, from which every implementation takes its own:
`layer1.weight`, `layer1.bias`, …, `output.weight`, `output.bias`, weights (out, in); the TDNN's inputs are ordered
(offset, unit), the LSTM has `layer1.input`, `layer1.recurrent`, `layer1.bias` with gates in the order i, f, g, o.

Shapes: B rows, W input frames, D feature dimension, T output frames.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

SEED = 1


@dataclass(frozen=True)
class DnnSize:
    """A feed-forward network with ReLUs on spliced frames, a frame a row."""

    model: ClassVar[str] = "dnn"
    input_dim: int = 40
    context: int = 4
    layers: int = 6
    width: int = 1024
    pdfs: int = 2000
    frames: int = 2048

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return _layers(self.input_dim * (2 * self.context + 1), self.width, self.layers, 1, self.pdfs)

    def input_shape(self) -> tuple[int, int, int]:
        return self.frames, 2 * self.context + 1, self.input_dim

    def output_shape(self) -> tuple[int, int]:
        return self.frames, 1

    def rows_of(self, parameter: str) -> int:
        """Rows that a weight multiplies: m of its GEMM, whose k and n are the weight's shape."""
        return self.frames


@dataclass(frozen=True)
class TdnnSize:
    """ReLU layers that see the frames −1, 0 and +1 of the layer below; rows bring the frames at their ends."""

    model: ClassVar[str] = "tdnn"
    input_dim: int = 40
    layers: int = 6
    width: int = 512
    pdfs: int = 2000
    rows: int = 32
    frames: int = 150

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return _layers(self.input_dim, self.width, self.layers, 3, self.pdfs)

    def input_shape(self) -> tuple[int, int, int]:
        return self.rows, self.frames + 2 * self.layers, self.input_dim

    def output_shape(self) -> tuple[int, int]:
        return self.rows, self.frames

    def rows_of(self, parameter: str) -> int:
        name = parameter.split(".")[0]
        above = 0 if name == "output" else self.layers - int(name.removeprefix("layer"))
        return self.rows * (self.frames + 2 * above)


@dataclass(frozen=True)
class LstmSize:
    """Unidirectional LSTM layers without projection."""

    model: ClassVar[str] = "lstm"
    input_dim: int = 40
    layers: int = 2
    width: int = 512
    pdfs: int = 2000
    rows: int = 64
    frames: int = 30

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(1, self.layers + 1):
            below = self.input_dim if layer == 1 else self.width
            shapes[f"layer{layer}.input"] = (4 * self.width, below)
            shapes[f"layer{layer}.recurrent"] = (4 * self.width, self.width)
            shapes[f"layer{layer}.bias"] = (4 * self.width,)
        return shapes | {"output.weight": (self.pdfs, self.width), "output.bias": (self.pdfs,)}

    def input_shape(self) -> tuple[int, int, int]:
        return self.rows, self.frames, self.input_dim

    def output_shape(self) -> tuple[int, int]:
        return self.rows, self.frames

    def rows_of(self, parameter: str) -> int:
        return self.rows * self.frames


Size = DnnSize | TdnnSize | LstmSize
SIZES: dict[str, Size] = {"dnn": DnnSize(), "tdnn": TdnnSize(), "lstm": LstmSize()}
TINY: dict[str, Size] = {  # warms a process up before its memory is measured; tests
    "dnn": DnnSize(input_dim=4, context=1, layers=3, width=8, pdfs=7, frames=16),
    "tdnn": TdnnSize(input_dim=4, layers=3, width=8, pdfs=7, rows=3, frames=6),
    "lstm": LstmSize(input_dim=4, layers=2, width=6, pdfs=7, rows=3, frames=5),
}


def _layers(inputs: int, width: int, layers: int, offsets: int, pdfs: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(1, layers + 1):
        shapes[f"layer{layer}.weight"] = (width, offsets * (inputs if layer == 1 else width))
        shapes[f"layer{layer}.bias"] = (width,)
    return shapes | {"output.weight": (pdfs, width), "output.bias": (pdfs,)}


def gradient_flops(size: Size) -> int:
    """Flops of the matrix products of one gradient: 2·m·k·n each, 3 a weight, 2 for weights on the input."""
    total = 0
    for name, shape in size.parameter_shapes().items():
        if len(shape) == 2:
            products = 2 if name in ("layer1.weight", "layer1.input") else 3
            total += products * 2 * size.rows_of(name) * math.prod(shape)
    return total


def cut(shapes: dict[str, tuple[int, ...]], blocks: int) -> list[list[str]]:
    """Cut the parameters into consecutive blocks of about equal size, between layers where there are enough of them."""
    layers = {name: name.split(".")[0] for name in shapes}
    units = layers if len(set(layers.values())) >= blocks else {name: name for name in shapes}
    total = sum(map(math.prod, shapes.values()))
    found: list[list[str]] = [[] for _ in range(blocks)]
    before = 0
    for unit in dict.fromkeys(units.values()):
        names = [name for name in shapes if units[name] == unit]
        count = sum(math.prod(shapes[name]) for name in names)
        found[int(blocks * (before + count / 2) / total)] += names  # the block that the unit's middle falls into
        before += count
    return [names for names in found if names]


@dataclass(frozen=True)
class Problem:
    """What all methods share: a point θ, a direction v, the data.

    Attributes:
        weights, direction: θ and v by canonical name.
        x_BWD: inputs.
        target_BT: one pdf a frame.
    """

    weights: dict[str, torch.Tensor]
    direction: dict[str, torch.Tensor]
    x_BWD: torch.Tensor
    target_BT: torch.Tensor


def make_problem(size: Size, device: str) -> Problem:
    """Draw weights (variance 2/inputs, of output and LSTM layers 1/inputs), direction, inputs and targets: normal."""
    generator = torch.Generator().manual_seed(SEED)
    weights, direction = {}, {}
    for name, shape in size.parameter_shapes().items():
        gain = 2.0 if name.endswith("weight") and not name.startswith("output") else 1.0
        deviation = math.sqrt(gain / shape[1]) if len(shape) == 2 else 0.1
        weights[name] = (deviation * torch.randn(shape, generator=generator)).to(device)
        direction[name] = torch.randn(shape, generator=generator).to(device)
    x_BWD = torch.randn(size.input_shape(), generator=generator).to(device)
    target_BT = torch.randint(size.pdfs, size.output_shape(), generator=generator).to(device)
    return Problem(weights, direction, x_BWD, target_BT)
