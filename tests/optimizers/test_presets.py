"""The choices of conf/optimizer that set more than one option: what they ask for, and that they train."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from asr_hf.cli.config import compose
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.data.plan import Sample
from asr_hf.errors import OptionError
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.rnn import RnnOptions
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Matrix
from asr_hf.optimizers.damping import DampingOptions
from asr_hf.optimizers.hf import HfOptions
from asr_hf.solvers.cg import CgOptions

Small = Callable[..., tuple[LocalObjective, torch.Tensor]]


def preset(name: str) -> HfOptions:
    return compose(("optimizer",), [f"optimizer={name}"])["optimizer"]


def asked(objective: LocalObjective, method: str) -> list[Sample]:
    """The samples that a method of the objective is called with from now on."""
    samples: list[Sample] = []
    evaluate = getattr(objective, method)

    def watched(theta: torch.Tensor, sample: Sample, *more: object, **options: object) -> object:
        samples.append(sample)
        return evaluate(theta, sample, *more, **options)

    setattr(objective, method, watched)
    return samples


def frames(objective: LocalObjective, sample: Sample) -> int:
    return sum(minibatch.frames for minibatch in objective.evaluator.plan(sample))


def test_kiros_draws_the_same_frames_from_any_corpus_and_asks_for_few_heldout_losses(small_objective: Small) -> None:
    """Of 900 frames; masks are those of the update for gradient, products and losses alike."""
    dropped = DnnOptions(hidden_layers=1, width=8, context=0, norm="none", dropout=0.3)
    objective, theta = small_objective(model=dropped)
    options = replace(preset("hf_kiros"), updates=7, gradient_frames=200, curvature_frames=20, heldout_every=3)
    optimizer = options.start(theta, seed=0)
    gradients, products, losses = (asked(objective, name) for name in ("gradient", "linearize", "loss"))
    known = []
    while not optimizer.state.finished:
        assert optimizer.step(objective).accepted
        known.append(sum(sample.subset == "heldout" for sample in losses))
    assert [frames(objective, sample) for sample in gradients] == [200] * 7
    assert [frames(objective, sample) for sample in products] == [20] * 7
    assert [sample.masks for sample in gradients] == [sample.masks for sample in products] == [1, 2, 3, 4, 5, 6, 7]
    assert {sample for sample in losses if sample.subset == "train"} == set(gradients)
    assert known == [1, 1, 2, 2, 2, 3, 4]  # at the start, after updates 3 and 6, and at the end
    assert "gradient on 200, curvature on 20 of the frames" in optimizer.view()


def test_more_frames_than_there_are_is_all_of_them(small_objective: Small) -> None:
    objective, theta = small_objective()
    gradients = asked(objective, "gradient")
    preset("hf_kiros").start(theta, seed=0).step(objective)
    assert [frames(objective, sample) for sample in gradients] == [900]


def test_kiros_starts_cg_from_a_growing_share_of_the_last_direction(small_objective: Small) -> None:
    objective, theta = small_objective()
    wanted = [0.5 * 1.01, 0.5 * 1.01**2, 0.5 * 1.01**3]
    options = replace(preset("hf_kiros"), updates=9, accept="always")
    optimizer = options.start(theta, seed=0)
    for beta in wanted:
        before = optimizer.state.theta
        optimizer.step(objective)
        last = optimizer.state.theta - before
        assert float(optimizer.state.direction.norm() / last.norm()) == pytest.approx(beta, rel=1e-4)
    assert options.warm_start_after(68) < 0.99 == options.warm_start_after(69) == options.warm_start_after(1000)
    assert HfOptions(warm_start=0.995).warm_start_after(3) == 0.995


def test_kiros_keeps_only_what_lowers_the_loss_of_the_gradient_sample(small_objective: Small) -> None:
    objective, theta = small_objective()
    options = replace(preset("hf_kiros"), gradient_frames=200, curvature_frames=40, weight_decay=1e-3)
    optimizer = options.start(theta, seed=0)
    gradients = asked(objective, "gradient")
    for _ in range(5):
        before = optimizer.state.theta
        report = optimizer.step(objective)

        def loss(at: torch.Tensor) -> float:
            return objective.loss(at, gradients[-1]).mean + 0.5e-3 * float(at.double().square().sum())

        assert report.accepted
        assert loss(optimizer.state.theta) < loss(before) == pytest.approx(report.loss, rel=1e-6)
    losses = objective.loss
    objective.loss = lambda at, sample: replace(losses(at, sample), value=math.inf)
    report = optimizer.step(objective)
    assert "no CG iterate lowers the loss of the gradient sample" in report.note


def test_kiros_learns(small_objective: Small) -> None:
    objective, theta = small_objective()
    options = replace(preset("hf_kiros"), updates=60, gradient_frames=100, curvature_frames=20)
    optimizer = options.start(theta, seed=0)
    start = optimizer.step(objective).heldout
    while not optimizer.state.finished:
        optimizer.step(objective)
    assert optimizer.state.heldout < 0.7 * start


@pytest.mark.parametrize(
    "wrong",
    [
        {"gradient_frames": -1},
        {"curvature_frames": -1},
        {"warm_start_growth": 0.9},
        {"warm_start_limit": 1.0},
        {"heldout_every": 0},
        {"accept": "gladly"},
    ],
)
def test_impossible_options_are_refused(wrong: dict) -> None:
    with pytest.raises(OptionError, match=rf"optimizer\.{next(iter(wrong))}"):
        HfOptions(**wrong)


@pytest.mark.parametrize("kind", [RnnOptions, LstmOptions])
def test_structural_damping_solves_the_dense_system(kind: type, small_objective: Small) -> None:
    """(G + λI + λμ Σ JₕᵀJₕ) d = −g, the hidden states' Jacobian Jₕ by autograd, utterance by utterance."""
    size = {"cells": 3} if kind is LstmOptions else {"width": 3}
    states = ["lstm1"] if kind is LstmOptions else ["rnn1"]
    objective, theta = small_objective(CurvatureOptions(states=states), kind(layers=1, norm="none", **size))
    lam = 0.3
    options = replace(
        preset("hf_structural"),
        curvature_share=1.0,
        accept="always",
        damping=DampingOptions(initial=lam),
        cg=CgOptions(max_iterations=100, progress_tolerance=0.0, residual_tolerance=1e-6),
    )
    whole = Sample("train", "all", 1.0, 4000, True)
    found = objective.gradient(theta, whole)
    with objective.linearize(theta, whole) as lin:
        columns = [lin.product(e, Matrix()).double().numpy() for e in torch.eye(len(theta))]
    plain = np.stack(columns, axis=1) / found.frames + lam * np.eye(len(theta))
    hidden = lam * options.structural / found.frames * hidden_matrix(objective, theta, states[0])
    exact, without = (
        np.linalg.solve(matrix, -found.vector.double().numpy() / found.frames) for matrix in (plain + hidden, plain)
    )
    optimizer = options.start(theta.clone(), seed=0)
    optimizer.step(objective)
    step = (optimizer.state.theta - theta).double().numpy()
    assert np.linalg.norm(step - exact) <= 1e-4 * np.linalg.norm(exact)
    assert np.linalg.norm(without - exact) > 1e-3 * np.linalg.norm(exact)


def hidden_matrix(objective: LocalObjective, theta: torch.Tensor, state: str) -> np.ndarray:
    """Σ over the training frames of JₕᵀJₕ (N, N)."""
    model, layout = objective.evaluator.model, objective.layout
    total = np.zeros((len(theta), len(theta)))
    for features in objective.evaluator.sets["train"].features:
        x = torch.from_numpy(np.asarray(features))[None]

        def hidden(vector: torch.Tensor, x: torch.Tensor = x) -> torch.Tensor:
            return torch.func.functional_call(model, layout.views(vector), (x, None, None, (state,)))[state].flatten()

        jacobian = torch.autograd.functional.jacobian(hidden, theta).double().numpy()
        total += jacobian.T @ jacobian
    return total


@pytest.mark.parametrize("model", [["model=lstm", "model.cells=4", "model.layers=1"], ["model=rnn", "model.width=6"]])
def test_structural_damping_needs_no_names_of_states(model: list[str], tiny_corpus, tmp_path) -> None:
    from asr_hf.cli.config import to_yaml
    from asr_hf.cli.train import GROUPS
    from asr_hf.training.run import build, load_data

    folders = [f"corpus.{name}={tiny_corpus}/{name}" for name in ("train", "heldout")]
    options = compose(GROUPS, [*folders, f"corpus.alignments={tiny_corpus}/ali", "optimizer=hf_structural", *model])
    made, evaluator = build(options, load_data(options, check=False))
    assert evaluator.curvature.states == list(made.states)
    assert made.states
    assert "states: []" in to_yaml(options)
