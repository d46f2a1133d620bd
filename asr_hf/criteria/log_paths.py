"""Sums over the paths of one graph per row, in the log domain: numerators, and what the linear domain cannot hold.

The states of all rows lie side by side, rows with most frames first, so that the states and arcs of rows that still
have a frame are always the first ones. Every move is an arc that reads a pdf, staying too. With ⊕ the log-domain sum,
a(t) the log weights after t frames and α'(t) the same with the leak, which stays within a row,
    a(t+1, j) = ⊕ over arcs i→j of α'(t, i) + log w + y(t, pdf);  −∞ outside the window of j,
    α'(t, j) = a(t, j) ⊕ (log ℓ·initial_j + ⊕_i a(t, i)),
and backward β(t), of going on from a(t+1), likewise. The tangent of a log weight is the mean, over the posteriors of
the arcs that make it, of what it was a frame before plus v(t, pdf): no weight is divided by a small one.
Shape suffixes: B rows, T output frames, P pdfs, S states and A arcs of all rows, s and k those of rows with the frame.
"""

from collections.abc import Sequence

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
        self.order = torch.argsort(self.frames_B, descending=True, stable=True).tolist()
        ordered = [numerators[row] for row in self.order]
        graphs = [numerator.graph for numerator in ordered]
        arcs = [Arcs.of(graph) for graph in graphs]
        states, arc_counts = [graph.states for graph in graphs], [len(item.src_A) for item in arcs]
        self._state_starts, self._arc_starts = _starts(states), _starts(arc_counts)

        def tensor(parts: list[np.ndarray]) -> torch.Tensor:
            return torch.as_tensor(np.concatenate(parts) if parts else np.zeros(0), device=device)

        offset_A = torch.as_tensor(np.repeat(self._state_starts[:-1], arc_counts), device=device)
        self.src_A = tensor([item.src_A for item in arcs]) + offset_A
        self.dst_A = tensor([item.dst_A for item in arcs]) + offset_A
        self.pdf_A = tensor([item.pdf_A for item in arcs])
        self.log_weight_A = tensor([item.log_weight_A for item in arcs])
        self.row_A = torch.as_tensor(np.repeat(self.order, arc_counts), device=device)
        self.row_S = torch.as_tensor(np.repeat(self.order, states), device=device)
        self.log_initial_S = tensor([graph.initial_S for graph in graphs]).log()
        self.log_leak_S = self.log_initial_S + (np.log(leak) if leak else -torch.inf)
        self.log_final_S = tensor([numerator.final_S for numerator in ordered]).double().log()
        self.first_S = tensor([numerator.first_S for numerator in ordered])
        self.last_S = tensor([numerator.last_S for numerator in ordered])

    def prefixes(self, frames: int) -> list[tuple[int, int]]:
        """(states, arcs) of the rows that have frame t, for each of `frames` that any row has."""
        active = [int((self.frames_B > t).sum()) for t in range(frames)]
        return [(self._state_starts[rows], self._arc_starts[rows]) for rows in active if rows]

    def exchanged(self, log_s: torch.Tensor, inner_s: torch.Tensor, outer_S: torch.Tensor) -> torch.Tensor:
        """log_s ⊕ (outer + ⊕ inner over the states of the row): what a leak adds."""
        row_s = self.row_S[: len(log_s)]
        return torch.logaddexp(log_s, outer_S[: len(log_s)] + log_sum(inner_s, row_s, len(self.order))[row_s])

    def exchanged_tangent(
        self, log_s: torch.Tensor, inner_s: torch.Tensor, outer_S: torch.Tensor, dlog_s: torch.Tensor
    ) -> torch.Tensor:
        """Tangent of `exchanged`, where log_s and inner_s have the tangent dlog_s, by the shares of what it adds up."""
        row_s, rows = self.row_S[: len(log_s)], len(self.order)
        total_s = log_sum(inner_s, row_s, rows).clamp_min_(LEAST)[row_s]
        mean_s = weighted_mean(torch.exp(inner_s - total_s), dlog_s, row_s, rows)[row_s]
        added_s = outer_S[: len(log_s)] + total_s
        return torch.lerp(dlog_s, mean_s, torch.sigmoid((added_s - log_s).nan_to_num_(nan=0.0)))

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
        y_TX: float64, (T, B·P) outputs; 0 in rows where some are not finite.
        cell_A: int64, place in y_TX[t] of what the arc reads.
        outside_TS: bool, states where no path may be after frame t.
        a: float64, log weights after t frames, leak excluded, (S,) and (s,) from t = 1.
        log_total_B: float64.
    """

    def __init__(self, graphs: Numerators, y_BTP: torch.Tensor) -> None:
        self.graphs, self.rows = graphs, Rows(y_BTP, graphs.frames_B)
        frames, pdfs = y_BTP.shape[1:]
        finite_BTP = y_BTP.masked_fill(self.rows.bad_B[:, None, None], 0.0)
        self.y_TX = finite_BTP.transpose(0, 1).flatten(1).double()
        self.cell_A = graphs.row_A * pdfs + graphs.pdf_A
        frame_T1 = torch.arange(frames, device=y_BTP.device)[:, None]
        self.outside_TS = (frame_T1 < graphs.first_S) | (frame_T1 > graphs.last_S)
        self.a = [graphs.log_initial_S]
        alpha_S = self.with_leak(self.a[0]).clone()  # of a row that has ended: as it was then
        for t, (states, arcs) in enumerate(graphs.prefixes(frames)):
            log_k = alpha_S[graphs.src_A[:arcs]] + self.moves(t, arcs)
            a_s = log_sum(log_k, graphs.dst_A[:arcs], states)
            self.a.append(a_s.masked_fill_(self.outside_TS[t, :states], -torch.inf))
            alpha_S[:states] = self.with_leak(a_s)
        self.log_total_B = log_sum(alpha_S + graphs.log_final_S, graphs.row_S, len(y_BTP))
        self.log_total_B.masked_fill_(self.rows.bad_B, torch.nan)

    def moves(self, t: int, arcs: int) -> torch.Tensor:
        """log w + y(t, pdf) of the first `arcs` arcs."""
        return self.graphs.log_weight_A[:arcs] + self.y_TX[t][self.cell_A[:arcs]]

    def with_leak(self, a_s: torch.Tensor) -> torch.Tensor:
        """log α' from log a."""
        return self.graphs.exchanged(a_s, a_s, self.graphs.log_leak_S) if self.graphs.leak else a_s


class LogPaths:
    """log Z, posteriors and covariance of the paths of one graph per row (`Paths`).

    Only log weights of states are kept; what belongs to arcs is computed again for each product.

    Attributes:
        forward: the forward recursion.
    """

    def __init__(self, graphs: Numerators, y_BTP: torch.Tensor) -> None:
        self.graphs, self.forward = graphs, LogForward(graphs, y_BTP)
        self.log_total_B = self.forward.log_total_B
        total_A = self.log_total_B[graphs.row_A]
        self._log_total_A = total_A.masked_fill(~torch.isfinite(total_A), torch.inf)  # posteriors of no path are 0
        self._prefixes = graphs.prefixes(y_BTP.shape[1])
        self._after: list[torch.Tensor] = []  # of frame t: log weight of going on from α'(t + 1)
        self._beta: list[torch.Tensor] = []  # and from a(t + 1)
        gamma_TX = self._backward()
        self.posteriors_BTP = self._by_row(gamma_TX, y_BTP)
        kept = [*self.forward.a, *self._after, *self._beta, self.forward.y_TX, self.forward.outside_TS]
        self.bytes_held = sum(x.nbytes for x in [*kept, self._log_total_A, self.posteriors_BTP])

    def _backward(self) -> torch.Tensor:
        """γ (T, B·P)."""
        graphs, forward, frames = self.graphs, self.forward, len(self._prefixes)
        self._after, self._beta = [graphs.log_final_S] * frames, [graphs.log_final_S] * frames
        gamma_TX = torch.zeros_like(forward.y_TX)
        after_S = graphs.log_final_S.clone()  # of a row that has not begun, coming from the end: as it will be
        for t, (states, arcs) in reversed(list(enumerate(self._prefixes))):
            self._after[t] = after_S[:states].clone()
            beta_s = self._before_leak(self._after[t])
            self._beta[t] = beta_s.masked_fill(forward.outside_TS[t, :states], -torch.inf)
            gamma_TX[t].index_add_(0, forward.cell_A[:arcs], self._arc_posteriors(t))
            log_k = forward.moves(t, arcs) + self._beta[t][graphs.dst_A[:arcs]]
            after_S[:states] = log_sum(log_k, graphs.src_A[:arcs], states)
        return gamma_TX

    def _before_leak(self, after_s: torch.Tensor) -> torch.Tensor:
        """log β from that of going on from α'."""
        graphs = self.graphs
        if not graphs.leak:
            return after_s
        return graphs.exchanged(after_s, graphs.log_leak_S[: len(after_s)] + after_s, torch.zeros_like(after_s))

    def _arc_posteriors(self, t: int) -> torch.Tensor:
        """Posterior (k,) of taking each arc at frame t."""
        graphs, (states, arcs) = self.graphs, self._prefixes[t]
        alpha_s = self.forward.with_leak(self.forward.a[t][:states])
        log_k = alpha_s[graphs.src_A[:arcs]] + self.forward.moves(t, arcs) + self._beta[t][graphs.dst_A[:arcs]]
        return torch.exp(log_k - self._log_total_A[:arcs])

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
        for t, (states, arcs) in reversed(list(enumerate(self._prefixes))):
            src_k, dst_k = graphs.src_A[:arcs], graphs.dst_A[:arcs]
            posterior_k = self._arc_posteriors(t)
            dbeta_s = self._before_leak_tangent(self._after[t], dafter_S[:states])
            dmove_k = v_TX[t][forward.cell_A[:arcs]] + dbeta_s[dst_k]
            product_TX[t].index_add_(0, forward.cell_A[:arcs], posterior_k * (dalpha[t][src_k] + dmove_k))
            dafter_S[:states] = weighted_mean(posterior_k, dmove_k, src_k, states)
        return self._by_row(product_TX, v_BTP)

    def _tangent_forward(self, v_TX: torch.Tensor) -> list[torch.Tensor]:
        """Tangent of log α'(t) for each frame t, (s,)."""
        graphs = self.graphs
        dalpha = []
        da_s = torch.zeros_like(graphs.log_initial_S)
        for t, (states, arcs) in enumerate(self._prefixes):
            dalpha.append(self._with_leak_tangent(self.forward.a[t][:states], da_s[:states]))
            dmove_k = dalpha[t][graphs.src_A[:arcs]] + v_TX[t][self.forward.cell_A[:arcs]]
            da_s = weighted_mean(self._arc_posteriors(t), dmove_k, graphs.dst_A[:arcs], states)
        return dalpha

    def _with_leak_tangent(self, a_s: torch.Tensor, da_s: torch.Tensor) -> torch.Tensor:
        """Tangent of log α' from that of log a."""
        return self.graphs.exchanged_tangent(a_s, a_s, self.graphs.log_leak_S, da_s) if self.graphs.leak else da_s

    def _before_leak_tangent(self, after_s: torch.Tensor, dafter_s: torch.Tensor) -> torch.Tensor:
        """Tangent of log β from that of going on from α'."""
        graphs = self.graphs
        if not graphs.leak:
            return dafter_s
        inner_s = graphs.log_leak_S[: len(after_s)] + after_s
        return graphs.exchanged_tangent(after_s, inner_s, torch.zeros_like(after_s), dafter_s)


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts, dtype=np.int64).tolist()]
