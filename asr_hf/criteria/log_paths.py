"""Sums over the paths of one graph per row, in the log domain: numerators, and what the linear domain cannot hold.

The states of all rows lie side by side, rows with most frames first, so that the states of rows that still have a frame
are always the first ones. Every move is an arc that reads a pdf, staying too. With ⊕ the log-domain sum, a(t) the log
weights after t frames and α'(t) the same with the leak, which stays within a row,
    a(t+1, j) = ⊕ over arcs i→j of frame t of α'(t, i) + log w + y(t, pdf),
    α'(t, j) = a(t, j) ⊕ (log ℓ·initial_j + ⊕_i a(t, i)),
and backward β(t), of going on from a(t+1), likewise. The arcs of frame t are those into states whose window holds t.
The tangent of a log weight is the mean, over the posteriors of the arcs that make it, of what it was a frame before
plus v(t, pdf): no weight is divided by a small one.
Shape suffixes: B rows, T output frames, P pdfs, X = B·P, S states and A arcs of all rows; s states of rows that have
the frame, C arcs of all frames, side by side, c those of one frame.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from asr_hf.criteria.log_arcs import LEAST, Arcs, log_sum, weighted_mean
from asr_hf.criteria.paths import Rows
from asr_hf.hmm.chain_graph import Numerator


class Numerators:
    """One graph per row of a batch, on a device.

    Args:
        numerators: of each row.
        frames_B: output frames of each row.
        device: where the outputs will be.
        leak: ℓ, the weight of moving to the initial distribution after each frame.
    """

    def __init__(
        self, numerators: Sequence[Numerator], frames_B: torch.Tensor, device: torch.device, leak: float = 0.0
    ) -> None:
        self.frames_B, self.leak = frames_B.cpu(), leak
        self.order: list[int] = torch.argsort(self.frames_B, descending=True, stable=True).tolist()
        ordered = [numerators[row] for row in self.order]
        arcs = [Arcs.of(numerator.graph) for numerator in ordered]
        state_counts = [numerator.graph.states for numerator in ordered]
        arc_counts = [len(item.src_A) for item in arcs]
        starts = _starts(state_counts)
        active = [
            int(rows) for t in range(max(self.frames_B.tolist(), default=0)) if (rows := (self.frames_B > t).sum())
        ]
        self.states = [starts[rows] for rows in active]  # of the rows that have frame t

        offset_A = np.repeat(starts[:-1], arc_counts)
        dst_A = _joined([item.dst_A for item in arcs]) + offset_A
        first_S, last_S = (_joined([getattr(item, name) for item in ordered]) for name in ("first_S", "last_S"))
        ends = [_starts(arc_counts)[rows] for rows in active]
        arc_C, self.spans = _arcs_of_frames(first_S[dst_A], last_S[dst_A], ends)

        def of_frames(x_A: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(x_A[arc_C], device=device)

        self.src_C = of_frames(_joined([item.src_A for item in arcs]) + offset_A)
        self.dst_C = of_frames(dst_A)
        self.pdf_C = of_frames(_joined([item.pdf_A for item in arcs]))
        self.row_C = of_frames(np.repeat(self.order, arc_counts))
        self.log_weight_C = of_frames(_joined([item.log_weight_A for item in arcs]))
        self.row_S = torch.as_tensor(np.repeat(self.order, state_counts), device=device)
        self.log_initial_S = torch.as_tensor(_joined([item.graph.initial_S for item in ordered]), device=device).log()
        self.log_leak_S = self.log_initial_S + (np.log(leak) if leak else -torch.inf)
        self.log_final_S = torch.as_tensor(_joined([item.final_S for item in ordered]), device=device).double().log()

    def exchanged(self, log_s: torch.Tensor, inner_s: torch.Tensor, outer_s: torch.Tensor) -> torch.Tensor:
        """log_s ⊕ (outer + ⊕ inner over the states of the row): what a leak adds."""
        row_s = self.row_S[: len(log_s)]
        return torch.logaddexp(log_s, outer_s + log_sum(inner_s, row_s, len(self.order))[row_s])

    def exchanged_tangent(
        self, log_s: torch.Tensor, inner_s: torch.Tensor, outer_s: torch.Tensor, dlog_s: torch.Tensor
    ) -> torch.Tensor:
        """Tangent of `exchanged`, where log_s and inner_s have the tangent dlog_s, by the shares of what it adds up."""
        row_s, rows = self.row_S[: len(log_s)], len(self.order)
        total_s = log_sum(inner_s, row_s, rows).clamp_min_(LEAST)[row_s]
        mean_s = weighted_mean(torch.exp(inner_s - total_s), dlog_s, row_s, rows)[row_s]
        return torch.lerp(dlog_s, mean_s, torch.sigmoid((outer_s + total_s - log_s).nan_to_num_(nan=0.0)))

    @torch.no_grad()
    def log_totals(self, y_BTP: torch.Tensor) -> torch.Tensor:
        """log Z of each row (B,), float64; −inf: no path; NaN: an output of the row is not finite."""
        return LogForward(self, y_BTP).log_total_B

    @torch.no_grad()
    def paths(self, y_BTP: torch.Tensor) -> "LogPaths":
        """log Z, posteriors and their covariance at the outputs y."""
        return LogPaths(self, y_BTP)


class LogForward:
    """The forward recursion in the log domain.

    Attributes:
        rows: which outputs are finite.
        y_TX: outputs; 0 in rows where some are not finite.
        cell_C: int64, place in y_TX[t] of what the arc reads.
        a: float64, log weights after t frames, leak excluded: (S,), and (s,) from t = 1.
        log_total_B: float64.
    """

    def __init__(self, graphs: Numerators, y_BTP: torch.Tensor) -> None:
        self.graphs, self.rows = graphs, Rows(y_BTP, graphs.frames_B)
        self.y_TX = y_BTP.masked_fill(self.rows.bad_B[:, None, None], 0.0).transpose(0, 1).flatten(1)
        self.cell_C = graphs.row_C * y_BTP.shape[2] + graphs.pdf_C
        self.a = [graphs.log_initial_S]
        alpha_S = self.with_leak(0).clone()  # of a row that has ended: as it was then
        for t, states in enumerate(graphs.states):
            span = graphs.spans[t]
            log_c = alpha_S.index_select(0, graphs.src_C[span]).add_(self.moves(t))
            self.a.append(log_sum(log_c, graphs.dst_C[span], states))
            alpha_S[:states] = self.with_leak(t + 1)
        self.log_total_B = log_sum(alpha_S + graphs.log_final_S, graphs.row_S, len(y_BTP))
        self.log_total_B.masked_fill_(self.rows.bad_B, torch.nan)

    def moves(self, t: int) -> torch.Tensor:
        """log w + y(t, pdf) of the arcs of frame t (c,)."""
        span = self.graphs.spans[t]
        return self.graphs.log_weight_C[span] + self.y_TX[t].index_select(0, self.cell_C[span])

    def with_leak(self, t: int, states: int | None = None) -> torch.Tensor:
        """log α'(t), of the first `states` or all."""
        a_s = self.a[t][:states]
        return self.graphs.exchanged(a_s, a_s, self.graphs.log_leak_S[: len(a_s)]) if self.graphs.leak else a_s


class LogPaths:
    """log Z, posteriors and covariance of the paths of one graph per row (`Paths`).

    Only log weights of states are kept; what belongs to arcs is computed again for each product.

    Attributes:
        forward: the forward recursion.
    """

    def __init__(self, graphs: Numerators, y_BTP: torch.Tensor) -> None:
        self.graphs, self.forward = graphs, LogForward(graphs, y_BTP)
        self.log_total_B = self.forward.log_total_B
        self._after = [graphs.log_final_S] * len(graphs.states)  # going on from α'(t + 1), over Z
        self._beta = list(self._after)  # and from a(t + 1)
        self.posteriors_BTP = self._by_row(self._backward(), y_BTP)
        kept = [*self.forward.a, *self._after, *self._beta, self.forward.y_TX, self.posteriors_BTP]
        arcs = [graphs.src_C, graphs.dst_C, graphs.pdf_C, graphs.row_C, graphs.log_weight_C, self.forward.cell_C]
        self.bytes_held = sum(x.nbytes for x in (*kept, *arcs))

    def _backward(self) -> torch.Tensor:
        """γ (T, X)."""
        graphs, forward = self.graphs, self.forward
        gamma_TX = torch.zeros_like(forward.y_TX)
        total_S = self.log_total_B[graphs.row_S]
        after_S = graphs.log_final_S - total_S.masked_fill(~torch.isfinite(total_S), torch.inf)  # no path: −∞
        for t, states in reversed(list(enumerate(graphs.states))):
            span = graphs.spans[t]
            self._after[t] = after_S[:states].clone()
            self._beta[t] = self._before_leak(self._after[t])
            log_c = self._going_on(t)
            gamma_TX[t].index_add_(0, forward.cell_C[span], self._arc_posteriors(t, log_c).to(gamma_TX.dtype))
            after_S[:states] = log_sum(log_c, graphs.src_C[span], states)
        return gamma_TX

    def _going_on(self, t: int) -> torch.Tensor:
        """log weight (c,) of taking each arc of frame t and going on, over Z."""
        return self.forward.moves(t).add_(self._beta[t].index_select(0, self.graphs.dst_C[self.graphs.spans[t]]))

    def _arc_posteriors(self, t: int, going_on_c: torch.Tensor) -> torch.Tensor:
        """Posterior (c,) of taking each arc of frame t."""
        alpha_s = self.forward.with_leak(t, self.graphs.states[t])
        return alpha_s.index_select(0, self.graphs.src_C[self.graphs.spans[t]]).add_(going_on_c).exp_()

    def _before_leak(self, after_s: torch.Tensor) -> torch.Tensor:
        """log β from that of going on from α'."""
        graphs = self.graphs
        if not graphs.leak:
            return after_s
        return graphs.exchanged(after_s, graphs.log_leak_S[: len(after_s)] + after_s, torch.zeros_like(after_s))

    def _by_row(self, x_TX: torch.Tensor, like_BTP: torch.Tensor) -> torch.Tensor:
        rows, frames, pdfs = like_BTP.shape
        return x_TX.view(frames, rows, pdfs).transpose(0, 1).to(like_BTP.dtype, memory_format=torch.contiguous_format)

    @torch.no_grad()
    def covariance(self, v_BTP: torch.Tensor) -> torch.Tensor:
        """H·v (B, T, P): the tangent of γ along v, 0 at padded frames and in rows without a finite log Z.

        H is blind to constants of a frame, so v is taken about its mean under γ: the tangent of log Z is then 0.
        """
        graphs, forward = self.graphs, self.forward
        real_BTP = v_BTP.masked_fill(~forward.rows.mask_BT[..., None], 0.0).double()
        about_BTP = real_BTP - (self.posteriors_BTP * real_BTP).sum(dim=-1, keepdim=True)
        v_TX = about_BTP.transpose(0, 1).flatten(1)
        product_TX = torch.zeros_like(v_TX)
        dalpha = self._tangent_forward(v_TX)
        dafter_S = torch.zeros_like(graphs.log_final_S)
        for t, states in reversed(list(enumerate(graphs.states))):
            span = graphs.spans[t]
            src_c, cell_c = graphs.src_C[span], forward.cell_C[span]
            dbeta_s = self._before_leak_tangent(self._after[t], dafter_S[:states])
            dmove_c = dbeta_s.index_select(0, graphs.dst_C[span]).add_(v_TX[t].index_select(0, cell_c))
            posterior_c = self._arc_posteriors(t, self._going_on(t))
            product_TX[t].index_add_(0, cell_c, posterior_c * (dalpha[t].index_select(0, src_c) + dmove_c))
            dafter_S[:states] = weighted_mean(posterior_c, dmove_c, src_c, states)
        return self._by_row(product_TX, v_BTP)

    def _tangent_forward(self, v_TX: torch.Tensor) -> list[torch.Tensor]:
        """Tangent of log α'(t), (s,), for each frame t."""
        graphs = self.graphs
        dalpha = []
        da_s = torch.zeros_like(graphs.log_initial_S)
        for t, states in enumerate(graphs.states):
            span = graphs.spans[t]
            dalpha.append(self._with_leak_tangent(self.forward.a[t][:states], da_s[:states]))
            dmove_c = v_TX[t].index_select(0, self.forward.cell_C[span])
            dmove_c.add_(dalpha[t].index_select(0, graphs.src_C[span]))
            posterior_c = self._arc_posteriors(t, self._going_on(t))
            da_s = weighted_mean(posterior_c, dmove_c, graphs.dst_C[span], states)
        return dalpha

    def _with_leak_tangent(self, a_s: torch.Tensor, da_s: torch.Tensor) -> torch.Tensor:
        """Tangent of log α' from that of log a."""
        graphs = self.graphs
        return graphs.exchanged_tangent(a_s, a_s, graphs.log_leak_S[: len(a_s)], da_s) if graphs.leak else da_s

    def _before_leak_tangent(self, after_s: torch.Tensor, dafter_s: torch.Tensor) -> torch.Tensor:
        """Tangent of log β from that of going on from α'."""
        graphs = self.graphs
        if not graphs.leak:
            return dafter_s
        inner_s = graphs.log_leak_S[: len(after_s)] + after_s
        return graphs.exchanged_tangent(after_s, inner_s, torch.zeros_like(after_s), dafter_s)


def _arcs_of_frames(first_A: np.ndarray, last_A: np.ndarray, ends: list[int]) -> tuple[np.ndarray, list[slice]]:
    """Arcs of all frames side by side, and where each frame's are.

    Args:
        first_A, last_A: frames that an arc may read.
        ends: arcs of the rows that have frame t.
    """
    if (first_A <= 0).all() and (last_A >= len(ends) - 1).all():  # one copy serves all frames
        return np.arange(len(first_A)), [slice(0, end) for end in ends]
    frame_T1 = np.arange(len(ends))[:, None]
    open_TA = (first_A <= frame_T1) & (frame_T1 <= last_A) & (np.arange(len(first_A)) < np.array(ends)[:, None])
    bounds = _starts(open_TA.sum(axis=1))
    return np.nonzero(open_TA)[1], [slice(*pair) for pair in pairwise(bounds)]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _starts(counts: Sequence[int] | np.ndarray) -> list[int]:
    return [0, *np.cumsum(counts, dtype=np.int64).tolist()]
