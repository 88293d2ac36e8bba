"""What the gateway counts: plain integers in dictionaries and lists, read by whoever shows them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import final

__all__ = ["BOUNDS", "Counters", "Histogram", "quantile"]

BOUNDS = (0.001, 0.002, 0.005, 0.010, 0.025, 0.050, 0.100, 0.250, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a histogram's buckets, in seconds; one more takes what is above."""


@final
class Histogram:
    """Durations, by bucket.

    Attributes:
      counts: one for each of BOUNDS, and the rest.
      total: of all durations, in seconds.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


def quantile(counts: list[int], share: float) -> float | None:
    """The duration within which `share` of them ended, in seconds, told as finely as the buckets are.

    None where there are none; the last bound for whatever is above it.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    below, lower = 0, 0.0
    for bound, count in zip(BOUNDS, counts, strict=False):
        if below + count >= wanted:
            return lower + (bound - lower) * (wanted - below) / count
        below, lower = below + count, bound
    return lower


@final
class Counters:
    """Grows only, and is never reset.

    Attributes:
      answers: HTTP answers to senders and phones by route (its path as documented, "" for none) and status.
      admin_answers: the same of the admin listener, where nobody waits for an alarm.
      answer_seconds: from a request's head to its answer's, by route.
      notifications: what was accepted, by app; a fan-out counts once.
      outcomes: ends by app, outcome and reason ("" for none).
      retries: attempts that are to be repeated, by app and reason.
      accepted_at: when APNs last accepted one, by app; UNIX seconds.
      apns_seconds: from a push's first HEADERS to its answer, by app.
    """

    def __init__(self) -> None:
        self.answers: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.admin_answers: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.answer_seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.notifications: defaultdict[str, int] = defaultdict(int)
        self.outcomes: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self.retries: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.accepted_at: dict[str, float] = {}
        self.apns_seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
