"""What an event does to an alarm: a pure function from (row, event, now) to (row, verdict, rule).

One row per alarm of a source (`alarm_key`), for ever; each time it opens again is a *generation*.

                      first                 repeat · lowered · escalated
        (no row) ───────────────>  ┌──────┐ ─────┐
            │                      │ open │      │
            │ stale        first   │      │ <────┘
            │ (clear of  ┌───────> └──────┘
            │  unknown)  │ next        │ clear
            v            │ generation  v
        ┌─────────┐      │         ┌─────────┐
        │ cleared │ ─────┘         │ cleared │ ──┐ stale (clear of cleared)
        └─────────┘                └─────────┘ <─┘

A source's clock decides what is newer where it gives milliseconds: what is older than the newest seen is
`stale` in every state and changes nothing but the count. Otherwise order is that of receipt.

An acknowledged alarm is silent until it gets worse or opens anew; both take the acknowledgement back.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fastpush.gateway.sources import RANKS, Event, Severity, alarm_key

__all__ = [
    "LOUD",
    "MAX_CLOCK_AHEAD_MS",
    "RULES",
    "SHOWN",
    "AlarmRow",
    "Rule",
    "Verdict",
    "acknowledge",
    "judge",
]

Verdict = Literal["first", "escalated", "lowered", "repeat", "clear", "stale"]
Rule = Literal[
    "first.new",
    "first.reopened",
    "escalated.rank",
    "lowered.rank",
    "repeat.counted",
    "repeat.changed",
    "clear.open",
    "stale.clear_of_unknown",
    "stale.clear_of_cleared",
    "stale.older",
]
RULES: dict[Rule, str] = {
    "first.new": "an alarm that was never seen",
    "first.reopened": "open again after a clear: the next generation",
    "escalated.rank": "worse than it was; takes an acknowledgement back",
    "lowered.rank": "open still, and less bad",
    "repeat.counted": "nothing that the banner shows is new, or the alarm is acknowledged: counted",
    "repeat.changed": "as bad as it was, with another text",
    "clear.open": "all is well again",
    "stale.clear_of_unknown": "all is well with an alarm that was never seen",
    "stale.clear_of_cleared": "all is well already",
    "stale.older": "older, by the source's own time, than what is known",
}

# Pushed with sound; pushed at all. The rest is only recorded.
LOUD: frozenset[Rule] = frozenset({"first.new", "first.reopened", "escalated.rank"})
SHOWN: frozenset[Rule] = LOUD | {"lowered.rank", "repeat.changed", "clear.open"}

# A source's time further ahead than this is a wrong clock or a forgery; taken at its word it would make
# all that comes after it look old.
MAX_CLOCK_AHEAD_MS = 5 * 60 * 1000


class AlarmRow(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm as it stands.

    Attributes:
      source, key: together its identity.
      generation: how often it has opened; 0 where all that was ever seen of it is a clear.
      state: "open" or "cleared".
      severity: while open, how bad; when cleared "clear".
      opened_at, changed_at, seen_at: UNIX seconds by our clock: this generation's first event, the last
        event that changed state, severity or acknowledgement, and the last event of any kind.
      source_at: the newest source time that counted, in milliseconds; None where none was given.
      repeats: events of this generation that were counted and nothing else.
      acknowledged_by, acknowledged_at: by whom and when, of this generation.
      device, entity, alarm_id, category, monitor, event_type, address, parent, message, time_text, url:
        as the newest event that counted has them; what it leaves out stays as it was.
      tags: who was told of this generation; see `routes.address`.
    """

    source: str
    key: str
    generation: int
    state: Literal["open", "cleared"]
    severity: Severity
    opened_at: float
    changed_at: float
    seen_at: float
    source_at: int | None = None
    repeats: int = 0
    acknowledged_by: str | None = None
    acknowledged_at: float | None = None
    device: str = ""
    entity: str = ""
    alarm_id: str = ""
    category: str = ""
    monitor: str = ""
    event_type: str = ""
    address: str = ""
    parent: str = ""
    message: str = ""
    time_text: str = ""
    url: str = ""
    tags: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """How bad it is: 4 the worst, 0 cleared."""
        return RANKS[self.severity]

    @property
    def counts_in_badge(self) -> bool:
        """Open, and nobody has taken it."""
        return self.state == "open" and self.acknowledged_at is None


_TEXTS = (
    "device",
    "entity",
    "alarm_id",
    "category",
    "monitor",
    "event_type",
    "address",
    "parent",
    "message",
    "time_text",
    "url",
)
# Those that a banner shows; a monitor's value changes its message.
_VISIBLE = ("severity", "device", "category", "monitor", "message")


def judge(row: AlarmRow | None, event: Event, now: float) -> tuple[AlarmRow, Verdict, Rule]:
    """Take an event into an alarm.

    Args:
      row: the alarm as it stands; None if it has none.
      event: about this alarm, by source and `alarm_key`.
      now: UNIX seconds, our clock.

    Raises:
      ValueError: the event is a test, or is about another alarm.
    """
    key = alarm_key(event)
    if row is None:
        blank = AlarmRow(
            source=event.source, key=key, generation=0, state="cleared", severity="clear",
            opened_at=now, changed_at=now, seen_at=now,
        )  # fmt: skip
        return _unknown(blank, event, now)
    if (row.source, row.key) != (event.source, key):
        raise ValueError(f"the event is about another alarm than the row of {row.source}")
    if _is_older(row, event, now):
        return _counted(row, now), "stale", "stale.older"
    return (_open if row.state == "open" else _cleared)(row, event, now)


def acknowledge(row: AlarmRow, by: str, now: float) -> AlarmRow:
    """The row with this acknowledgement; the first one stays, and a cleared alarm takes none."""
    if not row.counts_in_badge:
        return row
    return msgspec.structs.replace(row, acknowledged_by=by, acknowledged_at=now, changed_at=now)


def _unknown(blank: AlarmRow, event: Event, now: float) -> tuple[AlarmRow, Verdict, Rule]:
    if event.severity == "clear":
        return _told(blank, event, now), "stale", "stale.clear_of_unknown"
    return _opened(blank, event, now), "first", "first.new"


def _open(row: AlarmRow, event: Event, now: float) -> tuple[AlarmRow, Verdict, Rule]:
    told = _told(row, event, now)
    if event.severity == "clear":
        cleared = msgspec.structs.replace(told, state="cleared", severity="clear", changed_at=now)
        return cleared, "clear", "clear.open"
    if event.rank > row.rank:
        worse = msgspec.structs.replace(
            told, severity=event.severity, changed_at=now, acknowledged_by=None, acknowledged_at=None
        )
        return worse, "escalated", "escalated.rank"
    if event.rank < row.rank:
        better = msgspec.structs.replace(told, severity=event.severity, changed_at=now)
        return better, "lowered", "lowered.rank"
    # Critical and Service Down rank the same; so do trouble and a severity that nobody could read.
    same = _counted(msgspec.structs.replace(told, severity=event.severity), now)
    changed = any(getattr(same, name) != getattr(row, name) for name in _VISIBLE)
    if same.severity != row.severity or (changed and row.acknowledged_at is None):
        return same, "repeat", "repeat.changed"
    return same, "repeat", "repeat.counted"


def _cleared(row: AlarmRow, event: Event, now: float) -> tuple[AlarmRow, Verdict, Rule]:
    if event.severity == "clear":
        return _counted(_told(row, event, now), now), "stale", "stale.clear_of_cleared"
    return _opened(row, event, now), "first", "first.new" if row.generation == 0 else "first.reopened"


def _opened(row: AlarmRow, event: Event, now: float) -> AlarmRow:
    return msgspec.structs.replace(
        _told(row, event, now), state="open", severity=event.severity, generation=row.generation + 1,
        opened_at=now, changed_at=now, repeats=0, acknowledged_by=None, acknowledged_at=None, tags=(),
    )  # fmt: skip


def _told(row: AlarmRow, event: Event, now: float) -> AlarmRow:
    """The row with the texts and the time of an event that counts."""
    texts = {name: text for name in _TEXTS if (text := getattr(event, name))}
    at = _trusted_at(event, now)
    newest = row.source_at if at is None else at  # no older one counts
    return msgspec.structs.replace(row, seen_at=now, source_at=newest, **texts)


def _counted(row: AlarmRow, now: float) -> AlarmRow:
    return msgspec.structs.replace(row, seen_at=now, repeats=row.repeats + 1)


def _is_older(row: AlarmRow, event: Event, now: float) -> bool:
    at = _trusted_at(event, now)
    return at is not None and row.source_at is not None and at < row.source_at


def _trusted_at(event: Event, now: float) -> int | None:
    if event.at is None or event.at > now * 1000 + MAX_CLOCK_AHEAD_MS:
        return None
    return event.at
