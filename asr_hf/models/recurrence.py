"""What the recurrences with their own R-operator share: value, J·v and Jᵀ·u after the input product.

The input product W x_t + b of all frames is one ordinary linear map outside. In a recurrence every frame costs one
recurrent matrix product (and the projection's); whatever does not depend on the frame before is one product over all
time.

Value, tangent and transposed of `rnn_operator` and `lstm_operator` are opaque operations (`torch.ops.asr_hf.*`), so
that a traced program holds one node for each. Tangent and transposed are linear in the tangents, respectively the
cotangent; their other arguments are constants of the linearisation, of any floating type. A tangent that is None is
zero and costs nothing (Pearlmutter 1994, "Fast exact multiplication by the Hessian"; notation: ẋ is the tangent of x,
x̄ the cotangent).

Shapes: T frames, B rows, H cells, R recurrent units (of the projection; without one R = H), G gates (RNN: H). Masked
frames (mask 0) leave a zero state behind.
"""

import math
from collections.abc import Iterable

import torch

Shape = torch.Size


def product(a_MK: torch.Tensor, b_NK: torch.Tensor, plus_MN: torch.Tensor | None = None) -> torch.Tensor:
    """a bᵀ (+ plus), (M, N)."""
    return a_MK @ b_NK.t() if plus_MN is None else torch.addmm(plus_MN, a_MK, b_NK.t())


def frame_order(frames: int, reverse: bool) -> range:
    return range(frames - 1, -1, -1) if reverse else range(frames)


def _past(x_TBR: torch.Tensor, reverse: bool) -> torch.Tensor:
    """The frame before, for every frame but the first one; (T−1)·B rows."""
    return (x_TBR[1:] if reverse else x_TBR[:-1]).flatten(0, 1)


def _later(x_TBG: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Every frame but the first one; (T−1)·B rows."""
    return (x_TBG[:-1] if reverse else x_TBG[1:]).flatten(0, 1)


def drive(
    pre_t_TBG: torch.Tensor | None, U_t_GR: torch.Tensor | None, h_TBR: torch.Tensor, gates: int, reverse: bool
) -> Iterable[torch.Tensor]:
    """ṗre_t + U̇ h_{t−1}, (B, G) of every frame in the order of the recurrence: one product over all time."""
    frames, rows = h_TBR.shape[:2]
    if pre_t_TBG is not None and (U_t_GR is None or frames == 1):
        return (pre_t_TBG[t] for t in frame_order(frames, reverse))
    zero_BG = h_TBR.new_zeros(rows, gates)
    if U_t_GR is None or frames == 1:
        return (zero_BG for _ in range(frames))
    first_BG = zero_BG if pre_t_TBG is None else pre_t_TBG[frame_order(frames, reverse)[0]]
    plus = None if pre_t_TBG is None else _later(pre_t_TBG, reverse)
    rest = product(_past(h_TBR, reverse), U_t_GR, plus).view(frames - 1, rows, gates)
    return (first_BG, *(rest[t] for t in frame_order(frames - 1, reverse)))


def recurrent_weights_gradient(dz_TBG: torch.Tensor, h_TBR: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Ū = Σ_t z̄_t h_{t−1}ᵀ, (G, R): one product over all time."""
    if len(h_TBR) == 1:
        return h_TBR.new_zeros(dz_TBG.shape[2], h_TBR.shape[2])
    return product(_later(dz_TBG, reverse).t(), _past(h_TBR, reverse).t())


def flops_at_all_frames(h_TBR: Shape, weights: Shape | None) -> int:
    """A product with the weights at every frame of every row."""
    return 0 if weights is None else 2 * h_TBR[0] * h_TBR[1] * math.prod(weights)


def flops_at_later_frames(h_TBR: Shape, weights: Shape) -> int:
    """A product with the weights at every frame but the first."""
    return 2 * (h_TBR[0] - 1) * h_TBR[1] * math.prod(weights)
