"""Train a triphone GMM with a decision tree on the alignments of another model, and align its training set.

  asr-hf tri feats/train lang exp/mono exp/tri --jobs 2
  asr-hf tri feats/train lang exp/mono exp/tri tree.leaves=2000 gmm.gaussians=8

MODEL gets hmm.json (with the tree), gmm.safetensors, features.json and the alignments pdf.scp, state.scp of FEATS. One
line a pass: log-likelihood per frame, Gaussians, seconds. The HMM topology is that of the alignments. The options of
gmm are those of gmm=triphone (4 Gaussians per pdf, 4 first passes) unless another choice is given.
"""

import argparse

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ("gmm", "tree")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feats", metavar="FEATS", help="features and transcripts (asr-hf features)")
    parser.add_argument("lang", metavar="LANG", help="lexicon (asr-hf lang)")
    parser.add_argument("ali", metavar="ALI", help="a model or alignments of FEATS (asr-hf mono, tri, align)")
    parser.add_argument("model", metavar="MODEL", help="the folder to write")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the result does not depend on it)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.hmm.triphone import train_tri

    if not any(override.startswith("gmm=") for override in overrides):
        overrides = ["gmm=triphone", *overrides]
    options = config.compose(GROUPS, overrides, args.config_dir)
    report = train_tri(
        args.feats, args.lang, args.ali, args.model, options["gmm"], options["tree"], args.jobs,
        lambda line: print(line, flush=True),
    )  # fmt: skip
    print(f"{args.model}: {report}")
