"""List every fault of a Kaldi data directory, one a line with file, line and remedy; exit status 2 if there is any.

  asr-hf validate data/train
  asr-hf validate data/train --lexicon data/lexicon.txt features.sample_rate=16000

Examined are wav.scp, segments, text, utt2spk, spk2utt and all audio; of a folder of features its archives instead.
"""

import argparse

from asr_hf.cli import config
from asr_hf.errors import InputError

GROUPS: tuple[str, ...] = ("features",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", help="a Kaldi data directory, or a folder of features")
    parser.add_argument("--lexicon", metavar="FILE", help="report transcript words that this lexicon lacks")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.data.validate import inspect

    options = config.compose(GROUPS, overrides, args.config_dir)["features"]
    found = inspect(args.data, args.lexicon, options)
    for fault in found.faults:
        print(fault)
    if found.faults:
        raise InputError(
            f"{args.data}: {len(found.faults)} fault{'s' if len(found.faults) > 1 else ''}",
            "Mend each as its line says.",
        )
    hours = found.seconds / 3600
    print(f"{args.data}: {found.utterances} utterances, {found.speakers} speakers, {hours:.2f} hours: no fault")
