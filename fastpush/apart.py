"""Pushes that may not go out on the main lane now, by their device token.

Two causes. APNs slows a connection down for each rejection, so a device token that was lately rejected
keeps to a lane of its own for a while. And a device token that APNs asked to wait (429 TooManyRequests)
waits, while pushes to all others go on; what waits for its next attempt for another reason waits here too.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

from fastpush._connection import Push

__all__ = ["Apart"]

REJECTED_LATELY = 600.0  # seconds for which a rejected device token keeps to its own lane
MAX_REJECTED = 65_536  # device tokens remembered


class Apart:
    """Remembers the device tokens, and holds what waits until its time.

    Attributes:
      device_tokens: those that must not go out on the main lane, as keys; for `Exchange.submit`.
    """

    def __init__(self) -> None:
        self.device_tokens: dict[str, None] = {}
        self._rejected_at: dict[str, float] = {}  # in this order
        self._waiting_until: dict[str, float] = {}
        self._later: list[tuple[float, int, Push]] = []  # a heap
        self._order = itertools.count()

    def __len__(self) -> int:
        """How many pushes wait for their time."""
        return len(self._later)

    def __iter__(self) -> Iterator[Push]:
        return (push for _, _, push in self._later)

    def reject(self, device_token: str, now: float) -> None:
        """It was rejected just now."""
        rejected = self._rejected_at
        rejected.pop(device_token, None)
        rejected[device_token] = now
        self.device_tokens[device_token] = None
        oldest = next(iter(rejected))
        if len(rejected) > MAX_REJECTED or rejected[oldest] + REJECTED_LATELY < now:
            self._forget(oldest)

    def was_rejected(self, device_token: str, now: float) -> bool:
        """It was rejected lately. If that is long ago it is forgotten here."""
        at = self._rejected_at.get(device_token)
        if at is None:
            return False
        if at + REJECTED_LATELY < now:
            self._forget(device_token)
            return False
        return True

    def _forget(self, device_token: str) -> None:
        del self._rejected_at[device_token]
        if device_token not in self._waiting_until:
            del self.device_tokens[device_token]

    def ask_to_wait(self, device_token: str, until: float) -> None:
        """APNs wants no push to it before then."""
        self._waiting_until[device_token] = until
        self.device_tokens[device_token] = None

    def waits_until(self, device_token: str) -> float | None:
        """When the next push to it may go; None for now."""
        return self._waiting_until.get(device_token)

    def put_off(self, push: Push, due: float) -> bool:
        """Hold a push until then. True when it is now the first to be due."""
        heapq.heappush(self._later, (due, next(self._order), push))
        return self._later[0][2] is push

    def due(self) -> float:
        """When the first push is due; infinity if there is none."""
        return self._later[0][0] if self._later else math.inf

    def take_due(self, now: float) -> list[Push]:
        """Give back what is due, in the order of its times."""
        taken = []
        while self._later and self._later[0][0] <= now:
            push = heapq.heappop(self._later)[2]
            device_token = push.notification.device_token
            if self._waiting_until.get(device_token, math.inf) <= now:
                del self._waiting_until[device_token]
                if device_token not in self._rejected_at:
                    del self.device_tokens[device_token]
            taken.append(push)
        return taken

    def clear(self) -> None:
        """Hold nothing more, and ask no device token to wait. The rejected ones stay."""
        self._later.clear()
        self._waiting_until.clear()
        self.device_tokens = dict.fromkeys(self._rejected_at)
