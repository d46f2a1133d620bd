"""Time-delay layers: which frames a layer sees, and at which frames it is evaluated.

Shapes: B rows, F frames of the layer's input, T those of its output, D inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Delays:
    """The input frames that each frame of a layer sees.

    Attributes:
        offsets: of the input frames from the layer's frame, ascending.
        stride_in, stride: feature frames between two frames of the layer's input, and of the layer itself.
    """

    offsets: tuple[int, ...]
    stride_in: int
    stride: int

    def splice(self, x_BFD: torch.Tensor) -> torch.Tensor:
        """The input frames at all offsets side by side (B, T, offsets·D).

        One splice and one GEMM a layer took as long as a GEMM per offset, added up (6 x 512, float32 and bfloat16), and
        it sums in the GEMM's accumulator.
        """
        return torch.cat([self.at(x_BFD, offset) for offset in self.offsets], dim=2)

    def at(self, x_BFD: torch.Tensor, offset: int) -> torch.Tensor:
        """The input frames at one offset from each frame of the layer (B, T, D), a view."""
        start, step = (offset - self.offsets[0]) // self.stride_in, self.stride // self.stride_in
        span = (self.offsets[-1] - self.offsets[0]) // self.stride_in
        frames = (x_BFD.shape[1] - span - 1) // step + 1
        return x_BFD[:, start : start + step * (frames - 1) + 1 : step]


def chain(offsets: Sequence[Sequence[int]], subsampling: int) -> list[Delays]:
    """The delays of layers upon each other, the lowest first, so that the highest yields every `subsampling`-th frame.

    From the top down: a layer that is evaluated at a stride, and whose offsets differ by multiples of it, needs its
    input at that stride only; else at every frame. The features come at every frame.
    """
    delays: list[Delays] = []
    stride = subsampling
    for index, layer in reversed(list(enumerate(offsets))):
        sparse = index > 0 and all((offset - layer[0]) % stride == 0 for offset in layer)
        delays.insert(0, Delays(tuple(layer), stride if sparse else 1, stride))
        stride = delays[0].stride_in
    return delays
