"""Lattice-free MMI against k2: the same loss, posteriors and gradient, on random graphs and on those of AN4.

There is no leak, initial weights are arcs of a start state, every state of the denominator is final. k2 works with
float32 scores; the bound 1e-5 is absolute (nats for log Z and loss), in our float32 and our float64.
Shape suffixes: B rows, T output frames, P pdfs.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asr_hf.criteria.denominator import Denominator
from asr_hf.criteria.log_paths import Numerators
from asr_hf.criteria.paths import Paths
from asr_hf.data.archive import FeatureArchive
from asr_hf.hmm.chain_folder import Chain
from asr_hf.hmm.chain_graph import ChainGraph, Numerator
from asr_hf.hmm.make_chain import make_chain
from asr_hf.hmm.numerator import NO_PATHS, Composer

CPU = torch.device("cpu")
BOUND = 1e-5
DTYPES = (torch.float32, torch.float64)


def sums(
    graphs: ChainGraph | Sequence[Numerator], y_BTP: torch.Tensor, frames_B: torch.Tensor, dtype: torch.dtype
) -> Paths:
    """Ours, in one precision."""
    if isinstance(graphs, ChainGraph):
        return Denominator(graphs, y_BTP.shape[2], 0.0).paths(y_BTP.to(dtype), frames_B)
    return Numerators(graphs, frames_B, CPU).paths(y_BTP.to(dtype))


def assert_same(ours: Paths, theirs: dict[str, Any]) -> None:
    assert torch.allclose(ours.log_total_B, theirs["log_total_B"], rtol=0, atol=BOUND)  # −inf is −inf
    assert (ours.posteriors_BTP - theirs["posteriors_BTP"]).abs().max() < BOUND


def assert_same_criterion(
    denominator: ChainGraph,
    numerators: Sequence[Numerator],
    y_BTP: torch.Tensor,
    frames_B: torch.Tensor,
    by_k2: Callable,
) -> None:
    """Both sums over paths, and the loss and gradient that they make, in float32 and float64."""
    their_den, their_num = by_k2((denominator, y_BTP, frames_B), (numerators, y_BTP, frames_B))
    loss_B = their_den["log_total_B"] - their_num["log_total_B"]
    gradient_BTP = their_den["posteriors_BTP"] - their_num["posteriors_BTP"]
    for dtype in DTYPES:
        den, num = sums(denominator, y_BTP, frames_B, dtype), sums(numerators, y_BTP, frames_B, dtype)
        assert torch.isfinite(num.log_total_B).all()
        assert_same(den, their_den)
        assert_same(num, their_num)
        assert (den.log_total_B - num.log_total_B - loss_B).abs().max() < BOUND
        assert (den.posteriors_BTP - num.posteriors_BTP - gradient_BTP).abs().max() < BOUND
        print(
            "XX",
            dtype,
            (den.log_total_B - num.log_total_B - loss_B).abs().max(),
            ((den.log_total_B - num.log_total_B - loss_B) / loss_B).abs().max(),
            (den.posteriors_BTP - their_den["posteriors_BTP"]).abs().max(),
            (num.posteriors_BTP - their_num["posteriors_BTP"]).abs().max(),
            (den.posteriors_BTP - num.posteriors_BTP - gradient_BTP).abs().max(),
            (den.log_total_B - their_den["log_total_B"]).abs().max(),
            loss_B.min(),
            loss_B.max(),
            den.log_total_B.max(),
            len(y_BTP),
            y_BTP.shape,
        )


def random_graph(seed: int, states: int = 60, pdfs: int = 12) -> ChainGraph:
    """About 5 transitions from each state; some states cannot stay, some cannot be first."""
    random = np.random.default_rng(seed)
    arcs = random.random((states, states)) < 5 / states
    arcs[np.arange(states), (np.arange(states) + 1) % states] = True
    dst, src = np.nonzero(arcs)
    entry, loop = random.integers(0, pdfs, (2, states))
    stay = np.where(random.random(states) < 0.2, 0.0, random.random(states))
    initial = np.where(random.random(states) < 0.3, 0.0, random.random(states))
    return ChainGraph(entry, loop, stay, initial / initial.sum(), src, dst, random.random(len(src)))


def random_numerator(seed: int, frames: int) -> Numerator:
    """A random graph, most of whose states have windows."""
    random, graph = np.random.default_rng(seed), random_graph(seed)
    first = np.where(random.random(graph.states) < 0.5, 0, random.integers(0, frames // 2 + 1, graph.states))
    last = np.where(random.random(graph.states) < 0.5, frames, first + random.integers(-1, frames, graph.states))
    return Numerator(graph, first, last, random.random(graph.states) < 0.5)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_random_graphs_of_rows_of_all_lengths(scale: float, by_k2: Callable) -> None:
    frames_B = torch.tensor([20, 1, 13, 20, 7])
    y_BTP = scale * torch.randn(5, 20, 12, generator=torch.Generator().manual_seed(1))
    numerators = [random_numerator(seed, frames) for seed, frames in enumerate(frames_B.tolist(), start=3)]
    assert_same_criterion(random_graph(2), numerators, y_BTP, frames_B, by_k2)


def test_a_numerator_without_a_path_has_no_value_and_no_posteriors(by_k2: Callable) -> None:
    frames_B = torch.tensor([6, 9, 9, 4])
    y_BTP = torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(1))
    some = random_numerator(5, 9)
    never = Numerator(some.graph, some.first_S, some.last_S, np.zeros_like(some.final_S))
    late = Numerator(some.graph, some.first_S + 9, some.last_S + 9, some.final_S)
    numerators = [NO_PATHS, some, never, late]
    (theirs,) = by_k2((numerators, y_BTP, frames_B))
    for dtype in DTYPES:
        ours = sums(numerators, y_BTP, frames_B, dtype)
        assert torch.isfinite(ours.log_total_B).tolist() == [False, True, False, False]
        assert_same(ours, theirs)


def test_a_beam_leaves_paths_out(by_k2: Callable) -> None:
    graph, frames_B = random_graph(2), torch.tensor([20, 20])
    y_BTP = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(1))
    whole, pruned = by_k2((graph, y_BTP, frames_B), (graph, y_BTP, frames_B, 3.0))
    assert (pruned["log_total_B"] < whole["log_total_B"] - 1e-3).all()


@pytest.fixture(scope="module")
def an4_feats(k2_python: str, an4_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MFCC of the training utterances of AN4, and the language of its lexicon beside them."""
    from asr_hf.data.extract import extract_features
    from asr_hf.data.features import FeatureOptions
    from asr_hf.data.kaldi_dir import write_data_dir
    from asr_hf.data.table import write_table
    from asr_hf.hmm.lang import LangOptions, make_lang

    recipe_file = Path(__file__).parents[2] / "recipes" / "an4" / "prepare.py"
    spec = importlib.util.spec_from_file_location("recipes_an4_prepare_for_k2", recipe_file)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    root = tmp_path_factory.mktemp("an4-k2")
    write_data_dir(root / "data", recipe.read_part(an4_root, "train"))
    write_table(root / "lexicon.txt", recipe.read_lexicon(an4_root))
    options = FeatureOptions(kind="mfcc", num_mel_bins=23, transform="speaker-cmvn")
    extract_features(root / "data", root / "feats", options, 1)
    make_lang(root / "lang", root / "lexicon.txt", root / "data" / "text", LangOptions())
    return root / "feats"


@pytest.fixture(scope="module")
def an4_chains(an4_feats: Path) -> dict[bool, Chain]:
    """By whether it is a flat start: from a monophone GMM of a few passes, and from the transcripts."""
    from asr_hf.hmm.chain import ChainOptions
    from asr_hf.hmm.flat_start import train_mono
    from asr_hf.hmm.gmm import GmmOptions
    from asr_hf.hmm.tree import TreeOptions

    root = an4_feats.parent
    train_mono(an4_feats, root / "lang", root / "mono", GmmOptions(gaussians=1, first_passes=3))
    chains = {}
    for flat in (False, True):
        ali, options = None if flat else root / "mono", ChainOptions(context="biphone", tied=not flat)
        make_chain(an4_feats, root / "lang", ali, root / f"chain-{flat}", options, TreeOptions())
        chains[flat] = Chain.load(root / f"chain-{flat}")
    return chains


def outputs_of_a_network(
    x_BWD: torch.Tensor, pdfs: int, denominator: ChainGraph, numerators: Sequence[Numerator], frames_B: torch.Tensor
) -> torch.Tensor:
    """Outputs of a TDNN after 30 steps of Adam on the criterion; nobody has decoded with it."""
    from asr_hf.models.tdnn import TdnnOptions

    model = TdnnOptions(contexts=[[-3, 0, 3]] * 4, width=64, subsampling=3).build(x_BWD.shape[2], pdfs, seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=0.005)
    loss = []
    for _ in range(30):
        y_BTP = model(x_BWD)["output"]
        paths = [sums(graphs, y_BTP.detach(), frames_B, torch.float32) for graphs in (denominator, numerators)]
        loss.append(float((paths[0].log_total_B - paths[1].log_total_B).sum()))
        adam.zero_grad()
        y_BTP.backward((paths[0].posteriors_BTP - paths[1].posteriors_BTP) / len(x_BWD))
        adam.step()
    assert loss[-1] < 0.5 * loss[0]
    return model(x_BWD)["output"].detach()


@pytest.mark.an4
@pytest.mark.parametrize("flat", [False, True], ids=["aligned pieces", "flat start, whole utterances"])
def test_an4_graphs_and_outputs(flat: bool, an4_feats: Path, an4_chains: dict[bool, Chain], by_k2: Callable) -> None:
    chain, archive = an4_chains[flat], FeatureArchive(an4_feats / "feats.scp")
    composer, context = Composer(chain.denominator), 12
    rows, numerators = [], []
    for number, name in enumerate(sorted(chain.supervision)[::60]):
        feats_TD, whole = archive[name], archive.num_frames(name)
        first = 0 if flat or number % 2 else max(0, whole // 2 - 75)
        frames = whole if flat else min(150, whole - first)
        numerators.append(composer.numerator(chain.supervision[name], first, frames, 3))
        rows.append((feats_TD, first, frames))
    frames_B = torch.tensor([-(-frames // 3) for _, _, frames in rows])
    width = 2 * context + 3 * int(frames_B.max()) - 2
    windows = [np.clip(np.arange(width) + first - context, 0, len(feats) - 1) for feats, first, _ in rows]
    x_BWD = torch.from_numpy(np.stack([feats[at] for (feats, _, _), at in zip(rows, windows, strict=True)]))
    y_BTP = outputs_of_a_network(x_BWD, chain.hmm.num_pdfs, chain.denominator, numerators, frames_B)
    assert_same_criterion(chain.denominator, numerators, y_BTP, frames_B, by_k2)
