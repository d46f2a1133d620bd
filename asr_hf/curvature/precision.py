"""The precision of curvature products; gradients, losses, CG vectors and inner products are never in less than fp32."""

import contextlib
import enum
from collections.abc import Iterator

import torch


class Precision(enum.Enum):
    """How the matrix products of J·v and Jᵀ·u are computed."""

    FP32 = "fp32"  # as the parameters are
    MEDIUM = "medium"  # fp32 numbers, products of matrices in bf16 passes where the hardware has them
    BF16 = "bf16"  # constants and tangents are bfloat16

    def dtype_of(self, tensor: torch.Tensor) -> torch.dtype:
        """The type in which a tensor takes part in the products (float64 stays, for oracles)."""
        if self is Precision.BF16 and tensor.dtype is torch.float32:
            return torch.bfloat16
        return tensor.dtype

    @contextlib.contextmanager
    def matmul(self) -> Iterator[None]:
        """Within the block, torch multiplies float32 matrices as this precision says."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium" if self is Precision.MEDIUM else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
