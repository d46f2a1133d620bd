"""Import Kaldi alignments and the transition-id → pdf table of a text final.mdl as an ALI folder.

  asr-hf import-alignments ali.pdf.ark final.txt ali/train --feats feats/train
  asr-hf import-alignments exp/tri/ali.*.gz final.txt ali/train --feats feats/train

Takes the output of ali-to-pdf as well as Kaldi's own ali.*.gz; make final.txt with gmm-copy --binary=false. ALI gets
pdf.scp, pdf.ark and hmm.json. With --feats every alignment must be as long as its features.
"""

import argparse

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("alignments", metavar="ALIGNMENTS", nargs="+", help="arks, gzipped arks or scps")
    parser.add_argument("model", metavar="FINAL_MDL_TXT", help="the transition model in text form")
    parser.add_argument("ali", metavar="ALI", help="the folder to write")
    parser.add_argument("--feats", default=None, metavar="FEATS", help="check lengths against these features")
    parser.add_argument(
        "--labels", default="auto", choices=("auto", "pdf", "transition"), help="what the numbers are (default: auto)"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.hmm.kaldi_alignments import import_kaldi_alignments

    config.compose(GROUPS, overrides, args.config_dir)
    report = import_kaldi_alignments(args.alignments, args.model, args.ali, args.feats, args.labels)
    missing = f"; features without alignment: {len(report.left_out)}" if report.left_out else ""
    print(f"{args.ali}: {report.utterances} utterances, {report.frames} frames{missing}")
