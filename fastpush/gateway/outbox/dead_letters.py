"""Sending dead letters again: what is left of them is accepted anew, and linked to what it repeats."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from fastpush.gateway.outbox import Acceptance, Entry, Hit, OutboxBusy, Record, SentAgain, records
from fastpush.gateway.storage import Storage, StorageError

__all__ = ["Accept", "dead_letter", "send_again"]


class Accept(Protocol):
    """How a batch is accepted; `also` writes in the same transaction."""

    def __call__(
        self,
        app: str,
        entries: Sequence[Entry],
        source: str,
        *,
        also: Callable[[sqlite3.Connection, Acceptance], object],
    ) -> Awaitable[Acceptance]: ...


def dead_letter(record: Record | None) -> Hit:
    """What may be sent again by its apns-id.

    Raises:
      LookupError: it may not; the message says why.
    """
    if record is None:
        raise LookupError("there is no such notification")
    if record.outcome in (None, "accepted"):
        raise LookupError("it was accepted by APNs" if record.outcome else "it has no end yet")
    if record.sent_again is not None:
        raise LookupError("it was sent again already")
    return Hit(
        record.apns_id, record.batch, record.index, record.entry.device_token, record.app, record.source,
        record.received_at, record.outcome,
    )  # fmt: skip


async def send_again(storage: Storage, accept: Accept, hits: Sequence[Hit], expiration: int) -> SentAgain:
    """Accept what is left of these; a batch for each app and source.

    Args:
      expiration: UNIX seconds, for all that had one but 0.

    Raises:
      OutboxBusy, StorageError: before anything was accepted.
    """
    contents = await storage.read(lambda connection: records.contents(connection, hits))
    groups: dict[tuple[str, str], list[tuple[Hit, Entry]]] = {}
    for hit, entry in reversed(list(zip(hits, contents, strict=True))):  # the oldest first
        if entry is not None:
            groups.setdefault((hit.app, hit.source), []).append((hit, entry))
    count, meanwhile, stopped = 0, 0, ""
    batches: list[int] = []
    for (app, source), group in groups.items():
        wanted = len(group)
        try:
            accepted, left = await _accept_left(storage, accept, app, source, group, expiration)
        except (OutboxBusy, StorageError) as error:
            if not count:
                raise
            stopped = str(error)
            break
        meanwhile += wanted - left
        if accepted is not None:
            count += accepted.count
            batches.append(accepted.batch)
    return SentAgain(count, tuple(batches), contents.count(None), meanwhile, stopped)


async def _accept_left(
    storage: Storage, accept: Accept, app: str, source: str, group: list[tuple[Hit, Entry]], expiration: int
) -> tuple[Acceptance | None, int]:
    """Accept those of a group that nobody else sends again at the same moment; and how many they are."""
    while group:
        hits = [hit for hit, _ in group]
        entries = [
            msgspec.structs.replace(entry, apns_id=None, expiration=entry.expiration and expiration)
            for _, entry in group
        ]
        try:
            accepted = await accept(
                app,
                entries,
                source,
                also=lambda connection, acceptance, hits=hits: _link(connection, acceptance, hits),  # type: ignore[misc]
            )
        except sqlite3.IntegrityError:
            linked = await storage.read(lambda connection, hits=hits: _linked(connection, hits))  # type: ignore[misc]
            if not any(linked):
                raise
            group = [one for one, known in zip(group, linked, strict=True) if not known]
        else:
            return accepted, len(group)
    return None, 0


def _linked(connection: sqlite3.Connection, hits: Sequence[Hit]) -> list[bool]:
    """Of each whether it was sent again."""
    sql = "SELECT 1 FROM again WHERE batch = ? AND place = ? AND device = ?"
    return [connection.execute(sql, _place(hit)).fetchone() is not None for hit in hits]


def _place(hit: Hit) -> tuple[int, int, str]:
    """How a notification is named among those that were sent again."""
    return hit.batch, hit.index, (hit.device_token or "") if hit.index < 0 else ""


def _link(connection: sqlite3.Connection, acceptance: Acceptance, hits: Sequence[Hit]) -> None:
    """Remember what is sent again. It fails when one of them was before."""
    connection.executemany(
        "INSERT INTO again VALUES (?, ?, ?, ?)",
        [(*_place(hit), acceptance.apns_id(place)) for place, hit in enumerate(hits)],
    )
