"""When an app's pushes are held back because APNs answers too many with errors. Without I/O.

    closed ──too many failures──> open ──its time is over──> half-open ──enough good answers──> closed
                                    ^                            │
                                    └────────a failure───────────┘

While it is open nothing of normal priority goes out. Half-open, and after any pause, pushes go out at a rate
that begins low and doubles each second, so that a backlog does not fall upon a service that just came back.
"""

from __future__ import annotations

import math
from typing import final

__all__ = ["Circuit", "Ramp"]

WINDOW = 10.0  # seconds over which failures are counted
LEAST_ANSWERS = 20
FAILED_SHARE = 0.5
FIRST_OPEN, LONGEST_OPEN = 5.0, 60.0
FIRST_RATE = 200.0  # a second
FULL_RATE = 100_000.0


@final
class Ramp:
    """How many may go out so far, after a pause."""

    def __init__(self) -> None:
        self._began = -math.inf
        self._taken = 0

    def begin(self, now: float) -> None:
        self._began = now
        self._taken = 0

    def take(self, now: float) -> float:
        """Take one; returns 0.0, or the seconds to wait before asking again, when nothing was taken."""
        passed = now - self._began
        if passed < 0:
            return -passed
        if passed > _RAMP_SECONDS:
            return 0.0
        if self._taken >= 1 + FIRST_RATE * (2.0**passed - 1.0) / math.log(2.0):
            return 0.005
        self._taken += 1
        return 0.0


_RAMP_SECONDS = math.log2(FULL_RATE / FIRST_RATE)


@final
class Circuit:
    """The breaker of one app."""

    def __init__(self) -> None:
        self._good = self._failed = 0.0
        self._at = 0.0
        self._opened = 0  # times in a row
        self._until = -math.inf

    def is_open(self, now: float) -> bool:
        """Whether nothing may go out."""
        return now < self._until

    @property
    def until(self) -> float:
        """When it is half-open again."""
        return self._until

    def count(self, good: int, failed: int, now: float, chance: float) -> bool:
        """Take answers; failed are 5xx and what was lost. Returns True when it opens now.

        Args:
          chance: drawn anew from 0 to 1, for the jitter.
        """
        fade = math.exp(-max(0.0, now - self._at) / WINDOW)
        self._at = max(self._at, now)
        self._good = self._good * fade + good
        self._failed = self._failed * fade + failed
        if self.is_open(now):
            return False
        total = self._good + self._failed
        if total < LEAST_ANSWERS:
            return False
        if self._failed < FAILED_SHARE * total:
            self._opened = 0
            return False
        self._until = now + min(LONGEST_OPEN, FIRST_OPEN * 2.0**self._opened) * (0.5 + 0.5 * chance)
        self._opened += 1
        self._good = self._failed = 0.0
        return True
