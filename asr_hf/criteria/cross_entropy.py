"""Frame cross-entropy against one pdf a frame.

Per frame, with outputs y (P,) and p = softmax(y): loss −log p(target), gradient p − onehot(target), and
M = diag(p) − ppᵀ, which is both the Gauss-Newton matrix and the Fisher matrix of the softmax.
Source: Schraudolph, Fast curvature matrix-vector products (2002), matching losses.
"""

from dataclasses import dataclass

import torch

from asr_hf.criteria.criterion import CriterionLinearisation, Outputs
from asr_hf.data.minibatch import Batch


@dataclass
class CrossEntropyOptions:
    """Frame cross-entropy; it has no options."""

    def build(self) -> "CrossEntropy":
        return CrossEntropy()


class CrossEntropy:
    """Frame cross-entropy of the output "output" (B, T, P)."""

    matrices = ("gauss_newton",)

    def values(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Loss of each row (B,), float64: −Σ_t log p(target) over its unmasked frames (nats)."""
        y_BTP = outputs["output"]
        loss_BT = torch.logsumexp(y_BTP, dim=-1) - y_BTP.gather(-1, batch.target_BT[..., None]).squeeze(-1)
        return torch.where(batch.mask_BT, loss_BT, torch.zeros_like(loss_BT)).double().sum(dim=1)

    def linearize(self, outputs: Outputs, batch: Batch) -> CriterionLinearisation:
        """Value, gradient and M = diag(p) − ppᵀ per frame; masked frames have gradient and curvature 0."""
        y_BTP = outputs["output"]
        mask_BT1 = batch.mask_BT[..., None]
        p_BTP = torch.where(mask_BT1, torch.softmax(y_BTP, dim=-1), torch.zeros_like(y_BTP))
        gradient = p_BTP.clone()
        gradient.scatter_add_(-1, batch.target_BT[..., None], -mask_BT1.to(gradient.dtype))

        def gauss_newton(tangent: Outputs) -> Outputs:
            pv_BTP = p_BTP * tangent["output"]
            return {"output": pv_BTP - p_BTP * pv_BTP.sum(dim=-1, keepdim=True)}

        return CriterionLinearisation(
            value_B=self.values(outputs, batch),
            frames_B=batch.mask_BT.sum(dim=1),
            gradient={"output": gradient},
            operators={"gauss_newton": gauss_newton},
            bytes_held=p_BTP.numel() * p_BTP.element_size(),
        )
