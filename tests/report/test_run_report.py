"""The page of a training run: its curves show the log's numbers, and it stands alone."""

import json
import re
from xml.etree import ElementTree

import pytest

from asr_hf.cli.main import run
from asr_hf.errors import InputError
from asr_hf.report.plot import Axis, Series, legend, line_plot
from asr_hf.report.run_report import run_page, write_run_report


@pytest.fixture
def rows():
    """Five updates; the second was rejected and has no rho, the damping spans decades."""
    return [
        {"update": n, "accepted": n != 2, "loss": 3.0 / n, "heldout": 3.2 / n, "gradient_norm": 0.1, "step": 1.0,
         "damping": 10.0 ** (2 - n), "rho": None if n == 2 else 0.5 + n / 10, "cg_iterations": 10 * n,
         "cg_stop": "<progress>", "note": "ok", "seconds": {"gradient": 1.0, "total": 2.0}}
        for n in range(1, 6)
    ]  # fmt: skip


def centres(svg):
    """(cx, cy, text) of every dot of an SVG."""
    circles = ElementTree.fromstring(svg).iter("circle")
    return [(float(c.get("cx")), float(c.get("cy")), c.find("title").text) for c in circles]


def test_dots_lie_where_the_values_say():
    dots = centres(line_plot([Series("a", [1, 2, 3], [1.0, None, 5.0]), Series("b", [1, 2, 3], [3, 3, 3])], "x", "y"))
    assert [text for _, _, text in dots] == ["1: 1", "3: 5", "1: 3", "2: 3", "3: 3"]
    (x1, low, _), (x3, high, _), (_, middle, _), (x2, _, _), _ = dots
    assert x2 == pytest.approx((x1 + x3) / 2)
    assert middle == pytest.approx((low + high) / 2)
    assert high < low  # up is less in SVG


def test_a_logarithmic_plot_spaces_decades_evenly_and_leaves_out_what_is_not_positive():
    dots = centres(line_plot([Series("a", [1, 2, 3, 4], [100.0, 10.0, 1.0, 0.0])], "x", "y", log=True))
    assert [text for _, _, text in dots] == ["1: 100", "2: 10", "3: 1"]
    assert dots[1][1] - dots[0][1] == pytest.approx(dots[2][1] - dots[1][1], abs=0.11)


def test_x_may_be_logarithmic_too():
    dots = centres(line_plot([Series("a", [0, 1, 10, 100], [9, 1, 2, 3])], "x", "y", log_x=True))
    assert [text for _, _, text in dots] == ["1: 1", "10: 2", "100: 3"]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.11)


def test_a_shade_reaches_from_low_to_high_and_has_room():
    svg = line_plot([Series("a", [1, 2], [2, 3], [1, 3], [4, 5]), Series("b", [1, 2], [1, 5])], "x", "y")
    shade, *others = ElementTree.fromstring(svg).iter("polygon")
    corners = [tuple(map(float, corner.split(","))) for corner in shade.get("points").split()]
    (x1, lowest, _), (x2, highest, _) = centres(svg)  # those of b, which has no shade
    assert not others
    assert (corners[0], corners[2]) == ((x1, lowest), (x2, highest))
    assert [x for x, _ in corners] == [x1, x2, x2, x1]
    assert corners[3][1] == pytest.approx(highest + (lowest - highest) / 4, abs=0.11)


def test_a_missing_value_parts_the_line():
    svg = line_plot([Series("a", [1, 2, 3, 4], [1.0, 2.0, None, 3.0])], "x", "y")
    assert re.sub(r"[\d., ]", "", re.search(r' d="([^"]*)"', svg)[1]) == "MLM"
    assert "No values" in line_plot([Series("a", [1.0], [None])], "x", "y")
    assert len(centres(line_plot([Series("a", [1.0], [0.0])], "x", "y"))) == 1  # no range at all


@pytest.mark.parametrize(("low", "high", "log"), [(0, 1, False), (-3, 2e5, False), (1e-3, 40, True), (2, 3, True)])
def test_ticks_are_few_and_within_the_axis(low, high, log):
    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 1 <= len(ticks) <= 8
    assert all(-1e-6 <= Axis(low, high, 0, 100, log).pixel(tick) <= 100 + 1e-6 for tick in ticks)


def test_the_page_stands_alone_and_escapes(rows):
    page = run_page("<run>", rows, config="optimizer: {a: <b>}")
    assert "5 updates (1 rejected) in 10 s" in page
    assert "&lt;progress&gt;" in page
    assert "<progress>" not in page
    assert "<run>" not in page
    assert not re.search(r"src=|href=|@import|url\(|<script", page)
    assert page.count("<svg") == 4
    assert page.count("<circle") == 5 + 5 + 5 + 4 + 5


def test_a_first_order_run_has_one_plot(rows):
    for row in rows:
        row.update(damping=None, rho=None, cg_iterations=None, cg_stop=None)
    assert run_page("sgd", rows).count("<svg") == 1


def test_the_command_draws_a_run_with_the_results(tmp_path, rows, capsys):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"cut sho')
    row = {"system": "dnn-ce-hf", "set": "test", "seed": 0, "wer": 5.25, "errors": 1, "words": 2, "ci95": [1, 9],
           "seconds": 3}  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps([row]))
    run(["results", str(tmp_path / "results.json"), "--report", str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "<td>5.25</td>" in page
    with pytest.raises(InputError, match="no training run"):
        write_run_report(tmp_path / "nothing")
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(InputError, match="no update yet"):
        write_run_report(tmp_path)


def test_curves_beyond_the_colours_are_dashed():
    series = [Series(f"curve{n}", [0, 1], [0, n]) for n in range(9)]
    drawn, names = line_plot(series, "x", "y"), legend(series)
    assert 'path class="s0"' in drawn
    assert 'path class="s0 dashed"' in drawn
    assert '<span class="s0 dashed">curve8</span>' in names
    assert "s8" not in drawn + names
