"""Line plots as inline SVG, with nothing to install and nothing to load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import compress

from asr_hf.report.page import COLOURS

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 30  # margins around the axes, pixels


@dataclass(frozen=True)
class Series:
    """A named curve; a point whose y is None is left out and parts the line.

    With `low` and `high`, of the same length, a shade lies between these, and the points have no dots.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()

    def points(self) -> list[tuple[float, float]]:
        """All that must have room in the plot."""
        curves = [self.y, self.low, self.high] if self.low else [self.y]
        return [(x, y) for ys in curves for x, y in zip(self.x, ys, strict=True) if y is not None]

    def positive(self, x: bool, y: bool) -> "Series":
        """Without the points that a logarithmic axis of x or y cannot show."""
        keep = [not x or place > 0 for place in self.x]

        def kept(values: Sequence[float | None]) -> list[float | None]:
            shown = [None if value is None or (y and value <= 0) else value for value in values]
            return list(compress(shown, keep))

        return Series(self.name, list(compress(self.x, keep)), kept(self.y), kept(self.low), kept(self.high))


@dataclass(frozen=True)
class Axis:
    """Maps values linearly, or by their logarithm, to pixels."""

    low: float
    high: float
    first_pixel: float
    last_pixel: float
    log: bool = False

    def pixel(self, value: float) -> float:
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.first_pixel + (value - low) / (high - low) * (self.last_pixel - self.first_pixel)

    def ticks(self) -> list[float]:
        """About five round values; on a logarithmic axis powers of ten, or 1-2-5 steps where these are few."""
        if not self.log:
            step = round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            values = [factor * 10.0**decade for decade in decades for factor in factors]
            values = [value for value in values if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)]
            if len(values) >= 3:
                break
        return values[:: 1 + len(values) // 8]


def round_step(step: float) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def line_plot(series: Sequence[Series], x_label: str, y_label: str, log: bool = False, log_x: bool = False) -> str:
    """An SVG with a curve for each series, or a sentence where there is no point to draw.

    Args:
        log, log_x: draw y, x logarithmically; points that are not positive there are left out.
    """
    series = [each.positive(log_x, log) for each in series]
    drawn = [point for each in series for point in each.points()]
    if not drawn:
        return "<p>No values in the log.</p>"
    x_axis = Axis(*_range([x for x, _ in drawn], pad=0.0, log=log_x), LEFT, WIDTH - RIGHT, log_x)
    y_axis = Axis(*_range([y for _, y in drawn], pad=0.05, log=log), HEIGHT - BOTTOM, TOP, log)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    parts += _grid(x_axis, y_axis)
    parts.append(f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>')
    for number, each in enumerate(series):
        parts += _curve(each, look(number), x_axis, y_axis)
    return "\n".join([*parts, "</svg>"])


def legend(series: Sequence[Series]) -> str:
    """The names of the curves with their colours."""
    names = (f'<span class="{look(number)}">{escape(each.name)}</span>' for number, each in enumerate(series))
    return f'<p class="legend">{" ".join(names)}</p>'


def look(number: int) -> str:
    """The class of a curve: its colour, and a dashed line once all colours are used."""
    return f"s{number % len(COLOURS)}" + " dashed" * (number >= len(COLOURS))


def _range(values: Sequence[float], pad: float, log: bool = False) -> tuple[float, float]:
    """Lowest and highest value with some room; never of no width."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** pad if high > low else 2.0
        return low / room, high * room
    room = pad * (high - low) if high > low else 0.5 * (abs(low) or 1.0)
    return low - room, high + room


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for value in y_axis.ticks():
        y = y_axis.pixel(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in x_axis.ticks():
        if x_axis.log or value == int(value):  # updates are whole
            x = x_axis.pixel(value)
            shown = f"{value:.0f}" if value == int(value) else f"{value:.4g}"
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{shown}</text>')
    return parts


def _curve(series: Series, look: str, x_axis: Axis, y_axis: Axis) -> list[str]:
    """The line, broken at missing points, with a shade, or with a dot and its value (shown when pointed at) on each."""
    path, pen_down, dots = [], False, []
    for x, y in zip(series.x, series.y, strict=True):
        if y is not None:
            place = f"{x_axis.pixel(x):.1f},{y_axis.pixel(y):.1f}"
            path.append(f"{'L' if pen_down else 'M'}{place}")
            centre = 'cx="{}" cy="{}"'.format(*place.split(","))
            dots.append(f'<circle class="{look}" {centre} r="3"><title>{x:g}: {y:.6g}</title></circle>')
        pen_down = y is not None
    line = f'<path class="{look}" d="{" ".join(path)}"><title>{escape(series.name)}</title></path>'
    return [_shade(series, look, x_axis, y_axis), line] if series.low else [line, *dots]


def _shade(series: Series, look: str, x_axis: Axis, y_axis: Axis) -> str:
    """The area from `low` and back along `high`."""
    low, high = (list(zip(series.x, ys, strict=True)) for ys in (series.low, series.high))
    corners = [f"{x_axis.pixel(x):.1f},{y_axis.pixel(y):.1f}" for x, y in low + high[::-1] if y is not None]
    return f'<polygon class="{look}" points="{" ".join(corners)}"/>'
