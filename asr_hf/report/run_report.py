"""report.html of a training run: its curves, its updates and the results so far, in one file without links."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from asr_hf.decoding.output import write_text
from asr_hf.errors import InputError
from asr_hf.report.plot import Series, legend, line_plot
from asr_hf.report.results import Row
from asr_hf.report.tables import HEAD, cells
from asr_hf.training.monitor import read_log

STYLE = """
:root { --page: #fff; --ink: #1d2228; --faint: #6a737d; --line: #e2e5e9; --s0: #1f6fc4; --s1: #d1591b; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --ink: #e4e7ea; --faint: #98a1ab; --line: #2e343b; --s0: #6aaef5; --s1: #f0925c; } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0 0 .3rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; margin: 1.5rem 0; }
svg { width: 100%; } svg text { font-size: 11px; fill: var(--faint); } .grid { stroke: var(--line); }
path { fill: none; stroke-width: 2; } path.s0 { stroke: var(--s0); } path.s1 { stroke: var(--s1); }
circle.s0 { fill: var(--s0); } circle.s1 { fill: var(--s1); }
.legend { margin: 0; font-size: .85rem; } .legend span { margin-right: 1rem; }
.legend .s0::before { content: "● "; color: var(--s0); } .legend .s1::before { content: "● "; color: var(--s1); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: normal; } td.text, th.text { text-align: left; }
pre { overflow-x: auto; font-size: .8rem; }
"""
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
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
        f"<h1>{escape(name)}</h1>",
        f"<p>{len(rows)} updates ({rejected} rejected) in {seconds:.0f} s; "
        f"held-out loss {_cell(rows[0].get('heldout'))} → {_cell(last.get('heldout'))} nats per frame.</p>",
        '<div class="plots">',
        *(_plot(rows, *plot) for plot in PLOTS if any(row.get(key) is not None for row in rows for key, _ in plot[1])),
        "</div>",
    ]
    if results:
        parts += ["<h2>Results</h2>", _table(HEAD, [cells(row) for row in results])]
    parts += ["<h2>Updates</h2>", _table(COLUMNS, [[_cell(row.get(key)) for key in COLUMNS] for row in rows])]
    parts += ["<h2>Seconds by phase</h2>", _phases(rows)]
    if config:
        parts.append(f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


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
    return _table(list(phases), [[f"{seconds:.1f}" for seconds in phases.values()]])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    kind = [' class="text"' if name in TEXT else "" for name in head]
    titles = "".join(f"<th{k}>{escape(name)}</th>" for k, name in zip(kind, head, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kind, line, strict=True)) + "</tr>"
        for line in lines
    )
    return f'<div class="wide"><table><tr>{titles}</tr>\n{body}</table></div>'


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
