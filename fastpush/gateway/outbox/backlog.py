"""What waits on disk, and how it gets into memory: a lane's batches by pages, and retries that are due.

A batch that was accepted goes straight to the lane's ready notifications while these are few. From the first
one that finds no room the lane is *behind*: what follows is read back by pages until the newest is reached.
Reading overtakes nothing: what was settled while a page was on its way is left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import msgspec

from fastpush.gateway.outbox import Acceptance, Claimed, Entry, records
from fastpush.gateway.outbox.lanes import NEVER, Batch, Lane, Memory, Walk, claimed
from fastpush.gateway.outbox.settlement import Kinds
from fastpush.gateway.outbox.work import Work
from fastpush.gateway.storage import Job, Storage

__all__ = ["Backlog"]

PAGE_ENTRIES = 2_000


@final
class Backlog:
    """Fills the lanes of a `Memory`.

    Args:
      ready_entries, ready_octets: how much may be ready in memory, over all lanes.
      work: told when something may be claimed that could not be before.

    Attributes:
      first_log: the first id of a log of this start; what is in an earlier one ended before it.
    """

    def __init__(
        self,
        storage: Storage,
        memory: Memory,
        kinds: Kinds,
        clock: Callable[[], float],
        work: Work,
        *,
        ready_entries: int,
        ready_octets: int,
    ) -> None:
        self.first_log = 0
        self._storage = storage
        self._memory = memory
        self._kinds = kinds
        self._clock = clock
        self._work = work
        self._ready_entries = ready_entries
        self._ready_octets = ready_octets
        self._doubtful: dict[int, int] = {}  # the sizes of batches that may have been stored; 0 is a fan-out
        self._counted: set[int] = set()  # batches whose earlier ends were counted before their lane was read

    # What was accepted.

    def add(self, lane: Lane, acceptance: Acceptance, entries: Sequence[Entry], octets: int) -> None:
        """Let a durable batch be claimed: from memory if there is room, otherwise from disk."""
        memory, number = self._memory, acceptance.batch
        if number <= lane.purged:
            lane.app.purged_late += len(entries)
            return
        memory.count_down(lane, -len(entries))
        if lane.oldest_at is None:
            lane.oldest_at = acceptance.received_at
        lane.newest = max(lane.newest, number)
        if lane.cursor < number:  # otherwise it was read back already
            room = (
                memory.ready_entries + len(entries) <= self._ready_entries
                and memory.ready_octets + octets <= self._ready_octets
            )
            if lane.behind or not room:
                lane.behind = True
            else:
                lane.cursor = number
                batch = memory.batches[number] = Batch(lane, len(entries), set(), whole=True)
                memory.make_ready(lane, batch, number, acceptance.tag, enumerate(entries))
        self._work.notify()

    def doubt(self, lane: Lane, acceptance: Acceptance) -> None:
        """Read the lane again from before a batch that may have been stored all the same."""
        self._doubtful[acceptance.batch] = acceptance.count
        lane.cursor = min(lane.cursor, acceptance.batch - 1)
        lane.newest = max(lane.newest, acceptance.batch)
        lane.behind = True
        self._work.notify()

    def doubt_fanout(self, number: int) -> None:
        """Nobody knows whether this fan-out was stored; `take_up_doubtful` finds out."""
        self._doubtful[number] = 0

    def is_doubtful(self, number: int) -> bool:
        return number in self._doubtful

    async def take_up_doubtful(self) -> None:
        """Walk those doubtful fan-outs that were stored all the same."""
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
        self._work.notify()

    # What is claimed next.

    async def take(self, lane: Lane, limit: int, claims: list[Claimed], most_retries: int) -> int:
        """Fill up to `limit` claims: retries that are due, then what has waited longest.

        Returns how many of those taken are retries.
        """
        most_retries, retries = min(most_retries, limit - len(claims)), 0
        if not lane.due and lane.next_due <= self._clock() * 1_000 and most_retries > 0:
            await self._read_due(lane)
        while lane.due and retries < most_retries:
            claims.append(lane.due.popleft())
            retries += 1
        while len(claims) < limit:
            if lane.ready:
                claims += self._memory.take_ready(lane, limit - len(claims))
            elif lane.behind:
                await self._read_lane(lane)
            else:
                break
        return retries

    # Reading.

    async def _page(self, lane: Lane, after: int) -> list[records.Found]:
        return await self._storage.read(
            lambda connection: records.lane_page(connection, lane.number, after, PAGE_ENTRIES, self.first_log)
        )

    async def _read_lane(self, lane: Lane) -> None:
        """Read the next page of a lane that is behind."""
        async with lane.reading:
            if lane.ready or not lane.behind:
                return
            after, newest = lane.cursor, lane.newest
            lane.ended_since, lane.parked_since = {}, {}
            page = await self._page(lane, after)
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
                        connection, lane.number, now, cursor, PAGE_ENTRIES // 4, self.first_log
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
                self._work.notify()  # who began to wait while it was read knew of no due time
            if stale:
                self._storage.submit(Job(rows=stale, essential=True))

    async def survey(self, lane: Lane, after: int) -> tuple[list[tuple[str, str, int, int]], int | None]:
        """A page of what waits under a collapse id, claimed or not, and where the next one begins."""
        page = await self._page(lane, after)
        names = [
            (entry.device_token, entry.collapse_id, found.batch, index)
            for found in page
            if not found.rest
            for index, entry in enumerate(found.entries)
            if entry.collapse_id is not None and index not in found.ended and entry.device_token is not None
        ]
        return names, page[-1].batch if page else None

    # An operator's command.

    async def purge(self, lane: Lane, upto: int, log_id: int, now: float) -> None:
        """End on disk all of a lane up to this batch, in chunks between which others commit."""
        number, write = lane.number, self._storage.write
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
