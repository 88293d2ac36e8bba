"""From the outbox to APNs, and what became of it back: several apps side by side, none in the other's way.

    outbox.claim ──> Outlet (a long-lived send_many) ──> responses ──> verdicts ──> Settler ──> outbox.settle
    outbox.claim_fanouts ──> Walk: pages of the registry ──> send_many ──> outbox.settle_page

Each app has one task for high priority, one for the rest, and one for its fan-outs. All of them ask for slots
before they claim (`slots.py`), and a slot comes back when the end is on disk.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import trio

from fastpush.errors import InvalidNotification
from fastpush.gateway.apps import App, Apps
from fastpush.gateway.dispatcher.making import Maker
from fastpush.gateway.dispatcher.outlet import Outlet
from fastpush.gateway.dispatcher.settling import Outcomes, Settler
from fastpush.gateway.dispatcher.slots import Slots
from fastpush.gateway.dispatcher.verdicts import Patience, Way, judge, verdict_of
from fastpush.gateway.dispatcher.walk import Walker
from fastpush.gateway.outbox import Acceptance, Claimed, End, Outbox, Retry
from fastpush.notification import Response

__all__ = ["Devices", "Dispatcher", "Outcomes", "Patience"]

logger = logging.getLogger("fastpush.gateway.dispatcher")

CLAIMED_AT_ONCE = 1_000
LOOK_EVERY = 0.5  # seconds between two looks at what is queued and expires, and at pauses

Badge = Callable[[str, tuple[str, ...]], int]


class Devices(Protocol):
    """What the dispatcher asks of the registry of devices."""

    async def page(self, app: str, audience: Any, after: str = "", limit: int = 1_000) -> Any:
        """A page with `device_tokens`, `environments` ("p" or "d" for each) and `last`."""

    def report(self, app: str, verdicts: Sequence[tuple[str, int, str, int | None, float]]) -> None:
        """Take APNs' words: device token, status, reason, time of a 410 in ms, time of the answer."""

    def breaker(self, app: str) -> str | None:
        """Why the app's device tokens look wrong as a whole, None if they do not."""

    async def learn_environment(self, app: str, device_token: str, environment: Any) -> None:
        """Remember to which environment a device token belongs."""


@final
class Dispatcher:
    """Sends what the outbox holds. `run` it once.

    Args:
      badge: (app, tags of the audience) to the number for entries that ask for one.
      clock: gives UNIX seconds.
      slots: notifications in memory at once, over all apps.
    """

    def __init__(
        self,
        outbox: Outbox,
        devices: Devices,
        apps: Apps,
        *,
        badge: Badge | None = None,
        clock: Callable[[], float] = time.time,
        patience: Patience | None = None,
        slots: int = 16_384,
    ) -> None:
        self.outbox = outbox
        self.devices = devices
        self.apps = apps
        self.clock = clock
        self.patience = patience or Patience()
        self.badge = badge
        self.settler = Settler(outbox)
        self.slots = Slots(slots)
        self.draining = False
        self._apps: dict[str, Dispatch] = {}
        self._claiming = trio.CancelScope()
        self._stopped_claiming = trio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._apps)} apps, {self.slots.held} in flight>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dispatch until cancelled; call `drain` before, or what is in flight is sent again later."""
        async with trio.open_nursery() as nursery:
            for name, app in self.apps.items():
                self._apps[name] = Dispatch(self, app, nursery)
            nursery.start_soon(self.settler.run)
            nursery.start_soon(self._look)
            for each in self._apps.values():
                nursery.start_soon(each.reroute)
            task_status.started()
            with self._claiming:
                async with trio.open_nursery() as claiming:
                    claiming.start_soon(self._watch)
                    for each in self._apps.values():
                        claiming.start_soon(each.claim, True)
                        claiming.start_soon(each.claim, False)
                        claiming.start_soon(each.walker.run)
            self._stopped_claiming.set()

    async def drain(self, deadline: float) -> None:
        """Claim nothing more, wait for what is in flight until `deadline` (trio's clock), write its outcomes.

        What was claimed and not given to a client stays in the outbox, as if it had never been claimed.
        """
        self.draining = True
        self.settler.hurry()
        with trio.move_on_at(deadline):
            self._claiming.cancel()
            await self._stopped_claiming.wait()
            for each in self._apps.values():
                each.give_back()
            while any(each.busy for each in self._apps.values()) or self.settler.busy:  # noqa: ASYNC110
                await trio.sleep(0.01)

    def on_outcomes(self, listener: Callable[[Outcomes], object]) -> None:
        """Have a function called with what is on disk; it must return at once."""
        self.settler.listeners.append(listener)

    async def wait_for(self, acceptance: Acceptance, within: float) -> dict[int, End]:
        """The ends of a batch by index: all of them, or those that came within `within` seconds."""
        ends: dict[int, End] = {}
        complete = trio.Event()

        def heard(outcomes: Outcomes) -> None:
            ends.update((end.index, end) for end in outcomes.ends if end.batch == acceptance.batch)
            if len(ends) >= acceptance.count:
                complete.set()

        self.settler.listeners.append(heard)
        try:
            with trio.move_on_after(within):
                for index in range(acceptance.count):  # what had ended before this listened
                    record = await self.outbox.find(acceptance.apns_id(index))
                    if record is not None and record.outcome is not None and index not in ends:
                        last = record.attempts[-1]
                        ends[index] = End(
                            acceptance.batch, index, record.outcome, last.at, last.status, last.reason,
                            last.attempts,
                        )  # fmt: skip
                if len(ends) < acceptance.count:
                    await complete.wait()
        finally:
            self.settler.listeners.remove(heard)
        return ends

    async def _watch(self) -> None:
        """Wake the apps that have something to do."""
        seen = 0
        while True:
            seen = await self.outbox.wait_for_work(seen)
            for name, waiting in self.outbox.waiting().items():
                each = self._apps.get(name)
                if each is not None and (waiting.count or waiting.fanouts):
                    each.wake()

    async def _look(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            waiting = self.outbox.waiting()
            for name, each in self._apps.items():
                mine = waiting.get(name)
                each.look(paused=mine is not None and mine.paused)


@final
class Dispatch:
    """The dispatching of one app."""

    def __init__(self, dispatcher: Dispatcher, app: App, nursery: trio.Nursery) -> None:
        self.app = app
        self.dispatcher = dispatcher
        self.share = dispatcher.slots.add(app.settings.max_in_flight)
        self.maker = Maker(app.name, dispatcher.badge)
        self.work = trio.Event()
        self.nursery = nursery
        self._outlets: dict[tuple[str, str], Outlet] = {}
        self.walker = Walker(self)
        self._flows = {high: dispatcher.slots.flow(self.share, high=high) for high in (True, False)}

    @property
    def busy(self) -> bool:
        """Whether something is in flight or waits to be written."""
        return self.walker.busy or any(outlet.in_flight for outlet in self._outlets.values())

    def wake(self) -> None:
        self.work.set()
        self.work = trio.Event()

    async def claim(self, high: bool) -> None:
        """Claim and send what has this priority, until cancelled."""
        flow, outbox, name = self._flows[high], self.dispatcher.outbox, self.app.name
        while True:
            granted = await flow.acquire(CLAIMED_AT_ONCE)
            work = self.work
            claims: list[Claimed] = []
            try:
                claims = await outbox.claim(name, granted, high=high)
            finally:
                flow.release(granted - len(claims))
            if claims:
                self._send(claims, high)
            else:
                await work.wait()

    def _send(self, claims: Sequence[Claimed], high: bool) -> None:
        now = self.dispatcher.clock()
        outlet = self._outlet(self.app.settings.environments[0])
        make, put = self.maker.notification, outlet.put
        ended: list[Claimed] = []
        ends: list[End] = []
        for claim in claims:
            if 0 < claim.entry.expiration < now:
                ended.append(claim)
                ends.append(_end(claim, "expired", now))
                continue
            try:
                notification = make(claim)
            except InvalidNotification as error:
                ended.append(claim)
                ends.append(_end(claim, "failed", now, f"Invalid {error.field or 'notification'}"))
                continue
            put(notification, claim, high=high)
        outlet.look()
        if ends:
            self._settle(ends, ended, (), ())

    def _outlet(self, environment: Any) -> Outlet:
        line = self.app.best_line(environment)
        outlet = self._outlets.get((environment, line.role))
        if outlet is None:
            outlet = self._outlets[environment, line.role] = Outlet(line, self._finished)
            self.nursery.start_soon(outlet.run)
        return outlet

    def _finished(self, outlet: Outlet, responses: list[Response], high: bool) -> None:
        """Judge a batch of responses."""
        now = self.dispatcher.clock()
        flying = outlet.flying
        ends: list[End] = []
        claims: list[Claimed] = []
        retries: list[Retry] = []
        parked: list[Claimed] = []
        held = []
        verdicts: list[tuple[str, int, str, int | None, float]] = []
        for response in responses:
            notification = response.notification
            claim = flying.pop(id(notification))
            if response.accepted:
                ends.append(
                    End(
                        claim.batch, claim.index, "accepted", now, 200, "",
                        claim.attempts + response.attempts,
                        notification.device_token if claim.index < 0 else None,
                    )
                )  # fmt: skip
                claims.append(claim)
                continue
            if response.status is not None:
                verdicts.append(verdict_of(response, now))
            verdict = judge(
                response, claim.entry, batch=claim.batch, index=claim.index,
                device_token=notification.device_token if claim.index < 0 else None,
                before=claim.attempts, now=now, chance=random.random(), patience=self.dispatcher.patience,
            )  # fmt: skip
            if isinstance(verdict, Retry):
                retries.append(verdict)
                parked.append(claim)
            elif isinstance(verdict, End):
                ends.append(verdict)
                claims.append(claim)
            elif verdict is Way.HELD:
                held.append((notification, claim))
            else:
                ends.append(_end(claim, "rejected", now, response.reason or "", response.status or 0))
                claims.append(claim)
        if held:
            self._hold(outlet, held, high)
        if verdicts:
            self.dispatcher.devices.report(self.app.name, verdicts)
        if ends or retries:
            self._settle(ends, claims, retries, parked)

    def _hold(self, outlet: Outlet, held: Any, high: bool) -> None:
        line = outlet.line
        assert line.client is not None
        stopped = line.client.statistics().stopped
        if stopped is not None:
            line.stop(stopped, refused=True)
        outlet.put_back(held, high=high)

    def _settle(
        self, ends: list[End], claims: list[Claimed], retries: Sequence[Retry], parked: Sequence[Claimed]
    ) -> None:
        count = len(ends) + len(retries)
        self.dispatcher.settler.add(
            self.app.name, ends, claims, retries, parked, lambda: self._flows[False].release(count)
        )

    async def reroute(self) -> None:
        """Move what is queued to the line that takes it, whenever one stops or goes on."""
        while True:
            await self.app.changed()
            for (environment, _), outlet in list(self._outlets.items()):
                if outlet.line.stopped is None or not outlet.queued:
                    continue
                other = self._outlet(environment)
                if other is not outlet and other.line.stopped is None:
                    for high in (True, False):
                        other.put_back(outlet.take_queued(high=high), high=high)

    def look(self, *, paused: bool) -> None:
        """End what expired in the queues, and tell whether an operator paused the app."""
        self.app.paused = "paused by an operator" if paused else None
        now = self.dispatcher.clock()
        for outlet in self._outlets.values():
            expired = outlet.take_expired(now)
            if expired:
                self._settle([_end(claim, "expired", now) for claim in expired], expired, (), ())

    def give_back(self) -> None:
        """Forget what was claimed and not given to a client."""
        now = self.dispatcher.clock()
        retries, parked = [], []
        for outlet in self._outlets.values():
            for high in (True, False):
                for _, claim in outlet.take_queued(high=high):
                    if claim.entry.delivery == "once":  # or it would end as unknown at the next start
                        retries.append(
                            Retry(
                                claim.batch, claim.index, now, claim.attempts, now, 0, "Shutdown",
                                claim.entry.device_token if claim.index < 0 else None,
                            )
                        )  # fmt: skip
                        parked.append(claim)
        if retries:
            self._settle([], [], retries, parked)


def _end(claim: Claimed, outcome: Any, now: float, reason: str = "", status: int = 0) -> End:
    return End(
        claim.batch, claim.index, outcome, now, status, reason, claim.attempts,
        claim.entry.device_token if claim.index < 0 else None,
    )  # fmt: skip
