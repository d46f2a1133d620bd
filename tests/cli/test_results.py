"""`asr-hf results`: rows are added, replaced, printed and put into RESULTS.md."""

import json

import pytest

from asr_hf.cli.main import run
from asr_hf.errors import InputError

SCORE = {"wer": 5.3, "ci95": [3.6, 7.0], "errors": 41, "words": 773, "speakers": {}}


@pytest.fixture
def add(tmp_path):
    """Adds a row to tmp_path/results.json through the command."""

    def add_row(system, set="test", seed=0, **changes):
        (tmp_path / "score.json").write_text(json.dumps({**SCORE, **changes}))
        line = ["results", str(tmp_path / "results.json"), "--add", system, "--set", set, "--seed", str(seed)]
        run([*line, "--score", str(tmp_path / "score.json"), "--seconds", "12.5"])

    return add_row


def rows(tmp_path):
    return json.loads((tmp_path / "results.json").read_text())


def test_rows_have_exactly_the_agreed_keys(tmp_path, add):
    add("tri")
    assert rows(tmp_path) == [
        {"system": "tri", "set": "test", "seed": 0, "wer": 5.3, "errors": 41, "words": 773, "ci95": [3.6, 7.0],
         "seconds": 12.5}
    ]  # fmt: skip


def test_a_row_replaces_that_of_the_same_system_set_and_seed(tmp_path, add):
    add("mono")
    add("tri")
    add("mono", "dev", wer=8.0)
    add("mono", "test", 1, wer=9.0)
    add("mono", wer=10.0)
    got = [(r["system"], r["set"], r["seed"], r["wer"]) for r in rows(tmp_path)]
    assert got == [
        ("mono", "test", 0, 10.0),
        ("tri", "test", 0, 5.3),
        ("mono", "dev", 0, 8.0),
        ("mono", "test", 1, 9.0),
    ]


def test_a_bad_score_leaves_the_rows_alone(tmp_path, add):
    add("mono")
    before = (tmp_path / "results.json").read_bytes()
    for change in ({"wer": None}, {"wer": float("nan")}, {"ci95": [1]}, {"errors": "many"}):
        with pytest.raises(InputError, match=r"score\.json"):
            add("tri", **change)
    assert (tmp_path / "results.json").read_bytes() == before


def test_line_prints_the_wer_of_one_system(tmp_path, add, capsys):
    add("mono", wer=7.0)
    add("dnn-ce-hf", wer=2.345)
    capsys.readouterr()
    results = str(tmp_path / "results.json")
    run(["results", results, "--line", "digits test", "--system", "dnn-ce-hf", "--set", "test"])
    assert capsys.readouterr().out in ("digits test WER 2.34 %\n", "digits test WER 2.35 %\n")
    with pytest.raises(InputError, match="no result of system lstm on test"):
        run(["results", results, "--line", "x", "--system", "lstm", "--set", "test"])


def test_table_goes_to_the_terminal_and_between_the_markers(tmp_path, add, capsys):
    add("mono")
    add("tri", wer=4.25)
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n<!-- results:begin -->\nold\n<!-- results:end -->\nend\n")
    capsys.readouterr()
    for _ in range(2):  # a second time changes nothing
        run(["results", str(tmp_path / "results.json"), "--table", "--markdown", str(page)])
    table = capsys.readouterr().out
    assert "mono" in table
    assert "4.25" in table
    lines = page.read_text().splitlines()
    assert lines[:2] == ["# Results", "<!-- results:begin -->"]
    assert lines[-2:] == ["<!-- results:end -->", "end"]
    assert [line.split(" | ")[3] for line in lines[2:-2]] == ["WER %", "---:", "5.30", "4.25"]
    page.write_text("no markers")
    with pytest.raises(InputError, match="markers"):
        run(["results", str(tmp_path / "results.json"), "--table", "--markdown", str(page)])


def test_damaged_or_missing_results_are_named(tmp_path, add):
    results = tmp_path / "results.json"
    with pytest.raises(InputError, match="holds no results"):
        run(["results", str(results), "--table"])
    for text in ("{", "{}", '[{"system": "mono"}]'):
        results.write_text(text)
        with pytest.raises(InputError, match="is damaged"):
            add("mono")
        assert results.read_text() == text


def test_published_results_say_how_they_were_made_and_give_the_same_table(tmp_path, add, capsys):
    add("mono")
    published = tmp_path / "docs" / "an4.json"
    results = str(tmp_path / "results.json")
    run(["results", results, "--publish", str(published), "--command", "recipes/an4/run.sh"])
    content = json.loads(published.read_text())
    assert content["command"] == "recipes/an4/run.sh"
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["torch"].startswith("2.")
    capsys.readouterr()
    run(["results", results, "--table"])
    table = capsys.readouterr().out
    run(["results", str(published), "--table"])
    assert capsys.readouterr().out == table
    with pytest.raises(InputError, match="--command"):
        run(["results", results, "--publish", str(published)])


def test_the_difference_of_two_systems_is_paired_by_speaker(tmp_path, capsys):
    def score(name, **speakers):
        rows = {speaker: {"errors": errors, "words": words} for speaker, (errors, words) in speakers.items()}
        (tmp_path / name).write_text(json.dumps({"speakers": rows}))
        return str(tmp_path / name)

    ours = [score("a0", x=(1, 10), y=(2, 20)), score("a1", z=(0, 20))]
    theirs = [score("b0", x=(2, 10), y=(4, 20)), score("b1", z=(1, 20))]
    run(["results", str(tmp_path / "d.json"), "--difference", *ours, "--from", *theirs])
    assert "WER 6.00 %, reference 14.00 %, difference -8.00" in capsys.readouterr().out
    found = json.loads((tmp_path / "d.json").read_text())
    run(["results", str(tmp_path / "d.json"), "--difference", *ours, "--from", *theirs, "--command", "recipe"])
    published = json.loads((tmp_path / "d.json").read_text())
    assert published.pop("command") == "recipe"
    assert published.pop("machine")["cores"] >= 1
    assert published.pop("versions")["asr_hf"]
    assert published == found
    assert (found["system"]["errors"], found["reference"]["errors"], found["words"], found["speakers"]) == (3, 7, 50, 3)
    assert found["low"] <= found["value"] <= found["high"] < 0
    for wrong, said in (
        ([ours[0]], "same words: speaker z"),
        ([str(tmp_path / "none.json")], "cannot be read"),
        ([str(tmp_path / "d.json")], "is no score.json"),
    ):
        with pytest.raises(InputError, match=said):
            run(["results", str(tmp_path / "d.json"), "--difference", *wrong, "--from", *theirs])
    silent = score("silent", x=(0, 0))
    with pytest.raises(InputError, match="no words at all"):
        run(["results", str(tmp_path / "e.json"), "--difference", silent, "--from", silent])
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(InputError, match="holds no difference"):
        run(["results", str(tmp_path / "results.json"), "--difference", *ours, "--from", *theirs])
    assert (tmp_path / "results.json").read_text() == "[]"
    with pytest.raises(InputError, match="--from does not go with --table"):
        run(["results", str(tmp_path / "results.json"), "--table", "--from", *theirs])
    with pytest.raises(InputError, match="--difference needs --from"):
        run(["results", str(tmp_path / "d.json"), "--difference", *ours])
