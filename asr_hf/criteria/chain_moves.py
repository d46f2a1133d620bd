"""A chain graph as the sparse matrices of one frame: from states to moves, and from moves to pdfs.

A move ends a frame in a state: M = 2S of them, entering state j (move j) and staying in it (move S + j). One frame of
the forward recursion is x[pdf_M]∘(weights_MS·α'), its two halves added up.
Shape suffixes: S states, M moves, P pdfs.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from asr_hf.hmm.chain_graph import ChainGraph


@dataclass(frozen=True)
class ChainMoves:
    """The tensors of a chain graph on a device, in one precision.

    Attributes:
        weights_MS: CSR, weight of the move from each state; `weights_SM` its transpose.
        pdf_M: int64, pdf that the move reads.
        of_pdf_PM: CSR of ones, the moves that read a pdf.
        terms_S: weights into the state, and two more: how many roundings a frame's a(j) has seen.
        unused_P: bool, pdfs that no path can read; None: there are none.
        initial_S: weight of being in a state before the first frame.
    """

    weights_MS: torch.Tensor
    weights_SM: torch.Tensor
    pdf_M: torch.Tensor
    of_pdf_PM: torch.Tensor
    terms_S: torch.Tensor
    unused_P: torch.Tensor | None
    initial_S: torch.Tensor

    @property
    def states(self) -> int:
        return len(self.initial_S)

    def read(self, x_Pb: torch.Tensor) -> torch.Tensor:
        """What each move reads (M, b), in fresh memory."""
        return x_Pb.index_select(0, self.pdf_M)


def chain_moves(graph: ChainGraph, num_pdfs: int, device: torch.device, dtype: torch.dtype) -> ChainMoves:
    """The matrices of `graph` over outputs of `num_pdfs` pdfs."""
    states, moves = graph.states, 2 * graph.states
    (stays,) = np.nonzero(graph.stay_S)
    move = np.concatenate([graph.dst_A, states + stays])
    state = np.concatenate([graph.src_A, stays])
    weight = np.concatenate([graph.weight_A, graph.stay_S[stays]])
    pdf_M = np.concatenate([graph.entry_S, np.where(graph.stay_S > 0, graph.loop_S, graph.entry_S)])
    ones_M, all_M = np.ones(moves), np.arange(moves)
    unused_P = np.bincount(pdf_M[move], minlength=num_pdfs) == 0
    return ChainMoves(
        weights_MS=_csr(move, state, weight, (moves, states), device, dtype),
        weights_SM=_csr(state, move, weight, (states, moves), device, dtype),
        pdf_M=torch.as_tensor(pdf_M, device=device),
        of_pdf_PM=_csr(pdf_M, all_M, ones_M, (num_pdfs, moves), device, dtype),
        terms_S=torch.as_tensor(2 + np.bincount(move % states, minlength=states), dtype=dtype, device=device),
        unused_P=torch.as_tensor(unused_P, device=device) if unused_P.any() else None,
        initial_S=torch.as_tensor(graph.initial_S, dtype=dtype, device=device),
    )


def by_state(x_Mb: torch.Tensor) -> torch.Tensor:
    """(2, S, b): entering each state, and staying in it."""
    return x_Mb.view(2, len(x_Mb) // 2, -1)


def spmm(sparse: torch.Tensor, dense: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """sparse @ dense, without the matrix of zeros to which `@` would add it."""
    out = dense.new_empty(len(sparse), dense.shape[1]) if out is None else out
    return torch.addmm(out, sparse, dense, beta=0, out=out)


def _csr(
    row: np.ndarray,
    column: np.ndarray,
    value: np.ndarray,
    shape: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    order = np.lexsort((column, row))
    starts = np.searchsorted(row[order], np.arange(shape[0] + 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(
            torch.as_tensor(starts, dtype=torch.int32, device=device),
            torch.as_tensor(column[order], dtype=torch.int32, device=device),
            torch.as_tensor(value[order], dtype=dtype, device=device),
            size=shape,
        )
