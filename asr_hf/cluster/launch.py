"""Entry of a process that mpiexec started: the master runs the command, the others obey it.

An exception on any rank ends the whole run with that rank's traceback; bad input ends it with exit status 2.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from asr_hf.errors import InputError

if TYPE_CHECKING:
    from asr_hf.objective.evaluator import Evaluator


def launched_ranks() -> int:
    """Number of MPI ranks that the launcher started this process among (1 without a launcher)."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def run_on_ranks(master: Callable[[], None], prepare: Callable[[object], tuple["Evaluator", bool]]) -> None:
    """Run `master()` on rank 0; the other ranks obey the objectives that it opens until it ends.

    Args:
        master: the command.
        prepare: makes, on a worker, of the task that the master opened an objective with the evaluator of that, and
            says whether the master is dedicated.
    """
    from mpi4py import MPI

    from asr_hf.cluster.ranks import all_ranks
    from asr_hf.cluster.signals import leave_signals_to_master
    from asr_hf.cluster.worker import Worker

    ranks = all_ranks()
    try:
        if ranks.rank == 0:
            master()
            ranks.dismiss()
        else:
            leave_signals_to_master()
            Worker(ranks, prepare).serve()
    except InputError as error:
        print(f"asr-hf: error{_where(ranks.rank)}: {error}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(2)
    except SystemExit as error:  # argparse, on the master only
        code = error.code if isinstance(error.code, int) else 1
        if code:
            sys.stderr.flush()
            MPI.COMM_WORLD.Abort(code)
        ranks.dismiss()
    except BaseException:
        print(f"asr-hf: rank {ranks.rank} of {ranks.size} failed:", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)


def _where(rank: int) -> str:
    return f" on rank {rank}" if rank else ""
