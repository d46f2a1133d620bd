"""Curvature pairs cut over the ranks: every rank holds a slice of every pair, the master asks for what it needs.

Cuts are at multiples of `vectors.BLOCK` elements and inner products are summed block by block in their order, so that
a store gives the same bits on any number of ranks, and on one process. m pairs, s, y, r (N,) and D as in
`solvers.pairs`. A vector is scattered by slices, and gathered likewise: each rank has its part of it alone.
"""

import math
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch

from asr_hf.cluster.protocol import DTYPES, CommandError, Operation
from asr_hf.cluster.ranks import Ranks
from asr_hf.solvers.pairs import Pairs, curved, in_order
from asr_hf.solvers.vectors import BLOCK


def cuts(size: int, ranks: int, reserved: int) -> list[int]:
    """The block that the slice of each rank begins with, and the number of blocks: (ranks + 1,).

    Slices are equal but for one block, and rank 0 has none of the larger ones; the first `reserved` ranks have none.
    """
    blocks, holders = -(-size // BLOCK), ranks - reserved
    return [0] * reserved + [holder * blocks // holders for holder in range(holders + 1)]


class Slice:
    """A rank's part of one store. All ranks call a method at once: the master with whole vectors, others with None.

    Args:
        ranks: the communicator.
        reserved: ranks, from the master on, that hold nothing.
        limit, dtype: as of `Pairs`.
        device: of the vectors.
        talking: a context in which the ranks exchange vectors, for the account.
    """

    def __init__(
        self,
        ranks: Ranks,
        reserved: int,
        limit: int,
        dtype: torch.dtype,
        device: torch.device,
        talking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.pairs = Pairs(limit, dtype)
        self._ranks, self._reserved, self._device, self._talking = ranks, reserved, device, talking
        self._blocks = self._bounds = [0] * (ranks.size + 1)  # where the slices begin, in blocks and in elements
        self._d: torch.Tensor | None = None  # this rank's part of the diagonal of D

    @property
    def size(self) -> int:
        """Elements N of a vector."""
        return self._bounds[-1]

    def append(self, size: int, s_N: torch.Tensor | None = None, y_N: torch.Tensor | None = None) -> None:
        """As `Pairs.put`: the master has looked at the pair."""
        self._cut(size)
        self._put(s_N, y_N)

    def diagonal(self, size: int, d_N: torch.Tensor | None = None) -> None:
        """Measure by this D from now on; size 0: by none."""
        self._d = self._scattered(d_N, torch.float32) if size else None

    def gram(self, first: int) -> torch.Tensor:
        """As `Pairs.gram`, on the master."""
        return in_order(self._gathered(self.pairs.gram_blocks(self._d, first), self._blocks))

    def along(self, r_N: torch.Tensor | None = None) -> torch.Tensor:
        """As `Pairs.along`, on the master."""
        r = self._scattered(r_N, torch.float32)
        return in_order(self._gathered(self.pairs.along_blocks(r, self._d), self._blocks))

    def combine(self, coefficients: torch.Tensor | None = None) -> torch.Tensor:
        """As `Pairs.combine`, on the master."""
        if coefficients is None:
            coefficients = torch.empty(2 * self.pairs.count, dtype=torch.float64)
        with self._talking():
            self._ranks.broadcast(coefficients.contiguous().numpy())
        return self._gathered(self.pairs.combine(coefficients, self._d), self._bounds).to(self._device)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Pairs.vectors`, on the master."""
        s_m, y_m = self.pairs.vectors()
        return self._gathered_rows(s_m), self._gathered_rows(y_m)

    def restore(self, size: int, rows: int, s_mN: torch.Tensor | None = None, y_mN: torch.Tensor | None = None) -> None:
        """As `Pairs.restore`."""
        self._cut(size)
        self.pairs.clear()
        for row in range(rows):
            self._put(None if s_mN is None else s_mN[row], None if y_mN is None else y_mN[row])

    def _cut(self, size: int) -> None:
        self._blocks = cuts(size, self._ranks.size, self._reserved)
        self._bounds = [min(block * BLOCK, size) for block in self._blocks]

    def _put(self, s_N: torch.Tensor | None, y_N: torch.Tensor | None) -> None:
        self.pairs.put(self._scattered(s_N, self.pairs.dtype), self._scattered(y_N, self.pairs.dtype))

    def _scattered(self, vector_N: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """This rank's slice of the master's vector, a new tensor."""
        begin, end = self._bounds[self._ranks.rank : self._ranks.rank + 2]
        part = torch.empty(end - begin, dtype=dtype)
        whole = part[:0] if vector_N is None else vector_N.to("cpu", dtype)
        with self._talking():
            self._ranks.scatter(_bytes(whole), _bytes(part), [bound * dtype.itemsize for bound in self._bounds])
        return part.to(self._device)

    def _gathered(self, part: torch.Tensor, bounds: list[int]) -> torch.Tensor:
        """The parts (…, *) of all ranks, one after another, on the master and its CPU; nothing elsewhere."""
        whole = torch.empty(bounds[-1] if self._ranks.rank == 0 else 0, *part.shape[1:], dtype=part.dtype)
        self._gather(part, whole, bounds)
        return whole

    def _gathered_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """(m, N) on the master from the slices of all ranks."""
        whole = torch.empty(len(rows), self.size if self._ranks.rank == 0 else 0, dtype=rows.dtype)
        for part, row_N in zip(rows, whole, strict=True):
            self._gather(part, row_N, self._bounds)
        return whole.to(self._device)

    def _gather(self, part: torch.Tensor, whole: torch.Tensor, bounds: list[int]) -> None:
        """Write the parts of all ranks into the master's whole."""
        row = math.prod(part.shape[1:]) * part.dtype.itemsize
        with self._talking():
            self._ranks.gather(_bytes(part.cpu()), _bytes(whole), [bound * row for bound in bounds])


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor (of a copy of another), whatever its type."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


class Shelf:
    """A worker's slices of the stores that the master has, by their numbers.

    Args:
        ranks: the communicator.
        reserved: ranks, from the master on, that hold nothing.
        device: of the vectors.
    """

    def __init__(self, ranks: Ranks, reserved: int, device: torch.device) -> None:
        self._ranks, self._reserved, self._device = ranks, reserved, device
        self._slices: dict[int, Slice] = {}

    def __len__(self) -> int:
        return len(self._slices)

    def obey(self, record: np.void) -> None:
        """Do this rank's part of a command PAIRS."""
        operation, store = Operation(int(record["operation"])), int(record["store"])
        size, rows = int(record["size"]), int(record["rows"])
        if operation is Operation.NEW:
            dtype = DTYPES[int(record["dtype"])]
            self._slices[store] = Slice(self._ranks, self._reserved, rows, dtype, self._device)
            return
        held = self._slices.get(store)
        if held is None:
            raise CommandError(f"there is no store {store}")
        match operation:
            case Operation.APPEND:
                held.append(size)
            case Operation.REFRESH:
                held.pairs.refresh(float(record["change"]))
            case Operation.CLEAR:
                held.pairs.clear()
            case Operation.DIAGONAL:
                held.diagonal(size)
            case Operation.GRAM:
                held.gram(rows)
            case Operation.ALONG:
                held.along()
            case Operation.COMBINE:
                held.combine()
            case Operation.VECTORS:
                held.vectors()
            case Operation.RESTORE:
                held.restore(size, rows)
            case Operation.DROP:
                del self._slices[store]


class Tell(Protocol):
    """How the master begins a command PAIRS on a store; within the context it does its own part."""

    def __call__(self, operation: Operation, moved: int = 0, **fields: float) -> AbstractContextManager[None]:
        """Send a command with fields of its record; `moved` elements of vectors are then scattered or gathered."""


class ShardedPairs:
    """The master's store of curvature pairs, a `PairStore`; r and d are float32.

    Args:
        own: the master's slice.
        tell: begins commands on this store.

    Attributes:
        refused: pairs that `append` refused.
    """

    def __init__(self, own: Slice, tell: Tell) -> None:
        self._own, self._tell = own, tell
        self.refused = 0
        self._d: tuple[weakref.ref[torch.Tensor], int] | None = None  # the diagonal that the ranks have, its version
        with tell(Operation.NEW, rows=own.pairs.limit, dtype=DTYPES.index(own.pairs.dtype)):
            pass

    @property
    def count(self) -> int:
        return self._own.pairs.count

    @property
    def appended(self) -> int:
        return self._own.pairs.appended

    @property
    def generation(self) -> int:
        return self._own.pairs.generation

    def append(self, s_N: torch.Tensor, y_N: torch.Tensor) -> None:
        if not curved(s_N, y_N):
            self.refused += 1
            return
        size = s_N.numel()
        with self._tell(Operation.APPEND, 2 * size, size=size):
            self._own.append(size, s_N, y_N)

    def refresh(self, change: float) -> None:
        with self._tell(Operation.REFRESH, change=change):
            self._own.pairs.refresh(change)

    def clear(self) -> None:
        with self._tell(Operation.CLEAR):
            self._own.pairs.clear()

    def gram(self, d_N: torch.Tensor | None = None, first: int = 0) -> torch.Tensor:
        self._measure_by(d_N)
        with self._tell(Operation.GRAM, rows=first):
            return self._own.gram(first)

    def along(self, r_N: torch.Tensor, d_N: torch.Tensor | None = None) -> torch.Tensor:
        self._measure_by(d_N)
        with self._tell(Operation.ALONG, r_N.numel()):
            return self._own.along(r_N)

    def combine(self, coefficients: torch.Tensor, d_N: torch.Tensor | None = None) -> torch.Tensor:
        self._measure_by(d_N)
        with self._tell(Operation.COMBINE, self._own.size):
            return self._own.combine(coefficients)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        with self._tell(Operation.VECTORS, 2 * self.count * self._own.size):
            return self._own.vectors()

    def restore(self, s_mN: torch.Tensor, y_mN: torch.Tensor) -> None:
        rows, size = s_mN.shape
        if rows > self._own.pairs.limit:
            raise ValueError(f"{rows} pairs for a store of {self._own.pairs.limit}")
        with self._tell(Operation.RESTORE, 2 * rows * size, rows=rows, size=size):
            self._own.restore(size, rows, s_mN, y_mN)

    def drop(self) -> None:
        with self._tell(Operation.DROP):
            self._own.pairs.drop()

    def _measure_by(self, d_N: torch.Tensor | None) -> None:
        """Give the ranks this D, unless they have it."""
        if d_N is None and self._d is None:
            return
        if d_N is not None and self._d is not None and self._d[0]() is d_N and self._d[1] == d_N._version:
            return
        self._d = None if d_N is None else (weakref.ref(d_N), d_N._version)
        size = 0 if d_N is None else d_N.numel()
        with self._tell(Operation.DIAGONAL, size, size=size):
            self._own.diagonal(size, d_N)
