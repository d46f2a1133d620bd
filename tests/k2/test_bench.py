"""`asr-hf bench lfmmi` with k2 beside: what k2 computes in its own process equals float64."""

from functools import partial
from pathlib import Path

from asr_hf.bench.lfmmi import LfmmiSettings, bench_lfmmi
from asr_hf.bench.lfmmi_graphs import synthetic


def test_rows_of_k2_and_what_its_beam_costs(k2_python: str) -> None:
    drawn = partial(synthetic, states=50, transitions=300, pdfs=20, rows=3, frames=10)
    measured = bench_lfmmi(LfmmiSettings(k2_python=Path(k2_python), seconds=0.01), "", lambda _: None, drawn)
    error = {row["method"]: row["rel_error"] for row in measured["rows"] if row["what"] == "forward_backward"}
    assert error["k2"] < 1e-5 < error["k2_pruned"] < 1.0
    assert {"k2", "torch of k2"} < set(measured["versions"])
