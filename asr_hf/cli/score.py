"""Word error rate with confidence interval, per speaker and confusions.

Writes OUT/report.txt (totals, speakers, worst confusions, aligned text) and OUT/score.json, and prints the totals.

  asr-hf score exp/an4/feats/test exp/an4/tri/test/hyp.txt exp/an4/tri/test
"""

import argparse

from asr_hf.decoding.score_report import score_directory, totals_line
from asr_hf.errors import InputError

GROUPS: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="data directory or FEATS: its text and utt2spk are the reference")
    parser.add_argument("hyp", metavar="HYP", help="hypotheses, or the folder of asr-hf decode that holds hyp.txt")
    parser.add_argument("out", metavar="OUT", help="folder for report.txt and score.json")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise InputError(f"'{overrides[0]}': asr-hf score takes no options of that kind", "See --help.")
    print(totals_line(score_directory(args.data, args.hyp, args.out)))
