"""The sums over paths of lattice-free MMI by k2: for those who have k2, and to compare with.

It needs torch (1.13 or later) and k2 alone. Graphs are `ChainGraph` and `Numerator` of asr_hf.hmm.chain_graph, or
anything with their fields as arrays or tensors; there is no leak. An FSA's label is the pdf; state 0 is the moment
before the first frame, whose arcs do that frame from the initial weights.

    denominator = k2.create_fsa_vec([denominator_fsa(graph)] * rows)
    numerators = k2.create_fsa_vec([numerator_fsa(numerator, n) for numerator, n in zip(of_rows, frames, strict=True)])
    loss_B = log_totals(denominator, y_BTP, frames_B) - log_totals(numerators, y_BTP, frames_B)
    loss_B.sum().backward()  # y_BTP.grad is γ_den − γ_num

    python k2_backend.py JOBS RESULTS      # files of torch.save, so that another process can compare; see `run`

Shape suffixes: B rows, T output frames, P pdfs, S states of a graph, A its transitions, M moves (transitions, and
staying), N arcs of an FSA.
"""

import sys
import time
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple

import k2
import torch

UNPRUNED = 1e10  # output beam: as good as none
_FINAL = -1  # k2's label of arcs into the final state


class _Moves(NamedTuple):
    src_M: torch.Tensor
    dst_M: torch.Tensor
    pdf_M: torch.Tensor
    weight_M: torch.Tensor


def denominator_fsa(graph: Any) -> k2.Fsa:
    """The FSA of all paths of a chain graph, every state final.

    Args:
        graph: with entry_S, loop_S, stay_S, initial_S, src_A, dst_A and weight_A.
    """
    moves, first = _moves(graph)
    states = len(graph.entry_S)
    end = states + 1
    final_S = torch.arange(1, end)
    return _fsa(
        src_N=torch.cat([first.src_M, moves.src_M + 1, final_S]),
        dst_N=torch.cat([first.dst_M + 1, moves.dst_M + 1, torch.full_like(final_S, end)]),
        label_N=torch.cat([first.pdf_M, moves.pdf_M, torch.full_like(final_S, _FINAL)]),
        weight_N=torch.cat([first.weight_M, moves.weight_M, torch.ones(states, dtype=torch.float64)]),
    )


def numerator_fsa(numerator: Any, frames: int) -> k2.Fsa:
    """The FSA of a numerator's paths of `frames` frames.

    An FSA knows no time windows: each state becomes one for every frame of its window. A path of no frames, which no
    row takes, is added, since k2 refuses an FSA that has none.

    Args:
        numerator: with `graph` as for denominator_fsa, and first_S, last_S and final_S.
        frames: output frames of the row, at least 1.
    """
    moves, first = _moves(numerator.graph)
    states = len(numerator.graph.entry_S)
    first_S, last_S = torch.as_tensor(numerator.first_S), torch.as_tensor(numerator.last_S)
    frame_T1 = torch.arange(frames)[:, None]
    inside_TS = (first_S <= frame_T1) & (frame_T1 <= last_S)
    in_time_M = inside_TS[0, first.dst_M]
    t_K, move_K = (inside_TS[:-1, moves.src_M] & inside_TS[1:, moves.dst_M]).nonzero(as_tuple=True)
    (final_K,) = (torch.as_tensor(numerator.final_S) & inside_TS[-1]).nonzero(as_tuple=True)
    before_K = 1 + t_K * states  # number of state 0 after frame t
    end = 1 + frames * states
    final_src = torch.cat([torch.zeros(1, dtype=torch.int64), end - states + final_K])
    unfolded = _fsa(
        src_N=torch.cat([first.src_M[in_time_M], before_K + moves.src_M[move_K], final_src]),
        dst_N=torch.cat(
            [1 + first.dst_M[in_time_M], before_K + states + moves.dst_M[move_K], torch.full_like(final_src, end)]
        ),
        label_N=torch.cat([first.pdf_M[in_time_M], moves.pdf_M[move_K], torch.full_like(final_src, _FINAL)]),
        weight_N=torch.cat(
            [first.weight_M[in_time_M], moves.weight_M[move_K], torch.ones(len(final_src), dtype=torch.float64)]
        ),
    )
    return k2.connect(unfolded)


def log_totals(
    fsas: k2.Fsa, y_BTP: torch.Tensor, frames_B: torch.Tensor, output_beam: float = UNPRUNED
) -> torch.Tensor:
    """log Z of each row (B,), float64, from float32 scores; its derivative in y is the posterior of pdfs.

    Args:
        fsas: a vector of one FSA a row.
        y_BTP: outputs.
        frames_B: output frames of each row, at least 1.
        output_beam: arcs on no path within so much (natural log) of the best one are left out.
    """
    largest_BT1 = y_BTP.detach().amax(dim=-1, keepdim=True)
    order_B = torch.argsort(frames_B, descending=True, stable=True)  # as intersect_dense wants them
    segments = torch.stack([order_B, torch.zeros_like(order_B), frames_B[order_B]], dim=1)
    outputs = k2.DenseFsaVec((y_BTP - largest_BT1).float(), segments.to(torch.int32).cpu())
    lattices = k2.intersect_dense(k2.index_fsa(fsas, order_B.to(torch.int32)), outputs, output_beam)
    total_B = lattices.get_tot_scores(use_double_scores=True, log_semiring=True)[torch.argsort(order_B)]
    real_BT = torch.arange(y_BTP.shape[1], device=y_BTP.device) < frames_B[:, None]
    return total_B + torch.where(real_BT, largest_BT1[..., 0].double(), 0.0).sum(dim=1)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Value and gradient of log Z, for another process.

    Args:
        job: `y_BTP`, `frames_B`; `denominator`, the fields of a graph, or `numerators`, of each row a dict of `graph`,
            `first_S`, `last_S` and `final_S`; `output_beam`; `repeats`, how often it is computed.

    Returns:
        log_total_B, posteriors_BTP, and `ms` of each repetition.
    """
    y_BTP, frames_B = job["y_BTP"], job["frames_B"]
    if "denominator" in job:
        fsas = k2.create_fsa_vec([denominator_fsa(_with_fields(job["denominator"]))] * len(y_BTP))
    else:
        rows = zip(job["numerators"], frames_B.tolist(), strict=True)
        fsas = k2.create_fsa_vec([numerator_fsa(_with_fields(numerator), frames) for numerator, frames in rows])
    milliseconds = []
    for _ in range(job["repeats"]):
        y_BTP = y_BTP.detach().requires_grad_()
        start = time.perf_counter()
        log_total_B = log_totals(fsas, y_BTP, frames_B, job["output_beam"])
        (posteriors_BTP,) = torch.autograd.grad(log_total_B.sum(), y_BTP)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {"log_total_B": log_total_B.detach(), "posteriors_BTP": posteriors_BTP, "ms": milliseconds}


def main(jobs: str, results: str) -> None:
    """Do the jobs of a file on one thread; versions and results go to another."""
    torch.set_num_threads(1)
    done = [run(job) for job in torch.load(jobs)]
    versions = {name: version(name) for name in ("k2", "torch")}
    torch.save({"versions": versions, "results": done}, results)


def _with_fields(fields: dict[str, Any]) -> SimpleNamespace:
    """A dict as an object with attributes."""
    return SimpleNamespace(**{k: _with_fields(v) if isinstance(v, dict) else v for k, v in fields.items()})


def _moves(graph: Any) -> tuple[_Moves, _Moves]:
    """The moves of a graph, and those of the first frame: their weights with the initial ones, summed by target."""
    entry_S, loop_S, stay_S, initial_S, src_A, dst_A, weight_A = (
        torch.as_tensor(getattr(graph, name))
        for name in ("entry_S", "loop_S", "stay_S", "initial_S", "src_A", "dst_A", "weight_A")
    )
    (stays,) = stay_S.nonzero(as_tuple=True)
    moves = _Moves(
        src_M=torch.cat([src_A, stays]),
        dst_M=torch.cat([dst_A, stays]),
        pdf_M=torch.cat([entry_S[dst_A], loop_S[stays]]),
        weight_M=torch.cat([weight_A, stay_S[stays]]),
    )
    enters_S = torch.zeros_like(initial_S).index_add_(0, dst_A, initial_S[src_A] * weight_A)
    into = torch.cat([enters_S, initial_S * stay_S])
    (taken,) = into.nonzero(as_tuple=True)
    target = taken % max(len(entry_S), 1)
    return moves, _Moves(torch.zeros_like(taken), target, torch.cat([entry_S, loop_S])[taken], into[taken])


def _fsa(src_N: torch.Tensor, dst_N: torch.Tensor, label_N: torch.Tensor, weight_N: torch.Tensor) -> k2.Fsa:
    order = torch.argsort(src_N, stable=True)
    scores_N = weight_N.log().float().view(torch.int32)
    columns = [src_N.to(torch.int32), dst_N.to(torch.int32), label_N.to(torch.int32), scores_N]
    return k2.arc_sort(k2.Fsa(torch.stack(columns, dim=1)[order].contiguous()))


if __name__ == "__main__":
    main(*sys.argv[1:])
