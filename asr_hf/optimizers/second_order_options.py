"""The options that second-order methods share; symbols and sources stand in `second_order`."""

from dataclasses import dataclass, field

import torch

from asr_hf.criteria.criterion import Criterion
from asr_hf.objective.layout import Layout
from asr_hf.optimizers.damping import DampingOptions
from asr_hf.optimizers.growth import GrowthOptions
from asr_hf.optimizers.line_search import ArmijoOptions
from asr_hf.optimizers.preconditioning import PreconditionerOptions
from asr_hf.optimizers.second_order_state import SecondOrderState
from asr_hf.options import LARGEST_FACTOR, option, require, require_choice
from asr_hf.solvers.cg import CgOptions


@dataclass
class SecondOrderOptions:
    """What second-order methods share."""

    updates: int = option(15, "number of updates, rejected ones included")
    gradient_share: float = option(1.0, "share of the training frames in the (first) gradient sample")
    curvature_share: float = option(
        0.03, "share of the training frames in the (first) curvature sample, drawn anew per update"
    )
    minibatch_frames: int = option(2048, "frames per minibatch of gradient and loss")
    curvature_minibatch_frames: int = option(1024, "frames per minibatch of curvature products")
    piece_frames: int = option(50, "frames of the pieces in drawn samples of models that may be cut anywhere (TDNN)")
    matrix: str = option("gauss_newton", "M of Hessian-free's system: one of the criterion's matrices")
    structural: float = option(0.0, "μ of structural damping λμ on the hidden states of curvature.states")
    weight_decay: float = option(0.0, "ω of the penalty ½ω‖θ‖² per frame")
    accept: str = option(
        "heldout",
        "heldout: candidates, Armijo, rejection; sample: the same on the gradient sample alone (Kiros 2013); always: "
        "the last iterate times step, fixed λ (Zhang 2017)",
    )
    heldout_every: int = option(1, "updates between held-out losses where none is needed (accept other than heldout)")
    step: float = option(1.0, "η: factor of the direction with accept=always")
    warm_start: float = option(0.0, "β: CG starts from β times the last CG iterate of the update before; 0: from zero")
    stop_rejections: int = option(5, "rejections in a row after which the run is finished")
    cg: CgOptions = field(default_factory=CgOptions, metadata={"help": "conjugate gradients"})
    preconditioner: PreconditionerOptions = field(
        default_factory=PreconditionerOptions, metadata={"help": "preconditioner of CG"}
    )
    growth: GrowthOptions = field(default_factory=GrowthOptions, metadata={"help": "growth of the samples"})
    damping: DampingOptions = field(default_factory=DampingOptions, metadata={"help": "Levenberg-Marquardt damping"})
    armijo: ArmijoOptions = field(default_factory=ArmijoOptions, metadata={"help": "Armijo's backtracking"})

    def __post_init__(self) -> None:
        require(self.updates >= 1, "optimizer.updates", self.updates, "must be at least 1")
        for name in ("gradient_share", "curvature_share"):
            require(0 < getattr(self, name) <= 1, f"optimizer.{name}", getattr(self, name), "must lie in (0, 1]")
        counts = ("minibatch_frames", "curvature_minibatch_frames", "piece_frames", "stop_rejections", "heldout_every")
        for name in counts:
            require(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "must be at least 1")
        for name in ("weight_decay", "structural"):
            fits = 0 <= getattr(self, name) <= LARGEST_FACTOR
            require(fits, f"optimizer.{name}", getattr(self, name), f"must lie in [0, {LARGEST_FACTOR:g}]")
        require_choice("optimizer.accept", self.accept, ("heldout", "sample", "always"))
        require(self.step > 0, "optimizer.step", self.step, "must be positive")
        require(0 <= self.warm_start < 1, "optimizer.warm_start", self.warm_start, "must lie in [0, 1)")
        flexible = self.cg.beta == "flexible"
        require(
            flexible or not self.preconditioner.inside,
            "optimizer.preconditioner.inside",
            self.preconditioner.inside,
            "needs optimizer.cg.beta=flexible",
        )

    def view(self) -> str:
        """What all methods say of themselves."""
        growth = f", {self.growth.schedule} growth" if self.growth.schedule != "constant" else ""
        judged = {"sample": "judged on the gradient sample; ", "always": f"step {self.step:g}, not tested; "}
        return (
            f"{self.updates} updates; {self.view_of_samples()}{growth}; λ₀ {self.damping.initial:g} "
            f"(×{self.damping.drop:.3g} / ×{self.damping.boost:.3g}); {judged.get(self.accept, '')}"
            f"preconditioner {self.preconditioner.view()}; warm start {self.warm_start:g}"
        )

    def view_of_samples(self) -> str:
        """How large the first samples are."""
        return f"gradient on {self.gradient_share:.0%}, curvature on {self.curvature_share:.1%} of the frames"

    def warm_start_after(self, update: int) -> float:
        """β with which the next update starts."""
        return self.warm_start

    def require_fit(self, layout: Layout, criterion: Criterion) -> None:
        """Refuse what the model or the criterion does not have (OptionError)."""
        require_choice("optimizer.matrix", self.matrix, criterion.matrices)

    def begin(self, theta: torch.Tensor) -> SecondOrderState:
        """The state at the start of a run."""
        gradient, curvature, damping = self.gradient_share, self.curvature_share, self.damping.initial
        state = SecondOrderState(theta, damping=damping, gradient_share=gradient, curvature_share=curvature)
        state.most_pairs = self.preconditioner.pairs if "lbfgs" in self.preconditioner.kinds else 0
        return state
