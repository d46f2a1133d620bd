"""The choice of scales: on surfaces of errors that are known, and on a small task."""

import json

import pytest

from asr_hf.cli.main import run
from asr_hf.decoding.search import DecodingOptions
from asr_hf.decoding.tune import PENALTIES, best_point, read_tuned, tune
from asr_hf.errors import InputError

SCALES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28)


def bowl(scale, penalty):
    """Errors that are fewest at one scale (in octaves) and penalty."""
    from math import log2

    return lambda point: int(50 + 40 * log2(point[0] / scale) ** 2 + 8 * (point[1] - penalty) ** 2)


@pytest.mark.parametrize("scale", [0.05, 0.1, 0.28])
@pytest.mark.parametrize("penalty", [0.0, 2.0, 3.0])
def test_the_best_point_of_the_grid_is_found(scale, penalty):
    tried, best = best_point(bowl(scale, penalty), SCALES, PENALTIES)
    assert best == (scale, penalty)
    assert tried[best] == min(tried.values())
    assert len(tried) <= 16


def test_the_grid_grows_where_the_best_lies_on_its_end():
    tried, best = best_point(bowl(2.0, -2.0), SCALES, PENALTIES)
    assert best[1] == -2.0
    assert 1.5 < best[0] < 2.5
    assert max(scale for scale, _ in tried) > best[0]  # it went on to see it grow worse
    assert min(penalty for _, penalty in tried) < best[1]
    _, best = best_point(bowl(0.012, 6.0), SCALES, PENALTIES)
    assert best[1] == 6.0
    assert 0.01 < best[0] < 0.014


def test_growth_has_an_end():
    tried, _ = best_point(lambda point: int(1000 - 100 * point[0] ** 0.1), (0.1, 0.2), (0.0,))
    assert len(tried) < 30


def test_a_clearly_worse_side_is_not_walked_to_its_end():
    tried, best = best_point(bowl(0.28, 2.0), (0.001, 0.01, 0.05, 0.1, 0.14, 0.2, 0.28), PENALTIES)
    assert best == (0.28, 2.0)
    assert min(scale for scale, _ in tried) > 0.01


def test_of_equals_the_middle_is_taken_and_nothing_grows():
    tried, best = best_point(lambda point: 0, SCALES, PENALTIES)
    assert best == (0.14, 2.0)
    assert {scale for scale, _ in tried} == set(SCALES)
    assert {penalty for _, penalty in tried} == set(PENALTIES)


def test_penalty_and_scale_that_depend_on_each_other():
    def valley(point):
        octaves = 2 * (point[0] - 0.1) / 0.1
        return int(50 + 20 * (octaves - (point[1] - 1)) ** 2 + 10 * (point[1] - 3) ** 2)

    grid = [0.05, 0.1, 0.15, 0.2, 0.25]
    tried, best = best_point(valley, grid, PENALTIES)
    assert best == (0.2, 3.0)
    assert tried[best] == min(valley((scale, penalty)) for scale in grid for penalty in PENALTIES)


def test_a_scale_is_found_beyond_a_grid_that_is_too_low(task):
    tuned = tune(task.feats, task.graph, task.model, task.out, DecodingOptions(), (0.05, 0.1), (0.0, 1.0))
    first = [point for point in tuned.grid if point["acoustic_scale"] <= 0.1]
    assert min(point["wer"] for point in first) > 50  # words are lost
    assert tuned.acoustic_scale > 0.3
    assert tuned.wer < 15
    assert tuned.wer == 100 * tuned.errors / tuned.words == min(point["wer"] for point in tuned.grid)
    assert read_tuned(task.out / "tuned.json") == (tuned.acoustic_scale, tuned.word_penalty)


def test_the_grid_stands_around_the_models_own_scale(task):
    tuned = tune(task.feats, task.graph, task.model, task.out, DecodingOptions(), penalties=(0.0,))
    tried = {point["acoustic_scale"] for point in tuned.grid}
    assert {0.14, 0.2, 0.28} <= tried  # the lower half is not always walked


def test_jobs_do_not_change_a_byte_and_the_command_prints_the_choice(task, capsys):
    texts = []
    for jobs in ("1", "2"):
        line = ["tune", *map(str, (task.feats, task.graph, task.model, task.out)), "--jobs", jobs]
        run([*line, "--scales", "0.5,1", "--penalties=-1,0", "decoding.beam=20"])
        texts.append((task.out / "tuned.json").read_bytes())
    assert texts[0] == texts[1]
    facts = json.loads(texts[0])
    assert facts["options"]["beam"] == 20
    assert f"acoustic scale {facts['acoustic_scale']:g}, word penalty" in capsys.readouterr().out


def test_bad_grids_and_missing_transcripts_are_refused(task):
    folders = (task.feats, task.graph, task.model, task.out)
    with pytest.raises(InputError, match="--scales"):
        tune(*folders, DecodingOptions(), (0.0, 0.1))
    with pytest.raises(InputError, match="--penalties"):
        tune(*folders, DecodingOptions(), (0.1,), (float("inf"),))
    with pytest.raises(InputError, match="--jobs"):
        tune(*folders, DecodingOptions(), jobs=0)
    text = (task.feats / "text").read_text().splitlines(keepends=True)
    (task.feats / "text").write_text("".join(text[1:]))
    with pytest.raises(InputError, match="s0-u00"):
        tune(*folders, DecodingOptions())
    assert not task.out.exists()
