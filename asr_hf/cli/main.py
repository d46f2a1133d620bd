"""`asr-hf COMMAND …`: parse, call one function, print.

Options are Hydra overrides (`group.key=value`, `group=choice`); everything else on the line is a path or a flag of the
command. Bad input ends with exit status 2 and one line on stderr; anything else is a bug and shows its traceback.
"""

import argparse
import importlib
import os
import re
import sys
from types import ModuleType

from asr_hf.cluster.launch import launched_ranks, run_on_ranks
from asr_hf.errors import InputError

# command -> one line for `asr-hf --help`; the module asr_hf.cli.<command with _> holds the rest.
COMMANDS = {
    "validate": "list every fault of a Kaldi data directory, with file and line",
    "features": "compute fbank or MFCC features of a data directory into ark/scp",
    "lang": "make a lang directory: lexicon, phones, n-gram language model, L and G",
    "mono": "flat start: train a monophone GMM from transcripts alone",
    "tri": "train a triphone GMM with a decision tree on the alignments of another model",
    "align": "force-align a data directory with a GMM or a neural network",
    "import-alignments": "import pdf alignments and the transition table of a Kaldi model",
    "chain": "make chain model, denominator graph and supervision for lattice-free MMI",
    "graph": "compose the decoding graph HCLG of a model and a lang directory",
    "model": "show the layers, parameters and context of a neural acoustic model",
    "train": "train a neural acoustic model, on as many MPI ranks as mpiexec starts",
    "average": "train replicas of a run with other data orders and average their parameters",
    "decode": "decode a data directory to words",
    "tune": "choose acoustic scale and word insertion penalty on a dev set",
    "score": "word error rate with confidence interval, per speaker and confusions",
    "results": "collect scores into results.json and the table of RESULTS.md",
    "compare": "compare optimisers at equal cost: tuning trials, several seeds, plots, word error rates",
    "doctor": "examine MPI, threads, GPUs, data and the links between ranks, and say what to mend",
    "bench": "measure curvature products on this machine beside gradients and other libraries",
}

OVERRIDE = re.compile(r"[+~]{0,2}[a-z_]+([.@/][\w.@/]*)?=")


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into (words for argparse, Hydra overrides): an override is a bare `group…=value`."""
    words: list[str] = []
    overrides: list[str] = []
    for position, word in enumerate(argv):
        if word == "--":
            return words + argv[position + 1 :], overrides
        (overrides if OVERRIDE.match(word) else words).append(word)
    return words, overrides


def usage() -> str:
    width = max(len(name) for name in COMMANDS)
    rows = "\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items())
    return (
        "usage: asr-hf COMMAND [PATHS …] [--flags] [group=choice] [group.option=value …]\n\n"
        "Train hybrid-HMM speech acoustic models with second-order optimisation over MPI ranks.\n\n"
        f"commands, in the order in which a recipe calls them:\n{rows}\n\n"
        "asr-hf COMMAND --help prints the command's paths, flags and every option with its default.\n"
        "A whole system from audio to WER: recipes/digits/run.sh (synthetic) and recipes/an4/run.sh (CMU AN4).\n"
        "On several ranks: mpiexec -n 4 asr-hf train …"
    )


def load(command: str) -> ModuleType:
    return importlib.import_module(f"asr_hf.cli.{command.replace('-', '_')}")


def run(argv: list[str]) -> None:
    """Run one command line; raises InputError on bad input and SystemExit as argparse does."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] in ("-V", "--version"):
        from asr_hf import __version__

        print(f"asr-hf {__version__}")
        return
    if argv[0] not in COMMANDS:
        raise InputError(f"unknown command '{argv[0]}'", "asr-hf --help lists the commands.")
    if launched_ranks() > 1 and argv[0] not in ("train", "average", "doctor"):
        raise InputError(
            f"asr-hf {argv[0]} runs on one process", "Start it without mpiexec; --jobs N makes it parallel."
        )
    module = load(argv[0])
    words, overrides = split_overrides(argv[1:])
    from asr_hf.cli.config import options_help

    parser = argparse.ArgumentParser(
        prog=f"asr-hf {argv[0]}",
        description=module.__doc__,
        epilog=options_help(module.GROUPS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-dir", default=None, metavar="DIR", help="a folder of your own YAML files, searched before conf/"
    )
    module.add_arguments(parser)
    module.run(parser.parse_args(words), overrides)


def main() -> None:
    """Entry point of the console command `asr-hf`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per rank or job: two on contended cores are slower
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    argv = sys.argv[1:]
    if launched_ranks() > 1 and argv[:1] != ["doctor"]:  # which examines the launch itself, on every rank
        from asr_hf.training.run import prepare

        run_on_ranks(lambda: run(argv), prepare)
        return
    try:
        run(argv)
    except InputError as error:
        name = f"asr-hf {argv[0]}" if argv else "asr-hf"
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("asr-hf: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
