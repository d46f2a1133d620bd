"""Whole runs: rows, checkpoints, exact resumption, refusals. The corpus is the made-up one of conftest."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS
from asr_hf.data.archive import read_int_vectors, write_int_vectors, write_matrices
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.model import HmmModel
from asr_hf.models.saved import load_model
from asr_hf.optimizers.first_order import Adam
from asr_hf.optimizers.hf import HessianFree
from asr_hf.training import checkpoint
from asr_hf.training.monitor import read_log
from asr_hf.training.run import train

SMALL = ["model.hidden_layers=1", "model.width=12", "model.context=1"]
HF = [*SMALL, "optimizer=hf", "optimizer.updates=6", "optimizer.curvature_share=0.3", "optimizer.cg.max_iterations=8"]
ADAM = [*SMALL, "optimizer=adam", "optimizer.epochs=3", "optimizer.minibatch_frames=64"]


def overrides(corpus: Path, *more: str) -> list[str]:
    return [
        f"corpus.train={corpus}/train",
        f"corpus.heldout={corpus}/heldout",
        f"corpus.alignments={corpus}/ali",
        *more,
    ]


def run(folder: Path, corpus: Path, *more: str) -> str:
    options = compose(GROUPS, overrides(corpus, *more))
    return train(folder, options, to_yaml(options))


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).module.state_dict()


def same(a: Path, b: Path) -> bool:
    ours, theirs = parameters(a), parameters(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_leaves_rows_a_model_and_says_so(tiny_corpus: Path, tmp_path: Path, capsys) -> None:
    said = run(tmp_path / "run", tiny_corpus, *HF)
    assert "finished: all 6 updates are done" in said
    assert "starting a new run" in capsys.readouterr().out
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["update"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert {"loss", "heldout", "gradient_norm", "damping", "rho", "cg_iterations", "cg_stop", "step"} <= set(row)
        phases = {"gradient", "linearisation", "products", "master", "evaluation", "communication", "total"}
        assert phases <= set(row["seconds"])
        assert sum(row["rank_frames"]) > 0
        assert row["equivalents"].keys() == {"gradient", "linearisation", "products", "evaluation"}
        assert row["gradient_equivalents"] == pytest.approx(sum(row["equivalents"].values()))
        assert row["vectors"] > 0
    assert rows[-1]["heldout"] < rows[0]["heldout"]
    model = load_model(tmp_path / "run")
    assert model.log_posteriors(np.zeros((7, 8), np.float32)).shape == (7, 12)
    counts = sum(
        np.bincount(v, minlength=12) for k, v in read_int_vectors(tiny_corpus / "ali/pdf.scp").items() if k[0] == "t"
    )
    assert np.allclose(model.log_prior, np.log(counts / counts.sum()), atol=1e-6)
    assert HmmModel.load(tmp_path / "run").num_pdfs == 12
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert len(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")) == 2
    assert "finished already" in run(tmp_path / "run", tiny_corpus, *HF)


LSTM = ["model=lstm", "model.layers=1", "model.cells=6", "model.norm=batch", "model.dropout=0.2", "model.chunk=20"]
LSTM_HF = [*LSTM, *HF[3:], "optimizer.updates=4", "curvature.precision=bf16", "curvature.budget_gib=1e-4"]
LSTM_ADAM = [*LSTM, *ADAM[3:]]


@pytest.mark.parametrize("settings", [HF, ADAM, LSTM_HF, LSTM_ADAM], ids=["hf", "adam", "lstm-hf", "lstm-adam"])
def test_resumed_equals_uninterrupted(
    settings: list[str], tiny_corpus: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, tiny_corpus, *settings)
    settings = [*settings, "training.checkpoint_seconds=1e-9"]  # for Adam: within the epoch, after each step
    kind, seen = (HessianFree, 3) if "optimizer=hf" in settings else (Adam, 25)
    step, count = kind.step, [0]

    def interrupted(self, objective):
        count[0] += 1
        if count[0] == seen:
            raise KeyboardInterrupt
        return step(self, objective)

    monkeypatch.setattr(kind, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tiny_corpus, *settings)
    assert not (broken / "model.json").exists()
    capsys.readouterr()
    run(broken, tiny_corpus, *settings)
    assert "resuming" in capsys.readouterr().out.splitlines()[0]
    assert same(whole, broken)
    before, after = (read_log(folder / "log.jsonl") for folder in (whole, broken))
    assert [row["heldout"] for row in before] == [row["heldout"] for row in after]


def spent(folder: Path) -> float:
    newest = checkpoint.checkpoints(folder / "checkpoints")[-1]
    return json.loads((newest / checkpoint.SCALARS).read_text())["scalars"]["spent"]


def test_a_run_ends_after_the_update_that_reaches_its_budget(tiny_corpus, tmp_path, monkeypatch) -> None:
    run(tmp_path / "whole", tiny_corpus, *HF)
    costs = [row["gradient_equivalents"] for row in read_log(tmp_path / "whole" / "log.jsonl")]
    assert spent(tmp_path / "whole") == pytest.approx(sum(costs))
    budget = [*HF, f"training.budget={sum(costs[:3]):.12g}"]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", tiny_corpus, *budget)
    assert "gradient-equivalents is spent" in run(
        tmp_path / "run", tiny_corpus, *budget
    )  # what was spent is remembered
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 3
    assert spent(tmp_path / "run") == sum(costs[:3])


def test_an_epoch_is_finished_though_its_budget_is_spent_and_pauses_are_not_counted_twice(
    tiny_corpus, tmp_path
) -> None:
    said = run(tmp_path / "run", tiny_corpus, *ADAM, "training.budget=1.5", "training.checkpoint_seconds=1e-9")
    assert "the budget of 1.5 gradient-equivalents is spent" in said
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["equivalents"]["gradient"] for row in rows] == pytest.approx([1.0, 1.0])
    assert spent(tmp_path / "run") == pytest.approx(sum(row["gradient_equivalents"] for row in rows))


def test_a_killed_run_goes_on(tiny_corpus: Path, tmp_path: Path) -> None:
    """SIGKILL through the console command, then the same command again."""
    run(tmp_path / "whole", tiny_corpus, *HF)
    command = [Path(sys.executable).parent / "asr-hf", "train", tmp_path / "killed", *overrides(tiny_corpus, *HF)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while len(read_log(tmp_path / "killed" / "log.jsonl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("resuming", f"{tmp_path / 'killed'} is finished"))
    assert same(tmp_path / "whole", tmp_path / "killed")


def stop_after(updates: int, monkeypatch) -> None:
    step = HessianFree.step

    def stopping(self, objective):
        if self.state.update == updates:
            raise KeyboardInterrupt
        return step(self, objective)

    monkeypatch.setattr(HessianFree, "step", stopping)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tiny_corpus, tmp_path, monkeypatch, capsys) -> None:
    run(tmp_path / "whole", tiny_corpus, *HF)
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", tiny_corpus, *HF)
    newest = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1]
    tensors = newest / checkpoint.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-7])
    capsys.readouterr()
    run(tmp_path / "run", tiny_corpus, *HF)
    out = capsys.readouterr().out
    assert f"{newest} is damaged" in out
    assert "after update 3" in out
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_full_disk_keeps_the_checkpoint_before(tiny_corpus, tmp_path, monkeypatch) -> None:
    save, count = checkpoint.save_file, [0]

    def full(tensors, path):
        count[0] += 1
        if count[0] == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        run(tmp_path / "run", tiny_corpus, *HF)
    kept = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["000001-00000000", "000002-00000000"]
    run(tmp_path / "run", tiny_corpus, *HF)
    run(tmp_path / "whole", tiny_corpus, *HF)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_full_disk_under_the_log_is_said(tiny_corpus, tmp_path, monkeypatch) -> None:
    def full(self, report):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("asr_hf.training.monitor.Monitor.row", full)
        with pytest.raises(InputError, match="No space left"):
            run(tmp_path / "run", tiny_corpus, *HF)
    run(tmp_path / "run", tiny_corpus, *HF)
    run(tmp_path / "whole", tiny_corpus, *HF)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_other_options_for_the_same_run_are_refused(tiny_corpus, tmp_path) -> None:
    run(tmp_path / "run", tiny_corpus, *HF)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(OptionError, match=r"optimizer\.warm_start"):
        run(tmp_path / "run", tiny_corpus, *HF, "optimizer.warm_start=0.5")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_run_that_an_earlier_version_began_goes_on(tiny_corpus, tmp_path) -> None:
    """An option that came later had its default then; with another value the run is another."""
    run(tmp_path / "run", tiny_corpus, *HF)
    config = tmp_path / "run" / "config.yaml"
    lines = [line for line in config.read_text().splitlines(True) if "warm_start" not in line]
    config.write_text("".join(lines))
    assert "finished already" in run(tmp_path / "run", tiny_corpus, *HF)
    with pytest.raises(OptionError, match=r"optimizer\.warm_start differ"):
        run(tmp_path / "run", tiny_corpus, *HF, "optimizer.warm_start=0.5")


def test_a_run_may_start_from_a_model(tiny_corpus, tmp_path) -> None:
    run(tmp_path / "adam", tiny_corpus, *ADAM)
    last = read_log(tmp_path / "adam" / "log.jsonl")[-1]["heldout"]
    run(tmp_path / "hf", tiny_corpus, *HF, f"training.init={tmp_path}/adam")
    assert read_log(tmp_path / "hf" / "log.jsonl")[0]["heldout"] < last
    run(tmp_path / "seeded-3", tiny_corpus, *HF, f"training.init={tmp_path}/adam")
    run(tmp_path / "next", tiny_corpus, *HF, "training.seed=3", f'training.init="{tmp_path}/seeded-{{seed}}"')
    first, last = (read_log(tmp_path / name / "log.jsonl") for name in ("next", "seeded-3"))
    assert first[0]["loss"] < last[0]["loss"]
    with pytest.raises(OptionError, match=r"training\.init"):
        run(tmp_path / "wide", tiny_corpus, *HF, "model.width=13", f"training.init={tmp_path}/adam")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("optimizer.warmstart=0.9", "warmstart"),
        ("optimizer.cg.max_iterations=0", r"cg\.max_iterations"),
        ("model.activation=swish", r"model\.activation"),
        ("model.width=wide", "width"),
        ("optimizer=newton", "newton"),
        ("features=fbank", "features"),
        ("corpus.train=/nowhere", r"corpus\.train"),
    ],
)
def test_bad_options_are_named_before_any_work(wrong: str, named: str, tiny_corpus, tmp_path) -> None:
    with pytest.raises(InputError, match=named):
        run(tmp_path / "run", tiny_corpus, *HF, wrong)
    assert not (tmp_path / "run").exists()


def break_alignment(corpus: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    alignments = dict(read_int_vectors(corpus / "ali" / "pdf.scp"))
    alignments["train-003"] = change(alignments["train-003"])
    write_int_vectors(corpus / "ali" / "pdf", sorted(alignments.items()))


@pytest.fixture
def own_corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


def test_an_alignment_longer_than_its_features_is_named(own_corpus: Path, tmp_path: Path) -> None:
    break_alignment(own_corpus, lambda pdfs: np.append(pdfs, pdfs[-1]))
    with pytest.raises(InputError, match=r"train-003.*frames of alignment"):
        run(tmp_path / "run", own_corpus, *HF)


def test_a_pdf_outside_the_model_is_named(own_corpus: Path, tmp_path: Path) -> None:
    break_alignment(own_corpus, lambda pdfs: np.where(np.arange(len(pdfs)) == 2, 12, pdfs))
    with pytest.raises(InputError, match=r"train-003.*pdf 12"):
        run(tmp_path / "run", own_corpus, *HF)


def test_nan_features_are_named(own_corpus: Path, tmp_path: Path) -> None:
    from asr_hf.data.archive import FeatureArchive

    archive = FeatureArchive(own_corpus / "train" / "feats.scp")
    features = {utterance: np.array(archive[utterance]) for utterance in archive}
    features["train-005"][3, 1] = np.nan
    write_matrices(own_corpus / "train" / "feats", sorted(features.items()))
    with pytest.raises(InputError, match="train-005"):
        run(tmp_path / "run", own_corpus, *HF)


def test_features_of_another_kind_are_refused(own_corpus: Path, tmp_path: Path) -> None:
    from asr_hf.data.features import FeatureOptions
    from asr_hf.data.fingerprint import write_fingerprint

    write_fingerprint(own_corpus / "heldout", FeatureOptions(num_mel_bins=23), dim=8, sample_rate=8000)
    with pytest.raises(InputError, match="num_mel_bins"):
        run(tmp_path / "run", own_corpus, *HF)


def test_utterances_without_alignment_are_left_out_and_said(own_corpus: Path, tmp_path: Path, capsys) -> None:
    alignments = dict(read_int_vectors(own_corpus / "ali" / "pdf.scp"))
    del alignments["train-007"]
    write_int_vectors(own_corpus / "ali" / "pdf", sorted(alignments.items()))
    run(tmp_path / "run", own_corpus, *HF)
    assert "1 utterances" in capsys.readouterr().out


def test_a_heldout_set_inside_the_training_set_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"heldout-000|train-000"):
        run(tmp_path / "run", tiny_corpus, *HF, f"corpus.heldout={tiny_corpus}/train")


def test_the_log_survives_a_cut_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"update": 1}) + "\n" + '{"update": 2, "lo')
    assert read_log(log) == [{"update": 1}]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["model=lstm", "model.cells=4", "curvature.states=[lstm9]"], r"curvature\.states.*lstm9"),
        (["model.hidden_layers=0", "optimizer.structural=0.1"], r"optimizer\.structural"),
        (["curvature.precision=half"], r"curvature\.precision"),
        (["optimizer=hf_blocks", "model.hidden_layers=1"], r"optimizer\.blocks"),
        (["optimizer.partition=[[layer1]]"], r"optimizer\.partition"),
        (["curvature.budget_gib=-1"], r"curvature\.budget_gib"),
    ],
)
def test_impossible_curvature_is_refused(settings: list[str], named: str, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=named):
        run(tmp_path / "run", tiny_corpus, *settings)
    assert not (tmp_path / "run").exists()
