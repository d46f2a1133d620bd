"""The benchmark on tiny networks: every method computes the float64 product, and the file holds what is promised.

The oracles are a dense JᵀMJ in float64, products of matrices counted as they run, and memory of known size.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, jacrev
from torch.utils.flop_counter import FlopCounterMode

from asr_hf.bench import curvature, methods
from asr_hf.bench.curvature import Settings, bench_curvature
from asr_hf.bench.kinks import away_from_kinks
from asr_hf.bench.memory import _ProcessMeter, peak_of
from asr_hf.bench.methods import GRADIENT, METHODS, Case, Gradient, exact_product
from asr_hf.bench.plain import MODULES, plain
from asr_hf.bench.sizes import TINY, DnnSize, cut, gradient_flops, make_problem
from asr_hf.cli.main import run
from asr_hf.errors import InputError, OptionError
from asr_hf.report.tables import curvature_table

KEYS = {"model", "method", "precision", "what", "ratio_to_gradient", "rel_error", "peak_mib"}
TOLERANCE = {"fp32": 1e-5, "medium": 2e-2, "bf16": 2e-1}  # a tiny network averages less rounding away


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_hf.bench.timing.GEMM_SIZES", (64,))


@pytest.mark.parametrize("model", TINY)
def test_rows_of_every_method_equal_float64(model: str) -> None:
    said: list[str] = []
    measured = bench_curvature(Settings(models=[model], repeats=1, peaks=False), "the command", said.append, TINY)
    assert json.loads(json.dumps(measured, allow_nan=False))["command"] == "the command"
    assert {"versions", "machine", "settings", "unit", "rows"} < set(measured)
    rows = measured["rows"]
    assert {row["method"] for row in rows} == {GRADIENT, *METHODS}, said
    for row in rows:
        assert set(row) >= KEYS
        assert row["ratio_to_gradient"] > 0
        assert row["rel_error"] <= TOLERANCE[row["precision"]], row
    ours = {(row["precision"], row["what"]) for row in rows if row["method"] == "asr_hf"}
    assert len(ours) == len([row for row in rows if row["method"] == "asr_hf"]) == 3 * 4
    unit = measured["unit"][model]
    assert unit["ms"] == min(unit["modules_ms"].values())
    assert unit["share_of_peak"] == pytest.approx(gradient_flops(TINY[model]) / unit["ms"] / 1e6 / unit["peak_gflops"])
    assert len(curvature_table(measured["unit"], rows).splitlines()) == len(rows) + 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("model", TINY)
@pytest.mark.parametrize("blocks", [1, 3])
def test_reference_is_the_dense_matrix_times_v(model: str, blocks: int) -> None:
    size = TINY[model]
    problem = make_problem(size, "cpu")
    made = plain(size, next(iter(MODULES[model])), problem)
    theta = {name: p.detach().double() for name, p in made.module.double().named_parameters()}
    z = functional_call(made.module, theta, (made.x.double(),))
    jacobian = jacrev(lambda parameters: functional_call(made.module, parameters, (made.x.double(),)))(theta)
    p = torch.softmax(z, dim=1)
    m = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    v = {name: tensor.double() for name, tensor in made.parameters.own(problem.direction).items()}
    found = exact_product(size, problem, blocks)
    for names in cut(size.parameter_shapes(), blocks):
        own = [name for name, rule in made.parameters.rules.items() if rule.canonical in names]
        jv = sum(torch.tensordot(jacobian[name], v[name], dims=v[name].dim()) for name in own)
        mjv = torch.einsum("fpq,fq->fp", m, jv)
        dense = {name: torch.tensordot(mjv, jacobian[name], dims=2) for name in own}
        for name in own:
            rule = made.parameters.rules[name]
            torch.testing.assert_close(found[rule.canonical], rule.to_canonical(dense[name]))


@pytest.mark.parametrize("model", TINY)
def test_flops_are_those_of_the_products_of_matrices(model: str) -> None:
    size = TINY[model]
    problem = make_problem(size, "cpu")
    gradient = Gradient(plain(size, next(iter(MODULES[model])), problem), problem, torch.float32)
    with FlopCounterMode(display=False) as counter:
        gradient.product(None)
    counted = counter.get_total_flops()
    if model == "lstm":  # the first step's state is constant: no product for its gradient; h₀ = 0 is multiplied
        counted += size.layers * 2 * size.rows * math.prod(size.parameter_shapes()["layer1.recurrent"])
    assert gradient_flops(size) == counted


def test_blocks_cover_all_parameters_once_and_keep_layers_whole_where_they_can() -> None:
    shapes = DnnSize().parameter_shapes()
    for blocks in (1, 2, 4):
        parts = cut(shapes, blocks)
        assert len(parts) == blocks
        assert [name for part in parts for name in part] == list(shapes)
        layers = [{name.split(".")[0] for name in part} for part in parts]
        assert sum(map(len, layers)) == len(set().union(*layers))
        assert max(sum(math.prod(shapes[name]) for name in part) for part in parts) < 1.6 * 7.66e6 / blocks


@pytest.mark.parametrize("model", ["dnn", "tdnn"])
def test_no_relu_is_near_its_kink(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    margin = 2e-2  # some of the tiny networks' few units are that near
    monkeypatch.setattr("asr_hf.bench.kinks.MARGIN", margin)

    def nearest(problem) -> float:
        made = plain(TINY[model], next(iter(MODULES[model])), problem)
        seen = []
        for layer in made.module.double():
            if isinstance(layer, torch.nn.ReLU):
                layer.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].detach().abs().min())))
        made.module(made.x.double())
        return min(seen)

    before = make_problem(TINY[model], "cpu")
    after = away_from_kinks(TINY[model], before)
    assert nearest(before) < margin <= nearest(after)
    kept = (before.x_BWD == after.x_BWD).all(dim=2)
    assert 0.5 < kept.double().mean() < 1


def test_a_named_method_that_cannot_run_is_an_error_and_another_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(methods.importlib, "import_module", absent)
    with pytest.raises(InputError, match="pip install backpack-for-pytorch"):
        bench_curvature(Settings(models=["dnn"], methods=["backpack"], peaks=False), "", lambda _: None, TINY)
    said: list[str] = []
    cases = curvature._runnable(Settings(models=["dnn"], precisions=["fp32"], peaks=False), TINY["dnn"], said.append)
    assert {case.method for case in cases} == {GRADIENT, "asr_hf", "torch_jvp_vjp", "double_backward"}
    assert sum("pip install" in line for line in said) == 2
    with pytest.raises(OptionError, match="--precision"):
        Settings(precisions=["fp8"])


def test_peak_memory_is_of_what_is_done_after_the_preparation() -> None:
    meter = _ProcessMeter()
    meter.start()
    held = torch.ones(2**24)  # 64 MiB
    del held
    assert 63 < meter.peak_mib() < 80
    size = DnnSize(width=256, frames=4096)
    peak = peak_of(Case(size, GRADIENT, "linear"), "cpu")
    activations = 4 * size.frames * (size.layers * size.width + size.pdfs) / 2**20
    assert activations < peak.product < 5 * activations


def test_command_writes_the_file_and_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_curvature, "__defaults__", (print, TINY))
    out = tmp_path / "out.json"
    run(
        [
            "bench",
            "curvature",
            "--out",
            str(out),
            "--model",
            "dnn",
            "--method",
            "torch_jvp_vjp",
            "--no-peaks",
            "--repeats=2",
        ]
    )
    written = json.loads(out.read_text(encoding="utf-8"))
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    assert written["command"].startswith("asr-hf bench curvature --out FILE.json --model dnn --method torch_jvp_vjp")
    assert [row["what"] for row in written["rows"]] == ["gradient", "product"]
    assert "one gradient is" in capsys.readouterr().out
