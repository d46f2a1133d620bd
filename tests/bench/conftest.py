"""A dev set that no run trains on, and a graph of its words."""

import itertools
import json
import shutil
from pathlib import Path

import kaldifst
import pytest

from asr_hf.data.archive import FeatureArchive, read_int_vectors, write_int_vectors, write_matrices
from asr_hf.data.kaldi_dir import write_speakers, write_transcripts


@pytest.fixture(scope="module")
def dev(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FEATS that no run trains on: the held-out features under other names, by two speakers, with alignments `ali`.

    Every pdf is a word, said as often as the alignment changes.
    """
    root = tmp_path_factory.mktemp("dev")
    shutil.copy(tiny_corpus / "heldout" / "features.json", root)
    (root / "ali").mkdir()
    shutil.copy(tiny_corpus / "ali" / "hmm.json", root / "ali")
    archive, pdfs = FeatureArchive(tiny_corpus / "heldout/feats.scp"), read_int_vectors(tiny_corpus / "ali/pdf.scp")
    write_matrices(root / "feats", [(f"dev-{name}", archive[name] * 0.9) for name in archive])
    write_int_vectors(root / "ali" / "pdf", [(f"dev-{name}", pdfs[name]) for name in archive])
    words = {f"dev-{name}": tuple(f"w{pdf}" for pdf, _ in itertools.groupby(pdfs[name])) for name in archive}
    write_transcripts(root / "text", words)
    write_speakers(root, {name: f"speaker{number % 2}" for number, name in enumerate(words)})
    return root


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRAPH of the twelve words in any order; one costs 3 to enter."""
    root = tmp_path_factory.mktemp("graph")
    fst = kaldifst.StdVectorFst()
    for _ in range(13):
        fst.add_state()
    fst.start = 0
    for word in range(1, 13):
        fst.add_arc(0, kaldifst.StdArc(word, word, 3.0, word))
        fst.add_arc(word, kaldifst.StdArc(word, 0, 0.0, word))
        fst.add_arc(word, kaldifst.StdArc(0, 0, 0.0, 0))
        fst.set_final(word, 0.0)
    fst.write(str(root / "HCLG.fst"))
    (root / "words.txt").write_text("<eps> 0\n" + "".join(f"w{pdf} {pdf + 1}\n" for pdf in range(12)))
    (root / "graph.json").write_text(json.dumps({"num_pdfs": 12}))
    return root
