"""The record that carries a sample to the workers."""

from dataclasses import fields, replace

import numpy as np

from asr_hf.cluster.protocol import HEADER, read_sample, write_sample
from asr_hf.data.plan import Sample


def test_a_sample_survives_the_record() -> None:
    plain = Sample("train")
    other = Sample("heldout", "chunks", 0.25, 512, True, 7, 9, "epoch", 3, 4, 40, 11)
    names = [field.name for field in fields(Sample)]
    assert all(getattr(plain, name) != getattr(other, name) for name in names)
    for sample in (plain, other, *(replace(plain, **{name: getattr(other, name)}) for name in names)):
        header = np.zeros(1, dtype=HEADER)
        write_sample(header, sample)
        assert read_sample(header) == sample
