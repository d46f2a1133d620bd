"""Where the flat vector θ (N,) meets the modules: name, shape, offset, block and uses per frame of each parameter."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from asr_hf.models.acoustic import AcousticModel


@dataclass(frozen=True)
class Slot:
    """One parameter tensor's place in θ."""

    name: str
    shape: tuple[int, ...]
    offset: int
    block: str
    uses_per_frame: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The parameters of a model in the order in which they stand in θ."""

    slots: tuple[Slot, ...]

    @classmethod
    def of_buffers(cls, model: AcousticModel) -> "Layout":
        """The model's buffers (stored statistics of normalisations), laid out like parameters."""
        return cls.of_shapes({name: tuple(buffer.shape) for name, buffer in model.named_buffers()})

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Layout":
        """Named tensors that are no parameters, one after the other."""
        slots, offset = [], 0
        for name, shape in shapes.items():
            slots.append(Slot(name, shape, offset, "", 0.0))
            offset += slots[-1].size
        return cls(tuple(slots))

    @classmethod
    def of(cls, model: AcousticModel) -> "Layout":
        slots, offset = [], 0
        for name, parameter in model.named_parameters():
            slot = Slot(name, tuple(parameter.shape), offset, model.block_of(name), model.uses_per_frame(name))
            slots.append(slot)
            offset += slot.size
        return cls(tuple(slots))

    @property
    def size(self) -> int:
        """N, the number of parameters."""
        return self.slots[-1].offset + self.slots[-1].size if self.slots else 0

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in order of first appearance."""
        return tuple(dict.fromkeys(slot.block for slot in self.slots))

    def partition(self, count: int) -> tuple[tuple[str, ...], ...]:
        """The blocks in `count` contiguous groups with about equally many parameters (or fewer)."""
        sizes = {block: sum(slot.size for slot in self.slots if slot.block == block) for block in self.blocks}
        groups: list[list[str]] = [[]]
        filled = 0
        for position, (block, size) in enumerate(sizes.items()):
            wanted = len(groups) * self.size / count
            must_open = len(sizes) - position <= count - len(groups)
            if groups[-1] and len(groups) < count and (must_open or filled + size / 2 > wanted):
                groups.append([])
            groups[-1].append(block)
            filled += size
        return tuple(tuple(group) for group in groups)

    def parameters_of(self, groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        """The names of the parameters of each group of blocks."""
        return tuple(tuple(slot.name for slot in self.slots if slot.block in group) for group in groups)

    def views(self, vector_N: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters inside a flat vector, by name, without copying."""
        return {s.name: vector_N[s.offset : s.offset + s.size].view(s.shape) for s in self.slots}

    def flatten(self, named: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A flat vector (N,) from tensors by name; empty where there are none (buffers of many models)."""
        return torch.cat([named[slot.name].reshape(-1) for slot in self.slots]) if self.slots else torch.empty(0)

    def to_json(self) -> list[dict[str, Any]]:
        return [{**asdict(slot), "shape": list(slot.shape)} for slot in self.slots]
