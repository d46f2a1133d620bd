"""Compare optimisers fairly: the same data, initial parameters and number of tuning trials for each, cost counted.

asr-hf compare exp/cmp hf.yaml sgd.yaml --seeds 0,1,2 --budget 40 --dev FEATS --dev-alignments ALI --jobs 2 \\
    corpus.train=F corpus.heldout=H corpus.alignments=A model=dnn
asr-hf compare exp/cmp … --graph GRAPH --decode-dev FEATS --decode-test FEATS    # and a WER for each winner
asr-hf compare exp/fold2 … --tuned exp/cmp/compare.json                          # the winners of another comparison

A system file is YAML with `name`, `options` (a list of overrides on top of the command line's) and `trials` (a list of
lists of overrides, one for each tuning trial); a line --- parts several systems in a file. Of the trials, run with the
first seed, the one with the lowest loss on dev (without --dev: held-out) is run with every seed.
"training.init='exp/start-{seed}'" starts every seed from a model of its own. OUT gets a training run for each trial and
seed, compare.json and compare.html; the same command goes on where it was stopped. One gradient-equivalent is one fp32
gradient over the training set. asr-hf bench table draws one compare.json again, or several as folds of one comparison.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS as RUN_GROUPS
from asr_hf.decoding.output import write_text
from asr_hf.errors import InputError

if TYPE_CHECKING:
    from asr_hf.bench.compare import System
    from asr_hf.bench.compare_systems import SystemFile, Winner
    from asr_hf.decoding.search import DecodingOptions

GROUPS = (*RUN_GROUPS, "decoding")
QUOTES = "'\""
DECODING = ("graph", "decode_dev", "decode_test")


def _seeds(text: str) -> tuple[int, ...]:
    """'0,1,2' as numbers."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of seeds like 0,1,2") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of all runs, compare.json and compare.html")
    parser.add_argument("systems", type=Path, nargs="+", metavar="SYSTEM.yaml", help="a file for each system")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="A,B,…", help="of the final runs (0,1,2)")
    parser.add_argument(
        "--budget", type=float, default=0.0, metavar="G", help="gradient-equivalents of a final run (0: no limit)"
    )
    parser.add_argument("--trial-budget", type=float, metavar="G", help="those of a trial (as --budget)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, each with a run of its own")
    parser.add_argument("--dev", metavar="FEATS", help="choose among trials by the loss on this set, not on held-out")
    parser.add_argument("--dev-alignments", metavar="ALI", help="alignments of --dev; for criterion=lfmmi a CHAIN")
    add_decoding(parser)
    parser.add_argument("--wer-seeds", type=_seeds, metavar="A,B,…", help="whose models are decoded (all)")
    parser.add_argument("--reference", metavar="NAME", help="the system that others are held against (the first)")
    parser.add_argument("--tuned", type=Path, metavar="FILE", help="run no trials: winners of this compare.json")


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """The options of DECODING, which go together."""
    parser.add_argument("--graph", metavar="GRAPH", help="decode with this graph, for word error rates")
    parser.add_argument("--decode-dev", metavar="FEATS", help="tune scale and penalty on this set, and decode it")
    parser.add_argument("--decode-test", metavar="FEATS", help="decode this set too")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    from asr_hf.bench.compare import Settings, bench_compare
    from asr_hf.bench.compare_systems import read_systems, read_winners, require_equal_trials
    from asr_hf.bench.compare_words import Decoding
    from asr_hf.report.compare import compare_page, compare_text

    dev, decoded = together(args, "dev", "dev_alignments"), together(args, *DECODING)
    files = read_systems(args.systems)
    reference = args.reference or next(iter(files))
    if reference not in files:
        raise InputError(f"--reference {reference} is none of the systems", f"Name one of {', '.join(files)}.")
    winners = None if args.tuned is None else read_winners(args.tuned, list(files))
    if winners is None:
        require_equal_trials(files)
    systems, decoding = _compose(files, winners, overrides, args.config_dir)
    settings = Settings(
        args.seeds,
        args.budget,
        args.budget if args.trial_budget is None else args.trial_budget,
        args.jobs,
        (dev[0], dev[1]) if dev else None,
        Decoding(decoded[0], decoded[1], decoded[2], decoding) if decoded else None,
        args.seeds if args.wer_seeds is None else args.wer_seeds,
        reference,
        None if args.tuned is None else args.tuned.name,
    )
    measured = bench_compare(args.out, systems, settings, _command(args, overrides), to_yaml)
    write_text(args.out / "compare.json", _a_line_a_row(measured))
    write_text(args.out / "compare.html", compare_page(args.out.name, measured))
    print(f"\n{compare_text({args.out.name: measured})}\n\nPlots in {args.out / 'compare.html'}")


def together(args: argparse.Namespace, *names: str) -> list[str]:
    """Folders that are all given, or none of them (InputError)."""
    given = [getattr(args, name) for name in names]
    for name, folder in zip(names, given, strict=True):
        flag = f"--{name.replace('_', '-')}"
        if folder is None and any(given):
            flags = ", ".join(f"--{each.replace('_', '-')}" for each in names)
            raise InputError(f"{flag} is missing", f"Give {flags} together.")
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"{flag} {folder}: no such folder", "Make it with the command before.")
    return given if any(given) else []


def _compose(
    files: "Mapping[str, SystemFile]",
    winners: "Mapping[str, Winner] | None",
    overrides: list[str],
    config_dir: str | None,
) -> "tuple[dict[str, System], DecodingOptions]":
    """The systems with all options of every trial, and the options of decoding; a typo is found before any run."""
    from asr_hf.bench.compare import System, Trial
    from asr_hf.bench.compare_systems import refuse_own

    refuse_own(overrides, "the command line")
    of_runs = [each for each in overrides if not re.match(r"[+~]*decoding\b", each)]
    decoding = compose(("decoding",), [each for each in overrides if each not in of_runs], config_dir)["decoding"]
    systems = {}
    for name, file in files.items():
        trials, chosen = (file.trials, None) if winners is None else ([winners[name].overrides], winners[name].trials)
        composed = []
        for trial in trials:
            options = compose(RUN_GROUPS, [*of_runs, *file.options, *trial], config_dir)
            options["corpus"].require_paths()
            composed.append(Trial(tuple(trial), options))
        systems[name] = System(tuple(map(_override_without_place, file.options)), tuple(composed), chosen)
    return systems, decoding


def _command(args: argparse.Namespace, overrides: list[str]) -> str:
    """The command line; of an absolute path the last part alone."""
    words = ["asr-hf compare OUT", *map(_without_place, args.systems)]
    for name, value in vars(args).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            words.append(f"{flag} {','.join(map(str, value))}")
        elif name not in ("out", "systems") and value:
            words.append(f"{flag} {_without_place(value) if isinstance(value, str | Path) else f'{value:g}'}")
    return " ".join(words + [_override_without_place(override) for override in overrides])


def _without_place(path: Path | str) -> str:
    return Path(path).name if Path(path).is_absolute() else str(path)


def _override_without_place(override: str) -> str:
    key, _, value = override.partition("=")
    path = Path(value.strip(QUOTES))
    return f"{key}={path.name}" if path.is_absolute() else override


def _a_line_a_row(measured: Mapping[str, Any]) -> str:
    """JSON in which every innermost list or object is a line."""
    text = json.dumps(measured, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: " ".join(match[0].split()), text) + "\n"
