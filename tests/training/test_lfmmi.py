"""Whole runs of lattice-free MMI on the made-up corpus: every optimiser lowers the loss; what cannot be is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS
from asr_hf.data.archive import read_int_vectors
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.chain_folder import DENOMINATOR, FACTS
from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.models.saved import load_model
from asr_hf.optimizers.first_order import Adam
from asr_hf.optimizers.hf import HessianFree
from asr_hf.training.monitor import read_log
from asr_hf.training.run import train

SMALL = ["model=tdnn", "model.contexts=[[-1,0,1],[-3,0,3]]", "model.width=16", "model.subsampling=3"]
LFMMI = [*SMALL, "criterion=lfmmi", "criterion.chunk=45"]
UPDATES = ["optimizer.updates=3", "optimizer.curvature_share=0.5", "optimizer.damping.initial=0.1"]


def run(folder: Path, corpus: Path, *more: str, chain: str = "chain") -> str:
    sets = [f"corpus.{name}={corpus}/{name}" for name in ("train", "heldout")]
    options = compose(GROUPS, [*sets, f"corpus.alignments={corpus}/{chain}", *more])
    return train(folder, options, to_yaml(options))


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus, to be changed."""
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.mark.parametrize(
    "optimizer",
    [
        ["optimizer=hf", *UPDATES],
        ["optimizer=hf", *UPDATES, "optimizer.matrix=frame_gauss_newton", "criterion.chunk=0"],
        ["optimizer=nghf", *UPDATES, "optimizer.matrix=label_fisher", "criterion.branch=0.3"],
        ["optimizer=adam", "optimizer.epochs=3", "optimizer.minibatch_frames=200", "criterion.output_l2=1e-3"],
    ],
)
def test_the_heldout_loss_falls(optimizer: list[str], tiny_corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", tiny_corpus, *LFMMI, *optimizer)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    losses = [row["heldout"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * rows[0]["loss"]
    saved = load_model(tmp_path / "run")
    assert not np.ptp(saved.log_prior)  # sequences are not scored against a prior
    outputs = saved.module(torch.zeros(1, 9 + saved.module.left_context + saved.module.right_context, 8))
    branch = {"cross_entropy"} if "criterion.branch=0.3" in optimizer else set()
    assert set(outputs) == {"output"} | branch


def test_pieces_see_every_frame_over_three_epochs(tiny_corpus: Path, tmp_path: Path) -> None:
    """A subsampled model is shown another of its copies in each epoch."""
    adam = ["optimizer=adam", "optimizer.epochs=3", "optimizer.minibatch_frames=400", "optimizer.newbob_start=0"]
    run(tmp_path / "run", tiny_corpus, *LFMMI, *adam)
    frames = [sum(row["rank_frames"]) for row in read_log(tmp_path / "run" / "log.jsonl")]
    lengths = [len(pdfs) for name, pdfs in read_int_vectors(tiny_corpus / "ali/pdf.scp").items() if name[0] == "t"]
    held = sum(
        -(-len(pdfs) // 3) for name, pdfs in read_int_vectors(tiny_corpus / "ali/pdf.scp").items() if name[0] == "h"
    )
    seen = [sum(-(-(n - shift) // 3) for n in lengths) for shift in range(3)]
    assert [n - held * (2 if epoch == 0 else 1) for epoch, n in enumerate(frames)] == seen
    assert sum(seen) == sum(lengths)


def test_an_utterance_that_cannot_fit_is_named_and_left_out(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from asr_hf.hmm.supervision import Supervision

    graphs = dict(Supervision.load(corpus / "chain"))
    graph = graphs["train-003"]
    graphs["train-003"] = type(graph)(
        graph.frames, graph.unit_K2, np.zeros_like(graph.window_K2), graph.starts_K, graph.ends_K, graph.edge_E2
    )
    Supervision.of(graphs).save(corpus / "chain")
    run(tmp_path / "run", corpus, *LFMMI, "optimizer=hf", *UPDATES, "training.bad_share=0.05")
    assert "left out of this update: 1 utterances (train-003)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "chain", "named"),
    [
        (LFMMI, "ali", "no CHAIN folder"),
        ([*LFMMI, "model.subsampling=1"], "chain", r"model\.subsampling"),
        ([*LFMMI, "optimizer.matrix=fisher"], "chain", r"optimizer\.matrix"),
        ([*SMALL, "optimizer.matrix=label_fisher"], "ali", r"optimizer\.matrix"),
        (SMALL, "chain", "no pdf of a frame"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: list[str], chain: str, named: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises((InputError, OptionError), match=named):
        run(tmp_path / "run", tiny_corpus, *settings, chain=chain)
    assert not (tmp_path / "run").exists()


def test_chunks_of_a_flat_start_are_refused(corpus: Path, tmp_path: Path) -> None:
    facts = json.loads((corpus / "chain" / FACTS).read_text())
    (corpus / "chain" / FACTS).write_text(json.dumps({**facts, "flat_start": True}))
    with pytest.raises(OptionError, match=r"criterion\.chunk"):
        run(tmp_path / "run", corpus, *LFMMI)
    lstm = ["model=lstm", "model.layers=1", "model.cells=4", "model.subsampling=3", "model.chunk=30"]
    with pytest.raises(OptionError, match=r"model\.chunk=30 must be 0: .* is a flat start"):
        run(tmp_path / "run", corpus, *lstm, "criterion=lfmmi", "criterion.chunk=0")
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", corpus, *LFMMI, "criterion.chunk=0", "optimizer=hf", "optimizer.updates=1")


def test_heldout_supervision_of_another_denominator_is_refused(corpus: Path, tmp_path: Path) -> None:
    """Its numerators are no part of the criterion's denominator: the loss would be no share of paths."""
    shutil.copytree(corpus / "chain", corpus / "heldout-chain")
    heldout = f"corpus.heldout_alignments={corpus}/heldout-chain"
    run(tmp_path / "same", corpus, *LFMMI, heldout, "optimizer=hf", "optimizer.updates=1")
    graph = ChainGraph.load(corpus / "chain" / DENOMINATOR, 12)
    replace(graph, weight_A=2 * graph.weight_A).save(corpus / "heldout-chain" / DENOMINATOR)
    with pytest.raises(InputError, match=r"heldout-chain has another denominator than .*--model"):
        run(tmp_path / "run", corpus, *LFMMI, heldout)
    with pytest.raises(InputError, match="ali is no CHAIN folder"):
        run(tmp_path / "run", corpus, *LFMMI, f"corpus.heldout_alignments={corpus}/ali")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        (["optimizer=hf", *UPDATES, "optimizer.matrix=label_fisher"], 3),
        (["optimizer=adam", "optimizer.epochs=4", "optimizer.minibatch_frames=200"], 31),
    ],
    ids=["hf", "adam"],
)
def test_resumed_equals_uninterrupted(
    settings: list[str], seen: int, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shifted copies, sampled matrices and all: what a run has met before it was interrupted leaves no trace."""
    settings = [*LFMMI, *settings, "criterion.branch=0.2"]
    run(tmp_path / "whole", tiny_corpus, *settings)
    settings.append("training.checkpoint_seconds=1e-9")  # for Adam: within the epoch, after each step
    kind = HessianFree if "optimizer=hf" in settings else Adam
    step, count = kind.step, [0]

    def interrupted(self, objective):  # type: ignore[no-untyped-def]
        count[0] += 1
        if count[0] == seen:
            raise KeyboardInterrupt
        return step(self, objective)

    monkeypatch.setattr(kind, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", tiny_corpus, *settings)
    assert len(read_log(tmp_path / "broken" / "log.jsonl")) < len(read_log(tmp_path / "whole" / "log.jsonl"))
    run(tmp_path / "broken", tiny_corpus, *settings)
    assert len({(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("whole", "broken")}) == 1
    losses = [[row["heldout"] for row in read_log(tmp_path / folder / "log.jsonl")] for folder in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_features_of_another_length_are_named(corpus: Path, tmp_path: Path) -> None:
    from asr_hf.data.archive import FeatureArchive, write_matrices

    archive = FeatureArchive(corpus / "train" / "feats.scp")
    matrices = [(name, np.array(archive[name])[: -1 if name == "train-007" else None]) for name in archive]
    write_matrices(corpus / "train" / "feats", matrices)
    with pytest.raises(InputError, match="train-007"):
        run(tmp_path / "run", corpus, *LFMMI)
