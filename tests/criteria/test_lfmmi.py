"""Lattice-free MMI against sums over all paths written out: value, gradient and every M.

Shapes: B rows, T output frames, P pdfs; the two outputs are float64 here.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from asr_hf.criteria.criterion import Outputs
from asr_hf.criteria.denominator import Denominator
from asr_hf.criteria.lfmmi import Lfmmi, LfmmiOptions
from asr_hf.data.minibatch import Batch
from asr_hf.errors import OptionError
from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.hmm.numerator import Composer
from asr_hf.hmm.path_labels import numerator_of_path
from asr_hf.hmm.pieces import PieceNumerators
from asr_hf.hmm.supervision import LabelGraph

PDFS, LENGTHS = 4, (4, 3)  # of rows: the second one is padded
ENTRY, LOOP = np.array([0, 2, 0, 2, 0]), np.array([1, 3, 1, 3, 3])  # units A, B, A, B, C


@pytest.fixture
def graph(random_graph: Callable[..., ChainGraph]) -> ChainGraph:
    stay = np.random.default_rng(1).random(len(ENTRY)) + 0.1
    return replace(random_graph(4, pdfs=PDFS), entry_S=ENTRY, loop_S=LOOP, stay_S=stay)


def labels(places: list[int], frames: int) -> LabelGraph:
    """A chain of the units of these states, without windows."""
    units, place = np.stack([ENTRY, LOOP], axis=1)[places], np.arange(len(places))
    edges = np.stack([place[:-1], place[1:]], axis=1)
    return LabelGraph(frames, units, np.tile([0, frames], (len(places), 1)), place == 0, place == place[-1], edges)


def criterion(graph: ChainGraph, **options: float) -> Lfmmi:
    made = LfmmiOptions(**options)  # type: ignore[arg-type]
    return Lfmmi(made, Denominator(graph, PDFS, made.leak))


def batch(graph: ChainGraph, transcripts: tuple[list[int], ...] = ([0, 1, 4], [1, 0])) -> Batch:
    pieces = np.array([[u, 0, frames] for u, frames in enumerate(LENGTHS)])
    supply = PieceNumerators(Composer(graph), [labels(t, n) for t, n in zip(transcripts, LENGTHS, strict=True)])
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    nothing = torch.zeros(2, max(LENGTHS), dtype=torch.int64)
    return Batch(torch.zeros(2, 4, 1), nothing, mask, torch.tensor([7, 7]), supply.of(pieces, 1))


def outputs(seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, max(LENGTHS), PDFS, dtype=torch.float64, generator=generator)
        for name in ("output", "cross_entropy")
    }


def dense(operator: Callable[[Outputs], Outputs], name: str) -> np.ndarray:
    """The matrix (B·T·P, B·T·P) of an operator on one output."""
    columns = []
    for basis in torch.eye(2 * max(LENGTHS) * PDFS, dtype=torch.float64):
        tangent = {key: torch.zeros(2, max(LENGTHS), PDFS, dtype=torch.float64) for key in outputs()}
        tangent[name] = basis.view(2, max(LENGTHS), PDFS)
        columns.append(operator(tangent)[name].flatten())
    return torch.stack(columns, dim=1).numpy()


def of_rows(blocks: list[np.ndarray]) -> np.ndarray:
    """Matrices (T_b·P, T_b·P) of the rows, in their places of the whole."""
    size = max(LENGTHS) * PDFS
    whole = np.zeros((2 * size, 2 * size))
    for row, block in enumerate(blocks):
        whole[row * size : row * size + len(block), row * size : row * size + len(block)] = block
    return whole


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_value_gradient_and_matrices(graph: ChainGraph, enumerate_paths: Callable, leak: float) -> None:
    lfmmi, at, data = criterion(graph, leak=leak, output_l2=0.3, branch=0.5), outputs(), batch(graph)
    found = lfmmi.linearize(at, data)
    y_BTP = at["output"].numpy()
    den, num = (
        [enumerate_paths(paths, y_BTP[b, :n], used) for b, (n, paths) in enumerate(zip(LENGTHS, which, strict=True))]
        for which, used in (([graph, graph], leak), (data.supervision, 0.0))
    )
    p_BTP = torch.softmax(at["cross_entropy"], -1).numpy()
    for b, frames in enumerate(LENGTHS):
        y, p = y_BTP[b, :frames].ravel(), p_BTP[b, :frames].ravel()
        mmi = den[b].log_total - num[b].log_total
        assert mmi > 0
        value = mmi + 0.15 * y @ y - 0.5 * num[b].posteriors @ np.log(p)
        assert found.value_B[b].item() == pytest.approx(value, abs=1e-9)
        delta = den[b].posteriors - num[b].posteriors
        gradient = {name: x[b].flatten().numpy() for name, x in found.gradient.items()}
        padded = np.zeros((max(LENGTHS) - frames) * PDFS)
        np.testing.assert_allclose(gradient["output"], np.append(delta + 0.3 * y, padded), atol=1e-9)
        np.testing.assert_allclose(
            gradient["cross_entropy"], np.append(0.5 * (p - num[b].posteriors), padded), atol=1e-9
        )
    torch.testing.assert_close(lfmmi.values(at, data), found.value_B, rtol=0, atol=1e-10)
    assert found.frames_B.tolist() == list(LENGTHS)

    eyes = [0.3 * np.eye(n * PDFS) for n in LENGTHS]
    exact = [d.covariance for d in den]
    frames_only = [np.kron(np.eye(n), np.ones((PDFS, PDFS))) for n in LENGTHS]
    matrices = {
        "gauss_newton": [c + e for c, e in zip(exact, eyes, strict=True)],
        "frame_gauss_newton": [c * f + e for c, f, e in zip(exact, frames_only, eyes, strict=True)],
    }
    for name, blocks in matrices.items():
        np.testing.assert_allclose(dense(found.operators[name], "output"), of_rows(blocks), atol=1e-9)
    score = np.concatenate([np.pad(d.posteriors - n.posteriors, (0, (max(LENGTHS) - f) * PDFS))
                            for d, n, f in zip(den, num, LENGTHS, strict=True)])  # fmt: skip
    every = of_rows(eyes)
    np.testing.assert_allclose(
        dense(found.operators["utterance_fisher"], "output"), np.outer(score, score) + every, atol=1e-9
    )  # both rows are of one utterance
    of_frame = np.kron(np.eye(2 * max(LENGTHS)), np.ones((PDFS, PDFS)))
    np.testing.assert_allclose(
        dense(found.operators["frame_fisher"], "output"), np.outer(score, score) * of_frame + every, atol=1e-9
    )
    softmax = [np.diag(q := p_BTP[b, :n].ravel()) - np.outer(q, q) * frames_only[b] for b, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(
        dense(found.operators["gauss_newton"], "cross_entropy"), of_rows([0.5 * s for s in softmax]), atol=1e-9
    )


def test_the_gradient_is_that_of_the_value(graph: ChainGraph) -> None:
    lfmmi, at, data = criterion(graph, leak=0.1, output_l2=0.2), outputs(1), batch(graph)
    gradient = lfmmi.linearize(at, data).gradient["output"].flatten()
    for place in range(0, len(gradient), 3):
        step = torch.zeros_like(gradient)
        step[place] = 1e-5
        up, down = (
            lfmmi.values({**at, "output": at["output"] + sign * step.view_as(at["output"])}, data).sum()
            for sign in (1, -1)
        )
        assert gradient[place].item() == pytest.approx((up - down).item() / 2e-5, abs=1e-8)


def test_sampled_matrices_expect_their_covariances(graph: ChainGraph, enumerate_paths: Callable) -> None:
    """Path samples expect H_den; label samples H_den − E[H_num], of the graph without leak."""
    lfmmi, at, data = criterion(graph, leak=0.2, draws=4000), outputs(2), batch(graph)
    found, y_BTP = lfmmi.linearize(at, data), at["output"].numpy()
    leaky = [enumerate_paths(graph, y_BTP[b, :n], 0.2) for b, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(
        dense(found.operators["path_fisher"], "output"), of_rows([d.covariance for d in leaky]), atol=0.03
    )
    expected = []
    for b, frames in enumerate(LENGTHS):
        plain = enumerate_paths(graph, y_BTP[b, :frames])
        by_labels: dict[tuple, list[int]] = defaultdict(list)
        for n, path in enumerate(plain.sequences):
            units = [(ENTRY[state], LOOP[state]) for state, enters, _ in path if enters]
            first = path[0]
            begun = () if first[1] else ((ENTRY[first[0]], LOOP[first[0]]),)
            by_labels[begun, tuple(units)].append(n)
        share = np.array([plain.share_N[members].sum() for members in by_labels.values()])
        means = np.array(
            [plain.share_N[m] @ plain.indicators_NX[m] / plain.share_N[m].sum() for m in by_labels.values()]
        )
        about = means - plain.posteriors
        expected.append((about.T * share) @ about)
    np.testing.assert_allclose(dense(found.operators["label_fisher"], "output"), of_rows(expected), atol=0.03)


def test_the_numerator_of_a_paths_labels_holds_its_paths(graph: ChainGraph, enumerate_paths: Callable) -> None:
    """Every path of the denominator has the weight of its labels' numerator, and no other path is in it."""
    y_TP, composer = np.random.default_rng(0).normal(size=(3, PDFS)), Composer(graph)
    plain = enumerate_paths(graph, y_TP)
    log_share = np.log(plain.share_N) + plain.log_total

    def key(path: tuple) -> tuple:
        return path[0][1], tuple((ENTRY[s], LOOP[s]) for s, enters, _ in path[:1] + tuple(p for p in path[1:] if p[1]))

    for path in plain.sequences[:: max(1, len(plain.sequences) // 25)]:
        state_T, enters_T = (np.array([step[i] for step in path]) for i in (0, 1))
        numerator = numerator_of_path(composer, state_T, enters_T)
        same = [n for n, other in enumerate(plain.sequences) if key(other) == key(path)]
        alone = enumerate_paths(numerator, y_TP)
        assert len(alone.sequences) == len(same)
        assert alone.log_total == pytest.approx(np.logaddexp.reduce(log_share[same]), abs=1e-9)


def test_draws_are_the_same_again(graph: ChainGraph) -> None:
    lfmmi, at, data = criterion(graph, draws=2), outputs(), batch(graph)
    for name in ("path_fisher", "label_fisher"):
        first, second = (lfmmi.linearize(at, data).operators[name](outputs(5))["output"] for _ in range(2))
        assert torch.equal(first, second)


def test_bad_rows(graph: ChainGraph) -> None:
    """Outputs that are no numbers, and transcripts that do not fit, show in the value and nowhere else."""
    lfmmi, at, data = criterion(graph), outputs(), batch(graph, ([0, 1, 4], [1, 0, 1, 0]))
    at["output"][0, 1, 2] = torch.nan
    found = lfmmi.linearize(at, data)
    assert found.value_B[0].isnan()
    assert found.value_B[1] == torch.inf  # four phones, three frames
    assert torch.equal(lfmmi.values(at, data).isfinite(), torch.tensor([False, False]))
    tangent = outputs(3)
    for name in lfmmi.matrices:
        assert found.operators[name](tangent)["output"].isfinite().all()
    left_out = replace(data, mask_BT=torch.zeros_like(data.mask_BT))
    assert lfmmi.values(at, left_out).tolist() == [0.0, 0.0]
    assert not lfmmi.linearize(at, left_out).gradient["output"].any()


@pytest.mark.parametrize("options", [{"leak": 1.0}, {"output_l2": -1.0}, {"chunk": -1}, {"branch": -0.1}, {"draws": 0}])
def test_impossible_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"criterion.{next(iter(options))}"):
        LfmmiOptions(**options)  # type: ignore[arg-type]
