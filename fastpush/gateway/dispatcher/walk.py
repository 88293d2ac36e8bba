"""Fan-outs: the registry of devices walked by pages, several in flight, the cursor moved in their order."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, final

import trio

from fastpush.errors import InvalidNotification
from fastpush.gateway.apps import Environment, Line
from fastpush.gateway.dispatcher._pages import make_notifications
from fastpush.gateway.dispatcher.making import takes_apns_id_for_collapse_id
from fastpush.gateway.dispatcher.settling import Outcomes
from fastpush.gateway.dispatcher.slots import HIGH_SHARE
from fastpush.gateway.dispatcher.upkeep import keep_up
from fastpush.gateway.dispatcher.verdicts import Way, judge, verdict_of
from fastpush.gateway.outbox import End, Fanout, Outcome, Retry, apns_id_base
from fastpush.notification import Notification, Response

if TYPE_CHECKING:
    from fastpush.gateway.dispatcher.dispatch import Dispatch

__all__ = ["Walker"]

PAGE_DEVICES = 1_000
PAGES_AT_ONCE = 4  # of one fan-out
LOOK_EVERY = 0.5  # seconds between two looks at whether a line is open
FEW = 64  # devices of a page, up to which each has its own line in the log, as an alarm's have
TIMED = 16  # of so many responses one is timed: a device may cost 3 µs here

ENVIRONMENTS: dict[str, Environment] = {"p": "production", "d": "development"}


@final
class Page:
    """Devices of one page, and what became of them so far."""

    __slots__ = (
        "accepted", "after", "answered", "before", "cursor", "device_tokens", "done", "ends", "environments",
        "last", "retries",
    )  # fmt: skip

    def __init__(self, after: str, device_tokens: list[str], environments: str, last: bool) -> None:
        self.after = after
        self.device_tokens = device_tokens
        self.environments = environments
        self.cursor = device_tokens[-1] if device_tokens else after
        self.last = last
        self.accepted = 0
        self.answered: list[End] = []
        self.ends: list[End] = []
        self.retries: list[Retry] = []
        self.before: trio.Event | None = None  # set when all pages before it are on disk
        self.done = trio.Event()


@final
class Walker:
    """Walks the fan-outs of one app, those of one collapse id one after the other."""

    def __init__(self, owner: Dispatch) -> None:
        self._owner = owner
        self._dispatcher = owner.dispatcher
        self._walking: dict[int, Fanout] = {}
        self._over: dict[int, trio.Event] = {}
        self._walks: trio.Nursery | None = None
        self._late_until = 0  # fan-outs up to this one waited while nothing went out
        self._pages = 0
        slots = owner.dispatcher.slots
        self._flows = {high: slots.flow(owner.share, high=high) for high in (True, False)}
        self._turns = {high: trio.StrictFIFOLock() for high in (True, False)}

    @property
    def busy(self) -> bool:
        return self._pages > 0

    async def catch_up(self) -> None:
        """Nothing went out for a while: of the fan-outs that are here now only the newest is sent."""
        await self._claim()
        self._late_until = max(self._walking, default=0)

    async def run(self) -> None:
        """Start a walk for each fan-out, until cancelled."""
        async with trio.open_nursery() as self._walks:
            while True:
                work = self._owner.work
                await self._claim()
                await work.wait()

    async def _claim(self) -> None:
        found = await self._dispatcher.outbox.claim_fanouts(self._owner.app.name)
        for fanout in sorted(found, key=lambda fanout: fanout.id):
            if fanout.id not in self._walking and self._walks is not None:
                self._walks.start_soon(self._walk, fanout, self._begin(fanout))

    def _begin(self, fanout: Fanout) -> trio.Event | None:
        """Take note of a fan-out; returns the end of the one to wait for."""
        collapse_id, before = fanout.entry.collapse_id, None
        if collapse_id is not None:
            self._owner.newest.see_fanout(fanout.id, collapse_id, fanout.audience)
            same = [one for one, found in self._walking.items() if found.entry.collapse_id == collapse_id]
            before = self._over[max(same)] if same else None
        self._walking[fanout.id] = fanout
        self._over[fanout.id] = trio.Event()
        return before

    async def _walk(self, fanout: Fanout, before: trio.Event | None) -> None:
        try:
            if before is not None:
                await before.wait()
            await self._walk_pages(fanout)
        finally:
            del self._walking[fanout.id]
            self._over.pop(fanout.id).set()

    async def _walk_pages(self, fanout: Fanout) -> None:
        dispatcher, owner = self._dispatcher, self._owner
        once, high = fanout.entry.delivery == "once", fanout.entry.high
        flow, turn = self._flows[high], self._turns[high]
        pages = trio.CapacityLimiter(1 if once else PAGES_AT_ONCE)
        after, last = fanout.cursor, False
        before: trio.Event | None = None
        while not last and await self._may_go_on(fanout):
            most = PAGE_DEVICES if high else min(PAGE_DEVICES, await owner.may_send())
            place = object()
            await pages.acquire_on_behalf_of(place)
            async with turn:
                granted, taken = await flow.acquire(most), 0
            try:
                found = await dispatcher.devices.page(owner.app.name, fanout.audience, after, granted)
                page = Page(after, found.device_tokens, found.environments, found.last)
                if page.device_tokens:
                    await dispatcher.settler.insist(
                        partial(dispatcher.outbox.begin_page, fanout.id, page.cursor, len(page.device_tokens))
                    )
                taken = len(page.device_tokens)
            finally:
                flow.release(granted - taken)
            after, last = page.cursor, page.last
            page.before, before = before, page.done
            self._pages += 1
            # Pages end although nothing more is claimed.
            owner.nursery.start_soon(self._carry_out, fanout, page, pages, place)
        if before is not None:
            await before.wait()

    async def _may_go_on(self, fanout: Fanout) -> bool:
        """Wait while the app is paused; False when the fan-out was purged."""
        outbox, name = self._dispatcher.outbox, self._owner.app.name
        while True:
            work = self._owner.work
            if any(found.id == fanout.id for found in await outbox.claim_fanouts(name)):
                return True
            if not outbox.waiting()[name].paused:
                return False
            await work.wait()

    async def _carry_out(
        self, fanout: Fanout, page: Page, pages: trio.CapacityLimiter, place: object
    ) -> None:
        dispatcher, owner = self._dispatcher, self._owner
        try:
            await keep_up(owner.app.name, self._send_page, fanout, page)
            if page.before is not None:
                await page.before.wait()
            await dispatcher.settler.insist(
                lambda: dispatcher.outbox.settle_page(
                    fanout.id,
                    page.cursor,
                    accepted=page.accepted,
                    ends=page.ends,
                    retries=page.retries,
                    last=page.last,
                )
            )
            page.done.set()
            owner.count(page.ends, page.retries, page.accepted)
            dispatcher.settler.tell(
                Outcomes(owner.app.name, page.ends, page.retries, (), fanout, page.accepted, page.answered)
            )
        finally:
            self._pages -= 1
            self._flows[fanout.entry.high].release(len(page.device_tokens))
            pages.release_on_behalf_of(place)
            dispatcher.landed()

    async def _send_page(self, fanout: Fanout, page: Page) -> None:
        """Send to all devices of a page until each has an end or a time."""
        page.accepted, page.answered, page.ends, page.retries = 0, [], [], []
        settings, dispatcher = self._owner.app.settings, self._dispatcher
        todo: dict[Environment, list[Notification]] = {}
        by_environment = _divide(page.device_tokens, page.environments)
        for environment, device_tokens in by_environment.items():
            if environment not in settings.environments:
                self._end_all(fanout, page, device_tokens, "failed", f"Not sent to {environment}")
                continue
            try:
                todo[environment] = self._notifications(fanout, device_tokens)
            except InvalidNotification as error:
                reason = f"Invalid {error.field or 'notification'}"
                self._end_all(fanout, page, device_tokens, "failed", reason)
        elsewhere: set[str] | None = set() if len(settings.environments) > 1 else None
        while todo:
            environment, notifications = todo.popitem()
            notifications = await self._drop_needless(fanout, page, notifications)
            if not notifications:
                continue
            line = await self._open_line(environment)
            if line is None or line.client is None:  # draining
                now = dispatcher.clock()
                page.retries += [
                    Retry(fanout.id, -1, now, 0, now, 0, "Shutdown", found.device_token)
                    for found in notifications
                ]
                continue
            held: list[Notification] = []
            other: list[Notification] = []
            reserve = 0.0 if fanout.entry.high else HIGH_SHARE
            once = fanout.entry.delivery == "once"
            async with line.client.send_many(notifications, reserve=reserve, once=once) as responses:
                async for batch in responses.batches():
                    self._judge(fanout, page, batch, held, other, elsewhere, environment)
            if held:
                self._owner.hold(line)
                todo[environment] = held
            if other:
                first, second = settings.environments
                todo.setdefault(second if environment == first else first, []).extend(other)

    async def _open_line(self, environment: Environment) -> Line | None:
        """Wait for a line that takes pushes; None when there is none and the dispatcher drains."""
        owner = self._owner
        while True:
            line = owner.app.best_line(environment)
            if line.client is not None and line.stopped is None and not owner.held:
                return line
            if self._dispatcher.draining:
                return None
            with trio.move_on_after(LOOK_EVERY):
                await owner.app.changed()

    async def _drop_needless(
        self, fanout: Fanout, page: Page, todo: list[Notification]
    ) -> list[Notification]:
        """End what has expired, and what a newer fan-out replaces that waited with it in a pause."""
        if 0 < fanout.entry.expiration < self._dispatcher.clock():
            self._end_all(fanout, page, [found.device_token for found in todo], "expired", "")
            return []
        if fanout.id > self._late_until or fanout.entry.collapse_id is None:
            return todo
        for newer in list(self._walking.values()):
            if not fanout.id < newer.id <= self._late_until:
                continue
            if newer.entry.collapse_id == fanout.entry.collapse_id:
                members = await self._members(newer, page, [found.device_token for found in todo])
                self._end_all(fanout, page, members, "expired", "Superseded")
                gone = set(members)
                todo = [found for found in todo if found.device_token not in gone]
        return todo

    async def _members(self, newer: Fanout, page: Page, device_tokens: list[str]) -> list[str]:
        """Which of these devices of a page a newer fan-out is for, too."""
        members: set[str] = set()
        after, last = max(page.after, newer.cursor), False
        while not last and after < page.cursor:
            found = await self._dispatcher.devices.page(
                self._owner.app.name, newer.audience, after, PAGE_DEVICES
            )
            members.update(found.device_tokens)
            last = found.last or not found.device_tokens
            after = found.device_tokens[-1] if found.device_tokens else after
        return [device_token for device_token in device_tokens if device_token in members]

    def _end_all(
        self, fanout: Fanout, page: Page, device_tokens: list[str], outcome: Outcome, reason: str
    ) -> None:
        now = self._dispatcher.clock()
        page.ends += [
            End(fanout.id, -1, outcome, now, 0, reason, 0, device_token) for device_token in device_tokens
        ]

    def _notifications(self, fanout: Fanout, device_tokens: list[str]) -> list[Notification]:
        entry = fanout.entry
        return make_notifications(
            device_tokens,
            self._owner.maker.payload(entry, fanout.audience),
            entry,
            apns_id_base(fanout.id, 0).to_bytes(16, "big"),
            fanout.tag.to_bytes(4, "big"),
            takes_apns_id_for_collapse_id(entry),
        )

    def _judge(
        self,
        fanout: Fanout,
        page: Page,
        batch: list[Response],
        held: list[Notification],
        other: list[Notification],
        elsewhere: set[str] | None,
        environment: Environment,
    ) -> None:
        rest = [response for response in batch if not response.accepted]
        now = self._dispatcher.clock()
        page.accepted += len(batch) - len(rest)
        if len(page.device_tokens) <= FEW:
            self._take_one_by_one(fanout, page, batch, now)
        seconds = self._dispatcher.counters.apns_seconds[self._owner.app.name]
        for response in batch[::TIMED]:
            seconds.add(response.elapsed)
        if elsewhere:
            for response in batch:
                if response.accepted and response.notification.device_token in elsewhere:
                    self._owner.learn(response.notification.device_token, environment)
        verdicts = []
        held_before = len(held)
        for response in rest:
            token = response.notification.device_token
            verdict = judge(
                response, fanout.entry, batch=fanout.id, index=-1, device_token=token, before=0, now=now,
                chance=random.random(), patience=self._dispatcher.patience,
            )  # fmt: skip
            if verdict is Way.HELD:
                held.append(response.notification)
                continue
            if verdict is Way.ELSEWHERE:
                if elsewhere is not None and token not in elsewhere:
                    elsewhere.add(token)
                    other.append(response.notification)
                    continue
                reason = response.reason or ""
                verdict = End(fanout.id, -1, "rejected", now, response.status or 0, reason, 1, token)
            if response.status is not None:
                verdicts.append(verdict_of(response, now))
            if isinstance(verdict, Retry):
                page.retries.append(verdict)
            elif isinstance(verdict, End):
                page.ends.append(verdict)
        self._owner.report(verdicts, batch, len(held) - held_before, rest, now)

    def _take_one_by_one(self, fanout: Fanout, page: Page, batch: list[Response], now: float) -> None:
        """Keep each acceptance for the log; with Apple's own id, which nobody else keeps, on disk too."""
        for response in batch:
            if response.accepted:
                unique_id, token = response.apns_unique_id, response.notification.device_token
                end = End(fanout.id, -1, "accepted", now, 200, "", response.attempts, token, unique_id)
                if unique_id is None:
                    page.answered.append(end)
                else:
                    page.ends.append(end)
                    page.accepted -= 1


def _divide(device_tokens: list[str], letters: str) -> dict[Environment, list[str]]:
    """The device tokens of a page by environment."""
    for letter, environment in ENVIRONMENTS.items():
        if letters.count(letter) == len(device_tokens):
            return {environment: device_tokens} if device_tokens else {}
    divided: dict[Environment, list[str]] = {}
    for device_token, letter in zip(device_tokens, letters, strict=True):
        divided.setdefault(ENVIRONMENTS[letter], []).append(device_token)
    return divided
