"""What every acoustic model is: a plain torch module (B, W, D) → named outputs (B, T, ·) with W = left + T + right."""

from abc import ABC, abstractmethod

import torch
from torch import nn


class AcousticModel(nn.Module, ABC):
    """Base of the acoustic models.

    Attributes:
        input_dim, num_pdfs: D and P.
        left_context, right_context: input frames needed before the first and after the last output frame.
        frame_model: True if an output frame depends on its window alone, so that single frames can be drawn.
    """

    frame_model: bool = False

    def __init__(self, input_dim: int, num_pdfs: int, left_context: int, right_context: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.num_pdfs = num_pdfs
        self.left_context = left_context
        self.right_context = right_context

    @abstractmethod
    def forward(self, x_BWD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map input windows to named outputs; "output" (B, T, P) holds the unnormalised log posteriors."""

    def start_from_prior(self, log_prior_P: torch.Tensor) -> None:
        """Set the bias of the last layer to the log prior of the pdfs: training then need not find it first."""
        with torch.no_grad():
            self.get_parameter("output.bias").copy_(log_prior_P)

    def block_of(self, parameter: str) -> str:
        """The block that a parameter belongs to in block-diagonal methods: its top-level module."""
        return parameter.split(".", maxsplit=1)[0]

    def uses_per_frame(self, parameter: str) -> float:
        """How often a parameter is used per output frame (more than once where weights are shared over time)."""
        return 1.0
