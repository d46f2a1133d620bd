"""Curvature pairs: steps s (N,) and what a symmetric positive definite A makes of them, y = A s (N,).

m pairs are held in order of age, oldest first. Wherever vectors meet, s and z = A⁻¹r are measured by a diagonal D,
y and r by D⁻¹, and s against y or r plainly: inner products after the change of variables s̃ = D^½s, ỹ = D^{−½}y.
d_N (N,) is the diagonal of D, None where D = I. Inner products are accumulated in float64, block by block of
`vectors.BLOCK` elements and in their order, so that a store cut over ranks at multiples of it can give the same bits.
"""

from collections.abc import Iterator
from typing import Protocol

import torch

from asr_hf.solvers.vectors import BLOCK, dot, norm

ROUND_OFF = 1e-12  # sᵀy below this share of ‖s‖‖y‖ is round-off
TILE = 4096  # elements of every vector that are in float64 at once; divides BLOCK


class PairStore(Protocol):
    """Where pairs are kept, on one process or cut over many."""

    @property
    def appended(self) -> int:
        """Pairs taken in, ever."""

    @property
    def generation(self) -> int:
        """Changes whenever pairs alter otherwise than by one more being taken in."""

    @property
    def count(self) -> int:
        """Number of pairs m."""

    def append(self, s_N: torch.Tensor, y_N: torch.Tensor) -> None:
        """Copy a pair, which replaces the oldest if the store is full; one without positive curvature is refused."""

    def refresh(self, change: float) -> None:
        """Make the pairs of A those of A + change·I: y ← y + change·s."""

    def clear(self) -> None:
        """Forget all pairs."""

    def gram(self, d_N: torch.Tensor | None = None, first: int = 0) -> torch.Tensor:
        """Inner products of s_1 … s_m, y_1 … y_m with y_{first+1} … y_m: [SᵀY; YᵀD⁻¹Y], (2m, m − first) float64."""

    def along(self, r_N: torch.Tensor, d_N: torch.Tensor | None = None) -> torch.Tensor:
        """Inner products with r (N,): [Sᵀr; YᵀD⁻¹r], (2m,) float64."""

    def combine(self, coefficients: torch.Tensor, d_N: torch.Tensor | None = None) -> torch.Tensor:
        """Σ cᵢsᵢ + D⁻¹ Σ cₘ₊ᵢyᵢ (N,) of coefficients c (2m,) float64: a new tensor."""

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """S (m, N) and Y (m, N), oldest first, for a checkpoint: to be read at once, they may be views."""

    def restore(self, s_mN: torch.Tensor, y_mN: torch.Tensor) -> None:
        """Hold what `vectors` returned, and nothing else."""

    def drop(self) -> None:
        """Free the memory, wherever it is: the store is not used again."""


class Pairs:
    """The pairs of one process: a ring that holds the last `limit` of them.

    Args:
        limit: pairs held at most.
        dtype: of storage; torch.bfloat16 halves the memory. Results of `combine` are in float32 at least.

    Attributes:
        refused: pairs that `append` refused.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(self, limit: int, dtype: torch.dtype = torch.float32) -> None:
        if limit < 1:
            raise ValueError(f"a store of {limit} pairs")
        self.limit, self.dtype = limit, dtype
        self.appended = self.generation = self.refused = 0
        self._s = self._y = torch.empty(0, 0, dtype=dtype)  # (limit, N) from the first pair on
        self._order: list[int] = []  # rows, oldest first

    @property
    def count(self) -> int:
        return len(self._order)

    def append(self, s_N: torch.Tensor, y_N: torch.Tensor) -> None:
        if curved(s_N, y_N):
            self.put(s_N, y_N)
        else:
            self.refused += 1

    def put(self, s_N: torch.Tensor, y_N: torch.Tensor) -> None:
        """Append without looking: what a slice of a longer vector cannot judge has been judged before."""
        if not self._s.numel():
            self._s = torch.empty(self.limit, s_N.numel(), dtype=self.dtype, device=s_N.device)
            self._y = torch.empty_like(self._s)
        row = self._order.pop(0) if self.count == self.limit else self.count
        self._s[row].copy_(s_N)
        self._y[row].copy_(y_N)
        self._order.append(row)
        self.appended += 1

    def refresh(self, change: float) -> None:
        for tile in self._tiles():
            s, y = self._s[: self.count, tile], self._y[: self.count, tile]
            y.copy_(y.double().add_(s.double(), alpha=change))
        self.generation += 1

    def clear(self) -> None:
        self._order = []
        self.generation += 1

    def gram(self, d_N: torch.Tensor | None = None, first: int = 0) -> torch.Tensor:
        return in_order(self.gram_blocks(d_N, first))

    def along(self, r_N: torch.Tensor, d_N: torch.Tensor | None = None) -> torch.Tensor:
        return in_order(self.along_blocks(r_N, d_N))

    def combine(self, coefficients: torch.Tensor, d_N: torch.Tensor | None = None) -> torch.Tensor:
        of_s, of_y = coefficients.to(self._s.device).view(2, self.count)
        combined = self._s.new_empty(self._s.shape[1], dtype=torch.promote_types(self.dtype, torch.float32))
        for tile in self._tiles():
            s, y = self._tile(tile)
            combined[tile] = of_s @ s + _divided(of_y @ y, d_N, tile)
        return combined

    def gram_blocks(self, d_N: torch.Tensor | None = None, first: int = 0) -> torch.Tensor:
        """The share of every block of elements in `gram`: (blocks, 2m, m − first) float64."""
        blocks = self._zeros(2 * self.count, self.count - first)
        for tile in self._tiles():
            s, y = self._tile(tile)
            blocks[tile.start // BLOCK] += torch.cat([s, _divided(y, d_N, tile)]) @ y[first:].T
        return blocks

    def along_blocks(self, r_N: torch.Tensor, d_N: torch.Tensor | None = None) -> torch.Tensor:
        """The share of every block of elements in `along`: (blocks, 2m) float64."""
        blocks = self._zeros(2 * self.count)
        for tile in self._tiles():
            s, y = self._tile(tile)
            r = r_N[tile].double()
            blocks[tile.start // BLOCK] += torch.cat([s @ r, y @ _divided(r, d_N, tile)])
        return blocks

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._s[self._rows], self._y[self._rows]

    def restore(self, s_mN: torch.Tensor, y_mN: torch.Tensor) -> None:
        if len(s_mN) > self.limit:
            raise ValueError(f"{len(s_mN)} pairs for a store of {self.limit}")
        self.clear()
        for s_N, y_N in zip(s_mN, y_mN, strict=True):
            self.put(s_N, y_N)

    def drop(self) -> None:
        self.clear()
        self._s = self._y = torch.empty(0, 0, dtype=self.dtype)

    def _tiles(self) -> Iterator[slice]:
        size = self._s.shape[1]
        return (slice(start, min(start + TILE, size)) for start in range(0, size, TILE))

    @property
    def _rows(self) -> slice | list[int]:
        """Rows, oldest first: a slice where they lie in order, which is a view."""
        return slice(self.count) if self._order == list(range(self.count)) else self._order

    def _tile(self, tile: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """S and Y (m, tile) of a tile in float64, oldest first."""
        return self._s[self._rows, tile].double(), self._y[self._rows, tile].double()

    def _zeros(self, *shape: int) -> torch.Tensor:
        """Zeros (blocks, *shape) in float64."""
        blocks = -(-self._s.shape[1] // BLOCK)
        return torch.zeros(blocks, *shape, dtype=torch.float64, device=self._s.device)


def curved(s_N: torch.Tensor, y_N: torch.Tensor) -> bool:
    """Whether the curvature sᵀy of a pair is positive, beyond round-off."""
    return dot(s_N, y_N) > ROUND_OFF * norm(s_N) * norm(y_N)


def in_order(blocks: torch.Tensor) -> torch.Tensor:
    """The sum (…) of the blocks' shares (blocks, …), first to last, on the CPU."""
    total = torch.zeros(blocks.shape[1:], dtype=torch.float64)
    for share in blocks.cpu():
        total += share
    return total


def _divided(values: torch.Tensor, d_N: torch.Tensor | None, tile: slice) -> torch.Tensor:
    """D⁻¹ times a tile of values (…, tile)."""
    return values if d_N is None else values / d_N[tile].double()
