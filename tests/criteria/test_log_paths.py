"""Numerators in the log domain against all their paths written out, windows and final states included."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from asr_hf.criteria.denominator import Denominator
from asr_hf.criteria.log_paths import LogPaths, Numerators
from asr_hf.hmm.chain_graph import ChainGraph, Numerator

PDFS, FRAMES = 4, [3, 4, 0, 4, 2]
CPU = torch.device("cpu")


def numerator(graph: ChainGraph, seed: int, frames: int) -> Numerator:
    random = np.random.default_rng(seed)
    first = random.integers(0, 2, graph.states)
    last = np.where(random.random(graph.states) < 0.15, -1, frames - random.integers(1, 3, graph.states))
    final = random.random(graph.states) < 0.6
    first[1], last[1], final[1] = 0, frames, True  # staying in state 1 is always a path
    return Numerator(graph, first, last, final)


@pytest.fixture
def rows(random_graph: Callable) -> list[Numerator]:
    """A row's graph each, of different sizes, with windows; the last row has no path."""
    made = [numerator(random_graph(20 + row, states=4 + row % 3), row, FRAMES[row]) for row in range(len(FRAMES))]
    made[-1] = Numerator(made[-1].graph, made[-1].first_S, made[-1].last_S, np.zeros_like(made[-1].final_S))
    return made


def draw(seed: int, size: float = 2.0) -> torch.Tensor:
    return size * torch.randn(len(FRAMES), 5, PDFS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(paths: LogPaths, rows: list[Numerator], y_BTP: torch.Tensor, enumerate_paths: Callable, leak: float) -> None:
    v_BTP = draw(99)
    product_BTP = paths.covariance(v_BTP.to(y_BTP.dtype))
    close = 1e-12 if y_BTP.dtype == torch.float64 else 1e-5
    for row, frames in enumerate(FRAMES):
        oracle = enumerate_paths(rows[row], y_BTP[row, :frames].double().numpy(), leak)
        assert paths.log_total_B[row].item() == pytest.approx(oracle.log_total, abs=1e-9)
        gamma, product = (x[row, :frames].flatten().double().numpy() for x in (paths.posteriors_BTP, product_BTP))
        if np.isfinite(oracle.log_total):
            np.testing.assert_allclose(gamma, oracle.posteriors, atol=close)
            expected = oracle.covariance @ v_BTP[row, :frames].flatten().numpy()
            np.testing.assert_allclose(product, expected, atol=close)
        else:
            assert not gamma.any()
            assert not product.any()
        assert not paths.posteriors_BTP[row, frames:].any()
        assert not product_BTP[row, frames:].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [2.0, 100.0])
def test_windows_and_final_states(
    rows: list[Numerator], enumerate_paths: Callable, dtype: torch.dtype, size: float
) -> None:
    y_BTP = draw(1, size).to(dtype)
    graphs = Numerators(rows, torch.tensor(FRAMES), CPU)
    paths = graphs.paths(y_BTP)
    assert torch.isfinite(paths.log_total_B[[0, 1, 3]]).all()
    assert paths.log_total_B[4] == -torch.inf
    assert torch.equal(graphs.log_totals(y_BTP), paths.log_total_B)
    check(paths, rows, y_BTP, enumerate_paths, leak=0.0)


def test_leak(random_graph: Callable, enumerate_paths: Callable) -> None:
    rows = []
    for row, frames in enumerate(FRAMES):
        graph = random_graph(30 + row)
        always = np.zeros(graph.states, int), np.full(graph.states, frames), np.ones(graph.states, bool)
        rows.append(Numerator(graph, *always))
    y_BTP = draw(2)
    check(Numerators(rows, torch.tensor(FRAMES), CPU, 0.1).paths(y_BTP), rows, y_BTP, enumerate_paths, leak=0.1)


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_equals_the_linear_domain(random_graph: Callable, leak: float) -> None:
    denominator, frames_B = Denominator(random_graph(40, states=20), PDFS, leak), torch.tensor(FRAMES)
    y_BTP, v_BTP = draw(3), draw(4)
    linear, logs = denominator.paths(y_BTP, frames_B), denominator.log_paths(y_BTP, frames_B)
    torch.testing.assert_close(logs.log_total_B, linear.log_total_B)
    torch.testing.assert_close(logs.posteriors_BTP, linear.posteriors_BTP)
    torch.testing.assert_close(logs.covariance(v_BTP), linear.covariance(v_BTP))


def test_part_of_the_denominator_is_no_larger(random_graph: Callable) -> None:
    graph, y_BTP, frames_B = random_graph(41), draw(5), torch.tensor(FRAMES)
    part = [numerator(graph, row, frames) for row, frames in enumerate(FRAMES)]
    totals_B = Numerators(part, frames_B, CPU).log_totals(y_BTP)
    assert (totals_B < Denominator(graph, PDFS, 0.0).log_totals(y_BTP, frames_B)).all()


def test_bad_rows(rows: list[Numerator]) -> None:
    y_BTP, v_BTP = draw(6), draw(7)
    graphs = Numerators(rows, torch.tensor(FRAMES), CPU)
    clean = graphs.paths(y_BTP)
    y_BTP[1, 2, 0] = torch.nan
    y_BTP[0, 3:], v_BTP[0, 3:] = torch.nan, torch.nan  # padding may hold anything
    paths = graphs.paths(y_BTP)
    assert torch.isnan(paths.log_total_B).tolist() == [False, True, False, False, False]
    product_BTP = paths.covariance(v_BTP)
    assert not paths.posteriors_BTP[1].any()
    assert not product_BTP[1].any()
    assert torch.isfinite(product_BTP).all()
    assert torch.equal(paths.posteriors_BTP[[0, 2, 3, 4]], clean.posteriors_BTP[[0, 2, 3, 4]])


def test_row_without_states(rows: list[Numerator]) -> None:
    none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
    empty = Numerator(
        ChainGraph(none, none, nothing, nothing, none, none, nothing), none, none, np.zeros(0, dtype=bool)
    )
    paths = Numerators([empty, rows[1]], torch.tensor([4, 4]), CPU).paths(draw(8)[:2])
    assert paths.log_total_B[0] == -torch.inf
    assert torch.isfinite(paths.log_total_B[1])
    assert not paths.posteriors_BTP[0].any()
