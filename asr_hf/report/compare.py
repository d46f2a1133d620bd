"""What `asr-hf compare` measured: tables for the terminal, and a page of plots. One comparison, or several as folds.

A comparison is the content of a compare.json (see bench.compare). Losses are per frame (nats), costs in
gradient-equivalents, word error rates in per cent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from asr_hf.errors import InputError
from asr_hf.report.curves import Band, best_at, geometric_mean, saving, step_band, update_band
from asr_hf.report.page import page
from asr_hf.report.plot import Series, legend, line_plot
from asr_hf.report.tables import aligned
from asr_hf.report.word_errors import difference, pooled, wer

Comparison = Mapping[str, Any]
Run = Mapping[str, Any]
FEW_TRIALS = 8  # tuning with fewer is said
SHARES_OF_BUDGET = (0.25, 0.5, 1.0)
SHARES_OF_REFERENCE = (0.5, 0.8, 1.0)
SETS = ("dev", "test")
DECADES = 20.0  # range of x from which its axis is logarithmic
SPENT = (
    ("cost", "gradient-equivalents"),
    ("update", "updates (first-order methods: epochs)"),
    ("vectors", "vectors (N,) between ranks"),
    ("seconds", "wall seconds"),
)


def compare_text(named: Mapping[str, Comparison]) -> str:
    """The tables of one comparison, or of several, by name, as folds of one.

    Raises:
        InputError: several comparisons that are not of the same systems with the same reference.
    """
    comparisons = list(named.values())
    if len(named) == 1:
        parts = [_settings(comparisons[0]), _spent(comparisons[0]), _marks(comparisons[0])]
    else:
        _require_same(named)
        parts = [f"{len(named)} folds: {', '.join(named)}", _heldout_ratios(comparisons)]
    parts += [_savings(comparisons), _word_errors(comparisons), _notes(named)]
    return "\n\n".join(part for part in parts if part)


def held_against(comparison: Comparison, reference: str) -> dict[str, Any]:
    """The comparison with another system as its reference (InputError when it has none of that name)."""
    systems = comparison.get("systems", {})
    if reference not in systems:
        remedy = f"Name one of {', '.join(systems)}." if systems else "Only a compare.json holds systems."
        raise InputError(f"no system is called {reference}", remedy)
    return {**comparison, "settings": {**comparison["settings"], "reference": reference}}


def compare_page(title: str, comparison: Comparison) -> str:
    """The HTML page of one comparison: plots with a band over seeds for each system, and the tables."""
    systems = comparison["systems"]
    plots = []
    for key, label in SPENT:
        bands = [step_band(_curves(system), key) for system in systems.values()]
        plots.append(_plot(systems, bands, label, "best held-out loss per frame (nats)"))
    for column, heading, log in (("cg_iterations", "CG iterations", False), ("damping", "damping λ", True)):
        bands = [update_band(_curves(system), column) for system in systems.values()]
        if any(band.x for band in bands):
            plots.append(_plot(systems, bands, "update", heading, log))
    names = legend([Series(name, [], []) for name in systems])
    text = f"<pre>{escape(compare_text({title: comparison}))}</pre>"
    return page(title, [names, '<div class="plots">', *plots, "</div>", text])


def _plot(systems: Mapping[str, Any], bands: Sequence[Band], x: str, y: str, log: bool = False) -> str:
    series = [Series(name, b.x, b.mean, b.low, b.high) for name, b in zip(systems, bands, strict=True)]
    places = [place for band in bands for place in band.x if place > 0]
    log_x = x != "update" and bool(places) and max(places) > DECADES * min(places)
    drawn = line_plot(series, x, y, log, log_x)
    return f"<section><h2>{escape(y)}</h2>{drawn}</section>"


def _settings(comparison: Comparison) -> str:
    settings = comparison["settings"]
    seeds = settings["seeds"]
    budget = f"{settings['budget']:g} gradient-equivalents" if settings["budget"] else "no budget"
    winners = f"of {settings['tuned']}" if settings["tuned"] else f"by the loss on {settings['chosen_on']}"
    return f"seeds {', '.join(map(str, seeds))}; {budget} a run; winners {winners}; mean (lowest–highest) over seeds"


def _spent(comparison: Comparison) -> str:
    """A line a system: the winner, what its runs spent, and what came of it."""
    sets = [name for name in SETS if any("wer" in run for run in _all_finished(comparison))]
    dev = any(run["dev"] is not None for run in _all_finished(comparison))
    head = ["system", "winner", "trials", "runs", "updates", "cost", "timed", "vectors", "seconds", "held-out"]
    lines = [[*head, *["dev loss"] * dev, *(f"WER {name}" for name in sets)]]
    for name, system in comparison["systems"].items():
        runs = _finished(system)
        last = [run["rows"][-1] for run in runs]
        cells = [name, _short(system["winner"]), str(_trials(system)), str(len(runs))]
        cells += [_mean(last, "update", ".0f"), _mean(last, "cost", ".1f"), _mean(last, "timed", ".1f")]
        cells += [_mean(last, "vectors", ".0f"), _mean(last, "seconds", ".0f")]
        cells.append(_range([_final(run) for run in runs]))
        if dev:
            cells.append(_range([run["dev"] for run in runs]))
        for each in sets:
            cells.append(_range([wer(run["wer"][each]["speakers"]) for run in runs if "wer" in run], ".2f"))
        lines.append(cells)
    return aligned(lines, names=2)


def _marks(comparison: Comparison) -> str:
    """The best held-out loss when shares of the budget are spent, or of the largest cost where there is no budget."""
    costs = [run["rows"][-1]["cost"] for run in _all_finished(comparison)]
    budget = comparison["settings"]["budget"] or max(costs, default=0.0)
    lines = [["system", *(f"at cost {share * budget:.4g}" for share in SHARES_OF_BUDGET)]]
    for name, system in comparison["systems"].items():
        found = [[best_at(run["rows"], share * budget) for run in _finished(system)] for share in SHARES_OF_BUDGET]
        lines.append([name, *map(_range, found)])
    return "best held-out loss of the updates done by then\n" + aligned(lines, names=1)


def _savings(comparisons: Sequence[Comparison]) -> str:
    """How much less each system costs than the reference, at losses of the reference."""
    reference = comparisons[0]["settings"]["reference"]
    lines = [["system", *(f"at {share:.0%} of {reference}'s cost" for share in SHARES_OF_REFERENCE)]]
    for name in comparisons[0]["systems"]:
        pairs = list(_pairs(comparisons, name, reference))
        if name != reference:
            lines.append([name, *(_ratio([_saving(*pair, share) for pair in pairs]) for share in SHARES_OF_REFERENCE)])
    title = f"gradient-equivalents of {reference} / of the system, to the loss of {reference} at a share of its"
    return f"{title} cost: geometric mean (range)\n{aligned(lines, names=1)}" if len(lines) > 1 else ""


def _saving(ours: Run | None, theirs: Run, share: float) -> float | None:
    return saving(theirs["rows"], ours["rows"], share) if ours else None


def _heldout_ratios(comparisons: Sequence[Comparison]) -> str:
    """The final held-out loss of each system in units of the reference's, over folds and seeds."""
    reference = comparisons[0]["settings"]["reference"]
    lines = [["system", f"held-out / {reference}'s"]]
    for name in comparisons[0]["systems"]:
        pairs = _pairs(comparisons, name, reference)
        ratios = [_final(ours) / _final(theirs) if ours else None for ours, theirs in pairs]
        lines.append([name, _ratio(ratios, ".4f")])
    return "final held-out loss: geometric mean of ratios (range)\n" + aligned(lines, names=1)


def _word_errors(comparisons: Sequence[Comparison]) -> str:
    """Pooled WER, and the difference to the reference where both decoded the same seeds of the same folds."""
    reference = comparisons[0]["settings"]["reference"]
    if not any("wer" in run for each in comparisons for run in _all_finished(each)):
        return ""
    lines = [["system", *(cell for each in SETS for cell in (f"WER {each}", f"less {reference}'s"))]]
    for name in comparisons[0]["systems"]:
        decoded = [run["wer"] for each in comparisons for run in _finished(each["systems"][name]) if "wer" in run]
        pairs = [
            (ours["wer"], theirs["wer"])
            for ours, theirs in _pairs(comparisons, name, reference)
            if ours and "wer" in ours and "wer" in theirs
        ]
        cells = [name]
        for each in SETS:
            cells.append(f"{wer(pooled(found[each]['speakers'] for found in decoded)):.2f}" if decoded else "-")
            cells.append(_difference(pairs, each) if pairs and name != reference else "-")
        lines.append(cells)
    title = "errors over all words of all seeds and folds; differences with 95 % intervals, bootstrapped over speakers"
    return f"{title}\n{aligned(lines, names=1)}"


def _difference(pairs: Sequence[tuple[Any, Any]], which: str) -> str:
    ours, theirs = (pooled(found[which]["speakers"] for found in side) for side in zip(*pairs, strict=True))
    found = difference(ours, theirs)
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _notes(named: Mapping[str, Comparison]) -> str:
    """What a reader must know about the numbers: failures, little tuning, runs that ended early."""
    lines = []
    for fold, comparison in named.items():
        where, budget = f"{fold}: " if len(named) > 1 else "", comparison["settings"]["budget"]
        for name, system in comparison["systems"].items():
            if _trials(system) < FEW_TRIALS:
                lines.append(f"{where}{name}: tuned with {_trials(system)} trials, fewer than {FEW_TRIALS}")
            failed = [trial for trial in system["trials"] if trial["failed"]]
            if failed:
                count = f"{len(failed)} of {len(system['trials'])} trials"
                lines.append(f"{where}{name}: {count} failed, the first: {failed[0]['failed']}")
            if system["winner"] is None:
                lines.append(f"{where}{name}: no trial is left to choose from")
            for seed, run in system["runs"].items():
                cost = run["rows"][-1]["cost"] if run["rows"] else 0.0
                if run["failed"]:
                    lines.append(f"{where}{name}, seed {seed}: failed: {run['failed']}")
                elif cost < 0.95 * budget:
                    lines.append(f"{where}{name}, seed {seed}: ended by itself at cost {cost:.4g} of {budget:g}")
    return "\n".join(lines)


def _require_same(named: Mapping[str, Comparison]) -> None:
    """Folds are of the same systems, with the same reference (InputError)."""
    first, *others = named
    for other in others:
        for what, of in (("systems", _systems), ("reference", _reference)):
            if of(named[first]) != of(named[other]):
                raise InputError(
                    f"{other} has other {what} than {first}: {of(named[other])}, not {of(named[first])}",
                    "Compare the same systems in every fold.",
                )


def _systems(comparison: Comparison) -> str:
    return ", ".join(sorted(comparison["systems"]))


def _reference(comparison: Comparison) -> str:
    return comparison["settings"]["reference"]


def _trials(system: Mapping[str, Any]) -> int:
    """With how many trials a system was tuned, here or where its winner came from."""
    return system["winner"]["trials"] if system["winner"] else len(system["trials"])


def _finished(system: Mapping[str, Any]) -> list[Run]:
    return [run for run in system["runs"].values() if not run["failed"]]


def _all_finished(comparison: Comparison) -> list[Run]:
    return [run for system in comparison["systems"].values() for run in _finished(system)]


def _curves(system: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    return [run["rows"] for run in _finished(system)]


def _pairs(comparisons: Sequence[Comparison], name: str, reference: str) -> Iterator[tuple[Run | None, Run]]:
    """Each finished run of the reference, after that of a system from the same parameters on the same fold, if any."""
    for comparison in comparisons:
        ours, theirs = (comparison["systems"][each]["runs"] for each in (name, reference))
        for seed, run in theirs.items():
            if not run["failed"]:
                yield ours[seed] if seed in ours and not ours[seed]["failed"] else None, run


def _final(run: Run) -> float:
    loss = best_at(run["rows"])
    assert loss is not None  # of a run that finished
    return loss


def _short(winner: Mapping[str, Any] | None) -> str:
    """The winner's overrides without the group that all have."""
    if winner is None:
        return "none"
    return " ".join(override.removeprefix("optimizer.") for override in winner["overrides"]) or "as given"


def _mean(rows: Sequence[Mapping[str, Any]], key: str, digits: str) -> str:
    return format(fmean(row[key] for row in rows), digits) if rows else "-"


def _range(values: Sequence[float | None], digits: str = ".4f") -> str:
    """Mean (lowest–highest); a dash where a value is missing."""
    return _summary(values, fmean, digits) if values and None not in values else "-"


def _ratio(values: Sequence[float | None], digits: str = ".2f") -> str:
    """Geometric mean (lowest–highest) of those that are there, and how many that is, if not all."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    share = "" if len(there) == len(values) else f" in {len(there)} of {len(values)}"
    return _summary(there, geometric_mean, digits) + share


def _summary(values: Sequence[Any], middle: Callable[[Sequence[float]], float], digits: str) -> str:
    if len(values) == 1:
        return format(values[0], digits)
    return f"{middle(values):{digits}} ({min(values):{digits}}–{max(values):{digits}})"
