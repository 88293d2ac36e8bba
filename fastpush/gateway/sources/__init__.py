"""One module per sender: what it posts, as it really arrives, to an `Event`."""

from __future__ import annotations

import base64
import hashlib
from typing import Literal

import msgspec

__all__ = ["RANKS", "SEVERITIES", "Event", "Severity", "alarm_digest", "alarm_key"]

Severity = Literal["critical", "service_down", "trouble", "attention", "info", "clear", "unknown"]

# What outranks what; numbers of the senders are never compared. A severity that nobody can read ranks with
# trouble: it is better heard than lost.
RANKS: dict[Severity, int] = {
    "critical": 4,
    "service_down": 4,
    "trouble": 3,
    "unknown": 3,
    "attention": 2,
    "info": 1,
    "clear": 0,
}
SEVERITIES: tuple[Severity, ...] = tuple(RANKS)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What one post of a sender says. Texts are clean (no control characters), and "" where it said nothing.

    Attributes:
      source: the instance that posted; part of an alarm's identity.
      device: the name that people know the device by.
      entity: the failing object, which is the sender's own handle for it.
      alarm_id: the sender's number for the alarm.
      severity: its word in our spelling; "clear" closes.
      category, monitor, event_type, address, parent: as the sender has them.
      message: the text of the alarm, lines parted by "\\n".
      at: source time in milliseconds since 1970, where the sender gives that; orders events.
      time_text: any other source time, as it came: to be shown, never compared.
      url: a link back to the sender.
      raw: the beginning of the body, for people.
      quirks: what had to be repaired or was left out, in a fixed spelling.
      is_test: it names no alarm: a test of the sender's settings.
    """

    source: str
    device: str = ""
    entity: str = ""
    alarm_id: str = ""
    severity: Severity = "unknown"
    category: str = ""
    monitor: str = ""
    event_type: str = ""
    address: str = ""
    parent: str = ""
    message: str = ""
    at: int | None = None
    time_text: str = ""
    url: str = ""
    raw: str = ""
    quirks: tuple[str, ...] = ()
    is_test: bool = False

    @property
    def rank(self) -> int:
        """How bad it is: 4 the worst, 0 all is well again."""
        return RANKS[self.severity]

    @property
    def unreadable(self) -> bool:
        """Whether no known field was found in the body; `message` then is what it began with."""
        return "unreadable" in self.quirks


# Parts a key; no text of an event holds it.
_UNIT_SEPARATOR = "\x1f"


def alarm_key(event: Event) -> str:
    """Which alarm of its source an event is about: its entity, else device and alarm id.

    A template without either still tells alarms apart by device, monitor and event type.

    Raises:
      ValueError: the event is a test, which is about none.
    """
    if event.is_test:
        raise ValueError("a test names no alarm")
    if event.entity:
        return event.entity
    if event.alarm_id:
        return _UNIT_SEPARATOR.join((event.device, event.alarm_id))
    return _UNIT_SEPARATOR.join((event.device, event.monitor, event.event_type))


def alarm_digest(source: str, key: str) -> str:
    """43 characters of base64url (RFC 4648 §5) for an alarm: its id in addresses and in collapse ids."""
    digest = hashlib.sha256(f"{source}\0{key}".encode(errors="replace")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
