"""What a second-order method remembers from one update to the next, and over a crash."""

import math
import sys
from dataclasses import dataclass, field

import torch

from asr_hf.curvature.precision import Precision
from asr_hf.optimizers.optimizer import State
from asr_hf.optimizers.preconditioning import PairMemory
from asr_hf.options import LARGEST_FACTOR


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
            `memory` holds them instead; at most `most_pairs`.
        factors, passes: Kronecker factors and diagonals averaged over updates, and how many updates went in.
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
    factors: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    passes: int = 0

    def __post_init__(self) -> None:
        self.memory: PairMemory | None = None
        self.most_pairs = sys.maxsize

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

    def fault(self) -> str:
        vector, shares = self.theta.shape, (self.gradient_share, self.curvature_share)
        direction, s_mN, y_mN = self.direction, self.pairs_s, self.pairs_y
        impossible = {
            "direction is no vector like theta": direction.numel()
            and (direction.dtype, direction.shape) != (torch.float32, vector),
            "pairs are none of vectors like theta": s_mN.shape != y_mN.shape
            or (s_mN.numel() and s_mN.shape[1:] != vector),
            "pairs are more than optimizer.preconditioner.pairs": s_mN.numel() > self.most_pairs * self.theta.numel(),
            "factors are no vector in float32": (self.factors.dtype, self.factors.dim()) != (torch.float32, 1),
            "factors are of no pass": bool(self.factors.numel()) != bool(self.passes),
            f"damping is {self.damping}": not 0 < self.damping <= LARGEST_FACTOR,
            f"shares of the samples are {shares}": not all(0 < share <= 1 for share in shares),
            f"precision is {self.precision!r}": self.precision not in ("", *(each.value for each in Precision)),
        }
        return super().fault() or next((why for why, holds in impossible.items() if holds), "")
