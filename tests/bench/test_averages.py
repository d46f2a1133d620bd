"""Averages of replicas beside their members and their start: what the file holds against what the commands say."""

import json
from pathlib import Path

import pytest

from asr_hf.bench.compare_runs import model_loss
from asr_hf.cli.config import compose
from asr_hf.cli.main import run
from asr_hf.cli.train import GROUPS
from asr_hf.errors import InputError

MODEL = ["model.hidden_layers=1", "model.width=6", "model.context=0", "model.norm=batch"]
SGD = ["optimizer=sgd", "optimizer.epochs=1", "optimizer.minibatch_frames=200", "optimizer.rate=0.05"]


def overrides(corpus: Path) -> list[str]:
    folders = [f"corpus.{name}={corpus}/{name}" for name in ("train", "heldout")]
    return [*folders, f"corpus.alignments={corpus}/ali", *MODEL, *SGD]


@pytest.fixture(scope="module")
def averages(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with averages of two replicas each: `warm`, from the run `start`, and `fresh`, from random weights."""
    root = tmp_path_factory.mktemp("averages")
    run(["train", str(root / "start"), *overrides(tiny_corpus)])
    replicas = ["--replicas", "2", *overrides(tiny_corpus)]
    run(["average", str(root / "warm"), *replicas, f"training.init={root}/start"])
    run(["average", str(root / "fresh"), *replicas])
    return root


def test_every_model_is_judged(
    averages: Path, dev: Path, graph: Path, tiny_corpus: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "averages.json"
    judges = ["--dev", str(dev), "--dev-alignments", f"{dev}/ali"]
    decoding = ["--graph", str(graph), "--decode-dev", str(dev), "--decode-test", str(dev)]
    run(["bench", "averages", f"{averages}/warm", f"{averages}/fresh", "--out", str(out), *judges, *decoding])
    found = json.loads(out.read_text())["averages"]
    assert list(found) == ["warm", "fresh"]
    assert found["fresh"]["start"] is None
    assert found["warm"]["optimizer"]["rate"] == 0.05
    options = compose(GROUPS, overrides(tiny_corpus))
    for name, judged in found.items():
        said = json.loads((averages / name / "average.json").read_text())
        models = {name: judged["average"], **{f"{name}/replica-{k}": row for k, row in enumerate(judged["members"])}}
        if judged["start"] is not None:
            models["start"] = judged["start"]
        assert [row["heldout"] for row in judged["members"]] == [row["heldout"] for row in said["members"]]
        assert judged["average"]["heldout"] == said["heldout"]
        for model, row in models.items():
            assert row["dev"] == model_loss(averages / model, options, (str(dev), f"{dev}/ali"))
            kept = json.loads((averages / model / "decode" / "words.json").read_text())["result"]
            assert row["wer"] == kept
    text = capsys.readouterr().out
    assert str(tmp_path) not in out.read_text()
    page = tmp_path / "page.md"
    page.write_text("<!-- bench averages averages:begin -->\n<!-- bench averages averages:end -->\n")
    run(["bench", "table", str(out), "--markdown", str(page)])
    drawn = capsys.readouterr().out.strip()
    assert drawn in text
    assert drawn in page.read_text()


def test_what_is_no_average_of_replicas_is_refused(
    averages: Path, dev: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    judges = ["--out", str(tmp_path / "a.json"), "--dev", str(dev), "--dev-alignments", f"{dev}/ali"]
    members = [f"{averages}/warm/replica-{k}" for k in range(2)]
    run(["average", str(tmp_path / "of"), "--of", *members, *overrides(tiny_corpus)])
    for folder, why in (
        (averages / "start", "start holds no average"),
        (tmp_path / "of", "of is an average of finished models"),
    ):
        with pytest.raises(InputError, match=why):
            run(["bench", "averages", str(folder), *judges])
    with pytest.raises(InputError, match="--decode-dev is missing"):
        run(["bench", "averages", f"{averages}/warm", *judges, "--graph", str(tmp_path)])
    assert not (tmp_path / "a.json").exists()
