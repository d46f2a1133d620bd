"""HTML pages that stand alone: one file, its style within, no links."""

from collections.abc import Sequence
from html import escape

COLOURS = (  # of the curves, on a light and on a dark page
    ("#1f6fc4", "#6aaef5"), ("#d1591b", "#f0925c"), ("#2a8a4a", "#5fc987"), ("#8b4fb8", "#c493ea"),
    ("#b8860b", "#e0b84c"), ("#c2185b", "#f06f9f"), ("#00838f", "#4fc3cf"), ("#6d4c41", "#b99a8e"),
)  # fmt: skip
STYLE = """
:root { --page: #fff; --ink: #1d2228; --faint: #6a737d; --line: #e2e5e9; %(light)s }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --ink: #e4e7ea; --faint: #98a1ab; --line: #2e343b; %(dark)s } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0 0 .3rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; margin: 1.5rem 0; }
svg { width: 100%%; } svg text { font-size: 11px; fill: var(--faint); } .grid { stroke: var(--line); }
path { fill: none; stroke-width: 2; } path.dashed { stroke-dasharray: 5 3; } polygon { fill-opacity: .15; }
.legend { margin: 0; font-size: .85rem; } .legend span { margin-right: 1rem; } .legend span::before { content: "● "; }
.legend .dashed::before { content: "◌ "; }
%(curves)s
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: normal; } td.text, th.text { text-align: left; }
pre { overflow-x: auto; font-size: .8rem; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """An HTML page of parts under a title."""
    numbers = range(len(COLOURS))
    style = STYLE % {
        "light": " ".join(f"--s{n}: {COLOURS[n][0]};" for n in numbers),
        "dark": " ".join(f"--s{n}: {COLOURS[n][1]};" for n in numbers),
        "curves": "\n".join(
            f"path.s{n} {{ stroke: var(--s{n}); }} circle.s{n}, polygon.s{n} {{ fill: var(--s{n}); }} "
            f".legend .s{n}::before {{ color: var(--s{n}); }}"
            for n in numbers
        ),
    }
    head = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body></html>"]) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], text: Sequence[str] = ()) -> str:
    """A table that scrolls sideways; the columns named in `text` are to the left, the others, numbers, to the right."""
    kind = [' class="text"' if name in text else "" for name in head]
    titles = "".join(f"<th{k}>{escape(name)}</th>" for k, name in zip(kind, head, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kind, line, strict=True)) + "</tr>"
        for line in lines
    )
    return f'<div class="wide"><table><tr>{titles}</tr>\n{body}</table></div>'
