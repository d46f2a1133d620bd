"""The positive semi-definite M that criteria share, as operators on the tangent of one output (B, T, P).

Symbols: γ_t (P,) a posterior of frame t, δ_t (P,) the derivative of the loss in the outputs of frame t (the score).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Operator = Callable[[torch.Tensor], torch.Tensor]


def softmax_covariance(gamma_BTP: torch.Tensor) -> Operator:
    """M = diag(γ_t) − γ_tγ_tᵀ per frame, for any posteriors γ; frames where γ is zero have no curvature.

    With γ = softmax(outputs) it is the Hessian of frame cross-entropy and its Fisher matrix.
    Source: Schraudolph (2002); for sequence posteriors the literature's per-frame matrix (Kingsbury et al. 2012).
    """

    def operator(v_BTP: torch.Tensor) -> torch.Tensor:
        gv_BTP = gamma_BTP * v_BTP
        return gv_BTP.addcmul_(gamma_BTP, gv_BTP.sum(dim=-1, keepdim=True), value=-1)

    return operator


class Scores(Protocol):
    """δ of a minibatch, 0 at padded frames."""

    def along(self, v_BTP: torch.Tensor) -> torch.Tensor:
        """δ_tᵀv_t (B, T)."""
        ...

    def times(self, factor_BT: torch.Tensor) -> torch.Tensor:
        """δ_t·factor_t (B, T, P)."""
        ...


@dataclass(frozen=True)
class DenseScore:
    """δ (B, T, P) as it is."""

    delta_BTP: torch.Tensor

    def along(self, v_BTP: torch.Tensor) -> torch.Tensor:
        return (self.delta_BTP * v_BTP).sum(dim=-1)

    def times(self, factor_BT: torch.Tensor) -> torch.Tensor:
        return self.delta_BTP * factor_BT[..., None]


@dataclass(frozen=True)
class Score:
    """δ_t = γ_t − onehot(target_t) at real frames, 0 elsewhere, as an operator: δ itself is not stored.

    Attributes:
        gamma_BTP: γ, zero where padded.
        target_BT, mask_BT: pdf of each frame, and whether it is real.
    """

    gamma_BTP: torch.Tensor
    target_BT: torch.Tensor
    mask_BT: torch.Tensor

    def along(self, v_BTP: torch.Tensor) -> torch.Tensor:
        at_target = v_BTP.gather(-1, self.target_BT[..., None]).squeeze(-1)
        return (self.gamma_BTP * v_BTP).sum(dim=-1) - torch.where(self.mask_BT, at_target, 0.0)

    def times(self, factor_BT: torch.Tensor) -> torch.Tensor:
        factor_BT1 = factor_BT[..., None]
        minus = torch.where(self.mask_BT[..., None], -factor_BT1, 0.0)
        return (self.gamma_BTP * factor_BT1).scatter_add_(-1, self.target_BT[..., None], minus)


def frame_fisher(score: Scores) -> Operator:
    """M = δ_tδ_tᵀ per frame: the empirical Fisher of frames taken as independent."""
    return lambda v_BTP: score.times(score.along(v_BTP))


def utterance_fisher(score: Scores, utterance_B: torch.Tensor) -> Operator:
    """M = δδᵀ per utterance, δ its scores over all frames: the empirical Fisher of utterances.

    Args:
        score: δ.
        utterance_B: rows of one utterance belong together; an utterance that was cut counts once per minibatch.

    Source: Haider and Woodland (2018), natural gradient of sequence criteria.
    """
    same_BU = torch.nn.functional.one_hot(torch.unique(utterance_B, return_inverse=True)[1])

    def operator(v_BTP: torch.Tensor) -> torch.Tensor:
        along_BT = score.along(v_BTP)
        of_BU = same_BU.to(along_BT.dtype)
        along_B = of_BU @ (of_BU.T @ along_BT.sum(dim=1))
        return score.times(along_B[:, None].expand_as(along_BT))

    return operator


def mean_of_rows(scores: Sequence[Scores]) -> Operator:
    """M = the mean over scores of δδᵀ per row, δ a row's scores over all its frames: a covariance from samples."""

    def operator(v_BTP: torch.Tensor) -> torch.Tensor:
        total_BTP = torch.zeros_like(v_BTP)
        for score in scores:
            along_B1 = score.along(v_BTP).sum(dim=1, keepdim=True)
            total_BTP += score.times(along_B1.expand(v_BTP.shape[:2]))
        return total_BTP.div_(len(scores))

    return operator


def structural_damping(weight: float, mask_BT1: torch.Tensor) -> Operator:
    """M = weight·I on a hidden state at its real frames: D″ of the squared distance ½‖h(θ + d) − h(θ)‖².

    Source: Martens and Sutskever, Learning recurrent neural networks with Hessian-free optimization (2011).
    """
    return lambda v_BTH: torch.where(mask_BT1, weight * v_BTH, torch.zeros_like(v_BTH))
