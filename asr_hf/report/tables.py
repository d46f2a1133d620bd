"""Tables of results: for the terminal, and for the marked block of a RESULTS.md."""

from collections.abc import Sequence
from pathlib import Path

from asr_hf.decoding.output import write_text
from asr_hf.errors import InputError
from asr_hf.report.results import Row

HEAD = ("system", "set", "seed", "WER %", "95 % interval", "errors", "words", "seconds")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def cells(row: Row) -> tuple[str, ...]:
    low, high = row.ci95
    interval = f"{low:.2f} - {high:.2f}"
    numbers = (f"{row.wer:.2f}", interval, str(row.errors), str(row.words), f"{row.seconds:.0f}")
    return (row.system, row.set, str(row.seed), *numbers)


def text_table(rows: Sequence[Row]) -> str:
    """A table for the terminal: columns aligned, numbers to the right."""
    lines = [HEAD, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = [_aligned(line, widths, "  ") for line in lines]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    rule = ["---" if column < 2 else "---:" for column in range(len(HEAD))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEAD, rule, *map(cells, rows)])


def update_markdown(path: Path | str, rows: Sequence[Row]) -> None:
    """Replace what stands between the markers of a Markdown file by the table; the rest stays as it is.

    Raises:
        InputError: the file is missing or has not exactly one pair of markers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", f"Make it with lines '{BEGIN}' and '{END}'."
        ) from None
    begin, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < begin:
        raise InputError(f"{path} has not one pair of the markers", f"Write a line '{BEGIN}' and a line '{END}'.")
    write_text(path, f"{text[: begin + len(BEGIN)]}\n{markdown_table(rows)}\n{text[end:]}")


def _aligned(line: Sequence[str], widths: Sequence[int], gap: str) -> str:
    """Names to the left, numbers to the right."""
    pairs = zip(line, widths, strict=True)
    return gap.join(f"{cell:{'<' if i < 2 else '>'}{width}}" for i, (cell, width) in enumerate(pairs)).rstrip()
