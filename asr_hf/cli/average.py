"""Train replicas of a run from one start with other data orders, and average their parameters (SWAP).

asr-hf average OUT --replicas 4 training.init=RUN optimizer=sgd corpus.train=F corpus.heldout=H corpus.alignments=A
mpiexec -n 2 asr-hf average OUT --replicas 4 …      # the replicas in turn, each on all ranks: the same bits
asr-hf average OUT --of RUN RUN … corpus.train=F …  # finished models; runs that began apart have no good average

Options are those of asr-hf train. Replica k is the run OUT/replica-<k>, with training.seed + k for its samples, orders
and dropout masks; all begin from training.init, or from the same initial weights. Of a model with batch normalisations
the statistics are made anew over the training set. OUT is then a MODEL, and average.json has the held-out losses of the
members and of the average. The same command goes on where it was stopped.
"""

import argparse
from pathlib import Path

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS as GROUPS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the replicas and of their average")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--replicas", type=int, default=0, metavar="K", help="train this many replicas")
    what.add_argument("--of", nargs="+", default=[], metavar="RUN", help="average these models and train nothing")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.report.run_report import write_run_report
    from asr_hf.training.average import AverageOptions, average

    options = compose(GROUPS, overrides, args.config_dir)
    print(average(args.out, options, AverageOptions(args.replicas, args.of), to_yaml))
    for replica in range(args.replicas):
        print(f"Report in {write_run_report(args.out / f'replica-{replica}')}")
