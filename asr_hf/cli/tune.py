"""Choose acoustic scale and word insertion penalty on a dev set.

Tries a grid line by line, which grows where the best value lies on its end, and writes OUT/tuned.json for
`asr-hf decode --tuned`. The model must not have been trained on the dev set.

  asr-hf tune exp/an4/feats/dev exp/an4/tri/graph exp/an4/tri exp/an4/tri/dev --jobs 2
  asr-hf tune FEATS GRAPH MODEL OUT --scales 0.5,1,2 --penalties=-1,0,1
"""

import argparse

from asr_hf.cli import config
from asr_hf.decoding.tune import FACTORS, PENALTIES, tune

GROUPS = ("decoding",)


def _numbers(text: str) -> tuple[float, ...]:
    """'0.1,0.2' as numbers."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers like 0.1,0.2") from None


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feats", metavar="FEATS", help="folder of asr-hf features, of the dev set")
    parser.add_argument("graph", metavar="GRAPH", help="folder of asr-hf graph, made for MODEL")
    parser.add_argument("model", metavar="MODEL", help="a GMM or a finished training run")
    parser.add_argument("out", metavar="OUT", help="folder for tuned.json")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the output is the same for any)")
    scales = f"the acoustic scales tried first (default: {_listed(FACTORS)} times that of asr-hf decode)"
    parser.add_argument("--scales", type=_numbers, metavar="A,B,…", help=scales)
    penalties = f"the word penalties tried first (default {_listed(PENALTIES)})"
    parser.add_argument("--penalties", type=_numbers, metavar="A,B,…", default=PENALTIES, help=penalties)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    options = config.compose(GROUPS, overrides, args.config_dir)["decoding"]
    tuned = tune(args.feats, args.graph, args.model, args.out, options, args.scales, args.penalties, args.jobs)
    print(
        f"acoustic scale {tuned.acoustic_scale:g}, word penalty {tuned.word_penalty:g}: "
        f"WER {tuned.wer:.2f} % of {tuned.words} words, {len(tuned.grid)} points tried"
    )
