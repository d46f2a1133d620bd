"""The tables and the page of comparisons, from hand-made files."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from asr_hf.cli.main import run
from asr_hf.errors import InputError
from asr_hf.report.compare import compare_page, compare_text


def rows(costs, losses, **more):
    return [
        {"update": n, "cost": float(cost), "timed": 0.5, "vectors": 10 * n, "seconds": 2.0 * cost, "heldout": loss,
         "cg_iterations": 3 * n, "damping": 0.5**n, "accepted": True, **more}
        for n, (cost, loss) in enumerate(zip(costs, losses, strict=True), 1)
    ]  # fmt: skip


def finished(costs, losses, errors=None, **more):
    found = {"failed": None, "dev": losses[-1] + 0.1, "rows": rows(costs, losses, **more)}
    if errors is not None:
        speakers = {f"s{n}": [count, 50] for n, count in enumerate(errors)}
        found["wer"] = {each: {"errors": sum(errors), "words": 50 * len(errors), "speakers": speakers}
                        for each in ("dev", "test")}  # fmt: skip
    return found


def trial(overrides, failed=None):
    return {"overrides": overrides, "dev": 2.0, "heldout": 2.0, "cost": 8.0, "updates": 2, "failed": failed}


@pytest.fixture
def comparison():
    """Two seeds; `hf` costs half of what `sgd` costs to its last loss, and one run of `ng` failed."""
    first_order = {"cg_iterations": None, "damping": None}
    sgd = {"0": finished([4, 8, 16], [4.0, 3.0, 2.0], [9, 7], **first_order),
           "1": finished([4, 8, 16], [4.0, 3.0, 2.2], [8, 8], **first_order)}  # fmt: skip
    hf = {"0": finished([8], [2.0], [5, 6]), "1": finished([8], [2.0], [6, 5])}
    ng = {"0": finished([10, 16], [2.5, 1.9]), "1": {"failed": "lost <it>", "dev": None, "rows": rows([1], [None])}}
    system = {"options": [], "trials": [trial(["optimizer.rate=1"])] * 8}
    winner = {"overrides": ["optimizer.rate=1", "curvature.x=2"], "trials": 8}
    settings = {"seeds": [0, 1], "budget": 16.0, "trial_budget": 8.0, "reference": "sgd", "tuned": None,
                "chosen_on": "dev", "jobs": 1, "wer_seeds": [0, 1], "decoding": {}}  # fmt: skip
    return {
        "settings": settings,
        "systems": {
            "sgd": {**system, "winner": winner, "runs": sgd},
            "hf": {**system, "winner": winner, "runs": hf},
            "ng": {"options": [], "trials": [trial([], "boom")] * 2, "winner": {**winner, "trials": 2}, "runs": ng},
        },
    }


def cells(text, title, system):
    """The cells of a system's line in the table below a title."""
    lines = text[text.index(title) :].splitlines()
    return re.split(r"\s{2,}", next(line for line in lines if line.startswith(f"{system} ")))


def test_the_tables_hold_the_numbers(comparison) -> None:
    text = compare_text({"a": comparison})
    assert cells(text, "seeds 0, 1", "sgd") == [
        *("sgd", "rate=1 curvature.x=2", "8", "2", "3", "16.0", "0.5", "30", "32"),
        *("2.1000 (2.0000–2.2000)", "2.2000 (2.1000–2.3000)", "16.00 (16.00–16.00)", "16.00 (16.00–16.00)"),
    ]
    assert cells(text, "best held-out", "sgd") == ["sgd", *["4.0000 (4.0000–4.0000)", "3.0000 (3.0000–3.0000)"],
                                                   "2.1000 (2.0000–2.2000)"]  # fmt: skip
    assert cells(text, "best held-out", "hf") == ["hf", "-", *["2.0000 (2.0000–2.0000)"] * 2]
    # sgd has 3.0 after 8 of 16, and at 80 % still; hf is there after 8; ng's seed 0 after 10
    assert cells(text, "of sgd / of the", "hf") == ["hf", *["1.00 (1.00–1.00)"] * 2, "2.00 (2.00–2.00)"]
    assert cells(text, "of sgd / of the", "ng") == ["ng", *["0.80 in 1 of 2"] * 2, "1.00 in 1 of 2"]
    assert "ng, seed 1: failed: lost <it>" in text
    assert "ng: tuned with 2 trials, fewer than 8" in text
    assert "ng: 2 of 2 trials failed, the first: boom" in text
    assert "sgd: tuned" not in text
    assert "hf, seed 0: ended by itself at cost 8 of 16" in text


def test_word_errors_are_pooled_and_paired(comparison) -> None:
    (wer_dev, less_dev, *_), none = cells(compare_text({"a": comparison}), "errors over", "hf")[1:], "-"
    assert wer_dev == "11.00"
    # speakers: 9+8 and 7+8 errors of sgd, 5+6 and 6+5 of hf, of 100 words each
    assert less_dev.startswith("-5.00 [-6.00, -4.00]")
    assert cells(compare_text({"a": comparison}), "errors over", "ng")[1:] == [none] * 4


def test_folds_are_drawn_together(comparison) -> None:
    other = json.loads(json.dumps(comparison))
    other["systems"]["hf"]["runs"]["0"] = finished([4], [1.0], [0, 0])
    other["systems"]["hf"]["runs"].pop("1")
    text = compare_text({"a": comparison, "b": other})
    assert text.startswith("2 folds: a, b\n")
    # ratios of the last losses: 2/2, 2/2.2, 1/2; the fourth run is missing
    assert cells(text, "final held-out", "hf") == ["hf", f"{(1 / 1.1 / 2) ** (1 / 3):.4f} (0.5000–1.0000) in 3 of 4"]
    assert cells(text, "of sgd / of the", "hf")[3] == f"{(2 * 2 * 4) ** (1 / 3):.2f} (2.00–4.00) in 3 of 4"
    # sgd in the pairs: 16 + 16 + 16 errors; hf: 11 + 11 + 0, of 300 words
    assert cells(text, "errors over", "hf")[1] == f"{100 * 22 / 300:.2f}"
    assert cells(text, "errors over", "hf")[2].startswith(f"{100 * (22 - 48) / 300:+.2f} [")
    assert "b: ng, seed 1: failed" in text
    other["settings"]["reference"] = "hf"
    with pytest.raises(InputError, match="b has other reference than a: hf, not sgd"):
        compare_text({"a": comparison, "b": other})


def test_the_page_stands_alone_and_escapes(comparison) -> None:
    page = compare_page("cmp", comparison)
    assert "lost &lt;it&gt;" in page
    assert "<it>" not in page
    assert not re.search(r"src=|href=|@import|url\(|<script", page)
    assert page.count("<svg") == 6  # four costs, CG iterations, damping
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert len(list(ElementTree.fromstring(svg).iter("path"))) == 3
    assert page.count('<polygon class="s0"') == 4  # sgd has no CG iterations and no damping
    assert page.count('<polygon class="s1"') == page.count('<polygon class="s2"') == 6


def test_the_command_draws_comparisons_again(comparison, tmp_path: Path, capsys) -> None:
    for place in ("one/compare.json", "two/compare.json", "three.json"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(json.dumps(comparison))
    page = tmp_path / "page.md"
    page.write_text("<!-- bench compare three:begin -->\n<!-- bench compare three:end -->\n"
                    "<!-- bench compare one+two:begin -->\n<!-- bench compare one+two:end -->\n")  # fmt: skip
    run(["bench", "table", f"{tmp_path}/three.json", "--markdown", str(page)])
    assert compare_text({"three": comparison}) in page.read_text()
    folds = [f"{tmp_path}/{name}/compare.json" for name in ("one", "two")]
    run(["bench", "table", *folds, "--markdown", str(page)])
    assert "2 folds: one, two" in page.read_text()
    with pytest.raises(InputError, match="same name"):
        run(["bench", "table", folds[0], folds[0]])
    (tmp_path / "other.json").write_text('{"unit": {}, "rows": []}')
    with pytest.raises(InputError, match="only if all are comparisons"):
        run(["bench", "table", folds[0], f"{tmp_path}/other.json"])
    (tmp_path / "other.json").write_text('{"systems": {"a": 3}}')
    with pytest.raises(InputError, match=r"other\.json holds nothing"):
        run(["bench", "table", f"{tmp_path}/other.json"])


def test_the_command_holds_systems_against_another_reference(comparison, tmp_path: Path, capsys) -> None:
    (tmp_path / "cmp.json").write_text(json.dumps(comparison))
    run(["bench", "table", f"{tmp_path}/cmp.json", "--reference", "hf"])
    text = capsys.readouterr().out
    assert cells(text, "errors over", "sgd")[2].startswith("+5.00 [")
    assert cells(text, "errors over", "hf")[2] == "-"
    with pytest.raises(InputError, match="no system is called adam"):
        run(["bench", "table", f"{tmp_path}/cmp.json", "--reference", "adam"])
    (tmp_path / "other.json").write_text('{"unit": {}, "rows": []}')
    with pytest.raises(InputError, match="no system is called hf"):
        run(["bench", "table", f"{tmp_path}/other.json", "--reference", "hf"])


def test_a_picture_for_markdown(comparison, tmp_path: Path) -> None:
    (tmp_path / "cmp.json").write_text(json.dumps(comparison))
    line = ["bench", "table", f"{tmp_path}/cmp.json", "--svg", f"{tmp_path}/cmp.svg"]
    run(line)
    whole = ElementTree.parse(tmp_path / "cmp.svg").getroot()
    marks = [each for each in whole.iter() if each.tag.endswith("polygon")]
    assert len(marks) == 9  # three systems by cost, update and vectors
    assert [float(x) for x in whole.get("viewBox").split()[2:]] == [1380, 252]
    run([*line, "--systems", "sgd,hf"])
    texts = [each.text for each in ElementTree.parse(tmp_path / "cmp.svg").iter() if each.tag.endswith("text")]
    assert texts[:2] == ["sgd", "hf"]
    assert "ng" not in texts
    with pytest.raises(InputError, match="no system 'xyz' was compared"):
        run([*line, "--systems", "xyz"])
    (tmp_path / "two.json").write_text(json.dumps(comparison))
    with pytest.raises(InputError, match="is not one comparison"):
        run(["bench", "table", f"{tmp_path}/cmp.json", f"{tmp_path}/two.json", "--svg", f"{tmp_path}/no.svg"])
