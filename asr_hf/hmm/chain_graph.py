"""Graphs of chain HMMs in compact form: a state is entered under one pdf and stays under another.

A path is in one state before the first output frame and after every output frame. At a frame it either stays, reading
the state's loop pdf, or takes a transition, reading the entry pdf of the state it goes to. So with outputs y and
x = exp(y), one frame of the forward recursion is  α'(j) = x[entry_j]·Σ_i A_ij α(i) + x[loop_j]·stay_j·α(j).
Shape suffixes: S states, A transitions.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ChainGraph:
    """States and weighted transitions; every weight is a probability or a product of some, not its logarithm.

    Attributes:
        entry_S, loop_S: int64, pdf of the frame that enters a state, and of each frame that stays.
        stay_S: float64, weight of staying for a frame; 0: the state cannot.
        initial_S: float64, weight of being in a state before the first frame.
        src_A, dst_A: int64, from and to, sorted by (dst, src), no pair twice.
        weight_A: float64, positive.
    """

    entry_S: np.ndarray
    loop_S: np.ndarray
    stay_S: np.ndarray
    initial_S: np.ndarray
    src_A: np.ndarray
    dst_A: np.ndarray
    weight_A: np.ndarray

    @property
    def states(self) -> int:
        return len(self.entry_S)

    def __str__(self) -> str:
        return f"{self.states} states, {len(self.src_A)} transitions"


@dataclass(frozen=True)
class Numerator:
    """The part of the denominator's paths that a transcript or alignment allows, for one piece of an utterance.

    Attributes:
        graph: its states are pairs of a place in the transcript and a state of the denominator; weights are the
            denominator's, so that its sum over paths is never larger.
        first_S, last_S: int64, a path may be in the state after output frames first … last of the piece; before the
            first frame `initial_S` alone decides. last < first: never after a frame.
        final_S: bool, a path may end there.
    """

    graph: ChainGraph
    first_S: np.ndarray
    last_S: np.ndarray
    final_S: np.ndarray
