"""Paths sampled from the denominator against the shares of all paths written out."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from asr_hf.criteria.denominator import Denominator
from asr_hf.criteria.path_samples import sample_paths

PDFS, FRAMES, DRAWS = 3, [2, 3, 3, 0, 3], 20_000


@pytest.mark.parametrize("leak", [0.0, 0.3])
@pytest.mark.parametrize("in_logs", [False, True])
def test_frequencies(random_graph: Callable, enumerate_paths: Callable, leak: float, in_logs: bool) -> None:
    """Pearson's χ² of each row's sequences, those expected fewer than 5 times together; rows 1 and 2 may be in logs."""
    graph = random_graph(3, states=4, pdfs=PDFS)
    y_BTP = torch.randn(5, 4, PDFS, generator=torch.Generator().manual_seed(1))
    y_BTP[4, 1, 0] = torch.nan
    frames_B = torch.tensor(FRAMES)
    paths = Denominator(graph, PDFS, leak).paths(y_BTP, frames_B)
    if in_logs:
        paths.in_logs = torch.tensor([0, 2])
        paths.log_domain = paths.denominator.log_paths(y_BTP[paths.in_logs], frames_B[paths.in_logs])
        for u_Mb in paths.forward.u:
            u_Mb[:, paths.forward.rows.place_B[2]] = torch.nan  # what the linear domain gave is not used
    samples = sample_paths(paths, DRAWS, torch.Generator().manual_seed(0))
    for row in range(3):
        frames = FRAMES[row]
        oracle = enumerate_paths(graph, y_BTP[row, :frames].double().numpy(), leak)
        drawn = (samples.state_BKT, samples.enters_BKT, samples.pdf_BKT)
        steps = zip(*(x[row, :, :frames].tolist() for x in drawn), strict=True)
        count = Counter(tuple(zip(*step, strict=True)) for step in steps)
        assert set(count) <= set(oracle.sequences)
        expected, seen = DRAWS * oracle.share_N, np.array([count[path] for path in oracle.sequences])
        often = expected >= 5
        expected, seen = (np.append(x[often], x[~often].sum()) for x in (expected, seen))
        chi2 = np.sum((seen - expected) ** 2 / np.maximum(expected, 1e-9))
        assert chi2 < len(seen) + 5 * np.sqrt(2 * len(seen))
        assert (samples.state_BKT[row, :, frames:] == -1).all()
    for row in (3, 4):
        assert (samples.pdf_BKT[row] == -1).all()
        assert not samples.enters_BKT[row].any()
