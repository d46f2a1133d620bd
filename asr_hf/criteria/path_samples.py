"""Paths drawn from the posterior of the denominator: filter forward, then sample backward, frame by frame.

After the last frame a state is drawn from a(T). Backward from a state after frame t, an arc into it is drawn in
proportion to α'(t, src)·w·x(t, pdf); then, where it came from, whether the path had leaked there since the frame
before, in proportion to ℓ·initial·Σa(t) against a(t), and if so from which state, again in proportion to a(t).
Shape suffixes: B rows, K paths of each, T frames, P pdfs, S states, A arcs; b rows that have the frame, longest first;
N draws, C arcs that draws choose from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from asr_hf.criteria.denominator import DenominatorPaths
from asr_hf.criteria.log_arcs import Arcs, log_sum


@dataclass(frozen=True)
class PathSamples:
    """Sampled paths of the rows of a batch; −1 (and False) where a row has no frame, or no finite log Z.

    Attributes:
        state_BKT: int64, state after each frame, before a leak.
        pdf_BKT: int64, pdf that the frame read.
        enters_BKT: bool, the frame entered the state, rather than stay in it.
    """

    state_BKT: torch.Tensor
    pdf_BKT: torch.Tensor
    enters_BKT: torch.Tensor


@dataclass(frozen=True)
class _Filter:
    """Forward weights of some rows: their places in the batch; log a(t) (b, S) after t frames; log x(t) (b, P)."""

    order: torch.Tensor
    active: list[int]
    log_a: Callable[[int], torch.Tensor]
    log_x: Callable[[int], torch.Tensor]


@torch.no_grad()
def sample_paths(paths: DenominatorPaths, count: int, generator: torch.Generator) -> PathSamples:
    """Draw `count` paths of each row, independent and exactly from the posterior."""
    rows, frames, _ = paths.posteriors_BTP.shape
    shape = (rows, count, frames)
    device = paths.posteriors_BTP.device
    samples = PathSamples(
        torch.full(shape, -1, device=device),
        torch.full(shape, -1, device=device),
        torch.zeros(shape, dtype=torch.bool, device=device),
    )
    sampler = _Sampler(paths, count, generator)
    for weights in _filters(paths):
        sampler.draw(weights, samples)
    none_B = ~torch.isfinite(paths.log_total_B)
    samples.state_BKT[none_B] = samples.pdf_BKT[none_B] = -1
    samples.enters_BKT[none_B] = False
    return samples


def _filters(paths: DenominatorPaths) -> list[_Filter]:
    forward, states = paths.forward, paths.denominator.graph.states
    initial_1S = forward.moves.initial_S.double().log()[None]

    def log_a(t: int) -> torch.Tensor:
        if t == 0:
            return initial_1S.expand(len(forward.rows.order_B), states)
        return (forward.u[t - 1][:states] + forward.u[t - 1][states:]).T.double().log()

    def log_x(t: int) -> torch.Tensor:
        return forward.x_TPB[t, :, : forward.rows.active[t]].T.double().log()

    filters = [_Filter(forward.rows.order_B, forward.rows.active, log_a, log_x)]
    in_logs = paths.log_domain
    if in_logs:
        order = torch.as_tensor(in_logs.graphs.order, device=initial_1S.device)
        active = [count // states for count in in_logs.graphs.states]
        y_TX, log_rows = in_logs.forward.y_TX, len(order)
        filters.append(
            _Filter(
                paths.in_logs[order],
                active,
                lambda t: in_logs.forward.a[t].view(-1, states),
                lambda t: y_TX[t].view(log_rows, -1)[order[: active[t]]],
            )
        )
    return filters


class _Sampler:
    def __init__(self, paths: DenominatorPaths, count: int, generator: torch.Generator) -> None:
        graph, device = paths.denominator.graph, paths.posteriors_BTP.device
        arcs = Arcs.of(graph)
        self.count, self.generator = count, generator
        self.src_A, self.pdf_A, self.enters_A, self.log_weight_A = (
            torch.as_tensor(x, device=device) for x in (arcs.src_A, arcs.pdf_A, arcs.enters_A, arcs.log_weight_A)
        )
        into_S = torch.bincount(torch.as_tensor(arcs.dst_A, device=device), minlength=graph.states)
        self.first_S, self.into_S = into_S.cumsum(0) - into_S, into_S
        initial_S = torch.as_tensor(graph.initial_S, device=device)
        self.log_leak_S = (paths.denominator.leak * initial_S).log()

    def draw(self, weights: _Filter, into: PathSamples) -> None:
        """Paths of the rows of `weights`, into their places of the batch."""
        came_NK = torch.empty(0, self.count, dtype=torch.int64, device=self.src_A.device)  # from: leak included
        for t, active in reversed(list(enumerate(weights.active))):
            a_bS = weights.log_a(t + 1)
            state_bK = self._from_states(a_bS)
            went_on = len(came_NK)
            leaked = self._leaked(a_bS[:went_on], came_NK)
            state_bK[:went_on] = torch.where(leaked, state_bK[:went_on], came_NK)
            arc_bK = self._arc_into(state_bK, weights.log_a(t)[:active], weights.log_x(t))
            row = weights.order[:active]
            into.state_BKT[row, :, t] = state_bK
            into.pdf_BKT[row, :, t] = self.pdf_A[arc_bK]
            into.enters_BKT[row, :, t] = self.enters_A[arc_bK]
            came_NK = self.src_A[arc_bK]

    def _leaked(self, a_bS: torch.Tensor, state_bK: torch.Tensor) -> torch.Tensor:
        """Whether a path that is in a state after the leak leaked to it."""
        leak_bK = self.log_leak_S[state_bK] + a_bS.logsumexp(dim=1, keepdim=True)
        share_bK = torch.exp(leak_bK - torch.logaddexp(a_bS.gather(1, state_bK), leak_bK))
        return self._uniform(state_bK.shape) < share_bK

    def _from_states(self, a_bS: torch.Tensor) -> torch.Tensor:
        """States (b, K) drawn in proportion to a."""
        below_bS = torch.softmax(a_bS, dim=1).cumsum(dim=1)
        at_bK = self._uniform((len(a_bS), self.count)) * below_bS[:, -1:]
        return torch.searchsorted(below_bS, at_bK, right=True).clamp_(max=a_bS.shape[1] - 1)

    def _arc_into(self, state_bK: torch.Tensor, a_bS: torch.Tensor, x_bP: torch.Tensor) -> torch.Tensor:
        """An arc (b, K) into each state, drawn in proportion to the weight of its source, its own and its pdf's."""
        state_N = state_bK.flatten()
        counts_N, draws = self.into_S[state_N], len(state_N)
        draw_C = torch.arange(draws, device=state_N.device).repeat_interleave(counts_N)
        begin_N = counts_N.cumsum(0) - counts_N
        arc_C = torch.arange(len(draw_C), device=state_N.device) + (self.first_S[state_N] - begin_N)[draw_C]
        row_C, src_C = draw_C // self.count, self.src_A[arc_C]
        alpha_C = torch.logaddexp(a_bS[row_C, src_C], self.log_leak_S[src_C] + a_bS.logsumexp(dim=1)[row_C])
        log_C = alpha_C + self.log_weight_A[arc_C] + x_bP[row_C, self.pdf_A[arc_C]]
        share_C = torch.exp(log_C - log_sum(log_C, draw_C, draws)[draw_C]).nan_to_num_(nan=0.0)
        below_C = torch.nn.functional.pad(share_C.cumsum(0), (1, 0))
        low_N, high_N = below_C[begin_N], below_C[begin_N + counts_N]
        at_N = low_N + self._uniform((draws,)) * (high_N - low_N)
        chosen_N = torch.searchsorted(below_C[1:], at_N, right=True)
        chosen_N = torch.minimum(torch.maximum(chosen_N, begin_N), begin_N + counts_N - 1)
        return arc_C[chosen_N].view_as(state_bK)

    def _uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=self.generator, device=self.src_A.device)
