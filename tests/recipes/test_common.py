"""recipes/common.sh: stages are skipped, run again, resumed and stopped as it says; options and MPI launching."""

import fcntl
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

COMMON = Path(__file__).parents[2] / "recipes" / "common.sh"
RECIPE = """\
set -euo pipefail
corpus=mini
source {common}
parse_options "$@"
say() {{ echo "$* resume=$resume" >>"$dir/ran"; }}
brittle() {{ say "$@"; [[ -f $dir/mended ]] || return 7; }}
stage 0 "first" say zero
stage 1 "second" say "one$EXTRA"
stage 2 "third" {third} two
stage 3 "fourth" say three
"""

Recipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Run the mini recipe with options; `third` is the command of stage 2."""
    script = tmp_path / "run.sh"

    def run(*options: str, third: str = "say", extra: str = "") -> subprocess.CompletedProcess[str]:
        script.write_text(RECIPE.format(common=COMMON, third=third))
        return subprocess.run(
            ["bash", str(script), "--dir", str(tmp_path / "exp"), *options],
            capture_output=True,
            text=True,
            env=os.environ | {"EXTRA": extra},
            timeout=60,
        )

    return run


@pytest.fixture
def ran(tmp_path: Path) -> Callable[[], list[str]]:
    """What ran since the last call."""

    def read() -> list[str]:
        file = tmp_path / "exp" / "ran"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    return read


Ran = Callable[[], list[str]]
ALL = ["zero resume=false", "one resume=false", "two resume=false", "three resume=false"]


def test_a_line_a_stage_and_finished_stages_are_skipped(recipe: Recipe, ran: Ran) -> None:
    first = recipe()
    assert first.returncode == 0, first.stderr
    assert ran() == ALL
    lines = first.stdout.splitlines()
    assert len(lines) == 4
    assert all(re.fullmatch(r" \d  (first|second|third|fourth) +\d+\.\d s", line) for line in lines)
    second = recipe()
    assert (second.returncode, second.stdout, ran()) == (0, "", [])


def test_a_finished_stage_that_is_no_function_is_skipped_too(recipe: Recipe, ran: Ran) -> None:
    first, second = recipe(third="true"), recipe(third="true")
    assert (first.returncode, first.stdout.count("\n")) == (0, 4)
    assert (second.returncode, second.stdout) == (0, "")


def test_a_changed_command_runs_again_with_all_later_ones(recipe: Recipe, ran: Ran) -> None:
    recipe()
    ran()
    recipe(extra="!")
    assert ran() == ["one! resume=false", *ALL[2:]]
    assert recipe(extra="!").stdout == ""


def test_a_changed_function_runs_again(recipe: Recipe, ran: Ran, tmp_path: Path) -> None:
    recipe()
    ran()
    (tmp_path / "exp" / "mended").touch()
    recipe(third="brittle")
    assert ran() == ALL[2:]


def test_stage_and_stop_stage(recipe: Recipe, ran: Ran) -> None:
    recipe("--stop-stage", "1")
    assert ran() == ALL[:2]
    recipe()
    assert ran() == ALL[2:]
    recipe("--stage", "1", "--stop-stage=2")  # asked for by name: run although finished
    assert ran() == ALL[1:3]
    recipe()  # stage 3 rests on a stage that ran again
    assert ran() == ALL[3:]


def test_failure_ends_the_recipe_and_is_resumed(recipe: Recipe, ran: Ran, tmp_path: Path) -> None:
    failed = recipe(third="brittle")
    assert failed.returncode == 7
    assert "stage 2 failed" in failed.stderr
    assert str(tmp_path / "exp" / "log" / "02.log") in failed.stderr
    assert ran() == ALL[:3]
    (tmp_path / "exp" / "mended").touch()
    assert recipe(third="brittle").returncode == 0
    assert ran() == ["two resume=true", "three resume=false"]
    recipe("--stage", "2", third="brittle")  # from the beginning when asked for by name
    assert ran() == ALL[2:]


def test_resuming_ends_when_an_earlier_stage_ran_again(recipe: Recipe, ran: Ran, tmp_path: Path) -> None:
    recipe(third="brittle")
    (tmp_path / "exp" / "mended").touch()
    ran()
    recipe(third="brittle", extra="!")
    assert ran() == ["one! resume=false", *ALL[2:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "1"], "unknown option '--stages'"),
        (["digits"], "unknown option 'digits'"),
        (["--nj"], "--nj needs a value"),
        (["--ranks", "two"], "--ranks 'two' is not a whole number"),
        (["--ranks", "0"], "--ranks must be at least 1"),
    ],
)
def test_bad_options_are_named(recipe: Recipe, ran: Ran, options: list[str], message: str) -> None:
    refused = recipe(*options)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert ran() == []


def test_two_runs_in_one_folder_are_refused(recipe: Recipe, ran: Ran, tmp_path: Path) -> None:
    recipe()
    ran()
    with open(tmp_path / "exp" / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = recipe(extra="!")
    assert refused.returncode == 2
    assert "another run is at work" in refused.stderr
    assert ran() == []


@pytest.mark.mpi
def test_mpi_starts_that_many_ranks_and_says_what_it_set(tmp_path: Path) -> None:
    script = (
        f'corpus=mini; source {COMMON}; mpi "$((cores + 1))" bash -c \'echo "rank $OMPI_COMM_WORLD_RANK"\'; echo $cores'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *lines, cores = done.stdout.splitlines()
    assert sorted(line for line in lines if line.startswith("rank")) == [f"rank {r}" for r in range(int(cores) + 1)]
    assert any("--oversubscribe is set" in line for line in lines)
    assert any("OMPI_ALLOW_RUN_AS_ROOT=1" in line for line in lines) == (os.geteuid() == 0)


@pytest.mark.mpi
def test_mpi_passes_the_exit_status_on() -> None:
    script = f"corpus=mini; source {COMMON}; mpi 2 bash -c 'exit 2'"
    assert subprocess.run(["bash", "-c", script], capture_output=True, timeout=60).returncode == 2


@pytest.mark.mpi
def test_another_launcher_starts_what_needs_ranks() -> None:
    script = f"corpus=mini; source {COMMON}; mpi 2 as asked; mpi 1 echo alone"
    env = os.environ | {"ASR_HF_LAUNCH": "echo elsewhere"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=env, check=True)
    assert done.stdout.split("\n")[0] == "elsewhere 2 as asked"
    assert "alone" in done.stdout.split("\n")


def test_join_feats_keeps_the_order_of_bytes(tmp_path: Path) -> None:
    for name, ids in (("a", ["B-1", "a-1"]), ("b", ["A-1", "b-1"])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "features.json").write_text("{}")
        for table in ("text", "utt2spk", "spk2utt", "feats.scp"):
            (folder / table).write_text("".join(f"{id} {table}\n" for id in ids))
    script = f"corpus=mini; source {COMMON}; join_feats {tmp_path}/out {tmp_path}/a {tmp_path}/b"
    subprocess.run(["bash", "-c", script], check=True, timeout=60)
    assert (tmp_path / "out" / "text").read_text() == "A-1 text\nB-1 text\na-1 text\nb-1 text\n"
    assert (tmp_path / "out" / "features.json").read_text() == "{}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("feats.scp", "features.json", "spk2utt", "text", "utt2spk"),
    ]


def test_one_thread_a_process_does_not_make_one_core_of_the_machine() -> None:
    script = f"corpus=mini; source {COMMON}; echo $cores"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=env)
    assert int(done.stdout) == len(os.sched_getaffinity(0))
