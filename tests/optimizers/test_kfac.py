"""K-FAC as a method and as a preconditioner of CG."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asr_hf.criteria.criterion import CriterionLinearisation, Outputs
from asr_hf.data.minibatch import Batch, TrainingSet
from asr_hf.errors import OptionError
from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective
from asr_hf.optimizers.blocks import Blocks
from asr_hf.optimizers.damping import DampingOptions
from asr_hf.optimizers.hf import HfOptions
from asr_hf.optimizers.kfac import KfacOptions, minimum_in_span
from asr_hf.optimizers.ng import NgOptions
from asr_hf.optimizers.nghf import NghfOptions
from asr_hf.optimizers.preconditioning import PreconditionerOptions, averaged
from asr_hf.optimizers.second_order_options import SecondOrderOptions
from asr_hf.solvers.cg import CgOptions
from asr_hf.solvers.stopping import StopReason

Small = Callable[..., tuple[LocalObjective, torch.Tensor]]
KFAC = PreconditionerOptions(["kfac"])
METHODS: dict[str, SecondOrderOptions] = {
    "kfac": KfacOptions(),
    "kfac_plain": KfacOptions(warm_start=0.0, preconditioner=replace(KFAC, decay=0.0)),
    "hf": HfOptions(preconditioner=KFAC),
    "hf_blocks": HfOptions(preconditioner=KFAC, blocks=3),
    "ng": NgOptions(preconditioner=KFAC),
    "nghf": NghfOptions(preconditioner=KFAC),
}

P, D = 3, 4


class OneMap(AcousticModel):
    frame_model = windowed = True

    def __init__(self) -> None:
        super().__init__(D, P, 0, 0)
        self.output = nn.Linear(D, P)

    def forward(self, x_BWD: torch.Tensor, *rest: Any) -> Outputs:
        return {"output": self.output(x_BWD)}


class Gaussian:
    """½(y − t)ᵀS(y − t), t = onehot(target); P rows of the same input get √P times the columns of L, LLᵀ = S."""

    matrices = ("gauss_newton",)
    sequence = branched = False
    chunk = 0
    S_PP = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]])

    def values(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        return self.linearize(outputs, batch).value_B

    def linearize(self, outputs: Outputs, batch: Batch) -> CriterionLinearisation:
        rest_BTP = outputs["output"] - nn.functional.one_hot(batch.target_BT, P)
        weighted = rest_BTP @ self.S_PP
        return CriterionLinearisation(
            value_B=0.5 * (rest_BTP * weighted).double().sum(dim=(1, 2)),
            frames_B=batch.mask_BT.sum(dim=1),
            gradient={"output": weighted},
            operators={"gauss_newton": lambda tangent: {"output": tangent["output"] @ self.S_PP}},
            bytes_held=0,
        )

    def sampled_score(self, outputs: Outputs, batch: Batch, generator: torch.Generator) -> Outputs:
        columns_BP = torch.linalg.cholesky(self.S_PP).t().repeat(len(batch.mask_BT) // P, 1)
        return {"output": P**0.5 * columns_BP[:, None]}


def test_a_step_on_a_quadratic_of_kronecker_form_is_exact() -> None:
    """Its matrix is S ⊗ mean of āāᵀ; the minimum is least squares, whatever S."""
    random = np.random.default_rng(0)
    x = np.repeat(random.normal(size=(40, D)), P, axis=0).astype(np.float32)
    target = np.repeat(random.integers(0, P, size=40), P)
    data = TrainingSet(["a"], [x], [target], window=True)
    model = OneMap()
    evaluator = Evaluator(model, Gaussian(), {"train": data, "heldout": data}, torch.device("cpu"))  # type: ignore[arg-type]
    theta = torch.randn(evaluator.layout.size, generator=torch.Generator().manual_seed(1))
    undamped = DampingOptions(initial=1e-12, smallest=1e-12)
    optimizer = KfacOptions(curvature_share=1.0, minibatch_frames=12, damping=undamped).start(theta, seed=0)
    report = optimizer.step(LocalObjective(evaluator))
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(float)
    exact = np.linalg.lstsq(inputs, np.eye(P)[target], rcond=None)[0].T
    found = evaluator.layout.views(optimizer.state.theta)
    np.testing.assert_allclose(found["output.weight"], exact[:, :-1], atol=2e-6)
    np.testing.assert_allclose(found["output.bias"], exact[:, -1], atol=2e-6)
    assert report.accepted
    assert report.step == 1.0
    assert report.rho == pytest.approx(1.0, abs=1e-4)


def test_the_minimum_in_a_span_is_that_of_the_dense_system() -> None:
    random = np.random.default_rng(0)
    root, b, basis = random.normal(size=(9, 9)), random.normal(size=9), random.normal(size=(2, 9))
    matrix, vectors = root @ root.T, [torch.from_numpy(d) for d in basis]
    product = lambda v: torch.from_numpy(matrix @ v.numpy())  # noqa: E731
    c = np.linalg.solve(basis @ matrix @ basis.T, basis @ b)
    found = minimum_in_span(torch.from_numpy(b), vectors, product)
    np.testing.assert_allclose(found.x, c @ basis, rtol=1e-10)
    x = c @ basis
    assert found.quadratic == pytest.approx(0.5 * x @ matrix @ x - b @ x)
    assert (found.iterations, found.iterates[0].x is found.x) == (1, True)
    # directions that are one give what one gives, and none where A is not positive
    alone = minimum_in_span(torch.from_numpy(b), vectors[:1], product)
    twice = minimum_in_span(torch.from_numpy(b), [vectors[0], -3 * vectors[0]], product)
    np.testing.assert_allclose(twice.x, alone.x, rtol=1e-10)
    for sign, reason in ((-1.0, StopReason.NEGATIVE_CURVATURE), (np.nan, StopReason.NON_FINITE)):
        broken = minimum_in_span(torch.from_numpy(b), vectors, lambda v, sign=sign: sign * product(v))
        assert (broken.reason, broken.iterations, broken.iterates) == (reason, 0, [])


def test_without_momentum_it_is_one_iteration_of_preconditioned_cg(small_objective: Small) -> None:
    found = []
    for options in (KfacOptions(warm_start=0.0), HfOptions(warm_start=0.0, preconditioner=KFAC, cg=CgOptions(1))):
        objective, theta = small_objective()
        optimizer = options.start(theta.clone(), seed=0)
        optimizer.step(objective)
        found.append(optimizer.state.theta - theta)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_momentum_spends_a_second_product_and_no_first_one(small_objective: Small) -> None:
    objective, theta = small_objective()
    optimizer = KfacOptions(updates=3, curvature_share=0.5).start(theta, seed=0)
    reports = [optimizer.step(objective) for _ in range(3)]
    assert all(report.accepted for report in reports)
    products = [report.equivalents["products"] for report in reports]
    assert products == pytest.approx([0.5 * 4 / 3, 2 * 0.5 * 4 / 3, 2 * 0.5 * 4 / 3])


def test_blocks_see_their_part_of_the_preconditioner(small_objective: Small) -> None:
    objective, theta = small_objective()
    groups = (("layer1", "output"), ("layer2",))
    whole, parts = (
        HfOptions(curvature_share=1.0, partition=p, preconditioner=KFAC) for p in ([], [*map(list, groups)])
    )
    r = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    applied = []
    for options in (whole, parts):
        optimizer = options.start(theta.clone(), seed=0)
        optimizer.step(objective)
        blocks = Blocks(objective.layout, groups if options is parts else ())
        optimizer.state.damping = 0.3
        made, _ = optimizer.preconditioners(objective)
        applied.append(blocks.join([p(part) for p, part in zip(made, blocks.cut(r), strict=True)]))
    torch.testing.assert_close(*applied, rtol=1e-6, atol=1e-8)


def test_it_saves_iterations_of_cg(small_objective: Small) -> None:
    """To a residual of a hundredth, at a small λ."""
    iterations = []
    for preconditioner in (PreconditionerOptions(), KFAC):
        objective, theta = small_objective()
        cg = CgOptions(200, progress_tolerance=0.0, residual_tolerance=1e-2)
        options = HfOptions(
            curvature_share=1.0, damping=DampingOptions(initial=1e-2), cg=cg, preconditioner=preconditioner
        )
        iterations.append(options.start(theta.clone(), seed=0).step(objective).cg_iterations)
    assert iterations[1] < 0.7 * iterations[0]  # 8 of 12 here


def test_factors_are_averaged_over_updates() -> None:
    updates = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 5)))
    average = torch.empty(0)
    for number, new in enumerate(updates, 1):
        average = averaged(average, new, number, 0.9)
        if number <= 10:
            torch.testing.assert_close(average, updates[:number].mean(0))
    weights = 0.1 * 0.9 ** torch.arange(19, -1, -1, dtype=torch.float64)
    exact = 0.9**20 * updates[:10].mean(0) + (weights[:, None] * updates[10:]).sum(0)
    torch.testing.assert_close(average, exact)


@pytest.mark.parametrize("name", METHODS)
def test_it_lowers_the_heldout_loss(small_objective: Small, name: str) -> None:
    objective, theta = small_objective()
    optimizer = replace(METHODS[name], updates=6, curvature_share=0.2).start(theta, seed=0)
    assert "K-FAC" in optimizer.view()
    reports = []
    while not optimizer.state.finished:
        reports.append(optimizer.step(objective))
    heldout = [report.heldout for report in reports if report.accepted]
    assert len(heldout) >= 3
    assert heldout == sorted(heldout, reverse=True)
    assert heldout[-1] < 0.85 * reports[0].loss


@pytest.mark.parametrize(
    "model",
    [
        TdnnOptions(contexts=[[-1, 0, 1], [-1, 0, 1]], width=6, subsampling=3, norm="batch"),
        LstmOptions(1, 6, projection=4, bidirectional=True),
    ],
)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_with_weights_shared_over_time(small_objective: Small, model: Any, sharing: str) -> None:
    objective, theta = small_objective(model=model)
    options = KfacOptions(updates=4, curvature_share=0.3, preconditioner=replace(KFAC, sharing=sharing))
    optimizer = options.start(theta, seed=0)
    reports = []
    while not optimizer.state.finished:
        reports.append(optimizer.step(objective))
    assert sum(report.accepted for report in reports) >= 2
    assert reports[-1].heldout < 0.97 * reports[0].loss


def test_impossible_options_are_refused() -> None:
    for options, match in (
        (lambda: PreconditionerOptions(["kfac", "jacobi"]), "kfac beside others"),
        (lambda: PreconditionerOptions(["kfac"], sharing="perhaps"), r"preconditioner\.sharing"),
        (lambda: PreconditionerOptions(["kfac"], decay=1.0), r"preconditioner\.decay"),
        (lambda: KfacOptions(preconditioner=PreconditionerOptions(["jacobi"])), r"must be \[kfac\]"),
    ):
        with pytest.raises(OptionError, match=match):
            options()
