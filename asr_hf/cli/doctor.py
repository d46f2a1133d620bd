"""Examine MPI, threads, GPUs, data and the links between ranks; a line that is not ok says what to mend.

  asr-hf doctor                                   # this process alone
  mpiexec --with-ft ulfm -n 4 asr-hf doctor exp/digits/fbank/train exp/digits/fbank/heldout --out doctor.json

Exit status 2 if there is an ERROR. Folders of features are compared over all ranks. A rank that does not answer is
named. docs/cluster.md says more.
"""

import argparse
from pathlib import Path

from asr_hf.errors import InputError

GROUPS: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feats", nargs="*", metavar="FEATS", help="folders of features that every rank must see alike")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write findings, facts of all ranks and links")
    parser.add_argument("--elements", type=int, default=1_000_000, help="of the vectors that are broadcast and summed")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds until a rank that does not answer is named"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.cluster.doctor.checks import Level
    from asr_hf.cluster.doctor.examine import end_all_ranks, examine

    if args.elements < 1 or args.timeout <= 0:
        raise InputError("--elements and --timeout must be positive", "Leave them out, or give larger ones.")
    examination = examine(args.feats, args.elements, args.timeout)
    if examination is None:
        return
    for finding in examination.findings:
        print(finding, flush=True)
    if args.out:
        examination.save(args.out)
    if len(examination.ranks) < examination.ranks[0].size:
        end_all_ranks()
    if any(finding.level is Level.ERROR for finding in examination.findings):
        raise SystemExit(2)
