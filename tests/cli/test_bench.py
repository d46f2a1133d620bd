"""`asr-hf bench table`: what was measured, drawn into the marked block of a page."""

import json
from pathlib import Path

import pytest

from asr_hf.cli.main import run
from asr_hf.errors import InputError

UNIT = {"module": "linear", "modules_ms": {"linear": 100.0}, "ms": 100.0, "gflops": 50.0, "peak_gflops": 60.0}
ROW = {"model": "dnn", "method": "asr_hf", "precision": "fp32", "what": "product", "module": "dnn"}


def test_a_measured_table_is_drawn_between_the_markers_of_a_page(tmp_path: Path, capsys) -> None:
    row = {**ROW, "ratio_to_gradient": 1.31, "ms": 131.0, "rel_error": 2e-7, "peak_mib": None}
    (tmp_path / "m.json").write_text(json.dumps({"unit": {"dnn": {**UNIT, "share_of_peak": 0.8}}, "rows": [row]}))
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- bench curvature:begin -->\nold\n<!-- bench curvature:end -->\nbelow\n")
    run(["bench", "table", str(tmp_path / "m.json"), "--markdown", str(page)])
    text = page.read_text()
    assert text.startswith("above\n<!-- bench curvature:begin -->\n```\n")
    assert text.endswith("\n```\n<!-- bench curvature:end -->\nbelow\n")
    assert "old" not in text
    assert "1.310" in text
    assert "1.310" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{}", "no json", '{"rows": []}'])
def test_a_file_that_no_benchmark_wrote_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(InputError, match=r"m\.json"):
        run(["bench", "table", str(tmp_path / "m.json")])
    with pytest.raises(InputError, match="none"):
        run(["bench", "table", str(tmp_path / "none.json")])
