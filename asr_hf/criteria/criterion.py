"""The seam of the criteria: a value per row, its gradient in the outputs, and positive semi-definite M on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from asr_hf.data.minibatch import Batch

Outputs = dict[str, torch.Tensor]  # named outputs, or tangents or cotangents of the same shapes
OutputOperator = Callable[[Outputs], Outputs]  # tangent of the outputs -> M·tangent


@dataclass(frozen=True)
class CriterionLinearisation:
    """A criterion at one minibatch's outputs.

    Attributes:
        value_B: float64, loss of each row, summed over its frames (nats).
        frames_B: int64, frames that each row covers.
        gradient: ∂(sum of values)/∂outputs.
        operators: name → M, e.g. "gauss_newton".
        bytes_held: size of what the operators keep.
    """

    value_B: torch.Tensor
    frames_B: torch.Tensor
    gradient: Outputs
    operators: dict[str, OutputOperator]
    bytes_held: int


class Criterion(Protocol):
    """A training criterion: knows the outputs and the supervision, and neither the model nor the data's origin.

    Attributes:
        matrices: names of its M.
        sequence: whether its value is of a whole piece of an utterance, not of single frames.
        chunk: frames of the pieces into which a sequence criterion cuts utterances, 0: whole ones. A model that is
            trained on chunks has its own.
        branched: whether it needs a model with a second output, trained by cross-entropy.
    """

    matrices: tuple[str, ...]
    sequence: bool
    branched: bool
    chunk: int

    def values(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Loss of each row (B,), float64, summed over its frames."""
        ...

    def linearize(self, outputs: Outputs, batch: Batch) -> CriterionLinearisation:
        """Value, gradient and M operators at these outputs."""
        ...

    def sampled_score(self, outputs: Outputs, batch: Batch, generator: torch.Generator) -> Outputs:
        """δ, ∂loss/∂outputs for labels drawn from the model's own distribution: E[δ] = 0, E[δδᵀ] = M "gauss_newton"."""
        ...
