"""The recurrence of an RNN, h_t = a(pre_t + U h_{t−1}), with its own R-operator (see `recurrence`)."""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from asr_hf.models.recurrence import (
    Shape,
    drive,
    flops_at_later_frames,
    frame_order,
    product,
    recurrent_weights_gradient,
)

RNN_ACTIVATIONS = ("tanh", "relu", "sigmoid")


def rnn(
    pre_TBH: torch.Tensor,
    U_HH: torch.Tensor,
    activation: str = "tanh",
    mask_TB1: torch.Tensor | None = None,
    reverse: bool = False,
) -> torch.Tensor:
    """The standard recurrence h_t = a(pre_t + U h_{t−1}), (T, B, H) (Elman 1990).

    Args:
        pre_TBH: W x_t + b.
        U_HH: recurrent weights.
        activation: a, one of `RNN_ACTIVATIONS`.
        mask_TB1: 1 where a frame is real, else 0, in the type of `pre_TBH`.
        reverse: from the last frame to the first.
    """
    return _Rnn.apply(pre_TBH, U_HH, mask_TB1, activation, reverse)


@torch.library.custom_op("asr_hf::rnn_forward", mutates_args=())
def _rnn_forward(
    pre: torch.Tensor, U: torch.Tensor, mask: torch.Tensor | None, activation: str, reverse: bool
) -> torch.Tensor:
    h_TBH = torch.empty_like(pre, memory_format=torch.contiguous_format)
    activate = getattr(torch, activation)
    previous = None
    for t in frame_order(len(pre), reverse):
        previous = h_TBH[t].copy_(activate(pre[t] if previous is None else product(previous, U, pre[t])))
        if mask is not None:
            previous *= mask[t]
    return h_TBH


_rnn_forward.register_fake(lambda pre, *_: pre.new_empty(pre.shape))


def _rnn_slope(h_TBH: torch.Tensor, mask_TB1: torch.Tensor | None, activation: str) -> torch.Tensor:
    """a′ in terms of a, 0 at masked frames."""
    if activation == "tanh":
        slope = 1 - h_TBH * h_TBH
    elif activation == "sigmoid":
        slope = h_TBH * (1 - h_TBH)
    else:
        slope = (h_TBH > 0).to(h_TBH.dtype)
    return slope if mask_TB1 is None else slope * mask_TB1


@torch.library.custom_op("asr_hf::rnn_tangent", mutates_args=())
def _rnn_tangent(
    pre_t: torch.Tensor | None,
    U_t: torch.Tensor | None,
    U: torch.Tensor,
    h: torch.Tensor,
    slope: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """ḣ_t = a′ (ṗre_t + U̇ h_{t−1} + U ḣ_{t−1})."""
    h_t = torch.empty_like(h)
    previous = None
    for t, z in zip(frame_order(len(h), reverse), drive(pre_t, U_t, h, h.shape[2], reverse), strict=True):
        previous = torch.mul(z if previous is None else product(previous, U, z), slope[t], out=h_t[t])
    return h_t


_rnn_tangent.register_fake(lambda pre_t, U_t, U, h, *_: torch.empty_like(h))


@register_flop_formula(torch.ops.asr_hf.rnn_tangent)
def _(pre_t: Shape | None, U_t: Shape | None, U: Shape, h: Shape, *_: Any, **rest: Any) -> int:
    """U ḣ_{t−1}, and U̇ h_{t−1}."""
    return flops_at_later_frames(h, U) * (1 + (U_t is not None))


@torch.library.custom_op("asr_hf::rnn_transposed", mutates_args=())
def _rnn_transposed(
    dh: torch.Tensor, U: torch.Tensor, h: torch.Tensor, slope: torch.Tensor, reverse: bool, weights: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cotangents of (pre, U): z̄_t = a′ (h̄_t + Uᵀ z̄_{t+1}), Ū = Σ_t z̄_t h_{t−1}ᵀ (empty unless `weights`)."""
    dz_TBH = torch.empty_like(h)
    following = None
    for t in frame_order(len(h), not reverse):
        dh_BH = dh[t] if following is None else product(following, U.t(), dh[t])
        following = torch.mul(dh_BH, slope[t], out=dz_TBH[t])
    return dz_TBH, recurrent_weights_gradient(dz_TBH, h, reverse) if weights else h.new_empty(0)


@_rnn_transposed.register_fake
def _(dh: torch.Tensor, U: torch.Tensor, h: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(h), U.new_empty(U.shape) if rest[-1] else h.new_empty(0)


@register_flop_formula(torch.ops.asr_hf.rnn_transposed)
def _(dh: Shape, U: Shape, h: Shape, slope: Shape, reverse: bool, weights: bool, **rest: Any) -> int:
    """Uᵀ z̄_{t+1}, and Ū."""
    return flops_at_later_frames(h, U) * (1 + weights)


def _rnn_save(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[2:5])  # U, h, slope
    ctx.reverse = inputs[5]


def _rnn_transpose(ctx: Any, dh: torch.Tensor) -> tuple:
    pre_wanted, U_wanted = ctx.needs_input_grad[:2]
    dpre, dU = torch.ops.asr_hf.rnn_transposed(dh, *ctx.saved_tensors, ctx.reverse, U_wanted)
    return dpre if pre_wanted else None, dU if U_wanted else None, None, None, None, None


_rnn_tangent.register_autograd(_rnn_transpose, setup_context=_rnn_save)


class _Rnn(torch.autograd.Function):
    @staticmethod
    def forward(
        pre: torch.Tensor, U: torch.Tensor, mask: torch.Tensor | None, activation: str, reverse: bool
    ) -> torch.Tensor:
        return torch.ops.asr_hf.rnn_forward(pre, U, mask, activation, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        _, U, mask, ctx.activation, ctx.reverse = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(U, output, mask)
        ctx.save_for_forward(U, output, mask)

    @staticmethod
    def backward(ctx: Any, dh: torch.Tensor) -> tuple:
        U, h, mask = ctx.saved_tensors
        slope = _rnn_slope(h, mask, ctx.activation)
        weights = ctx.needs_input_grad[1]
        dpre, dU = torch.ops.asr_hf.rnn_transposed(dh, U, h, slope, ctx.reverse, weights)
        return dpre, dU if weights else None, None, None, None

    @staticmethod
    def jvp(ctx: Any, pre_t: torch.Tensor | None, U_t: torch.Tensor | None, *_: None) -> torch.Tensor:
        U, h, mask = ctx.saved_tensors
        slope = _rnn_slope(h, mask, ctx.activation)
        return torch.ops.asr_hf.rnn_tangent(pre_t, U_t, U, h, slope, ctx.reverse)
