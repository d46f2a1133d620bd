"""The sum over all paths of a chain graph, with posteriors and their covariance, in the linear domain.

α'(t) is the forward weight of each state before frame t, leak included; x = exp(y − the frame's largest output). With
s(t) = Σ_i a(t, i), a(0) = initial, one frame is
    u(t) = x(t)[pdf]/s(t) ∘ (W α'(t)),   a(t+1) = u_enter + u_stay,   α'(t+1) = a(t+1) + ℓ·initial·s(t+1),
    log Z = Σ_{t<T} (largest output of t) + Σ_{t≤T} log s(t) + log(1 + ℓ Σ initial),
and backward, with β(t) the weight of going on from a(t+1), leak included, and β'(T) = 1/Σα'(T),
    β(t) = β'(t+1) + ℓ·initialᵀβ'(t+1),   β'(t) = Wᵀ(x(t)[pdf]/s(t) ∘ β(t)),
    γ(t, n) = Σ over the moves that read n of u(t)∘β(t).
The scales 1/s and the subtracted maxima are held constant in derivatives, where any consistent constant cancels; the
s(t+1) of the leak is not. Every state is final.
Source: Povey et al. (2016), Purely sequence-trained neural networks for ASR based on lattice-free MMI (leaky HMM); the
tangent of the recursion gives H·v as in Tsuboi et al. (2011), Fast Newton-CG method for conditional random fields.
Shape suffixes: B rows, T output frames, P pdfs, S states, M = 2S moves; b rows that have the frame, longest first.
"""

import numpy as np
import torch

from asr_hf.criteria.chain_moves import ChainMoves, by_state, chain_moves, spmm
from asr_hf.criteria.log_paths import LogPaths, Numerators
from asr_hf.criteria.paths import Rows
from asr_hf.hmm.chain_graph import ChainGraph, Numerator

LOST_SHARE = 1e-6  # of Z, that numbers too small for the linear domain may have carried


class Denominator:
    """All paths of a graph, every state final, with a leak from each state to any other between frames."""

    def __init__(self, graph: ChainGraph, num_pdfs: int, leak: float) -> None:
        self.graph, self.num_pdfs, self.leak = graph, num_pdfs, leak
        self._moves: dict[tuple[torch.dtype, torch.device], ChainMoves] = {}

    def moves(self, y_BTP: torch.Tensor) -> ChainMoves:
        """The graph's matrices in the precision of the outputs, and where these are."""
        kind = y_BTP.dtype, y_BTP.device
        if kind not in self._moves:
            self._moves[kind] = chain_moves(self.graph, self.num_pdfs, y_BTP.device, y_BTP.dtype)
        return self._moves[kind]

    @torch.no_grad()
    def log_totals(self, y_BTP: torch.Tensor, frames_B: torch.Tensor) -> torch.Tensor:
        """log Z of each row (B,), float64; NaN where an output is not finite."""
        forward = Forward(self, y_BTP, frames_B)
        if forward.surely_accurate():
            return forward.log_total_B
        return self.paths(y_BTP, frames_B).log_total_B

    @torch.no_grad()
    def paths(self, y_BTP: torch.Tensor, frames_B: torch.Tensor) -> "DenominatorPaths":
        """log Z, posteriors and their covariance at the outputs y, computed in y's precision."""
        return DenominatorPaths(self, y_BTP, frames_B)

    def log_paths(self, y_BTP: torch.Tensor, frames_B: torch.Tensor) -> LogPaths:
        """The same in the log domain, for rows whose weights the linear domain cannot hold."""
        states = self.graph.states
        always = np.zeros(states, dtype=np.int64), np.full(states, y_BTP.shape[1]), np.ones(states, dtype=bool)
        everything = Numerator(self.graph, *always)
        return Numerators([everything] * len(frames_B), frames_B, y_BTP.device, self.leak).paths(y_BTP)


class Forward:
    """The forward recursion over a batch.

    Attributes:
        rows: the order of the rows in what follows.
        x_TPB: x/s.
        u: of each frame, (M, b).
        scale_TB: s, (T + 1, B); 1 after a row's end.
        last_scale_B: s(T) of each row at its own T.
        final: Σα'(T)/s(T), the leak after the last frame.
        log_total_B: float64, log Z, in the batch's order.
    """

    def __init__(self, denominator: Denominator, y_BTP: torch.Tensor, frames_B: torch.Tensor) -> None:
        self.moves, self.leak = denominator.moves(y_BTP), denominator.leak
        self.rows = Rows(y_BTP, frames_B)
        unused_P = self.moves.unused_P
        read_BTP = y_BTP if unused_P is None else y_BTP.masked_fill(unused_P, -torch.inf)
        largest_BT1 = read_BTP.amax(dim=-1, keepdim=True)
        self.x_TPB = self.rows.by_frame(read_BTP - largest_BT1).exp_()
        self.u = self.rows.block(2 * self.moves.states, y_BTP)
        self.scale_TB = y_BTP.new_ones(y_BTP.shape[1] + 1, len(y_BTP))
        self.scale_TB[0] = self.moves.initial_S.sum()
        self.final = 1.0 + self.leak * float(self.moves.initial_S.sum())
        self._run()
        self.last_scale_B = self.scale_TB.gather(0, self.rows.frames_B[self.rows.order_B][None])[0]
        self.log_total_B = self._log_total(largest_BT1[..., 0])

    def _run(self) -> None:
        moves, states = self.moves, self.moves.states
        initial_S1 = moves.initial_S[:, None]
        alpha_SB = (self.final * initial_S1).repeat(1, self.scale_TB.shape[1])
        for t, u_Mb in enumerate(self.u):
            active = u_Mb.shape[1]
            self.x_TPB[t].div_(self.scale_TB[t])
            spmm(moves.weights_MS, alpha_SB[:, :active], out=u_Mb).mul_(moves.read(self.x_TPB[t, :, :active]))
            alpha_Sb = torch.add(u_Mb[:states], u_Mb[states:], out=alpha_SB[:, :active])
            scale_b = torch.sum(alpha_Sb, dim=0, out=self.scale_TB[t + 1, :active])
            alpha_Sb.addcmul_(initial_S1, scale_b, value=self.leak)

    def _log_total(self, largest_BT: torch.Tensor) -> torch.Tensor:
        rows = self.rows
        outputs_B = largest_BT.double().masked_fill(~rows.mask_BT, 0.0).sum(dim=1)
        scales_B = self.scale_TB.double().log().sum(dim=0).index_select(0, rows.place_B)
        return (outputs_B + scales_B + np.log(self.final)).masked_fill(rows.bad_B, torch.nan)

    def lost_share(self, worth_TB: torch.Tensor) -> torch.Tensor:
        """Bound (B,) on the share of Z that numbers below the smallest normal one, taken for 0, may have carried.

        Args:
            worth_TB: Σ terms∘β(t), or a bound: what such numbers in a(t+1)·s(t) are worth in all.
        """
        smallest = torch.finfo(self.scale_TB.dtype).tiny
        lost_B = (smallest * worth_TB.double() / self.scale_TB[:-1]).sum(dim=0)
        return lost_B.index_select(0, self.rows.place_B).masked_fill(self.rows.bad_B, 0.0)

    def surely_accurate(self) -> bool:
        """Whether the leak alone bounds the worth of what was lost: β(t, i) ≤ 1/(ℓ·initial_i·s(t+1))."""
        least = self.leak * float(self.moves.initial_S.min())
        if least == 0:
            return False
        worth_TB = float(self.moves.terms_S.sum()) / (least * self.scale_TB[1:].double())
        return bool((self.lost_share(worth_TB) < LOST_SHARE).all())


class DenominatorPaths:
    """log Z, posteriors and covariance of all paths (`Paths`), and the forward weights that samples are drawn from.

    Attributes:
        forward: the forward recursion, kept.
        in_logs: rows done in the log domain, where numbers too small for the linear domain may carry too much of Z.
        log_domain: the paths of those rows.
    """

    def __init__(self, denominator: Denominator, y_BTP: torch.Tensor, frames_B: torch.Tensor) -> None:
        self.denominator = denominator
        self._moves = denominator.moves(y_BTP)
        self._leak_S = denominator.leak * self._moves.initial_S
        self.forward = Forward(denominator, y_BTP, frames_B)
        self._beta = self.forward.rows.block(self._moves.states, y_BTP)
        self.log_total_B = self.forward.log_total_B
        self.posteriors_BTP, lost_B = self._backward()
        frames = [*self.forward.u, *self._beta, self.forward.x_TPB, self.posteriors_BTP]
        self.bytes_held = sum(x.nbytes for x in frames)
        self.in_logs = (~(lost_B < LOST_SHARE)).nonzero()[:, 0]
        self.log_domain: LogPaths | None = None
        if len(self.in_logs):
            self.log_domain = denominator.log_paths(y_BTP[self.in_logs], frames_B.to(y_BTP.device)[self.in_logs])
            self.log_total_B[self.in_logs] = self.log_domain.log_total_B
            self.posteriors_BTP[self.in_logs] = self.log_domain.posteriors_BTP
            self.bytes_held += self.log_domain.bytes_held

    def _backward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """γ (B, T, P), and a bound (B,) on the share of Z that was lost to rounding to zero."""
        moves, forward = self._moves, self.forward
        gamma_TPB = torch.zeros_like(forward.x_TPB)
        worth_TB = torch.zeros_like(forward.scale_TB[1:])
        back_SB = (1.0 / (forward.final * forward.last_scale_B)).repeat(moves.states, 1)
        for t, beta_Sb in reversed(list(enumerate(self._beta))):
            active = beta_Sb.shape[1]
            back_Sb = back_SB[:, :active]
            torch.add(back_Sb, self._leak_S @ back_Sb, out=beta_Sb)
            torch.mv(beta_Sb.t(), moves.terms_S, out=worth_TB[t, :active])
            u_2Sb = by_state(forward.u[t])
            gamma_TPB[t, :, :active] = spmm(moves.of_pdf_PM, (u_2Sb * beta_Sb).flatten(0, 1))
            x_2Sb = by_state(moves.read(forward.x_TPB[t, :, :active]))
            back_Sb.copy_(spmm(moves.weights_SM, x_2Sb.mul_(beta_Sb).flatten(0, 1)))
        return forward.rows.by_row(gamma_TPB), forward.lost_share(worth_TB)

    @torch.no_grad()
    def covariance(self, v_BTP: torch.Tensor) -> torch.Tensor:
        """H·v (B, T, P): the tangent of γ along v, 0 at padded frames.

        H is blind to constants of a frame, so v is taken about its mean under γ; and linear, so v is scaled to one.
        """
        rows = self.forward.rows
        if not rows.active:
            return torch.zeros_like(v_BTP)
        real_BTP = v_BTP.masked_fill(~rows.mask_BT[..., None], 0.0)
        about_BTP = real_BTP - (self.posteriors_BTP * real_BTP).sum(dim=-1, keepdim=True)
        size_B11 = about_BTP.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(v_BTP.dtype).tiny)
        v_TPB = rows.by_frame(about_BTP / size_B11)
        product_BTP = rows.by_row(self._tangent_backward(v_TPB, *self._tangent_forward(v_TPB))) * size_B11
        if self.log_domain:
            product_BTP[self.in_logs] = self.log_domain.covariance(v_BTP[self.in_logs])
        return product_BTP

    def _tangent_forward(self, v_TPB: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """u̇ of each frame (M, b), and ṡ(T) (B,)."""
        moves, states = self._moves, self._moves.states
        du = self.forward.rows.block(2 * states, v_TPB)
        dalpha_SB = v_TPB.new_zeros(states, v_TPB.shape[2])
        dscale_B = v_TPB.new_zeros(v_TPB.shape[2])
        for t, (u_Mb, du_Mb) in enumerate(zip(self.forward.u, du, strict=True)):
            active = u_Mb.shape[1]
            spmm(moves.weights_MS, dalpha_SB[:, :active], out=du_Mb)
            du_Mb.mul_(moves.read(self.forward.x_TPB[t, :, :active]))
            du_Mb.addcmul_(u_Mb, moves.read(v_TPB[t, :, :active]))
            dalpha_Sb = torch.add(du_Mb[:states], du_Mb[states:], out=dalpha_SB[:, :active])
            dscale_b = torch.sum(dalpha_Sb, dim=0, out=dscale_B[:active])
            dalpha_Sb.addcmul_(self._leak_S[:, None], dscale_b)
        return du, dscale_B

    def _tangent_backward(self, v_TPB: torch.Tensor, du: list[torch.Tensor], dscale_B: torch.Tensor) -> torch.Tensor:
        """γ̇ (T, P, B), per pdf the sum over its moves of u̇∘β + u∘β̇."""
        moves, forward = self._moves, self.forward
        product_TPB = torch.zeros_like(v_TPB)
        dback_SB = (-dscale_B / (forward.final * forward.last_scale_B.square())).repeat(moves.states, 1)
        for t, beta_Sb in reversed(list(enumerate(self._beta))):
            active = beta_Sb.shape[1]
            dback_Sb = dback_SB[:, :active]
            dbeta_Sb = dback_Sb.add_(self._leak_S @ dback_Sb)
            dgamma_2Sb = by_state(du[t]).mul_(beta_Sb).addcmul_(by_state(forward.u[t]), dbeta_Sb)
            product_TPB[t, :, :active] = spmm(moves.of_pdf_PM, dgamma_2Sb.flatten(0, 1))
            v_2Sb = by_state(moves.read(v_TPB[t, :, :active]))
            x_2Sb = by_state(moves.read(forward.x_TPB[t, :, :active]))
            dx_beta_2Sb = v_2Sb.mul_(beta_Sb).add_(dbeta_Sb).mul_(x_2Sb)
            dback_Sb.copy_(spmm(moves.weights_SM, dx_beta_2Sb.flatten(0, 1)))
        return product_TPB
