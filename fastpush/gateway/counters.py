"""What the gateway counts: plain integers in dictionaries, read by whoever shows them."""

from __future__ import annotations

from collections import defaultdict
from typing import final

__all__ = ["Counters"]


@final
class Counters:
    """Grows only, and is never reset.

    Attributes:
      answers: HTTP answers by route (its path as documented, "" for none) and status.
      notifications: what was accepted, by app; a fan-out counts once.
      outcomes: ends by app, outcome and reason ("" for none).
    """

    def __init__(self) -> None:
        self.answers: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.notifications: defaultdict[str, int] = defaultdict(int)
        self.outcomes: defaultdict[tuple[str, str, str], int] = defaultdict(int)
