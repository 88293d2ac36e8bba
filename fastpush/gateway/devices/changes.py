"""What is written of devices beside plain registrations: functions in the storage's writing thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from fastpush.gateway.auth import enrolments
from fastpush.gateway.devices.values import Verdict
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import pour

__all__ = [
    "add_app",
    "apply_verdicts",
    "enrolment_of",
    "last_event",
    "learn_environment",
    "register_phone",
    "remove",
    "trim",
]

KEEP_DEAD = 30 * 86_400_000  # milliseconds
KEEP_EVENTS = 1_000_000
TRIM_AT_ONCE = 1_000

_ITS_TAGS = "(SELECT value FROM device, json_each(device.tags) WHERE device.app = ?1 AND device.token = ?2)"

Row = tuple[Any, ...]
MakeRow = Callable[[tuple[str, ...], str, "str | None"], Row]
"""The funnel's row for tags, user, and the device token that is replaced."""


def add_app(connection: sqlite3.Connection, name: str) -> int:
    connection.execute("INSERT OR IGNORE INTO device_app (name) VALUES (?)", (name,))
    (number,) = connection.execute("SELECT number FROM device_app WHERE name = ?", (name,)).fetchone()
    return number  # type: ignore[no-any-return]


def register_phone(
    connection: sqlite3.Connection,
    *,
    app: str,
    number: int,
    enrolment_id: str,
    token: str,
    tags: tuple[str, ...] | None,
    make_row: MakeRow,
) -> list[str]:
    """Register a phone by its own word, and return the enrolments that changed.

    Raises:
      Problem: 403, the secret is of another app, a tag was not granted, another phone has the device token.
    """
    phone = enrolments.find(connection, enrolment_id)
    if phone is None or phone.revoked_at is not None or phone.app != app:
        raise Problem(403, "not allowed", "This device's secret is not for this app, or was revoked.")
    granted = set(json.loads(phone.tags))
    if tags is not None and not granted.issuperset(tags):
        refused = sorted(set(tags) - granted)[0]
        raise Problem(403, "not allowed", f"This device was not granted the tag {refused!r}.", field="tags")
    (holder,) = connection.execute(
        "SELECT enrolment FROM device WHERE app = ? AND token = ?", (number, bytes.fromhex(token))
    ).fetchone() or (None,)
    other = holder if holder != enrolment_id else None
    if other is not None and phone.device_token is not None:
        detail = "Another device holds this device token. Enrol again, if it is this device's now."
        raise Problem(403, "not allowed", detail, field="device_token")
    before = phone.device_token if phone.device_token != token else None
    if tags is None:
        kept = connection.execute(
            "SELECT tags FROM device WHERE app = ? AND token = ? AND enrolment = ?",
            (number, bytes.fromhex(before or token), enrolment_id),
        ).fetchone()
        tags = tuple(tag for tag in json.loads(kept[0] if kept else phone.tags) if tag and tag in granted)
    pour(connection, [make_row(tags, phone.user, before)])
    if other is not None:
        enrolments.hold(connection, other, None)
    if phone.device_token != token:
        enrolments.hold(connection, enrolment_id, token)
    return [enrolment_id] if other is None else [enrolment_id, other]


def enrolment_of(connection: sqlite3.Connection, app: int, token: bytes) -> str | None:
    found = connection.execute(
        "SELECT enrolment FROM device WHERE app = ? AND token = ?", (app, token)
    ).fetchone()
    return found[0] if found is not None else None


def remove(
    connection: sqlite3.Connection, app: int, token: bytes, now: float, audit: Row | None
) -> tuple[bool, str | None]:
    """Take a device out; whether it was there, and its enrolment, which is revoked."""
    found = connection.execute(
        "SELECT enrolment FROM device WHERE app = ? AND token = ?", (app, token)
    ).fetchone()
    if found is None:
        return False, None
    _leave_audiences(connection, app, token)
    connection.execute("DELETE FROM device WHERE app = ? AND token = ?", (app, token))
    if found[0] is not None:
        enrolments.revoke(connection, found[0], now)
    if audit is not None:
        pour(connection, [audit])
    return True, found[0]


def _leave_audiences(connection: sqlite3.Connection, app: int, token: bytes) -> None:
    connection.execute(
        f"DELETE FROM audience WHERE app = ?1 AND token = ?2 AND tag IN {_ITS_TAGS}", (app, token)
    )


def learn_environment(
    connection: sqlite3.Connection, app: int, token: bytes, letter: str, refused_in: str, now: int
) -> None:
    """Send to this environment from now on; `refused_in` has the letters of those that did not know it."""
    connection.execute(
        "UPDATE device SET environment = ?3, environment_at = ?4, refused_in = ?5"
        " WHERE app = ?1 AND token = ?2",
        (app, token, letter, now, refused_in),
    )
    connection.execute(
        f"UPDATE audience SET environment = ?3 WHERE app = ?1 AND token = ?2 AND tag IN {_ITS_TAGS}",
        (app, token, letter),
    )


def apply_verdicts(connection: sqlite3.Connection, verdicts: Iterable[tuple[int, Verdict]], now: int) -> int:
    """Let what APNs said take effect, where no registration came after it; the last event's id, or 0."""
    last = 0
    for app, verdict in verdicts:
        token = bytes.fromhex(verdict.device_token)
        known = connection.execute(
            "SELECT environment, environment_at, user, refused_in, registered_at FROM device"
            " WHERE app = ? AND token = ? AND dead_at IS NULL",
            (app, token),
        ).fetchone()
        if known is None:
            continue
        environment, environment_at, user, refused_in, registered_at = known
        sent_at = int(verdict.sent_at * 1_000)
        if registered_at > (sent_at if verdict.unregistered_at is None else verdict.unregistered_at):
            continue  # it was registered after that, and so it lives
        if verdict.reason == "BadDeviceToken" and not verdict.certain:
            if sent_at < environment_at:
                continue  # it went to the other environment
            refused_in += environment
            other = "d" if environment == "p" else "p"
            if other not in refused_in:
                learn_environment(connection, app, token, other, refused_in, now)
                continue
        _leave_audiences(connection, app, token)
        connection.execute(
            "UPDATE device SET dead_at = ?, dead_reason = ? WHERE app = ? AND token = ?",
            (now, verdict.reason, app, token),
        )
        last = connection.execute(
            "INSERT INTO device_event (app, at, token, environment, user, status, reason, unregistered_at,"
            " sent_at, apns_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                app, now, token, environment, user, verdict.status, verdict.reason, verdict.unregistered_at,
                sent_at, verdict.apns_id,
            ),
        ).lastrowid or 0  # fmt: skip
    return last


def last_event(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("SELECT coalesce(max(id), 0) FROM device_event").fetchone()
    return number  # type: ignore[no-any-return]


def trim(connection: sqlite3.Connection, now: int) -> None:
    """Take out some of what is too old: dead devices, and events of long ago."""
    connection.execute(
        "DELETE FROM device WHERE (app, token) IN"
        " (SELECT app, token FROM device WHERE dead_at < ? ORDER BY dead_at LIMIT ?)",
        (now - KEEP_DEAD, TRIM_AT_ONCE),
    )
    connection.execute(
        "DELETE FROM device_event WHERE id IN (SELECT id FROM device_event"
        " WHERE id <= (SELECT max(id) FROM device_event) - ? ORDER BY id LIMIT ?)",
        (KEEP_EVENTS, TRIM_AT_ONCE),
    )
