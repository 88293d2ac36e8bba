"""The gateway's vital signs over time: what the console draws, for an hour and for a day.

Every ten seconds the counters are read, and what grew since the last reading becomes a `Sample`. Two rings
keep them: one of each reading for an hour, one of five minutes each for a day. Both have a fixed number of
rows on disk, so that a restart leaves a gap in the chart and no more.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, final

import msgspec
import trio

from fastpush.events import ClientStatistics
from fastpush.gateway.counters import Counters, quantile
from fastpush.gateway.outbox import Waiting
from fastpush.gateway.storage import Storage, StorageBroken, StorageFull, StorageUnknown

__all__ = ["DAY", "HOUR", "Reading", "Ring", "Sample", "Vitals", "difference", "mean", "read"]

_MIGRATIONS = [
    [
        """CREATE TABLE vitals (
        ring INTEGER NOT NULL, slot INTEGER NOT NULL, at REAL NOT NULL, sample BLOB NOT NULL,
        PRIMARY KEY (ring, slot)
    ) WITHOUT ROWID"""
    ],
]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """What went on in the time that ends `at` (UNIX seconds). Rates are per second, durations in seconds.

    Attributes:
      accepted, failed: notifications that APNs accepted, and that ended otherwise.
      requests: HTTP requests answered.
      apns_p50, apns_p99: of APNs' answers, None without any.
      waiting: notifications without an end; oldest: the age of the oldest of them.
      connections, in_flight, streams: to APNs, requests on them, and how many these allow.
      stalled: share of the time in which pushes waited for a stream or a window.
      commit_p99: of the disk.
      lag: how late the event loop woke, at worst.
    """

    at: float
    accepted: float = 0.0
    failed: float = 0.0
    requests: float = 0.0
    apns_p50: float | None = None
    apns_p99: float | None = None
    waiting: float = 0.0
    oldest: float = 0.0
    connections: float = 0.0
    in_flight: float = 0.0
    streams: float = 0.0
    stalled: float = 0.0
    commit_p99: float = 0.0
    lag: float = 0.0


class Reading(msgspec.Struct, frozen=True):
    """All counters at one time."""

    at: float
    monotonic: float
    accepted: int
    failed: int
    requests: int
    apns: list[int]
    waiting: int
    oldest_at: float | None
    connections: int
    in_flight: int
    streams: int
    stalled: float
    commit_p99: float


class HasStatistics(Protocol):
    """The apps, as far as they are read here."""

    def statistics(self) -> Mapping[str, Mapping[str, ClientStatistics]]: ...


def read(
    counters: Counters,
    waiting: Mapping[str, Waiting],
    apps: HasStatistics,
    commit_p99: float,
    *,
    at: float,
    monotonic: float,
) -> Reading:
    """Read all counters."""
    apns = [0] * 14
    for histogram in counters.apns_seconds.values():
        apns = [a + b for a, b in zip(apns, histogram.counts, strict=True)]
    clients = [client for lines in apps.statistics().values() for client in lines.values()]
    connections = [connection for client in clients for connection in client.connections]
    oldest = [one.oldest_at for one in waiting.values() if one.oldest_at is not None]
    return Reading(
        at=at,
        monotonic=monotonic,
        accepted=sum(n for (_, outcome, _), n in counters.outcomes.items() if outcome == "accepted"),
        failed=sum(n for (_, outcome, _), n in counters.outcomes.items() if outcome != "accepted"),
        requests=sum(counters.answers.values()),
        apns=apns,
        waiting=sum(one.count for one in waiting.values()),
        oldest_at=min(oldest, default=None),
        connections=sum(connection.state == "open" for connection in connections),
        in_flight=sum(connection.in_flight for connection in connections),
        streams=sum(connection.stream_limit for connection in connections if connection.state == "open"),
        stalled=sum(client.stalled_on_streams + client.stalled_on_window for client in clients),
        commit_p99=commit_p99,
    )


def difference(before: Reading, after: Reading, lag: float) -> Sample:
    """What went on between two readings."""
    seconds = max(after.monotonic - before.monotonic, 1e-3)
    apns = [max(0, b - a) for a, b in zip(before.apns, after.apns, strict=True)]
    return Sample(
        at=after.at,
        accepted=(after.accepted - before.accepted) / seconds,
        failed=(after.failed - before.failed) / seconds,
        requests=(after.requests - before.requests) / seconds,
        apns_p50=quantile(apns, 0.5),
        apns_p99=quantile(apns, 0.99),
        waiting=after.waiting,
        oldest=0.0 if after.oldest_at is None else max(0.0, after.at - after.oldest_at),
        connections=after.connections,
        in_flight=after.in_flight,
        streams=after.streams,
        # A client that was closed takes its seconds with it.
        stalled=max(0.0, min(1.0, (after.stalled - before.stalled) / seconds)),
        commit_p99=after.commit_p99,
        lag=lag,
    )


# Of these the worst is kept where samples are put together; of all others the mean.
_WORST = frozenset({"at", "apns_p99", "oldest", "commit_p99", "lag"})


def mean(samples: Sequence[Sample]) -> Sample:
    """One sample for the time of several."""

    def put(name: str) -> float | None:
        values: list[float] = [value for sample in samples if (value := getattr(sample, name)) is not None]
        if not values:
            return None
        return max(values) if name in _WORST else sum(values) / len(values)

    return Sample(*(put(name) for name in Sample.__struct_fields__))  # type: ignore[arg-type]


class Ring(msgspec.Struct, frozen=True):
    """A number of slots of some seconds each."""

    number: int
    seconds: int
    slots: int

    @property
    def span(self) -> int:
        """Seconds that it holds."""
        return self.seconds * self.slots

    def slot(self, at: float) -> int:
        """Where a sample of this time goes."""
        return int(at // self.seconds) % self.slots


HOUR = Ring(0, 10, 360)
DAY = Ring(1, 300, 288)


@final
class Vitals:
    """Both rings, and the task that fills them.

    Args:
      storage: where they survive a restart.
      reading: reads all counters.
      clock: UNIX seconds.
    """

    LAG_EVERY = 0.5

    def __init__(
        self, storage: Storage, reading: Callable[[], Reading], clock: Callable[[], float] = time.time
    ) -> None:
        self._storage = storage
        self._reading = reading
        self._clock = clock
        self._samples: dict[Ring, deque[Sample]] = {ring: deque(maxlen=ring.slots) for ring in (HOUR, DAY)}
        self._gathered: list[Sample] = []
        self._lag = 0.0

    def samples(self, ring: Ring) -> list[Sample]:
        """Those of the ring's span that ends now, oldest first."""
        begin = self._clock() - ring.span
        return [sample for sample in self._samples[ring] if sample.at > begin]

    @property
    def latest(self) -> Sample | None:
        """The newest sample."""
        return self._samples[HOUR][-1] if self._samples[HOUR] else None

    async def open(self) -> None:
        """Make the table and read what an earlier process left."""
        await self._storage.add_schema("vitals", _MIGRATIONS)
        for ring, sample in await self._storage.read(_stored):
            self._samples[ring].append(sample)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take samples until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_lag)
            before = self._reading()
            task_status.started()
            while True:
                await trio.sleep(HOUR.seconds)
                after = self._reading()
                await self.take(difference(before, after, self._lag))
                self._lag, before = 0.0, after

    async def take(self, sample: Sample) -> None:
        """Keep a sample; the disk's troubles cost its row and nothing else."""
        self._samples[HOUR].append(sample)
        rows = [(HOUR, sample)]
        if self._gathered and sample.at // DAY.seconds != self._gathered[-1].at // DAY.seconds:
            together = mean(self._gathered)
            self._gathered.clear()
            self._samples[DAY].append(together)
            rows.append((DAY, together))
        self._gathered.append(sample)
        with suppress(StorageFull, StorageUnknown, StorageBroken):  # the storage tells of it
            await self._storage.write(lambda connection: _store(connection, rows))

    async def _watch_lag(self) -> None:
        while True:
            due = trio.current_time() + self.LAG_EVERY
            await trio.sleep_until(due)
            self._lag = max(self._lag, trio.current_time() - due)


def _store(connection: sqlite3.Connection, rows: Iterable[tuple[Ring, Sample]]) -> None:
    for ring, sample in rows:
        connection.execute(
            "INSERT OR REPLACE INTO vitals VALUES (?, ?, ?, ?)",
            (ring.number, ring.slot(sample.at), sample.at, msgspec.msgpack.encode(sample)),
        )


def _stored(connection: sqlite3.Connection) -> list[tuple[Ring, Sample]]:
    rings = {ring.number: ring for ring in (HOUR, DAY)}
    found = []
    for number, sample in connection.execute("SELECT ring, sample FROM vitals ORDER BY at"):
        try:
            found.append((rings[number], msgspec.msgpack.decode(sample, type=Sample)))
        except msgspec.DecodeError:  # of a version whose samples were others
            continue
    return found
