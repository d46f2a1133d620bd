"""The semi-orthogonal constraint on the bottleneck factors of a TDNN-F (Povey et al. 2018), as a penalty and as a step.

Symbols: M (rows, columns) with rows ≤ columns, P = M Mᵀ, r = P − s²I the residual, s² = tr(PPᵀ)/tr(P) the *floating*
scale: M is to have orthogonal rows of equal length, of whatever length they have grown to.
"""

from collections.abc import Mapping

import torch

Named = Mapping[str, torch.Tensor]


class SemiOrthogonal:
    """½·weight·Σ‖MMᵀ − s²I‖² over some matrices, with its derivatives, and Kaldi's constraint step.

    s² is a constant of the penalty: `refresh` fixes it at θ, and between two calls the penalty is one function of θ.

    Args:
        names: the parameters M that it is on; what the methods return has these names and no others.
        weight: of the penalty, in units of the loss per frame.
    """

    def __init__(self, names: tuple[str, ...], weight: float) -> None:
        self.names = names
        self.weight = weight
        self._scale: dict[str, torch.Tensor] = {}

    def refresh(self, named: Named) -> None:
        """Fix s² of every matrix at these values; the other methods (but `step`) need it once before."""
        self._scale = {name: _floating_scale(_gram(named[name])) for name in self.names}

    def value(self, named: Named) -> float:
        """½·weight·Σ‖r‖²."""
        squares = [self._residual(named, name).double().square().sum() for name in self.names]
        return 0.5 * self.weight * float(sum(squares))

    def gradient(self, named: Named) -> dict[str, torch.Tensor]:
        """2·weight·r M by name: J_rᵀ S = (S + Sᵀ) M, and r is symmetric."""
        return {name: 2 * self.weight * self._residual(named, name) @ named[name].detach() for name in self.names}

    def product(self, named: Named, tangent: Named) -> dict[str, torch.Tensor]:
        """The Gauss-Newton product weight·J_rᵀJ_r V = 2·weight·(V Mᵀ + M Vᵀ) M by name."""
        products = {}
        for name in self.names:
            matrix, half = named[name].detach(), tangent[name] @ named[name].detach().t()
            products[name] = 2 * self.weight * (half + half.t()) @ matrix
        return products

    def step(self, named: Named) -> dict[str, torch.Tensor]:
        """M − 4·speed/s²·(P − s²I) M, Kaldi's step after an update of a first-order method; s² is that of M here.

        The speed is 1/8, which converges quadratically near the constraint, half of it far from it and a quarter very
        far (rows·tr(PPᵀ)/tr(P)² over 1.02 and over 1.1), where the full step could diverge (Kaldi, nnet-utils).
        """
        new = {}
        for name in self.names:
            matrix = named[name].detach()
            gram = _gram(matrix)
            scale = _floating_scale(gram)
            ratio = float(len(gram) * scale / gram.trace())
            speed = 1 / 8 if ratio <= 1.02 else 1 / 16 if ratio <= 1.1 else 1 / 32
            new[name] = matrix - (4 * speed / scale) * _minus_scale(gram, scale) @ matrix
        return new

    def _residual(self, named: Named, name: str) -> torch.Tensor:
        if name not in self._scale:
            raise RuntimeError("the semi-orthogonal penalty has no scale yet: call refresh(θ) first")
        return _minus_scale(_gram(named[name]), self._scale[name])


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """P = M Mᵀ."""
    return matrix.detach() @ matrix.detach().t()


def _floating_scale(gram: torch.Tensor) -> torch.Tensor:
    """s² = tr(PPᵀ)/tr(P), so that tr((P − s²I) P) = 0: to first order the step leaves ‖M‖ as it is."""
    return gram.square().sum() / gram.trace()


def _minus_scale(gram: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """P − s²I."""
    return gram - scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
