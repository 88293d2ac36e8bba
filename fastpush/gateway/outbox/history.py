"""What is kept of the past, and how long: bodies, histories, names of requests; and the index filled behind.

All of it goes in chunks, so that no commit of others waits for more than a few milliseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import trio

from fastpush.gateway.outbox.lanes import App
from fastpush.gateway.outbox.packing import keep_payloads, read_log, unpack_entries
from fastpush.gateway.storage import Storage, StorageError

CHUNK = 1_000
HOUR = 3_600.0
TURN = 1.0  # seconds from one turn of the housekeeping to the next; it is what `seconds` counts
SLICES = 256


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and octets. Nothing that has no end yet is ever dropped.

    Attributes:
      bodies_after, failed_bodies_after: when payloads are dropped, and those of what failed.
      history_after, history_octets: when batches and their outcomes are dropped, oldest first: by age, or
        earlier while the file's content is larger.
      idempotency_after: how long a request's name is remembered at least.
    """

    bodies_after: float = 24 * HOUR
    failed_bodies_after: float = 7 * 24 * HOUR
    history_after: float = 30 * 24 * HOUR
    history_octets: int = 1 << 30
    idempotency_after: float = 24 * HOUR


class Keeper:
    """Drops what is too old, and indexes what senders named."""

    def __init__(self, storage: Storage, keep: Keep, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._keep = keep
        self._clock = clock
        self._slice = 0
        self._failed_to = 0  # bodies up to this batch were looked through for what failed
        self.file_octets = 0

    async def refresh(self, apps: Iterable[App]) -> None:
        """Find the oldest that waits in each lane, and the size of what the file holds."""
        found, octets = await self._storage.read(_oldest)
        self.file_octets = octets
        for app in apps:
            for lane in app.lanes:
                batch = found.get(lane.number)
                lane.oldest_at = None if batch is None else (batch >> 20) / 1_000

    async def index(self) -> None:
        """Let those be found that senders brought their own apns-ids for."""
        while await self._storage.write(_index, essential=True):
            pass

    async def trim(self) -> None:
        """Drop all that is due to be dropped."""
        now, keep, write = self._clock(), self._keep, self._storage.write
        old = _id_at(now - keep.bodies_after)
        while await write(lambda connection: self._thin_failed(connection, old), essential=True):
            pass
        kept = _id_at(now - keep.failed_bodies_after)
        while await write(lambda connection: _drop_bodies(connection, old, kept), essential=True):
            pass
        ancient = _id_at(now - keep.history_after)
        while await write(lambda connection: _drop_history(connection, ancient), essential=True):
            pass
        newest = _id_at(now)
        while (await self._storage.read(_octets)) > keep.history_octets:
            if not await write(lambda connection: _drop_history(connection, newest), essential=True):
                break
        while await write(_give_pages_back, essential=True):
            pass

    async def forget_names(self) -> None:
        """Drop old names of requests: one slice of 256, by the first octet of their hashes."""
        oldest = _id_at(self._clock() - self._keep.idempotency_after)
        first, self._slice = self._slice, (self._slice + 1) % SLICES
        after = bytes([first + 1]) if first + 1 < SLICES else b"\xff" * 33

        def change(connection: sqlite3.Connection) -> None:
            values = (bytes([first]), after, oldest)
            connection.execute("DELETE FROM idempotency WHERE key >= ? AND key < ? AND batch < ?", values)
            connection.execute("DELETE FROM stream_key WHERE key >= ? AND key < ? AND stream < ?", values)

        await self._storage.write(change, essential=True)

    def _thin_failed(self, connection: sqlite3.Connection, old: int) -> bool:
        """Of batches with dead letters keep the bodies of these only."""
        rows = connection.execute(
            "SELECT DISTINCT outcome.batch FROM outcome JOIN body ON body.batch = outcome.batch"
            " WHERE outcome.batch > ? AND outcome.batch < ? AND failed > 0 AND kept = 0"
            " ORDER BY outcome.batch LIMIT 100",
            (self._failed_to, old),
        ).fetchall()
        for (batch,) in rows:
            self._failed_to = batch
            found = connection.execute(
                "SELECT head, payloads, count FROM batch JOIN body ON body.batch = batch.id WHERE id = ?",
                (batch,),
            ).fetchone()
            if found is None:
                connection.execute("UPDATE body SET kept = 1 WHERE batch = ?", (batch,))
                continue
            fates = [
                fate
                for (log,) in connection.execute("SELECT log FROM outcome WHERE batch = ?", (batch,))
                for fate in read_log(log)
                if fate.attempt.outcome != "retry"
            ]
            failed = {fate.place for fate in fates if fate.attempt.outcome == "failed"}
            if any(index < 0 for index in failed):  # all the rest failed
                failed = set(range(found[2])) - {
                    fate.place for fate in fates if fate.attempt.outcome != "failed"
                }
            head, body, count = found
            payloads = keep_payloads(head, body, count, failed)
            connection.execute("UPDATE body SET kept = 1, payloads = ? WHERE batch = ?", (payloads, batch))
        return bool(rows)


_HAS_WAITING = (
    "EXISTS (SELECT 1 FROM batch AS own JOIN waiting ON waiting.lane = own.lane AND waiting.batch = own.id"
    " WHERE own.id = {id}) OR EXISTS (SELECT 1 FROM walk WHERE walk.id = {id})"
)


def _id_at(at: float) -> int:
    return max(int(at * 1_000), 0) << 20


def _drop_bodies(connection: sqlite3.Connection, old: int, kept: int) -> bool:
    done = connection.execute(
        "DELETE FROM body WHERE batch IN"
        " (SELECT batch FROM body WHERE batch < ?1 AND (kept = 0 OR batch < ?2)"
        f" AND NOT ({_HAS_WAITING.format(id='body.batch')}) ORDER BY batch LIMIT ?3)",
        (old, kept, CHUNK),
    )
    return done.rowcount == CHUNK


def _drop_history(connection: sqlite3.Connection, before: int) -> bool:
    """The oldest batches, fan-outs and streams that wholly ended, with all that hangs on them."""
    any_dropped = False
    for table in ("batch", "fanout"):
        ids = connection.execute(
            f"SELECT json_group_array(id) FROM (SELECT id FROM {table} WHERE id < ?"
            f" AND NOT ({_HAS_WAITING.format(id=table + '.id')}) ORDER BY id LIMIT ?)",
            (before, CHUNK),
        ).fetchone()[0]
        if ids == "[]":
            continue
        any_dropped = True
        _forget_own_ids(connection, ids)
        for key, emptied in [
            ("id", table),
            *(("batch", name) for name in ("body", "outcome", "unindexed", "again")),
            ("fanout", "indexed_fanout"),
        ]:
            connection.execute(
                f"DELETE FROM {emptied} WHERE {key} IN (SELECT value FROM json_each(?))", (ids,)
            )
    done = connection.execute(
        "DELETE FROM stream WHERE id IN (SELECT id FROM stream WHERE id < ? AND NOT EXISTS (SELECT 1"
        " FROM stream_part JOIN batch ON batch.id = stream_part.batch WHERE stream_part.stream = stream.id)"
        " ORDER BY id LIMIT ?) RETURNING id",
        (before, CHUNK),
    ).fetchall()
    connection.executemany("DELETE FROM stream_part WHERE stream = ?", done)
    connection.execute(
        "DELETE FROM segment WHERE last < min(?1, coalesce((SELECT min(id) FROM batch), ?1),"
        " coalesce((SELECT min(id) FROM fanout), ?1))",
        (before,),
    )
    return any_dropped or len(done) == CHUNK


def _forget_own_ids(connection: sqlite3.Connection, ids: str) -> None:
    rows = connection.execute(
        "SELECT head, count FROM batch WHERE own AND id IN (SELECT value FROM json_each(?))", (ids,)
    ).fetchall()
    names = [(entry.apns_id,) for head, count in rows for entry in unpack_entries(head, None, count)]
    connection.executemany("DELETE FROM search WHERE apns_id = ?", [name for name in names if name[0]])


def _index(connection: sqlite3.Connection) -> bool:
    rows = connection.execute(
        "SELECT id, head, count FROM unindexed JOIN batch ON batch.id = unindexed.batch ORDER BY id LIMIT 10"
    ).fetchall()
    for batch, head, count in rows:
        connection.executemany(
            "INSERT OR REPLACE INTO search VALUES (?, ?, ?)",
            [
                (entry.apns_id, batch, index)
                for index, entry in enumerate(unpack_entries(head, None, count))
                if entry.apns_id is not None
            ],
        )
        connection.execute("DELETE FROM unindexed WHERE batch = ?", (batch,))
    return bool(rows)


def _oldest(connection: sqlite3.Connection) -> tuple[dict[int, int], int]:
    lanes = connection.execute(
        "SELECT lane, (SELECT min(batch) FROM waiting WHERE waiting.lane = lanes.lane) FROM"
        " (SELECT 2 * number AS lane FROM app UNION ALL SELECT 2 * number + 1 FROM app) AS lanes"
    )
    return {lane: batch for lane, batch in lanes if batch is not None}, _octets(connection)


def _octets(connection: sqlite3.Connection) -> int:
    pages = connection.execute("SELECT page_count FROM pragma_page_count()").fetchone()[0]
    free = connection.execute("SELECT freelist_count FROM pragma_freelist_count()").fetchone()[0]
    size = connection.execute("SELECT page_size FROM pragma_page_size()").fetchone()[0]
    return int((pages - free) * size)


def _give_pages_back(connection: sqlite3.Connection) -> bool:
    before = connection.execute("PRAGMA freelist_count").fetchone()[0]
    connection.execute("PRAGMA incremental_vacuum(256)").fetchall()
    after = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return bool(before > 256 and after < before)


async def keep_house(
    keeper: Keeper,
    apps: Callable[[], Iterable[App]],
    settle_done: Callable[[], object],
    take_up_doubtful: Callable[[], Awaitable[object]],
    fill_index: Callable[[], Awaitable[object]],
) -> None:
    """For ever: each second the oldest, the index and a slice of names; each minute the trimming."""
    seconds = 0
    while True:
        try:
            await keeper.refresh(apps())
            await keeper.index()
            await take_up_doubtful()
            await fill_index()
            if seconds % 10 == 0:
                await keeper.forget_names()
            if seconds % 60 == 0:
                settle_done()
                await keeper.trim()
        except StorageError:
            pass  # told by the storage; the next turn tries again
        seconds += 1
        await trio.sleep(TURN)
