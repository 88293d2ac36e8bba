"""The outbox in the gateway's SQLite file.

What is claimed and who waits is memory's; what was accepted and what became of it is the disk's. A batch that
is accepted goes straight to the lane's ready notifications while these are few. From the first one that finds
no room the lane is *behind*: what follows is read back from disk by pages, in the order of its acceptance,
until the newest is reached. So a backlog of millions takes the memory of a page, and a restart reads nothing
but counts.

Nothing in memory runs ahead of the disk: a batch counts as ended when the commit that says so has come back.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import msgspec
import trio

from fastpush.gateway.outbox import (
    MAX_BATCH_ENTRIES,
    MAX_BATCH_OCTETS,
    Acceptance,
    Audience,
    BatchRecord,
    Chunk,
    Claimed,
    End,
    Entry,
    Failures,
    Fanout,
    Hit,
    Idempotency,
    IdempotencyConflict,
    Outbox,
    OutboxBusy,
    Record,
    Retry,
    SearchPage,
    SentAgain,
    StreamState,
    Waiting,
    records,
    schema,
    search,
)
from fastpush.gateway.outbox.history import Keep, Keeper, keep_house
from fastpush.gateway.outbox.index import Indexer
from fastpush.gateway.outbox.lanes import NEVER, App, Batch, Lane, Memory, Walk, claimed
from fastpush.gateway.outbox.packing import pack_entries
from fastpush.gateway.outbox.settlement import Kinds, Settlement
from fastpush.gateway.storage import Job, Storage, StorageFull, StorageUnknown, Value, pour

__all__ = ["Keep", "OutboxLimits", "SqliteOutbox", "open_outbox"]

PAGE_ENTRIES = 2_000


class OutboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is held in memory, and when nothing more is taken. Normal priority gets nine tenths of each.

    Attributes:
      ready_entries, ready_octets: of notifications in memory that wait to be claimed.
      pending_octets, pending_after: of what is queued to be written; seconds for the oldest of it.
      waiting_entries, file_octets: of all that is accepted and not ended; of the file.
      fanouts: that are not walked to their end.
    """

    ready_entries: int = 20_000
    ready_octets: int = 64 << 20
    pending_octets: int = 32 << 20
    pending_after: float = 0.25
    waiting_entries: int = 5_000_000
    fanouts: int = 10_000
    file_octets: int = 2 << 30


async def open_outbox(
    storage: Storage,
    *,
    limits: OutboxLimits | None = None,
    keep: Keep | None = None,
    clock: Callable[[], float] = time.time,
) -> SqliteOutbox:
    """Open the outbox in a storage. `SqliteOutbox.run` keeps its house; start it in a nursery.

    What was being sent when the process died, and must not be sent twice, ends as unknown here.
    """
    await storage.add_schema("outbox", schema.MIGRATIONS)
    kinds = Kinds(
        accept=await storage.add_kind(schema.ACCEPT),
        fanout=await storage.add_kind(schema.FANOUT),
        outcome=await storage.add_kind(schema.OUTCOME),
        park=await storage.add_kind(schema.PARK),
        unpark=await storage.add_kind(schema.UNPARK),
        mark=await storage.add_kind(schema.MARK),
        unmark=await storage.add_kind(schema.UNMARK),
        page=await storage.add_kind(schema.PAGE),
    )
    outbox = SqliteOutbox(storage, kinds, limits or OutboxLimits(), keep or Keep(), clock)
    await outbox._load()
    return outbox


@final
class SqliteOutbox:
    """An `Outbox`; made by `open_outbox`, used from one trio program."""

    def __init__(
        self, storage: Storage, kinds: Kinds, limits: OutboxLimits, keep: Keep, clock: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._kinds = kinds
        self._limits = limits
        self._clock = clock
        self._memory = Memory()
        self._keeper = Keeper(storage, keep, clock)
        self._indexer = Indexer(storage)
        self._doubtful: dict[int, int] = {}  # the sizes of batches that may have been stored
        self._counted: set[int] = set()  # batches whose earlier ends were counted before their lane was read
        self._last_id = 0
        # Not `secrets`: the kernel's call lets go of Python's lock, which costs 90 µs under load.
        self._chance = random.Random(os.urandom(16))
        self._first_log = self._last_log = 0
        self._naming = trio.Lock()
        self._changed = trio.Event()
        self._version = 1
        self._announced = 0.0
        self.max_waiting: dict[str, int] = {}
        """By app: when as many wait nothing more of it is taken. May be changed at any time."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._memory.apps)} apps, {self._memory.count} waiting>"

    async def _load(self) -> None:
        storage, memory = self._storage, self._memory
        self._last_id = await storage.read(records.last_id)
        self._last_log = await storage.write(records.count_start, essential=True) << 32
        now, log_id = self._clock(), self._next_log()
        self._first_log = log_id + 1  # what ends here has ended before
        await storage.write(
            lambda connection: records.end_what_was_sending(connection, log_id, now), essential=True
        )
        state = await storage.read(records.state)
        for number, name, paused in state.apps:
            memory.add_app(App(number, name, bool(paused)))
        for number, count in state.waiting:
            lane = memory.lanes[number]
            lane.behind = True
            memory.count_down(lane, -count)
        for number, due in state.due:
            memory.lanes[number].next_due = due
        for number, fanout, walked, parked in state.fanouts:
            memory.add_walk(Walk(memory.lanes[number], fanout, walked, parked))
        await self._keeper.refresh(memory.apps.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Trim what is old, index what was named, and know the oldest; until cancelled."""
        task_status.started()
        await keep_house(
            self._keeper,
            self._memory.apps.values,
            self._settle_done,
            self.take_up_doubtful,
            self._fill_index,
        )

    async def _fill_index(self) -> None:
        await self._indexer.run_once(self._clock())

    def _settle_done(self) -> None:
        if self._memory.done:
            self._submit_settlement(self._settlement())

    def _next_id(self) -> int:
        """Milliseconds and 20 bits of sequence, which begins at random; it never goes back."""
        now = int(self._clock() * 1_000) << 20
        self._last_id = self._last_id + 1 if self._last_id >= now else now | self._chance.getrandbits(10)
        return self._last_id

    def _next_log(self) -> int:
        """Grows over all starts, whatever the clock does."""
        self._last_log += 1
        return self._last_log

    def _notify(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def _app(self, name: str) -> App:
        found = self._memory.apps.get(name)
        if found is not None:
            return found
        async with self._naming:
            if name not in self._memory.apps:
                number = await self._storage.write(lambda connection: records.add_app(connection, name))
                self._memory.add_app(App(number, name, paused=False))
            return self._memory.apps[name]

    # Accepting.

    async def accept(
        self,
        app: str,
        entries: Sequence[Entry],
        *,
        source: str = "",
        idempotency: Idempotency | None = None,
        chunk: Chunk | None = None,
        also: Callable[[sqlite3.Connection], object] | None = None,
    ) -> Acceptance:
        more = None if also is None else lambda connection, _: also(connection)
        return await self._accept(app, entries, source, idempotency, chunk, more)

    async def _accept(
        self,
        app: str,
        entries: Sequence[Entry],
        source: str,
        idempotency: Idempotency | None = None,
        chunk: Chunk | None = None,
        also: Callable[[sqlite3.Connection, Acceptance], object] | None = None,
    ) -> Acceptance:
        if not 1 <= len(entries) <= MAX_BATCH_ENTRIES:
            raise ValueError(f"{len(entries)} entries; 1 to {MAX_BATCH_ENTRIES:,} are accepted at once")
        octets = sum([len(entry.payload) for entry in entries])
        if octets > MAX_BATCH_OCTETS:
            raise ValueError(f"payloads of {octets:,} octets; {MAX_BATCH_OCTETS:,} are accepted at once")
        high = any(entry.high for entry in entries)
        owner = await self._app(app)
        self._admit(owner, octets, high)
        lane = owner.high if high else owner.normal
        own = {index: entry.apns_id for index, entry in enumerate(entries) if entry.apns_id is not None}
        head, payloads = pack_entries(entries)
        acceptance = Acceptance(
            self._next_id(), len(entries), self._clock(), False, self._chance.getrandbits(32), own
        )
        row = (
            self._kinds.accept, acceptance.batch, lane.number, len(entries), acceptance.received_at, source,
            acceptance.tag, int(bool(own)), head, payloads, *_name(idempotency),
        )  # fmt: skip
        return await self._store(
            acceptance,
            row,
            idempotency,
            None if chunk is None and also is None else _accepting(acceptance, row, chunk, also),
            lambda: self._queue(lane, acceptance, entries, octets),
            lambda: self._doubt(lane, acceptance),
        )

    async def accept_fanout(
        self,
        app: str,
        audience: Audience,
        entry: Entry,
        *,
        source: str = "",
        idempotency: Idempotency | None = None,
        also: Callable[[sqlite3.Connection], object] | None = None,
        rows: Callable[[int], Sequence[Sequence[Value]]] | None = None,
    ) -> Acceptance:
        if rows is not None and (idempotency is not None or also is not None):
            raise ValueError("rows go with neither an idempotency key nor `also`")
        if entry.device_token is not None or entry.apns_id is not None:
            raise ValueError("a fan-out's entry has device_token or apns_id; each device gets its own")
        owner = await self._app(app)
        self._admit(owner, len(entry.payload), entry.high)
        lane = owner.high if entry.high else owner.normal
        head, payloads = pack_entries([entry])
        acceptance = Acceptance(self._next_id(), 0, self._clock(), False, self._chance.getrandbits(32))
        fanout = Fanout(
            acceptance.batch, app, audience, entry, acceptance.received_at, "", acceptance.tag
        )  # fmt: skip
        row = (
            self._kinds.fanout, acceptance.batch, lane.number, acceptance.received_at, source, acceptance.tag,
            msgspec.msgpack.encode(audience), None, head, payloads, *_name(idempotency),
        )  # fmt: skip

        def stored() -> None:
            if acceptance.batch <= lane.purged:
                return
            self._memory.add_walk(Walk(lane, fanout, walked=False, parked=0))
            self._notify()

        return await self._store(
            acceptance,
            row,
            idempotency,
            None
            if also is None
            else _accepting(acceptance, row, None, lambda connection, _: also(connection)),
            stored,
            lambda: self._doubtful.__setitem__(acceptance.batch, 0),
            () if rows is None else rows(acceptance.batch),
        )

    def _admit(self, app: App, octets: int, high: bool) -> None:
        """Refuse what would be too much. The last tenth of each limit is for high priority."""
        storage, limits = self._storage, self._limits
        if storage.full:
            raise StorageFull(f"{storage.path}: the disk is below its low-water mark; nothing was stored")
        share = 1.0 if high else 0.9
        if (
            storage.pending_octets + octets > share * limits.pending_octets
            or storage.pending_after > share * limits.pending_after
        ):
            raise OutboxBusy("the disk does not keep up", 1.0)
        if (
            self._memory.count >= share * limits.waiting_entries
            or self._keeper.file_octets > share * limits.file_octets
        ):
            raise OutboxBusy(f"{self._memory.count:,} notifications wait to be sent", 30.0)
        if len(self._memory.walks) >= share * limits.fanouts:
            raise OutboxBusy(f"{len(self._memory.walks):,} fan-outs wait to be sent", 30.0)
        most = self.max_waiting.get(app.name)
        if most is not None and app.count + len(app.walks) >= share * most:
            raise OutboxBusy(f"{app.count:,} notifications of {app.name} wait to be sent", 30.0)

    async def _store(
        self,
        acceptance: Acceptance,
        row: tuple[Any, ...],
        idempotency: Idempotency | None,
        change: Callable[[sqlite3.Connection], list[Any] | None] | None,
        stored: Callable[[], None],
        doubted: Callable[[], None],
        more: Sequence[Sequence[Value]] = (),
    ) -> Acceptance:
        """Write an acceptance, or find what was accepted in its place before.

        What it means for memory is done when the commit comes back, whether or not anybody still waits.
        """
        done = trio.Event()

        def finished(found: list[Any] | None, error: Exception | None) -> None:
            if isinstance(error, StorageUnknown):
                doubted()
            elif error is None and (found is None or found[1] == acceptance.batch):
                stored()
            done.set()

        octets = sum([len(value) for one in (row, *more) for value in one if isinstance(value, bytes)])
        job: Job[list[Any]] = Job(finished, octets=octets)
        if change is not None:
            job.change = change  # type: ignore[assignment]  # None stands for no answer
        else:
            job.rows = (row, *more)
            if idempotency is not None:
                job.question, job.key = schema.KNOWN, row[KEY_COLUMN]
        self._storage.submit(job)
        await done.wait()
        if job.error is not None:
            raise job.error
        found = job.value
        if found is None or found[1] == acceptance.batch:
            return acceptance
        digest, batch, count, received_at, tag, own = found
        if idempotency is None or bytes.fromhex(digest) != idempotency.digest:
            raise IdempotencyConflict("this idempotency key was used before, for another content")
        if batch in self._doubtful:
            await self.take_up_doubtful()  # refused as unknown, and here: promised from now on
        ids = await self._storage.read(lambda connection: records.own_ids(connection, batch)) if own else {}
        return Acceptance(batch, count, received_at, True, tag, ids)

    def _queue(self, lane: Lane, acceptance: Acceptance, entries: Sequence[Entry], octets: int) -> None:
        """Let a durable batch be claimed: from memory if there is room, otherwise from disk."""
        memory, limits, number = self._memory, self._limits, acceptance.batch
        if number <= lane.purged:
            lane.app.purged_late += len(entries)
            return
        memory.count_down(lane, -len(entries))
        if lane.app.oldest_at is None:
            lane.app.oldest_at = acceptance.received_at
        lane.newest = max(lane.newest, number)
        if lane.cursor < number:  # otherwise it was read back already
            room = (
                memory.ready_entries + len(entries) <= limits.ready_entries
                and memory.ready_octets + octets <= limits.ready_octets
            )
            if lane.behind or not room:
                lane.behind = True
            else:
                lane.cursor = number
                batch = memory.batches[number] = Batch(lane, len(entries), set(), whole=True)
                memory.make_ready(lane, batch, number, acceptance.tag, enumerate(entries))
        self._notify()

    def _doubt(self, lane: Lane, acceptance: Acceptance) -> None:
        """Read the lane again from before a batch that may have been stored all the same."""
        self._doubtful[acceptance.batch] = acceptance.count
        lane.cursor = min(lane.cursor, acceptance.batch - 1)
        lane.newest = max(lane.newest, acceptance.batch)
        lane.behind = True
        self._notify()

    async def take_up_doubtful(self) -> None:
        doubtful = {number for number, count in self._doubtful.items() if not count}
        if not doubtful or not self._storage.healthy:
            return
        state = await self._storage.read(records.state)
        for number, fanout, walked, parked in state.fanouts:
            lane = self._memory.lanes[number]
            if fanout.id in doubtful and fanout.id in self._doubtful and fanout.id > lane.purged:
                self._memory.add_walk(Walk(lane, fanout, walked, parked))
        for fanout_id in doubtful:
            self._doubtful.pop(fanout_id, None)
        self._notify()

    # Uploads in chunks.

    async def open_stream(
        self, app: str, *, source: str = "", idempotency: Idempotency | None = None
    ) -> StreamState:
        owner = await self._app(app)
        stream, now, key = self._next_id(), self._clock(), _name(idempotency)[0]
        return await self._storage.write(
            lambda connection: records.open_stream(connection, stream, owner.number, now, source, key)
        )

    async def finish_stream(self, stream: int, answer: bytes) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE stream SET answer = ? WHERE id = ?", (answer, stream))

        await self._storage.write(change, essential=True)

    # Claiming.

    async def claim(self, app: str, limit: int, *, high: bool | None = None) -> list[Claimed]:
        await trio.lowlevel.checkpoint()
        owner = self._memory.apps.get(app)
        claims: list[Claimed] = []
        if owner is None or owner.paused:
            return claims
        try:
            for lane in owner.lanes:
                if high is None or high is (lane is owner.high):
                    await self._take(lane, limit, claims)
            await self._mark_sending([claim for claim in claims if claim.entry.delivery == "once"])
        except BaseException:
            self._memory.put_back(claims)
            self._notify()
            raise
        return claims

    async def _take(self, lane: Lane, limit: int, claims: list[Claimed]) -> None:
        """Fill up to `limit` claims: retries that are due, then what has waited longest."""
        if not lane.due and lane.next_due <= self._clock() * 1_000 and len(claims) < limit:
            await self._read_due(lane)
        while lane.due and len(claims) < limit:
            claims.append(lane.due.popleft())
        while len(claims) < limit:
            if lane.ready:
                claims += self._memory.take_ready(lane, limit - len(claims))
            elif lane.behind:
                await self._read_lane(lane)
            else:
                break

    async def _mark_sending(self, claims: Sequence[Claimed]) -> None:
        marking = [claim for claim in claims if claim.index >= 0]
        if not marking:
            return
        await self._storage.insert(
            [(self._kinds.mark, claim.batch, claim.index) for claim in marking], essential=True
        )
        for claim in marking:
            self._memory.batches[claim.batch].marked.add(claim.index)

    async def _read_lane(self, lane: Lane) -> None:
        """Read the next page of a lane that is behind."""
        async with lane.reading:
            if lane.ready or not lane.behind:
                return
            after, newest = lane.cursor, lane.newest
            lane.ended_since, lane.parked_since = {}, {}
            page = await self._storage.read(
                lambda connection: records.lane_page(
                    connection, lane.number, after, PAGE_ENTRIES, self._first_log
                )
            )
            if lane.cursor != after:
                return  # a doubtful batch set it back meanwhile
            for found in page:
                lane.cursor = found.batch
                self._take_up(lane, found)
            if not page and lane.newest == newest:
                # All that was committed before this page was read is in memory, and nothing came since.
                lane.behind = False

    def _take_up(self, lane: Lane, found: records.Found) -> None:
        """Let a batch be claimed that was read from disk, unless it is in memory already."""
        memory = self._memory
        if found.batch <= lane.purged:
            return
        memory.count_down(lane, -self._doubtful.pop(found.batch, 0))
        if found.batch in self._counted:
            self._counted.discard(found.batch)
        else:
            memory.count_down(lane, found.ended_earlier)
        batch = memory.batches.get(found.batch)
        if batch is None:
            batch = self._batch_of(lane, found, whole=True)
            if found.rest or not batch.left:
                memory.done.append((found.batch, lane.number))
                return
            memory.batches[found.batch] = batch
        elif batch.whole:
            return
        batch.whole = True
        gone = batch.ended | found.ended | found.parked | lane.parked_since.get(found.batch, set())
        todo = ((index, entry) for index, entry in enumerate(found.entries) if index not in gone)
        memory.make_ready(lane, batch, found.batch, found.tag, todo)
        memory.let_go(found.batch)

    def _batch_of(self, lane: Lane, found: records.Found, *, whole: bool) -> Batch:
        """A batch as it was read, and what was settled while it was."""
        ended = found.ended | lane.ended_since.get(found.batch, set())
        return Batch(lane, found.size, ended, whole=whole)

    async def _read_due(self, lane: Lane) -> None:
        """Read the next retries that are due."""
        memory = self._memory
        async with lane.reading:
            now, cursor = int(self._clock() * 1_000), lane.due_cursor
            if lane.due or lane.next_due > now:
                return
            lane.ended_since, lane.parked_since = {}, {}
            # Behind all that is due now; what is parked while this is read is due later.
            lane.due_cursor, lane.next_due = (now + 1, 0, 0, ""), NEVER
            try:
                page = await self._storage.read(
                    lambda connection: records.due_page(
                        connection, lane.number, now, cursor, PAGE_ENTRIES // 4, self._first_log
                    )
                )
            except BaseException:
                lane.due_cursor, lane.next_due = cursor, min(lane.next_due, now)
                raise
            stale: list[tuple[Any, ...]] = []
            for due, number, index, device, attempts in page.rows:
                if number <= lane.purged:
                    continue
                if device:
                    walk = memory.walks.get(number)
                    if walk is None:
                        continue
                    entry = msgspec.structs.replace(walk.fanout.entry, device_token=device)
                    claim = Claimed(number, -1, walk.fanout.apns_id(device), entry, attempts)
                else:
                    found = page.batches.get(number)
                    if found is None or found.rest or index in found.ended:
                        # The process died in the middle of a purge.
                        stale.append((self._kinds.unpark, lane.number, due, number, index, ""))
                        continue
                    batch = memory.batches.get(number)
                    if batch is None:
                        if number > lane.cursor and number not in self._counted:
                            # It may be gone before the lane is read that far.
                            self._counted.add(number)
                            memory.count_down(lane, found.ended_earlier)
                        batch = self._batch_of(lane, found, whole=number <= lane.cursor)
                        memory.batches[number] = batch
                    batch.held += 1
                    claim = claimed(number, index, found.tag, found.entries[index], attempts)
                memory.parked[(number, index, device)] = (lane, due)
                lane.due.append(claim)
            if page.more:
                lane.due_cursor = page.rows[-1][:4]
            if page.next_due is not None:
                lane.next_due = min(lane.next_due, page.next_due)
                self._notify()  # who began to wait while it was read knew of no due time
            if stale:
                self._storage.submit(Job(rows=stale, essential=True))

    async def survey(
        self, app: str, after: int, *, high: bool
    ) -> tuple[list[tuple[str, str, int, int]], int | None]:
        await trio.lowlevel.checkpoint()
        owner = self._memory.apps.get(app)
        if owner is None:
            return [], None
        number = (owner.high if high else owner.normal).number
        page = await self._storage.read(
            lambda connection: records.lane_page(connection, number, after, PAGE_ENTRIES, self._first_log)
        )
        names = [
            (entry.device_token, entry.collapse_id, found.batch, index)
            for found in page
            if not found.rest
            for index, entry in enumerate(found.entries)
            if entry.collapse_id is not None and index not in found.ended and entry.device_token is not None
        ]
        return names, page[-1].batch if page else None

    async def claim_fanouts(self, app: str) -> list[Fanout]:
        await trio.lowlevel.checkpoint()
        owner = self._memory.apps.get(app)
        if owner is None or owner.paused:
            return []
        walking = [walk.fanout for walk in owner.walks.values() if not walk.walked]
        return sorted(walking, key=lambda fanout: (not fanout.entry.high, fanout.id))

    async def begin_page(self, fanout: int, last_device_token: str, count: int) -> None:
        walk = self._memory.walks.get(fanout)
        if walk is None or walk.fanout.entry.delivery != "once":  # without one it was purged
            await trio.lowlevel.checkpoint()
            return

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE walk SET mark = ?, marked = ? WHERE id = ?", (last_device_token, count, fanout)
            )

        await self._storage.write(change, essential=True)

    # Settling.

    async def settle(self, ends: Sequence[End], retries: Sequence[Retry] = ()) -> None:
        settlement = self._settlement()
        settlement.add(ends, retries)
        await self._record(settlement)

    async def settle_page(
        self,
        fanout: int,
        cursor: str,
        *,
        accepted: int,
        ends: Sequence[End] = (),
        retries: Sequence[Retry] = (),
        last: bool = False,
    ) -> None:
        settlement = self._settlement()
        settlement.add(ends, retries, (fanout, cursor, accepted, last))
        await self._record(settlement)

    def _settlement(self) -> Settlement:
        return Settlement(self._memory, self._kinds, self._next_log(), self._clock())

    async def _record(self, settlement: Settlement) -> None:
        done = trio.Event()
        job = self._submit_settlement(settlement, done.set)
        if job is None:
            await trio.lowlevel.checkpoint()
            return
        await done.wait()
        if job.error is not None:
            raise job.error

    def _submit_settlement(
        self, settlement: Settlement, done: Callable[[], None] = lambda: None
    ) -> Job[None] | None:
        settlement.close()
        if not settlement.rows:
            return None

        def finished(_: None, error: Exception | None) -> None:
            if error is not None:
                settlement.failed()
            else:
                self._indexer.touch(settlement.batches)
                if settlement.recorded():
                    self._notify()
            done()

        job: Job[None] = Job(finished, rows=settlement.rows, essential=True)
        self._storage.submit(job)
        return job

    # What became of it, and what waits.

    async def find(self, apns_id: bytes) -> Record | None:
        return await self._storage.read(lambda connection: records.find(connection, apns_id))

    async def find_batch(self, batch: int, *, limit: int = 1_000) -> BatchRecord | None:
        return await self._storage.read(lambda connection: records.find_batch(connection, batch, limit))

    async def search(
        self,
        *,
        app: str | None = None,
        outcome: str | None = None,
        reason: str | None = None,
        device_ends: str | None = None,
        source: str | None = None,
        apns_id_prefix: str | None = None,
        after: float | None = None,
        before: float | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> SearchPage:
        query = search.Query(app, outcome, reason, device_ends, source, apns_id_prefix, after, before)
        indexed = self._indexer.indexed
        return await self._storage.read(
            lambda connection: search.search(connection, query, cursor, limit, indexed)
        )

    async def wait_for_index(self, batch: int) -> None:
        await self._indexer.wait_for(batch)

    async def failures(self, app: str | None = None) -> list[Failures]:
        indexed = self._indexer.indexed
        return await self._storage.read(lambda connection: search.failures(connection, indexed, app))

    async def send_again(
        self,
        *,
        apns_id: bytes | None = None,
        app: str | None = None,
        reason: str | None = None,
        expires_after: float = 86_400.0,
    ) -> SentAgain:
        if apns_id is not None:
            return await self._send_again([await self._dead_letter(apns_id)], expires_after)
        total, cursor = SentAgain(0, (), 0), None
        while True:
            page = await self.search(app=app, outcome="failed", reason=reason, cursor=cursor, limit=1_000)
            done = await self._send_again([hit for hit in page.rows if not hit.sent_again], expires_after)
            total = SentAgain(total.count + done.count, total.batches + done.batches, total.gone + done.gone)
            cursor = page.cursor
            if cursor is None:
                return total

    async def _dead_letter(self, apns_id: bytes) -> Hit:
        record = await self.find(apns_id)
        if record is None:
            raise LookupError("there is no such notification")
        if record.outcome in (None, "accepted"):
            raise LookupError("it was accepted by APNs" if record.outcome else "it has no end yet")
        if record.sent_again is not None:
            raise LookupError("it was sent again already")
        return Hit(
            apns_id, record.batch, record.index, record.entry.device_token, record.app, record.source,
            record.received_at, record.outcome,
        )  # fmt: skip

    async def _send_again(self, hits: Sequence[Hit], expires_after: float) -> SentAgain:
        """Accept what is left of these; a batch for each app and source."""
        contents = await self._storage.read(lambda connection: records.contents(connection, hits))
        groups: dict[tuple[str, str], list[tuple[Hit, Entry]]] = {}
        for hit, entry in reversed(list(zip(hits, contents, strict=True))):  # the oldest first
            if entry is not None:
                groups.setdefault((hit.app, hit.source), []).append((hit, entry))
        expiration = int(self._clock() + expires_after)
        count, batches = 0, []
        for (app, source), group in groups.items():
            entries = [
                msgspec.structs.replace(entry, apns_id=None, expiration=entry.expiration and expiration)
                for _, entry in group
            ]
            try:
                accepted = await self._accept(
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

    def waiting(self) -> dict[str, Waiting]:
        return {
            app.name: Waiting(app.count, len(app.walks), app.oldest_at if app.count else None, app.paused)
            for app in self._memory.apps.values()
        }

    async def wait_for_work(self, seen: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        while self._version == seen:
            now = self._clock() * 1_000
            due = min(
                (
                    lane.next_due
                    for lane in self._memory.lanes.values()
                    if lane.next_due > self._announced and not lane.app.paused
                ),
                default=NEVER,
            )
            with trio.move_on_after(max(0.0, due - now) / 1_000) as waiting:
                await self._changed.wait()
            if waiting.cancelled_caught and self._clock() * 1_000 >= due:
                self._announced = due
                self._version += 1
        return self._version

    # An operator's commands.

    async def pause(self, app: str) -> None:
        await self._set_paused(app, True)

    async def resume(self, app: str) -> None:
        await self._set_paused(app, False)
        self._notify()

    async def _set_paused(self, name: str, paused: bool) -> None:
        app = await self._app(name)

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE app SET paused = ? WHERE number = ?", (paused, app.number))

        await self._storage.write(change, essential=True)
        app.paused = paused

    async def purge(self, app: str) -> int:
        owner = await self._app(app)
        now, upto = self._clock(), self._last_id
        # From here on nothing of it is handed out, and what comes back from the disk is left out.
        purged = self._memory.purge(owner, upto)
        for lane in owner.lanes:
            await self._purge_lane(lane, upto, now)
        return purged + owner.purged_late

    async def _purge_lane(self, lane: Lane, upto: int, now: float) -> None:
        """In chunks, between which others commit."""
        number, log_id, write = lane.number, self._next_log(), self._storage.write
        async with lane.reading:
            # First: what was accepted before is on disk once the first of these comes back.
            while await write(
                lambda connection: records.purge(connection, number, upto, log_id, now, 1_000), essential=True
            ):
                pass
            await write(
                lambda connection: records.purge_fanouts(connection, number, upto, log_id, now),
                essential=True,
            )
            while await write(
                lambda connection: records.purge_retries(connection, number, upto, 1_000), essential=True
            ):
                pass
            lane.cursor = max(lane.cursor, upto)


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


if TYPE_CHECKING:
    _KEEPS_THE_CONTRACT: type[Outbox] = SqliteOutbox

KEY_COLUMN = 10


def _name(idempotency: Idempotency | None) -> tuple[bytes | None, bytes | None]:
    """Key and digest as they are stored."""
    if idempotency is None:
        return None, None
    named = f"{len(idempotency.principal)}:{idempotency.principal}{idempotency.key}"
    return hashlib.sha256(named.encode()).digest()[:20], idempotency.digest


def _accepting(
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
