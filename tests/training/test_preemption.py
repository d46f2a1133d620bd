"""A scheduler's signals: where a run ends, what it says, and that the same command goes on with the same bits."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS
from asr_hf.errors import OptionError
from asr_hf.models.saved import load_model
from asr_hf.objective.local import LocalObjective
from asr_hf.training.monitor import read_log
from asr_hf.training.run import train

SMALL = ["model.hidden_layers=1", "model.width=12", "model.context=1", "model.norm=batch", "model.dropout=0.1"]
CG = ["optimizer.updates=4", "optimizer.curvature_share=0.3", "optimizer.cg.max_iterations=5"]
METHODS = {
    "hf": ["optimizer=hf", *CG, "optimizer.warm_start=0.9"],
    "hf_sainath": ["optimizer=hf_sainath", *CG, "optimizer.preconditioner.pairs=4"],
    "hf_zhang": ["optimizer=hf_zhang", *CG, "optimizer.blocks=2"],
    "nghf": ["optimizer=nghf", *CG],
    "sgd": ["optimizer=sgd", "optimizer.epochs=2", "optimizer.minibatch_frames=200"],
    "adam": ["optimizer=adam", "optimizer.epochs=2", "optimizer.minibatch_frames=200"],
    "nlcg": [
        "optimizer=nlcg",
        "optimizer.epochs=2",
        "optimizer.minibatch_frames=50",
        "optimizer.minibatches_per_step=4",
    ],
}
FIRST_ORDER = ("sgd", "adam", "nlcg")


def overrides(corpus: Path, *more: str) -> list[str]:
    folders = {"train": "train", "heldout": "heldout", "alignments": "ali"}
    return [*(f"corpus.{name}={corpus / folder}" for name, folder in folders.items()), *SMALL, *more]


def run(folder: Path, corpus: Path, *more: str) -> str:
    options = compose(GROUPS, overrides(corpus, *more))
    return train(folder, options, to_yaml(options))


def signal_at(call: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal within the `call`-th evaluation of a gradient."""
    gradient, count = LocalObjective.gradient, [0]

    def signalling(self, *arguments, **named):
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), number)
        return gradient(self, *arguments, **named)

    monkeypatch.setattr(LocalObjective, "gradient", signalling)


def same(whole: Path, parted: Path) -> bool:
    ours, theirs = (load_model(folder).module.state_dict() for folder in (whole, parted))
    rows, others = (read_log(folder / "log.jsonl") for folder in (whole, parted))
    kept = ("update", "loss", "heldout", "damping", "rho", "cg_iterations", "step", "note")
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and [
        [row[name] for name in kept] for row in rows
    ] == [[row[name] for name in kept] for row in others]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("hf", signal.SIGTERM),
        ("hf", signal.SIGUSR1),
        ("hf_sainath", signal.SIGTERM),
        ("hf_zhang", signal.SIGUSR2),
        ("nghf", signal.SIGUSR1),
        ("sgd", signal.SIGUSR1),
        ("adam", signal.SIGTERM),
        ("nlcg", signal.SIGTERM),
    ],
)
def test_the_same_command_goes_on_to_the_same_bits(
    name: str, number: int, tiny_corpus: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    first_order = name in FIRST_ORDER
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run(whole, tiny_corpus, *METHODS[name])
    with monkeypatch.context() as patch:
        signal_at(17 if first_order else 3, number, patch)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(parted, tiny_corpus, *METHODS[name])
    assert ended.value.code == 99
    # first-order: after the step in work, in the second epoch; SIGTERM drops the update in work, the warnings await it
    place = "000001-" if first_order else "000002-00000000" if number == signal.SIGTERM else "000003-00000000"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        f"{signal.Signals(number).name}: the run ends here with exit status 99; the same command goes"
    )
    assert re.search(f"{parted}/checkpoints/{place}", last)
    assert Path(last.split()[-1]).is_dir()
    assert not (parted / "model.json").exists()
    assert "finished" in run(parted, tiny_corpus, *METHODS[name])
    assert capsys.readouterr().out.splitlines()[0].startswith(f"resuming {parted} after update")
    assert same(whole, parted)


def test_a_signal_while_data_are_loaded(tiny_corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("asr_hf.training.run.build", lambda options, corpus: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "run", tiny_corpus, "training.requeue_status=75")
    assert ended.value.code == 75
    assert capsys.readouterr().out.endswith("the same command starts anew: no checkpoint was written yet\n")
    assert not (tmp_path / "run").exists()


def test_handlers_are_given_back(tiny_corpus: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
    run(tmp_path / "run", tiny_corpus, *METHODS["hf"])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)] == before


@pytest.mark.parametrize("status", [0, 256])
def test_a_status_that_says_nothing_is_refused(status: int, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"training\.requeue_status"):
        run(tmp_path / "run", tiny_corpus, f"training.requeue_status={status}")


def test_a_second_sigterm_kills(tiny_corpus: Path, tmp_path: Path) -> None:
    """The first comes while a first-order method evaluates: it waits for the step's end, which never comes."""
    program = (
        "import sys, time; from asr_hf.optimizers.first_order import Adam; from asr_hf.cli.main import main\n"
        "def endless(*_):\n"
        "    print('in the step', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
        "Adam.move = endless\nmain()"
    )
    command = [sys.executable, "-c", program, "train", str(tmp_path / "run"), *overrides(tiny_corpus, *METHODS["adam"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting a new run in ")  # its first line
        while "in the step" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM


def test_the_first_line_says_whether_the_run_goes_on(tiny_corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Before what is said of utterances without alignment and of damaged checkpoints."""
    import shutil

    from asr_hf.data.archive import read_int_vectors, write_int_vectors

    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    alignments = dict(read_int_vectors(corpus / "ali" / "pdf.scp"))
    del alignments["train-007"]
    write_int_vectors(corpus / "ali" / "pdf", sorted(alignments.items()))
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(3, signal.SIGUSR1, patch)
        with pytest.raises(SystemExit):
            run(folder, corpus, *METHODS["hf"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"starting a new run in {folder}"
    assert "1 utterances" in lines[1]
    newest = max((folder / "checkpoints").iterdir())
    (newest / "state.json").write_text("{}")
    run(folder, corpus, *METHODS["hf"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"resuming {folder} after update 2, from {folder}/checkpoints/000002-00000000"
    assert "1 utterances" in lines[1]
    assert f"{newest} is damaged" in lines[2]
