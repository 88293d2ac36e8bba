"""Phones and their codes in the storage: functions that are given its connection."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

__all__ = [
    "Enrolment",
    "KnownCode",
    "NewCode",
    "NewEnrolment",
    "add",
    "add_code",
    "count_attempt",
    "find",
    "find_code",
    "hold",
    "revoke",
    "take_code",
]


class NewCode(NamedTuple):
    """A code to be stored; `tags` is JSON."""

    id: str
    salt: bytes
    digest: bytes
    app: str
    user: str
    tags: str
    created_at: float
    created_by: str
    expires_at: float


class KnownCode(NamedTuple):
    """A code that may be taken."""

    salt: bytes
    digest: bytes
    app: str
    user: str
    tags: str
    created_by: str
    expires_at: float
    attempts: int


class NewEnrolment(NamedTuple):
    """A phone to be stored; `tags`, which it is granted, is JSON."""

    id: str
    digest: bytes
    app: str
    user: str
    tags: str
    created_at: float
    created_by: str


class Enrolment(NamedTuple):
    """A phone."""

    id: str
    digest: bytes
    app: str
    user: str
    tags: str
    device_token: str | None
    revoked_at: float | None


def add_code(connection: sqlite3.Connection, code: NewCode) -> bool:
    """False if another code has this id, and is not over."""
    connection.execute(
        "DELETE FROM enrolment_code WHERE id = ? AND expires_at < ?", (code.id, code.created_at)
    )
    return (
        connection.execute(
            "INSERT OR IGNORE INTO enrolment_code VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)", code
        ).rowcount
        == 1
    )


def find_code(connection: sqlite3.Connection, code_id: str) -> KnownCode | None:
    """The code with this id, over or not; those that were used are gone."""
    found = connection.execute(
        "SELECT salt, digest, app, user, tags, created_by, expires_at, attempts"
        " FROM enrolment_code WHERE id = ?",
        (code_id,),
    ).fetchone()
    return None if found is None else KnownCode(*found)


def count_attempt(connection: sqlite3.Connection, code_id: str, salt: bytes, limit: int) -> bool:
    """Whether there was an attempt left, which is now taken."""
    return (
        connection.execute(
            "UPDATE enrolment_code SET attempts = attempts + 1 WHERE id = ? AND salt = ? AND attempts < ?",
            (code_id, salt, limit),
        ).rowcount
        == 1
    )


def take_code(connection: sqlite3.Connection, code_id: str, salt: bytes) -> bool:
    """Use a code up; False if it was, meanwhile. The salt tells it from a later one with the same id."""
    return (
        connection.execute("DELETE FROM enrolment_code WHERE id = ? AND salt = ?", (code_id, salt)).rowcount
        == 1
    )


def add(connection: sqlite3.Connection, phone: NewEnrolment) -> None:
    connection.execute("INSERT INTO enrolment VALUES (?, ?, ?, ?, ?, NULL, ?, ?, NULL)", phone)


def find(connection: sqlite3.Connection, enrolment_id: str) -> Enrolment | None:
    found = connection.execute(
        "SELECT id, digest, app, user, tags, device_token, revoked_at FROM enrolment WHERE id = ?",
        (enrolment_id,),
    ).fetchone()
    return None if found is None else Enrolment(*found)


def revoke(connection: sqlite3.Connection, enrolment_id: str, now: float) -> None:
    connection.execute(
        "UPDATE enrolment SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now, enrolment_id)
    )


def hold(connection: sqlite3.Connection, enrolment_id: str, device_token: str | None) -> None:
    """Let the phone's secret be good for this device token from now on, or for none yet."""
    connection.execute("UPDATE enrolment SET device_token = ? WHERE id = ?", (device_token, enrolment_id))
