"""Compute the features of a Kaldi data directory, the per-speaker transform applied, with their fingerprint.

  asr-hf features data/train feats/train --jobs 4
  asr-hf features data/train feats/train-mfcc features=mfcc features.skip_bad=true
  asr-hf features data/train feats/train-sp0.9 features.speed=0.9     slower speech, ids sp0.9-…
  asr-hf features data/train feats/train --from-feats     adopts DATA/feats.scp that Kaldi computed

FEATS gets feats.scp, feats.*.ark, features.json and copies of text, utt2spk and spk2utt. It appears as a whole:
a command that fails or is killed leaves what was there before.
"""

import argparse
import sys

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ("features",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a Kaldi data directory")
    parser.add_argument("feats", metavar="FEATS", help="the folder to write")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the result does not depend on it)")
    parser.add_argument(
        "--from-feats", action="store_true", help="take DATA/feats.scp instead of audio, apply the transform only"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.data.extract import extract_features

    options = config.compose(GROUPS, overrides, args.config_dir)["features"]
    done = extract_features(args.data, args.feats, options, args.jobs, args.from_feats)
    for utt, reason in done.skipped:
        print(f"left out utterance '{utt}': {reason}", file=sys.stderr)
    hours = done.frames * options.frame_shift / 3.6e6
    size = f"{done.utterances} utterances, {done.speakers} speakers, {done.frames} frames ({hours:.2f} hours)"
    left_out = f", {len(done.skipped)} left out" if done.skipped else ""
    print(f"{args.feats}: {size}, {done.dim} dimensions{left_out}")
