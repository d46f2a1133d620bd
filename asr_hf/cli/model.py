"""Show a neural acoustic model: layers, parameters, blocks, context, dropout and hidden states.

asr-hf model show exp/an4/dnn-ce-hf
asr-hf model show --input-dim 40 --pdfs 2000 model=tdnn model.width=512 model.subsampling=3
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from asr_hf.cli.config import compose
from asr_hf.errors import InputError

if TYPE_CHECKING:
    from asr_hf.models.acoustic import AcousticModel

GROUPS = ("model",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["show"], help="print a table of the model")
    parser.add_argument("folder", nargs="?", type=Path, metavar="MODEL", help="a finished model (or run)")
    parser.add_argument("--input-dim", type=int, metavar="D", help="features per frame, of a model given by options")
    parser.add_argument("--pdfs", type=int, metavar="P", help="outputs of a model given by options")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    print("\n".join(describe(_model(args, overrides))))


def _model(args: argparse.Namespace, overrides: list[str]) -> "AcousticModel":
    """The saved model of the folder, or one built from options."""
    if args.folder is not None:
        if overrides or args.input_dim is not None or args.pdfs is not None:
            raise InputError(
                f"a model is given by a folder ({args.folder}) or by options, not by both", "Leave one of them out."
            )
        from asr_hf.models.saved import load_model

        return load_model(args.folder).module
    for name, value in (("--input-dim", args.input_dim), ("--pdfs", args.pdfs)):
        if value is None:
            raise InputError(
                f"neither a MODEL folder nor {name} is given", "Name a folder, or give --input-dim D --pdfs P model=…."
            )
        if value < 1:
            raise InputError(f"{name} {value} is not positive", f"Give {name} a positive number.")
    return compose(GROUPS, overrides, args.config_dir)["model"].build(args.input_dim, args.pdfs, seed=0)


def describe(model: "AcousticModel") -> Iterator[str]:
    """The lines that are printed."""
    from asr_hf.models.norm import frozen_norms
    from asr_hf.objective.layout import Layout

    layout, penalty = Layout.of(model), model.penalty()
    rows: list[tuple[str, ...]] = [("block", "parameter", "shape", "count", "uses per frame")]
    for slot in layout.slots:
        shape = " x ".join(map(str, slot.shape))
        rows.append((slot.block, slot.name, shape, f"{slot.size:,}", f"{slot.uses_per_frame:g}"))
    yield from _aligned(rows)
    yield f"{type(model).__name__}: {layout.size:,} parameters in {len(layout.blocks)} blocks"
    yield f"input: {model.input_dim} features a frame; output: {model.num_pdfs} pdfs"
    yield from _context(model)
    places = (f"{name} ({units} units, rate {rate:g})" for name, (units, rate) in model.dropouts.items())
    norms = (f"{name} ({norm.mean.numel()} units)" for name, norm in frozen_norms(model).items())
    yield f"dropout: {', '.join(places) or 'none'}"
    yield f"norms with stored statistics: {', '.join(norms) or 'none'}"
    yield f"hidden states: {', '.join(model.states) or 'none'}"
    if penalty is not None:
        yield f"semi-orthogonal, weight {penalty.weight:g}: {', '.join(penalty.names)}"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Rows of a table in columns; numbers (the last two) flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-2], widths, strict=False)]
        yield "  ".join(cells + [cell.rjust(width) for cell, width in zip(row[-2:], widths[-2:], strict=True)])


def _context(model: "AcousticModel") -> Iterator[str]:
    left, right, every = model.left_context, model.right_context, model.subsampling
    yield f"context of an output frame: {left} input frames to its left and {right} to its right"
    if every > 1:
        yield f"one output frame for {every} input frames: a context of {left / every:.3g} and {right / every:.3g}"
