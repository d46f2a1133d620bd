"""Averages of replicas: their parameters, statistics and losses from files, the same bits after a stop, refusals."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.main import run as command
from asr_hf.cli.train import GROUPS
from asr_hf.data.archive import FeatureArchive, read_int_vectors
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.model import HmmModel
from asr_hf.models.saved import load_model
from asr_hf.objective.objective import OutOfMemory
from asr_hf.optimizers.first_order import Sgd
from asr_hf.training import average as averaging
from asr_hf.training.average import AverageOptions, average
from asr_hf.training.run import train

MODEL = ["model.hidden_layers=2", "model.width=6", "model.context=0", "model.activation=tanh", "model.norm=batch"]
SGD = ["optimizer=sgd", "optimizer.epochs=2", "optimizer.minibatch_frames=200", "optimizer.rate=0.05"]


def overrides(corpus: Path, *more: str, model: Sequence[str] = MODEL) -> list[str]:
    folders = [f"corpus.{name}={corpus}/{name}" for name in ("train", "heldout")]
    return [*folders, f"corpus.alignments={corpus}/ali", *model, *SGD, *more]


def run(out: Path, corpus: Path, *more: str, replicas: int = 3, models: tuple[Path, ...] = ()) -> str:
    what = AverageOptions(0, [str(model) for model in models]) if models else AverageOptions(replicas)
    return average(out, compose(GROUPS, overrides(corpus, *more)), what, to_yaml)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def same(a: Path, b: Path) -> bool:
    ours, theirs = tensors(a), tensors(b)
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def averaged(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("average") / "out"
    assert "average of 3 models" in run(out, tiny_corpus)
    return out


def members(out: Path, count: int = 3) -> list[Path]:
    return [out / f"replica-{k}" for k in range(count)]


def test_parameters_are_the_mean_of_the_members(averaged: Path) -> None:
    mean, each = tensors(averaged), [tensors(folder) for folder in members(averaged)]
    assert not np.array_equal(each[0]["layer1.weight"], each[1]["layer1.weight"])
    for name, found in mean.items():
        if name.rsplit(".")[-1] in ("mean", "var"):
            continue
        exact = sum(member[name].astype(np.float64) for member in each) / 3
        assert np.array_equal(found, exact.astype(np.float32)), name
    assert np.array_equal(mean["log_prior"], each[2]["log_prior"])


def test_models_without_statistics_are_averaged_too(tiny_corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", tiny_corpus, "model.norm=layer", replicas=2)
    mean, each = tensors(tmp_path / "out"), [tensors(folder) for folder in members(tmp_path / "out", 2)]
    for name in set(mean) - {"log_prior"}:
        assert np.array_equal(mean[name], ((each[0][name].astype(np.float64) + each[1][name]) / 2).astype(np.float32))


def test_statistics_are_those_of_a_pass_over_the_training_set(averaged: Path, tiny_corpus: Path) -> None:
    """By minibatches of 2,048 frames, each normalised with its own statistics on the way up."""
    found = {name: torch.from_numpy(value).double() for name, value in tensors(averaged).items()}
    archive = FeatureArchive(tiny_corpus / "train" / "feats.scp")
    x_FD = torch.from_numpy(np.concatenate([archive[utterance] for utterance in archive])).double()
    assert len(x_FD) > 2048
    seen: dict[str, list[torch.Tensor]] = {"layer1": [], "layer2": []}
    for hidden in x_FD.split(2048):
        for name, minibatches in seen.items():
            hidden = torch.tanh(hidden @ found[f"{name}.weight"].T + found[f"{name}.bias"])
            minibatches.append(hidden)
            scale = found[f"{name}.norm.weight"] / (hidden.var(0, correction=0) + 1e-5).sqrt()
            hidden = (hidden - hidden.mean(0)) * scale + found[f"{name}.norm.bias"]
    for name, minibatches in seen.items():
        whole = torch.cat(minibatches)
        assert torch.allclose(found[f"{name}.norm.mean"], whole.mean(0), atol=1e-6)
        assert torch.allclose(found[f"{name}.norm.var"], whole.var(0, correction=0), atol=1e-6)


def test_the_losses_are_those_of_the_saved_models(averaged: Path, tiny_corpus: Path) -> None:
    archive, pdfs = FeatureArchive(tiny_corpus / "heldout" / "feats.scp"), read_int_vectors(tiny_corpus / "ali/pdf.scp")

    def loss(folder: Path) -> float:
        model = load_model(folder)
        found = [model.log_posteriors(archive[u])[np.arange(len(pdfs[u])), pdfs[u]] for u in archive]
        return -float(np.concatenate(found).mean())

    said = json.loads((averaged / "average.json").read_text())
    assert said["heldout"] == pytest.approx(loss(averaged), rel=1e-5)
    assert [row["model"] for row in said["members"]] == ["replica-0", "replica-1", "replica-2"]
    assert [row["heldout"] for row in said["members"]] == pytest.approx([loss(m) for m in members(averaged)], rel=1e-5)
    assert all(0 < row["distance"] < 1 for row in said["members"])


def test_replicas_begin_with_the_same_parameters(tiny_corpus: Path, tmp_path: Path, averaged: Path) -> None:
    """A rate of 1e-30 leaves θ where it was; from a model, the replicas begin there."""
    still = ["optimizer.rate=1e-30", "optimizer.epochs=1", "training.seed=5"]
    run(tmp_path / "out", tiny_corpus, *still, replicas=2)
    assert same(*members(tmp_path / "out", 2))
    options = compose(GROUPS, overrides(tiny_corpus, *still))
    train(tmp_path / "alone", options, to_yaml(options))
    assert same(tmp_path / "out" / "replica-1", tmp_path / "alone")
    shutil.copytree(averaged, tmp_path / "start-5")
    run(tmp_path / "from", tiny_corpus, *still, f"training.init='{tmp_path}/start-{{seed}}'", replicas=2)
    for folder in (tmp_path / "from" / "replica-1", tmp_path / "from"):
        assert same(folder, averaged)


def test_stopped_anywhere_it_goes_on_with_the_same_bits(
    averaged: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    out, move, count = tmp_path / "out", Sgd.move, [0]

    def stopping(self, *arguments):
        count[0] += 1
        if count[0] == 50:  # an epoch has 15 steps: in the second epoch of the second replica
            raise KeyboardInterrupt
        move(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Sgd, "move", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(out, tiny_corpus)
    assert (out / "replica-0" / "model.json").exists()
    assert not (out / "replica-1" / "model.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(averaging, "write_model", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(out, tiny_corpus)
    said = capsys.readouterr().out
    assert f"{out / 'replica-0'} is finished already" in said
    assert f"resuming {out / 'replica-1'}" in said
    run(out, tiny_corpus)
    assert same(out, averaged)
    assert "is finished already" in run(out, tiny_corpus)


def test_a_signal_while_it_averages_names_what_is_kept(averaged, tiny_corpus, tmp_path, monkeypatch, capsys) -> None:
    models = tuple(members(averaged))
    monkeypatch.setattr(averaging, "write_model", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "out", tiny_corpus, models=models)
    assert end.value.code == 99
    assert f"goes on from {models[-1]}" in capsys.readouterr().out


def test_finished_models_are_averaged_too(averaged: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", tiny_corpus, models=tuple(members(averaged)))
    assert same(tmp_path / "out", averaged)
    said = json.loads((tmp_path / "out" / "average.json").read_text())
    assert said["members"][0]["model"] == str(averaged / "replica-0")


def test_minibatches_are_halved_where_memory_is_short(averaged, tiny_corpus, tmp_path, monkeypatch, capsys) -> None:
    losses = averaging.LocalObjective.loss

    def short(self, theta, sample):
        if not self.halvings:
            raise OutOfMemory("no memory")
        return losses(self, theta, sample)

    monkeypatch.setattr(averaging.LocalObjective, "loss", short)
    run(tmp_path / "out", tiny_corpus, models=tuple(members(averaged)))
    assert "2^-1 of the frames" in capsys.readouterr().out
    assert np.array_equal(tensors(tmp_path / "out")["layer2.weight"], tensors(averaged)["layer2.weight"])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ([*MODEL, "model.width=7"], r"replica-0 .*: model\.width differ"),
        ([*MODEL, "model.activation=relu"], r"replica-0 .*: model\.activation differ"),
        (["model=lstm", "model.cells=4"], r"replica-0 is another than"),
    ],
)
def test_members_of_another_model_are_named(model, said, averaged: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    options = compose(GROUPS, overrides(tiny_corpus, model=model))
    with pytest.raises(InputError, match=said):
        average(tmp_path / "out", options, AverageOptions(0, [str(m) for m in members(averaged)]), to_yaml)
    assert not (tmp_path / "out").exists()


def test_a_member_of_another_tree_is_named(averaged: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(averaged / "replica-1", other)
    HmmModel(num_pdfs=12, phones=("SIL",), silence="SIL", states=(12,), trees=(tuple(range(12)),)).save(other)
    with pytest.raises(InputError, match=f"pdfs of {other}"):
        run(tmp_path / "out", tiny_corpus, models=(averaged / "replica-0", other))


def test_other_requests_for_the_same_folder_are_refused(averaged: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"average\.replicas"):
        run(averaged, tiny_corpus, replicas=4)
    with pytest.raises(OptionError, match=r"optimizer\.rate"):
        run(averaged, tiny_corpus, "optimizer.rate=0.2")
    with pytest.raises(OptionError, match="--replicas"):
        run(tmp_path / "out", tiny_corpus, replicas=1)
    with pytest.raises(OptionError, match="--of"):
        run(tmp_path / "out", tiny_corpus, models=(averaged,))
    with pytest.raises(InputError, match=r"nowhere holds no finished model"):
        command(["average", str(tmp_path / "out"), "--of", str(averaged), "nowhere", *overrides(tiny_corpus)])
    assert not (tmp_path / "out").exists()
