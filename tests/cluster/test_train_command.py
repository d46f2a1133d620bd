"""`mpiexec -n N asr-hf train`: a run on ranks, bad input with exit status 2, a rank that dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from asr_hf.training.monitor import read_log

SMALL = [
    "model.hidden_layers=1",
    "model.width=12",
    "model.context=1",
    "optimizer.updates=4",
    "optimizer.curvature_share=0.3",
]


def arguments(corpus: Path, run: Path, *more: str) -> list[str]:
    data = [f"corpus.train={corpus}/train", f"corpus.heldout={corpus}/heldout", f"corpus.alignments={corpus}/ali"]
    return ["-m", "asr_hf.cli.main", "train", str(run), *data, *SMALL, "optimizer.minibatch_frames=200", *more]


SHARDED = [
    "optimizer.blocks=2",
    "optimizer.preconditioner.kinds=[lbfgs]",
    "optimizer.preconditioner.pairs=4",
    "optimizer.preconditioner.sharded=true",
]


def test_a_run_on_two_ranks_equals_that_on_one_and_goes_on_on_three(tiny_corpus, tmp_path, mpiexec) -> None:
    command = [sys.executable, *arguments(tiny_corpus, tmp_path / "one", *SHARDED)]
    one = subprocess.run(command, capture_output=True, text=True, check=False)
    assert one.returncode == 0, one.stderr
    two = mpiexec(2, *arguments(tiny_corpus, tmp_path / "two", *SHARDED))
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("starting a new run") == 1
    # the same run, cut back to its second update and resumed on three ranks
    run = tmp_path / "two"
    before = load_file(run / "model.safetensors")
    for path in ("model.json", "model.safetensors", "checkpoints/000004-00000000/state.json"):
        (run / path).unlink()
    three = mpiexec(3, *arguments(tiny_corpus, run, *SHARDED, "cluster.dedicated_master=true"))
    assert three.returncode == 0, three.stderr
    assert "is damaged" in three.stdout
    assert "resuming" in three.stdout
    after, alone = load_file(run / "model.safetensors"), load_file(tmp_path / "one" / "model.safetensors")
    assert all(before[name].equal(after[name]) and before[name].equal(alone[name]) for name in alone)
    assert [row["rank_frames"][0] for row in read_log(run / "log.jsonl")][-1] == 0  # the dedicated master


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["optimizer.updates=0"], "optimizer.updates"),
        (["optimizer.nonsense=1"], "nonsense"),
        (["corpus.alignments=/nowhere"], "corpus.alignments"),
    ],
)
def test_bad_options_end_with_status_2_and_are_said_once(more, said, tiny_corpus, tmp_path, mpiexec) -> None:
    done = mpiexec(2, *arguments(tiny_corpus, tmp_path / "run", *more))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("asr-hf: error") == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_other_commands_and_help_under_mpiexec(mpiexec) -> None:
    done = mpiexec(2, "-m", "asr_hf.cli.main", "score", "a", "b", "c")
    assert done.returncode == 2
    assert "one process" in done.stderr
    helped = mpiexec(2, "-m", "asr_hf.cli.main", "train", "--help")
    assert helped.returncode == 0
    assert helped.stdout.count("usage: asr-hf train") == 1


def test_a_worker_that_is_killed_ends_the_run_and_the_run_can_be_resumed(tiny_corpus, tmp_path) -> None:
    launcher = Path(sys.executable).parent / "mpiexec"
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    many = arguments(tiny_corpus, tmp_path / "run", "optimizer.updates=400", "optimizer.stop_rejections=400")
    command = [str(launcher), "--oversubscribe", "-n", "2", sys.executable, *many]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 60
    while len(read_log(log)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    killed = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - killed < 10
    assert process.returncode != 0
    assert any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def worker_of(launcher: int) -> int:
    """Process id of MPI rank 1 among the descendants of mpiexec."""
    for status in Path("/proc").glob("[0-9]*"):
        try:
            environment = (status / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"OMPI_COMM_WORLD_RANK=1" in environment and descends(int(status.name), launcher):
            return int(status.name)
    raise AssertionError("no rank 1 found")


def descends(process: int, ancestor: int) -> bool:
    while process > 1:
        if process == ancestor:
            return True
        process = int((Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return False
