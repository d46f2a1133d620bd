"""NGHF: natural gradient and Hessian-free in one direction, by CG twice.

    g ← ∇L(θ) on S_g
    d ← CG on (F + λ_F I) d = −g                      F the empirical Fisher of utterances: the natural gradient
    either (reading "rhs")     Δ_1 … Δ_M ← CG on (B + λI) Δ = d·‖g‖/‖d‖     B the criterion's Gauss-Newton matrix
    or     (reading "start")   Δ_1 … Δ_M ← CG on (B + λI) Δ = −g, started from d
    Δ ← the Δ_i of lowest held-out loss; reject and raise λ if none is below that of θ
    λ follows ρ; θ ← θ + αΔ, α by Armijo on S_g

Both systems share one linearisation of one sample of whole utterances. Reading "rhs" is Δ ≈ −B⁻¹F⁻¹g, which has no
scale of its own: its iterates are scaled to the minimum of φ along them, which costs no product. Reading "start" scales
d alike.
Which of the two the paper means is not certain; compare them.

Source: Haider and Woodland (2018), 1810.01873; Haider, Zhang, Kreyssig and Woodland (2021), 2103.07554.
"""

from dataclasses import dataclass, replace

import torch

from asr_hf.objective.objective import Linearisation, Objective
from asr_hf.optimizers.candidates import AtMinimum, Search
from asr_hf.optimizers.ng import FisherOptions, WithFisher
from asr_hf.options import option, require, require_choice
from asr_hf.solvers.cg import conjugate_gradients, view
from asr_hf.solvers.preconditioners import Preconditioner
from asr_hf.solvers.vectors import dot, norm


@dataclass
class NghfOptions(FisherOptions):
    """Natural gradient combined with Hessian-free (Haider et al. 2021)."""

    reading: str = option("start", "rhs: the HF system with the natural gradient on its right; start: started from it")
    fisher_iterations: int = option(5, "CG iterations of the natural gradient")
    fisher_damping: float = option(1.0, "λ_F in units of λ")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("optimizer.reading", self.reading, ("rhs", "start"))
        require(
            self.fisher_iterations >= 1, "optimizer.fisher_iterations", self.fisher_iterations, "must be at least 1"
        )
        require(self.fisher_damping >= 0, "optimizer.fisher_damping", self.fisher_damping, "must not be negative")
        lbfgs = "lbfgs" in self.preconditioner.kinds
        name = "optimizer.preconditioner.kinds"
        require(not lbfgs, name, self.preconditioner.kinds, "cannot hold lbfgs: there are two systems")

    def start(self, theta: torch.Tensor, seed: int) -> "Nghf":
        return Nghf(self, self.begin(theta), seed)


class Nghf(WithFisher):
    """NGHF in the middle of a run."""

    options: NghfOptions

    def view(self) -> str:
        o = self.options
        reading = {"rhs": "on the right-hand side of", "start": "as the start of"}[o.reading]
        return (
            f"NGHF: natural gradient ({o.fisher_iterations} iterations, λ_F = {o.fisher_damping:g} λ) {reading} the "
            f"Hessian-free system; {o.view()}\n{view(o.cg)}"
        )

    def solve(self, objective: Objective, lin: Linearisation, b: torch.Tensor, watch_drift: bool) -> Search:
        """The natural gradient, then the system of Hessian-free with it."""
        options, state = self.options, self.state
        (preconditioner,), _ = self.preconditioners(objective)
        d, inner = self._natural(lin, b, preconditioner, watch_drift)
        hessian, each = self.scaled(self.damped(lin)), self.each_candidate(objective)
        if options.reading == "start":
            _lengthen(d, norm(b) / state.damping)  # as long as a solution can be: CG shortens it to fit
            result = conjugate_gradients(
                hessian, b, options.cg, d, each.offer, watch_drift, keep=(), preconditioner=preconditioner
            )
        else:
            _lengthen(d, norm(b))
            # CG's own quadratic is ½ΔᵀAΔ − dᵀΔ
            at_minimum = AtMinimum(b, lambda at: 2 * (at.quadratic + dot(d, at.x)), each.offer)
            result = conjugate_gradients(
                hessian, d, options.cg, None, at_minimum, watch_drift, keep=(), preconditioner=preconditioner
            )
            result = at_minimum.at_last(result)
        return each.search(result, f"; natural gradient: {inner} iterations", inner)

    def _natural(
        self, lin: Linearisation, b: torch.Tensor, preconditioner: Preconditioner | None, watch_drift: bool
    ) -> tuple[torch.Tensor, int]:
        """The natural gradient by CG, steepest descent if CG cannot make a step; and the iterations."""
        options = self.options
        fisher = self.fisher(lin, options.fisher_damping * self.state.damping)
        few = replace(options.cg, max_iterations=options.fisher_iterations)
        found = conjugate_gradients(fisher, b, few, watch_drift=watch_drift, keep=(), preconditioner=preconditioner)
        return (found.x, found.iterations) if found.iterations else (b.clone(), 0)


def _lengthen(d: torch.Tensor, length: float) -> None:
    """Give d this length, in place; zero stays zero."""
    before = norm(d)
    if before:
        d.mul_(length / before)
