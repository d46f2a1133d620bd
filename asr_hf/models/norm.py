"""Norms of hidden layers: LayerNorm, and batch norm with stored statistics.

A norm is called with the hidden units x (…, units) and a mask (…) that is True where a frame is real.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-5  # added to the variance


class NoNorm(nn.Module):
    """The identity."""

    def __init__(self, units: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return x


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over the units of each frame, then an affine map per unit (Ba et al. 2016, eq. 4)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, EPSILON)


class FrozenNorm(nn.Module):
    """Batch norm whose statistics are stored: an affine map per unit, constant in the derivative of the model.

    In training mode it normalises with the statistics of the minibatch's real frames, and gradients pass through them
    (Ioffe and Szegedy 2015, algorithm 1); that is what first-order methods use.

    Attributes:
        mean, var: float32 (units,), statistics of the input over real frames; they start at 0 and 1.
        record: called with the input and the mask at each forward, when set: whoever collects statistics listens here.
    """

    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))
        self.bias = nn.Parameter(torch.zeros(units))
        self.register_buffer("mean", torch.zeros(units))
        self.register_buffer("var", torch.ones(units))
        self.record: Callable[[torch.Tensor, torch.Tensor | None], None] | None = None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.record is not None:
            self.record(x, mask)
        mean, var = _mean_and_variance(x, mask) if self.training else (self.mean, self.var)
        return (x - mean) * torch.rsqrt(var + EPSILON) * self.weight + self.bias


NORMS = {"layer": LayerNorm, "batch": FrozenNorm, "none": NoNorm}  # the values of model.norm


def _mean_and_variance(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance (units,) over the real frames, differentiable."""
    over = tuple(range(x.dim() - 1))
    if mask is None:
        return x.mean(over), x.var(over, correction=0)
    real = mask.unsqueeze(-1).to(x.dtype)
    count = real.sum().clamp(min=1)
    mean = (x * real).sum(over) / count
    return mean, ((x - mean).square() * real).sum(over) / count


def moments(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number of real frames (), sum (units,) and sum of squares (units,) of x over them, float64."""
    frames = x.detach().flatten(0, -2)
    if mask is not None:
        frames = frames[mask.flatten()]
    frames = frames.double()
    return torch.tensor(len(frames), dtype=torch.float64), frames.sum(0), frames.square().sum(0)


def frozen_norms(model: nn.Module) -> dict[str, FrozenNorm]:
    """The batch norms of a model by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FrozenNorm)}


def frame_mask(mask_BT: torch.Tensor, frames: int, rate: int) -> torch.Tensor:
    """True where a frame of a layer inside the model is real (B, frames).

    A row whose last n output frames are padding has n·rate padded frames in the layer, at its end; its first ones are
    context and real. Rows without any real output frame (utterances that are left out) have no real frame inside.

    Args:
        mask_BT: True where an output frame is real.
        frames: of the layer.
        rate: frames of the layer per output frame.
    """
    real_B = mask_BT.sum(1)
    padded_B = rate * (mask_BT.shape[1] - real_B)
    steps = torch.arange(frames, device=mask_BT.device)
    return (steps[None, :] < (frames - padded_B)[:, None]) & (real_B > 0)[:, None]
