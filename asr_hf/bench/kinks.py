"""Data on which no ReLU stands at its kink.

Where an input of a ReLU is 0 the derivative does not exist, and where it is within rounding of 0 rounding chooses it:
one unit of ten million that float32 and float64 put on different sides makes an error of 3e-5 in a product, which is no
method's fault. So inputs that bring a ReLU near its kink are drawn anew.

Shapes: B rows, W input frames, D feature dimension.
"""

import dataclasses

import torch
from torch import nn

from asr_hf.bench.plain import MODULES, plain
from asr_hf.bench.sizes import SEED, LstmSize, Problem, Size

MARGIN = 1e-5  # float32 computes the ReLUs' inputs, of size 1, to about 1e-6


def away_from_kinks(size: Size, problem: Problem) -> Problem:
    """The problem with input frames redrawn until in float64 every ReLU's input is at least MARGIN from 0."""
    if isinstance(size, LstmSize):
        return problem
    generator = torch.Generator().manual_seed(SEED + 1)
    x_BWD = problem.x_BWD.clone()
    while True:
        problem = dataclasses.replace(problem, x_BWD=x_BWD.clone())
        near_BW = _near_kinks(size, problem)
        if not near_BW.any():
            return problem
        x_BWD[near_BW] = torch.randn(int(near_BW.sum()), x_BWD.shape[2], generator=generator).to(x_BWD.device)


@torch.no_grad()
def _near_kinks(size: Size, problem: Problem) -> torch.Tensor:
    """(B, W): True at the input frames, the middle ones of their window, that bring a ReLU near its kink."""
    made = plain(size, next(iter(MODULES[size.model])), problem)
    x = made.x.double()  # (B, W·D) of a DNN, (W, B, D) of a TDNN
    near = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    for layer in made.module.double().children():
        if isinstance(layer, nn.ReLU):
            lost = (len(near) - len(x)) // 2  # frames at each end
            near[lost : len(near) - lost] |= (x.abs() < MARGIN).any(dim=-1)
        x = layer(x)
    return near.t() if near.dim() == 2 else near[:, None].expand(problem.x_BWD.shape[:2])
