"""A chain graph as a list of arcs, and sums over arcs of numbers kept as logarithms.

Shape suffixes: A arcs, N any numbers with an index each.
"""

from dataclasses import dataclass

import numpy as np
import torch

from asr_hf.hmm.chain_graph import ChainGraph

LEAST = -1e300  # stands for −∞ where it is subtracted


@dataclass(frozen=True)
class Arcs:
    """The moves of a graph, sorted by the state they go to; staying is an arc from a state to itself.

    Attributes:
        src_A, dst_A, pdf_A: int64.
        log_weight_A: float64.
        enters_A: bool, the arc reads its state's entry pdf.
    """

    src_A: np.ndarray
    dst_A: np.ndarray
    pdf_A: np.ndarray
    log_weight_A: np.ndarray
    enters_A: np.ndarray

    @classmethod
    def of(cls, graph: ChainGraph) -> "Arcs":
        (stays,) = np.nonzero(graph.stay_S)
        src, dst = np.concatenate([graph.src_A, stays]), np.concatenate([graph.dst_A, stays])
        weight = np.concatenate([graph.weight_A, graph.stay_S[stays]])
        enters = np.arange(len(src)) < len(graph.src_A)
        order = np.argsort(dst, kind="stable")
        pdf = np.where(enters, graph.entry_S[dst], graph.loop_S[dst])
        return cls(src[order], dst[order], pdf[order], np.log(weight[order]), enters[order])


def log_sum(log_N: torch.Tensor, index_N: torch.Tensor, size: int) -> torch.Tensor:
    """⊕ of the numbers with each index (size,); −∞: there is none, or all are −∞."""
    largest = log_N.new_full((size,), LEAST).scatter_reduce_(0, index_N, log_N, "amax")
    share_N = log_N.sub(largest.index_select(0, index_N)).exp_()
    return torch.zeros_like(largest).index_add_(0, index_N, share_N).log_().add_(largest)


def weighted_mean(weight_N: torch.Tensor, x_N: torch.Tensor, index_N: torch.Tensor, size: int) -> torch.Tensor:
    """Mean of the numbers with each index (size,); 0 where their weights are all 0."""
    weighted = weight_N.new_zeros(size).index_add_(0, index_N, weight_N * x_N)
    total = torch.zeros_like(weighted).index_add_(0, index_N, weight_N)
    return torch.where(total > 0, weighted / total, 0.0)
