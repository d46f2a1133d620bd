"""Scores of drawn labels: their mean is 0 and their second moment M, estimated from many draws."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from asr_hf.criteria.criterion import Criterion, Outputs
from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.criteria.denominator import Denominator
from asr_hf.criteria.lfmmi import Lfmmi, LfmmiOptions
from asr_hf.data.minibatch import Batch
from asr_hf.hmm.chain_graph import ChainGraph, Numerator

P, FRAMES, COPIES, DRAWS = 4, (5, 3), 400, 10


def batch_of(frames: tuple[int, ...], supervision: object = None) -> Batch:
    """COPIES of rows with these frames, padded."""
    mask_BT = (torch.arange(max(frames)) < torch.tensor(frames)[:, None]).repeat(COPIES, 1)
    rows = torch.arange(len(mask_BT))
    return Batch(torch.empty(0), torch.zeros_like(mask_BT, dtype=torch.int64), mask_BT, rows, supervision)


def moments(criterion: Criterion, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean of δ (rows, X), its second moment and M (rows, X, X), X all outputs of a row, over copies and draws."""
    flat = lambda named: torch.cat([y.flatten(1) for y in named.values()], dim=1)  # noqa: E731
    copied = {name: y.repeat(COPIES, 1, 1) for name, y in outputs.items()}
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([flat(criterion.sampled_score(copied, batch, generator)) for _ in range(DRAWS)])
    drawn = drawn.view(DRAWS * COPIES, len(FRAMES), -1).double()
    operator = criterion.linearize(copied, batch).operators["gauss_newton"]
    columns = []
    for axis in torch.eye(drawn.shape[-1]):
        parts = axis.split([y[0].numel() for y in outputs.values()])
        tangent = {
            n: part.view(y.shape[1:]).expand_as(copied[n]) for (n, y), part in zip(outputs.items(), parts, strict=True)
        }
        columns.append(flat(operator(tangent))[: len(FRAMES)].double())
    return drawn.mean(0), torch.einsum("nrx,nry->rxy", drawn, drawn) / len(drawn), torch.stack(columns, dim=1)


def random_outputs(names: tuple[str, ...]) -> Outputs:
    random = np.random.default_rng(3)
    return {name: torch.from_numpy(random.normal(size=(len(FRAMES), max(FRAMES), P))).float() for name in names}


def check(mean: torch.Tensor, second: torch.Tensor, exact: torch.Tensor) -> None:
    """Standard errors are below 0.02 for elements of at most 1 from 4000 draws."""
    assert float(mean.abs().max()) < 0.06
    assert float((second - exact).abs().max()) < 0.06
    assert float((second - exact).norm() / exact.norm()) < 0.1
    assert not mean[1, FRAMES[1] * P : FRAMES[0] * P].any()  # padding


def test_of_cross_entropy() -> None:
    check(*moments(CrossEntropy(), random_outputs(("output",)), batch_of(FRAMES)))


@pytest.mark.parametrize("options", [LfmmiOptions(leak=0.1), LfmmiOptions(leak=0.0, output_l2=0.4, branch=0.7)])
def test_of_lattice_free_mmi(random_graph: Callable[..., ChainGraph], options: LfmmiOptions) -> None:
    graph = random_graph(1, pdfs=P)
    states = graph.states
    row = [Numerator(graph, np.zeros(states, int), np.full(states, t), np.ones(states, bool)) for t in FRAMES]
    names = ("output", "cross_entropy") if options.branch else ("output",)
    criterion = Lfmmi(options, Denominator(graph, P, options.leak))
    check(*moments(criterion, random_outputs(names), batch_of(FRAMES, row * COPIES)))
