"""One client of an app, fed without end: notifications go in by two queues, responses come out in batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, final

import trio

from fastpush.client import Client
from fastpush.gateway.apps import Line
from fastpush.gateway.dispatcher.circuit import Ramp
from fastpush.gateway.outbox import Claimed
from fastpush.notification import Notification

if TYPE_CHECKING:
    from fastpush.gateway.dispatcher.dispatch import Dispatch

__all__ = ["Outlet"]

PROBE_EVERY = 5.0  # seconds; the client itself lets one push try a refused credential each minute


@final
class Input:
    """What a `send_many` reads: the queue of one priority, while the line takes pushes."""

    def __init__(self, outlet: Outlet, high: bool) -> None:
        self.queue: deque[Notification] = deque()
        self._outlet = outlet
        self._high = high
        self._some = trio.Event()

    def __aiter__(self) -> Input:
        return self

    async def __anext__(self) -> Notification:
        while not self.queue or (wait := self._outlet.wait(self._high)):
            wait = wait if self.queue else math.inf
            self._some = trio.Event()
            with trio.move_on_after(wait):
                await self._some.wait()
        return self.queue.popleft()

    def look(self) -> None:
        """Something came, or what holds it back has changed."""
        self._some.set()


@final
class Outlet:
    """Feeds one line.

    Attributes:
      flying: the claims of the notifications that are queued or on their way, by the notification's id().
      ramp: slows down what follows a pause.
    """

    def __init__(self, owner: Dispatch, line: Line) -> None:
        self.line = line
        self.flying: dict[int, Claimed] = {}
        self.ramp = Ramp()
        self._owner = owner
        self._probe_at = 0.0
        self._normal = Input(self, False)
        self._high = Input(self, True)
        self._scope = trio.CancelScope()

    @property
    def queued(self) -> int:
        """How many were not given to the client yet."""
        return len(self._high.queue) + len(self._normal.queue)

    @property
    def in_flight(self) -> int:
        """How many the client has."""
        return len(self.flying) - self.queued

    def queue(self, *, high: bool) -> deque[Notification]:
        """Of what was not given to the client yet, and stands in `flying`; `look` lets it out."""
        return (self._high if high else self._normal).queue

    def put_back(self, taken: Iterable[tuple[Notification, Claimed]], *, high: bool) -> None:
        """Queue this before all else, in this order."""
        found = list(taken)
        for notification, claim in found:
            self.flying[id(notification)] = claim
        self.queue(high=high).extendleft(notification for notification, _ in reversed(found))
        self.look()

    def take(
        self, wanted: Callable[[Notification, Claimed], bool], *, high: bool
    ) -> list[tuple[Notification, Claimed]]:
        """Take out of a queue what is wanted."""
        side = self._high if high else self._normal
        taken = [
            (notification, self.flying[id(notification)])
            for notification in side.queue
            if wanted(notification, self.flying[id(notification)])
        ]
        if taken:
            for notification, _ in taken:
                del self.flying[id(notification)]
            side.queue = deque(found for found in side.queue if id(found) in self.flying)
        return taken

    def wait(self, high: bool) -> float:
        """Seconds until another look at a queue is worth it; 0.0: its first may go out now."""
        if self.line.stopped is not None:
            now = trio.current_time()
            if self.line.client is None or self._owner.held:
                return math.inf
            if now < self._probe_at:
                return self._probe_at - now
            self._probe_at = now + PROBE_EVERY
            return 0.0
        if self._owner.held:
            return math.inf
        return 0.0 if high else self.ramp.take(trio.current_time())

    def look(self) -> None:
        """Look at the queues again."""
        self._high.look()
        self._normal.look()

    def withdraw(self) -> None:
        """Take back what the client has queued for want of a connection; it is queued here again."""
        self._scope.cancel()

    async def run(self) -> None:
        """Feed the client, until cancelled."""
        while True:
            while self.line.client is None:
                await self.line.changed()
            with trio.CancelScope() as self._scope:
                await self._feed(self.line.client)
            self._owner.take_back(self)

    async def _feed(self, client: Client) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, client, self._high, True)
            nursery.start_soon(self._send, client, self._normal, False)
            while self.line.client is client:
                self.look()
                await self.line.changed()
            nursery.cancel_scope.cancel()

    async def _send(self, client: Client, notifications: Input, high: bool) -> None:
        async with client.send_many(notifications) as responses:
            async for batch in responses.batches():
                self._owner.finished(self, batch, high)
