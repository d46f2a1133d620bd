"""What every sum over paths gives to a criterion, and the order in which the rows of a batch go through it.

Shape suffixes: B rows, T output frames, P pdfs.
"""

from typing import Protocol

import torch


class Paths(Protocol):
    """A sum over paths at some outputs y, with its derivatives: log Z, γ = ∂log Z/∂y and H = ∂²log Z/∂y².

    Attributes:
        log_total_B: float64, log Z of each row; −inf: no path; NaN: an output of the row is not finite.
        posteriors_BTP: γ; 0 at padded frames and in rows without a finite log Z.
        bytes_held: size of what `covariance` keeps.
    """

    log_total_B: torch.Tensor
    posteriors_BTP: torch.Tensor
    bytes_held: int

    def covariance(self, v_BTP: torch.Tensor) -> torch.Tensor:
        """H·v (B, T, P): the covariance, over paths, of the pdfs of frames, applied to v."""
        ...


class Rows:
    """Rows of a batch, longest first: those that still have a frame are always the first ones.

    Attributes:
        bad_B: bool, the outputs of a real frame have no finite sum; the row is given no frames.
        frames_B: int64, frames of each row.
        mask_BT: bool, real frames.
        order_B: int64, row of the batch at each place of the order; `place_B` its inverse.
        active: rows that have frame t, for each t that any row has.
    """

    def __init__(self, y_BTP: torch.Tensor, frames_B: torch.Tensor) -> None:
        frames_B = frames_B.to(y_BTP.device)
        real_BT = torch.arange(y_BTP.shape[1], device=y_BTP.device) < frames_B[:, None]
        self.bad_B = (real_BT & ~torch.isfinite(y_BTP.sum(dim=-1))).any(dim=1)
        self.frames_B = frames_B.masked_fill(self.bad_B, 0)
        self.mask_BT = real_BT & ~self.bad_B[:, None]
        self.order_B = torch.argsort(self.frames_B, descending=True, stable=True)
        self.place_B = torch.argsort(self.order_B)
        self.active: list[int] = [rows for rows in self.mask_BT.sum(dim=0).tolist() if rows]
        self._alike = set(self.active) <= {len(y_BTP)}  # all rows end together, and their order is the batch's

    def by_frame(self, x_BTP: torch.Tensor) -> torch.Tensor:
        """(T, P, B), the rows in order, in fresh memory."""
        ordered = x_BTP if self._alike else x_BTP.index_select(0, self.order_B)
        return ordered.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)

    def by_row(self, x_TPB: torch.Tensor) -> torch.Tensor:
        """(B, T, P) from the rows in order."""
        ordered = x_TPB.permute(2, 0, 1).contiguous()
        return ordered if self._alike else ordered.index_select(0, self.place_B)

    def block(self, height: int, like: torch.Tensor) -> list[torch.Tensor]:
        """Memory for a matrix (height, rows that have frame t) of each frame t."""
        sizes = [height * rows for rows in self.active]
        parts = like.new_empty(sum(sizes)).split(sizes) if sizes else ()
        return [part.view(height, -1) for part in parts]

    def views(self, x_TYB: torch.Tensor) -> list[torch.Tensor]:
        """(…, rows that have frame t) of each frame t; frames that no row has are left out."""
        frames = x_TYB.unbind()[: len(self.active)]
        if self._alike:
            return list(frames)
        return [x.narrow(-1, 0, rows) for x, rows in zip(frames, self.active, strict=True)]

    def scratch(self, height: int, like: torch.Tensor) -> list[torch.Tensor]:
        """A matrix (height, rows that have frame t) for each frame t, all in the same memory."""
        memory = like.new_empty(height * max(self.active, default=0))
        views = {rows: memory[: height * rows].view(height, rows) for rows in set(self.active)}
        return [views[rows] for rows in self.active]

    @staticmethod
    def narrowed(x_Yb: torch.Tensor, like_Xb: torch.Tensor) -> torch.Tensor:
        """x without the rows that have no such frame any more."""
        rows = like_Xb.shape[1]
        return x_Yb if x_Yb.shape[1] == rows else x_Yb[:, :rows].contiguous()

    @staticmethod
    def widened(x_Yb: torch.Tensor, end_YB: torch.Tensor, like_Xb: torch.Tensor) -> torch.Tensor:
        """x with the rows whose last frame this is, from what they end with."""
        before, rows = x_Yb.shape[1], like_Xb.shape[1]
        return x_Yb if before == rows else torch.cat([x_Yb, end_YB[:, before:rows]], dim=1)
