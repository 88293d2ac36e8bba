"""Bringing an alarm from one row to the next: alone, durably, and with its push in the same transaction.

Changes of one alarm wait for each other, those of different alarms do not. Memory holds nothing that it could
not read again: rows that were used of late, and for the badge how many alarms are open and unacknowledged,
by the set of tags of those who were told. Where nobody knows whether a commit took place, the row is read
again behind it, before the alarm's next change is decided.

Where the outbox has no room, the row says what push it owes; it goes out with the next change, or late.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, final

import msgspec
import trio

from fastpush.gateway.alarm_table import (
    KNOWN,
    Told,
    encode,
    octets_of,
    read_push,
    read_row,
    read_state,
    read_tags,
    tags_text,
)
from fastpush.gateway.alarms import LOUD, AlarmRow
from fastpush.gateway.banners import Banner
from fastpush.gateway.outbox import Audience, Entry, Outbox, OutboxBusy
from fastpush.gateway.storage import Job, Storage, StorageError, StorageFull, StorageUnknown, Value

__all__ = ["LATE", "LOUDLY", "SILENT", "UNSEEN", "Decide", "Known", "Ledger", "Step"]

TRIES = 3  # of a commit of which nobody knows whether it took place
LATE = "late"
"""The rule of a step that pushes what was owed: without room it is not taken at all."""

# What an alarm is owed, where there was no room in the outbox: its banner is not as it stands, nor was the
# sound heard, nor is there any banner of this generation.
SILENT, LOUDLY, UNSEEN = 1, 2, 3


class Known(NamedTuple):
    """An alarm as it is on disk."""

    opened: int
    last: int
    row: AlarmRow
    owed: int = 0


class Step(NamedTuple):
    """What is to be written of an alarm."""

    row: AlarmRow
    told: Told
    banner: Banner | None
    opens: bool
    rows: Sequence[Sequence[Value]] = ()


Decide = Callable[[Known | None, float], Awaitable[Step | None]]


@final
class Ledger:
    """The rows of the alarms, as they are on disk; used by any number of tasks.

    Args:
      app: whose phones are told.
      kind: of the rows of an alarm in the storage's funnel.
      cached_octets: of rows in memory, at most.
      clock: UNIX seconds.
    """

    def __init__(
        self,
        storage: Storage,
        outbox: Outbox,
        app: str,
        kind: int,
        cached_octets: int,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._outbox = outbox
        self._app = app
        self._kind = kind
        self._clock = clock
        self._last = 0
        self._cache = _Cache(cached_octets)
        self._turns = _Turns()
        self._unread: Counter[str] = Counter()
        self._tag_sets: dict[str, frozenset[str]] = {}
        self._stored_all_the_same = trio.Event()
        self._owed = 0
        self._more_owed = trio.Event()

    async def load(self) -> None:
        """Read what memory is to know; to be called once, before all else."""
        self._last, unread, sets, self._owed = await self._storage.read(read_state)
        self._unread.update(unread)
        for text in sets:
            self._tag_sets[text] = frozenset(read_tags(text))

    @property
    def owed(self) -> int:
        """Alarms that wait for a push until the outbox has room."""
        return self._owed

    @property
    def waiting(self) -> int:
        """Changes that wait for another of the same alarm."""
        return self._turns.waiting

    @property
    def unacknowledged(self) -> int:
        """Open alarms that nobody has acknowledged."""
        return sum(self._unread.values())

    @property
    def cached_octets(self) -> int:
        return self._cache.octets

    def open_count(self, tags: Iterable[str]) -> int:
        """Open and unacknowledged alarms of those who have any of the tags; nothing waits for it."""
        wanted, sets = frozenset(tags), self._tag_sets
        return sum(count for text, count in self._unread.items() if not wanted.isdisjoint(sets[text]))

    def sets_with(self, tags: Iterable[str]) -> list[str]:
        """The sets with any of the tags, of all that alarms were ever told to."""
        wanted = frozenset(tags)
        return [text for text, found in self._tag_sets.items() if not wanted.isdisjoint(found)]

    def next_number(self, now: float) -> int:
        """A number of this time, in microseconds, greater than all before it."""
        self._last = max(self._last + 1, int(now * 1e6))
        return self._last

    def forget(self, alarm: bytes) -> None:
        """Drop a row from memory."""
        self._cache.put(alarm, None)

    async def wait_for_owed(self) -> None:
        """Return when some alarm is owed a push."""
        while not self._owed:
            await self._more_owed.wait()

    async def take_up(self) -> None:
        """For ever: let those pushes go out that are stored, when nobody waited any more to learn it."""
        while True:
            await self._stored_all_the_same.wait()
            self._stored_all_the_same = trio.Event()
            with suppress(StorageError):
                await self._outbox.take_up_doubtful()

    async def change(self, name: str, decide: Decide) -> tuple[Any, Step | None, int]:
        """Bring an alarm from what it is to what is decided, alone.

        Returns:
          The alarm as it is now, the step that was taken, if one was, and the id of what was pushed.
        """
        alarm = octets_of(name)
        assert alarm is not None
        await self._turns.begin(alarm)
        before: Known | None = None
        in_doubt = False
        tries = 1
        try:
            while True:
                before = self._cache.get(alarm) or await self._read(alarm)
                now = self._clock()
                step = await decide(before, now)
                if step is None:
                    return before, None, 0
                number = self.next_number(now)
                opened = number if step.opens or before is None else before.opened
                after = Known(opened, number, step.row, _still_owed(before, step))
                in_doubt = True
                try:
                    try:
                        push = await self._store(name, alarm, before, after, step, now)
                    except OutboxBusy:
                        if step.told.rule == LATE:
                            in_doubt = False
                            raise
                        after = after._replace(owed=_owed(before, step))
                        push = await self._store(name, alarm, before, after, step._replace(banner=None), now)
                except StorageFull:
                    in_doubt = False
                    raise
                except StorageUnknown:
                    found = await self._read(alarm)
                    self._take(alarm, before, found)
                    in_doubt = False
                    if found is None or found.last != number:
                        if tries == TRIES:
                            raise
                        tries += 1
                        continue
                    await self._outbox.take_up_doubtful()
                    push = await self._storage.read(partial(read_push, number=number))
                else:
                    self._take(alarm, before, after)
                    in_doubt = False
                return after, step, push
        finally:
            if in_doubt:
                self._look_again(alarm, before)
            else:
                self._turns.end(alarm)

    async def _store(
        self, name: str, alarm: bytes, before: Known | None, after: Known, step: Step, now: float
    ) -> int:
        """Write the row, the verdict, and the push if there is one; its id is returned, else 0."""
        row, told, shown = step.row, step.told, step.banner

        def rows(push: int) -> Sequence[Sequence[Value]]:
            kept = msgspec.structs.replace(told, push=push) if push else told
            return [
                (
                    self._kind, alarm, (row.state == "open") | after.owed << 2, row.counts_in_badge,
                    after.opened, after.last, before.last if before else 0, now, row.severity,
                    row.device.casefold(), tags_text(row), encode(row), encode(kept),
                ),
                *step.rows,
            ]  # fmt: skip

        if shown is None or not told.tags:  # an audience without tags would be all devices
            await self._storage.insert(rows(0))
            return 0
        entry = Entry(
            None,
            shown.payload.encode(),
            priority=shown.priority,
            expiration=shown.expiration,
            collapse_id=shown.collapse_id,
            # All of them, whatever the priority at Apple: none of an alarm's may overtake another.
            high=True,
            trace=name,
            badge=True,
        )
        accepted = await self._outbox.accept_fanout(
            self._app, Audience(any_of=told.tags), entry, source=row.source, rows=rows
        )
        return accepted.batch

    async def _read(self, alarm: bytes) -> Known | None:
        """The alarm as it is on disk once all that is queued now was written."""
        done = trio.Event()
        job: Job[list[Any]] = Job(lambda *_: done.set(), question=KNOWN, key=alarm, essential=True)
        self._storage.submit(job)
        await done.wait()
        if job.error is not None:
            raise job.error
        known = _known(job.value)
        self._cache.put(alarm, known)
        return known

    def _look_again(self, alarm: bytes, before: Known | None) -> None:
        """End a turn in which nobody knows what was written, as soon as that was read."""

        def finished(found: list[Any] | None, error: Exception | None) -> None:
            if isinstance(error, StorageUnknown):
                self._look_again(alarm, before)
                return
            if error is None:
                after = _known(found)
                self._take(alarm, before, after)
                if after != before:
                    self._stored_all_the_same.set()
            self._turns.end(alarm)

        self._cache.put(alarm, None)
        try:
            self._storage.submit(Job(finished, question=KNOWN, key=alarm, essential=True))
        except RuntimeError:  # the storage is closed
            self._turns.end(alarm)

    def _take(self, alarm: bytes, before: Known | None, after: Known | None) -> None:
        """Let memory go from one row to another that is on disk."""
        self._cache.put(alarm, after)
        self._owed += bool(after and after.owed) - bool(before and before.owed)
        if after is not None and after.owed:
            self._more_owed.set()
            self._more_owed = trio.Event()
        if before is not None and before.row.counts_in_badge:
            self._count(before.row, -1)
        if after is not None:
            self._count(after.row, int(after.row.counts_in_badge))

    def _count(self, row: AlarmRow, change: int) -> None:
        text = tags_text(row)
        if text not in self._tag_sets:
            self._tag_sets[text] = frozenset(row.tags)
        self._unread[text] += change
        if not self._unread[text]:
            del self._unread[text]


@final
class _Cache:
    """Rows that were used of late, up to so many octets."""

    def __init__(self, limit: int) -> None:
        self.octets = 0
        self._limit = limit
        self._rows: OrderedDict[bytes, tuple[int, int, bytes, int]] = OrderedDict()

    def get(self, alarm: bytes) -> Known | None:
        found = self._rows.get(alarm)
        if found is None:
            return None
        self._rows.move_to_end(alarm)
        opened, last, row, owed = found
        return Known(opened, last, read_row(row), owed)

    def put(self, alarm: bytes, known: Known | None) -> None:
        gone = self._rows.pop(alarm, None)
        if gone is not None:
            self.octets -= len(gone[2])
        if known is not None:
            row = encode(known.row)
            self._rows[alarm] = known.opened, known.last, row, known.owed
            self.octets += len(row)
            while self.octets > self._limit:
                self.octets -= len(self._rows.popitem(last=False)[1][2])


@final
class _Turns:
    """One at a time for each alarm, in order of arrival."""

    def __init__(self) -> None:
        self.waiting = 0
        self._queues: dict[bytes, deque[trio.Event]] = {}

    async def begin(self, alarm: bytes) -> None:
        queue = self._queues.get(alarm)
        if queue is None:
            self._queues[alarm] = deque()
            return
        turn = trio.Event()
        queue.append(turn)
        self.waiting += 1
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.end(alarm)
            else:
                queue.remove(turn)
            raise
        finally:
            self.waiting -= 1

    def end(self, alarm: bytes) -> None:
        queue = self._queues[alarm]
        if queue:
            queue.popleft().set()
        else:
            del self._queues[alarm]


def _still_owed(before: Known | None, step: Step) -> int:
    """What is owed after a step that is pushed, or has nothing to push."""
    if before is None or step.banner is not None:
        return 0
    gone = before.owed == UNSEEN and step.row.state == "cleared"
    return 0 if gone else before.owed


def _owed(before: Known | None, step: Step) -> int:
    """What is owed after a step that there was no room to push."""
    earlier = before.owed if before is not None else 0
    if step.opens and earlier in (0, UNSEEN):
        return UNSEEN
    return max(earlier, LOUDLY if step.told.rule in LOUD else SILENT)


def _known(columns: Sequence[Any] | None) -> Known | None:
    if columns is None:
        return None
    opened, last, row, owed = columns
    return Known(opened, last, read_row(bytes.fromhex(row)), owed)
