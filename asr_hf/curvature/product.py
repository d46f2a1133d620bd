"""The one idea of the house: a curvature product is Jᵀ M J · v."""

from collections.abc import Sequence

import torch

from asr_hf.criteria.criterion import OutputOperator
from asr_hf.curvature.linearise import ModelLinearisation
from asr_hf.curvature.trace import Named


def jt_m_j(
    jacobian: ModelLinearisation, operator: OutputOperator, tangent: Named, parameters: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """JᵀMJ·v for tangents of some parameters (the others zero), as cotangents of `parameters` (None: all).

    J is the model's, M (positive semi-definite) the criterion's. With both restricted to one block it is the diagonal
    block of JᵀMJ, at the cost of that block.
    """
    return jacobian.transposed(operator(jacobian.forward(tangent)), parameters)
