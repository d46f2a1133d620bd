"""What the recurrent models share: a stack of recurrent layers with norms and dropout, and the linear output.

Shapes: B rows, W = left + T + right input frames, D feature dimension, T output frames, P pdfs, U units of a layer
(both directions). Inside, time comes first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from asr_hf.models.acoustic import BRANCH, OUTPUT, AcousticModel
from asr_hf.models.hidden import drop, output_layer
from asr_hf.models.norm import NORMS


class RecurrentLayer(nn.Module):
    """One recurrence from the first frame on, a second one from the last frame on if `bidirectional`, and a norm.

    Args:
        recurrence: makes the module (x, mask) → (W, B, units) of one direction, given `reverse`.
        units: of one direction.
        norm: one of `norm.NORMS`.
    """

    def __init__(self, recurrence: Callable[[bool], nn.Module], units: int, bidirectional: bool, norm: str) -> None:
        super().__init__()
        self.units = 2 * units if bidirectional else units
        self.forwards = recurrence(False)
        self.backwards = recurrence(True) if bidirectional else None
        self.norm = NORMS[norm](self.units)

    def forward(self, x_WBD: torch.Tensor, mask_WB1: torch.Tensor | None) -> torch.Tensor:
        """The hidden state (W, B, U), before the norm."""
        h_WBU = self.forwards(x_WBD, mask_WB1)
        return h_WBU if self.backwards is None else torch.cat([h_WBU, self.backwards(x_WBD, mask_WB1)], dim=2)


class RecurrentModel(AcousticModel):
    """Recurrent layers `{name}1 … {name}N`, each normed and, in training, with dropout behind it; a linear `output`.

    Dropout hits what goes up a layer, never the recurrence (Zaremba, Sutskever and Vinyals 2014); `states` are the
    hidden states before norm and dropout. A block is a layer, and the output layer belongs to the topmost (Zhang et al.
    2017, "Block-diagonal Hessian-free optimization").

    Args:
        name: of the layers.
        layer: makes a layer, given its input units.
        depth: number of layers.
        dropout: rate.
        delay: the output of a frame is read that many frames later.
        chunk: frames of the pieces of utterances that the model is trained on; 0: whole utterances.
        left_context, right_context: output frames of context that warm up the state, which is zero before them.
        subsampling: s, 1 or 3: the layers see s frames at once, stacked, around every s-th frame (Sak et al. 2015,
            "Fast and accurate recurrent neural network acoustic models for speech recognition").

    Attributes:
        chunk: as above.
    """

    def __init__(
        self,
        name: str,
        layer: Callable[[int], RecurrentLayer],
        depth: int,
        dropout: float,
        input_dim: int,
        num_pdfs: int,
        generator: torch.Generator,
        delay: int = 0,
        chunk: int = 0,
        left_context: int = 0,
        right_context: int = 0,
        subsampling: int = 1,
    ) -> None:
        s = subsampling
        super().__init__(input_dim, num_pdfs, s * left_context + s // 2, s * right_context + s // 2, s)
        self.delay, self.chunk = delay, chunk
        self._before, self._around = left_context, left_context + right_context
        self.states = tuple(f"{name}{index + 1}" for index in range(depth))
        units = s * input_dim
        for place in self.states:
            built = layer(units)
            self.add_module(place, built)
            units = built.units
            if dropout > 0:
                self.dropouts[place] = (units, dropout)
        self.output = output_layer(units, num_pdfs, generator)

    def forward(
        self,
        x_BWD: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        keep: Mapping[str, torch.Tensor] | None = None,
        states: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        """(B, W, D) → {"output": (B, T, P)} and the hidden states (B, W, U) that are asked for.

        Output frame t belongs to input frame left + s·t; hidden states have a frame for every s of the input.
        """
        mask_WB = None if mask_BT is None else self._input_mask(mask_BT)
        real_WB1 = None if mask_WB is None else mask_WB[:, :, None].to(x_BWD.dtype)
        stacked = x_BWD.reshape(len(x_BWD), -1, self.subsampling * self.input_dim)
        hidden_WBU = stacked.transpose(0, 1).contiguous()
        asked = {}
        for place in self.states:
            layer: Any = self.get_submodule(place)
            h_WBU = layer(hidden_WBU, real_WB1)
            if place in states:
                asked[place] = h_WBU.transpose(0, 1)
            hidden_BWU = layer.norm(h_WBU, mask_WB).transpose(0, 1)
            hidden_WBU = drop(hidden_BWU, place, keep).transpose(0, 1)
        first = self._before + self.delay
        hidden_BTU = hidden_WBU[first : first + len(hidden_WBU) - self._around].transpose(0, 1).contiguous()
        return {**self.outputs(hidden_BTU), **asked}

    def _input_mask(self, mask_BT: torch.Tensor) -> torch.Tensor:
        """(·, B): True at the steps of a row, its context and its output frames, False at the padding."""
        return nn.functional.pad(mask_BT, (self._around, 0), value=True).t()

    def block_of(self, parameter: str) -> str:
        block = super().block_of(parameter)
        return self.states[-1] if block in (OUTPUT, BRANCH) else block

    def uses_per_frame(self, parameter: str) -> float:
        """The recurrent layers also run over the context of a chunk."""
        if self.chunk == 0 or parameter.startswith((OUTPUT, BRANCH)):
            return 1.0
        return (self.left_context + self.chunk + self.right_context) / self.chunk
