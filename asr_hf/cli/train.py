"""Train a neural acoustic model: a MODEL folder with log and report. The same command resumes an unfinished run.

asr-hf train exp/an4/dnn corpus.train=F corpus.heldout=H corpus.alignments=A optimizer=hf
mpiexec -n 4 asr-hf train exp/an4/dnn …       # rank 0 is the master; results do not depend on the number of ranks

The first line says whether the run goes on, and from which checkpoint. An unfinished one goes on to the same bits, on
any number of ranks. A damaged checkpoint is named, and the one before taken.

SIGUSR1 or SIGUSR2 (a scheduler's warning: sbatch --signal=USR1@120) end the run after the present update, SIGTERM at
once, without it; SGD and Adam end after the present step for each. The last line names the checkpoint from which the
same command goes on. The exit status is then training.requeue_status, 99: SGE queues such a job again by itself, LSF
with REQUEUE_EXIT_VALUES=99, Slurm with RequeueExit=99 in slurm.conf or by scontrol requeue in the script; jobs that
Slurm preempts it requeues whatever their status. Open MPI's mpiexec forwards SIGUSR1 and SIGUSR2 to all ranks and
returns their status; SIGTERM it answers itself: it kills them and returns 1, so send it SIGUSR1.
"""

import argparse
from pathlib import Path

from asr_hf.cli.config import compose, to_yaml

GROUPS = ("corpus", "model", "criterion", "curvature", "optimizer", "cluster", "training")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of the run")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.report.run_report import write_run_report
    from asr_hf.training.run import train

    options = compose(GROUPS, overrides, args.config_dir)
    print(train(args.run_dir, options, to_yaml(options)))
    print(f"Report in {write_run_report(args.run_dir)}")
