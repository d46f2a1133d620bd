"""Collect scores into results.json, the table of RESULTS.md and the report of a training run.

asr-hf results exp/an4/results.json --add tri --set test --seed 0 --score exp/an4/tri/test/score.json --seconds 41
asr-hf results exp/an4/results.json --table --markdown recipes/an4/RESULTS.md
asr-hf results exp/digits/results.json --line "digits test" --system dnn-ce-hf --set test
asr-hf results exp/an4/results.json --report exp/an4/dnn-ce-hf
asr-hf results exp/an4/results.json --publish docs/results/an4.json --command "recipes/an4/run.sh"
asr-hf results difference.json --difference exp/new-fold*/test/score.json --from exp/old-fold*/test/score.json
"""

import argparse
import json
from pathlib import Path

from asr_hf.decoding.output import write_json
from asr_hf.errors import InputError
from asr_hf.report.published import origin, publish
from asr_hf.report.results import add_result, find_results, read_results
from asr_hf.report.run_report import write_run_report
from asr_hf.report.tables import text_table, update_markdown
from asr_hf.report.word_errors import compared

GROUPS: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS_JSON", help="the file of rows; --add and --difference write it")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--add", metavar="SYSTEM", help="add or replace the row of SYSTEM, --set and --seed")
    what.add_argument("--table", action="store_true", help="print the table of all rows")
    what.add_argument("--line", metavar="TITLE", help="print 'TITLE WER X.XX %%' of --system on --set")
    what.add_argument(
        "--report", metavar="RUN", help="draw RUN/report.html: curves of a training run, table of all rows"
    )
    what.add_argument(
        "--publish", metavar="FILE", help="write the rows with --command, versions and machine shape, to be committed"
    )
    what.add_argument(
        "--difference", nargs="+", metavar="SCORE", help="WER over these score.json less that over --from, by speaker"
    )
    parser.add_argument("--from", nargs="+", dest="reference", metavar="SCORE", help="the other system (--difference)")
    parser.add_argument("--command", help="the command that made the results (--publish, --difference)")
    parser.add_argument("--set", help="dev or test")
    parser.add_argument("--seed", type=int, default=None, help="seed of the system (0 for --add, any for --line)")
    parser.add_argument("--score", metavar="FILE", help="score.json of the row (--add)")
    parser.add_argument("--seconds", type=float, metavar="S", help="seconds it took to make the system (--add)")
    parser.add_argument("--system", help="the system of --line")
    parser.add_argument(
        "--markdown", metavar="FILE", help="rewrite the block between the results markers of FILE (--table)"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise InputError(f"'{overrides[0]}': asr-hf results takes no options of that kind", "See --help.")
    needed = {
        "add": ("set", "score", "seconds"),
        "line": ("system", "set"),
        "report": (),
        "publish": ("command",),
        "difference": ("reference",),
        "table": (),
    }
    action = next((name for name in needed if name != "table" and getattr(args, name) is not None), "table")
    for name in needed[action]:
        if getattr(args, name) is None:
            flag = {"reference": "from"}.get(name, name)
            raise InputError(f"--{action} needs --{flag}", "asr-hf results --help shows an example.")
    for flag, given, only in (("markdown", args.markdown, "table"), ("from", args.reference, "difference")):
        if given is not None and action != only:
            raise InputError(f"--{flag} does not go with --{action}", f"Use it with --{only}.")
    if action == "add":
        row = add_result(args.results, args.add, args.set, args.seed or 0, args.score, args.seconds)
        print(text_table([row]))
        return
    if action == "difference":
        _require_replaceable(Path(args.results))
        found = compared(args.difference, args.reference)
        write_json(Path(args.results), found if args.command is None else {**origin(args.command), **found})
        print(
            f"WER {found['system']['wer']:.2f} %, reference {found['reference']['wer']:.2f} %, difference "
            f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}] over {found['words']} words of "
            f"{found['speakers']} speakers"
        )
        return
    rows = read_results(args.results)
    if action == "report":
        print(write_run_report(args.report, rows))
        return
    if not rows:
        raise InputError(f"{Path(args.results)} holds no results", "Add rows with --add first.")
    if action == "publish":
        publish(rows, args.publish, args.command)
        print(args.publish)
    elif action == "line":
        last = find_results(rows, args.system, args.set, args.seed)[-1]
        print(f"{args.line} WER {last.wer:.2f} %")
    else:
        print(text_table(rows))
        if args.markdown is not None:
            update_markdown(args.markdown, rows)


def _require_replaceable(path: Path) -> None:
    """Refuse to put a difference in the place of a file that holds something else, rows for instance (InputError)."""
    if not path.exists():
        return
    try:
        earlier = "reference" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        earlier = False
    if not earlier:
        raise InputError(f"{path} exists and holds no difference", "Name a new file; this one is not overwritten.")
