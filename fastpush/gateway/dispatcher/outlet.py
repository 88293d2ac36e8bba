"""One client of an app, fed without end: notifications go in by two queues, responses come out in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import final

import trio

from fastpush.client import Client
from fastpush.gateway.apps import Line
from fastpush.gateway.outbox import Claimed
from fastpush.notification import Notification, Response

__all__ = ["Outlet"]

PROBE_EVERY = 5.0  # seconds; the client itself lets one push try a refused credential each minute


@final
class Input:
    """What a `send_many` reads: the queue of one priority, while the line takes pushes."""

    def __init__(self, outlet: Outlet) -> None:
        self.queue: deque[Notification] = deque()
        self._outlet = outlet
        self._line = outlet.line
        self._some = trio.Event()

    def __aiter__(self) -> Input:
        return self

    async def __anext__(self) -> Notification:
        while not self.queue or (self._line.stopped is not None and not self._outlet.may_probe()):
            until = self._outlet.probe_at if self.queue else float("inf")
            self._some = trio.Event()
            with trio.move_on_at(until):
                await self._some.wait()
        return self.queue.popleft()

    def look(self) -> None:
        """Something came, or the line changed."""
        self._some.set()


@final
class Outlet:
    """Feeds one line.

    Attributes:
      flying: the claims of the notifications that are queued or on their way, by the notification's id().
    """

    def __init__(self, line: Line, finished: Callable[[Outlet, list[Response], bool], None]) -> None:
        self.line = line
        self.flying: dict[int, Claimed] = {}
        self.probe_at = 0.0
        self._finished = finished
        self._normal = Input(self)
        self._high = Input(self)

    @property
    def queued(self) -> int:
        """How many were not given to the client yet."""
        return len(self._high.queue) + len(self._normal.queue)

    @property
    def in_flight(self) -> int:
        """How many the client has."""
        return len(self.flying) - self.queued

    def put(self, notification: Notification, claim: Claimed, *, high: bool) -> None:
        """Queue one; `look` lets it out."""
        self.flying[id(notification)] = claim
        (self._high if high else self._normal).queue.append(notification)

    def put_back(self, taken: Iterable[tuple[Notification, Claimed]], *, high: bool) -> None:
        """Queue what the client gave back before all else, in this order."""
        found = list(taken)
        for notification, claim in found:
            self.flying[id(notification)] = claim
        (self._high if high else self._normal).queue.extendleft(
            notification for notification, _ in reversed(found)
        )
        self.look()

    def take_queued(self, *, high: bool) -> list[tuple[Notification, Claimed]]:
        """Take back all that was not given to the client."""
        queue = (self._high if high else self._normal).queue
        taken = [(notification, self.flying.pop(id(notification))) for notification in queue]
        queue.clear()
        return taken

    def take_expired(self, now: float) -> list[Claimed]:
        """Take back what expired (UNIX seconds) before it was given to the client."""
        taken = []
        for side in (self._high, self._normal):
            gone = [found for found in side.queue if 0 < (found.expiration or 0) < now]
            if gone:
                names = {id(found) for found in gone}
                side.queue = deque(found for found in side.queue if id(found) not in names)
                taken += [self.flying.pop(id(found)) for found in gone]
        return taken

    def may_probe(self) -> bool:
        """Whether one may be let out although the line is stopped; only once each while."""
        now = trio.current_time()
        if now < self.probe_at or self.line.client is None:
            return False
        self.probe_at = now + PROBE_EVERY
        return True

    def look(self) -> None:
        """Let the client look at the queues again."""
        self._high.look()
        self._normal.look()

    async def run(self) -> None:
        """Feed the client, until cancelled."""
        while self.line.client is None:
            await self.line.changed()
        client = self.line.client
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, client, self._high, True)
            nursery.start_soon(self._send, client, self._normal, False)
            while True:
                await self.line.changed()
                self.look()

    async def _send(self, client: Client, notifications: Input, high: bool) -> None:
        async with client.send_many(notifications) as responses:
            async for batch in responses.batches():
                self._finished(self, batch, high)
