"""report.html of a training run: its curves, its updates and the results so far, in one file without links."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from asr_hf.decoding.output import write_text
from asr_hf.errors import InputError
from asr_hf.report.page import page, table
from asr_hf.report.plot import Series, legend, line_plot
from asr_hf.report.results import Row
from asr_hf.report.tables import HEAD, cells
from asr_hf.training.monitor import read_log

# heading, [(key of the log's rows, name of the curve)], logarithmic
PLOTS: list[tuple[str, list[tuple[str, str]], bool]] = [
    ("Loss per frame (nats)", [("loss", "training, before the update"), ("heldout", "held-out, after it")], False),
    ("Damping λ", [("damping", "λ")], True),
    ("Reduction ratio ρ", [("rho", "ρ")], False),
    ("CG iterations", [("cg_iterations", "iterations")], False),
]
COLUMNS = ("update", "loss", "heldout", "gradient_norm", "damping", "rho", "cg_iterations", "cg_stop", "step", "note")
TEXT = ("cg_stop", "note", "system", "set")


def write_run_report(run_dir: Path | str, results: Sequence[Row] = ()) -> Path:
    """Draw RUN/report.html from RUN/log.jsonl and RUN/config.yaml, with the table of `results` if there are any.

    Raises:
        InputError: the run has no log, or the log has no update yet.
    """
    run = Path(run_dir)
    log = run / "log.jsonl"
    if not log.is_file():
        raise InputError(f"{log} is missing: {run} is no training run", "Name the RUN folder of asr-hf train.")
    rows = read_log(log)
    if not rows:
        raise InputError(f"{log} has no update yet", "Draw the report after the first update.")
    config = run / "config.yaml"
    target = run / "report.html"
    write_text(target, run_page(run.name, rows, results, config.read_text("utf-8") if config.is_file() else ""))
    return target


def run_page(name: str, rows: Sequence[dict[str, Any]], results: Sequence[Row] = (), config: str = "") -> str:
    """The page of a run, given the rows of its log."""
    last = rows[-1]
    seconds = sum((row.get("seconds") or {}).get("total", 0.0) for row in rows)
    rejected = sum(not row.get("accepted", True) for row in rows)
    parts = [
        f"<p>{len(rows)} updates ({rejected} rejected) in {seconds:.0f} s; "
        f"held-out loss {_cell(rows[0].get('heldout'))} → {_cell(last.get('heldout'))} nats per frame.</p>",
        '<div class="plots">',
        *(_plot(rows, *plot) for plot in PLOTS if any(row.get(key) is not None for row in rows for key, _ in plot[1])),
        "</div>",
    ]
    if results:
        parts += ["<h2>Results</h2>", table(HEAD, [cells(row) for row in results], TEXT)]
    parts += ["<h2>Updates</h2>", table(COLUMNS, [[_cell(row.get(key)) for key in COLUMNS] for row in rows], TEXT)]
    parts += ["<h2>Seconds by phase</h2>", _phases(rows)]
    if config:
        parts.append(f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>")
    return page(name, parts)


def _plot(rows: Sequence[dict[str, Any]], heading: str, curves: list[tuple[str, str]], log: bool) -> str:
    x = [float(row["update"]) for row in rows]
    series = [Series(name, x, [row.get(key) for row in rows]) for key, name in curves]
    names = legend(series) if len(series) > 1 else ""
    return f"<section><h2>{escape(heading)}</h2>{names}{line_plot(series, 'update', heading, log)}</section>"


def _phases(rows: Sequence[dict[str, Any]]) -> str:
    """Where the time of the whole run went."""
    phases: dict[str, float] = {}
    for row in rows:
        for phase, seconds in (row.get("seconds") or {}).items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return table(list(phases), [[f"{seconds:.1f}" for seconds in phases.values()]])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
