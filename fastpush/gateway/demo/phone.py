"""A phone that shows what reaches it, as lines of text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any, final

import orjson

from fastpush.simulator import Delivery

__all__ = ["WIDTH", "Phone", "Shown"]

WIDTH = 60
"""Columns of a banner, its frame included."""
MOST_LINES = 6


@final
class Shown:
    """A push on the lock screen.

    Attributes:
      delivery: as it came.
      replaces: a banner with the same collapse id was there, and is not any more.
    """

    def __init__(self, delivery: Delivery, *, replaces: bool) -> None:
        self.delivery = delivery
        self.replaces = replaces
        payload: dict[str, Any] = orjson.loads(delivery.payload)
        self.aps: dict[str, Any] = payload.get("aps", {})

    def lines(self) -> list[str]:
        """The banner: title, subtitle, body; in its frame the level, the sound and the badge."""
        alert = self.aps.get("alert", {})
        if isinstance(alert, str):
            alert = {"body": alert}
        text = [line for name in ("title", "subtitle", "body") for line in _wrapped(alert.get(name) or "")]
        sound = self.aps.get("sound")
        facts = [
            str(self.aps.get("interruption-level", "active")),
            f"sound {sound['name'] if isinstance(sound, dict) else sound}" if sound else "no sound",
            f"badge {self.aps['badge']}" if "badge" in self.aps else "badge as it was",
        ]
        return [
            _edge("┌", "OpManager", "now", "┐"),
            *(f"│ {line}{' ' * (WIDTH - 4 - _columns(line))} │" for line in text),
            _edge("└", " · ".join(facts), "", "┘"),
        ]


@final
class Phone:
    """Keeps one banner for each collapse id, as iOS does.

    Attributes:
      device_token: its.
      shown: what is on its screen, by collapse id.
      received: how many pushes came.
    """

    def __init__(self, device_token: str) -> None:
        self.device_token = device_token
        self.shown: dict[str, Shown] = {}
        self.received = 0

    def take(self, delivery: Delivery) -> Shown:
        """Show a push."""
        self.received += 1
        name = delivery.collapse_id or str(delivery.apns_id)
        shown = self.shown[name] = Shown(delivery, replaces=name in self.shown)
        return shown


def _edge(left: str, text: str, behind: str, right: str) -> str:
    line = f"{left} {text} "
    end = f" {behind} {right}" if behind else right
    return line + "─" * (WIDTH - _columns(line) - _columns(end)) + end


def _wrapped(text: str) -> Iterator[str]:
    """Lines that fit, of which there are not too many; what a sender wrote must not write on the terminal."""
    clean = "".join(
        each if each.isprintable() or each == "\n" else " " for each in text.replace("\r\n", "\n")
    )
    lines = [line for each in clean.split("\n") for line in _cut(each)] if text else []
    yield from lines[:MOST_LINES]
    if len(lines) > MOST_LINES:
        yield "…"


def _cut(text: str) -> Iterator[str]:
    """A line as lines of the banner's width, between words where there are some."""
    line = ""
    for word in text.split():
        if line and _columns(line) + 1 + _columns(word) > WIDTH - 4:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
        while _columns(line) > WIDTH - 4:
            most = next(n for n in range(len(line), 0, -1) if _columns(line[:n]) <= WIDTH - 4)
            yield line[:most]
            line = line[most:]
    yield line


def _columns(text: str) -> int:
    return sum(
        1 + (unicodedata.east_asian_width(each) in "WF") for each in text if not unicodedata.combining(each)
    )
