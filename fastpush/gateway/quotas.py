"""How much each key may send: a bucket of tokens that fills at the key's rate.

A request is let in while its key is not in debt, and charged for what it brought, whatever that is: a batch
larger than the bucket is possible, and the key then waits until it is paid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import trio

from fastpush.gateway.problems import Problem

__all__ = ["Quotas"]

BURST_SECONDS = 10
"""What a key that was quiet may send at once, in seconds of its rate."""

MAX_KEPT = 10_000


@final
class Quotas:
    """Of all keys, each for itself.

    Args:
      per_second: notifications on average; 0 for no quota.
      clock: seconds, never going back.
    """

    def __init__(self, per_second: int = 0, *, clock: Callable[[], float] = trio.current_time) -> None:
        self.per_second = per_second
        self._clock = clock
        self._paid_at: dict[str, float] = {}  # when the bucket will be full, were nothing more sent

    def check(self, key: str) -> None:
        """Let a key's request in.

        Raises:
          Problem: 429, with the seconds after which the next one will be.
        """
        debt = self._debt(key)
        if debt > 0:
            raise Problem(
                429,
                "quota used up",
                f"This key may send {self.per_second:,} notifications a second on average.",
                headers={"Retry-After": str(math.ceil(debt))},
                stored=False,
            )

    def charge(self, key: str, count: int) -> float:
        """Take it off; seconds until the key is out of debt."""
        if not self.per_second:
            return 0.0
        now = self._clock()
        if len(self._paid_at) >= MAX_KEPT:
            self._paid_at = {each: at for each, at in self._paid_at.items() if at > now}
        self._paid_at[key] = max(now, self._paid_at.get(key, now)) + count / self.per_second
        return max(0.0, self._debt(key))

    def _debt(self, key: str) -> float:
        return self._paid_at.get(key, -math.inf) - self._clock() - BURST_SECONDS
