"""What the benchmark of lattice-free MMI is measured on: denominator graphs with outputs, all rows of equal length.

Shape suffixes: B rows, T output frames, P pdfs, D feature dim.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from asr_hf.data.archive import FeatureArchive
from asr_hf.data.fingerprint import read_fingerprint, require_same
from asr_hf.data.minibatch import TrainingSet
from asr_hf.data.plan import Minibatch
from asr_hf.errors import InputError
from asr_hf.hmm.chain_folder import Chain
from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.models.acoustic import OUTPUT
from asr_hf.models.saved import load_model

FRAMES = 50  # output frames of a row


@dataclass(frozen=True)
class Problem:
    """A denominator graph, outputs y and a direction v."""

    graph: ChainGraph
    y_BTP: torch.Tensor
    v_BTP: torch.Tensor

    def describe(self) -> dict[str, int]:
        rows, frames, pdfs = self.y_BTP.shape
        sizes = {"states": self.graph.states, "transitions": len(self.graph.src_A)}
        return {**sizes, "pdfs": pdfs, "rows": rows, "frames": frames}


def all_frames(y_BTP: torch.Tensor) -> torch.Tensor:
    """The frames of each row (B,)."""
    return torch.full((len(y_BTP),), y_BTP.shape[1])


def synthetic(
    states: int = 2000, transitions: int = 40_000, pdfs: int = 500, rows: int = 16, frames: int = FRAMES
) -> Problem:
    """A random graph with one entry and one loop pdf a state, and outputs drawn from N(0, 2²)."""
    random = np.random.default_rng(0)
    place_A = np.sort(random.choice(states * states, transitions, replace=False))
    dst_A, src_A = np.divmod(place_A, states)
    weight_A = random.random(transitions)
    leaving_S = np.bincount(src_A, weight_A, states)
    initial_S = random.random(states)
    entry_S, loop_S = random.integers(0, pdfs, (2, states))
    stay_S = np.full(states, 0.5)
    graph = ChainGraph(
        entry_S, loop_S, stay_S, initial_S / initial_S.sum(), src_A, dst_A, 0.5 * weight_A / leaving_S[src_A]
    )
    y_BTP, v_BTP = random.normal(size=(2, rows, frames, pdfs)).astype(np.float32)
    return Problem(graph, torch.from_numpy(2.0 * y_BTP), torch.from_numpy(v_BTP))


def from_folders(chain_dir: Path, model_dir: Path, feats_dir: Path, rows: int, frames: int = FRAMES) -> Problem:
    """The denominator of a CHAIN, and the outputs of a network for the first pieces of some features.

    Raises:
        InputError: model, CHAIN and features do not fit each other, or the features have no piece of so many frames.
    """
    chain, module = Chain.load(chain_dir), load_model(model_dir).module
    if (module.num_pdfs, module.subsampling) != (chain.hmm.num_pdfs, chain.subsampling):
        raise InputError(
            f"{model_dir} has {module.num_pdfs} pdfs and subsampling {module.subsampling}, {chain_dir} has "
            f"{chain.hmm.num_pdfs} and {chain.subsampling}",
            "Name the CHAIN that the model was trained with.",
        )
    require_same(read_fingerprint(model_dir), read_fingerprint(feats_dir), str(model_dir), str(feats_dir))
    archive = FeatureArchive(feats_dir / "feats.scp")
    names = list(archive)
    width = frames * module.subsampling
    pieces = (
        (number, first, width)
        for number, name in enumerate(names)
        for first in range(0, archive.num_frames(name) - width + 1, width)
    )
    chosen = np.array(list(islice(pieces, rows)), dtype=np.int32)
    if not len(chosen):
        raise InputError(f"no utterance of {feats_dir} has {width} frames", "Name features of longer utterances.")
    used = names[: int(chosen[-1, 0]) + 1]
    features = [archive[name] for name in used]
    no_targets = [np.zeros(len(matrix), dtype=np.int32) for matrix in features]
    training_set = TrainingSet(used, features, no_targets, window=False)
    batch = training_set.batch(Minibatch(chosen), module.left_context, module.right_context, module.subsampling)
    with torch.no_grad():
        y_BTP = module(batch.x_BWD)[OUTPUT][:, :frames].contiguous()
    v_BTP = torch.randn(y_BTP.shape, generator=torch.Generator().manual_seed(0))
    return Problem(chain.denominator, y_BTP, v_BTP)
