"""Frame cross-entropy against one pdf a frame.

Per frame, with outputs y (P,) and p = softmax(y): loss −log p(target), gradient δ = p − onehot(target), and
M = diag(p) − ppᵀ ("gauss_newton"), which is both the Gauss-Newton matrix and the Fisher matrix of the softmax;
δδᵀ per frame and per utterance are the empirical Fisher matrices.
Source: Schraudolph, Fast curvature matrix-vector products (2002), matching losses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from asr_hf.criteria.criterion import CriterionLinearisation, OutputOperator, Outputs
from asr_hf.criteria.matrices import Operator, Score, frame_fisher, softmax_covariance, utterance_fisher
from asr_hf.data.minibatch import Batch


@dataclass
class CrossEntropyOptions:
    """Frame cross-entropy; it has no options."""

    sequence: ClassVar[bool] = False

    def build(self, alignments: Path) -> "CrossEntropy":
        return CrossEntropy()


class CrossEntropy:
    """Frame cross-entropy of the output "output" (B, T, P)."""

    matrices: tuple[str, ...] = ("gauss_newton", "frame_fisher", "utterance_fisher")
    sequence = branched = False
    chunk = 0

    def values(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Loss of each row (B,), float64: −Σ_t log p(target) over its unmasked frames (nats)."""
        y_BTP = outputs["output"]
        loss_BT = torch.logsumexp(y_BTP, dim=-1) - y_BTP.gather(-1, batch.target_BT[..., None]).squeeze(-1)
        return torch.where(batch.mask_BT, loss_BT, torch.zeros_like(loss_BT)).double().sum(dim=1)

    def linearize(self, outputs: Outputs, batch: Batch) -> CriterionLinearisation:
        """Value, gradient δ = p − onehot and the M of `matrices`; masked frames have gradient and curvature 0."""
        y_BTP = outputs["output"]
        mask_BT1 = batch.mask_BT[..., None]
        p_BTP = torch.where(mask_BT1, torch.softmax(y_BTP, dim=-1), torch.zeros_like(y_BTP))
        delta_BTP = p_BTP.clone()
        delta_BTP.scatter_add_(-1, batch.target_BT[..., None], -mask_BT1.to(delta_BTP.dtype))
        score = Score(p_BTP, batch.target_BT, batch.mask_BT)
        operators = {
            "gauss_newton": softmax_covariance(p_BTP),
            "frame_fisher": frame_fisher(score),
            "utterance_fisher": utterance_fisher(score, batch.utterance_B),
        }
        return CriterionLinearisation(
            value_B=self.values(outputs, batch),
            frames_B=batch.mask_BT.sum(dim=1),
            gradient={"output": delta_BTP},
            operators={name: _on_output(operator) for name, operator in operators.items()},
            bytes_held=p_BTP.nbytes,
        )

    def sampled_score(self, outputs: Outputs, batch: Batch, generator: torch.Generator) -> Outputs:
        """δ = p − onehot(a pdf drawn from p) per frame, 0 at masked ones."""
        p_BTP = torch.softmax(outputs["output"], dim=-1)
        return {"output": drawn_score(p_BTP, batch.mask_BT, generator)}


def drawn_score(p_BTP: torch.Tensor, mask_BT: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """δ_t = p_t − onehot(a pdf drawn from p_t) (B, T, P), 0 at masked frames."""
    drawn_BT = torch.multinomial(p_BTP.flatten(0, 1), 1, generator=generator).view(mask_BT.shape)
    real_BT = mask_BT.to(p_BTP.dtype)
    return Score(p_BTP, drawn_BT, mask_BT).times(real_BT)


def _on_output(operator: Operator) -> OutputOperator:
    return lambda tangent: {"output": operator(tangent["output"])}
