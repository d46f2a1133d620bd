"""The linearised minibatches of one process: JᵀMJ·v for any M, whole or by diagonal blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from asr_hf.criteria.criterion import CriterionLinearisation, Outputs
from asr_hf.criteria.matrices import structural_damping
from asr_hf.curvature.guard import RepeatabilityGuard, deterministic_algorithms
from asr_hf.curvature.linearise import ModelLinearisation
from asr_hf.curvature.product import jt_m_j
from asr_hf.objective.layout import Layout
from asr_hf.objective.objective import Matrix


@dataclass(frozen=True)
class Part:
    """One minibatch: J of the model, M of the criterion, and where each hidden state has real frames (B, ·, 1)."""

    jacobian: ModelLinearisation
    criterion: CriterionLinearisation
    state_masks: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def bytes_held(self) -> int:
        return self.jacobian.bytes_held + self.criterion.bytes_held

    def product(self, tangent: Mapping[str, torch.Tensor], matrix: Matrix) -> dict[str, torch.Tensor]:
        """JᵀMJ·v of this minibatch, block for block."""
        names = [list(tangent)]
        if matrix.groups:
            names = [[n for n in tangent if n in set(group)] for group in matrix.groups]

        def operator(moved: Outputs) -> Outputs:
            pulled = dict(self.criterion.operators[matrix.name](moved))
            if matrix.structural:
                for state, mask in self.state_masks.items():
                    pulled[state] = structural_damping(matrix.structural, mask)(moved[state])
            return pulled

        result: dict[str, torch.Tensor] = {}
        for group in names:
            result.update(jt_m_j(self.jacobian, operator, {n: tangent[n] for n in group}, group))
        return result


class LocalLinearisation:
    """The minibatches of one process at one θ, in the plan's order, and the frames they cover.

    Args:
        layout: of θ.
        parts: each gives its minibatch: the kept one, or one linearised anew where the byte budget was full.
        kept: how many are kept.
        frames: frames of all parts.
        device: of the vectors.
        guard: sees the first product.
        deterministic: products use deterministic algorithms where torch has others too (CUDA).
    """

    def __init__(
        self,
        layout: Layout,
        parts: Sequence[Callable[[], Part]],
        kept: int,
        frames: int,
        device: torch.device,
        guard: RepeatabilityGuard,
        deterministic: bool = False,
    ) -> None:
        self.frames = frames
        self._deterministic = deterministic
        self.kept, self.minibatches = kept, len(parts)
        self._layout, self._parts, self._device, self._guard = layout, parts, device, guard

    def product(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """Σ over minibatches of JᵀMJ·v, float64 (N,)."""
        with deterministic_algorithms(self._deterministic):
            return self._sum(v_N, matrix)

    def _sum(self, v_N: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        total = torch.zeros(self._layout.size, dtype=torch.float64, device=self._device)
        sums, tangent = self._layout.views(total), self._layout.views(v_N)
        by_name = Matrix(matrix.name, matrix.structural, self._layout.parameters_of(matrix.groups))
        if self._parts:
            first = self._parts[0]
            self._guard.check(lambda: self._layout.flatten({**tangent, **first().product(tangent, by_name)}))
        for part in self._parts:
            for name, value in part().product(tangent, by_name).items():
                sums[name] += value
        return total
