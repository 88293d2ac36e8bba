"""The log of what keys, phones and administrators did. It only grows, and never holds a secret."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any, final

import msgspec

from fastpush.gateway.auth.principal import Principal
from fastpush.gateway.storage import Storage

__all__ = ["AuditLog", "AuditRecord"]

MAX_TARGET, MAX_DETAIL = 200, 500
KEEP_RECORDS = 100_000
"""The newest, which nothing deletes: neither we nor whoever has the database open."""
KEEP_FOR = 400 * 86_400.0  # seconds, for those before them
TRIM_AT_ONCE = 1_000

# at, kind, name, key_id, address, action, target, detail
_RECORD = """INSERT INTO audit (at, kind, name, key_id, address, action, target, detail)
  VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h)"""


class AuditRecord(msgspec.Struct, frozen=True):
    """One thing that was done: when (UNIX seconds), by whom, from where, to what."""

    id: int
    at: float
    kind: str
    name: str
    key_id: str
    address: str
    action: str
    target: str
    detail: str


async def open_audit_log(storage: Storage, clock: Callable[[], float]) -> AuditLog:
    """Open the log in a storage that has its table."""
    return AuditLog(storage, await storage.add_kind(_RECORD), clock)


@final
class AuditLog:
    """Made by `open_audit_log`."""

    def __init__(self, storage: Storage, kind: int, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._kind = kind
        self._clock = clock

    def row(self, by: Principal, action: str, target: str = "", detail: str = "") -> tuple[Any, ...]:
        """A record as a row of the storage's funnel, to be written together with what is done.

        Args:
          action: `thing.done`, such as `key.revoked`.
          target: what it was done to; a device token shortened.
        """
        return (
            self._kind, self._clock(), by.kind, by.name, by.key_id, by.address, action,
            target[:MAX_TARGET], detail[:MAX_DETAIL],
        )  # fmt: skip

    async def record(self, by: Principal, action: str, target: str = "", detail: str = "") -> None:
        """Write one down by itself; it is durable on return."""
        await self._storage.insert([self.row(by, action, target, detail)], essential=True)

    async def read(self, after: int = 0, limit: int = 100) -> list[AuditRecord]:
        """What was done after the record with this id, oldest first; at most `limit`."""

        def query(connection: sqlite3.Connection) -> str:
            (text,) = connection.execute(
                "SELECT json_group_array("
                "json_array(id, at, kind, name, key_id, address, action, target, detail))"
                " FROM (SELECT * FROM audit WHERE id > ? ORDER BY id LIMIT ?)",
                (after, limit),
            ).fetchone()
            return text  # type: ignore[no-any-return]

        return [AuditRecord(*columns) for columns in json.loads(await self._storage.read(query))]

    def trim(self, connection: sqlite3.Connection) -> None:
        """Take out some of what is too old, in the writing thread."""
        connection.execute(
            "DELETE FROM audit WHERE id IN (SELECT id FROM audit"
            " WHERE id <= (SELECT max(id) FROM audit) - ? AND at < ? ORDER BY id LIMIT ?)",
            (KEEP_RECORDS, self._clock() - KEEP_FOR, TRIM_AT_ONCE),
        )
