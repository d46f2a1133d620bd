"""The precision of matrix products: full float32 by the fastest library, and less for curvature products if asked."""

import contextlib
import enum
import functools
from collections.abc import Iterator

import torch

FULL = 1e-6  # relative error below which a product of float32 matrices counts as full precision


class Precision(enum.Enum):
    """How the matrix products of J·v and Jᵀ·u are computed; all else is never in less than full float32."""

    FP32 = "fp32"  # as the parameters are
    MEDIUM = "medium"  # torch's float32 matmul precision "medium": bf16 passes where the hardware has them
    BF16 = "bf16"  # constants and tangents are bfloat16

    def dtype_of(self, tensor: torch.Tensor) -> torch.dtype:
        """The type in which a tensor takes part in the products (float64 stays, for oracles)."""
        if self is Precision.BF16 and tensor.dtype is torch.float32:
            return torch.bfloat16
        return tensor.dtype

    @contextlib.contextmanager
    def matmul(self, device: torch.device) -> Iterator[None]:
        """Within the block, torch multiplies float32 matrices as this precision says."""
        full = fastest_full_setting() if device.type == "cpu" else "highest"
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium" if self is Precision.MEDIUM else full)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@functools.cache
def fastest_full_setting() -> str:
    """torch's float32 matmul setting that is fastest on this CPU among those in full precision, by a trial.

    "medium" hands products to oneDNN, which rounds to bf16 only where the CPU multiplies bf16 tiles (AMX). Elsewhere it
    computes in full float32, on some processors twice as fast as MKL, which "highest" uses.
    """
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = (a @ b).double() - a.double() @ b.double()
    torch.set_float32_matmul_precision(before)
    return "medium" if float(error.norm() / (a.double() @ b.double()).norm()) <= FULL else "highest"
