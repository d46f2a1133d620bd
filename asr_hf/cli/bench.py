"""Measure curvature products on this machine, in units of the fastest gradient of a plain torch module.

asr-hf bench curvature --out curvature.json
asr-hf bench curvature --out tdnn.json --model tdnn --method asr_hf,curvlinops --precision fp32 --repeats 15

Sizes: dnn 360-6x1024-2000 on 2048 frames, tdnn 6x512 on 32 x 150 frames, lstm 2x512 on 64 x 30 frames; one thread.
Without --method, libraries that are not installed or cannot run are named and left out: pip install asr-hf[bench].
"""

import argparse
from pathlib import Path

from asr_hf.decoding.output import write_json
from asr_hf.errors import InputError
from asr_hf.report.tables import curvature_table

GROUPS: tuple[str, ...] = ()
LISTS = ("model", "method", "precision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", choices=["curvature"], help="what is measured")
    parser.add_argument("--out", required=True, metavar="FILE", help="the JSON file of settings, machine and rows")
    parser.add_argument("--model", metavar="A,B", help="of dnn, tdnn, lstm (all)")
    parser.add_argument(
        "--method", metavar="A,B", help="of asr_hf, torch_jvp_vjp, double_backward, curvlinops, backpack (all that run)"
    )
    parser.add_argument("--precision", metavar="A,B", help="of fp32, medium, bf16 (all)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="timed rounds (7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--no-peaks", action="store_true", help="do not measure memory, which takes a process a row")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise InputError(f"'{overrides[0]}': asr-hf bench takes no options of that kind", "See --help.")
    from asr_hf.bench.curvature import Settings, bench_curvature

    lists = {f"{name}s": tuple(text.split(",")) for name in LISTS if (text := getattr(args, name)) is not None}
    settings = Settings(**lists, repeats=args.repeats, device=args.device, peaks=not args.no_peaks)
    measured = bench_curvature(settings, _command(args))
    write_json(Path(args.out), measured)
    print(curvature_table(measured["unit"], measured["rows"]))


def _command(args: argparse.Namespace) -> str:
    """The command line without the place of the file."""
    words = ["asr-hf bench", args.subject, "--out FILE.json"]
    words += [f"--{name} {getattr(args, name)}" for name in LISTS if getattr(args, name) is not None]
    words += [f"--repeats {args.repeats}", f"--device {args.device}", *["--no-peaks"] * args.no_peaks]
    return " ".join(words)
