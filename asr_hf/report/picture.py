"""Plots as one picture that stands alone, for Markdown; a comparison's held-out losses so."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from asr_hf.errors import InputError
from asr_hf.report.curves import step_band
from asr_hf.report.page import COLOURS
from asr_hf.report.plot import HEIGHT, WIDTH, Series, line_plot, look

SPENT = (
    ("cost", "gradient-equivalents"),
    ("update", "updates (first-order methods: epochs)"),
    ("vectors", "vectors (N,) between ranks"),
)
LINE, ENTRY = 18, 110  # height of a line of the legend, width of an entry, pixels
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #6a737d; } .grid { stroke: #e2e5e9; }
path { fill: none; stroke-width: 2; } path.dashed { stroke-dasharray: 5 3; } polygon { fill-opacity: .15; }
"""


def compare_picture(comparison: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Best held-out loss so far by cost, update and vectors sent, mean and range over seeds, of the systems named.

    Args:
        comparison: the content of a compare.json.
        names: of systems, in the order of their colours; none: all.

    Raises:
        InputError: no such system.
    """
    systems = comparison["systems"]
    for name in names:
        if name not in systems:
            raise InputError(f"no system '{name}' was compared", f"There are: {', '.join(systems)}.")
    chosen = {
        name: [run["rows"] for run in systems[name]["runs"].values() if not run["failed"]] for name in names or systems
    }
    drawn = []
    for key, label in SPENT:
        bands = [step_band(curves, key) for curves in chosen.values()]
        series = [Series(name, b.x, b.mean, b.low, b.high) for name, b in zip(chosen, bands, strict=True)]
        drawn.append(line_plot(series, label, "best held-out loss per frame (nats)", log_x=key != "update"))
    return side_by_side(list(chosen), drawn)


def side_by_side(names: Sequence[str], drawn: Sequence[str]) -> str:
    """Plots of the same curves, by name, below their legend: one SVG file that stands alone."""
    width = len(drawn) * WIDTH
    per_line = width // ENTRY
    top = LINE * -(-len(names) // per_line) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + HEIGHT}" '
        f'width="{width}" height="{top + HEIGHT}"><style>{STYLE}{_colours()}</style>',
        f'<rect width="{width}" height="{top + HEIGHT}" fill="#fff"/>',
    ]
    for number, name in enumerate(names):
        x, y = ENTRY * (number % per_line) + 8, LINE * (number // per_line) + 10
        parts.append(f'<path class="{look(number)}" d="M{x},{y}h20"/>')
        parts.append(f'<text x="{x + 25}" y="{y + 4}">{escape(name)}</text>')
    for place, plot in enumerate(drawn):
        parts.append(f'<svg x="{place * WIDTH}" y="{top}" width="{WIDTH}" height="{HEIGHT}">{plot}</svg>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _colours() -> str:
    return "\n".join(
        f"path.s{n} {{ stroke: {light}; }} polygon.s{n}, circle.s{n} {{ fill: {light}; }}"
        for n, (light, _) in enumerate(COLOURS)
    )
