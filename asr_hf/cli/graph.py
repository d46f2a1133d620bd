"""Compose the decoding graph HCLG of a model and a LANG folder.

  asr-hf graph lang exp/tri exp/graph-tri
  asr-hf graph lang exp/tri exp/graph-tri graph.self_loop_scale=1.0 graph.transition_scale=1.0

GRAPH gets HCLG.fst (input labels pdf + 1), words.txt and graph.json. A neural network decodes with the graph of the
model whose alignments it was trained on.
"""

import argparse

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ("graph",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lang", metavar="LANG", help="lexicon and n-gram (asr-hf lang)")
    parser.add_argument("model", metavar="MODEL", help="a model with hmm.json")
    parser.add_argument("graph", metavar="GRAPH", help="the folder to write")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.hmm.graph import make_graph

    options = config.compose(GROUPS, overrides, args.config_dir)["graph"]
    print(f"{args.graph}: {make_graph(args.lang, args.model, args.graph, options)}")
