"""From the outbox to APNs, and what became of it back: several apps side by side, none in the other's way.

    outbox.claim ──> Outlet (a long-lived send_many) ──> responses ──> verdicts ──> Settler ──> outbox.settle
    outbox.claim_fanouts ──> Walk: pages of the registry ──> send_many ──> outbox.settle_page

Each app has one task for high priority, one for the rest, and one for its fan-outs. All of them ask for slots
before they claim (`slots.py`), and a slot comes back when the end is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import trio

from fastpush.gateway.apps import Apps
from fastpush.gateway.counters import Counters
from fastpush.gateway.dispatcher.dispatch import Dispatch
from fastpush.gateway.dispatcher.settling import Outcomes, Settler
from fastpush.gateway.dispatcher.slots import Slots
from fastpush.gateway.dispatcher.upkeep import keep_up
from fastpush.gateway.dispatcher.verdicts import Patience
from fastpush.gateway.outbox import Acceptance, End, Outbox

__all__ = ["Devices", "Dispatcher", "Outcomes", "Patience"]

LOOK_EVERY = 0.5  # seconds between two looks at what is queued and expires, and at pauses

Badge = Callable[[str, tuple[str, ...]], int]


class Devices(Protocol):
    """What the dispatcher asks of the registry of devices."""

    async def page(self, app: str, audience: Any, after: str = "", limit: int = 1_000) -> Any:
        """A page with `device_tokens`, `environments` ("p" or "d" for each) and `last`."""

    def report(
        self, app: str, verdicts: Sequence[tuple[str, int, str, int | None, float]], *, accepted: int = 0
    ) -> None:
        """Take APNs' words: device token, status, reason, time of a 410 in ms, time of the answer.

        `accepted` is how many got a 200.
        """

    def breaker(self, app: str) -> str | None:
        """Why the app's device tokens look wrong as a whole, None if they do not."""

    async def breaker_closed(self, app: str) -> None:
        """Return when `breaker` gives None."""

    async def environments(self, app: str, device_tokens: Sequence[str]) -> Any:
        """To which environment device tokens belong: those that are known."""

    async def learn_environment(self, app: str, device_token: str, environment: Any) -> None:
        """Remember to which environment a device token belongs."""


@final
class Dispatcher:
    """Sends what the outbox holds. `run` it once.

    Args:
      badge: (app, tags of the audience) to the number for entries that ask for one.
      clock: gives UNIX seconds.
      counters: where outcomes are counted.
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
        counters: Counters | None = None,
        slots: int = 16_384,
    ) -> None:
        self.outbox = outbox
        self.devices = devices
        self.apps = apps
        self.clock = clock
        self.patience = patience or Patience()
        self.badge = badge
        self.counters = counters or Counters()
        self.settler = Settler(outbox, self.landed)
        self.slots = Slots(slots)
        self.draining = False
        self._apps: dict[str, Dispatch] = {}
        self._claiming = trio.CancelScope()
        self._stopped_claiming = trio.Event()
        self._landed = trio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._apps)} apps, {self.slots.held} in flight>"

    @property
    def busy(self) -> bool:
        """Whether something is in flight, or its outcome not on disk."""
        return self.settler.busy or any(each.busy for each in self._apps.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dispatch until cancelled; call `drain` before, or what is in flight is sent again later."""
        async with trio.open_nursery() as nursery:
            for name, app in self.apps.items():
                self._apps[name] = Dispatch(self, app, nursery)
            nursery.start_soon(self.settler.run)
            nursery.start_soon(self._look)
            task_status.started()
            with self._claiming:
                async with trio.open_nursery() as claiming:
                    claiming.start_soon(self._watch)
                    for each in self._apps.values():
                        for task, *arguments in ((each.claim, True), (each.claim, False), (each.walker.run,)):
                            claiming.start_soon(keep_up, each.app.name, task, *arguments)
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
            while self.busy:
                await self._landed.wait()

    def landed(self) -> None:
        """Note that something is no longer in flight, or that its outcome is on disk."""
        self._landed.set()
        self._landed = trio.Event()

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
                if each is not None:
                    each.notice_pause(waiting.paused)
                    if waiting.count or waiting.fanouts:
                        each.wake()

    async def _look(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            waiting = self.outbox.waiting()
            for name, each in self._apps.items():
                mine = waiting.get(name)
                each.look(paused=mine is not None and mine.paused)
