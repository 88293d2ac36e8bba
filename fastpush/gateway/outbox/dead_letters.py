"""Sending dead letters again: what is left of them is accepted anew, and linked to what it repeats."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from fastpush.gateway.outbox import Acceptance, Entry, Hit, Record, SentAgain, records
from fastpush.gateway.storage import Storage

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
      LookupError: one of them was sent again meanwhile.
    """
    contents = await storage.read(lambda connection: records.contents(connection, hits))
    groups: dict[tuple[str, str], list[tuple[Hit, Entry]]] = {}
    for hit, entry in reversed(list(zip(hits, contents, strict=True))):  # the oldest first
        if entry is not None:
            groups.setdefault((hit.app, hit.source), []).append((hit, entry))
    count, batches = 0, []
    for (app, source), group in groups.items():
        entries = [
            msgspec.structs.replace(entry, apns_id=None, expiration=entry.expiration and expiration)
            for _, entry in group
        ]
        try:
            accepted = await accept(
                app,
                entries,
                source,
                also=lambda connection, acceptance, group=group: _link(  # type: ignore[misc]
                    connection, acceptance, [hit for hit, _ in group]
                ),
            )
        except sqlite3.IntegrityError:
            raise LookupError("some of it was sent again meanwhile, and nothing now") from None
        count += accepted.count
        batches.append(accepted.batch)
    return SentAgain(count, tuple(batches), contents.count(None))


def _link(connection: sqlite3.Connection, acceptance: Acceptance, hits: Sequence[Hit]) -> None:
    """Remember what is sent again. It fails when one of them was before."""
    connection.executemany(
        "INSERT INTO again VALUES (?, ?, ?, ?)",
        [
            (
                hit.batch,
                hit.index,
                (hit.device_token or "") if hit.index < 0 else "",
                acceptance.apns_id(place),
            )
            for place, hit in enumerate(hits)
        ],
    )
