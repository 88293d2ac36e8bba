"""A verdict on an alarm as the phone shows it: the payload and the header fields of its push.

One alarm is one banner: all its pushes have one collapse id, so that each takes the place of the last. Only
a new alarm and one that got worse make a sound.

Sources: Apple, "Generating a remote notification"; Human Interface Guidelines, "Managing notifications".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import orjson

from fastpush.gateway.alarms import LOUD, SHOWN, AlarmRow, Rule
from fastpush.gateway.sources import Severity, alarm_digest
from fastpush.notification import MAX_PAYLOAD_BYTES, Alert, Notification, Payload, Sound

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_CUSTOM_BYTES",
    "MAX_SUBTITLE_BYTES",
    "MAX_TITLE_BYTES",
    "STYLES",
    "Banner",
    "Look",
    "Style",
    "acknowledged_banner",
    "banner",
    "collapse_id",
]

# Octets of JSON, escapes counted. Together with the fixed keys they stay below Apple's 4,096.
MAX_TITLE_BYTES = 160
MAX_SUBTITLE_BYTES = 120
MAX_BODY_BYTES = 1024
MAX_CUSTOM_BYTES = 900
_MAX_ID_BYTES = 128

PRIVATE_BODY = "Network alarm"
_HOUR = 3600


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How an alarm of some severity comes when it comes loudly.

    Attributes:
      level: the interruption level.
      priority: 10 now, 5 when it suits the phone.
      sound: its name in the app, or "default"; None for none.
      relevance: from 0 to 1; orders the summary.
      lifetime: seconds for which APNs keeps it for a phone that is away.
    """

    level: str
    priority: int
    sound: str | None
    relevance: float
    lifetime: int


_WORST = Style(
    level="time-sensitive", priority=10, sound="opm_critical.caf", relevance=1.0, lifetime=24 * _HOUR
)
_TROUBLE = Style(level="active", priority=10, sound="default", relevance=0.7, lifetime=12 * _HOUR)
STYLES: Mapping[Severity, Style] = MappingProxyType(
    {
        "critical": _WORST,
        "service_down": _WORST,
        "trouble": _TROUBLE,
        "unknown": _TROUBLE,
        "attention": Style(level="active", priority=10, sound="default", relevance=0.4, lifetime=4 * _HOUR),
        # At the level "passive" iOS neither lights the screen nor plays a sound.
        "info": Style(level="passive", priority=5, sound=None, relevance=0.1, lifetime=_HOUR),
        "clear": Style(level="passive", priority=5, sound=None, relevance=0.2, lifetime=_HOUR),
    }
)

_WORDS: Mapping[Severity, str] = {
    "critical": "Critical",
    "service_down": "Service Down",
    "trouble": "Trouble",
    "attention": "Attention",
    "info": "Info",
    "clear": "Cleared",
    "unknown": "Alarm",
}
# OpManager's codes, which the app knows; 0 is none of them.
_CODES: Mapping[Severity, int] = {
    "critical": 1,
    "trouble": 2,
    "attention": 3,
    "service_down": 4,
    "clear": 5,
    "info": 6,
    "unknown": 0,
}


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What an app and its users have chosen.

    Attributes:
      styles: by severity.
      private: nothing that names a device or tells of its state but the severity; the app's service
        extension fetches the rest by the alarm's id.
      mutable_content: the app has a service extension.
      critical_alerts: the app has Apple's entitlement, and those who are told have opted in: the worst
        alarms then sound through the silent switch.
      critical_volume: from 0 to 1.
    """

    styles: Mapping[Severity, Style] = STYLES
    private: bool = False
    mutable_content: bool = False
    critical_alerts: bool = False
    critical_volume: float = 0.8


_PLAIN = Look()


class Banner(msgspec.Struct, frozen=True):
    """One push but for its device token.

    Attributes:
      payload: at most 4,096 bytes.
      priority, expiration, collapse_id: header values; the expiration in UNIX seconds.
    """

    payload: Payload
    priority: int
    expiration: int
    collapse_id: str

    def notification(self, device_token: str | bytes, *, topic: str | None = None) -> Notification:
        """This banner for one device."""
        return Notification(
            device_token,
            self.payload,
            topic=topic,
            push_type="alert",
            priority=self.priority,
            expiration=self.expiration,
            collapse_id=self.collapse_id,
        )


def collapse_id(row: AlarmRow) -> str:
    """The same for all pushes of an alarm, over all its generations: `a.` and 43 characters."""
    return f"a.{alarm_digest(row.source, row.key)}"


def banner(
    row: AlarmRow, rule: Rule, now: float, *, badge: int | None = None, look: Look = _PLAIN
) -> Banner | None:
    """The banner of a verdict; None where the verdict is only recorded.

    Args:
      row: the alarm after `judge`.
      rule: the rule that `judge` gave.
      now: UNIX seconds; the expiration counts from it.
      badge: open and unacknowledged alarms of those who are told; None leaves the app's number alone. 0 also
        takes the app's other banners away, so it is for when none is open.
      look: what the app can show.
    """
    if rule not in SHOWN:
        return None
    style = look.styles[row.severity]
    loud = rule in LOUD
    if row.state == "cleared":
        category = "OPM_CLEARED"
    else:
        category = "OPM_ALARM_OPEN" if row.acknowledged_at is None else "OPM_ALARM_ACKED"
    sound: Sound | str | None = style.sound if loud else None
    level = style.level if loud else "passive"
    if loud and look.critical_alerts and row.rank == 4:
        sound = Sound(style.sound or "default", critical=True, volume=look.critical_volume)
        level = "critical"
    return _made(
        row,
        Alert(
            title=_cut(_title(_WORDS[row.severity], row, look), MAX_TITLE_BYTES),
            subtitle=None if look.private else _cut(_subtitle(row), MAX_SUBTITLE_BYTES) or None,
            body=PRIVATE_BODY if look.private else _cut(row.message, MAX_BODY_BYTES) or None,
        ),
        category=category,
        level=level,
        priority=style.priority if loud else min(style.priority, 5),
        sound=sound,
        relevance=style.relevance,
        expiration=int(now) + style.lifetime,
        badge=badge,
        look=look,
    )


def acknowledged_banner(
    row: AlarmRow, now: float, *, badge: int | None = None, look: Look = _PLAIN
) -> Banner | None:
    """What the others see when one has acknowledged; None where the alarm is not acknowledged and open."""
    if row.state != "open" or row.acknowledged_at is None:
        return None
    by = "Acknowledged" if look.private else f"Acknowledged by {row.acknowledged_by}"
    return _made(
        row,
        Alert(
            title=_cut(_title(_WORDS[row.severity], row, look), MAX_TITLE_BYTES),
            subtitle=_cut(by, MAX_SUBTITLE_BYTES),
            body=PRIVATE_BODY if look.private else _cut(row.message, MAX_BODY_BYTES) or None,
        ),
        category="OPM_ALARM_ACKED",
        level="passive",
        priority=5,
        sound=None,
        relevance=0.2,
        expiration=int(now) + _HOUR,
        badge=badge,
        look=look,
    )


def _made(
    row: AlarmRow,
    alert: Alert,
    *,
    category: str,
    level: str,
    priority: int,
    sound: Sound | str | None,
    relevance: float,
    expiration: int,
    badge: int | None,
    look: Look,
) -> Banner:
    alarm_id = row.alarm_id if row.alarm_id and not look.private else alarm_digest(row.source, row.key)
    payload = Payload(
        alert=alert,
        badge=badge,
        sound=sound,
        thread_id=_thread_id(row, look),
        category=category,
        mutable_content=look.mutable_content,
        target_content_id=_short_id(f"alarm/{alarm_id}"),
        interruption_level=level,
        relevance_score=relevance,
        data={"opm": _custom(row, look)},
    )
    return Banner(payload.shortened(MAX_PAYLOAD_BYTES), priority, expiration, collapse_id(row))


def _title(word: str, row: AlarmRow, look: Look) -> str:
    if look.private:
        return word
    return f"{word}: {row.device or row.entity or row.alarm_id or row.source}"


def _subtitle(row: AlarmRow) -> str:
    return ", ".join(dict.fromkeys(text for text in (row.category, row.monitor) if text))


def _thread_id(row: AlarmRow, look: Look) -> str:
    """One group on the lock screen per device."""
    thread = f"{row.source}/{row.device or row.key}"
    return _digest(thread) if look.private else _short_id(thread)


def _custom(row: AlarmRow, look: Look) -> dict[str, Any]:
    """Small ids for the app's buttons and its screen; the longest go where they do not fit."""
    custom: dict[str, Any] = {
        "v": 1,
        "id": alarm_digest(row.source, row.key),
        "src": _short_id(row.source),
        "gen": row.generation,
        "sev": _CODES[row.severity],
        "state": row.state if row.acknowledged_at is None or row.state == "cleared" else "acknowledged",
        "ts": row.source_at if row.source_at is not None else int(row.changed_at * 1000),
    }
    if look.private:
        return custom
    optional = {"alarmid": row.alarm_id, "entity": row.entity}
    if row.url.startswith(("https://", "http://")):
        optional["url"] = row.url
    for name, text in optional.items():
        if text and len(orjson.dumps({**custom, name: text})) <= MAX_CUSTOM_BYTES:
            custom[name] = text
    return custom


def _short_id(text: str) -> str:
    """An id as it is, or a digest of one that is long."""
    return text if len(text.encode()) <= _MAX_ID_BYTES else _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


_EMPTY_BYTES = len(Payload(alert="").encode())


def _cut(text: str, limit_bytes: int) -> str:
    """A text whose JSON is at most so long, cut between two characters as people see them."""
    alert = Payload(alert=text).shortened(_EMPTY_BYTES + limit_bytes).alert
    assert isinstance(alert, str)
    return alert
