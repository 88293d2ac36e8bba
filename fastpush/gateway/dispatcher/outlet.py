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
from fastpush.gateway.dispatcher.slots import HIGH_SHARE
from fastpush.gateway.outbox import Claimed
from fastpush.notification import Notification

if TYPE_CHECKING:
    from fastpush.gateway.dispatcher.dispatch import Dispatch

__all__ = ["Outlet"]

PROBE_EVERY = 5.0  # seconds; the client itself lets one push try a refused credential each minute


@final
class Input:
    """What a `send_many` reads: one queue, while the line takes pushes."""

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
    """Feeds one line, by a queue for each priority and kind of delivery.

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
        self._inputs = {(high, once): Input(self, high) for high in (True, False) for once in (True, False)}
        self._usual = self._inputs[False, False]
        self._scope = trio.CancelScope()

    @property
    def queued(self) -> int:
        """How many were not given to the client yet."""
        return sum(len(one.queue) for one in self._inputs.values())

    @property
    def in_flight(self) -> int:
        """How many the client has."""
        return len(self.flying) - self.queued

    def put(self, notification: Notification, claim: Claimed) -> None:
        """Queue one; `look` lets it out."""
        self.flying[id(notification)] = claim
        entry = claim.entry
        if entry.high or entry.delivery == "once":
            self._input(claim).queue.append(notification)
        else:
            self._usual.queue.append(notification)

    def put_back(self, taken: Iterable[tuple[Notification, Claimed]]) -> None:
        """Queue this before all else, in this order, and look."""
        for notification, claim in reversed(list(taken)):
            self.flying[id(notification)] = claim
            self._input(claim).queue.appendleft(notification)
        self.look()

    def take(
        self, wanted: Callable[[Notification, Claimed], bool] = lambda *_: True
    ) -> list[tuple[Notification, Claimed]]:
        """Take out of the queues what is wanted."""
        taken: list[tuple[Notification, Claimed]] = []
        for one in self._inputs.values():
            found = [(queued, self.flying[id(queued)]) for queued in one.queue]
            found = [pair for pair in found if wanted(*pair)]
            if found:
                for notification, _ in found:
                    del self.flying[id(notification)]
                one.queue = deque(queued for queued in one.queue if id(queued) in self.flying)
                taken += found
        return taken

    def take_back(self) -> list[Claimed]:
        """Take back what the client has; it must have been left before."""
        queued = {id(found) for one in self._inputs.values() for found in one.queue}
        names = [name for name in self.flying if name not in queued]
        return [self.flying.pop(name) for name in names]

    def wait(self, high: bool) -> float:
        """Seconds until another look at a queue is worth it; 0.0: its first may go out now."""
        if self.line.stopped is not None:
            now = trio.current_time()
            if not self.line.refused or self.line.client is None or self._owner.held:
                return math.inf  # where nothing is refused, the client finds out by itself
            if now < self._probe_at:
                return self._probe_at - now
            self._probe_at = now + PROBE_EVERY
            return 0.0
        if self._owner.held:
            return math.inf
        return 0.0 if high else self.ramp.take(trio.current_time())

    def look(self) -> None:
        """Look at the queues again."""
        for one in self._inputs.values():
            one.look()

    def withdraw(self) -> None:
        """Take back what the client has queued for want of a connection; it is queued here again."""
        self._scope.cancel()

    async def run(self) -> None:
        """Feed the client, until cancelled."""
        while True:
            while self.line.client is None:
                await self.line.changed()
            try:
                with trio.CancelScope() as self._scope:
                    await self._feed(self.line.client)
            finally:
                self._owner.take_back(self)

    async def _feed(self, client: Client) -> None:
        async with trio.open_nursery() as nursery:
            for (high, once), one in self._inputs.items():
                nursery.start_soon(self._send, client, one, 0.0 if high else HIGH_SHARE, once)
            while self.line.client is client:
                self.look()
                await self.line.changed()
            nursery.cancel_scope.cancel()

    async def _send(self, client: Client, notifications: Input, reserve: float, once: bool) -> None:
        async with client.send_many(notifications, reserve=reserve, once=once) as responses:
            async for batch in responses.batches():
                self._owner.finished(self, batch)

    def _input(self, claim: Claimed) -> Input:
        return self._inputs[claim.entry.high, claim.entry.delivery == "once"]
