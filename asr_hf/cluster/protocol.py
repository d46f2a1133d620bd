"""What the master tells the workers: one typed record per command, followed by the vectors that it names."""

import enum

import numpy as np

from asr_hf.data.plan import PURPOSES, SUBSETS, UNITS, Sample


class Command(enum.IntEnum):
    """The commands; after each, every rank sends its share of a sum, save after CLOSE and STOP."""

    LOSS = 1
    GRADIENT = 2
    LINEARIZE = 3
    PRODUCT = 4
    CLOSE = 5
    STOP = 6


# θ, v and the list of utterances left out follow a header where theta_follows, Command.PRODUCT and left_out say so.
HEADER = np.dtype(
    [
        ("number", np.int64),  # of the command, counted from 1
        ("command", np.int64),
        ("theta_follows", np.int64),
        ("handle", np.int64),  # number of the LINEARIZE command that a PRODUCT or CLOSE belongs to
        ("matrix", np.int64),  # index into the criterion's matrices
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
    ]
)


def write_sample(header: np.ndarray, sample: Sample) -> None:
    """Enter a sample into a header."""
    header["subset"], header["unit"] = SUBSETS.index(sample.subset), UNITS.index(sample.unit)
    header["purpose"] = PURPOSES.index(sample.purpose)
    for name in ("share", "minibatch_frames", "whole_utterances", "seed", "update", "first", "count", "chunk", "masks"):
        header[name] = getattr(sample, name)


def read_sample(header: np.ndarray) -> Sample:
    """The sample of a header."""
    record = header[0]
    return Sample(
        subset=SUBSETS[int(record["subset"])],
        unit=UNITS[int(record["unit"])],
        share=float(record["share"]),
        minibatch_frames=int(record["minibatch_frames"]),
        whole_utterances=bool(record["whole_utterances"]),
        seed=int(record["seed"]),
        update=int(record["update"]),
        purpose=PURPOSES[int(record["purpose"])],
        first=int(record["first"]),
        count=int(record["count"]),
        chunk=int(record["chunk"]),
        masks=int(record["masks"]),
    )
