"""Where a notification comes from that may be traced: when its request came, below which span, and whence.

It is kept with the entries, so that a span that ends after a restart begins where it began. `current` is None
where nobody traces, and then nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fastpush.gateway.outbox import Entry

__all__ = ["BACKGROUND", "Origin", "came_in", "current", "mark", "read_origin"]

BACKGROUND = "- -"
"""Of what no request brings, such as a push that was owed: it begins with its acceptance."""

current: ContextVar[str | None] = ContextVar("origin", default=None)


class Origin(NamedTuple):
    """`came_at`: nanoseconds of UNIX time, None for the acceptance's; `traceparent` as in W3C's header."""

    came_at: int | None = None
    traceparent: str = ""
    source: str = ""


def came_in(at: float, traceparent: str) -> None:
    """Note that a request came in at `at` (UNIX seconds), for all that its task accepts."""
    current.set(f"{round(at * 1e9)} {traceparent or '-'}")


def mark(entries: Sequence[Entry], source: str) -> None:
    """Write into entries that are accepted together what is known of their origin."""
    came = current.get()
    if came is None and entries[0].origin is None:
        return
    origin = None if came is None else f"{came} {source}"
    for entry in entries:
        entry.origin = origin


def read_origin(origin: str | None) -> Origin:
    """What `mark` wrote."""
    if origin is None:
        return Origin()
    came, traceparent, source = origin.split(" ", 2)
    return Origin(None if came == "-" else int(came), traceparent.strip("-") and traceparent, source)
