"""The sum over all paths of small graphs against all paths written out."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from asr_hf.criteria.denominator import Denominator, DenominatorPaths
from asr_hf.hmm.chain_graph import ChainGraph

PDFS, FRAMES = 5, [4, 2, 0, 4, 3]  # pdf 4 is in no graph


def outputs(seed: int, dtype: torch.dtype = torch.float64, size: float = 2.0) -> torch.Tensor:
    y_BTP = size * torch.randn(len(FRAMES), 5, PDFS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y_BTP[:, :, 4] += 3 * size
    return y_BTP.to(dtype)


def paths_of(graph: ChainGraph, leak: float, y_BTP: torch.Tensor) -> DenominatorPaths:
    return Denominator(graph, PDFS, leak).paths(y_BTP, torch.tensor(FRAMES))


def dense(paths: DenominatorPaths, row: int, frames: int) -> np.ndarray:
    """H of a row from products with unit vectors."""
    columns = []
    for x in range(frames * PDFS):
        v_BTP = torch.zeros_like(paths.posteriors_BTP)
        v_BTP[row, x // PDFS, x % PDFS] = 1.0
        columns.append(paths.covariance(v_BTP)[row, :frames].flatten().double().numpy())
    return np.stack(columns, axis=1).reshape(frames * PDFS, -1)


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_against_all_paths(
    random_graph: Callable, enumerate_paths: Callable, leak: float, dtype: torch.dtype, close: float
) -> None:
    for seed in range(3):
        graph, y_BTP = random_graph(seed), outputs(seed, dtype)
        paths = paths_of(graph, leak, y_BTP)
        assert len(paths.in_logs) == 0
        totals_B = Denominator(graph, PDFS, leak).log_totals(y_BTP, torch.tensor(FRAMES))
        assert torch.equal(totals_B, paths.log_total_B)
        v_BTP = torch.randn(y_BTP.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        product_BTP = paths.covariance(v_BTP)
        for row, frames in enumerate(FRAMES):
            oracle = enumerate_paths(graph, y_BTP[row, :frames].double().numpy(), leak)
            assert paths.log_total_B[row].item() == pytest.approx(oracle.log_total, abs=10 * close)
            gamma, product = (x[row, :frames].flatten().double().numpy() for x in (paths.posteriors_BTP, product_BTP))
            np.testing.assert_allclose(gamma, oracle.posteriors, atol=close)
            expected = oracle.covariance @ v_BTP[row, :frames].flatten().double().numpy()
            np.testing.assert_allclose(product, expected, atol=10 * close)
            assert not paths.posteriors_BTP[row, frames:].any()
            assert not product_BTP[row, frames:].any()


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_h_is_the_covariance(random_graph: Callable, enumerate_paths: Callable, leak: float) -> None:
    graph, y_BTP, frames = random_graph(5), outputs(5), FRAMES[0]
    paths = paths_of(graph, leak, y_BTP)
    h = dense(paths, 0, frames)
    np.testing.assert_allclose(h, enumerate_paths(graph, y_BTP[0, :frames].numpy(), leak).covariance, atol=1e-12)
    np.testing.assert_allclose(h, h.T, atol=1e-14)
    assert np.linalg.eigvalsh(h).min() > -1e-13
    np.testing.assert_allclose(h @ np.kron(np.eye(frames), np.ones((PDFS, 1))), 0, atol=1e-13)
    gamma = paths.posteriors_BTP[0, 1].numpy()
    np.testing.assert_allclose(h[PDFS : 2 * PDFS, PDFS : 2 * PDFS], np.diag(gamma) - np.outer(gamma, gamma), atol=1e-13)


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_finite_differences(random_graph: Callable, leak: float) -> None:
    graph, y_BTP, step = random_graph(6), outputs(6), 1e-5
    v_BTP = outputs(7)
    above, below = (paths_of(graph, leak, y_BTP + sign * step * v_BTP) for sign in (1, -1))
    paths = paths_of(graph, leak, y_BTP)
    slope_B = (above.log_total_B - below.log_total_B) / (2 * step)
    torch.testing.assert_close((paths.posteriors_BTP * v_BTP).sum(dim=(1, 2)), slope_B, rtol=1e-7, atol=1e-8)
    change_BTP = (above.posteriors_BTP - below.posteriors_BTP) / (2 * step)
    torch.testing.assert_close(paths.covariance(v_BTP), change_BTP, rtol=1e-6, atol=1e-8)


def test_row_alone(random_graph: Callable) -> None:
    graph, y_BTP, v_BTP = random_graph(8), outputs(8), outputs(9)
    paths = paths_of(graph, 0.1, y_BTP)
    product_BTP = paths.covariance(v_BTP)
    for row, frames in enumerate(FRAMES):
        one = slice(row, row + 1), slice(0, frames)
        alone = Denominator(graph, PDFS, 0.1).paths(y_BTP[one], torch.tensor([frames]))
        torch.testing.assert_close(alone.log_total_B, paths.log_total_B[one[0]], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(alone.posteriors_BTP, paths.posteriors_BTP[one], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(alone.covariance(v_BTP[one]), product_BTP[one], rtol=1e-13, atol=1e-14)


def test_float32_over_300_frames(random_graph: Callable) -> None:
    graph, frames_B = random_graph(10, states=30, pdfs=PDFS), torch.tensor([300, 217])
    denominator = Denominator(graph, PDFS, 0.1)
    y_BTP, v_BTP = torch.randn(2, 2, 300, PDFS, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    exact, paths = (denominator.paths(y.contiguous(), frames_B) for y in (3 * y_BTP, (3 * y_BTP).float()))
    torch.testing.assert_close(paths.log_total_B, exact.log_total_B, rtol=1e-7, atol=1e-4)
    torch.testing.assert_close(paths.posteriors_BTP.double(), exact.posteriors_BTP, rtol=0, atol=1e-5)
    torch.testing.assert_close(paths.covariance(v_BTP.float()).double(), exact.covariance(v_BTP), rtol=0, atol=3e-5)


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_up_to_200(random_graph: Callable, enumerate_paths: Callable, leak: float, dtype: torch.dtype) -> None:
    for seed in range(4):
        graph = random_graph(seed)
        y_BTP = (outputs(seed).sign() * outputs(seed, size=100.0).abs()).clamp(-200, 200).to(dtype)
        paths = paths_of(graph, leak, y_BTP)
        totals_B = Denominator(graph, PDFS, leak).log_totals(y_BTP, torch.tensor(FRAMES))
        v_BTP = outputs(seed + 1, dtype, size=1.0)
        product_BTP = paths.covariance(v_BTP)
        for row, frames in enumerate(FRAMES):
            oracle = enumerate_paths(graph, y_BTP[row, :frames].double().numpy(), leak)
            for total in (paths.log_total_B[row].item(), totals_B[row].item()):
                assert total == pytest.approx(oracle.log_total, rel=1e-7, abs=1e-5)
            gamma, product = (x[row, :frames].flatten().double().numpy() for x in (paths.posteriors_BTP, product_BTP))
            np.testing.assert_allclose(gamma, oracle.posteriors, atol=2e-5)
            expected = oracle.covariance @ v_BTP[row, :frames].flatten().double().numpy()
            np.testing.assert_allclose(product, expected, atol=1e-4)


def two_chains() -> ChainGraph:
    """Chain 0→1 reads pdfs 0, 0, 1 and so on; chain 2→3 reads 2, 2, 3: neither reaches the other."""
    entry = np.array([0, 1, 2, 3])
    half = np.full(4, 0.5)
    return ChainGraph(entry, entry, half, np.full(4, 0.25), np.array([0, 2]), np.array([1, 3]), np.array([0.5, 0.5]))


def test_best_path_begins_below_the_smallest_number(enumerate_paths: Callable) -> None:
    """float32 takes the winner's first frames, e^-150 of the others, for 0; the log domain is asked."""
    y_BTP = torch.zeros(2, 3, 4)
    y_BTP[0, 0], y_BTP[0, 2] = torch.tensor([-150.0, -150.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, -200.0, -190.0])
    denominator, frames_B = Denominator(two_chains(), 4, 0.0), torch.tensor([3, 3])
    paths = denominator.paths(y_BTP, frames_B)
    assert paths.in_logs.tolist() == [0]
    v_BTP = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    product_BTP = paths.covariance(v_BTP)
    for row in range(2):
        oracle = enumerate_paths(two_chains(), y_BTP[row].double().numpy())
        assert paths.log_total_B[row].item() == pytest.approx(oracle.log_total, abs=1e-5)
        assert denominator.log_totals(y_BTP, frames_B)[row].item() == pytest.approx(oracle.log_total, abs=1e-5)
        np.testing.assert_allclose(paths.posteriors_BTP[row].flatten().numpy(), oracle.posteriors, atol=1e-6)
        expected = oracle.covariance @ v_BTP[row].double().flatten().numpy()
        np.testing.assert_allclose(product_BTP[row].flatten().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_bad_rows(random_graph: Callable, bad: float, leak: float) -> None:
    graph, y_BTP, v_BTP = random_graph(1), outputs(1, torch.float32), outputs(2, torch.float32)
    clean = paths_of(graph, leak, y_BTP)
    y_BTP[3, 1, 2] = bad
    y_BTP[1, 2:], v_BTP[1, 2:] = bad, bad  # padding may hold anything
    paths = paths_of(graph, leak, y_BTP)
    totals_B = Denominator(graph, PDFS, leak).log_totals(y_BTP, torch.tensor(FRAMES))
    assert torch.isnan(paths.log_total_B).tolist() == torch.isnan(totals_B).tolist() == [False] * 3 + [True, False]
    assert not paths.posteriors_BTP[3].any()
    product_BTP, others = paths.covariance(v_BTP), [0, 1, 2, 4]
    assert not product_BTP[3].any()
    assert torch.isfinite(product_BTP).all()
    torch.testing.assert_close(paths.log_total_B[others], clean.log_total_B[others])
    torch.testing.assert_close(paths.posteriors_BTP[others], clean.posteriors_BTP[others])


def test_no_path_goes_on() -> None:
    """Chain 0→1 without loops ends after a frame: rows of two frames have no path, at leak 0."""
    graph = ChainGraph(
        np.array([0, 1]), np.array([0, 1]), np.zeros(2), np.array([1.0, 0.0]), np.array([0]), np.array([1]), np.ones(1)
    )
    denominator, y_BTP = Denominator(graph, 2, 0.0), torch.ones(2, 2, 2)
    paths = denominator.paths(y_BTP, torch.tensor([1, 2]))
    assert paths.log_total_B.tolist() == denominator.log_totals(y_BTP, torch.tensor([1, 2])).tolist()
    assert paths.log_total_B.tolist() == [1.0, -np.inf]
    assert not paths.posteriors_BTP[1].any()
    assert not paths.covariance(torch.randn(2, 2, 2)).any()


def test_no_rows_and_no_frames(random_graph: Callable) -> None:
    denominator = Denominator(random_graph(0), PDFS, 0.1)
    for rows, frames in ((0, 3), (2, 0)):
        y_BTP, none_B = torch.zeros(rows, frames, PDFS), torch.zeros(rows, dtype=torch.int64)
        paths = denominator.paths(y_BTP, none_B)
        torch.testing.assert_close(paths.log_total_B, torch.full((rows,), np.log(1.1), dtype=torch.float64))
        assert paths.covariance(y_BTP).shape == y_BTP.shape
