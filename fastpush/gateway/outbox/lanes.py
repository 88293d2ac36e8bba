"""What the outbox has in memory: apps, their lanes, and the batches of which something is handed out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio

from fastpush.gateway.outbox import Claimed, Entry, Fanout, apns_id_base

__all__ = ["NEVER", "App", "Batch", "Lane", "Memory", "Walk", "claimed"]

NEVER = math.inf


class Batch:
    """A batch of which something is ready, claimed, or being settled.

    It is `whole` once all that waited of it were made ready; until then only retries of it were claimed.
    """

    __slots__ = ("count", "ended", "held", "lane", "left", "marked", "whole")

    def __init__(self, lane: Lane, count: int, ended: set[int], *, whole: bool) -> None:
        self.lane = lane
        self.count = count
        self.ended = ended
        self.left = count - len(ended)
        self.held = 0  # ready or claimed
        self.marked: set[int] = set()
        self.whole = whole


class Walk:
    """A fan-out that has devices to be sent to."""

    __slots__ = ("fanout", "lane", "parked", "walked")

    def __init__(self, lane: Lane, fanout: Fanout, walked: bool, parked: int) -> None:
        self.lane = lane
        self.fanout = fanout
        self.walked = walked
        self.parked = parked


class Lane:
    """The waiting notifications of one app and priority, in the order of their acceptance."""

    def __init__(self, app: App, number: int) -> None:
        self.app = app
        self.number = number
        self.ready: deque[Claimed] = deque()
        self.cursor = 0  # every batch up to this one was taken into memory
        self.newest = 0  # the newest that is known to be on disk
        self.oldest_at: float | None = None  # of its batches that have no end yet, as of the last second
        self.behind = False
        self.due: deque[Claimed] = deque()
        self.due_cursor = (-1, 0, 0, "")
        self.next_due = NEVER  # milliseconds
        self.purged = 0  # every batch and fan-out up to this one was purged
        self.reading = trio.Lock()
        # Since the last reading began, by batch: the page that it brings may be older.
        self.ended_since: dict[int, set[int]] = {}
        self.parked_since: dict[int, set[int]] = {}


class App:
    """One app and its two lanes: the even number is that of high priority."""

    def __init__(self, number: int, name: str, paused: bool) -> None:
        self.number = number
        self.name = name
        self.paused = paused
        self.count = 0
        self.coming = 0  # notifications and fan-outs that are on their way to the disk
        self.purged_late = 0  # of what was accepted before a purge and came back from the disk after it began
        self.walks: dict[int, Walk] = {}
        self.high = Lane(self, 2 * number)
        self.normal = Lane(self, 2 * number + 1)

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        return self.high, self.normal

    def oldest_in(self, lane: Lane) -> float | None:
        """When the oldest without an end was accepted, fan-outs among them; UNIX seconds."""
        times = [walk.fanout.received_at for walk in self.walks.values() if walk.lane is lane]
        if self.count and lane.oldest_at is not None:
            times.append(lane.oldest_at)
        return min(times, default=None)


class Memory:
    """All of it, and the sums that bound it."""

    def __init__(self) -> None:
        self.apps: dict[str, App] = {}
        self.lanes: dict[int, Lane] = {}
        self.batches: dict[int, Batch] = {}
        self.walks: dict[int, Walk] = {}
        self.parked: dict[tuple[int, int, str], tuple[Lane, int]] = {}
        """Due times of retries that are claimed or about to be, by batch, index and device token."""
        self.done: list[tuple[int, int]] = []
        """Batches and lanes in which nothing waits any more, and the disk does not know yet."""
        self.count = 0
        self.coming = 0
        self.coming_walks = 0
        self.ready_entries = 0
        self.ready_octets = 0

    def add_app(self, app: App) -> None:
        self.apps[app.name] = app
        for lane in app.lanes:
            self.lanes[lane.number] = lane

    def add_walk(self, walk: Walk) -> None:
        self.walks[walk.fanout.id] = walk
        walk.lane.app.walks[walk.fanout.id] = walk

    def drop_walk(self, walk: Walk) -> None:
        self.walks.pop(walk.fanout.id, None)
        walk.lane.app.walks.pop(walk.fanout.id, None)

    def make_ready(
        self, lane: Lane, batch: Batch, number: int, tag: int, entries: Iterable[tuple[int, Entry]]
    ) -> None:
        """Let these notifications of a batch be claimed, by index."""
        base = apns_id_base(number, tag)
        before, octets = len(lane.ready), 0
        append = lane.ready.append
        for index, entry in entries:
            octets += len(entry.payload)
            append(Claimed(number, index, entry.apns_id or (base | index << 32).to_bytes(16, "big"), entry))
        taken = len(lane.ready) - before
        batch.held += taken
        self.ready_entries += taken
        self.ready_octets += octets

    def take_ready(self, lane: Lane, most: int) -> list[Claimed]:
        taken = [lane.ready.popleft() for _ in range(min(most, len(lane.ready)))]
        self.ready_entries -= len(taken)
        self.ready_octets -= sum([len(claim.entry.payload) for claim in taken])
        return taken

    def put_back(self, claims: Sequence[Claimed]) -> None:
        """Let what was claimed be claimed again, before all others."""
        for claim in reversed(claims):
            parked = self.parked.get((claim.batch, claim.index, device_of(claim)))
            lane = self.batches[claim.batch].lane if parked is None else parked[0]
            if claim.batch <= lane.purged:
                self._drop(claim)
            elif parked is not None:
                lane.due.appendleft(claim)
            else:
                lane.ready.appendleft(claim)
                self.ready_entries += 1
                self.ready_octets += len(claim.entry.payload)

    def purge(self, app: App, number: int) -> int:
        """Forget all of an app up to this batch, but for what is claimed. Returns how many waited."""
        purged, app.purged_late = app.count, 0
        self.count_down(app.high, purged)
        for lane in app.lanes:
            lane.purged = number
            ready, lane.ready = self.take_ready(lane, len(lane.ready)), deque()
            due, lane.due = lane.due, deque()
            for claim in [*ready, *due]:
                self._drop(claim)
        for walk in list(app.walks.values()):
            if walk.fanout.id <= number:
                self.drop_walk(walk)
        return purged

    def _drop(self, claim: Claimed) -> None:
        self.parked.pop((claim.batch, claim.index, device_of(claim)), None)
        batch = self.batches.get(claim.batch)
        if batch is not None:
            batch.held -= 1
            self.let_go(claim.batch)

    def let_go(self, number: int) -> None:
        """Forget a batch of which nothing is in memory."""
        batch = self.batches.get(number)
        if batch is not None and batch.held <= 0:
            del self.batches[number]

    def expect(self, app: App, entries: int) -> Callable[[], None]:
        """Count what is being written, a fan-out where it is no entries; returns what ends that."""
        walks = 0 if entries else 1

        def count(sign: int) -> None:
            app.coming += sign * (entries or 1)
            self.coming += sign * entries
            self.coming_walks += sign * walks

        count(1)
        return lambda: count(-1)

    def count_down(self, lane: Lane, ended: int) -> None:
        lane.app.count -= ended
        self.count -= ended


def device_of(claim: Claimed) -> str:
    """The third part of a retry's name: the device token of a fan-out's, otherwise empty."""
    return (claim.entry.device_token or "") if claim.index < 0 else ""


def claimed(number: int, index: int, tag: int, entry: Entry, attempts: int) -> Claimed:
    apns_id = entry.apns_id or (apns_id_base(number, tag) | index << 32).to_bytes(16, "big")
    return Claimed(number, index, apns_id, entry, attempts)
