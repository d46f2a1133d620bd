"""How curvature products are computed."""

from dataclasses import dataclass

from asr_hf.options import option, require, require_choice

AUTO = "auto"


@dataclass
class CurvatureOptions:
    """How curvature products are computed."""

    precision: str = option("fp32", "fp32, medium, bf16, or auto: the fastest on rank 0 whose error is tolerable")
    tolerance: float = option(1e-2, "auto: largest relative error of a product against fp32")
    budget_gib: float = option(
        4.0, "memory per rank for kept linearisations (GiB); minibatches beyond it are recomputed"
    )
    deterministic: bool = option(True, "on CUDA: deterministic algorithms, so that products repeat to the bit")
    states: list[str] = option([], "hidden states of the model that structural damping acts on; none named: all")

    def __post_init__(self) -> None:
        require_choice("curvature.precision", self.precision, ("fp32", "medium", "bf16", AUTO))
        require(0 < self.tolerance < 1, "curvature.tolerance", self.tolerance, "must lie in (0, 1)")
        require(self.budget_gib >= 0, "curvature.budget_gib", self.budget_gib, "must not be negative")

    @property
    def budget_bytes(self) -> int:
        return int(self.budget_gib * 2**30)
