"""Terms of the loss in θ alone, added by the optimiser, once: weight decay and the model's own penalty.

R(θ) = ½ω‖θ‖² + penalty(θ), per frame; its Gauss-Newton matrix is ωI + that of the penalty.
"""

import torch

from asr_hf.objective.objective import Objective
from asr_hf.solvers.vectors import dot


class Regulariser:
    """R at one θ.

    Args:
        objective: its layout and penalty.
        theta_N: where gradient and products are taken, and where the penalty fixes what it holds constant.
        weight_decay: ω.
    """

    def __init__(self, objective: Objective, theta_N: torch.Tensor, weight_decay: float) -> None:
        self._layout, self._penalty, self._omega = objective.layout, objective.penalty, weight_decay
        self._theta_N = theta_N
        if self._penalty is not None:
            self._penalty.refresh(self._layout.views(theta_N))

    def value(self, theta_N: torch.Tensor) -> float:
        """R at another θ."""
        value = 0.5 * self._omega * dot(theta_N, theta_N)
        if self._penalty is not None:
            value += self._penalty.value(self._layout.views(theta_N))
        return value

    def add_gradient(self, g_N: torch.Tensor) -> torch.Tensor:
        """g + ∇R, in place."""
        g_N.add_(self._theta_N, alpha=self._omega)
        if self._penalty is not None:
            self._add(g_N, self._penalty.gradient(self._layout.views(self._theta_N)))
        return g_N

    def add_product(self, gv_N: torch.Tensor, v_N: torch.Tensor) -> torch.Tensor:
        """Gv + (Gauss-Newton matrix of R)·v, in place."""
        gv_N.add_(v_N, alpha=self._omega)
        if self._penalty is not None:
            views = self._layout.views
            self._add(gv_N, self._penalty.product(views(self._theta_N), views(v_N)))
        return gv_N

    def _add(self, vector_N: torch.Tensor, named: dict[str, torch.Tensor]) -> None:
        views = self._layout.views(vector_N)
        for name, value in named.items():
            views[name].add_(value)
