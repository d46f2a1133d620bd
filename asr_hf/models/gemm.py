"""The matrix product of the recurrences, by the faster of the libraries that torch brings.

Shapes: M rows, N columns, K summed over.
"""

import torch


def product(a_MK: torch.Tensor, b_NK: torch.Tensor, plus_MN: torch.Tensor | None = None) -> torch.Tensor:
    """a bᵀ (+ plus), (M, N), outside autograd.

    torch gives float32 products on a CPU to MKL, which leaves half of the vector width of some processors unused
    (AMD Zen 5: 98 against oneDNN's 220 GFlop/s a core), so they go to oneDNN here, in full float32.
    """
    if a_MK.dtype == torch.float32 and a_MK.device.type == "cpu" and torch.backends.mkldnn.is_available():
        if plus_MN is None:
            return torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, None, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(a_MK, plus_MN, b_NK, None, "add")
    return a_MK @ b_NK.t() if plus_MN is None else torch.addmm(plus_MN, a_MK, b_NK.t())
