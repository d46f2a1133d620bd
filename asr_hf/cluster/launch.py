"""Entry of a process that mpiexec started: the master runs the command, the others wait for work.

An exception on any rank ends the whole run with that rank's traceback; bad input ends it with exit status 2.
"""

import os
import sys
import traceback
from collections.abc import Callable

from asr_hf.errors import InputError


def launched_ranks() -> int:
    """Number of MPI ranks that the launcher started this process among (1 without a launcher)."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def run_on_ranks(master: Callable[[], None], worker: Callable[[object], None]) -> None:
    """Run `master()` on rank 0 and, on every other rank, `worker(task)` for each task that the master hands out.

    The master hands out a task with `ranks.broadcast_object(task)`; None, which is sent here at its end, lets them go.
    """
    from mpi4py import MPI

    from asr_hf.cluster.ranks import Ranks

    ranks = Ranks()
    try:
        if ranks.rank == 0:
            master()
            ranks.broadcast_object(None)
        else:
            while (task := ranks.broadcast_object()) is not None:
                worker(task)
    except InputError as error:
        print(f"asr-hf: error{_where(ranks.rank)}: {error}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(2)
    except SystemExit as error:  # argparse, on the master only
        code = error.code if isinstance(error.code, int) else 1
        if code:
            sys.stderr.flush()
            MPI.COMM_WORLD.Abort(code)
        ranks.broadcast_object(None)
    except BaseException:
        print(f"asr-hf: rank {ranks.rank} of {ranks.size} failed:", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)


def _where(rank: int) -> str:
    return f" on rank {rank}" if rank else ""
