"""The one idea of the house: a curvature product is Jᵀ M J · v."""

import torch

from asr_hf.criteria.criterion import OutputOperator
from asr_hf.curvature.linearise import ModelLinearisation, Named


def jt_m_j(jacobian: ModelLinearisation, operator: OutputOperator, tangent: Named) -> dict[str, torch.Tensor]:
    """JᵀMJ·v for named parameter tangents v; J from the model, M (positive semi-definite) from the criterion."""
    return jacobian.transposed(operator(jacobian.forward(tangent)))
