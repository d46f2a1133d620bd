"""Tables of results: for the terminal, and for the marked block of a RESULTS.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr_hf.decoding.output import write_text
from asr_hf.errors import InputError
from asr_hf.report.results import Row

HEAD = ("system", "set", "seed", "WER %", "95 % interval", "errors", "words", "seconds")


def cells(row: Row) -> tuple[str, ...]:
    low, high = row.ci95
    interval = f"{low:.2f} - {high:.2f}"
    numbers = (f"{row.wer:.2f}", interval, str(row.errors), str(row.words), f"{row.seconds:.0f}")
    return (row.system, row.set, str(row.seed), *numbers)


def text_table(rows: Sequence[Row]) -> str:
    """A table for the terminal: columns aligned, numbers to the right."""
    return aligned([HEAD, *map(cells, rows)], names=2)


def curvature_table(units: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """What `asr-hf bench curvature` measured, for the terminal: the units, then a line a row."""
    text = []
    for model, unit in units.items():
        others = ", ".join(f"{name} {ms:.0f}" for name, ms in unit["modules_ms"].items() if name != unit["module"])
        speed = f"{unit['gflops']:.0f} GFLOP/s, {unit['share_of_peak']:.0%} of {unit['peak_gflops']:.0f}"
        slower = f" (others: {others} ms)" if others else ""
        text.append(f"{model}: one gradient is {unit['ms']:.0f} ms by {unit['module']}{slower}, {speed}")
    lines = [("model", "method", "precision", "what", "module", "gradients", "ms", "rel. error", "peak MiB")]
    for row in rows:
        names = (row["model"], row["method"], row["precision"], row["what"], row["module"])
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        lines.append((*names, f"{row['ratio_to_gradient']:.3f}", f"{row['ms']:.1f}", f"{row['rel_error']:.1e}", peak))
    return "\n".join([*text, "", aligned(lines, names=5)])


def precision_table(runs: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """What `asr-hf bench precision` measured, for the terminal: where each run stands, then a line a row."""
    text = []
    for name, run in runs.items():
        text.append(
            f"{name}: update {run['update']}, λ {run['damping']:.3g}, {run['parameters']:,} parameters, curvature on "
            f"{run['curvature_frames']:,} frames, held-out {run['heldout']:.4f}; auto: {run['auto_why']}"
        )
    marks = list(dict.fromkeys(mark for row in rows for mark in row["ratios"]))
    of_fp32 = [f"φ₃₂ at {mark}" for mark in marks]
    head = ("run", "model", "precision", "stop", "iterations", *of_fp32, "φ₃₂ at end", "within 1 %")
    lines = [(*head, "drift", "rel. error", "s/product", "held-out")]
    for row in rows:
        reached = [f"{row['ratios'][mark]:.4f}" if mark in row["ratios"] else "-" for mark in marks]
        numbers = (str(row["iterations"]), *reached, f"{row['ratio']:.4f}", "yes" if row["reaches"] else "no")
        heldout = "-" if row["heldout"] is None else f"{row['heldout']:.4f}"
        others = (f"{row['drift']:.1e}", f"{row['product_error']:.1e}", f"{row['product_seconds']:.3f}", heldout)
        lines.append((row["run"], row["model"], row["precision"], row["stop"], *numbers, *others))
    return "\n".join([*text, "φ₃₂: decrease of the quadratic model in units of fp32's", "", aligned(lines, names=4)])


def lfmmi_table(graphs: Mapping[str, Mapping[str, int]], rows: Sequence[Mapping[str, Any]]) -> str:
    """What `asr-hf bench lfmmi` measured, for the terminal: the graphs, then a line a row."""
    text = [
        f"{name}: {', '.join(f'{size:,} {what}' for what, size in graph.items())}" for name, graph in graphs.items()
    ]
    lines = [("graph", "method", "what", "ms", "min. ms", "forward-backwards", "rel. error")]
    for row in rows:
        times = (f"{row['ms']:.1f}", f"{row['min_ms']:.1f}", f"{row['ratio_to_forward_backward']:.2f}")
        lines.append((row["graph"], row["method"], row["what"], *times, f"{row['rel_error']:.1e}"))
    return "\n".join([*text, "", aligned(lines, names=3)])


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    rule = ["---" if column < 2 else "---:" for column in range(len(HEAD))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEAD, rule, *map(cells, rows)])


def update_markdown(path: Path | str, rows: Sequence[Row]) -> None:
    """Replace the table of results between the markers of a Markdown file; the rest stays as it is (InputError)."""
    replace_marked(path, "results", markdown_table(rows))


def replace_marked(path: Path | str, name: str, content: str) -> None:
    """Replace what stands between the lines `<!-- name:begin -->` and `<!-- name:end -->` of a Markdown file.

    Raises:
        InputError: the file is missing or has not exactly one pair of the markers.
    """
    begin_mark, end_mark = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", f"Make it with lines '{begin_mark}' and '{end_mark}'."
        ) from None
    begin, end = text.find(begin_mark), text.find(end_mark)
    if text.count(begin_mark) != 1 or text.count(end_mark) != 1 or end < begin:
        raise InputError(
            f"{path} has not one pair of the markers", f"Write a line '{begin_mark}' and a line '{end_mark}'."
        )
    write_text(path, f"{text[: begin + len(begin_mark)]}\n{content}\n{text[end:]}")


def aligned(lines: Sequence[Sequence[str]], names: int) -> str:
    """Lines of cells under their head, the first columns being names, to the left, the others numbers, to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for line in lines:
        pairs = zip(line, widths, strict=True)
        text.append("  ".join(f"{cell:{'<' if i < names else '>'}{width}}" for i, (cell, width) in enumerate(pairs)))
    rule = "-" * max(map(len, text))
    return "\n".join(line.rstrip() for line in [text[0], rule, *text[1:]])
