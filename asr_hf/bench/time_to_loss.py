"""How long the optimisers of a comparison would take to a loss on R ranks, by the cost model. Extrapolation.

A run that reached the loss after t seconds on one process, at a cost of C gradient-equivalents of F frames, with V
vectors exchanged, has made X = V/2 exchanges (one vector broadcast, one summed: a minibatch step of a first-order
method, a product or gradient of a second-order one), each after C·F/X frames. On R ranks it takes

    T(R) = s + (t − s) / min(R, C·F / (X·A)) + X (w + B + S)          s = X·a·N/N₀ + t·C_timed/C

with a, w, B, S as in `cost_model`, a measured at N₀ parameters, and C_timed the work that only the master does. A is
the fewest frames that are worth a rank. Minibatches are cut as small as that for all methods alike, which is more than
asr_hf does for first-order ones: it deals whole minibatches. Nor does w hold the time that our ranks sleep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from asr_hf.bench.cost_model import Link, Machine, exchange_seconds
from asr_hf.bench.extrapolation import FABRICS, RANKS
from asr_hf.errors import InputError
from asr_hf.report.curves import best_at

FEWEST_FRAMES = 32  # A: smaller products of matrices are slow


@dataclass(frozen=True)
class Subject:
    """What was compared: N of the model, F of the training set."""

    parameters: int
    frames: int


@dataclass(frozen=True)
class Reached:
    """What a run had spent when it reached the loss: t, C, C_timed and V."""

    seconds: float
    cost: float
    timed: float
    vectors: float


def time_to_loss(
    comparison: Mapping[str, Any], subject: Subject, measured: Machine, loss: float | None = None
) -> dict[str, Any]:
    """Seconds to a held-out loss for each system of a comparison, and from how many ranks on one overtakes another.

    Args:
        comparison: the content of a compare.json.
        subject: its model and corpus.
        measured: the cost model's constants.
        loss: nats a frame; None: what the reference reaches with every seed.

    Returns:
        loss, reference, `systems`: fabric → name → seconds for each of `ranks`, the mean over seeds, or null where a
        seed does not reach the loss; `overtakes`: rows of fabric, system, rival, ranks, the fewest from which on the
        second-order system is faster than the first-order rival (null: never).

    Raises:
        InputError: the reference has no run, or no such rows are in the comparison.
    """
    try:
        reference = comparison["settings"]["reference"]
        systems = {name: _curves(system) for name, system in comparison["systems"].items()}
        finals = [best for curve in systems[reference] if (best := best_at(curve)) is not None]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"that is no comparison of asr-hf compare ({error} is not in it)", "Name a compare.json."
        ) from None
    if not finals:
        raise InputError(f"no run of {reference} has a loss", "Name a comparison whose reference finished.")
    target = max(finals) if loss is None else loss
    reached = {name: [_reached(curve, target) for curve in curves] for name, curves in systems.items()}
    machine = replace(
        measured,
        parameters=subject.parameters,
        algebra=measured.algebra * subject.parameters / measured.parameters,
        add=measured.add * subject.parameters / measured.parameters,
    )
    seconds: dict[str, dict[str, list[float] | None]] = {
        fabric: {name: _mean_seconds(runs, subject, machine, link) for name, runs in reached.items()}
        for fabric, link in FABRICS.items()
    }
    first_order = [
        name for name, curves in systems.items() if all(row["cg_iterations"] is None for c in curves for row in c)
    ]
    return {
        "loss": target,
        "reference": reference,
        "ranks": list(RANKS),
        "systems": seconds,
        "overtakes": [
            {"fabric": fabric, "system": name, "rival": rival, "ranks": overtakes(times, of[rival])}
            for fabric, of in seconds.items()
            for name, times in of.items()
            if name not in first_order
            for rival in first_order
        ],
    }


def run_seconds(run: Reached, ranks: int, subject: Subject, machine: Machine, link: Link) -> float:
    """T(R) of a run."""
    exchanges = run.vectors / 2
    serial = min(run.seconds, exchanges * machine.algebra + run.seconds * run.timed / run.cost)
    useful = max(1.0, run.cost * subject.frames / (exchanges * FEWEST_FRAMES))
    exchanged = exchanges * exchange_seconds(machine, ranks, link, broadcasts=1, sums=1, late=0.0)
    return serial + (run.seconds - serial) / min(ranks, useful) + exchanged


def overtakes(times: Sequence[float] | None, rival: Sequence[float] | None) -> int | None:
    """The fewest of RANKS from which on `times` are below the rival's; None: never."""
    if times is None:
        return None
    if rival is None:
        return RANKS[0]
    found = None
    for ranks, ours, theirs in zip(RANKS, times, rival, strict=True):
        found = (found or ranks) if ours < theirs else None
    return found


def _curves(system: Mapping[str, Any]) -> list[Sequence[Mapping[str, Any]]]:
    return [run["rows"] for run in system["runs"].values() if not run["failed"]]


def _reached(curve: Sequence[Mapping[str, Any]], loss: float) -> Reached | None:
    for row in curve:
        if row["heldout"] is not None and row["heldout"] <= loss:
            return Reached(*(row[name] for name in ("seconds", "cost", "timed", "vectors")))
    return None


def _mean_seconds(runs: Sequence[Reached | None], subject: Subject, machine: Machine, link: Link) -> list[float] | None:
    there = [run for run in runs if run is not None]
    if not there or len(there) < len(runs):
        return None
    return [fmean(run_seconds(run, ranks, subject, machine, link) for run in there) for ranks in RANKS]
