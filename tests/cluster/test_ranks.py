"""Results do not depend on the number of ranks; a rank that waits sleeps; a rank that fails ends the run.

SAME_BITS_UPDATES=25 pytest tests/cluster/test_ranks.py --timeout=0 -k any_number: long runs, on 8 ranks too.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ALL = "dnn,lfmmi,lstm,tdnnf"
CASES = [(2, ALL, False), (3, "dnn,lfmmi", False), (3, "dnn", True), (4, "dnn,lfmmi", False)]
LONG = "SAME_BITS_UPDATES" in os.environ
LIMIT_S = 7200 if LONG else 240


@pytest.fixture(scope="session")
def alone(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What one process without MPI computes."""
    out = tmp_path_factory.mktemp("alone") / "out.json"
    subprocess.run([sys.executable, HERE / "same_bits.py", tiny_corpus, out, ALL], check=True, timeout=LIMIT_S)
    return json.loads(out.read_text())


@pytest.mark.parametrize(("ranks", "models", "dedicated"), [*CASES, (8, ALL, False)] if LONG else CASES)
def test_same_bits_on_any_number_of_ranks(ranks, models, dedicated, alone, tiny_corpus, tmp_path, mpiexec) -> None:
    out = tmp_path / "out.json"
    done = mpiexec(ranks, HERE / "same_bits.py", tiny_corpus, out, models, *["dedicated"] * dedicated, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["ranks"] == ranks
    for model in models.split(","):
        expected = alone["answers"][model]
        if dedicated:  # which is asked for one optimiser alone
            expected = {what: expected[what] for what in found["answers"][model]}
            assert "hf" in expected
        assert found["answers"][model] == expected
    count = len(found["account"]["rank_frames"])
    for of_ranks, of_one in zip(found["account"]["rank_frames"], alone["account"]["rank_frames"][:count], strict=True):
        assert len(of_ranks) == ranks
        assert sum(of_ranks) == sum(of_one)  # every frame of every sample was evaluated by exactly one rank
        assert of_ranks[0] == 0 or not dedicated
    for of_ranks, note in zip(found["account"]["rank_frames"], found["account"]["notes"], strict=True):
        first_order, working = "steps" in note, of_ranks[1:] if dedicated else of_ranks
        idle = len(working) - 3 if first_order else 0  # a step has 3 minibatches
        assert (f"ranks without a minibatch of any gradient: {idle}" in note) == (idle > 0)
        assert min(working) > 0 or idle > 0 or ranks > 4  # some samples have fewer than 8 minibatches
    assert found["account"]["vectors"] == alone["account"]["vectors"][:count]  # one process counts what a cluster sends
    assert all(vectors > 0 for vectors in found["account"]["vectors"])
    assert any(alone["account"]["recomputed"])  # the byte budget was exceeded on one process


SLEEPY = """
import resource, sys, time
from asr_hf.cluster.ranks import Ranks
ranks = Ranks()
ranks.meet()
begin, cpu = time.perf_counter(), time.process_time()
if ranks.rank == 0:
    time.sleep(3.0)
ranks.meet()
wall, used = time.perf_counter() - begin, time.process_time() - cpu
print(f"rank {ranks.rank} waited {wall:.2f} used {used:.3f}", flush=True)
sys.exit(0 if used < 0.1 * wall else 3)
"""


def test_a_waiting_rank_sleeps(mpiexec) -> None:
    done = mpiexec(2, "-c", SLEEPY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 1 waited" in done.stdout


FAILING = """
import sys, time
from asr_hf.cluster.launch import run_on_ranks
from asr_hf.cluster.protocol import Command
from asr_hf.cluster.ranks import all_ranks
from asr_hf.errors import InputError

def at_once(error):
    print(f"failed at {time.monotonic()} s", flush=True)
    return error

def master():
    ranks = all_ranks()
    ranks.tell(Command.TASK, handle=1)
    ranks.broadcast_object("a task")
    if sys.argv[1] == "master":
        raise at_once(ZeroDivisionError("a bug on the master"))
    ranks.meet()

def prepare(task):
    if sys.argv[1] == "bug":
        raise at_once(ZeroDivisionError("a bug on a worker"))
    if sys.argv[1] == "master":
        all_ranks().meet()
    raise at_once(InputError("features of utterance 'x' are missing", "Compute them."))

run_on_ranks(master, prepare)
"""


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("bug", 1, "ZeroDivisionError: a bug on a worker"),
        ("master", 1, "ZeroDivisionError: a bug on the master"),
        ("bad", 2, "utterance 'x'"),
    ],
)
def test_a_failing_rank_ends_the_run_with_its_reason(fault, status, said, mpiexec) -> None:
    done = mpiexec(3, "-c", FAILING, fault)
    failed = min(float(each) for each in re.findall(r"failed at ([0-9.]+) s", done.stdout))
    assert time.monotonic() - failed < 10  # the clock is the machine's, not a process's
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (fault != "bad")
