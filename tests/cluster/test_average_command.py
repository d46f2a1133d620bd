"""`mpiexec -n N asr-hf average`: replicas in turn on all ranks, the bits of one process, bad input with status 2."""

import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

SMALL = [
    "model.hidden_layers=1",
    "model.width=12",
    "model.context=1",
    "model.norm=batch",
    "optimizer=sgd",
    "optimizer.epochs=1",
]


def arguments(corpus: Path, out: Path, *more: str) -> list[str]:
    data = [f"corpus.train={corpus}/train", f"corpus.heldout={corpus}/heldout", f"corpus.alignments={corpus}/ali"]
    return ["-m", "asr_hf.cli.main", "average", str(out), *more, *data, *SMALL]


def test_an_average_on_two_ranks_equals_that_on_one(tiny_corpus: Path, tmp_path: Path, mpiexec) -> None:
    command = [sys.executable, *arguments(tiny_corpus, tmp_path / "one", "--replicas", "2")]
    one = subprocess.run(command, capture_output=True, text=True, check=False)
    assert one.returncode == 0, one.stderr
    two = mpiexec(2, *arguments(tiny_corpus, tmp_path / "two", "--replicas", "2"))
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("starting a new run") == 2
    for model in ("", "replica-0", "replica-1"):
        alone, shared = (load_file(tmp_path / ranks / model / "model.safetensors") for ranks in ("one", "two"))
        assert all(alone[name].equal(shared[name]) for name in alone)
    said = [json.loads((tmp_path / ranks / "average.json").read_text()) for ranks in ("one", "two")]
    assert said[0] == said[1]
    assert (tmp_path / "two" / "replica-1" / "report.html").is_file()


def test_bad_input_ends_with_status_2(tiny_corpus: Path, tmp_path: Path, mpiexec) -> None:
    done = mpiexec(2, *arguments(tiny_corpus, tmp_path / "out", "--of", "nowhere", "nobody"))
    assert done.returncode == 2, done.stderr
    assert "nowhere holds no finished model" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
