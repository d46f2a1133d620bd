"""`asr-hf model show`: the table, the totals, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from asr_hf.cli.main import run
from asr_hf.errors import InputError
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.saved import log_prior, save_model

TDNN = ["--input-dim", "4", "--pdfs", "7", "model=tdnn", "model.width=5", "model.contexts=[[-1,0,1],[-1,0,1],[-3,0,3]]"]


def test_a_model_given_by_options(capsys) -> None:
    run(["model", "show", *TDNN, "model.subsampling=3", "model.dropout=0.1", "model.norm=batch"])
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines()]
    assert table[0] == ["block", "parameter", "shape", "count", "uses", "per", "frame"]
    assert ["layer1", "layer1.weight", "5", "x", "12", "60", "3"] in table
    assert ["layer2", "layer2.norm.bias", "5", "5", "1"] in table
    assert ["output", "output.weight", "7", "x", "5", "35", "1"] in table
    counts = [int(row[-2].replace(",", "")) for row in table[1:15]]
    assert f"Tdnn: {sum(counts)} parameters in 4 blocks" in out
    assert sum(counts) == 5 * 12 + 2 * 5 * 15 + 3 * 3 * 5 + 7 * 5 + 7
    assert "context of an output frame: 5 input frames to its left and 5 to its right" in out
    assert "one output frame for 3 input frames: a context of 1.67 and 1.67" in out
    assert "dropout: layer1 (5 units, rate 0.1), layer2" in out
    assert "norms with stored statistics: layer1.norm (5 units)" in out
    assert "hidden states: layer1, layer2, layer3" in out


def test_a_tdnnf_shows_its_constraint(capsys) -> None:
    run(["model", "show", *TDNN[:4], "model=tdnnf", "model.strides=[1,0]"])
    out = capsys.readouterr().out
    assert "semi-orthogonal, weight 0.01: layer2.bottleneck, layer3.bottleneck" in out
    assert "dropout: none" in out


def test_a_saved_model(tmp_path: Path, capsys) -> None:
    options = DnnOptions(hidden_layers=2, width=6, context=2)
    save_model(tmp_path, options.build(3, 4, seed=0), options, log_prior(np.arange(4), 1e-5))
    run(["model", "show", str(tmp_path)])
    out = capsys.readouterr().out
    assert "input: 3 features a frame; output: 4 pdfs" in out
    assert "context of an output frame: 2 input frames to its left and 2 to its right" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither a MODEL folder nor --input-dim"),
        (["--input-dim", "3", "model=tdnn"], "neither a MODEL folder nor --pdfs"),
        (["--input-dim", "0", "--pdfs", "3"], "--input-dim 0"),
        (["somewhere", "model=tdnn"], "not by both"),
        (["somewhere"], "no finished model"),
        ([*TDNN, "model.subsampling=2"], r"model\.subsampling"),
    ],
)
def test_what_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(["model", "show", *words])
