"""What a phone shows of a push, read from the payload alone as iOS reads it."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Card", "card"]

_LEVELS = {
    "passive": "passive: in the list, the screen stays dark",
    "active": "active",
    "time-sensitive": "time-sensitive: breaks through a focus",
    "critical": "critical: sounds even when muted",
}


class Card(msgspec.Struct, frozen=True):
    """A notification on the lock screen.

    Attributes:
      title, subtitle, body: "" where the payload has none.
      level: the interruption level; "active" is the default.
      sound: its name, "" for silence.
      badge: the number on the app's icon; None leaves it as it was.
      thread: what it is grouped by.
      silent: nothing is shown at all: a background push.
    """

    title: str = ""
    subtitle: str = ""
    body: str = ""
    level: str = "active"
    sound: str = ""
    badge: int | None = None
    thread: str = ""
    silent: bool = False

    @property
    def level_told(self) -> str:
        """The level in words."""
        return _LEVELS.get(self.level, self.level)


def card(payload: bytes) -> Card | None:
    """The card of a payload, None where it is no JSON object with an `aps` dictionary."""
    try:
        content: Any = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    aps = content.get("aps") if isinstance(content, dict) else None
    if not isinstance(aps, dict):
        return None
    alert = aps.get("alert")
    texts = alert if isinstance(alert, dict) else {"body": alert}
    sound = aps.get("sound")
    if isinstance(sound, dict):
        sound = sound.get("name")
    badge = aps.get("badge")
    return Card(
        title=_text(texts.get("title") or texts.get("title-loc-key")),
        subtitle=_text(texts.get("subtitle") or texts.get("subtitle-loc-key")),
        body=_text(texts.get("body") or texts.get("loc-key")),
        level=_text(aps.get("interruption-level")) or "active",
        sound=_text(sound),
        badge=badge if isinstance(badge, int) and not isinstance(badge, bool) else None,
        thread=_text(aps.get("thread-id")),
        silent=alert is None and not sound and badge is None,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
