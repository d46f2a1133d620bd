"""`asr-hf doctor`: what the facts of ranks mean, and the examination of real ranks, healthy and not."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from asr_hf.cluster.doctor.checks import Finding, Level, diagnose, judge_links, spans
from asr_hf.cluster.doctor.facts import Facts, Launcher, feats_digest, launcher_of, maker_of, ulfm_active
from asr_hf.cluster.doctor.links import Link, VectorTimes, sampled
from asr_hf.errors import InputError

DOCTOR = "import os, sys\n{before}\nfrom asr_hf.cli.main import main\nsys.argv[0] = 'asr-hf'\nmain()"


def healthy(size: int = 4, hosts: int = 2) -> list[Facts]:
    """Facts of ranks with nothing to mend: 2 hosts of 2 cores and 2 GPUs each."""
    on_each = size // hosts
    return [
        Facts(
            rank=rank,
            size=size,
            launcher=Launcher("Open MPI", rank, size),
            host=f"node{rank // on_each}",
            library=("Open MPI", "5.0.11"),
            mpiexec=("/env/bin/mpiexec", "Open MPI", "5.0.11") if rank == 0 else ("", "", ""),
            ulfm=True,
            versions={"Python": "3.11.7", "torch": "2.11.0"},
            threads=1,
            cores=(0, 1),
            machine_cores=2,
            gpus=("H100 a", "H100 b"),
            data={"train": "abc"},
            faults={},
        )
        for rank in range(size)
    ]


def complaints(ranks: list[Facts]) -> list[Finding]:
    return [finding for finding in diagnose(ranks) if finding.level is not Level.OK]


def test_nothing_is_said_of_healthy_ranks() -> None:
    assert complaints(healthy()) == []
    launch = diagnose(healthy())[0]
    assert launch.what == "4 ranks on 2 hosts: node0 (0-1), node1 (2-3)"
    assert complaints([replace(healthy(2, 1)[0], size=1, launcher=Launcher(), ulfm=False)]) == []  # alone


CASES = {
    "alone": ({"size": 1}, [0], Level.ERROR, "launch", "each thinks that it is alone"),
    "no library": ({"library": ("", "no libmpi"), "size": 1}, [0], Level.ERROR, "MPI", "no libmpi"),
    "no mpiexec": ({"mpiexec": ("", "", "")}, [0], Level.WARNING, "MPI", "no mpiexec on PATH"),
    "other mpiexec": ({"mpiexec": ("/b/mpiexec", "MPICH", "4.2")}, [0], Level.ERROR, "MPI", "/b/mpiexec is MPICH 4.2"),
    "old mpiexec": ({"mpiexec": ("/b/mpiexec", "Open MPI", "4.1")}, [0], Level.WARNING, "MPI", "is 4.1"),
    "torch": ({"versions": {"Python": "3.11.7", "torch": "2.9"}}, [2], Level.ERROR, "versions", "2.9 (rank 2)"),
    "library": ({"library": ("Open MPI", "5.0.3")}, [3], Level.ERROR, "versions", "5.0.3 (rank 3)"),
    "ulfm": ({"ulfm": False}, [0, 1, 2, 3], Level.WARNING, "ULFM", "not active"),
    "threads": ({"threads": 4}, [2, 3], Level.WARNING, "threads", "ranks 2-3 on node1 take 8 threads on 2 cores"),
    "bound": ({"threads": 2, "cores": (0,), "machine_cores": 4}, [3], Level.WARNING, "threads", "3 threads on 2"),
    "gpus": ({"gpus": ("H100 a",)}, [0, 1], Level.WARNING, "GPUs", "2 ranks of node0 share 1 GPU"),
    "bare host": ({"gpus": ()}, [2, 3], Level.WARNING, "GPUs", "none visible on node1"),
    "bare rank": ({"gpus": ()}, [3], Level.WARNING, "GPUs", "2 ranks of node1 share 1 GPU"),
    "other data": ({"data": {"train": "abd"}}, [1], Level.ERROR, "data", "abd (rank 1)"),
    "no data": (
        {"data": {}, "faults": {"train": "is missing"}},
        [1, 2],
        Level.ERROR,
        "data",
        "1-2 (node0, node1): is m",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_the_one_complaint(name: str) -> None:
    changes, on, level, subject, said = CASES[name]
    ranks = [replace(one, **changes) if one.rank in on else one for one in healthy()]
    if changes.get("size") == 1:
        ranks = ranks[:1]
    (found,) = complaints(ranks)
    assert (found.level, found.subject) == (level, subject)
    assert said in found.what
    assert found.remedy or subject == "data"  # a fault of data brings its own


def test_ranks_that_did_not_answer_are_named() -> None:
    (found,) = complaints([one for one in healthy(8, 4) if one.rank not in (3, 5, 6)])
    assert found.level is Level.ERROR
    assert "ranks 3, 5-6 of 8 did not answer" in found.what
    assert "node0 (0-1), node1 (2), node2 (4), node3 (7)" in found.remedy


def test_each_rank_may_see_its_own_gpu_alone() -> None:
    own = [replace(one, gpus=(f"H100 {one.rank}",)) for one in healthy()]
    assert complaints(own) == []


def test_a_slow_link_is_named() -> None:
    links = [Link(rank, f"node{rank}", False, 2e-6, 1e10) for rank in range(1, 6)]
    assert {finding.level for finding in judge_links(links, VectorTimes(10, 1e-3, 2e-3))} == {Level.OK}
    slow = replace(links[2], bytes_per_second=1e8)
    (found,) = [one for one in judge_links([*links[:2], slow, *links[3:]], None) if one.level is Level.WARNING]
    assert "rank 3 on node3" in found.what


def test_launchers_are_told_by_their_variables() -> None:
    assert launcher_of({}) == Launcher("", 0, 1)
    ours = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}  # of the daemons that Slurm starts for mpiexec
    assert launcher_of(ours | slurm) == Launcher("Open MPI", 3, 4)
    assert launcher_of({"PMI_SIZE": "8", "PMI_RANK": "5"} | slurm) == Launcher("PMI", 5, 8)
    assert launcher_of(slurm) == Launcher("Slurm", 1, 2)
    assert ulfm_active({"OMPI_MCA_mpi_ft_enable": "1"})
    assert not ulfm_active({"OMPI_MCA_mpi_ft_enable": "0"})
    assert not ulfm_active({})


@pytest.mark.parametrize(
    ("shown", "maker"),
    [
        ("mpiexec (Open MPI) 5.0.11\n\nReport bugs to", ("Open MPI", "5.0.11")),
        ("mpiexec (OpenRTE) 4.1.4\n", ("Open MPI", "4.1.4")),
        ("HYDRA build details:\n    Version:                  5.0.2\n", ("MPICH", "5.0.2")),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307", ("Intel MPI", "2021.9")),
        ("something else 1.2\nmore", ("", "something else 1.2")),
    ],
)
def test_makers_are_told_by_what_mpiexec_prints(shown: str, maker: tuple[str, str]) -> None:
    assert maker_of(shown) == maker


def test_spans_and_samples() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert sampled(["a"]) == []
    assert sampled(["a"] * 3) == [1, 2]
    hosts = [f"node{rank // 8}" for rank in range(4096)]
    chosen = sampled(hosts)
    assert len(chosen) == 16
    assert all(rank % 8 == 0 for rank in chosen)  # one of each host, spread over all
    assert chosen[-1] > 3800
    assert sampled(["a", "a", "b", "b"], most=2) == [1, 2]


def test_a_digest_knows_values_and_names_what_is_missing(tiny_corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_corpus / "heldout", copy)
    before = feats_digest(str(tiny_corpus / "heldout"))
    assert feats_digest(str(copy)) == before
    ark = bytearray((copy / "feats.ark").read_bytes())
    ark[100] ^= 1  # within the first utterance
    (copy / "feats.ark").write_bytes(ark)
    assert feats_digest(str(copy)) != before
    (copy / "feats.ark").write_bytes(ark[:-8])
    with pytest.raises(InputError, match="would end at byte"):
        feats_digest(str(copy))


@pytest.mark.mpi
def test_healthy_ranks(mpiexec, tiny_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "doctor.json"
    feats = [tiny_corpus / "train", tiny_corpus / "heldout"]
    done = mpiexec(2, "-m", "asr_hf.cli.main", "doctor", *feats, "--out", out, "--elements", 1000)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert done.stdout.count("2 ranks on 1 host") == 1
    assert [one["rank"] for one in found["ranks"]] == [0, 1]
    assert [one["level"] for one in found["findings"] if one["subject"] == "ULFM"] == ["WARNING"]  # not asked for here
    assert {one["what"] for one in found["findings"] if one["subject"] == "data"} == {
        f"{folder}: the same on all ranks" for folder in feats
    }
    (link,) = found["links"]
    assert (link["rank"], link["same_host"], link["host"]) == (1, True, os.uname().nodename)
    assert 0 < link["latency_seconds"] < 1
    assert link["bytes_per_second"] > 1e6
    assert found["vector"]["elements"] == 1000
    assert found["vector"]["sum_seconds"] > 0


@pytest.mark.mpi
def test_data_that_one_rank_sees_otherwise(mpiexec, tiny_corpus: Path, tmp_path: Path) -> None:
    for rank, folder in ((0, "train"), (1, "heldout")):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "feats").symlink_to(tiny_corpus / folder)
    before = f"os.chdir(os.path.join({str(tmp_path)!r}, os.environ['OMPI_COMM_WORLD_RANK']))"
    paths = f"sys.path.insert(0, {os.getcwd()!r})\n{before}"
    done = mpiexec(2, "-c", DOCTOR.format(before=paths), "doctor", "feats", "--elements", 1000)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ERROR    data      feats differs" in done.stdout


STARTS_NO_MPI = "import time\nif os.environ['OMPI_COMM_WORLD_RANK'] == '1': time.sleep(600)"
DOES_NOT_ANSWER = """import time
import asr_hf.cluster.doctor.examine as examine
if os.environ['OMPI_COMM_WORLD_RANK'] == '1': examine.facts_of_this_process = lambda *_: time.sleep(600)"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (STARTS_NO_MPI, "rank 0 of 2 on {host}: starting MPI, for which each rank has to come this far"),
        (DOES_NOT_ANSWER, "rank 1 of 2 did not answer"),
    ],
)
def test_a_rank_that_does_not_answer_is_named(before: str, said: str, mpiexec) -> None:
    begin = time.monotonic()
    done = mpiexec(2, "-c", DOCTOR.format(before=before), "doctor", "--timeout", 2)
    assert time.monotonic() - begin < 60  # not the 600 s of the rank
    assert done.returncode == 2, done.stdout + done.stderr
    assert said.format(host=os.uname().nodename) in done.stdout + done.stderr


@pytest.mark.parametrize(("rank", "status", "said"), [("0", 2, "PMI started 2 processes"), ("1", 0, "")])
def test_processes_of_another_launcher_think_that_they_are_alone(rank: str, status: int, said: str) -> None:
    environment = os.environ | {"PMI_SIZE": "2", "PMI_RANK": rank}
    command = [sys.executable, "-m", "asr_hf.cli.main", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stdout
    assert bool(done.stdout) == bool(said)  # one of them speaks


WATCHED = """
import sys, time
from asr_hf.cluster.doctor.guard import watch
stage = watch("the test", 1.0)
for _ in range(3):
    stage("walking")
    time.sleep(0.5)
if sys.argv[1] == "hangs":
    stage("sleeping")
    time.sleep(600)
sys.exit(3)
"""


def test_a_guard_names_what_hangs_and_passes_the_status_on() -> None:
    for how, status, said in (("hangs", 2, "the test: sleeping has not ended within 1 s"), ("ends", 3, "")):
        command = [sys.executable, "-c", WATCHED, how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status
        assert said in done.stderr
        assert bool(done.stderr) == bool(said)
