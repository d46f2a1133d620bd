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

from asr_hf.criteria.chain_moves import ChainMoves, by_state, chain_moves
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
        self.x_TPB = self.rows.by_frame(read_BTP).sub_(self.rows.by_frame(largest_BT1)).exp_()
        self.u = self.rows.block(2 * self.moves.states, y_BTP)
        self.scale_TB = y_BTP.new_ones(y_BTP.shape[1] + 1, len(y_BTP))
        self.scale_TB[0] = self.moves.initial_S.sum()
        self.final = 1.0 + self.leak * float(self.moves.initial_S.sum())
        self._run()
        self.last_scale_B = self.scale_TB.gather(0, self.rows.frames_B[self.rows.order_B][None])[0]
        self.log_total_B = self._log_total(largest_BT1[..., 0])

    def _run(self) -> None:
        moves, rows, initial_S1 = self.moves, self.rows, self.moves.initial_S[:, None]
        alpha_Sb = (self.final * initial_S1).repeat(1, self.scale_TB.shape[1])
        x, scales, next_scales = rows.views(self.x_TPB), rows.views(self.scale_TB), rows.views(self.scale_TB[1:])
        frames = zip(self.u, x, scales, next_scales, rows.scratch(2 * moves.states, self.x_TPB), strict=True)
        for u_Mb, x_Pb, scale_b, next_scale_b, read_Mb in frames:
            alpha_Sb = rows.narrowed(alpha_Sb, u_Mb)
            moves.read(x_Pb.div_(scale_b), out=read_Mb)
            torch.mul(moves.weights_MS @ alpha_Sb, read_Mb, out=u_Mb)
            torch.add(*by_state(u_Mb), out=alpha_Sb)
            torch.sum(alpha_Sb, dim=0, out=next_scale_b)
            alpha_Sb.addcmul_(initial_S1, next_scale_b, value=self.leak)

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
        moves, forward, rows = self._moves, self.forward, self.forward.rows
        gamma_TPB = torch.zeros_like(forward.x_TPB)
        leak_and_terms_2S = torch.stack([self._leak_S, moves.terms_S])
        sums_T2B = gamma_TPB.new_zeros(len(gamma_TPB), 2, gamma_TPB.shape[2])  # of both, with β'(t + 1)
        end_SB = (1.0 / (forward.final * forward.last_scale_B)).expand(moves.states, -1)
        back_Sb = end_SB[:, :0]
        x, gamma, sums = rows.views(forward.x_TPB), rows.views(gamma_TPB), rows.views(sums_T2B)
        frames = zip(forward.u, self._beta, x, gamma, sums, rows.scratch(2 * moves.states, gamma_TPB), strict=True)
        for u_Mb, beta_Sb, x_Pb, gamma_Pb, sums_2b, z_Mb in reversed(list(frames)):
            back_Sb = rows.widened(back_Sb, end_SB, beta_Sb)
            torch.mm(leak_and_terms_2S, back_Sb, out=sums_2b)
            torch.add(back_Sb, sums_2b[0], out=beta_Sb)
            torch.mul(by_state(u_Mb), beta_Sb, out=by_state(z_Mb))
            gamma_Pb.copy_(moves.of_pdf_PM @ z_Mb)
            by_state(moves.read(x_Pb, out=z_Mb)).mul_(beta_Sb)
            back_Sb = moves.weights_SM @ z_Mb
        worth_TB = sums_T2B[:, 1] + moves.terms_S.sum() * sums_T2B[:, 0]  # Σ terms∘β
        return rows.by_row(gamma_TPB), forward.lost_share(worth_TB)

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
        moves, forward, rows = self._moves, self.forward, self.forward.rows
        du = rows.block(2 * moves.states, v_TPB)
        dalpha_Sb = v_TPB.new_zeros(moves.states, v_TPB.shape[2])
        dscale_B = v_TPB.new_zeros(v_TPB.shape[2])
        x, v = rows.views(forward.x_TPB), rows.views(v_TPB)
        frames = zip(forward.u, du, x, v, rows.scratch(2 * moves.states, v_TPB), strict=True)
        for u_Mb, du_Mb, x_Pb, v_Pb, read_Mb in frames:
            dalpha_Sb = rows.narrowed(dalpha_Sb, u_Mb)
            torch.mul(moves.weights_MS @ dalpha_Sb, moves.read(x_Pb, out=read_Mb), out=du_Mb)
            du_Mb.addcmul_(u_Mb, moves.read(v_Pb, out=read_Mb))
            torch.add(*by_state(du_Mb), out=dalpha_Sb)
            dscale_b = torch.sum(dalpha_Sb, dim=0, out=dscale_B[: u_Mb.shape[1]])
            dalpha_Sb.addcmul_(self._leak_S[:, None], dscale_b)
        return du, dscale_B

    def _tangent_backward(self, v_TPB: torch.Tensor, du: list[torch.Tensor], dscale_B: torch.Tensor) -> torch.Tensor:
        """γ̇ (T, P, B), per pdf the sum over its moves of u̇∘β + u∘β̇; the memory of u̇ is used up."""
        moves, forward, rows = self._moves, self.forward, self.forward.rows
        product_TPB = torch.zeros_like(v_TPB)
        end_SB = (-dscale_B / (forward.final * forward.last_scale_B.square())).expand(moves.states, -1)
        dback_Sb = end_SB[:, :0]
        x, v, product = rows.views(forward.x_TPB), rows.views(v_TPB), rows.views(product_TPB)
        scratch = rows.scratch(2 * moves.states, v_TPB)
        frames = zip(forward.u, du, self._beta, x, v, product, scratch, strict=True)
        for u_Mb, du_Mb, beta_Sb, x_Pb, v_Pb, product_Pb, z_Mb in reversed(list(frames)):
            dback_Sb = rows.widened(dback_Sb, end_SB, beta_Sb)
            dbeta_Sb = dback_Sb.add_(self._leak_S @ dback_Sb)
            by_state(du_Mb).mul_(beta_Sb).addcmul_(by_state(u_Mb), dbeta_Sb)
            product_Pb.copy_(moves.of_pdf_PM @ du_Mb)
            by_state(moves.read(v_Pb, out=z_Mb)).mul_(beta_Sb).add_(dbeta_Sb)
            z_Mb.mul_(moves.read(x_Pb, out=du_Mb))
            dback_Sb = moves.weights_SM @ z_Mb
        return product_TPB
