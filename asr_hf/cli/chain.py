"""Make what lattice-free MMI trains with: a chain model, its denominator graph and the supervision of every utterance.

  asr-hf chain mfcc/train+heldout lang exp/chain --ali exp/tri               a tree grown on alignments, biphones
  asr-hf chain mfcc/train+heldout lang exp/chain --ali exp/tri chain.context=triphone tree.leaves=2000
  asr-hf chain fbank/train+heldout lang exp/chain-e2e --flat-start           from transcripts alone, full biphones
  asr-hf chain fbank/dev lang exp/chain-dev --ali exp/ali-dev --model exp/chain    other utterances, the same model

CHAIN gets hmm.json, features.json, den.safetensors, supervision.safetensors and chain.json. FEATS holds training and
held-out set together. Utterances that are too short for their phones are named and left out; with --model also those
whose phones the denominator does not allow, for its n-gram has no smoothing. With --flat-start the options are those of
chain=flat_start unless another choice is given.
"""

import argparse

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ("chain", "tree")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feats", metavar="FEATS", help="features and transcripts (asr-hf features)")
    parser.add_argument("lang", metavar="LANG", help="lexicon (asr-hf lang)")
    parser.add_argument("chain", metavar="CHAIN", help="the folder to write")
    parser.add_argument("--model", metavar="CHAIN", help="take model, denominator and options from this CHAIN folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ali", metavar="ALI", help="a model or alignments of FEATS (asr-hf mono, tri, align)")
    source.add_argument("--flat-start", action="store_true", help="supervision from transcripts, without alignments")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.errors import OptionError
    from asr_hf.hmm.make_chain import make_chain, supervise

    if args.model:
        if overrides:
            raise OptionError(f"option {overrides[0]} cannot be given with --model", "It is taken from that folder.")
        print(f"{args.chain}: {supervise(args.feats, args.lang, args.ali, args.model, args.chain)}")
        return
    if args.flat_start and not any(override.startswith("chain=") for override in overrides):
        overrides = ["chain=flat_start", *overrides]
    options = config.compose(GROUPS, overrides, args.config_dir)
    report = make_chain(args.feats, args.lang, args.ali, args.chain, options["chain"], options["tree"])
    print(f"{args.chain}: {report}")
