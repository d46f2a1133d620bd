"""The recurrence of an LSTM with its own R-operator (see `recurrence`): gates in the order i, f, g, o, G = 4·H.

z = pre_t + U h_{t−1},  c_t = f c_{t−1} + i g,  m_t = o tanh c_t,  h_t = P m_t
"""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from asr_hf.models.recurrence import (
    Shape,
    drive,
    flops_at_all_frames,
    flops_at_later_frames,
    frame_order,
    product,
    recurrent_weights_gradient,
)


def lstm(
    pre_TBG: torch.Tensor,
    U_GR: torch.Tensor,
    P_RH: torch.Tensor | None = None,
    mask_TB1: torch.Tensor | None = None,
    reverse: bool = False,
) -> torch.Tensor:
    """Long short-term memory, (T, B, R): h_t = m_t, or P m_t with a recurrent projection.

    i, f, o = σ(z), g = tanh(z) of z = pre_t + U h_{t−1};  c_t = f c_{t−1} + i g;  m_t = o tanh(c_t)
    (Hochreiter and Schmidhuber 1997; Gers et al. 2000; the projection: Sak, Senior and Beaufays 2014).

    Args:
        pre_TBG: W x_t + b of the four gates.
        U_GR: recurrent weights.
        P_RH: recurrent projection; None: R = H.
        mask_TB1: 1 where a frame is real, else 0, in the type of `pre_TBG`.
        reverse: from the last frame to the first.
    """
    h_TBR, *_ = _Lstm.apply(pre_TBG, U_GR, P_RH, mask_TB1, reverse)
    return h_TBR


@torch.library.custom_op("asr_hf::lstm_forward", mutates_args=())
def _lstm_forward(
    pre: torch.Tensor, U: torch.Tensor, P: torch.Tensor | None, mask: torch.Tensor | None, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """h, m (empty without projection: it is h), c and the activated gates."""
    frames, rows, cells = len(pre), pre.shape[1], pre.shape[2] // 4
    gates_TBG = torch.empty_like(pre, memory_format=torch.contiguous_format)
    c_TBH, m_TBH = pre.new_empty(frames, rows, cells), pre.new_empty(frames, rows, cells)
    h_TBR = m_TBH if P is None else pre.new_empty(frames, rows, len(P))
    h = c = None
    for t in frame_order(frames, reverse):
        i, f, g, o = gates_TBG[t].copy_(pre[t] if h is None else product(h, U, pre[t])).chunk(4, dim=1)
        gates_TBG[t, :, : 2 * cells].sigmoid_()  # i, f
        g.tanh_(), o.sigmoid_()
        ig = torch.mul(i, g, out=c_TBH[t])
        c = ig if c is None else ig.addcmul_(f, c)
        if mask is not None:
            c *= mask[t]
        h = torch.tanh(c, out=m_TBH[t]).mul_(o)
        if P is not None:
            h = h_TBR[t].copy_(product(h, P))
    return h_TBR, pre.new_empty(0) if P is None else m_TBH, c_TBH, gates_TBG


@_lstm_forward.register_fake
def _(
    pre: torch.Tensor, U: torch.Tensor, P: torch.Tensor | None, mask: torch.Tensor | None, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    cells = (*pre.shape[:2], pre.shape[2] // 4)
    m = pre.new_empty(0) if P is None else pre.new_empty(cells)
    return pre.new_empty((*pre.shape[:2], U.shape[1])), m, pre.new_empty(cells), pre.new_empty(pre.shape)


def _lstm_slopes(
    c_TBH: torch.Tensor, gates_TBG: torch.Tensor, mask_TB1: torch.Tensor | None, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Derivatives of a frame: ċ_t = f ċ_{t−1} + Σ_{k = i,f,g} D_k ż_k and ṁ_t = q ċ_t + D_o ż_o.

    Returns:
        D (T, B, G) and f, q (T, B, H); D and f are 0 at masked frames.
    """
    i, f, g, o = gates_TBG.chunk(4, dim=2)
    start = torch.zeros_like(c_TBH[:1])
    previous_c = torch.cat([c_TBH[1:], start] if reverse else [start, c_TBH[:-1]])
    tanh_c = torch.tanh(c_TBH)
    slopes = [g * i * (1 - i), previous_c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)]
    D, q = torch.cat(slopes, dim=2), o * (1 - tanh_c * tanh_c)
    return (D, f.contiguous(), q) if mask_TB1 is None else (D * mask_TB1, f * mask_TB1, q)


@torch.library.custom_op("asr_hf::lstm_tangent", mutates_args=())
def _lstm_tangent(
    pre_t: torch.Tensor | None,
    U_t: torch.Tensor | None,
    P_t: torch.Tensor | None,
    U: torch.Tensor,
    P: torch.Tensor | None,
    h: torch.Tensor,
    m: torch.Tensor,
    D: torch.Tensor,
    f: torch.Tensor,
    q: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """ż = ṗre_t + U̇ h_{t−1} + U ḣ_{t−1}, then ċ_t and ṁ_t as in `_lstm_slopes`, ḣ_t = P ṁ_t + Ṗ m_t."""
    frames, rows, gates = D.shape
    y_BG = D.new_empty(rows, gates)
    y_i, y_f, y_g, y_o = y_BG.chunk(4, dim=1)
    h_t, m_t = torch.empty_like(h), torch.empty_like(q[0])
    Pm_t = None if P_t is None else product(m.flatten(0, 1), P_t).view_as(h)
    previous, c_t = None, torch.zeros_like(q[0])
    add = torch.addmm if U_t is None else torch.Tensor.addmm_  # what U̇ drives is ours to overwrite
    U_RG = U.t().contiguous()
    for t, z in zip(frame_order(frames, reverse), drive(pre_t, U_t, h, gates, reverse), strict=True):
        torch.mul(z if previous is None else add(z, previous, U_RG), D[t], out=y_BG)
        torch.addcmul(y_i, f[t], c_t, out=c_t).add_(y_f).add_(y_g)
        previous = torch.addcmul(y_o, q[t], c_t, out=h_t[t] if P is None else m_t)
        if P is not None:
            previous = h_t[t].copy_(product(previous, P, None if Pm_t is None else Pm_t[t]))
    return h_t


_lstm_tangent.register_fake(lambda pre_t, U_t, P_t, U, P, h, *_: torch.empty_like(h))


@register_flop_formula(torch.ops.asr_hf.lstm_tangent)
def _(
    pre_t: Shape | None,
    U_t: Shape | None,
    P_t: Shape | None,
    U: Shape,
    P: Shape | None,
    h: Shape,
    *_: Any,
    **rest: Any,
) -> int:
    """U ḣ_{t−1} and P ṁ_t, and with U̇ and Ṗ."""
    return flops_at_later_frames(h, U) * (1 + (U_t is not None)) + flops_at_all_frames(h, P) * (1 + (P_t is not None))


@torch.library.custom_op("asr_hf::lstm_transposed", mutates_args=())
def _lstm_transposed(
    dh: torch.Tensor,
    U: torch.Tensor,
    P: torch.Tensor | None,
    h: torch.Tensor,
    m: torch.Tensor,
    D: torch.Tensor,
    f: torch.Tensor,
    q: torch.Tensor,
    reverse: bool,
    weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cotangents of (pre, U, P), the last two empty unless `weights`.

    h̄_t ← h̄_t + Uᵀ z̄_{t+1};  m̄ = Pᵀ h̄_t;  c̄_t = f_{t+1} c̄_{t+1} + q m̄;  z̄_{i,f,g} = D c̄_t, z̄_o = D m̄;
    Ū = Σ_t z̄_t h_{t−1}ᵀ;  P̄ = Σ_t h̄_t m_tᵀ.
    """
    frames, rows, gates = D.shape
    dz_TBG = torch.empty_like(D)
    D_TB4H, dz_TB4H = (x.view(frames, rows, 4, gates // 4) for x in (D, dz_TBG))
    total_TBR = torch.empty_like(h) if P is not None and weights else None
    following, dc = None, torch.zeros_like(q[0])
    for t in frame_order(frames, not reverse):
        dm = dh[t] if following is None else product(following, U.t(), dh[t])
        if total_TBR is not None:
            total_TBR[t] = dm
        if P is not None:
            dm = product(dm, P.t())
        dc.addcmul_(q[t], dm)
        torch.mul(D_TB4H[t, :, :3], dc[:, None], out=dz_TB4H[t, :, :3])
        torch.mul(D_TB4H[t, :, 3], dm, out=dz_TB4H[t, :, 3])
        dc.mul_(f[t])
        following = dz_TBG[t]
    dU = recurrent_weights_gradient(dz_TBG, h, reverse) if weights else D.new_empty(0)
    dP = D.new_empty(0) if total_TBR is None else product(total_TBR.flatten(0, 1).t(), m.flatten(0, 1).t())
    return dz_TBG, dU, dP


@_lstm_transposed.register_fake
def _(
    dh: torch.Tensor,
    U: torch.Tensor,
    P: torch.Tensor | None,
    h: torch.Tensor,
    m: torch.Tensor,
    D: torch.Tensor,
    f: torch.Tensor,
    q: torch.Tensor,
    reverse: bool,
    weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dU = U.new_empty(U.shape) if weights else D.new_empty(0)
    dP = D.new_empty(0) if P is None or not weights else P.new_empty(P.shape)
    return torch.empty_like(D), dU, dP


@register_flop_formula(torch.ops.asr_hf.lstm_transposed)
def _(
    dh: Shape,
    U: Shape,
    P: Shape | None,
    h: Shape,
    m: Shape,
    D: Shape,
    f: Shape,
    q: Shape,
    reverse: bool,
    weights: bool,
    **rest: Any,
) -> int:
    """Uᵀ z̄_{t+1} and Pᵀ h̄_t, and with Ū and P̄."""
    return (flops_at_later_frames(h, U) + flops_at_all_frames(h, P)) * (1 + weights)


def _lstm_save(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[3:10])  # U, P, h, m, D, f, q
    ctx.reverse = inputs[10]


def _lstm_transpose(ctx: Any, dh: torch.Tensor) -> tuple:
    pre_wanted, U_wanted, P_wanted = ctx.needs_input_grad[:3]
    dpre, dU, dP = torch.ops.asr_hf.lstm_transposed(dh, *ctx.saved_tensors, ctx.reverse, U_wanted or P_wanted)
    wanted = (dpre if pre_wanted else None, dU if U_wanted else None, dP if P_wanted else None)
    return *wanted, *([None] * 8)


_lstm_tangent.register_autograd(_lstm_transpose, setup_context=_lstm_save)


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(
        pre: torch.Tensor, U: torch.Tensor, P: torch.Tensor | None, mask: torch.Tensor | None, reverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ops.asr_hf.lstm_forward(pre, U, P, mask, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, U, P, mask, ctx.reverse = inputs
        h, m, c, gates = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(m, c, gates)
        ctx.save_for_backward(U, P, mask, h, m, c, gates)
        ctx.save_for_forward(U, P, mask, h, m, c, gates)

    @staticmethod
    def backward(ctx: Any, dh: torch.Tensor, *_: None) -> tuple:
        U, P, mask, h, m, c, gates = ctx.saved_tensors
        slopes = _lstm_slopes(c, gates, mask, ctx.reverse)
        weights = any(ctx.needs_input_grad[1:3])
        dpre, dU, dP = torch.ops.asr_hf.lstm_transposed(dh, U, P, h, m, *slopes, ctx.reverse, weights)
        return dpre, dU if weights else None, dP if weights and P is not None else None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        pre_t: torch.Tensor | None,
        U_t: torch.Tensor | None,
        P_t: torch.Tensor | None,
        *_: None,
    ) -> tuple[torch.Tensor, None, None, None]:
        U, P, mask, h, m, c, gates = ctx.saved_tensors
        slopes = _lstm_slopes(c, gates, mask, ctx.reverse)
        h_t = torch.ops.asr_hf.lstm_tangent(pre_t, U_t, P_t, U, P, h, m, *slopes, ctx.reverse)
        return h_t, None, None, None
