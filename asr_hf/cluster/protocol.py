"""What the master tells the workers: one typed record per command, followed by the vectors that it names."""

import enum

import numpy as np
import torch

from asr_hf.curvature.precision import Precision
from asr_hf.data.plan import PURPOSES, SUBSETS, UNITS, Sample


class Command(enum.IntEnum):
    """The commands; after each, every rank sends its share of a sum, save after those from CLOSE on.

    After GRADIENT with `squares` there are two vectors: the gradient, then the sum of the minibatches' squares.
    """

    LOSS = 1
    GRADIENT = 2
    LINEARIZE = 3
    PRODUCT = 4
    MOMENTS = 5
    FACTORS = 6
    CLOSE = 7
    BUFFERS = 8
    PAIRS = 9
    TASK = 10  # a small object follows, from which workers make their evaluator, unless they have
    LEAVE = 11


class Operation(enum.IntEnum):
    """What a command PAIRS does to a store of curvature pairs (N,), by the fields size, rows, change and dtype."""

    NEW = 1  # rows: pairs at most; dtype: of storage
    APPEND = 2  # size: N; then s and y are scattered
    REFRESH = 3  # change
    CLEAR = 4
    DIAGONAL = 5  # D for GRAM, ALONG and COMBINE from now on; size: N, then d is scattered, or 0: none
    GRAM = 6  # rows: first column; then the shares of blocks are gathered
    ALONG = 7  # r is scattered, the shares of blocks are gathered
    COMBINE = 8  # the coefficients are broadcast, the combination is gathered
    VECTORS = 9  # all s, then all y are gathered
    RESTORE = 10  # size: N; rows: pairs, of which each s and y is scattered
    DROP = 11


PRECISIONS = tuple(Precision)  # as numbered here
DTYPES = (torch.float32, torch.bfloat16, torch.float64)  # of stores
LARGEST = 2**53

# What follows a header: θ (theta_follows), utterances (left_out), buffers (BUFFERS); after PRODUCT the group of every
# block of the layout (grouped), −1 for none, and v.
HEADER = np.dtype(
    [
        ("number", np.int64),  # of the command, counted from 1
        ("command", np.int64),
        ("theta_follows", np.int64),
        ("handle", np.int64),  # number of the LINEARIZE command that a PRODUCT or CLOSE belongs to; of a TASK, its own
        ("matrix", np.int64),  # index into the criterion's matrices
        ("structural", np.float64),  # weight of structural damping
        ("grouped", np.int64),
        ("precision", np.int64),  # index into the precisions of products
        ("batch_statistics", np.int64),
        ("squares", np.int64),
        ("reduce", np.int64),  # of FACTORS: positions of a piece are put together first
        ("left_out", np.int64),
        ("subset", np.int64),
        ("unit", np.int64),
        ("share", np.float64),
        ("minibatch_frames", np.int64),
        ("whole_utterances", np.int64),
        ("seed", np.int64),
        ("update", np.int64),
        ("purpose", np.int64),
        ("first", np.int64),
        ("count", np.int64),
        ("chunk", np.int64),
        ("masks", np.int64),
        ("shift", np.int64),
        ("store", np.int64),  # number of the store that a PAIRS is for, counted from 1
        ("operation", np.int64),
        ("size", np.int64),
        ("rows", np.int64),
        ("change", np.float64),
        ("dtype", np.int64),  # index into the types of storage
    ]
)

# the fields of a sample that are numbers
NUMBERS = (
    *("share", "minibatch_frames", "whole_utterances", "seed", "update", "first", "count", "chunk", "masks", "shift"),
)


LARGEST_OF = {  # of fields that are no plain counts
    "command": max(Command),
    "operation": max(Operation),
    "rows": 1 << 20,
    "size": 1 << 40,
    "subset": len(SUBSETS) - 1,
    "unit": len(UNITS) - 1,
    "purpose": len(PURPOSES) - 1,
    "dtype": len(DTYPES) - 1,
    "precision": len(PRECISIONS) - 1,
}
FLAGS = ("theta_follows", "grouped", "batch_statistics", "squares", "reduce", "whole_utterances")
REALS = ("structural", "share", "change")
SAMPLED = (Command.LOSS, Command.GRADIENT, Command.LINEARIZE, Command.MOMENTS, Command.FACTORS)


class CommandError(Exception):
    """A record that no master of this protocol sends."""


def check(record: np.void) -> None:
    """Refuse a record with a field that cannot be (CommandError names it); what it is about may still not exist."""
    for name in record.dtype.names or ():
        value = record[name]
        least = 1 if name in ("number", "command") else 0
        most = LARGEST_OF.get(name, 1 if name in FLAGS else LARGEST)
        if name in REALS and not np.isfinite(value):
            raise CommandError(f"its {name} is {value}")
        if name not in REALS and not least <= value <= most:
            raise CommandError(f"its {name} is {value}, not {least} to {most}")
    if record["command"] in SAMPLED and not (0 < record["share"] <= 1 and record["minibatch_frames"] >= 1):
        raise CommandError(
            f"its sample has share {record['share']} and {record['minibatch_frames']} frames a minibatch"
        )
    if record["command"] == Command.PAIRS and record["operation"] == 0:
        raise CommandError("its operation is 0")


def write_groups(groups: tuple[tuple[str, ...], ...], blocks: tuple[str, ...]) -> np.ndarray:
    """int64, for each block of the layout the index of its group, −1 where it is in none."""
    group_of = {block: index for index, group in enumerate(groups) for block in group}
    return np.array([group_of.get(block, -1) for block in blocks], dtype=np.int64)


def read_groups(group_of: np.ndarray, blocks: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The groups of blocks behind `write_groups`."""
    count = int(group_of.max(initial=-1)) + 1
    return tuple(tuple(b for b, g in zip(blocks, group_of, strict=True) if g == index) for index in range(count))


def write_sample(header: np.ndarray, sample: Sample) -> None:
    """Enter a sample into a header."""
    header["subset"], header["unit"] = SUBSETS.index(sample.subset), UNITS.index(sample.unit)
    header["purpose"] = PURPOSES.index(sample.purpose)
    for name in NUMBERS:
        header[name] = getattr(sample, name)


def read_sample(header: np.ndarray) -> Sample:
    """The sample of a header."""
    record = header[0]
    return Sample(
        subset=SUBSETS[int(record["subset"])],
        unit=UNITS[int(record["unit"])],
        purpose=PURPOSES[int(record["purpose"])],
        share=float(record["share"]),
        whole_utterances=bool(record["whole_utterances"]),
        **{name: int(record[name]) for name in NUMBERS if name not in ("share", "whole_utterances")},
    )
