"""What time it is, by a clock that somebody may set: our own, held against the dates of servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

__all__ = ["JUMP", "PATIENCE", "Timekeeper", "boot_time"]

JUMP = 5.0
"""Seconds by which wall clock and uptime may part before it counts as a jump: a slewed clock stays below."""

PATIENCE = 900.0
"""Seconds for which judging waits for a server's date after a start or a jump; then our clock is taken."""

TRUSTED_WITHIN = 30.0
"""A difference to a server's date that is no difference: dates have whole seconds, and answers take time."""


def boot_time() -> float:
    """Seconds since the machine started, those of its sleep included where the system counts them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@final
class Timekeeper:
    """Keeps what servers said of the time, and by how much the wall clock is wrong.

    A difference counts for as long as the wall clock goes on evenly. When it jumps, what was known of it is
    void, and it is doubtful until a server is heard again, or patience ends: then it is believed, since a
    warning by a wrong clock is better than none.

    Args:
      wall: UNIX seconds, as the machine has them.
      uptime: seconds that nobody sets.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, uptime: Callable[[], float] = boot_time
    ) -> None:
        self._wall, self._uptime = wall, uptime
        self._base = wall() - uptime()
        self._offset: float | None = None
        self._doubtful_since = uptime()

    @property
    def offset(self) -> float | None:
        """Seconds that the wall clock is ahead of the servers'; None while nothing is known."""
        return self._offset

    def jumped(self) -> bool:
        """Whether the wall clock was set, or the machine slept uncounted, since this was last asked."""
        base = self._wall() - self._uptime()
        if abs(base - self._base) <= JUMP:
            # Slewing adds up over weeks, and is no jump.
            self._base = base
            return False
        self._base = base
        self._offset = None
        self._doubtful_since = self._uptime()
        return True

    def heard(self, server_date: float) -> None:
        """Take the date of a server's answer that has just come."""
        self.jumped()
        self._offset = self._wall() - server_date

    def now(self) -> float:
        """UNIX seconds, the best that is known."""
        if self._offset is None or abs(self._offset) <= TRUSTED_WITHIN:
            return self._wall()
        return self._wall() - self._offset

    def doubtful(self) -> bool:
        """Whether it is better to ask a server before anything is judged."""
        return self._offset is None and self._uptime() - self._doubtful_since < PATIENCE
