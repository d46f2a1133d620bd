"""What a second-order method remembers from one update to the next, and over a crash."""

import math
from dataclasses import dataclass, field

import torch

from asr_hf.optimizers.optimizer import State
from asr_hf.optimizers.preconditioning import PairMemory


@dataclass
class SecondOrderState(State):
    """What a second-order method remembers.

    Attributes:
        damping: λ per frame.
        direction: β times the last CG iterate d_N (N,), the next warm start; empty: none.
        gradient_update: update whose gradient sample is in use; a rejection keeps it, since θ has not moved.
        gradient_share, curvature_share: of the samples in use.
        heldout: loss per frame of θ on the held-out set (NaN: not yet known).
        rejections: rejected updates in a row.
        precision: of the curvature products, decided at the first update; empty: not yet.
        pairs_s, pairs_y, pairs_damping: curvature pairs (m, N) and λ of their A as a checkpoint gave them; within a run
            `memory` holds them instead.
    """

    damping: float = 1.0
    direction: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gradient_update: int = 1
    gradient_share: float = 1.0
    curvature_share: float = 1.0
    heldout: float = math.nan
    rejections: int = 0
    precision: str = ""
    pairs_s: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    pairs_y: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    pairs_damping: float = 0.0

    def __post_init__(self) -> None:
        self.memory: PairMemory | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        tensors = super().tensors()
        if self.memory is not None:
            tensors["pairs_s"], tensors["pairs_y"] = self.memory.vectors()
        return tensors

    def scalars(self) -> dict[str, object]:
        scalars = super().scalars()
        if self.memory is not None:
            scalars["pairs_damping"] = self.memory.damping
        return scalars
