"""Graphs of chain HMMs in compact form: a state is entered under one pdf and stays under another.

A path is in one state before the first output frame and after every output frame. At a frame it either stays, reading
the state's loop pdf, or takes a transition, reading the entry pdf of the state it goes to. So with outputs y and
x = exp(y), one frame of the forward recursion is  α'(j) = x[entry_j]·Σ_i A_ij α(i) + x[loop_j]·stay_j·α(j).
Shape suffixes: S states, A transitions.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from asr_hf.errors import InputError

_STATE_FIELDS = ("entry_S", "loop_S", "stay_S", "initial_S")
_TRANSITION_FIELDS = ("src_A", "dst_A", "weight_A")


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

    @classmethod
    def sorted(
        cls,
        entry_S: np.ndarray,
        loop_S: np.ndarray,
        stay_S: np.ndarray,
        initial_S: np.ndarray,
        src_A: np.ndarray,
        dst_A: np.ndarray,
        weight_A: np.ndarray,
    ) -> "ChainGraph":
        """A graph of these states and transitions, the latter in any order."""
        order = np.lexsort((src_A, dst_A))
        transitions = (np.ascontiguousarray(a[order]) for a in (src_A, dst_A, weight_A))
        return cls(np.ascontiguousarray(entry_S), np.ascontiguousarray(loop_S), stay_S, initial_S, *transitions)

    def with_initial(self, initial_S: np.ndarray) -> "ChainGraph":
        return replace(self, initial_S=initial_S)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file."""
        tensors = {name: getattr(self, name) for name in (*_STATE_FIELDS, *_TRANSITION_FIELDS)}
        Path(path).write_bytes(to_bytes(tensors))

    @classmethod
    def load(cls, path: Path | str, num_pdfs: int) -> "ChainGraph":
        """Read a graph over `num_pdfs` pdfs (InputError when the file is missing or damaged)."""
        try:
            tensors = load_file(path)
            graph = cls(**{name: tensors.pop(name) for name in (*_STATE_FIELDS, *_TRANSITION_FIELDS)})
            graph._check(num_pdfs)
        except OSError:
            raise InputError(f"{path} is missing", "Name a folder that asr-hf chain wrote.") from None
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise InputError(f"{path} is damaged ({error})", "Make its folder again.") from None
        return graph

    def _check(self, num_pdfs: int) -> None:
        """Refuse arrays that are no graph (ValueError)."""
        for names, ids in ((_STATE_FIELDS, ("entry_S", "loop_S")), (_TRANSITION_FIELDS, ("src_A", "dst_A"))):
            length = len(getattr(self, names[0]))
            for name in names:
                array = getattr(self, name)
                kind = np.int64 if name in ids else np.float64
                if array.shape != (length,) or array.dtype != kind:
                    raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}")
                most = (num_pdfs if names is _STATE_FIELDS else self.states) if name in ids else np.inf
                if not ((array >= 0) & (array < most)).all():
                    raise ValueError(f"{name} has values out of range")
        place_A = self.dst_A * self.states + self.src_A
        if not (np.diff(place_A) > 0).all() or not (self.weight_A > 0).all() or not self.initial_S.any():
            raise ValueError("transitions out of order, weights of 0, or no initial weight")


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
