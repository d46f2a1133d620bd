"""Train a neural acoustic model: a MODEL folder with log and report. The same command resumes an unfinished run.

asr-hf train exp/an4/dnn corpus.train=F corpus.heldout=H corpus.alignments=A optimizer=hf
mpiexec -n 4 asr-hf train exp/an4/dnn …       # rank 0 is the master; results do not depend on the number of ranks
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
