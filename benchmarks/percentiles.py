"""Latencies from the intended send time: percentiles, and when h2load meant to send."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

# Seconds; `--rps` submits what has become due at each tick of a timer. A tick is this, or the time of one
# request if that is longer (nghttp2, h2load.cc, `rps_watcher`).
H2LOAD_TICK = 0.010


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that at least this share of the values does not exceed (nearest rank), of a sorted list.

    Raises:
      ValueError: the list is empty, or the share is not above 0 and at most 1.
    """
    if not ordered:
        raise ValueError("no values, so no percentile")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; above 0 and at most 1 is allowed")
    # The product may come out a little above the whole number that it is: 0.07 * 100.
    return ordered[max(math.ceil(share * len(ordered) - 1e-9), 1) - 1]


def summary(latencies: Sequence[float]) -> dict[str, Any]:
    """p50, p99, p99.9 and the largest, in milliseconds, and how many values there are."""
    ordered = sorted(latencies)
    return {
        "count": len(ordered),
        "p50_ms": 1e3 * percentile(ordered, 0.50),
        "p99_ms": 1e3 * percentile(ordered, 0.99),
        "p999_ms": 1e3 * percentile(ordered, 0.999),
        "max_ms": 1e3 * ordered[-1],
    }


def intended_by_ticks(starts: Sequence[float], rate: float) -> list[float]:
    """When one client of h2load meant to submit each request, from when it did.

    At each tick of its timer it submits as many requests as its rate makes due. The ticks are found from the
    bursts: the earliest phase that nearly all keep. A request counts from the tick in which it was submitted,
    or, where its number was due more than one tick earlier, from there: a client that falls behind is charged
    for it. The one tick is its own, since its count need not begin with a tick.

    Args:
      starts: seconds, ascending.
      rate: requests a second of this client.
    """
    if len(starts) < 2:
        return list(starts)
    tick = max(H2LOAD_TICK, 1 / rate)
    # The first request goes out with the connection, the second with the first tick.
    origin = starts[1]
    bursts = [
        (now - origin) % tick
        for before, now in itertools.pairwise(starts)
        if now - before > tick / 4 or now is origin
    ]
    # Phases lie on a circle; where the first tick was late, those before it appear near its end.
    around = sorted((phase + tick / 2) % tick - tick / 2 for phase in bursts)
    first_tick = origin + percentile(around, 0.05)
    intended = []
    for number, start in enumerate(starts[1:]):
        # A tick may come a little before the phase that most of them keep.
        submitted_in = math.floor((start - first_tick) / tick + 0.25)
        due_in = math.ceil((number + 0.5) / (rate * tick))
        intended.append(min(first_tick + min(submitted_in, due_in) * tick, start))
    return [starts[0], *intended]
