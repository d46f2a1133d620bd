"""Sums over the paths of a chain graph as one writes them in plain torch and leaves the derivatives to autograd.

Neither has a leak; each row has all frames. Shape suffixes: B rows, T output frames, P pdfs, S states, A arcs.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from asr_hf.criteria.chain_moves import chain_moves
from asr_hf.criteria.log_arcs import Arcs
from asr_hf.hmm.chain_graph import ChainGraph

LogTotals = Callable[[torch.Tensor], torch.Tensor]  # y (B, T, P) → log Z (B,)
Product = Callable[[torch.Tensor], torch.Tensor]  # v → H·v

_LEAST = -1e30  # stands for −∞, of which derivatives would be NaN


@dataclass(frozen=True)
class UnderAutograd:
    """log Z with its derivatives by autograd."""

    log_totals: LogTotals

    def forward_backward(self, y_BTP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log Z and γ."""
        y_BTP = y_BTP.detach().requires_grad_()
        log_total_B = self.log_totals(y_BTP)
        (gamma_BTP,) = torch.autograd.grad(log_total_B.sum(), y_BTP)
        return log_total_B.detach(), gamma_BTP

    def linearize(self, y_BTP: torch.Tensor) -> Product:
        """v → H·v by a second backward pass through the graph of the first, which is kept."""
        y_BTP = y_BTP.detach().requires_grad_()
        (gamma_BTP,) = torch.autograd.grad(self.log_totals(y_BTP).sum(), y_BTP, create_graph=True)
        return lambda v_BTP: torch.autograd.grad(gamma_BTP, y_BTP, v_BTP, retain_graph=True)[0]


def log_domain(graph: ChainGraph, dtype: torch.dtype) -> LogTotals:
    """log Z by log-sum-exp over the arcs into each state."""
    arcs = Arcs.of(graph)
    src_A, dst_A, pdf_A = (torch.as_tensor(x) for x in (arcs.src_A, arcs.dst_A, arcs.pdf_A))
    log_weight_A1 = torch.as_tensor(arcs.log_weight_A, dtype=dtype)[:, None]
    initial_S1 = torch.as_tensor(graph.initial_S, dtype=dtype)[:, None]
    log_initial_S1 = initial_S1.log().clamp_min(_LEAST)

    def log_totals(y_BTP: torch.Tensor) -> torch.Tensor:
        alpha_SB = log_initial_S1.expand(-1, len(y_BTP))
        dst_AB = dst_A[:, None].expand(-1, len(y_BTP))
        for y_BP in y_BTP.unbind(dim=1):
            log_AB = alpha_SB.index_select(0, src_A) + log_weight_A1 + y_BP.T.index_select(0, pdf_A)
            least_SB = torch.full_like(alpha_SB, _LEAST)
            largest_SB = least_SB.scatter_reduce(0, dst_AB, log_AB.detach(), "amax")
            shares_AB = torch.exp(log_AB - largest_SB.index_select(0, dst_A))
            total_SB = torch.zeros_like(alpha_SB).index_add(0, dst_A, shares_AB)
            alpha_SB = total_SB.clamp_min(1.0).log() + largest_SB  # below 1: no arc enters the state
        return alpha_SB.logsumexp(dim=0)

    return log_totals


def linear_domain(graph: ChainGraph, pdfs: int, dtype: torch.dtype) -> LogTotals:
    """log Z by a sparse (CSR) product a frame, scaled to sum 1 after each."""
    weights = chain_moves(graph, pdfs, torch.device("cpu"), dtype).weights_MS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        size = (2 * graph.states, graph.states)
        weights_MS = torch.sparse_csr_tensor(weights.starts, weights.column, weights.value, size=size)
    entry_S, loop_S = torch.as_tensor(graph.entry_S), torch.as_tensor(graph.loop_S)
    initial_S1 = torch.as_tensor(graph.initial_S, dtype=dtype)[:, None]

    def log_totals(y_BTP: torch.Tensor) -> torch.Tensor:
        largest_BT1 = y_BTP.detach().amax(dim=-1, keepdim=True)
        x_BTP = torch.exp(y_BTP - largest_BT1)
        alpha_SB = initial_S1.expand(-1, len(y_BTP))
        log_total_B = largest_BT1.sum(dim=(1, 2))
        for x_BP in x_BTP.unbind(dim=1):
            enter_SB, stay_SB = (weights_MS @ alpha_SB).chunk(2)
            weight_SB = x_BP.T.index_select(0, entry_S) * enter_SB + x_BP.T.index_select(0, loop_S) * stay_SB
            scale_B = weight_SB.sum(dim=0)
            alpha_SB = weight_SB / scale_B
            log_total_B = log_total_B + scale_B.log()
        return log_total_B

    return log_totals
