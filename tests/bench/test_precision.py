"""The benchmark of precisions on runs of the made-up corpus.

The oracles are the system's dense matrix, made of the fp32 products of unit vectors and solved directly, and fp32
itself, whose share of its own decrease is 1.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_hf.bench import precision as bench
from asr_hf.bench.precision import NextUpdate, PrecisionSettings, Run, bench_precision, names_of
from asr_hf.cli.config import compose, from_yaml, to_yaml
from asr_hf.cli.main import run
from asr_hf.cli.train import GROUPS
from asr_hf.curvature.precision import Precision
from asr_hf.errors import InputError, OptionError
from asr_hf.optimizers.hf import HessianFree
from asr_hf.report.tables import precision_table
from asr_hf.solvers.cg import Iterate
from asr_hf.training.run import train

SMALL = ["optimizer.curvature_share=0.3", "optimizer.cg.max_iterations=6", "optimizer.weight_decay=1e-3"]
HF = ["optimizer=hf", "optimizer.updates=2", *SMALL]
DNN = ["model.hidden_layers=1", "model.width=6", "model.context=0", *HF]
LSTM = ["model=lstm", "model.layers=1", "model.cells=4", "model.norm=batch", "model.dropout=0.2", *HF]
KEYS = {
    *("run", "model", "precision", "iterations", "stop", "ratio", "ratios", "reaches", "quadratic_fp32", "quadratic"),
    *("drift", "falls_back", "product_error", "product_seconds", "heldout"),
}


@pytest.fixture(scope="module")
def folder(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `dnn`, `lstm` and, by Adam, `adam`."""
    root = tmp_path_factory.mktemp("runs")
    corpus = [f"corpus.{name}={tiny_corpus}/{name}" for name in ("train", "heldout")]
    corpus.append(f"corpus.alignments={tiny_corpus}/ali")
    adam = [*DNN[:3], "optimizer=adam", "optimizer.epochs=1"]
    for name, settings in (("dnn", DNN), ("lstm", LSTM), ("adam", adam)):
        options = compose(GROUPS, [*corpus, *settings])
        train(root / name, options, to_yaml(options))
    return root


def opened(folder: Path) -> Run:
    return Run(folder, from_yaml(folder / "config.yaml", GROUPS))


def test_command_writes_rows_and_prints_a_table(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    run(["bench", "precision", f"{folder}/dnn", f"{folder}/lstm", "--out", str(out), "--iterations", "24"])
    text = out.read_text(encoding="utf-8")
    assert str(folder) not in text
    written = json.loads(text)
    assert {"versions", "machine", "settings"} < set(written)
    assert written["command"] == "asr-hf bench precision --out FILE.json dnn lstm --iterations 24"
    rows = written["rows"]
    assert [(row["run"], row["model"], row["precision"]) for row in rows] == [
        (model, model, precision.value) for model in ("dnn", "lstm") for precision in Precision
    ]
    for row in rows:
        assert set(row) == KEYS
        assert set(row["ratios"]) == {"10", "20"}
        assert row["iterations"] == 24
        assert row["quadratic_fp32"] < 0
        assert row["product_seconds"] > 0
        assert 0 <= row["product_error"] <= (0.1 if row["precision"] == "bf16" else 1e-2)
        if row["precision"] == "fp32":
            assert row["ratio"] == row["ratios"]["10"] == row["ratios"]["20"] == 1.0
            assert row["product_error"] == 0.0
            assert row["drift"] < 1e-4
            assert row["quadratic"] == pytest.approx(row["quadratic_fp32"], rel=1e-4)
    for name, described in written["runs"].items():
        state = json.loads((folder / name / "checkpoints" / "000002-00000000" / "state.json").read_text())["scalars"]
        assert (described["update"], described["damping"]) == (3, state["damping"])
        assert described["heldout"] == state["heldout"]
        assert described["auto"] in described["auto_why"]
    table = capsys.readouterr().out
    assert "φ₃₂ at 20" in table
    assert table.endswith(precision_table(written["runs"], rows) + "\n")


def test_worth_is_the_quadratic_of_the_dense_matrix_and_cg_ends_at_its_solution(folder: Path) -> None:
    optimizer, objective = bench._restored(opened(folder / "dnn"), print)
    optimizer.prepare(objective, None)
    g, size = optimizer.gradient.double().numpy(), objective.layout.size
    with objective.linearize(optimizer.state.theta, optimizer.sample) as lin:
        columns = [lin.product(unit).double().numpy() / lin.frames for unit in torch.eye(size)]
    a = np.stack(columns) + (optimizer.state.damping + 1e-3) * np.eye(size)

    def quadratic(d: np.ndarray) -> float:
        return float(0.5 * d @ a @ d + g @ d)

    d = torch.randn(size, generator=torch.Generator().manual_seed(0))
    assert optimizer.worth(objective, [Iterate(d, 1, 0.0)]) == [pytest.approx(quadratic(d.double().numpy()), rel=1e-5)]
    solve = optimizer.solve_in(objective, Precision.FP32, 60)
    assert solve.result.quadratic == pytest.approx(quadratic(np.linalg.solve(a, -g)), rel=1e-4)
    gg = (a - (optimizer.state.damping + 1e-3) * np.eye(size)) @ g
    np.testing.assert_allclose(solve.along_gradient.numpy(), gg, rtol=1e-3, atol=1e-5 * np.abs(gg).max())


def test_gradient_and_sample_are_those_of_the_run_itself(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """The run goes on for a third update; what it solves then is what the benchmark took."""
    seen = {}
    solve = HessianFree.solve

    def watched(self, objective, lin, gradient, watch_drift):
        seen[self.state.update] = gradient.clone(), self._sample(objective, "curvature")
        return solve(self, objective, lin, gradient, watch_drift)

    monkeypatch.setattr(HessianFree, "solve", watched)
    text = (folder / "lstm" / "config.yaml").read_text().replace("updates: 2", "updates: 3")
    (tmp_path / "config.yaml").write_text(text)
    longer = from_yaml(tmp_path / "config.yaml", GROUPS)
    train(tmp_path / "longer", longer, to_yaml(longer))
    optimizer, objective = bench._restored(opened(folder / "lstm"), print)
    optimizer.prepare(objective, None)
    assert torch.equal(optimizer.gradient, -seen[3][0])
    assert optimizer.sample == seen[3][1]
    optimizer.prepare(objective, 2)
    assert optimizer.sample.update == 2


def test_a_precision_that_misses_is_said(folder: Path, monkeypatch) -> None:
    """bf16 is made to solve half of the system, so that it reaches ¾ of the decrease: d = −½A⁻¹g."""
    solve = NextUpdate.solve_in

    def halved(self, objective, precision, iterations):
        solved = solve(self, objective, precision, iterations)
        if precision is Precision.BF16:
            exact = solve(self, objective, Precision.FP32, iterations).result
            solved.result.iterates[:] = [Iterate(0.5 * d.x, d.iteration, d.quadratic) for d in exact.iterates]
            solved.result.drift = 0.2
        return solved

    monkeypatch.setattr(NextUpdate, "solve_in", halved)
    said: list[str] = []
    measured = bench_precision({"dnn": opened(folder / "dnn")}, PrecisionSettings(12), "", said.append)
    row = measured["rows"][-1]
    assert row["ratio"] == pytest.approx(0.75, rel=1e-3)
    assert row["ratios"]["10"] == pytest.approx(0.75, rel=1e-3)
    assert (row["reaches"], row["falls_back"]) == (False, True)
    assert [line.split()[-1] for line in said] == ["fp32", "medium", "bf16"]
    assert math.isclose(measured["rows"][0]["ratio"], 1.0)


def test_what_cannot_be_measured_is_named(folder: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    def bench_of(path: Path, *more: str) -> None:
        run(["bench", "precision", str(path), "--out", str(tmp_path / "out.json"), *more])

    with pytest.raises(InputError, match=r"nowhere/config\.yaml"):
        bench_of(tmp_path / "nowhere")
    with pytest.raises(InputError, match="adam is not by Hessian-free"):
        bench_of(folder / "adam")
    with pytest.raises(OptionError, match="--iterations"):
        bench_of(folder / "dnn", "--iterations", "0")
    (tmp_path / "run").mkdir()
    config = (folder / "dnn" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config)
    with pytest.raises(InputError, match="run/checkpoints holds no checkpoint"):
        bench_of(tmp_path / "run")
    shutil.copytree(folder / "dnn" / "checkpoints", tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "config.yaml").write_text(config.replace(f"{tiny_corpus}/heldout", "/gone"))
    with pytest.raises(InputError, match=r"corpus\.heldout=/gone"):
        bench_of(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(config.replace("width: 6", "width: 7"))
    with pytest.raises(InputError, match="another model"):
        bench_of(tmp_path / "run")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("warm_start: ", "warmstart: ", "optimizer of this version"),
        ("width: 6", "width: wide", "width"),
        ("width: 6", "width: 0", r"model\.width"),
        ("training:", "trainings:", "training"),
        ("model:", "model: [", "config"),
    ],
)
def test_options_read_back_from_yaml_are_checked(
    before: str, after: str, named: str, folder: Path, tmp_path: Path
) -> None:
    options = from_yaml(folder / "dnn" / "config.yaml", GROUPS)
    assert to_yaml(options) == (folder / "dnn" / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(to_yaml(options).replace(before, after, 1))
    with pytest.raises(InputError, match=named):
        from_yaml(tmp_path / "config.yaml", GROUPS)


def test_names_are_paths_below_what_runs_have_in_common() -> None:
    assert names_of([Path("/x/exp/dnn")]) == ["dnn"]
    assert names_of([Path("/x/a/dnn"), Path("/x/b/dnn")]) == ["a/dnn", "b/dnn"]
