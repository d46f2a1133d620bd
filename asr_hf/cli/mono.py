"""Flat start: train a monophone GMM from transcripts alone, and align its training set.

  asr-hf mono feats/train lang exp/mono --jobs 2
  asr-hf mono feats/train lang exp/mono gmm.gaussians=4 gmm.first_passes=6

MODEL gets hmm.json, gmm.safetensors, features.json and the alignments pdf.scp, state.scp of FEATS. One line a pass:
log-likelihood per frame, Gaussians, seconds.
"""

import argparse

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ("gmm",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feats", metavar="FEATS", help="features and transcripts (asr-hf features)")
    parser.add_argument("lang", metavar="LANG", help="lexicon (asr-hf lang)")
    parser.add_argument("model", metavar="MODEL", help="the folder to write")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the result does not depend on it)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.hmm.flat_start import train_mono

    options = config.compose(GROUPS, overrides, args.config_dir)["gmm"]
    report = train_mono(args.feats, args.lang, args.model, options, args.jobs, lambda line: print(line, flush=True))
    print(f"{args.model}: {report}")
