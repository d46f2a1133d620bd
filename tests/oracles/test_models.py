"""JᵀMJ·v of every model with every M, against dense float64 matrices made by difference quotients of the forward pass.

Each utterance is evaluated alone and in full for the dense matrix, without padding; the products come from padded
minibatches of float32.
"""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.func import functional_call

from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.criteria.matrices import softmax_covariance
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.curvature.precision import Precision
from asr_hf.data.minibatch import TrainingSet
from asr_hf.data.plan import Sample
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.dropout import keep_factors
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.rnn import RnnOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.models.tdnnf import TdnnfOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import Matrix

P, D = 4, 3
LENGTHS = (7, 3, 10)
WHOLE = Sample("train", minibatch_frames=1000, whole_utterances=True)  # one minibatch, two of its rows padded
CUT = Sample("train", minibatch_frames=10, whole_utterances=True)  # three minibatches
DROPPED = Sample("train", minibatch_frames=1000, whole_utterances=True, seed=3, masks=2)

MODELS = {
    "dnn sigmoid": (DnnOptions(2, 4, "sigmoid", 1, norm="none"), ["layer1"]),
    "dnn tanh": (DnnOptions(2, 4, "tanh", 1, norm="layer"), ["layer2"]),
    "dnn relu": (DnnOptions(2, 4, "relu", 1, norm="batch"), []),
    "dnn maxout": (DnnOptions(2, 4, "maxout", 1, norm="layer", dropout=0.3), []),
    "tdnn": (TdnnOptions(contexts=[[-1, 0, 1], [-2, 0, 2]], width=4, norm="batch"), ["layer1"]),
    "tdnn subsampled": (
        TdnnOptions(contexts=[[-1, 0, 1], [-3, 0, 3]], width=4, subsampling=3, dropout=0.2),
        ["layer1"],
    ),
    "tdnnf": (TdnnfOptions(width=4, bottleneck=2, strides=[1, 3], subsampling=3), []),
    "rnn": (RnnOptions(layers=2, width=4), ["rnn1", "rnn2"]),
    "rnn both ways": (RnnOptions(layers=1, width=3, bidirectional=True, norm="none"), ["rnn1"]),
    "lstm": (LstmOptions(layers=2, cells=6, delay=2, dropout=0.2), ["lstm1"]),
    "lstm projected both ways": (LstmOptions(layers=1, cells=3, projection=2, bidirectional=True, norm="batch"), []),
    "lstm subsampled": (LstmOptions(layers=1, cells=4, delay=1, subsampling=3, norm="batch"), ["lstm1"]),
}


@dataclass
class Case:
    objective: LocalObjective
    model: torch.nn.Module
    theta: torch.Tensor


@functools.cache
def case(name: str, budget_gib: float = 1.0) -> Case:
    options, states = MODELS[name]
    random = np.random.default_rng(0)
    features = [random.normal(size=(n, D)).astype(np.float32) for n in LENGTHS]
    targets = [random.integers(0, P, size=n).astype(np.int32) for n in LENGTHS]
    data = TrainingSet([f"u{i}" for i in range(len(LENGTHS))], features, targets, options.frame_model)
    model = options.build(D, P, seed=1)
    curvature = CurvatureOptions(budget_gib=budget_gib, states=states)
    evaluator = Evaluator(model, CrossEntropy(), {"train": data, "heldout": data}, torch.device("cpu"), curvature)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    generator = torch.Generator().manual_seed(2)
    theta += 0.2 * torch.randn(theta.shape, generator=generator)
    if evaluator.buffers.size:
        evaluator.set_buffers(0.5 + torch.rand(evaluator.buffers.size, generator=generator))
    return Case(LocalObjective(evaluator), model, theta)


def dense_jacobians(name: str, utterance: int, dropped: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs and J (frames, units, N) of one utterance alone, in float64, by central differences."""
    options, states = MODELS[name]
    made = case(name)
    model64 = options.build(D, P, seed=1).double().eval()
    buffers = {n: b.double() for n, b in made.model.named_buffers()}
    data, layout, s = made.objective.evaluator.sets["train"], made.objective.layout, made.model.subsampling
    frames = np.arange(0, LENGTHS[utterance], s)
    window = np.arange(-made.model.left_context, frames[-1] + 1 + made.model.right_context)
    matrix = data.features[utterance][np.clip(window, 0, LENGTHS[utterance] - 1)]
    x = torch.from_numpy(matrix).double()[None]
    keep = None
    if dropped:
        factors = keep_factors(made.model.dropouts, DROPPED.seed, DROPPED.masks, torch.tensor([utterance]))
        keep = {place: factor.double() for place, factor in factors.items()}

    def outputs(vector: torch.Tensor) -> dict[str, np.ndarray]:
        with torch.no_grad():
            named = {**layout.views(vector), **buffers}
            found = functional_call(model64, named, (x, None, keep, tuple(states)))
        return {n: y[0].numpy() for n, y in found.items()}

    theta, step = made.theta.double(), 1e-5
    columns = []
    for i in range(layout.size):
        up, down = theta.clone(), theta.clone()
        up[i] += step
        down[i] -= step
        high, low = outputs(up), outputs(down)
        columns.append({n: (high[n] - low[n]) / (2 * step) for n in high})
    return outputs(theta), {n: np.stack([c[n] for c in columns], axis=-1) for n in columns[0]}


@functools.cache
def dense(name: str, matrix: str, dropped: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient, JᵀMJ and the JₕᵀJₕ of the hidden states, from their definitions."""
    made = case(name)
    data, s, n = made.objective.evaluator.sets["train"], made.model.subsampling, made.objective.layout.size
    gradient, total, structural = np.zeros(n), np.zeros((n, n)), np.zeros((n, n))
    for utterance, length in enumerate(LENGTHS):
        outputs, jacobians = dense_jacobians(name, utterance, dropped)
        y, jacobian = outputs["output"], jacobians["output"]
        target = data.targets[data.starts[utterance] : data.starts[utterance] + length][::s]
        p = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
        delta = p - np.eye(P)[target]
        gradient += np.einsum("tpn,tp->n", jacobian, delta)
        if matrix == "gauss_newton":
            for j, p_t in zip(jacobian, p, strict=True):
                total += j.T @ (np.diag(p_t) - np.outer(p_t, p_t)) @ j
        elif matrix == "frame_fisher":
            total += sum(np.outer(g, g) for g in np.einsum("tpn,tp->tn", jacobian, delta))
        else:
            score = np.einsum("tpn,tp->n", jacobian, delta)
            total += np.outer(score, score)
        for state in MODELS[name][1]:
            structural += np.einsum("tun,tum->nm", jacobians[state], jacobians[state])
    return gradient, total, structural


def distance(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))


def vectors(size: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("sample", [WHOLE, CUT], ids=["padded", "cut"])
@pytest.mark.parametrize("matrix", CrossEntropy.matrices)
@pytest.mark.parametrize("name", MODELS)
def test_products_and_gradient_equal_the_dense_ones(name: str, matrix: str, sample: Sample) -> None:
    made = case(name)
    gradient, full, _ = dense(name, matrix)
    assert distance(made.objective.gradient(made.theta, sample).vector, gradient) <= 1e-5
    with made.objective.linearize(made.theta, sample) as lin:
        products = [lin.product(v, Matrix(matrix)) for v in vectors(len(made.theta))]
    for v, product in zip(vectors(len(made.theta)), products, strict=True):
        assert distance(product, full @ v.double().numpy()) <= 1e-5
    u, v, w = vectors(len(made.theta))
    assert float(u @ products[1]) == pytest.approx(float(v @ products[0]), rel=1e-4, abs=1e-4)
    for x, product in zip((u, v, w), products, strict=True):
        assert float(x @ product) >= -1e-6 * float(x.norm() * product.norm())


@pytest.mark.parametrize("name", MODELS)
def test_j_and_its_transpose_equal_the_difference_quotients(name: str) -> None:
    made, utterance = case(name), 2
    evaluator, layout = made.objective.evaluator, made.objective.layout
    _, jacobians = dense_jacobians(name, utterance, dropped=False)
    alone = TrainingSet(
        ["u"],
        [evaluator.sets["train"].features[utterance]],
        [np.zeros(LENGTHS[utterance], np.int32)],
        made.model.frame_model,
    )
    batch = alone.batch(
        WHOLE.plan(alone.lengths)[0], made.model.left_context, made.model.right_context, made.model.subsampling
    )
    inputs = evaluator._inputs(WHOLE, batch)
    linearised = evaluator._linearizer.at(layout.views(made.theta)).linearize(inputs)
    generator = torch.Generator().manual_seed(1)
    u = {
        n: torch.where(batch.mask_BT[..., None], torch.randn(y.shape, generator=generator), 0.0)
        for n, y in linearised.outputs.items()
        if n == "output"
    }
    v = torch.randn(layout.size, generator=generator)
    jv = linearised.forward(layout.views(v))["output"]
    ju = layout.flatten(linearised.transposed(u))
    assert float((u["output"] * jv).sum()) == pytest.approx(float(ju @ v), rel=1e-4)
    assert distance(jv[batch.mask_BT], jacobians["output"] @ v.double().numpy()) <= 1e-5
    expected = np.einsum("tpn,tp->n", jacobians["output"], u["output"][batch.mask_BT].double().numpy())
    assert distance(ju, expected) <= 1e-5


@pytest.mark.parametrize("name", [name for name, (_, states) in MODELS.items() if states])
def test_structural_damping_adds_the_states_own_matrix(name: str) -> None:
    made = case(name)
    _, full, structural = dense(name, "gauss_newton")
    with made.objective.linearize(made.theta, WHOLE) as lin:
        for v in vectors(len(made.theta)):
            expected = (full + 0.3 * structural) @ v.double().numpy()
            assert distance(lin.product(v, Matrix(structural=0.3)), expected) <= 1e-5


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_block_products_are_the_diagonal_blocks(name: str, count: int) -> None:
    made = case(name)
    layout, (_, full, structural) = made.objective.layout, dense(name, "gauss_newton")
    weight = 0.3 if MODELS[name][1] else 0.0
    groups = layout.partition(count)
    assert sorted(b for group in groups for b in group) == sorted(layout.blocks)
    group_of = np.concatenate([[next(i for i, g in enumerate(groups) if s.block in g)] * s.size for s in layout.slots])
    blocks = (full + weight * structural) * (group_of[:, None] == group_of[None, :])
    with made.objective.linearize(made.theta, CUT) as lin:
        for v in vectors(len(made.theta)):
            found = lin.product(v, Matrix(structural=weight, groups=groups))
            assert distance(found, blocks @ v.double().numpy()) <= 1e-5
            first = lin.product(v, Matrix(structural=weight, groups=groups[:1]))
            assert torch.equal(first, torch.where(torch.from_numpy(group_of == 0), found, 0.0))


@pytest.mark.parametrize("name", MODELS)
def test_beyond_the_byte_budget_the_bits_are_the_same(name: str) -> None:
    kept, recomputed = case(name), case(name, 0.0)
    if recomputed.objective.evaluator.buffers.size:
        recomputed.objective.evaluator.set_buffers(
            kept.objective.evaluator.buffers.flatten(dict(kept.model.named_buffers()))
        )
    for precision in Precision:
        with (
            kept.objective.linearize(kept.theta, CUT, precision) as expected,
            recomputed.objective.linearize(kept.theta, CUT, precision) as found,
        ):
            assert kept.objective.account.recomputed == 0
            assert recomputed.objective.account.recomputed == 3
            for v in vectors(len(kept.theta)):
                assert torch.equal(expected.product(v), found.product(v))


@pytest.mark.parametrize("name", [n for n, (options, _) in MODELS.items() if getattr(options, "dropout", 0.0)])
def test_dropout_is_the_same_in_gradient_and_products(name: str) -> None:
    made = case(name)
    gradient, full, _ = dense(name, "gauss_newton", dropped=True)
    assert distance(made.objective.gradient(made.theta, DROPPED).vector, gradient) <= 1e-5
    with made.objective.linearize(made.theta, DROPPED) as lin:
        for v in vectors(len(made.theta)):
            assert distance(lin.product(v), full @ v.double().numpy()) <= 1e-5
    assert made.objective.loss(made.theta, DROPPED).value != made.objective.loss(made.theta, WHOLE).value


@pytest.mark.parametrize("precision", [Precision.MEDIUM, Precision.BF16])
@pytest.mark.parametrize("name", MODELS)
def test_reduced_precision_is_near_and_symmetric(name: str, precision: Precision) -> None:
    """Networks as narrow as these lose more to rounding than real ones: a norm over 3 units may divide by little."""
    made = case(name)
    _, full, _ = dense(name, "gauss_newton")
    u, v, _ = vectors(len(made.theta))
    with made.objective.linearize(made.theta, WHOLE, precision) as lin:
        gu, gv = lin.product(u), lin.product(v)
    assert distance(gu, full @ u.double().numpy()) <= 0.1
    assert gu.dtype is torch.float32
    assert abs(float(u @ gv) - float(v @ gu)) <= 0.02 * float(gu.norm() * v.norm())


def test_the_per_frame_matrix_is_that_of_any_posteriors() -> None:
    generator = torch.Generator().manual_seed(0)
    gamma = torch.rand(2, 3, P, generator=generator)
    gamma /= gamma.sum(-1, keepdim=True)
    gamma[1, 2] = 0.0  # a padded frame
    v = torch.randn(2, 3, P, generator=generator)
    found = softmax_covariance(gamma)(v)
    for b in range(2):
        for t in range(3):
            g = gamma[b, t]
            assert torch.allclose(found[b, t], (torch.diag(g) - torch.outer(g, g)) @ v[b, t], atol=1e-7)


@pytest.mark.parametrize("name", ["dnn tanh", "dnn relu", "dnn maxout", "tdnn", "tdnnf"])
def test_products_equal_curvlinops(name: str) -> None:
    """Where curvlinops can run: it knows no padding, and no recurrence that brings its own derivative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import GGNLinearOperator
    made = case(name)
    evaluator, model = made.objective.evaluator, made.model
    data = evaluator.sets["train"]
    alone = TrainingSet(["u"], [data.features[2][:8]], [data.targets[-10:-2]], model.frame_model)
    batch = alone.batch(WHOLE.plan(alone.lengths)[0], model.left_context, model.right_context, model.subsampling)
    with torch.no_grad():
        for parameter, value in made.objective.layout.views(made.theta).items():
            model.get_parameter(parameter).copy_(value)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)["output"].flatten(0, 1)

    logits, v = Logits(), vectors(len(made.theta))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = GGNLinearOperator(
            logits,
            torch.nn.CrossEntropyLoss(reduction="sum"),
            list(logits.parameters()),
            [(batch.x_BWD, batch.target_BT.flatten())],
            check_deterministic=False,
        )
        theirs = operator @ v
    objective = LocalObjective(
        Evaluator(model, CrossEntropy(), {"train": alone, "heldout": alone}, torch.device("cpu"))
    )
    with objective.linearize(made.theta, WHOLE) as lin:
        assert distance(lin.product(v), theirs.double().numpy()) <= 1e-5
