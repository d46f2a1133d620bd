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

    def views(self, vector_N: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters inside a flat vector, by name, without copying."""
        return {s.name: vector_N[s.offset : s.offset + s.size].view(s.shape) for s in self.slots}

    def flatten(self, named: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A flat vector (N,) from tensors by name."""
        return torch.cat([named[slot.name].reshape(-1) for slot in self.slots])

    def to_json(self) -> list[dict[str, Any]]:
        return [{**asdict(slot), "shape": list(slot.shape)} for slot in self.slots]
