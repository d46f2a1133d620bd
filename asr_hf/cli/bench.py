"""Measure curvature products, and sums over the paths of lattice-free MMI, on this machine.

asr-hf bench curvature --out curvature.json     # in units of the fastest gradient of a plain torch module
asr-hf bench curvature --out tdnn.json --model tdnn --method asr_hf,curvlinops --precision fp32 --repeats 15
asr-hf bench precision exp/an4/dnn exp/an4/lstm --out precision.json    # does bf16 do on these Hessian-free runs?
asr-hf bench lfmmi --out lfmmi.json --chain CHAIN --model MODEL --feats FEATS --k2-python .venv-k2/bin/python
asr-hf bench scaling --out scaling.json --ranks 1,2                     # what ranks gain, and what a cost model foresaw
asr-hf bench scaling --out joined.json --measured scaling.json --compare dnn.json --subject 200000,219000 --svg t.svg
asr-hf bench averages exp/avg-0 exp/avg-1 --out averages.json --dev FEATS --dev-alignments ALI    # of asr-hf average
asr-hf bench table curvature.json --markdown docs/curvature.md          # draw again what was measured
asr-hf bench table dnn.json --markdown docs/results/dnn.md    # of asr-hf compare: the block 'bench compare dnn'
asr-hf bench table f1.json f2.json f3.json f4.json            # folds of one comparison, word errors pooled
asr-hf bench table scaling.json scaling-1000.json             # ranks beside each other over several links
asr-hf bench table dnn.json --reference adam                    # systems held against another than the comparison's own
asr-hf bench table dnn.json --svg dnn.svg --systems hf,adam     # held-out loss by cost and by update

Sizes of curvature: dnn 360-6x1024-2000 on 2048 frames, tdnn 6x512 on 32 x 150 frames, lstm 2x512 on 64 x 30 frames; one
thread. Without --method, libraries that are not installed or cannot run are named and left out: pip install
asr-hf[bench]. Precision solves the system of a run's next update by CG in fp32, medium and bf16, and judges the
iterates by fp32's quadratic model. Lfmmi times forward-backward of a denominator graph, and the product with its
Hessian, beside plain torch and k2 (scripts/k2_env): on a synthetic graph and, where named, on a CHAIN. Scaling starts
the ranks itself, on a DNN 360-6x1024-2000 and made-up features; with --compare it extrapolates how long the optimisers
of a comparison take to a loss on up to 4,096 ranks (docs/cluster.md). Averages judges averages of replicas, their
members and what these began from: by held-out and dev loss and, with --graph, by word errors.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from asr_hf.cli.compare import DECODING, add_decoding, together
from asr_hf.cli.config import from_yaml
from asr_hf.cli.train import GROUPS as RUN_GROUPS
from asr_hf.decoding.output import write_json, write_text
from asr_hf.errors import InputError
from asr_hf.report.averages import averages_text
from asr_hf.report.compare import compare_text, held_against
from asr_hf.report.picture import compare_picture
from asr_hf.report.scaling import scaling_text, time_to_loss_picture
from asr_hf.report.tables import curvature_table, lfmmi_table, precision_table, replace_marked

GROUPS: tuple[str, ...] = ()
LISTS = ("model", "method", "precision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subjects = parser.add_subparsers(
        dest="bench", required=True, metavar="SUBJECT", help="curvature, precision, lfmmi, scaling, averages, table"
    )
    _add_curvature(subjects.add_parser("curvature"))
    _add_precision(subjects.add_parser("precision"))
    _add_lfmmi(subjects.add_parser("lfmmi"))
    _add_scaling(subjects.add_parser("scaling"))
    _add_averages(subjects.add_parser("averages"))
    _add_table(subjects.add_parser("table"))


def _add_curvature(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    parser.add_argument("--model", metavar="A,B", help="of dnn, tdnn, lstm (all)")
    parser.add_argument(
        "--method", metavar="A,B", help="of asr_hf, torch_jvp_vjp, double_backward, curvlinops, backpack (all that run)"
    )
    parser.add_argument("--precision", metavar="A,B", help="of fp32, medium, bf16 (all)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="timed rounds (7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--no-peaks", action="store_true", help="do not measure memory, which takes a process a row")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs with optimizer=hf")
    _add_out(parser)
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="CG iterations (50)")
    parser.add_argument("--update", type=int, metavar="K", help="draw the curvature sample of that update (the next)")


def _add_lfmmi(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    parser.add_argument("--chain", type=Path, metavar="CHAIN", help="its denominator is the graph an4")
    parser.add_argument("--model", type=Path, metavar="MODEL", help="network whose outputs go with CHAIN")
    parser.add_argument("--feats", type=Path, metavar="FEATS", help="features for that network")
    parser.add_argument("--rows", type=int, default=16, metavar="N", help="pieces of FEATS, 50 output frames each (16)")
    parser.add_argument("--k2-python", type=Path, metavar="PYTHON", help="a Python that has k2; without it no k2")
    parser.add_argument(
        "--seconds", type=float, default=40.0, metavar="S", help="a graph's share of time, without k2 (40)"
    )


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    parser.add_argument("--ranks", default=(1, 2), type=_numbers, metavar="1,2", help="numbers of ranks (1,2)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds over these (5)")
    parser.add_argument("--model", default="dnn", help="dnn, or tiny, to try the command (dnn)")
    parser.add_argument("--minibatches", type=int, default=16, metavar="N", help="of 2048 frames, in each sample (16)")
    parser.add_argument("--iterations", type=int, default=5, metavar="N", help="of CG in an update (5)")
    parser.add_argument(
        "--launch", default="", metavar="COMMAND", help="starts {ranks} ranks of what follows (mpiexec)"
    )
    parser.add_argument("--together", type=int, default=0, metavar="N", help="ranks a machine (those of a host)")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="measure nothing: take what --out wrote before")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="a compare.json: time to a loss by ranks")
    parser.add_argument("--subject", type=_numbers, metavar="N,F", help="parameters and training frames of --compare")
    parser.add_argument("--loss", type=float, help="of --compare; otherwise what its reference reaches with every seed")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="time to the loss as a picture")


def _add_averages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("averages", type=Path, nargs="+", metavar="OUT", help="of asr-hf average OUT --replicas K")
    _add_out(parser)
    parser.add_argument("--dev", required=True, metavar="FEATS", help="a set that no model was trained on")
    parser.add_argument(
        "--dev-alignments", required=True, metavar="ALI", help="alignments of --dev; for criterion=lfmmi a CHAIN"
    )
    add_decoding(parser)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that decode (1)")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "measured", type=Path, nargs="+", metavar="FILE",
        help="what --out of the others wrote, or a compare.json; several of these are folds; or files of scaling",
    )  # fmt: skip
    parser.add_argument(
        "--markdown", metavar="FILE",
        help="rewrite the block between the markers 'bench SUBJECT' of FILE; of comparisons 'bench compare NAME+NAME…',"
        " of averages 'bench averages NAME'",
    )  # fmt: skip
    parser.add_argument("--reference", metavar="SYSTEM", help="of comparisons: what the others are held against")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="of one comparison: its held-out losses as a picture")
    parser.add_argument("--systems", type=_words, default=(), metavar="A,B,…", help="the curves of --svg (all)")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE", help="the JSON file of settings, machine and rows")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise InputError(f"'{overrides[0]}': asr-hf bench takes no options of that kind", "See --help.")
    subjects = {
        "curvature": _curvature,
        "precision": _precision,
        "lfmmi": _lfmmi,
        "scaling": _scaling,
        "averages": _averages,
        "table": _table,
    }
    subjects[args.bench](args)


def _curvature(args: argparse.Namespace) -> None:
    from asr_hf.bench.curvature import Settings, bench_curvature

    lists = {f"{name}s": tuple(text.split(",")) for name in LISTS if (text := getattr(args, name)) is not None}
    settings = Settings(**lists, repeats=args.repeats, device=args.device, peaks=not args.no_peaks)
    words = [f"--{name} {getattr(args, name)}" for name in LISTS if getattr(args, name) is not None]
    words += [f"--repeats {args.repeats}", f"--device {args.device}", *["--no-peaks"] * args.no_peaks]
    measured = bench_curvature(settings, _command("curvature", words))
    write_json(Path(args.out), measured)
    print(_drawn(measured)[1])


def _precision(args: argparse.Namespace) -> None:
    from asr_hf.bench.precision import PrecisionSettings, Run, bench_precision, names_of

    settings = PrecisionSettings(args.iterations, args.update)
    names = names_of(args.runs)
    runs = [Run(folder, from_yaml(folder / "config.yaml", RUN_GROUPS)) for folder in args.runs]
    words = [f"--iterations {args.iterations}", *([] if args.update is None else [f"--update {args.update}"])]
    measured = bench_precision(dict(zip(names, runs, strict=True)), settings, _command("precision", names + words))
    write_json(Path(args.out), measured)
    print(_drawn(measured)[1])


def _lfmmi(args: argparse.Namespace) -> None:
    from asr_hf.bench.lfmmi import LfmmiSettings, bench_lfmmi

    folders = {name: getattr(args, name) for name in ("chain", "model", "feats")}
    settings = LfmmiSettings(**folders, k2_python=args.k2_python, rows=args.rows, seconds=args.seconds)
    words = [f"--{name} {name.upper()}" for name, folder in folders.items() if folder is not None]
    words += ["--k2-python PYTHON"] * (args.k2_python is not None)
    words += [f"--rows {args.rows}", f"--seconds {args.seconds:g}"]
    measured = bench_lfmmi(settings, _command("lfmmi", words))
    write_json(Path(args.out), measured)
    print(_drawn(measured)[1])


def _scaling(args: argparse.Namespace) -> None:
    from asr_hf.bench.cost_model import Machine
    from asr_hf.bench.scaling import ScalingSettings, bench_scaling
    from asr_hf.bench.time_to_loss import Subject, time_to_loss

    if (args.compare is None) != (args.subject is None) or len(args.subject or (0, 0)) != 2:
        raise InputError("--compare and --subject N,F go together", "Give the comparison's parameters and frames.")
    if args.svg is not None and args.compare is None:
        raise InputError("--svg draws the time to a loss", "Name a comparison with --compare.")
    if args.measured is None:
        names = ("ranks", "repeats", "model", "minibatches", "iterations", "together", "launch")
        settings = ScalingSettings(**{name: getattr(args, name) for name in names})
        given = {name: getattr(args, name) for name in names[1:6]} | {"ranks": ",".join(map(str, args.ranks))}
        words = [f"--{name} {value}" for name, value in given.items()] + ["--launch COMMAND"] * bool(args.launch)
        measured = bench_scaling(settings, _command("scaling", words))
    else:
        measured = _read(args.measured, "constants")
    if args.compare is not None:
        machine = Machine(**measured["constants"][max(measured["constants"], key=int)])
        compared = _read(args.compare, "systems")
        subject = ",".join(map(str, args.subject))
        words = ["--measured FILE.json", f"--compare {args.compare.name}", f"--subject {subject}"]
        words += [] if args.loss is None else [f"--loss {args.loss:g}"]
        found = time_to_loss(compared, Subject(*args.subject), machine, args.loss)
        (name,) = _by_name([args.compare])
        measured.setdefault("time_to_loss", {})[name] = {"command": _command("scaling", words), **found}
    write_json(Path(args.out), measured)
    print(_drawn(measured)[1])
    if args.svg is not None:
        write_text(args.svg, time_to_loss_picture(found))


def _averages(args: argparse.Namespace) -> None:
    from asr_hf.bench.averages import AverageSettings, bench_averages
    from asr_hf.bench.compare_words import Decoding
    from asr_hf.bench.precision import names_of
    from asr_hf.decoding.search import DecodingOptions
    from asr_hf.training.average import replica_folders

    dev, decoded = together(args, "dev", "dev_alignments"), together(args, *DECODING)
    decoding = Decoding(decoded[0], decoded[1], decoded[2], DecodingOptions()) if decoded else None
    settings = AverageSettings((dev[0], dev[1]), decoding, args.jobs)
    names = names_of(args.averages)
    options = [from_yaml(replica_folders(folder)[0] / "config.yaml", RUN_GROUPS) for folder in args.averages]
    averages = dict(zip(names, zip(args.averages, options, strict=True), strict=True))
    words = [f"--{name.replace('_', '-')} {name.upper()}" for name in DECODING if decoded]
    measured = bench_averages(
        averages, settings, _command("averages", [*names, "--dev FEATS --dev-alignments ALI", *words])
    )
    write_json(Path(args.out), measured)
    print(_drawn(measured)[1])


def _read(path: Path, key: str) -> dict[str, Any]:
    """A JSON file that has a key, which the right ones have (InputError)."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        content[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what it should be ({error})", "See asr-hf bench --help.") from None
    return content


def _table(args: argparse.Namespace) -> None:
    names = ", ".join(map(str, args.measured))
    try:
        measured = {name: json.loads(path.read_text("utf-8")) for name, path in _by_name(args.measured).items()}
        if args.reference is not None:
            measured = {name: held_against(content, args.reference) for name, content in measured.items()}
        subject, drawn = _drawn_again(measured)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{names} holds nothing that asr-hf measured ({error})", "Measure it.") from None
    print(drawn)
    if args.svg is not None:
        if len(measured) > 1 or not subject.startswith("compare"):
            raise InputError(f"{names} is not one comparison", "Name one compare.json with --svg.")
        write_text(args.svg, compare_picture(next(iter(measured.values())), args.systems))
    if args.markdown is not None:
        replace_marked(args.markdown, f"bench {subject}", f"```\n{drawn}\n```")


def _by_name(paths: list[Path]) -> dict[str, Path]:
    """Files by their stem, or by their folder where they have the name that asr-hf compare gives them."""
    named = {path.parent.resolve().name if path.name == "compare.json" else path.stem: path for path in paths}
    if len(named) < len(paths):
        raise InputError("two files have the same name", "Give each fold its own name.")
    return named


def _drawn_again(measured: dict[str, Any]) -> tuple[str, str]:
    """Subject and table of a file, of several comparisons (folds), or of several links' scaling."""
    if all("systems" in content for content in measured.values()):
        return f"compare {'+'.join(measured)}", compare_text(measured)
    if all("extrapolation" in content for content in measured.values()):
        return "scaling", scaling_text(measured)
    if len(measured) > 1:
        raise InputError("several files are drawn as one only if all are comparisons, or all of scaling", "Name one.")
    ((name, content),) = measured.items()
    subject, text = _drawn(content)
    return f"averages {name}" if subject == "averages" else subject, text


def _drawn(measured: dict[str, Any]) -> tuple[str, str]:
    """Subject and table of what was measured."""
    if "unit" in measured:
        return "curvature", curvature_table(measured["unit"], measured["rows"])
    if "extrapolation" in measured:
        return "scaling", scaling_text({"scaling": measured})
    if "averages" in measured:
        return "averages", averages_text(measured["averages"])
    if "graphs" in measured:
        return "lfmmi", lfmmi_table(measured["graphs"], measured["rows"])
    return "precision", precision_table(measured["runs"], measured["rows"])


def _command(subject: str, words: list[str]) -> str:
    """The command line without the places of files and folders."""
    return " ".join(["asr-hf bench", subject, "--out FILE.json", *words])
