"""A partition of θ into diagonal blocks: each has its own system, and one product serves them all.

Symbols: b a block of the partition, v_b its part of a vector (N,), G_bb the diagonal block of G.
Source: Zhang, Xiong, Bradbury and Socher, Block-diagonal Hessian-free optimization (2017).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from asr_hf.objective.layout import Layout
from asr_hf.options import require

Groups = tuple[tuple[str, ...], ...]


class Blocks:
    """The way between vectors (N,) and their parts in each block.

    Args:
        layout: of θ.
        groups: for each block of the partition the blocks of the layout that it holds; empty: θ is one block.

    Attributes:
        layouts: of the part of each block.
    """

    def __init__(self, layout: Layout, groups: Groups = ()) -> None:
        self.groups = groups
        self.layouts = [layout] if not groups else [_layout_of(layout, group) for group in groups]
        self._size = layout.size
        self._slices = [[slice(0, layout.size)]]
        if groups:
            self._slices = [_joined(layout, group) for group in groups]

    def __len__(self) -> int:
        return len(self._slices)

    def cut(self, vector_N: torch.Tensor) -> list[torch.Tensor]:
        """The part of each block of vectors (…, N); a view where the block is of one piece."""
        parts = [[vector_N[..., where] for where in slices] for slices in self._slices]
        return [pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1) for pieces in parts]

    def join(self, parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The vector (N,) with these parts; None stands for zeros."""
        if len(self._slices) == 1 and parts[0] is not None and parts[0].numel() == self._size:
            return parts[0]
        like = next(part for part in parts if part is not None)
        vector_N = torch.zeros(self._size, dtype=like.dtype, device=like.device)
        for slices, part in zip(self._slices, parts, strict=True):
            if part is None:
                continue
            begin = 0
            for where in slices:
                size = where.stop - where.start
                vector_N[where] = part[begin : begin + size]
                begin += size
        return vector_N


def partition(layout: Layout, count: int, named: Sequence[Sequence[str]]) -> Groups:
    """The groups of the layout's blocks that `optimizer.blocks` and `optimizer.partition` ask for; () for one block.

    Args:
        count: number of contiguous groups with about equally many parameters.
        named: the groups themselves, which go before `count`.

    Raises:
        OptionError: a name that is no block of the model, one that is named twice, one that is missing.
    """
    if not named:
        require(count <= len(layout.blocks), "optimizer.blocks", count, f"must not exceed {', '.join(layout.blocks)}")
        return layout.partition(count) if count > 1 else ()
    names = sorted(name for group in named for name in group)
    wanted = ", ".join(layout.blocks)
    require(names == sorted(layout.blocks), "optimizer.partition", named, f"must name each block of {wanted} once")
    return tuple(tuple(group) for group in named)


def _layout_of(layout: Layout, group: Sequence[str]) -> Layout:
    """The parameters of a group as they stand in its part of a vector."""
    slots, offset = [], 0
    for slot in layout.slots:
        if slot.block in group:
            slots.append(replace(slot, offset=offset))
            offset += slot.size
    return Layout(tuple(slots))


def _joined(layout: Layout, group: Sequence[str]) -> list[slice]:
    """Where the parameters of a group stand in θ, neighbours in one slice."""
    slices: list[slice] = []
    for slot in layout.slots:
        if slot.block not in group:
            continue
        if slices and slices[-1].stop == slot.offset:
            slices[-1] = slice(slices[-1].start, slot.offset + slot.size)
        else:
            slices.append(slice(slot.offset, slot.offset + slot.size))
    return slices
