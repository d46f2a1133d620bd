"""What every acoustic model is: a plain torch module (B, W, D) → named outputs (B, T, ·).

Shapes: B rows, T output frames, D feature dimension, P pdfs, s = subsampling,
W = left_context + s·(T − 1) + 1 + right_context input frames.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from asr_hf.models.hidden import output_layer
from asr_hf.models.semi_orthogonal import SemiOrthogonal

OUTPUT = "output"  # the name of the output with the unnormalised log posteriors
SUBSAMPLINGS = (1, 3)  # the values of model.subsampling
BRANCH = "cross_entropy"  # the name of the second output, which sequence criteria train by cross-entropy


class AcousticModel(nn.Module, ABC):
    """Base of the acoustic models.

    A model is made of operations that torch.func differentiates in forward mode, so that J·v and Jᵀ·u follow from it.

    Attributes:
        input_dim, num_pdfs: D and P.
        left_context, right_context: input frames needed before the first and after the last output frame.
        frame_model: True if windows are evaluated one by one, so that single frames can be drawn (implies windowed).
        windowed: True if an output frame depends on its window alone, so that utterances may be cut anywhere.
        chunk: frames of the pieces that utterances are cut into for training, 0: whole utterances.
        subsampling: s, input frames per output frame.
        dropouts: name → (units, rate) of the places where units may be dropped.
        states: names of the hidden states that `forward` returns on request.
    """

    frame_model: bool = False
    windowed: bool = False
    chunk: int = 0

    def __init__(
        self, input_dim: int, num_pdfs: int, left_context: int, right_context: int, subsampling: int = 1
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.num_pdfs = num_pdfs
        self.left_context = left_context
        self.right_context = right_context
        self.subsampling = subsampling
        self.dropouts: dict[str, tuple[int, float]] = {}
        self.states: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self,
        x_BWD: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        keep: Mapping[str, torch.Tensor] | None = None,
        states: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        """Map input windows to named outputs.

        Args:
            x_BWD: input frames, with context.
            mask_BT: True where an output frame is real; rows are padded at their end. None: nothing is padded.
            keep: factors (B, 1, units) by which the units at each place of `dropouts` are multiplied; None: no dropout.
            states: hidden states to return as well.

        Returns:
            "output" (B, T, P), the unnormalised log posteriors, and each of `states` (B, ·, units).
        """

    def add_branch(self, seed: int) -> None:
        """Give the model a second linear output on its topmost hidden layer, to be trained by cross-entropy."""
        units, num_pdfs = self.get_submodule(OUTPUT).in_features, self.num_pdfs
        assert isinstance(units, int)
        self.add_module(BRANCH, output_layer(units, num_pdfs, torch.Generator().manual_seed(seed)))

    def outputs(self, hidden_BTU: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs (B, T, P) of the topmost hidden layer: `output` and, where there is one, the branch."""
        return {name: module(hidden_BTU) for name, module in self.named_children() if name in (OUTPUT, BRANCH)}

    def start_from_prior(self, log_prior_P: torch.Tensor) -> None:
        """Set the bias of the last layer to the log prior of the pdfs: training then need not find it first."""
        with torch.no_grad():
            self.get_parameter("output.bias").copy_(log_prior_P)

    def penalty(self) -> "SemiOrthogonal | None":
        """The model's own penalty on θ, None if it has none."""
        return None

    def block_of(self, parameter: str) -> str:
        """The block that a parameter belongs to in block-diagonal methods: its top-level module."""
        return parameter.split(".", maxsplit=1)[0]

    def rate_of(self, state: str) -> int:
        """Frames of a hidden state per output frame; context and padding come at this rate too."""
        return 1

    def uses_per_frame(self, parameter: str) -> float:
        """How often a parameter is used per output frame (more than once where weights are shared over time)."""
        return 1.0
