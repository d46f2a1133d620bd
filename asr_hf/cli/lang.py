"""Make a LANG folder: words, phones, lexicon, an n-gram over the whole lexicon, and the transducers L and G.

  asr-hf lang lang --lexicon data/lexicon.txt --text data/train/text
  asr-hf lang lang --lexicon data/lexicon.txt --text data/train/text lang.order=2 lang.silence_probability=0.3
  asr-hf lang lang --lexicon data/lexicon.txt --text data/train/text --arpa my.arpa    takes your language model

The lexicon has lines `word [probability] phone phone …`; the n-gram is estimated from the transcripts.
"""

import argparse
from pathlib import Path

from asr_hf.cli import config

GROUPS: tuple[str, ...] = ("lang",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lang", metavar="LANG", help="the folder to write")
    parser.add_argument("--lexicon", required=True, metavar="FILE", help="pronunciations")
    parser.add_argument("--text", required=True, metavar="FILE", help="training transcripts, `utterance word word …`")
    parser.add_argument("--arpa", default=None, type=Path, metavar="FILE", help="an ARPA model to use as it is")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.hmm.lang import make_lang

    options = config.compose(GROUPS, overrides, args.config_dir)["lang"]
    lang = make_lang(args.lang, args.lexicon, args.text, options, args.arpa)
    words, phones = len(lang.lexicon.words), len(lang.phone_names)
    print(f"{args.lang}: {words} words, {len(lang.lexicon.entries)} pronunciations, {phones} phones")
