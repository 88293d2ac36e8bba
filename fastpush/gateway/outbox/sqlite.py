"""The outbox in the gateway's SQLite file.

What is claimed and who waits is memory's; what was accepted and what became of it is the disk's. So a backlog
of millions takes the memory of a page, and a restart reads nothing but counts. backlog.py has how what waits
gets from disk into memory, settlement.py how what became of it gets back, search.py and dead_letters.py what
is asked and done later.

Nothing in memory runs ahead of the disk: a batch counts as ended when the commit that says so has come back.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
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
    FanoutPage,
    Idempotency,
    IdempotencyConflict,
    Outbox,
    OutboxBusy,
    Passage,
    Record,
    Retry,
    SearchPage,
    SentAgain,
    StreamState,
    Waiting,
    dead_letters,
    fanouts,
    records,
    schema,
    search,
)
from fastpush.gateway.outbox.accepting import KEY_COLUMN, accepting, name_of
from fastpush.gateway.outbox.backlog import Backlog
from fastpush.gateway.outbox.history import Keep, Keeper, keep_house
from fastpush.gateway.outbox.index import Indexer
from fastpush.gateway.outbox.lanes import App, Memory, Walk
from fastpush.gateway.outbox.origin import mark
from fastpush.gateway.outbox.packing import pack_entries
from fastpush.gateway.outbox.settlement import Kinds, Settlement
from fastpush.gateway.outbox.work import Work
from fastpush.gateway.storage import Job, Storage, StorageError, StorageFull, StorageUnknown, Value

__all__ = ["Keep", "OutboxLimits", "SqliteOutbox", "open_outbox"]

AGAIN_AT_ONCE = 1_000  # dead letters


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
        self._work = Work(self._memory, clock)
        self._keeper = Keeper(storage, keep, clock)
        self._indexer = Indexer(storage)
        self._backlog = Backlog(
            storage, self._memory, kinds, clock, self._work,
            ready_entries=limits.ready_entries, ready_octets=limits.ready_octets,
        )  # fmt: skip
        self._last_id = 0
        # Not `secrets`: the kernel's call lets go of Python's lock, which costs 90 µs under load.
        self._chance = random.Random(os.urandom(16))
        self._last_log = 0
        self._naming = trio.Lock()
        self.max_waiting: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._memory.apps)} apps, {self._memory.count} waiting>"

    async def _load(self) -> None:
        storage, memory = self._storage, self._memory
        self._last_id = await storage.read(records.last_id)
        self._last_log = await storage.write(records.count_start, essential=True) << 32
        now, log_id = self._clock(), self._next_log()
        self._backlog.first_log = log_id + 1  # what ends here has ended before
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
            self._backlog.take_up_doubtful,
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
        mark(entries, source)
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
            acceptance.tag, int(bool(own)), head, payloads, *name_of(idempotency),
        )  # fmt: skip
        return await self._store(
            owner,
            acceptance,
            row,
            idempotency,
            None if chunk is None and also is None else accepting(acceptance, row, chunk, also),
            lambda: self._backlog.add(lane, acceptance, entries, octets),
            lambda: self._backlog.doubt(lane, acceptance),
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
        mark([entry], source)
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
            msgspec.msgpack.encode(audience), None, head, payloads, *name_of(idempotency),
        )  # fmt: skip

        def stored() -> None:
            if acceptance.batch <= lane.purged:
                return
            self._memory.add_walk(Walk(lane, fanout, walked=False, parked=0))
            self._work.notify()

        return await self._store(
            owner,
            acceptance,
            row,
            idempotency,
            None
            if also is None
            else accepting(acceptance, row, None, lambda connection, _: also(connection)),
            stored,
            lambda: self._backlog.doubt_fanout(acceptance.batch),
            () if rows is None else rows(acceptance.batch),
        )

    def _admit(self, app: App, octets: int, high: bool) -> None:
        """Refuse what would be too much. The last tenth of each limit is for high priority.

        What is on its way to the disk counts, too; so nothing may be awaited between this and `_store`.
        """
        storage, limits, memory = self._storage, self._limits, self._memory
        if storage.full:
            raise StorageFull(f"{storage.path}: the disk is below its low-water mark; nothing was stored")
        share = 1.0 if high else 0.9
        if (
            storage.pending_octets + octets > share * limits.pending_octets
            or storage.pending_after > share * limits.pending_after
        ):
            raise OutboxBusy("the disk does not keep up", 1.0)
        if (
            memory.count + memory.coming >= share * limits.waiting_entries
            or self._keeper.file_octets > share * limits.file_octets
        ):
            raise OutboxBusy(f"{memory.count + memory.coming:,} notifications wait to be sent", 30.0)
        walks = len(memory.walks) + memory.coming_walks
        if walks >= share * limits.fanouts:
            raise OutboxBusy(f"{walks:,} fan-outs wait to be sent", 30.0)
        most, waiting = self.max_waiting.get(app.name), app.count + len(app.walks) + app.coming
        if most is not None and waiting >= share * most:
            raise OutboxBusy(f"{waiting:,} notifications and fan-outs of {app.name} wait", 30.0)

    async def _store(
        self,
        app: App,
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
            arrived()
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
        arrived = self._memory.expect(app, acceptance.count)
        await done.wait()
        if job.error is not None:
            raise job.error
        found = job.value
        if found is None or found[1] == acceptance.batch:
            return acceptance
        digest, batch, count, received_at, tag, own = found
        if idempotency is None or bytes.fromhex(digest) != idempotency.digest:
            raise IdempotencyConflict("this idempotency key was used before, for another content")
        if self._backlog.is_doubtful(batch):
            await self._backlog.take_up_doubtful()  # refused as unknown, and here: promised from now on
        ids = await self._storage.read(lambda connection: records.own_ids(connection, batch)) if own else {}
        return Acceptance(batch, count, received_at, True, tag, ids)

    def walking(self) -> dict[int, Fanout]:
        return {number: walk.fanout for number, walk in self._memory.walks.items()}

    @property
    def starts(self) -> int:
        return self._last_log >> 32

    async def take_up_doubtful(self) -> None:
        await self._backlog.take_up_doubtful()

    # Uploads in chunks.

    async def open_stream(
        self, app: str, *, source: str = "", idempotency: Idempotency | None = None
    ) -> StreamState:
        owner = await self._app(app)
        stream, now, key = self._next_id(), self._clock(), name_of(idempotency)[0]
        return await self._storage.write(
            lambda connection: records.open_stream(connection, stream, owner.number, now, source, key)
        )

    async def finish_stream(self, stream: int, answer: bytes) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE stream SET answer = ? WHERE id = ?", (answer, stream))

        await self._storage.write(change, essential=True)

    # Claiming.

    async def claim(
        self, app: str, limit: int, *, high: bool | None = None, retries: int | None = None
    ) -> list[Claimed]:
        await trio.lowlevel.checkpoint()
        owner = self._memory.apps.get(app)
        claims: list[Claimed] = []
        if owner is None or owner.paused:
            return claims
        left = limit if retries is None else retries
        try:
            for lane in owner.lanes:
                if high is None or high is (lane is owner.high):
                    left -= await self._backlog.take(lane, limit, claims, left)
            await self._mark_sending([claim for claim in claims if claim.entry.delivery == "once"])
        except BaseException:
            self._memory.put_back(claims)
            self._work.notify()
            raise
        return claims

    async def _mark_sending(self, claims: Sequence[Claimed]) -> None:
        marking = [claim for claim in claims if claim.index >= 0]
        if not marking:
            return
        await self._storage.insert(
            [(self._kinds.mark, claim.batch, claim.index) for claim in marking], essential=True
        )
        for claim in marking:
            self._memory.batches[claim.batch].marked.add(claim.index)

    async def survey(
        self, app: str, after: int, *, high: bool
    ) -> tuple[list[tuple[str, str, int, int]], int | None]:
        await trio.lowlevel.checkpoint()
        owner = self._memory.apps.get(app)
        if owner is None:
            return [], None
        return await self._backlog.survey(owner.high if high else owner.normal, after)

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
                    self._work.notify()
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

    async def fanouts(
        self,
        *,
        app: str | None = None,
        source: str | None = None,
        tags: Collection[str] | None = None,
        after: float | None = None,
        before: float | None = None,
        below: int | None = None,
        limit: int = 50,
    ) -> FanoutPage:
        low = 0 if after is None else int(after * 1_000) << 20
        high = search.LAST if before is None else int(before * 1_000) << 20
        if below is not None:
            high = min(high, below)
        return await self._storage.read(
            lambda connection: fanouts.fanouts(connection, app, source, tags, low, high, limit)
        )

    async def passages(self, batches: Sequence[int], device_token: str) -> dict[int, Passage]:
        return await self._storage.read(
            lambda connection: fanouts.passages(connection, batches, device_token)
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
        again = partial(dead_letters.send_again, self._storage, self._accept)
        expiration = int(self._clock() + expires_after)
        if apns_id is not None:
            done = await again([dead_letters.dead_letter(await self.find(apns_id))], expiration=expiration)
            if done.meanwhile:
                raise LookupError("it was sent again already")
            return done
        total, cursor = SentAgain(0, (), 0), None
        while True:
            try:
                page = await self.search(
                    app=app, outcome="failed", reason=reason, cursor=cursor, limit=AGAIN_AT_ONCE
                )
                done = await again([hit for hit in page.rows if not hit.sent_again], expiration=expiration)
            except (OutboxBusy, StorageError) as error:
                if not total.count:
                    raise
                return msgspec.structs.replace(total, stopped=str(error))
            total = SentAgain(
                total.count + done.count,
                total.batches + done.batches,
                total.gone + done.gone,
                total.meanwhile + done.meanwhile,
                done.stopped,
            )
            cursor = page.cursor
            if cursor is None or total.stopped:
                return total

    def waiting(self) -> dict[str, Waiting]:
        return {
            app.name: Waiting(
                app.count, len(app.walks), app.oldest_in(app.high), app.oldest_in(app.normal), app.paused
            )
            for app in self._memory.apps.values()
        }

    async def wait_for_work(self, seen: int = 0) -> int:
        return await self._work.wait(seen)

    # An operator's commands.

    async def pause(self, app: str) -> None:
        await self._set_paused(app, True)

    async def resume(self, app: str) -> None:
        await self._set_paused(app, False)
        self._work.notify()

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
            await self._backlog.purge(lane, upto, self._next_log(), now)
        return purged + owner.purged_late


if TYPE_CHECKING:
    _KEEPS_THE_CONTRACT: type[Outbox] = SqliteOutbox
