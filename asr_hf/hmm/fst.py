"""FSTs as numpy arrays and back: kaldifst has no mutable arcs, and a Python loop over a million arcs takes seconds.

The bridge is OpenFst's `const` file format, whose states and arcs are two plain tables.
Shape suffixes: S states, A arcs.
"""

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import kaldifst
import numpy as np

from asr_hf.errors import InputError

_MAGIC, _CONST_VERSION, _EXPANDED = 2125659606, 2, 1
_STATE = np.dtype([("final", "<f4"), ("first", "<u4"), ("arcs", "<u4"), ("ieps", "<u4"), ("oeps", "<u4")])
_ARC = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("cost", "<f4"), ("dst", "<i4")])
_HEADER = struct.Struct("<iQqqq")  # flags, properties, start, states, arcs; before it: magic, two names, version


@dataclass
class FstArrays:
    """A tropical FST: arcs (A,) from `src` to `dst` with labels (0 is epsilon) and costs (−log), final costs (S,).

    A state whose final cost is infinite is not final. Without states the FST accepts nothing.
    """

    src: np.ndarray
    dst: np.ndarray
    ilabel: np.ndarray
    olabel: np.ndarray
    cost: np.ndarray
    final: np.ndarray
    start: int = 0

    @classmethod
    def from_lists(cls, arcs: list[tuple[int, int, int, int, float]], final: dict[int, float]) -> "FstArrays":
        """From (src, dst, ilabel, olabel, cost) tuples and {final state: cost}; state 0 is the start."""
        table = np.array(arcs, dtype=np.float64).reshape(-1, 5)
        labels = table[:, :4].astype(np.int32)
        states = 1 + max(int(labels[:, :2].max(initial=0)), max(final, default=0))
        costs = np.full(states, np.inf, dtype=np.float32)
        costs[list(final)] = list(final.values())
        return cls(labels[:, 0], labels[:, 1], labels[:, 2], labels[:, 3], table[:, 4].astype(np.float32), costs)

    @classmethod
    def from_fst(cls, fst: kaldifst.StdVectorFst) -> "FstArrays":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "const.fst"
            kaldifst.StdConstFst(fst).write(str(path))
            data = path.read_bytes()
        position = 4
        for _ in ("fst type", "arc type"):
            position += 4 + struct.unpack_from("<i", data, position)[0]
        position += 4
        _, _, start, states, arcs = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        state_table = np.frombuffer(data, _STATE, states, position)
        arc_table = np.frombuffer(data, _ARC, arcs, position + state_table.nbytes)
        src = np.repeat(np.arange(states, dtype=np.int32), state_table["arcs"].astype(np.int64))
        dst, ilabel, olabel, cost = (arc_table[name].copy() for name in ("dst", "ilabel", "olabel", "cost"))
        return cls(src, dst, ilabel, olabel, cost, state_table["final"].copy(), start)

    def to_fst(self) -> kaldifst.StdVectorFst:
        order = np.argsort(self.src, kind="stable")
        states = np.zeros(len(self.final), _STATE)
        states["final"] = self.final
        count = {"minlength": len(self.final)}
        states["arcs"] = np.bincount(self.src, **count)
        states["ieps"] = np.bincount(self.src[self.ilabel == 0], **count)
        states["oeps"] = np.bincount(self.src[self.olabel == 0], **count)
        states["first"] = np.cumsum(states["arcs"]) - states["arcs"]
        arcs = np.zeros(len(self.src), _ARC)
        arcs["ilabel"], arcs["olabel"] = self.ilabel[order], self.olabel[order]
        arcs["cost"], arcs["dst"] = self.cost[order], self.dst[order]
        start = self.start if len(self.final) else -1
        header = struct.pack("<ii5si8si", _MAGIC, 5, b"const", 8, b"standard", _CONST_VERSION)
        header += _HEADER.pack(0, _EXPANDED, start, len(states), len(arcs))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "const.fst"
            path.write_bytes(header + states.tobytes() + arcs.tobytes())
            return kaldifst.StdVectorFst(kaldifst.StdConstFst.read(str(path)))


def add_word_penalty(fst: kaldifst.StdVectorFst, penalty: float) -> kaldifst.StdVectorFst:
    """A copy of a graph in which every output word costs `penalty` more (natural log; negative: a reward)."""
    arrays = FstArrays.from_fst(fst)
    arrays.cost = arrays.cost + np.float32(penalty) * (arrays.olabel != 0)
    return arrays.to_fst()


def read_fst(path: Path | str) -> kaldifst.StdVectorFst:
    """Read an OpenFst vector FST.

    Raises:
        InputError: the file is missing or no FST.
    """
    fst = kaldifst.StdVectorFst.read(str(path)) if Path(path).is_file() else None
    if fst is None:
        raise InputError(f"{path} is missing or no OpenFst file", "Make its folder again with asr-hf lang or graph.")
    return fst


def write_fst(fst: kaldifst.StdVectorFst, path: Path | str) -> None:
    """Write an OpenFst vector FST (InputError when the file system refuses)."""
    if not fst.write(str(path)):
        raise InputError(f"{path} cannot be written", "Free some space, or name a folder that can be written.")
