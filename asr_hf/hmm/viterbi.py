"""Exact Viterbi search over the training graphs of many utterances at once.

Shape suffixes: B utterances, T frames, S states, K incoming transitions, P pdfs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asr_hf.hmm.training_graph import TrainingGraph


@dataclass(frozen=True)
class Path:
    """The best path of an utterance: its state at every frame (T,) and its log-likelihood with all transitions."""

    states_T: np.ndarray
    log_likelihood: float


@dataclass(frozen=True)
class _Batch:
    """Graphs padded to the same S and K; rows are utterances from long to short."""

    source_BSK: Tensor
    log_probability_BSK: Tensor
    initial_BS: Tensor
    final_BS: Tensor
    emission_TBS: Tensor
    frames_B: list[int]


def _pad(
    graphs: Sequence[TrainingGraph], emissions: Sequence[np.ndarray], log_stay_P: np.ndarray, log_leave_P: np.ndarray
) -> _Batch:
    frames = [len(emission) for emission in emissions]
    B, T = len(graphs), max(frames)
    S, K = (max(graph.source.shape[axis] for graph in graphs) for axis in (0, 1))
    source = np.zeros((B, S, K), dtype=np.int64)
    log_probability = np.full((B, S, K), -np.inf)
    initial, final = np.full((B, S), -np.inf), np.full((B, S), -np.inf)
    emission = np.zeros((T, B, S), dtype=np.float32)
    for b, (graph, scores) in enumerate(zip(graphs, emissions, strict=True)):
        s, k = graph.source.shape
        leave = log_leave_P[graph.pdf]
        source[b, :s, :k] = graph.source
        log_probability[b, :s, 0] = log_stay_P[graph.pdf]
        log_probability[b, :s, 1:k] = graph.log_probability[:, 1:] + leave[graph.source[:, 1:]]
        initial[b, :s] = graph.initial
        final[b, :s] = graph.final + leave
        emission[: len(scores), b, :s] = scores
    tensor = torch.from_numpy
    return _Batch(tensor(source), tensor(log_probability), tensor(initial), tensor(final), tensor(emission), frames)


def best_paths(
    graphs: Sequence[TrainingGraph], emissions: Sequence[np.ndarray], log_stay_P: np.ndarray, log_leave_P: np.ndarray
) -> list[Path | None]:
    """The most likely path of each utterance through its graph, without a beam.

    Args:
        graphs: the training graph of each utterance.
        emissions: (T, S) log-likelihood of each frame in each state of the graph, by utterance.
        log_stay_P, log_leave_P: log probabilities of the self-loop and of leaving, by pdf.

    Returns:
        a path for each utterance, or None where none exists: fewer frames than the shortest pronunciation has states.
    """
    order = sorted(range(len(graphs)), key=lambda u: -len(emissions[u]))
    batch = _pad([graphs[u] for u in order], [emissions[u] for u in order], log_stay_P, log_leave_P)
    score_BS, choice_TBSK = _forward(batch)
    states_BT = _trace_back(batch, score_BS, choice_TBSK)
    best = (score_BS + batch.final_BS).amax(1).tolist()
    paths: list[Path | None] = [None] * len(graphs)
    for b, u in enumerate(order):
        if best[b] > -np.inf:
            paths[u] = Path(states_BT[b, : batch.frames_B[b]], best[b])
    return paths


def _forward(batch: _Batch) -> tuple[Tensor, list[Tensor]]:
    """Scores (B, S) at each utterance's last frame, and for each frame the incoming transition chosen (b, S)."""
    emission = batch.emission_TBS
    T, B, S = emission.shape
    score = batch.initial_BS + emission[0]
    source_flat = batch.source_BSK.flatten(1)
    active = [sum(frames > t for frames in batch.frames_B) for t in range(T)]
    choices = [torch.zeros(B, S, dtype=torch.uint8)]
    for t in range(1, T):
        b = active[t]  # utterances are sorted: the first b have a frame t
        entering = score[:b].gather(1, source_flat[:b]).view(b, S, -1) + batch.log_probability_BSK[:b]
        best, choice = entering.max(-1)
        score[:b] = best + emission[t, :b]
        choices.append(choice.to(torch.uint8))
    return score, choices


def _trace_back(batch: _Batch, score_BS: Tensor, choices: list[Tensor]) -> np.ndarray:
    """The state of every frame (B, T) on the best path; frames beyond an utterance's end hold its last state."""
    source = batch.source_BSK.numpy()
    state = (score_BS + batch.final_BS).argmax(1).numpy().copy()
    rows = np.arange(len(state))
    states = np.repeat(state[:, None], len(choices), axis=1)
    for t in range(len(choices) - 1, 0, -1):
        b = len(choices[t])
        states[:b, t] = state[:b]
        state[:b] = source[rows[:b], state[:b], choices[t].numpy()[rows[:b], state[:b]]]
    states[:, 0] = state
    return states
