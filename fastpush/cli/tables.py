"""Tables for terminals of 80 columns, and the words in them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

__all__ = ["DURATION", "EXPIRY", "day", "table"]

COLUMNS = 80
GAP = "  "
LEAST = 6
END_OF_CALENDAR = 253_402_300_800.0  # the first second of the year 10000, which datetime does not have
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_DURATION = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int = COLUMNS) -> str:
    """Rows under headings, in at most `width` columns: the widest cells are cut, and end in "…"."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = width - len(GAP) * (len(headings) - 1)
    while sum(widths) > room and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    return "\n".join(
        GAP.join(_fitted(cell, wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    )


def _fitted(cell: str, wide: int) -> str:
    return cell.ljust(wide) if len(cell) <= wide else cell[: wide - 1] + "…"


def day(at: float | None, never: str = "-") -> str:
    """The day of an instant, UNIX seconds; UTC."""
    if at is None:
        return never
    return "after 9999" if at >= END_OF_CALENDAR else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


class _Duration(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    name = "duration"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(value)
        if found is None or not int(found[1]):
            self.fail(f"{value!r} is no duration such as 90m, 12h or 30d", parameter, context)
        return int(found[1]) * _UNITS[found[2]]


class _Expiry(click.ParamType):  # type: ignore[type-arg]
    """UNIX seconds, or None for never."""

    name = "when"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float | None:
        if value is None or isinstance(value, float):
            return value
        if value == "never":
            return None
        if _DURATION.fullmatch(value):
            return time.time() + _Duration().convert(value, parameter, context)
        try:
            return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
        except ValueError:
            self.fail(f"{value!r} is no time such as 365d, 2027-12-31 or never", parameter, context)


DURATION = _Duration()
EXPIRY = _Expiry()
