"""Word errors against hand-made cases and a plain edit distance."""

import json
import math

import numpy as np
import pytest

from asr_hf.cli.main import run
from asr_hf.data.kaldi_dir import write_speakers, write_transcripts
from asr_hf.decoding.score import score
from asr_hf.decoding.score_report import score_text, totals_line
from asr_hf.errors import InputError

REF = {"a1": ("x", "y", "z"), "a2": (), "b1": ("x", "x"), "b2": ("z",)}
HYP = {"a1": ("x", "q", "z", "z"), "a2": ("y",), "b1": ("x",), "b2": ("z",)}
SPEAKERS = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}


def edit_distance(ref, hyp):
    """Levenshtein's recursion, row by row."""
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        row, above = [i], row
        for j, h in enumerate(hyp, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (r != h)))
    return row[-1]


def test_counts_of_a_hand_made_case():
    got = score(REF, HYP, SPEAKERS)
    t = got.totals
    assert (t.utterances, t.utterances_wrong, t.words, t.correct) == (4, 3, 6, 4)
    assert (t.substitutions, t.deletions, t.insertions, t.errors) == (1, 1, 2, 4)
    assert got.wer == pytest.approx(400 / 6)
    assert {name: (c.errors, c.words) for name, c in got.speakers.items()} == {"a": (3, 3), "b": (1, 3)}
    assert got.confusions == {("y", "q"): 1}
    assert got.insertions == {"z": 1, "y": 1}
    assert got.deletions == {"x": 1}


def test_errors_are_the_plain_edit_distance():
    rng = np.random.default_rng(0)
    ref, hyp = ({str(u): tuple(rng.choice(list("abc"), size=rng.integers(0, 9))) for u in range(300)} for _ in range(2))
    got = score(ref, hyp, dict.fromkeys(ref, "s"))
    for utterance, pairs in got.alignments.items():
        assert sum(r != h for r, h in pairs) == edit_distance(ref[utterance], hyp[utterance])
        assert tuple(r for r, _ in pairs if r) == ref[utterance]
        assert tuple(h for _, h in pairs if h) == hyp[utterance]
    assert got.totals.errors == sum(edit_distance(ref[u], hyp[u]) for u in ref)
    assert got.totals.words == got.totals.correct + got.totals.substitutions + got.totals.deletions


def test_the_interval_is_that_of_the_bootstrap_over_utterances():
    """Against Bisani and Ney's resampling by numpy: error rates of utterances drawn with replacement."""
    rng = np.random.default_rng(1)
    words, wrong = rng.integers(3, 8, size=80), rng.binomial(3, 0.2, size=80)
    ref = {f"u{i:02d}": ("a",) * n for i, n in enumerate(words)}
    hyp = {f"u{i:02d}": ("a",) * (n - e) + ("b",) * e for i, (n, e) in enumerate(zip(words, wrong, strict=True))}
    low, high = score(ref, hyp, dict.fromkeys(ref, "s")).ci95
    drawn = rng.integers(0, 80, size=(20000, 80))
    rates = 100 * wrong[drawn].sum(1) / words[drawn].sum(1)
    want = np.percentile(rates, [2.5, 97.5])
    assert [low, high] == pytest.approx(want, abs=0.6)  # the width is about 9
    assert low < 100 * wrong.sum() / words.sum() < high


def test_empty_references_never_make_the_interval_infinite():
    ref = {"a": (), "b": ("x",), "c": (), "d": ()}
    hyp = {"a": ("y",), "b": ("x",), "c": ("y",), "d": ()}
    got = score(ref, hyp, dict.fromkeys(ref, "s"))
    assert got.wer == 200
    assert all(map(math.isfinite, got.ci95))
    assert score({"b": ("x",)}, {"b": ()}, {"b": "s"}).wer == 100


@pytest.mark.parametrize(
    ("ref", "hyp", "speakers", "message"),
    [
        (REF, {u: HYP[u] for u in ("a1", "a2", "b1")}, SPEAKERS, "1 of 4 utterances have no hypothesis.*b2"),
        (REF, {**HYP, "c9": ("x",)}, SPEAKERS, "without a reference.*c9"),
        (REF, HYP, dict.fromkeys(("a1", "a2", "b2"), "s"), "b1 has no speaker"),
        ({"a": ()}, {"a": ("x",)}, {"a": "s"}, "no utterance has a reference word"),
        ({}, {}, {}, "no utterance has a reference word"),
    ],
)
def test_what_cannot_be_scored_is_named(ref, hyp, speakers, message):
    with pytest.raises(InputError, match=message):
        score(ref, hyp, speakers)


def test_the_report_shows_totals_speakers_confusions_and_alignments():
    got = score(REF, HYP, SPEAKERS)
    text = score_text(got)
    assert text.splitlines()[0] == totals_line(got)
    assert totals_line(got).startswith("WER 66.67 % [")
    assert totals_line(got).endswith("]: 4 errors in 6 words (1 sub, 1 del, 2 ins), 4 utterances")
    rows = [line.split() for line in text.splitlines()]
    assert ["a", "2", "3", "66.67", "33.33", "0.00", "66.67", "100.00", "100.00"] in rows
    assert ["1", "y", "->", "q"] in rows
    at = text.index("a1 (speaker a)")
    assert text[at:].splitlines()[1:4] == ["  ref x y z *", "  hyp x q z z", "        S   I"]


def test_the_command_writes_json_and_report(tmp_path, capsys):
    write_transcripts(tmp_path / "text", REF)
    write_speakers(tmp_path, SPEAKERS)
    out = tmp_path / "out"
    out.mkdir()
    write_transcripts(out / "hyp.txt", HYP)
    run(["score", str(tmp_path), str(out / "hyp.txt"), str(out)])
    line = capsys.readouterr().out.strip()
    assert (out / "report.txt").read_text().splitlines()[0] == line
    facts = json.loads((out / "score.json").read_text())
    assert (facts["errors"], facts["words"]) == (4, 6)
    assert facts["wer"] == pytest.approx(400 / 6)
    assert facts["ci95"][0] <= facts["wer"] <= facts["ci95"][1]
    assert facts["speakers"]["b"]["wer"] == pytest.approx(100 / 3)
    run(["score", str(tmp_path), str(out), str(tmp_path / "again")])  # the folder of decode will do as well
    assert (tmp_path / "again" / "score.json").read_bytes() == (out / "score.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [("a1 x\na1 y\n", "duplicate id 'a1'"), (None, "cannot be read"), ("", "4 of 4 utterances")],
)
def test_damaged_hypotheses_are_named_and_nothing_is_written(tmp_path, content, message):
    write_transcripts(tmp_path / "text", REF)
    write_speakers(tmp_path, SPEAKERS)
    hyp = tmp_path / "hyp"
    if content is not None:
        hyp.write_text(content)
    with pytest.raises(InputError, match=message):
        run(["score", str(tmp_path), str(hyp), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
