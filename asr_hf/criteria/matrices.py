"""The positive semi-definite M that criteria share, as operators on the tangent of one output (B, T, P).

Symbols: γ_t (P,) a posterior of frame t, δ_t (P,) the derivative of the loss in the outputs of frame t (the score).
"""

from collections.abc import Callable

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


def frame_fisher(delta_BTP: torch.Tensor) -> Operator:
    """M = δ_tδ_tᵀ per frame: the empirical Fisher of frames taken as independent."""
    return lambda v_BTP: delta_BTP * (delta_BTP * v_BTP).sum(dim=-1, keepdim=True)


def utterance_fisher(delta_BTP: torch.Tensor, utterance_B: torch.Tensor) -> Operator:
    """M = δδᵀ per utterance, δ its scores over all frames: the empirical Fisher of utterances.

    Args:
        delta_BTP: scores, zero at padded frames.
        utterance_B: rows of one utterance belong together; an utterance that was cut counts once per minibatch.

    Source: Haider and Woodland (2018), natural gradient of sequence criteria.
    """
    same_BU = torch.nn.functional.one_hot(torch.unique(utterance_B, return_inverse=True)[1]).to(delta_BTP.dtype)

    def operator(v_BTP: torch.Tensor) -> torch.Tensor:
        row_B = (delta_BTP * v_BTP).sum(dim=(1, 2))
        return delta_BTP * (same_BU @ (same_BU.T @ row_B))[:, None, None]

    return operator


def structural_damping(weight: float, mask_BT1: torch.Tensor) -> Operator:
    """M = weight·I on a hidden state at its real frames: D″ of the squared distance ½‖h(θ + d) − h(θ)‖².

    Source: Martens and Sutskever, Learning recurrent neural networks with Hessian-free optimization (2011).
    """
    return lambda v_BTH: torch.where(mask_BT1, weight * v_BTH, torch.zeros_like(v_BTH))
