"""Line charts as SVG, drawn by the server: no script, no inline style, and words for who cannot see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from markupsafe import Markup, escape

__all__ = ["Line", "chart", "scale", "shown"]

WIDTH, HEIGHT = 360, 140
HALF_LABEL = 30  # of a time such as 12:30 AM
LEFT, RIGHT, TOP, BOTTOM = 54, 8, 10, 24

Point = tuple[float, float | None]
"""UNIX seconds and a value; None where nothing is known."""


class Line(NamedTuple):
    """A line of a chart; `kind` is a class of the style sheet, which gives it colour and dashes."""

    name: str
    points: Sequence[Point]
    kind: str = "a"


def chart(title: str, lines: Sequence[Line], *, unit: str, begin: float, end: float) -> Markup:
    """An SVG picture of some lines over one time.

    Args:
      title: what is shown; with the latest values it is the text for screen readers.
      unit: of the values, such as "/s" or "ms".
      begin, end: UNIX seconds.
    """
    values = [value for line in lines for _, value in line.points if value is not None]
    top, step = scale(max(values, default=0.0))
    parts = [_grid(top, step, unit), _times(begin, end)]
    parts += [_line(line, begin, end, top) for line in lines]
    if not values:
        parts.append(
            Markup('<text class="none" x="{}" y="{}">no data yet</text>').format(
                (LEFT + WIDTH - RIGHT) // 2, (TOP + HEIGHT - BOTTOM) // 2
            )
        )
    legend = Markup("").join(
        Markup('<li><span class="key {}" aria-hidden="true"></span>{} <b>{}</b></li>').format(
            line.kind, line.name, _latest(line, unit)
        )
        for line in lines
    )
    told = ", ".join(f"{line.name} {_latest(line, unit)}" for line in lines)
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{parts}</svg>'
        '<ul class="legend">{legend}</ul></figure>'
    ).format(
        title=title, width=WIDTH, height=HEIGHT, label=f"{title}: {told}", parts=Markup("").join(parts),
        legend=legend,
    )  # fmt: skip


def scale(largest: float) -> tuple[float, float]:
    """The top of an axis that holds `largest`, and the step between its two to five lines."""
    if not largest > 0:
        return 1.0, 1.0
    rough = largest / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return math.ceil(largest / step * 0.999) * step, step


def shown(value: float) -> str:
    """A number in at most four characters and a letter: 0, 0.25, 12, 1.2k, 34M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.2g}"


def _latest(line: Line, unit: str) -> str:
    known = [value for _, value in line.points[-2:] if value is not None]
    return f"{shown(known[-1])} {unit}" if known else "unknown"


def _x(at: float, begin: float, end: float) -> float:
    return LEFT + (at - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _grid(top: float, step: float, unit: str) -> Markup:
    rows = []
    for n in range(round(top / step) + 1):
        y = round(_y(n * step, top), 1)
        words = f"{shown(n * step)} {unit}" if n * step == top else shown(n * step)
        rows.append(
            Markup('<path class="grid" d="M{} {}H{}"/><text class="y" x="{}" y="{}">{}</text>').format(
                LEFT, y, WIDTH - RIGHT, LEFT - 5, y + 4, words
            )
        )
    return Markup("").join(rows)


def _times(begin: float, end: float) -> Markup:
    span = end - begin
    step = next((step for step in (300, 900, 3600, 14_400, 21_600) if span / step <= 5), 86_400)
    first = math.ceil(begin / step) * step
    marks = []
    at = float(first)
    while at <= end:
        moment = datetime.fromtimestamp(at, UTC)
        x = round(_x(at, begin, end), 1)
        kind = "x last" if x > WIDTH - HALF_LABEL else "x"
        marks.append(
            Markup('<text class="{}" x="{}" y="{}" data-time="{}">{}</text>').format(
                kind, x if kind == "x" else WIDTH, HEIGHT - 6, moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
                moment.strftime("%H:%M"),
            )
        )  # fmt: skip
        at += step
    return Markup("").join(marks)


def _line(line: Line, begin: float, end: float, top: float) -> Markup:
    drawn: list[str] = []
    pen_up = True
    for at, value in line.points:
        if value is None or not begin <= at <= end:
            pen_up = True
            continue
        drawn.append(f"{'M' if pen_up else 'L'}{_x(at, begin, end):.1f} {_y(min(value, top), top):.1f}")
        pen_up = False
    return Markup('<path class="line {}" d="{}"/>').format(escape(line.kind), "".join(drawn))
