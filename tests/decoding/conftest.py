"""Graphs made of lists, and a small task (features, graph, GMM) that can be decoded in no time."""

import json
from types import SimpleNamespace

import kaldifst
import numpy as np
import pytest
import torch

from asr_hf.data.archive import write_matrices
from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import write_fingerprint
from asr_hf.data.kaldi_dir import write_speakers, write_transcripts
from asr_hf.decoding.graph import Graph
from asr_hf.hmm.gmm import Gmm

WORDS = ("one", "two", "three")


@pytest.fixture
def make_fst():
    """An FST from (src, dst, ilabel, olabel, cost) arcs and {final state: cost}; state 0 is the start."""

    def make(arcs, final):
        fst = kaldifst.StdVectorFst()
        for _ in range(1 + max([*(max(arc[:2]) for arc in arcs), *final])):
            fst.add_state()
        fst.start = 0
        for src, dst, ilabel, olabel, cost in arcs:
            fst.add_arc(src, kaldifst.StdArc(ilabel, olabel, cost, dst))
        for state, cost in final.items():
            fst.set_final(state, cost)
        return fst

    return make


@pytest.fixture
def make_graph(make_fst):
    """A Graph from arcs and final costs, with words w1, w2, …"""

    def make(arcs, final, num_pdfs):
        words = {label: f"w{label}" for label in range(1, 1 + max((arc[3] for arc in arcs), default=0))}
        return Graph(make_fst(arcs, final), words, num_pdfs)

    return make


@pytest.fixture
def task(tmp_path, make_fst):
    """FEATS, GRAPH and MODEL folders: 12 utterances of 1-4 words by 3 speakers, a pdf a word, some noise.

    A word lasts 4 to 8 frames; entering a word costs 6 in the graph, so that a small acoustic scale loses words, and
    a large one, with the noise, inserts them.
    """
    rng = np.random.default_rng(3)
    feats, graph, model = (tmp_path / name for name in ("feats", "graph", "model"))
    for folder in (feats, graph, model):
        folder.mkdir()
    means = 2.0 * np.eye(3)
    transcripts, matrices = {}, {}
    for number in range(12):
        steps = rng.integers(1, 3, size=rng.integers(1, 5))  # never 0: a word said twice would sound like one
        words = np.cumsum(steps) % 3
        frames = np.repeat(words, rng.integers(4, 9, size=len(words)))
        utterance = f"s{number % 3}-u{number:02d}"
        matrices[utterance] = (means[frames] + rng.normal(scale=1.0, size=(len(frames), 3))).astype(np.float32)
        transcripts[utterance] = tuple(WORDS[word] for word in words)
    write_transcripts(feats / "text", transcripts)
    write_speakers(feats, {utterance: utterance[:2] for utterance in transcripts})
    write_matrices(feats / "feats", sorted(matrices.items()))
    for folder in (feats, model):
        write_fingerprint(folder, FeatureOptions(num_mel_bins=4), 3, 8000)

    arcs = []
    for word in (1, 2, 3):  # enter, stay at least three frames, leave
        first = 3 * word - 2
        arcs += [(0, first, word, word, 6.0), (first, first + 1, word, 0, 0.0), (first + 1, first + 2, word, 0, 0.0)]
        arcs += [(first + 2, first + 2, word, 0, 0.0), (first + 2, 0, 0, 0, 0.0)]
    make_fst(arcs, {0: 0.0}).write(str(graph / "HCLG.fst"))
    (graph / "words.txt").write_text("<eps> 0\none 1\ntwo 2\nthree 3\n")
    (graph / "graph.json").write_text(json.dumps({"num_pdfs": 3}))
    ones = torch.ones(3, 1, 3, dtype=torch.float64)
    Gmm(torch.zeros(3, 1, dtype=torch.float64), torch.from_numpy(means)[:, None], ones).save(model)
    return SimpleNamespace(
        feats=feats, graph=graph, model=model, out=tmp_path / "out", transcripts=transcripts, matrices=matrices
    )
