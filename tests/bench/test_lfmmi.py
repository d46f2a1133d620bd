"""`asr-hf bench lfmmi`: the rivals against all paths written out, and what is measured and drawn.

Shape suffixes: B rows, T output frames, P pdfs.
"""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_hf.bench.lfmmi import LfmmiSettings, bench_lfmmi
from asr_hf.bench.lfmmi_graphs import from_folders, synthetic
from asr_hf.bench.lfmmi_rivals import UnderAutograd, linear_domain, log_domain
from asr_hf.cli.main import run
from asr_hf.data.archive import FeatureArchive
from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import write_fingerprint
from asr_hf.errors import InputError
from asr_hf.hmm.chain import chain_model
from asr_hf.hmm.chain_graph import ChainGraph
from asr_hf.hmm.supervision import LabelGraph, Supervision
from asr_hf.models.saved import load_model, save_model
from asr_hf.models.tdnn import TdnnOptions

tiny = partial(synthetic, states=4, transitions=9, pdfs=3, rows=2, frames=3)


def written_out(graph: ChainGraph, y_TP: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """log Z, the posteriors (T·P,) and their covariance, path by path."""
    frames, pdfs = y_TP.shape
    arcs = [*zip(graph.src_A, graph.dst_A, graph.weight_A, graph.entry_S[graph.dst_A], strict=True)]
    arcs += [(j, j, graph.stay_S[j], graph.loop_S[j]) for j in range(graph.states)]
    weights, indicators = [], []
    for path in itertools.product(arcs, repeat=frames):
        if all(before[1] == after[0] for before, after in itertools.pairwise(path)):
            at = (range(frames), [pdf for _, _, _, pdf in path])
            indicator = np.zeros((frames, pdfs))
            indicator[at] = 1.0
            weights.append(graph.initial_S[path[0][0]] * np.prod([w for _, _, w, _ in path]) * np.exp(y_TP[at].sum()))
            indicators.append(indicator.reshape(-1))
    share_N, indicator_NX = np.array(weights) / sum(weights), np.array(indicators)
    mean_X = share_N @ indicator_NX
    return np.log(sum(weights)), mean_X, (indicator_NX.T * share_N) @ indicator_NX - np.outer(mean_X, mean_X)


@pytest.mark.parametrize("domain", ["log", "linear"])
def test_rivals_compute_what_all_paths_give(domain: str) -> None:
    problem = tiny()
    graph, y_BTP, v_BTP = problem.graph, problem.y_BTP.double(), problem.v_BTP.double()
    if domain == "log":
        method = UnderAutograd(log_domain(graph, torch.float64))
    else:
        method = UnderAutograd(linear_domain(graph, 3, torch.float64))
    log_total_B, gamma_BTP = method.forward_backward(y_BTP)
    product_BTP = method.linearize(y_BTP)(v_BTP)
    for row in range(len(y_BTP)):
        log_total, mean_X, covariance_XX = written_out(graph, y_BTP[row].numpy())
        assert float(log_total_B[row]) == pytest.approx(log_total, abs=1e-10)
        assert gamma_BTP[row].flatten().numpy() == pytest.approx(mean_X, abs=1e-10)
        wanted = covariance_XX @ v_BTP[row].flatten().numpy()
        assert product_BTP[row].flatten().numpy() == pytest.approx(wanted, abs=1e-10)


def test_a_state_that_no_arc_enters_does_no_harm() -> None:
    problem = synthetic(states=5, transitions=9, pdfs=3, rows=2, frames=4)
    graph = problem.graph
    kept = graph.dst_A != 0
    start = ChainGraph(
        graph.entry_S, graph.loop_S, graph.stay_S * (np.arange(5) > 0), graph.initial_S,
        graph.src_A[kept], graph.dst_A[kept], graph.weight_A[kept],
    )  # fmt: skip
    in_logs = UnderAutograd(log_domain(start, torch.float32)).linearize(problem.y_BTP)(problem.v_BTP)
    linear = UnderAutograd(linear_domain(start, 3, torch.float32)).linearize(problem.y_BTP)(problem.v_BTP)
    assert torch.allclose(in_logs, linear, atol=1e-5)


def test_rows_of_every_method_and_their_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = bench_lfmmi(LfmmiSettings(seconds=0.01), "the command", lambda _: None, tiny)
    assert {"command", "versions", "machine", "settings", "graphs", "rows"} == set(measured)
    assert measured["graphs"] == {"synthetic": {"states": 4, "transitions": 9, "pdfs": 3, "rows": 2, "frames": 3}}
    methods = ("asr_hf", "asr_hf_leaky", "torch_autograd", "torch_log")
    whats = ("forward_backward", "curvature_product")
    assert [(row["method"], row["what"]) for row in measured["rows"]] == [*itertools.product(methods, whats)]
    for row in measured["rows"]:
        assert {"graph", "method", "what", "ms", "ratio_to_forward_backward", "rel_error"} < set(row)
        assert row["rel_error"] < 1e-5
        assert 0 < row["min_ms"] <= row["ms"]
    assert measured["rows"][0]["ratio_to_forward_backward"] == 1.0
    (tmp_path / "m.json").write_text(json.dumps(measured, allow_nan=False))
    run(["bench", "table", str(tmp_path / "m.json")])
    drawn = capsys.readouterr().out
    assert "synthetic: 4 states, 9 transitions, 3 pdfs, 2 rows, 3 frames" in drawn
    assert drawn.count("curvature_product") == len(methods)


def test_a_python_without_k2_is_named() -> None:
    for python in ("/bin/false", "/bin/true", "/nowhere/python"):  # `true` leaves no results
        with pytest.raises(InputError, match="does not run k2"):
            bench_lfmmi(LfmmiSettings(k2_python=Path(python), seconds=0.01), "", lambda _: None, tiny)


def test_chain_model_and_features_go_together() -> None:
    with pytest.raises(InputError, match="--model and --feats belong together"):
        LfmmiSettings(chain=Path("chain"))


@pytest.fixture
def chain_dir(tmp_path: Path) -> Path:
    """A CHAIN of two phones, 4 pdfs, whose denominator is a random graph."""
    folder = tmp_path / "chain"
    folder.mkdir()
    chain_model(("SIL", "a"), "SIL", "mono").save(folder)
    synthetic(states=4, transitions=9, pdfs=4).graph.save(folder / "den.safetensors")
    unit_K2, window_K2, ends_K = np.array([[0, 1]]), np.array([[0, 20]]), np.array([True])
    Supervision.of({"u": LabelGraph(20, unit_K2, window_K2, ends_K, ends_K, np.zeros((0, 2), int))}).save(folder)
    options = {"subsampling": 3, "tolerance": 5}
    (folder / "chain.json").write_text(json.dumps({"options": options, "flat_start": False}))
    return folder


def model_dir(folder: Path, corpus: Path, pdfs: int = 4) -> Path:
    """A subsampled network for the corpus' features, not trained."""
    options = TdnnOptions(contexts=[[-3, 0, 3]], width=8, subsampling=3)
    save_model(folder / "model", options.build(8, pdfs, seed=0), options, np.zeros(pdfs, np.float32))
    shutil.copy(corpus / "train" / "features.json", folder / "model")
    return folder / "model"


def test_outputs_are_those_of_the_model_in_an_utterance(tiny_corpus: Path, chain_dir: Path, tmp_path: Path) -> None:
    problem = from_folders(chain_dir, model_dir(tmp_path, tiny_corpus), tiny_corpus / "train", rows=3, frames=5)
    archive = FeatureArchive(tiny_corpus / "train" / "feats.scp")
    names = list(archive)
    pieces = [(name, first) for name in names for first in range(0, len(archive[name]) - 14, 15)][:3]
    for y_TP, (name, first) in zip(problem.y_BTP, pieces, strict=True):
        wanted_TP = load_model(tmp_path / "model").own_frames(archive[name])[first // 3 :][:5]
        assert torch.log_softmax(y_TP, dim=-1).numpy() == pytest.approx(wanted_TP, abs=1e-5)


def test_a_model_of_other_pdfs_is_refused(tiny_corpus: Path, chain_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 5 pdfs and subsampling 3"):
        from_folders(chain_dir, model_dir(tmp_path, tiny_corpus, pdfs=5), tiny_corpus / "train", rows=3)


def test_features_of_another_kind_are_refused(tiny_corpus: Path, chain_dir: Path, tmp_path: Path) -> None:
    model = model_dir(tmp_path, tiny_corpus)
    write_fingerprint(model, FeatureOptions(num_mel_bins=23), 8, 8000)
    with pytest.raises(InputError, match="num_mel_bins 23 against 40"):
        from_folders(chain_dir, model, tiny_corpus / "train", rows=3)


def test_features_without_a_piece_of_that_length_are_refused(
    tiny_corpus: Path, chain_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="150 frames"):
        from_folders(chain_dir, model_dir(tmp_path, tiny_corpus), tiny_corpus / "train", rows=3)
