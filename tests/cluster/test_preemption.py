"""A scheduler's signal to a run on ranks: all end together, and the same command goes on on another number of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS
from asr_hf.training.monitor import read_log
from asr_hf.training.run import train

SMALL = ["model.hidden_layers=1", "model.width=12", "model.context=1", "model.norm=batch", "model.dropout=0.1"]
METHODS = {
    "hf": ["optimizer=hf", "optimizer.updates=8", "optimizer.stop_rejections=8", "optimizer.curvature_share=0.3"],
    "adam": ["optimizer=adam", "optimizer.epochs=5", "optimizer.newbob_start=0", "optimizer.minibatch_frames=100"],
}


def overrides(corpus: Path, method: str) -> list[str]:
    folders = {"train": "train", "heldout": "heldout", "alignments": "ali"}
    return [*(f"corpus.{name}={corpus / folder}" for name, folder in folders.items()), *SMALL, *METHODS[method]]


def run_here(folder: Path, corpus: Path, method: str) -> None:
    options = compose(GROUPS, overrides(corpus, method))
    train(folder, options, to_yaml(options))


def preempted(ranks: int, folder: Path, corpus: Path, method: str, rows: int) -> str:
    """What a run says whose mpiexec gets SIGUSR1, which it forwards, once the log has so many rows."""
    launcher = [str(Path(sys.executable).parent / "mpiexec"), "--oversubscribe", "-n", str(ranks), sys.executable]
    command = [*launcher, "-m", "asr_hf.cli.main", "train", str(folder), *overrides(corpus, method)]
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    pipe, deadline = subprocess.PIPE, time.monotonic() + 100
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        while len(read_log(folder / "log.jsonl")) < rows and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGUSR1)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 99, errors
    assert "Traceback" not in errors
    return said


@pytest.mark.parametrize(("method", "ranks"), [("hf", [2]), ("adam", [2, 3])])
def test_a_run_goes_on_on_other_numbers_of_ranks(method: str, ranks: list[int], tiny_corpus, tmp_path, capsys) -> None:
    """On `ranks` one after the other, each time preempted, and to its end on one."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_here(whole, tiny_corpus, method)
    for rows, number in enumerate(ranks, 1):
        said = preempted(number, parted, tiny_corpus, method, rows)
        assert said.startswith("starting a new run in " if rows == 1 else f"resuming {parted} after update")
        assert said.count("SIGUSR1: the run ends here with exit status 99; the same command goes on from") == 1
        assert f"; {number} ranks" in said
    capsys.readouterr()
    run_here(parted, tiny_corpus, method)
    assert capsys.readouterr().out.startswith(f"resuming {parted} after update")
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (whole, parted))
    assert all(theirs[name].equal(ours[name]) for name in theirs)
    heldout, others = ([row["heldout"] for row in read_log(folder / "log.jsonl")] for folder in (whole, parted))
    assert heldout == others
