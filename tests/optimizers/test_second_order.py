"""Hessian-free with blocks and preconditioners, natural gradient and NGHF: directions against dense float64 systems."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_hf.data.plan import Sample
from asr_hf.errors import OptionError
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Matrix
from asr_hf.optimizers.blocks import Blocks, partition
from asr_hf.optimizers.damping import DampingOptions
from asr_hf.optimizers.growth import GrowthOptions, variance_share
from asr_hf.optimizers.hf import HfOptions
from asr_hf.optimizers.kfac import KfacOptions
from asr_hf.optimizers.ng import NgOptions
from asr_hf.optimizers.nghf import NghfOptions
from asr_hf.optimizers.preconditioning import PreconditionerOptions
from asr_hf.optimizers.second_order_options import SecondOrderOptions
from asr_hf.solvers.cg import CgOptions
from asr_hf.training.checkpoint import restore_latest, write_checkpoint

Small = Callable[..., tuple[LocalObjective, torch.Tensor]]
TINY = DnnOptions(hidden_layers=2, width=5, activation="sigmoid", context=0, norm="none")
FIXED = DampingOptions(initial=0.3, drop=1.0, boost=1.0)
TO_THE_END = CgOptions(max_iterations=300, progress_tolerance=0.0, residual_tolerance=1e-7)
WHOLE = {"curvature_share": 1.0, "accept": "always", "damping": FIXED, "cg": TO_THE_END}
METHODS: dict[str, SecondOrderOptions] = {
    "hf": HfOptions(),
    "hf_each": HfOptions(candidates="each"),
    "hf_sainath": HfOptions(
        gradient_share=0.2,
        cg=CgOptions(beta="flexible"),
        preconditioner=PreconditionerOptions(["lbfgs"], pairs=8),
        growth=GrowthOptions("geometric"),
    ),
    "hf_inside": HfOptions(
        cg=CgOptions(beta="flexible", truncation=3),
        preconditioner=PreconditionerOptions(["jacobi", "lbfgs"], pairs=6, inside=True, storage="bf16"),
    ),
    "hf_variance": HfOptions(gradient_share=0.3, minibatch_frames=50, growth=GrowthOptions("variance", theta=0.3)),
    "hf_blocks": HfOptions(blocks=3, preconditioner=PreconditionerOptions(["lbfgs"], pairs=5)),
    "hf_blocks_longer": HfOptions(blocks=2, length="gauss_newton"),
    "hf_zhang": HfOptions(blocks=2, accept="always", step=0.5, damping=FIXED),
    "hf_kiros": HfOptions(accept="sample", heldout_every=2, gradient_share=0.3, warm_start=0.5, warm_start_growth=1.1),
    "ng": NgOptions(),
    "ng_longer": NgOptions(length="gauss_newton"),
    "nghf_start": NghfOptions(preconditioner=PreconditionerOptions(["uses", "jacobi"])),
    "nghf_rhs": NghfOptions(reading="rhs"),
    "kfac": KfacOptions(),
    "hf_kfac": HfOptions(blocks=3, preconditioner=PreconditionerOptions(["kfac"])),
}


def dense(objective: LocalObjective, theta: torch.Tensor, matrix: Matrix) -> np.ndarray:
    """JᵀMJ per frame on the whole training set, column by column."""
    sample = Sample("train", "all", 1.0, 4000, True)
    with objective.linearize(theta, sample) as lin:
        columns = [lin.product(e, matrix).double().numpy() / lin.frames for e in torch.eye(len(theta))]
    return np.stack(columns, axis=1)


def utterance_gradients(objective: LocalObjective, theta: torch.Tensor) -> tuple[np.ndarray, int]:
    """The summed gradient of every training utterance (U, N), each evaluated alone, and their frames."""
    alone = Sample("train", "all", 1.0, 1, True)
    found = [objective.gradient(theta, replace(alone, first=u, count=1)) for u in range(objective.minibatches(alone))]
    return np.stack([each.vector.double().numpy() for each in found]), sum(each.frames for each in found)


def direction(objective: LocalObjective, theta: torch.Tensor, options: SecondOrderOptions) -> np.ndarray:
    """θ after one update that is always accepted, minus θ."""
    optimizer = options.start(theta.clone(), seed=0)
    optimizer.step(objective)
    return (optimizer.state.theta - theta).double().numpy()


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("kinds", [[], ["lbfgs"], ["jacobi"], ["jacobi", "lbfgs"]])
@pytest.mark.parametrize("groups", [[], [["layer1", "layer2"], ["output"]], [["layer1", "output"], ["layer2"]]])
def test_blocks_solve_their_diagonal_blocks(small_objective: Small, groups: list[list[str]], kinds: list[str]) -> None:
    """Two updates, so that the second has L-BFGS pairs, each against the dense block-diagonal matrix."""
    objective, theta = small_objective(model=TINY)
    cg = replace(TO_THE_END, beta="flexible" if "lbfgs" in kinds else "standard")
    options = HfOptions(
        **{**WHOLE, "cg": cg}, partition=groups, warm_start=0.5, preconditioner=PreconditionerOptions(kinds, pairs=64)
    )
    optimizer = options.start(theta.clone(), seed=0)
    blocks = Blocks(objective.layout, tuple(map(tuple, groups)))
    for _ in range(2):
        before = optimizer.state.theta.clone()
        scores, frames = utterance_gradients(objective, before)
        matrix, inside = dense(objective, before, Matrix()), np.zeros((len(theta), len(theta)), dtype=bool)
        for number in range(len(blocks)):
            mine = (
                blocks.join([torch.ones_like(p) * (i == number) for i, p in enumerate(blocks.cut(theta))])
                .bool()
                .numpy()
            )
            inside |= np.outer(mine, mine)
        exact = np.linalg.solve(np.where(inside, matrix, 0) + 0.3 * np.eye(len(theta)), -scores.sum(axis=0) / frames)
        report = optimizer.step(objective)
        assert relative((optimizer.state.theta - before).double().numpy(), exact) < 2e-4
    if kinds == ["lbfgs"] and not groups:
        plain = replace(options, preconditioner=PreconditionerOptions()).start(theta.clone(), seed=0)
        plain.step(objective)
        assert report.cg_iterations < plain.step(objective).cg_iterations  # it is of use


def test_joined_blocks_take_their_length_from_the_whole_matrix(small_objective: Small) -> None:
    objective, theta = small_objective(model=TINY)
    groups = [["layer1"], ["layer2"], ["output"]]
    joined = direction(objective, theta, HfOptions(**WHOLE, partition=groups))
    scores, frames = utterance_gradients(objective, theta)
    whole, b = dense(objective, theta, Matrix()) + 0.3 * np.eye(len(theta)), -scores.sum(axis=0) / frames
    exact = joined * (b @ joined) / (joined @ whole @ joined)
    longer = HfOptions(**WHOLE, partition=groups, length="gauss_newton")
    assert relative(direction(objective, theta, longer), exact) < 1e-5
    optimizer = replace(longer, accept="heldout").start(theta.clone(), seed=0)
    report = optimizer.step(objective)
    assert report.accepted
    chosen = (optimizer.state.theta - theta).double().numpy()
    assert b @ chosen == pytest.approx(chosen @ whole @ chosen, rel=1e-3)  # the minimum along it
    loss = [
        objective.loss(each, Sample("train", "all", 1.0, 2048, True)).mean for each in (theta, optimizer.state.theta)
    ]
    quadratic = -b @ chosen + 0.5 * chosen @ (whole - 0.3 * np.eye(len(theta))) @ chosen
    assert report.rho == pytest.approx((loss[1] - loss[0]) / quadratic, rel=1e-2)


def test_one_block_by_name_is_hessian_free_bit_for_bit(small_objective: Small) -> None:
    found = []
    for groups in ([], [["layer1", "layer2", "output"]]):
        objective, theta = small_objective()
        optimizer = HfOptions(updates=4, curvature_share=0.3, partition=groups).start(theta, seed=0)
        while not optimizer.state.finished:
            optimizer.step(objective)
        found.append(optimizer.state.theta)
    assert torch.equal(*found)


def test_partitions_are_checked(small_objective: Small) -> None:
    layout = small_objective(model=TINY)[0].layout
    assert partition(layout, 3, []) == (("layer1",), ("layer2",), ("output",))
    assert partition(layout, 1, []) == ()
    for bad in ([["layer1"]], [["layer1", "layer2"], ["output", "layer1"]], [["layer1", "layer2", "outputs"]]):
        with pytest.raises(OptionError, match=r"optimizer\.partition"):
            partition(layout, 1, bad)
    with pytest.raises(OptionError, match=r"optimizer\.blocks"):
        partition(layout, 4, [])


def test_natural_gradient_is_the_solution_with_the_fisher_of_utterances(small_objective: Small) -> None:
    objective, theta = small_objective(model=TINY)
    scores, frames = utterance_gradients(objective, theta)
    fisher = scores.T @ scores / frames
    exact = np.linalg.solve(fisher + 0.3 * np.eye(len(theta)), -scores.sum(axis=0) / frames)
    assert relative(direction(objective, theta, NgOptions(**WHOLE)), exact) < 1e-4
    singly = dense(objective, theta, Matrix("frame_fisher")) + 0.3 * np.eye(len(theta))
    of_frames = np.linalg.solve(singly, -scores.sum(axis=0) / frames)
    assert relative(direction(objective, theta, NgOptions(**WHOLE, fisher="frame")), of_frames) < 1e-4
    hessian = dense(objective, theta, Matrix()) + 0.3 * np.eye(len(theta))
    longer = exact * (-scores.sum(axis=0) / frames @ exact) / (exact @ hessian @ exact)
    assert relative(direction(objective, theta, NgOptions(**WHOLE, length="gauss_newton")), longer) < 1e-4


def test_nghf_in_both_readings_is_the_chain_of_two_dense_systems(small_objective: Small) -> None:
    objective, theta = small_objective(model=TINY)
    scores, frames = utterance_gradients(objective, theta)
    eye, g = np.eye(len(theta)), scores.sum(axis=0) / frames
    natural = np.linalg.solve(scores.T @ scores / frames + 0.6 * eye, -g)
    hessian = dense(objective, theta, Matrix()) + 0.3 * eye
    # "start": to the end it is the solution of Hessian-free; after one iteration it is one CG step from α·natural
    many = NghfOptions(**WHOLE, fisher_damping=2.0, fisher_iterations=300)
    assert relative(direction(objective, theta, many), np.linalg.solve(hessian, -g)) < 1e-4
    x = natural * (-g @ natural) / (natural @ hessian @ natural)
    r = -g - hessian @ x
    x = x + r * (r @ r) / (r @ hessian @ r)
    once = replace(many, cg=replace(TO_THE_END, max_iterations=1))
    assert relative(direction(objective, theta, once), x) < 1e-3
    # "rhs": B⁻¹F⁻¹(−g), scaled to the minimum of φ
    x = np.linalg.solve(hessian, natural)
    x *= (-g @ x) / (x @ hessian @ x)
    assert relative(direction(objective, theta, replace(many, reading="rhs")), x) < 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_zero_gradient_ends_in_a_rejection_with_its_reason(small_objective: Small, name: str) -> None:
    objective, theta = small_objective()
    answer = objective.gradient

    def zero(*arguments: object, **options: object) -> object:
        found = answer(*arguments, **options)
        return replace(found, vector=found.vector.zero_())

    objective.gradient = zero
    report = METHODS[name].start(torch.zeros_like(theta), seed=0).step(objective)
    assert not report.accepted
    assert "the right-hand side is zero" in report.note


@pytest.mark.parametrize("name", METHODS)
def test_accepted_updates_never_raise_the_heldout_loss(small_objective: Small, name: str) -> None:
    options = METHODS[name]
    if options.accept != "heldout":
        return
    objective, theta = small_objective()
    optimizer = replace(options, updates=8, curvature_share=0.2).start(theta, seed=0)
    heldout, accepted = math.inf, 0
    while not optimizer.state.finished:
        before = optimizer.state.theta
        report = optimizer.step(objective)
        assert report.accepted == (optimizer.state.theta is not before)
        if report.accepted:
            assert report.heldout < heldout
            accepted += 1
        heldout = min(heldout, report.heldout)
    assert accepted >= 3


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_goes_on_with_the_same_bits(small_objective: Small, tmp_path: Path, name: str) -> None:
    """After every update the state is written, and a new optimiser goes on from the file."""
    options = replace(METHODS[name], updates=5, curvature_share=0.2)
    objective, theta = small_objective()
    layout = objective.layout.to_json()
    whole = options.start(theta.clone(), seed=3)
    while not whole.state.finished:
        whole.step(objective)
    parted = options.start(theta.clone(), seed=3)
    while not parted.state.finished:
        parted.step(small_objective()[0])
        write_checkpoint(tmp_path, parted.state, layout, keep=1)
        parted = options.start(theta.clone(), seed=3)
        restore_latest(tmp_path, parted.state, layout)
    for key, tensor in whole.state.tensors().items():
        assert torch.equal(tensor, parted.state.tensors()[key]), key
    assert whole.state.scalars() == parted.state.scalars()
    if "lbfgs" in options.preconditioner.kinds:
        assert whole.state.tensors()["pairs_s"].shape[0] >= 4
    assert whole.state.passes == (5 if "kfac" in options.preconditioner.kinds else 0)


def test_pairs_follow_the_damping(small_objective: Small) -> None:
    """y_k = (G + λI)s_k holds at a λ to which it was moved, with G of the update that found it."""
    objective, theta = small_objective(model=TINY)
    options = HfOptions(curvature_share=1.0, preconditioner=PreconditionerOptions(["lbfgs"], pairs=5), damping=FIXED)
    optimizer = options.start(theta.clone(), seed=0)
    optimizer.step(objective)
    memory = optimizer.state.memory
    memory.at(2.5)
    s, y = (vectors.double().numpy() for vectors in memory.vectors())
    matrix = dense(objective, theta, Matrix()) + 2.5 * np.eye(len(theta))
    assert len(s) == 5
    assert relative(y, s @ matrix) < 1e-4


def test_use_counts_reach_the_preconditioner(small_objective: Small) -> None:
    """One CG iteration from zero goes along K⁻¹g."""
    model = TdnnOptions(contexts=[[-1, 0, 1], [-1, 0, 1]], width=4, subsampling=3, norm="none")
    objective, theta = small_objective(model=model)
    uses = torch.cat([torch.full((slot.size,), slot.uses_per_frame) for slot in objective.layout.slots])
    assert set(uses.tolist()) == {1.0, 3.0}
    options = NgOptions(
        accept="always",
        curvature_share=1.0,
        damping=FIXED,
        cg=CgOptions(max_iterations=1),
        preconditioner=PreconditionerOptions(["uses"], power=2.0),
    )
    found = direction(objective, theta, options)
    gradient = objective.gradient(theta, Sample("train", "all", 1.0, 2048, True, shift=1)).vector
    along = (gradient / uses**2).double().numpy()
    assert abs(found @ along) == pytest.approx(np.linalg.norm(found) * np.linalg.norm(along), rel=1e-6)


def test_variance_test_against_the_sample_variance() -> None:
    random = np.random.default_rng(0)
    units = random.normal(size=(40, 7)) + 0.5  # mean gradients of 40 minibatches of 25 frames
    mean = torch.from_numpy(units.mean(axis=0)).float()
    squares = torch.from_numpy(((25 * units) ** 2).sum(axis=0)).float()
    error = units.var(axis=0, ddof=1).sum() / 40
    ratio = error / float(mean.double() @ mean.double())
    for theta in (0.05, 0.2):
        wanted = variance_share(mean, squares, 1000, 40, 0.01, theta)
        assert wanted == pytest.approx(0.01 * max(1.0, ratio / theta**2), rel=1e-5)
    assert variance_share(mean, squares, 1000, 40, 0.01, 1.0) == 0.01
    assert variance_share(mean, squares, 1000, 40, 0.5, 0.01) == 1.0


def test_samples_grow_geometrically_up_to_their_limits(small_objective: Small) -> None:
    objective, theta = small_objective()
    growth = GrowthOptions("geometric", gradient_factor=1.5, curvature_factor=2.0, curvature_cap=0.5)
    options = HfOptions(updates=6, gradient_share=0.3, curvature_share=0.1, growth=growth)
    optimizer = options.start(theta, seed=0)
    seen = []
    while not optimizer.state.finished:
        optimizer.step(objective)
        seen.append((optimizer.state.gradient_share, optimizer.state.curvature_share))
    assert np.allclose(seen, [(min(1.0, 0.3 * 1.5**i), min(0.5, 0.1 * 2.0**i)) for i in range(1, 7)])


def test_impossible_options_are_refused() -> None:
    for options, match in (
        (lambda: HfOptions(blocks=2, candidates="each"), r"optimizer\.candidates"),
        (lambda: HfOptions(accept="perhaps"), r"optimizer\.accept"),
        (lambda: PreconditionerOptions(["newton"]), r"preconditioner\.kinds"),
        (lambda: HfOptions(preconditioner=PreconditionerOptions(["lbfgs"], inside=True)), "cg.beta=flexible"),
        (lambda: NghfOptions(reading="both"), r"optimizer\.reading"),
        (lambda: NghfOptions(preconditioner=PreconditionerOptions(["lbfgs"])), "two systems"),
        (lambda: GrowthOptions("exponential"), r"growth\.schedule"),
    ):
        with pytest.raises(OptionError, match=match):
            options()
