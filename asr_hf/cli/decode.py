"""Decode a data directory to words.

Writes OUT/hyp.txt (Kaldi text, a line for every utterance) and OUT/decode.json (options, time, utterances that failed).

  asr-hf decode exp/an4/feats/test exp/an4/tri/graph exp/an4/tri exp/an4/tri/test --tuned exp/an4/tri/dev/tuned.json
"""

import argparse

from asr_hf.cli import config
from asr_hf.decoding.decode import decode_directory
from asr_hf.decoding.tune import read_tuned
from asr_hf.errors import OptionError

GROUPS = ("decoding",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feats", metavar="FEATS", help="folder of asr-hf features")
    parser.add_argument("graph", metavar="GRAPH", help="folder of asr-hf graph, made for MODEL")
    parser.add_argument("model", metavar="MODEL", help="a GMM or a finished training run")
    parser.add_argument("out", metavar="OUT", help="folder for hyp.txt and decode.json")
    parser.add_argument("--tuned", metavar="FILE", help="take acoustic scale and word penalty from a tuned.json")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the output is the same for any)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    options = config.compose(GROUPS, overrides, args.config_dir)["decoding"]
    if args.tuned is not None:
        for override in overrides:
            if override.startswith(("decoding.acoustic_scale=", "decoding.word_penalty=")):
                raise OptionError(f"{override} and --tuned {args.tuned} both set a scale", "Give one of them.")
        options = options.at(*read_tuned(args.tuned))
    print(decode_directory(args.feats, args.graph, args.model, args.out, options, args.jobs))
