"""What the cost model says beyond what was measured: thousands of ranks, 300 hours. Extrapolation, not measurement.

The corpus has the size of Switchboard as Kaldi prepares it: 260,000 utterances, 313 h 23 min (a comment of
egs/swbd/s5c/run.sh). Lengths are log-normal. Their spread is from the same comment: the 100,000 shortest without
repetitions, of which 10,000 last 4 h 40 min, so about m(p) = 1.68 s each. With mean m = 4.34 s and p = 100/260 that is
m(p) = m Φ(Φ⁻¹(p) − σ)/p, hence σ = 0.75.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from asr_hf.bench.cost_model import (
    Command,
    Link,
    Machine,
    equal_minibatches,
    gradient,
    imbalance,
    predict,
    product,
    update,
)
from asr_hf.data.plan import Sample

UTTERANCES, SECONDS, SPREAD = 260_000, 3600 * (313 + 23 / 60), 0.75
FRAMES = round(100 * SECONDS)
SHORTEST = 10  # frames
SEED = 1

RANKS = tuple(2**power for power in range(13))  # to 4,096
FABRICS = {  # assumed: latency, and about nine tenths of the nominal bandwidth
    "100 Gbit/s, 2 µs": Link(2e-6, 11e9),
    "10 Gbit/s, 30 µs": Link(30e-6, 1.1e9),
}
GRADIENT_MINIBATCH, CURVATURE_MINIBATCH = 2048, 256  # frames; the smaller ones give more ranks work
CURVATURE_SHARE, HELDOUT_SHARE = 0.01, 0.01
ITERATIONS, CANDIDATES, TRIALS = 30, 6, 1
ASSUMPTIONS = (
    f"the network that was measured, on {FRAMES:,} frames (Switchboard, {SECONDS / 3600:.0f} h); gradient on all in "
    f"minibatches of {GRADIENT_MINIBATCH} frames, curvature on {CURVATURE_SHARE:.0%} in minibatches of "
    f"{CURVATURE_MINIBATCH}, held-out set of {HELDOUT_SHARE:.0%}; an update has {ITERATIONS} CG iterations, "
    f"{CANDIDATES} candidates and {TRIALS} loss on the gradient sample; ranks compute as fast as those measured"
)

SAMPLES = {  # as sequence criteria ask for them; minibatches of 2048 and 600 frames
    "gradient, whole utterances": Sample("train", "all", 1.0, 2048, whole_utterances=True, seed=SEED),
    "curvature, whole utterances": Sample("train", "utterances", CURVATURE_SHARE, 2048, True, SEED),
    "curvature, pieces of 150 frames": Sample("train", "chunks", CURVATURE_SHARE, 600, True, SEED, chunk=150),
}
SIMULATED = (64, 512)


def extrapolated(machine: Machine) -> dict[str, Any]:
    """`assumptions`, `efficiency` of ranks to 4,096 and `imbalance` of utterances, as rows."""
    return {
        "assumptions": ASSUMPTIONS,
        "efficiency": efficiency_rows(machine, FABRICS, RANKS),
        "imbalance": imbalance_rows(switchboard_lengths(), SIMULATED),
    }


def efficiency_rows(machine: Machine, fabrics: Mapping[str, Link], many: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of fabric, ranks, what, seconds and efficiency = T(1) / (R T(R))."""
    found = []
    for fabric, link in fabrics.items():
        for what, commands in _work().items():
            alone = predict(commands, 1, machine, None).seconds
            for ranks in many:
                spent = predict(commands, ranks, machine, link)
                row = {"fabric": fabric, "ranks": ranks, "what": what, "efficiency": alone / (ranks * spent.seconds)}
                found.append(row | asdict(spent))
    return found


def _work() -> dict[str, list[Command]]:
    whole = equal_minibatches(FRAMES, GRADIENT_MINIBATCH)
    some = equal_minibatches(round(CURVATURE_SHARE * FRAMES), CURVATURE_MINIBATCH)
    heldout = equal_minibatches(round(HELDOUT_SHARE * FRAMES), GRADIENT_MINIBATCH)
    return {
        "gradient": [gradient(whole)],
        "product": [product(some)],
        "update": update(whole, some, heldout, ITERATIONS, CANDIDATES, TRIALS),
    }


def switchboard_lengths(utterances: int = UTTERANCES) -> np.ndarray:
    """Made-up lengths of utterances (frames), int (utterances,), with Switchboard's mean and spread."""
    drawn = np.random.default_rng(SEED).lognormal(sigma=SPREAD, size=utterances)
    mean = FRAMES / UTTERANCES
    return np.maximum(SHORTEST, np.round(drawn * (mean / drawn.mean()))).astype(np.int64)


def imbalance_rows(lengths: np.ndarray, many: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of sample, ranks, minibatches and imbalance, of minibatches that are really dealt."""
    found = []
    for name, sample in SAMPLES.items():
        frames = [minibatch.frames for minibatch in sample.plan(lengths)]
        for ranks in many:
            row = {"sample": name, "ranks": ranks, "minibatches": len(frames)}
            found.append(row | {"imbalance": imbalance(frames, ranks)})
    return found
