"""One call of `settle` or `settle_page`: its rows, and what they mean for memory once they are durable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fastpush.gateway.outbox import End, Retry
from fastpush.gateway.outbox.lanes import Lane, Memory
from fastpush.gateway.outbox.packing import LogWriter

PURGED = "Purged"


class Kinds(NamedTuple):
    """The numbers of the funnel's rows."""

    accept: int
    fanout: int
    outcome: int
    park: int
    unpark: int
    mark: int
    unmark: int
    page: int


class Settlement:
    """What ended and what is parked, gathered by batch."""

    def __init__(self, memory: Memory, kinds: Kinds, log_id: int, now: float) -> None:
        self._memory = memory
        self._kinds = kinds
        self._log_id = log_id
        self._now = now
        self._logs: dict[int, LogWriter] = {}
        self._ended: dict[int, set[int]] = {}
        self._devices: dict[int, list[int]] = {}  # by fan-out: accepted, ended, parked
        self._page: tuple[int, str, int, bool] | None = None  # fan-out, cursor, accepted, last
        self._unparked: list[tuple[int, int, str]] = []
        self._released: list[tuple[int, int]] = []  # parked, so no longer in memory
        self._due: list[tuple[Lane, int]] = []
        self._finished: set[int] = set()
        self._done: list[tuple[int, int]] = []
        self.rows: list[tuple[Any, ...]] = []

    def add(
        self,
        ends: Sequence[End],
        retries: Sequence[Retry],
        page: tuple[int, str, int, bool] | None = None,
    ) -> None:
        """Take ends and retries, and the page of a fan-out that they are of, if they are.

        Raises ValueError: a retry of what is not claimed.
        """
        self._page = page
        paged = 0 if page is None else page[0]
        for retry in retries:
            self._retry(retry, paged)
        logs, ended, any_parked = self._logs, self._ended, bool(self._memory.parked)
        for end in ends:
            if end.device_token is not None:
                accepted = end.outcome == "accepted"
                unparked = self._unpark(end.batch, -1, end.device_token, accepted, not accepted)
                if not unparked and end.batch != paged:
                    continue  # it was settled before
                counts = self._devices.setdefault(end.batch, [0, 0, 0])
                counts[0 if accepted else 1] += 1
                counts[2] -= unparked
            log = logs.get(end.batch)
            if log is None:
                log = logs[end.batch] = LogWriter(self._now)
            log.end(end)
            if end.device_token is not None:
                continue
            if any_parked:
                self._unpark(end.batch, end.index, "")
            indexes = ended.get(end.batch)
            if indexes is None:
                indexes = ended[end.batch] = set()
            indexes.add(end.index)

    def _retry(self, retry: Retry, paged: int) -> None:
        number, memory = retry.batch, self._memory
        index, device = (retry.index, "") if retry.device_token is None else (-1, retry.device_token)
        parked = memory.parked.get((number, index, device))
        batch = memory.batches.get(number)
        if device:
            walk = memory.walks.get(number)
            if walk is not None and parked is None and number != paged:
                return  # it was settled before
            lane = None if walk is None else walk.lane
        elif batch is None:
            raise ValueError(f"a retry of batch {number}, of which nothing is claimed")
        else:
            lane = None if number <= batch.lane.purged else batch.lane
        log = self._logs.get(number)
        if log is None:
            log = self._logs[number] = LogWriter(self._now)
        if lane is None:
            log.end(_purged(retry))
            if batch is not None:
                self._ended.setdefault(number, set()).add(retry.index)
            return
        log.retry(retry)
        # Never behind the cursor that reads what is due; so it is never the due time of before either.
        due = max(int(retry.due_at * 1_000), lane.due_cursor[0] + 1)
        self.rows.append((self._kinds.park, lane.number, due, number, index, device, retry.attempts))
        self._due.append((lane, due))
        unparked = self._unpark(number, index, device)
        if device:
            self._devices.setdefault(number, [0, 0, 0])[2] += 1 - unparked
            return
        self._released.append((number, index))
        if batch is not None and index in batch.marked:
            self.rows.append((self._kinds.unmark, number, index))

    def _unpark(
        self, number: int, index: int, device: str, accepted: bool = False, ended: bool = False
    ) -> bool:
        """Take a retry from the disk; `accepted` or `ended` say that this is the end of a device."""
        parked = self._memory.parked.get((number, index, device))
        if parked is None:
            return False
        lane, due = parked
        self.rows.append((self._kinds.unpark, lane.number, due, number, index, device, accepted, ended))
        self._unparked.append((number, index, device))
        return True

    def close(self) -> None:
        """Finish the rows."""
        memory, kinds = self._memory, self._kinds
        for number, log in self._logs.items():
            lane = None
            batch = memory.batches.get(number)
            if batch is not None and number in self._ended:
                new = self._ended[number] - batch.ended
                if batch.left == len(new):
                    lane = batch.lane.number
                    self._finished.add(number)
                if batch.marked:
                    self.rows.extend((kinds.unmark, number, index) for index in new & batch.marked)
            self.rows.append((kinds.outcome, number, self._log_id, log.failed, log.packed(), lane))
        if self._page is not None:
            fanout, cursor, accepted, last = self._page
            counts = self._devices.setdefault(fanout, [0, 0, 0])
            counts[0] += accepted
            self.rows.append((kinds.page, fanout, cursor, *counts[:2], last))
        self._done, memory.done = memory.done, []
        self.rows.extend((kinds.outcome, number, None, None, None, lane) for number, lane in self._done)

    def failed(self) -> None:
        """Nothing of it is known to be on disk."""
        self._memory.done += self._done

    @property
    def batches(self) -> Iterable[int]:
        """Of which something is settled; fan-outs too."""
        return self._logs if self._page is None else [*self._logs, self._page[0]]

    def recorded(self) -> bool:
        """It is on disk: let memory follow. Returns whether something became due."""
        memory = self._memory
        for name in self._unparked:
            memory.parked.pop(name, None)
        for lane, due in self._due:
            lane.next_due = min(lane.next_due, due)
        for number, index in self._released:
            batch = memory.batches.get(number)
            if batch is not None:
                batch.lane.parked_since.setdefault(number, set()).add(index)
                batch.held -= 1
                batch.marked.discard(index)
                memory.let_go(number)
        for number, indexes in self._ended.items():
            self._record_ended(number, indexes)
        for number, counts in self._devices.items():
            self._count_devices(number, counts)
        return bool(self._due)

    def _record_ended(self, number: int, indexes: set[int]) -> None:
        memory = self._memory
        batch = memory.batches.get(number)
        if batch is None:
            return
        new = indexes - batch.ended
        batch.lane.ended_since.setdefault(number, set()).update(new)
        batch.ended |= new
        batch.left -= len(new)
        batch.held -= len(new)
        batch.marked -= new
        if number > batch.lane.purged:
            memory.count_down(batch.lane, len(new))
            if not batch.left and number not in self._finished:
                memory.done.append((number, batch.lane.number))
        memory.let_go(number)

    def _count_devices(self, number: int, counts: list[int]) -> None:
        walk = self._memory.walks.get(number)
        if walk is None:
            return
        repeated = False
        if self._page is not None and number == self._page[0]:
            _, cursor, _, last = self._page
            repeated = cursor <= walk.fanout.cursor
            walk.fanout.cursor = max(cursor, walk.fanout.cursor)
            walk.walked = walk.walked or last
        if not repeated:
            accepted, ended, parked = counts
            walk.fanout.accepted += accepted
            walk.fanout.ended += ended
            walk.parked += parked
        if walk.walked and not walk.parked:
            self._memory.drop_walk(walk)


def _purged(retry: Retry) -> End:
    return End(
        retry.batch, retry.index, "failed", retry.at, retry.status, PURGED, retry.attempts, retry.device_token
    )
