"""Inner products of long float32 vectors, accumulated in float64."""

import math

import torch

BLOCK = 1 << 16  # elements: two float64 blocks of this size stay in a core's second-level cache


def dot(a_N: torch.Tensor, b_N: torch.Tensor) -> float:
    """⟨a, b⟩ of two vectors (N,), block by block in float64, without a float64 copy of either."""
    total = 0.0
    for start in range(0, a_N.numel(), BLOCK):
        stop = start + BLOCK
        total += torch.dot(a_N[start:stop].double(), b_N[start:stop].double()).item()
    return total


def norm(a_N: torch.Tensor) -> float:
    """‖a‖₂ of a vector (N,)."""
    return math.sqrt(dot(a_N, a_N))
