"""scripts/two_hosts: ranks of two hosts over TCP, and a link between them that is cut."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from asr_hf.training.monitor import read_log

ROOT = Path(__file__).parents[2]
UPDATES, CUT_AFTER, NOTICED = 12, 3, 60.0  # seconds; mpiexec probes after 10 s of silence and gives up after 15 more
SMALL = ["model.hidden_layers=1", "model.width=12", "model.context=1", f"optimizer.updates={UPDATES}"]
SMALL += [f"optimizer.stop_rejections={UPDATES}", "optimizer.curvature_share=0.3", "optimizer.minibatch_frames=200"]


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """Skips where the machine cannot have two hosts."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    name = f"probe-{os.getpid()}"
    try:
        for words in (f"netns add {name}", f"-n {name} link add one type veth peer name two"):
            tried = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
            if tried.returncode:
                pytest.skip(f"this machine lets nobody make network namespaces with links: {tried.stderr.strip()}")
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def command(folder: Path, corpus: Path) -> list[str]:
    folders = {"train": "train", "heldout": "heldout", "alignments": "ali"}
    options = [*(f"corpus.{name}={corpus / each}" for name, each in folders.items()), *SMALL]
    return [sys.executable, "-m", "asr_hf.cli.main", "train", str(folder), *options]


def on_two_hosts(words: list[str]) -> subprocess.Popen[str]:
    """A run on two ranks, one a host; what it says goes to its stdout."""
    environment = dict(os.environ, ASR_HF_ENV=sys.prefix)
    launcher = [str(ROOT / "scripts/two_hosts"), "2"]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen([*launcher, *words], env=environment, stdout=pipe, stderr=both, text=True)


def test_a_cut_link_ends_the_run_and_it_goes_on_to_the_same_bits(tiny_corpus: Path, tmp_path: Path) -> None:
    alone, run = tmp_path / "alone", tmp_path / "run"
    subprocess.run(command(alone, tiny_corpus), check=True, capture_output=True, timeout=100)
    with on_two_hosts(command(run, tiny_corpus)) as process:
        deadline = time.monotonic() + 100
        while len(read_log(run / "log.jsonl")) < CUT_AFTER and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        end = f"ha{process.pid}"
        subprocess.run(["ip", "-n", f"asrhf-a-{process.pid}", "link", "set", end, "down"], check=True)
        cut = time.monotonic()
        said, _ = process.communicate(timeout=2 * NOTICED)
    assert time.monotonic() - cut < NOTICED
    assert process.returncode == 75, said  # asr-hf's word for: start the same command again
    assert "asrhf-b" in said.split("lost communication with a remote daemon", 1)[1], said  # the host, by its name
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert str(process.pid) not in left
    assert CUT_AFTER <= len(read_log(run / "log.jsonl")) < UPDATES  # it was cut in the middle
    with on_two_hosts(command(run, tiny_corpus)) as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert f"resuming {run} after update" in said
    assert "2 ranks" in said
    expected, found = (load_file(folder / "model.safetensors") for folder in (alone, run))
    assert all(expected[name].equal(found[name]) for name in expected)
