"""scripts/launch: what each launcher starts, and what it does with signals and statuses; the schedulers are fakes."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "scripts" / "launch"
# In place of mpiexec, scontrol and qsub: writes its arguments to $RECORD/<name>, and waits for SIGUSR1 if told to.
RECORDER = """#!/usr/bin/env bash
name=$(basename "$0")
printf '%s\\n' "$@" >"$RECORD/$name"
[[ $name == mpiexec ]] || exit 0
env >"$RECORD/environment"
trap 'touch "$RECORD/signalled"; exit 99' USR1
if [[ -n ${WAITS:-} ]]; then
  touch "$RECORD/up"
  for _ in {1..400}; do sleep 0.05; done
fi
[[ -z ${SAYS:-} ]] || echo "$SAYS" >&2
exit "${STATUS:-0}"
"""

Launcher = Callable[..., subprocess.Popen]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with scripts/launch, and an environment whose mpiexec only records."""
    (tmp_path / "scripts").mkdir()
    shutil.copytree(LAUNCH, tmp_path / "scripts" / "launch")
    (tmp_path / "env" / "bin").mkdir(parents=True)
    for name in ("mpiexec", "scontrol", "qsub"):
        (tmp_path / "env" / "bin" / name).write_text(RECORDER)
        (tmp_path / "env" / "bin" / name).chmod(0o755)
    (tmp_path / "record").mkdir()
    (tmp_path / "hosts").write_text("node1\nnode1\nnode2\n")
    return tmp_path


@pytest.fixture
def launch(checkout: Path) -> Launcher:
    """Start a launcher by its name, with arguments and variables."""

    def start(name: str, *arguments: str, **variables: str) -> subprocess.Popen:
        environment = os.environ | {"ASR_HF_ENV": str(checkout / "env"), "RECORD": str(checkout / "record")} | variables
        command = [str(checkout / "scripts" / "launch" / name), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, cwd=checkout, stdout=pipe, stderr=pipe, text=True)

    return start


def recorded(checkout: Path, name: str) -> list[str]:
    """Arguments with which a recorder was called; none if it was not."""
    file = checkout / "record" / name
    return file.read_text().splitlines() if file.exists() else []


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never appeared"
        time.sleep(0.02)


@pytest.mark.parametrize("script", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=20)
    assert os.access(script, os.X_OK) == script.read_text().startswith("#!")


@pytest.mark.parametrize(
    ("name", "arguments"), [("local", []), ("local", ["asr-hf", "train"]), ("hostfile", ["hosts"])]
)
def test_without_a_command_the_usage_is_shown(name: str, arguments: list[str], launch: Launcher) -> None:
    process = launch(name, *arguments)
    assert f"scripts/launch/{name}" in process.communicate(timeout=20)[1]
    assert process.returncode == 2


def test_local_starts_ulfm_ranks_and_says_what_it_sets(launch: Launcher, checkout: Path) -> None:
    many = str(os.cpu_count() + 1)
    process = launch("local", many, "asr-hf", "train", "a b", STATUS="75")
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 75
    expected = ["--with-ft", "ulfm", "--bind-to", "none", "--oversubscribe", "-n", many, "asr-hf", "train", "a b"]
    assert recorded(checkout, "mpiexec") == expected
    assert "--oversubscribe is set" in out
    assert ("OMPI_ALLOW_RUN_AS_ROOT=1" in out) == (os.geteuid() == 0)
    assert {"OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1"} <= set(recorded(checkout, "environment"))


def test_local_with_one_rank_starts_no_mpi(launch: Launcher, checkout: Path) -> None:
    assert launch("local", "1", "echo", "alone").communicate(timeout=20)[0] == "alone\n"
    assert recorded(checkout, "mpiexec") == []


RANK = """
import signal, sys, time
from mpi4py import MPI
from asr_hf.cluster.doctor.facts import ulfm_active
import os
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(99))
print("rank", MPI.COMM_WORLD.rank, "of", MPI.COMM_WORLD.size, "ulfm", ulfm_active(os.environ), flush=True)
time.sleep(30)
"""


@pytest.mark.mpi
def test_sigterm_reaches_real_ranks_as_a_warning() -> None:
    command = [str(LAUNCH / "local"), "2", "python", "-c", RANK]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    while sum(line.startswith("rank") for line in lines) < 2:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 99
    assert sorted(lines)[-2:] == [f"rank {rank} of 2 ulfm True\n" for rank in (0, 1)]
    process.stdout.close()
    process.stderr.close()


def test_hostfile(launch: Launcher, checkout: Path) -> None:
    process = launch("hostfile", "hosts", "asr-hf", "doctor")
    process.communicate(timeout=20)
    assert process.returncode == 0
    flags = ["--hostfile", "hosts", "-x", "PATH", "-x", "OMP_NUM_THREADS", "-x", "MKL_NUM_THREADS", "asr-hf", "doctor"]
    assert recorded(checkout, "mpiexec")[4:] == flags
    process = launch("hostfile", "nowhere", "asr-hf", "doctor")
    assert "'nowhere' is no file of hosts" in process.communicate(timeout=20)[1]
    assert process.returncode == 2


def slurm(checkout: Path) -> dict[str, str]:
    return {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"}


def pbs(checkout: Path) -> dict[str, str]:
    return {"PBS_O_WORKDIR": str(checkout), "PBS_NODEFILE": str(checkout / "hosts"), "COMMAND": "asr-hf train run a=b"}


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (2, False), (75, True), (99, True)])
def test_schedulers_queue_a_run_again_that_can_go_on(
    status: int, again: bool, launch: Launcher, checkout: Path
) -> None:
    process = launch("slurm.sbatch", "asr-hf", "train", STATUS=str(status), **slurm(checkout))
    error = process.communicate(timeout=20)[1]
    assert process.returncode == status, error
    assert recorded(checkout, "mpiexec")[4:] == ["-n", "8", "asr-hf", "train"]
    assert recorded(checkout, "scontrol") == (["requeue", "77"] if again else [])
    process = launch("pbs.sh", STATUS=str(status), **pbs(checkout))
    error = process.communicate(timeout=20)[1]
    assert process.returncode == status, error
    found = recorded(checkout, "mpiexec")[4:]
    assert found[:4] == ["--hostfile", str(checkout / "hosts"), "-n", "3"]
    assert found[-4:] == ["asr-hf", "train", "run", "a=b"]
    assert recorded(checkout, "qsub") == (["-v", "COMMAND", "scripts/launch/pbs.sh"] if again else [])


def test_a_lost_host_is_no_success(launch: Launcher, checkout: Path) -> None:
    said = "PRTE has lost communication with a remote daemon."  # and mpiexec of Open MPI 5.0.11 then exits with 0
    process = launch("slurm.sbatch", "asr-hf", "train", SAYS=said, **slurm(checkout))
    assert said in process.communicate(timeout=20)[1]
    assert process.returncode == 75
    assert recorded(checkout, "scontrol") == ["requeue", "77"]


def test_slurms_warning_ends_the_run_and_the_job_is_queued_again(launch: Launcher, checkout: Path) -> None:
    process = launch("slurm.sbatch", "asr-hf", "train", WAITS="1", **slurm(checkout))
    wait_for(checkout / "record" / "up")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 99
    assert (checkout / "record" / "signalled").exists()
    assert recorded(checkout, "scontrol") == ["requeue", "77"]


def test_pbs_is_warned_by_its_own_clock(launch: Launcher, checkout: Path) -> None:
    script = checkout / "scripts" / "launch" / "pbs.sh"
    assert "walltime=24:00:00" in script.read_text()
    script.write_text(script.read_text().replace("walltime=24:00:00", "walltime=00:02:01"))
    process = launch("pbs.sh", WAITS="1", **pbs(checkout))
    process.communicate(timeout=20)  # the warning comes 120 s before the limit: after a second
    assert process.returncode == 99
    assert (checkout / "record" / "signalled").exists()
    assert recorded(checkout, "qsub") == ["-v", "COMMAND", "scripts/launch/pbs.sh"]
