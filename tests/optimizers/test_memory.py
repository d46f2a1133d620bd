"""Live vectors of the master, counted while its systems are solved and its candidates evaluated."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from asr_hf.models.dnn import DnnOptions
from asr_hf.objective.local import LocalObjective
from asr_hf.optimizers.hf import HfOptions
from asr_hf.optimizers.ng import NgOptions
from asr_hf.optimizers.nghf import NghfOptions
from asr_hf.optimizers.preconditioning import PreconditionerOptions
from asr_hf.optimizers.second_order_options import SecondOrderOptions
from asr_hf.solvers.cg import CgOptions

Small = Callable[..., tuple[LocalObjective, torch.Tensor]]
LBFGS = {"cg": CgOptions(12, 0.0, beta="flexible"), "preconditioner": PreconditionerOptions(["lbfgs"], pairs=4)}
ALL = PreconditionerOptions(["uses", "jacobi", "lbfgs"], pairs=4)
FEW = {"updates": 3, "curvature_share": 0.3}


class Watch(TorchDispatchMode):
    """Remembers, without holding them, the tensors of at least N elements that operations make."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made = size, list[weakref.ref[torch.Tensor]]()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() >= 4 * self.size:
            self.made.append(weakref.ref(result))
        return result

    def vectors(self) -> float:
        """float32 vectors (N,) that the living ones come to, a storage counted once."""
        alive = [tensor for made in self.made if (tensor := made()) is not None]
        self.made = [weakref.ref(tensor) for tensor in alive]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        return sum(storages.values()) / (4 * self.size)


@pytest.mark.parametrize(
    ("options", "in_use", "collected", "kept"),
    [
        (HfOptions(**FEW, cg=CgOptions(12, 0.0)), 0, 0, 9),
        (HfOptions(**FEW, cg=CgOptions(12, 0.0), candidates="each"), 0, 0, 0),
        (HfOptions(**FEW, **LBFGS, candidates="each"), 4, 4, 0),
        (HfOptions(**FEW, **LBFGS), 4, 4, 9),
        (HfOptions(**FEW, **{**LBFGS, "preconditioner": ALL}, candidates="each"), 4, 4, 0),
        (NgOptions(**FEW), 0, 0, 0),
        (NgOptions(**FEW, length="gauss_newton"), 0, 0, 0),
        (NghfOptions(**FEW, preconditioner=PreconditionerOptions(["uses"])), 0, 0, 0),
        (NghfOptions(**FEW, reading="rhs"), 0, 0, 0),
    ],
)
def test_the_master_holds_few_vectors(
    small_objective: Small, options: SecondOrderOptions, in_use: int, collected: int, kept: int
) -> None:
    """At most 10 + 2·(pairs in use) + 2·(pairs being collected) + kept iterates, whenever the ranks are asked."""
    assert kept in (0, len(options.cg.kept() | {12}))
    model = DnnOptions(hidden_layers=1, width=600, activation="sigmoid", context=1, norm="none")
    objective, theta = small_objective(model=model)
    watch = Watch(objective.layout.size)
    watch.made.append(weakref.ref(theta))
    optimizer = options.start(theta, seed=0)
    del theta
    seen: list[float] = []

    def counted(evaluate: Callable[..., object]) -> Callable[..., object]:
        def count_and_evaluate(*arguments: object) -> object:
            with _disable_current_modes():  # what the evaluation makes is no vector of the master
                seen.append(watch.vectors())
                return evaluate(*arguments)

        return count_and_evaluate

    for name in ("_product", "_losses", "_gradient", "_open"):
        setattr(objective, name, counted(getattr(objective, name)))
    with watch:
        while not optimizer.state.finished:
            optimizer.step(objective)
    assert len(seen) > 20
    assert 4 <= max(seen) <= 10 + 2 * in_use + 2 * collected + kept
