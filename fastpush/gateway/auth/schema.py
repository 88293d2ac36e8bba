"""The tables of keys, phones and the audit log.

    api_key         keys of people and systems; few, all of them in memory
    signature       what was signed and taken lately, so that it is not taken twice
    enrolment_code  codes that a phone may exchange for a secret, once
    enrolment       phones: what of their secret is kept, for whom it is good, the device token it is good for
    seal            the key that seals phones' secrets
    audit           what was done, by whom; grows only

Instants are UNIX seconds. `tags`, `scopes` and `apps` are JSON arrays; `apps` NULL is every app.
"""

from __future__ import annotations

import secrets
import sqlite3

from fastpush.gateway.auth.audit import KEEP_RECORDS
from fastpush.gateway.storage import Migration

__all__ = ["MIGRATIONS"]

_VERSION_1 = (
    """CREATE TABLE api_key (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, scopes TEXT NOT NULL, apps TEXT, digest BLOB,
        signing_secret BLOB, created_at REAL NOT NULL, created_by TEXT NOT NULL, expires_at REAL,
        revoked_at REAL, last_used_at REAL
    ) WITHOUT ROWID""",
    """CREATE TABLE signature (
        digest BLOB PRIMARY KEY, signed_at INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE enrolment_code (
        id TEXT PRIMARY KEY, salt BLOB NOT NULL, digest BLOB NOT NULL, app TEXT NOT NULL, user TEXT NOT NULL,
        tags TEXT NOT NULL, created_at REAL NOT NULL, created_by TEXT NOT NULL, expires_at REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID""",
    """CREATE TABLE enrolment (
        id TEXT PRIMARY KEY, digest BLOB NOT NULL, app TEXT NOT NULL, user TEXT NOT NULL, tags TEXT NOT NULL,
        device_token TEXT, created_at REAL NOT NULL, created_by TEXT NOT NULL, revoked_at REAL
    ) WITHOUT ROWID""",
    "CREATE TABLE seal (id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL)",
    """CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        key_id TEXT NOT NULL, address TEXT NOT NULL, action TEXT NOT NULL, target TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    """CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
       BEGIN SELECT raise(ABORT, 'the audit log is not changed'); END""",
    f"""CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
        WHEN OLD.id > (SELECT max(id) FROM audit) - {KEEP_RECORDS}
        BEGIN SELECT raise(ABORT, 'the audit log is kept'); END""",
)


def _draw_seal(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO seal VALUES (1, ?)", (secrets.token_bytes(32),))


MIGRATIONS: list[Migration] = [_VERSION_1, _draw_seal]
