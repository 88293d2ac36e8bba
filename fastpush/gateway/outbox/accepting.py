"""What an acceptance writes, where it is more than a row of the funnel."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from typing import Any

from fastpush.gateway.outbox import Acceptance, Chunk, Idempotency, IdempotencyConflict, schema
from fastpush.gateway.storage import pour

__all__ = ["KEY_COLUMN", "accepting", "name_of"]

KEY_COLUMN = 10  # of the rows of `schema.ACCEPT` and `schema.FANOUT`, the kind before them counted


def name_of(idempotency: Idempotency | None) -> tuple[bytes | None, bytes | None]:
    """Key and digest as they are stored."""
    if idempotency is None:
        return None, None
    named = f"{len(idempotency.principal)}:{idempotency.principal}{idempotency.key}"
    return hashlib.sha256(named.encode()).digest()[:20], idempotency.digest


def accepting(
    acceptance: Acceptance,
    row: tuple[Any, ...],
    chunk: Chunk | None,
    also: Callable[[sqlite3.Connection, Acceptance], object] | None,
) -> Callable[[sqlite3.Connection], list[Any] | None]:
    """An acceptance as a change, together with what else belongs in its transaction."""

    def change(connection: sqlite3.Connection) -> list[Any] | None:
        if row[KEY_COLUMN] is not None:
            found = connection.execute(schema.KNOWN_ONE, (row[KEY_COLUMN],)).fetchone()
            if found is not None:
                return list(found)
        if chunk is not None:
            moved = connection.execute(
                "UPDATE stream SET lines = ?, running_hash = ?, entries = entries + ?"
                " WHERE id = ? AND lines = ?",
                (chunk.lines, chunk.running_hash, acceptance.count, chunk.stream, chunk.lines_before),
            )
            if moved.rowcount != 1:
                raise IdempotencyConflict("another upload under the same idempotency key is under way")
            connection.execute("INSERT INTO stream_part VALUES (?, ?)", (chunk.stream, acceptance.batch))
        pour(connection, [row])
        if also is not None:
            also(connection, acceptance)
        return None

    return change
