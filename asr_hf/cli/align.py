"""Force-align a data directory to its transcripts with a GMM or a neural network.

  asr-hf align feats/train lang exp/tri ali/tri
  asr-hf align fbank/train lang exp/dnn ali/dnn        one realignment with a network, to train the next on

ALI gets pdf.scp, state.scp and hmm.json. Utterances that are too short for their transcript are named and left out.
"""

import argparse

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feats", metavar="FEATS", help="features and transcripts, of the kind the model was trained on")
    parser.add_argument("lang", metavar="LANG", help="the LANG folder of the model")
    parser.add_argument("model", metavar="MODEL", help="a GMM or a finished training run")
    parser.add_argument("ali", metavar="ALI", help="the folder to write")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.data.fingerprint import read_fingerprint, require_same
    from asr_hf.decoding.acoustic import load_acoustic_model
    from asr_hf.hmm.alignment import align
    from asr_hf.hmm.model import HmmModel

    config.compose(GROUPS, overrides, args.config_dir)
    require_same(read_fingerprint(args.model), read_fingerprint(args.feats), args.model, args.feats)
    scorer = load_acoustic_model(args.model).log_likelihoods
    print(f"{args.ali}: {align(args.feats, args.lang, HmmModel.load(args.model), scorer, args.ali)}")
