"""Lattice-free MMI on a GPU against the same on the CPU."""

from collections.abc import Callable

import pytest
import torch

from asr_hf.criteria.denominator import Denominator
from asr_hf.criteria.log_paths import Numerators
from asr_hf.criteria.path_samples import sample_paths
from asr_hf.criteria.paths import Paths
from asr_hf.hmm.chain_graph import ChainGraph, Numerator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
PDFS, FRAMES = 9, torch.tensor([40, 17, 0, 33])


@pytest.mark.parametrize("kind", ["linear", "logs"])
def test_the_same_on_both_devices(random_graph: Callable[..., ChainGraph], kind: str) -> None:
    graph = random_graph(3, states=30, pdfs=PDFS)
    y_BTP = torch.randn(4, 40, PDFS, generator=torch.Generator().manual_seed(0)) * 3
    v_BTP = torch.randn(4, 40, PDFS, generator=torch.Generator().manual_seed(1))

    def paths(device: str) -> Paths:
        y = y_BTP.to(device)
        if kind == "linear":
            return Denominator(graph, PDFS, 0.1).paths(y, FRAMES)
        every = torch.arange(30).numpy()
        numerator = Numerator(graph, every * 0, every * 0 + 40, every >= 0)
        return Numerators([numerator] * 4, FRAMES, y.device, 0.1).paths(y)

    cpu, cuda, again = paths("cpu"), paths("cuda"), paths("cuda")
    for name in ("log_total_B", "posteriors_BTP"):
        torch.testing.assert_close(getattr(cuda, name).cpu(), getattr(cpu, name), rtol=1e-5, atol=1e-5)
    product_BTP = cuda.covariance(v_BTP.cuda())
    torch.testing.assert_close(product_BTP.cpu(), cpu.covariance(v_BTP), rtol=1e-4, atol=1e-5)
    assert torch.equal(again.covariance(v_BTP.cuda()), product_BTP)


def test_paths_are_drawn_on_the_gpu(random_graph: Callable[..., ChainGraph]) -> None:
    y_BTP = torch.randn(4, 40, PDFS, device="cuda")
    paths = Denominator(random_graph(3, states=30, pdfs=PDFS), PDFS, 0.1).paths(y_BTP, FRAMES)
    drawn = sample_paths(paths, 2000, torch.Generator("cuda").manual_seed(0))
    shares_TP = torch.nn.functional.one_hot(drawn.pdf_BKT[0], PDFS).double().mean(dim=0)
    torch.testing.assert_close(shares_TP, paths.posteriors_BTP[0].double(), rtol=0, atol=0.06)
