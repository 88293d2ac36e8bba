"""Fan-outs: the registry of devices walked by pages, several in flight, the cursor moved in their order."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, final

import trio

from fastpush.errors import InvalidNotification
from fastpush.gateway.dispatcher.making import collapse_id_of, uuid_text
from fastpush.gateway.dispatcher.settling import Outcomes
from fastpush.gateway.dispatcher.verdicts import Way, judge, verdict_of
from fastpush.gateway.outbox import End, Fanout, Retry
from fastpush.notification import Notification, Response

if TYPE_CHECKING:
    from fastpush.gateway.dispatcher import Dispatch

__all__ = ["Walker"]

PAGE_DEVICES = 1_000
PAGES_AT_ONCE = 4
LOOK_EVERY = 0.5  # seconds between two looks at whether a line is open


@final
class Page:
    """Devices of one page, and what became of them so far."""

    __slots__ = ("accepted", "before", "cursor", "device_tokens", "done", "ends", "last", "retries")

    def __init__(self, device_tokens: list[str], cursor: str, last: bool, before: trio.Event) -> None:
        self.device_tokens = device_tokens
        self.cursor = cursor
        self.last = last
        self.accepted = 0
        self.ends: list[End] = []
        self.retries: list[Retry] = []
        self.before = before  # set when all pages before it are on disk
        self.done = trio.Event()


@final
class Walker:
    """Walks the fan-outs of one app."""

    def __init__(self, owner: Dispatch) -> None:
        self._owner = owner
        self._dispatcher = owner.dispatcher
        self._walking: set[int] = set()
        self._flow = owner.dispatcher.slots.flow(owner.share, high=False)
        self._nursery = owner.nursery  # pages end although nothing more is claimed
        self._pages = 0

    @property
    def busy(self) -> bool:
        return self._pages > 0

    async def run(self) -> None:
        """Start a walk for each fan-out, until cancelled."""
        outbox, name = self._dispatcher.outbox, self._owner.app.name
        async with trio.open_nursery() as nursery:
            while True:
                work = self._owner.work
                for fanout in await outbox.claim_fanouts(name):
                    if fanout.id not in self._walking:
                        self._walking.add(fanout.id)
                        nursery.start_soon(self._walk, fanout)
                await work.wait()

    async def _walk(self, fanout: Fanout) -> None:
        dispatcher, owner = self._dispatcher, self._owner
        once = fanout.entry.delivery == "once"
        pages = trio.CapacityLimiter(1 if once else PAGES_AT_ONCE)
        after, last = fanout.cursor, False
        before = trio.Event()
        before.set()
        try:
            while not last:
                page_slot = object()
                await pages.acquire_on_behalf_of(page_slot)
                granted, tokens = await self._flow.acquire(PAGE_DEVICES), []
                try:
                    found = await dispatcher.devices.page(owner.app.name, fanout.audience, after, granted)
                    tokens, last = found.device_tokens, found.last
                    if tokens:
                        after = tokens[-1]
                        await dispatcher.outbox.begin_page(fanout.id, after, len(tokens))
                except BaseException:
                    tokens = []
                    raise
                finally:
                    self._flow.release(granted - len(tokens))
                page = Page(tokens, after, last, before)
                before = page.done
                self._pages += 1
                self._nursery.start_soon(self._send, fanout, page, pages, page_slot)
            await before.wait()
        finally:
            self._walking.discard(fanout.id)

    async def _send(self, fanout: Fanout, page: Page, pages: trio.CapacityLimiter, page_slot: object) -> None:
        dispatcher, owner = self._dispatcher, self._owner
        try:
            await self._send_page(fanout, page)
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
            dispatcher.settler.tell(
                Outcomes(owner.app.name, page.ends, page.retries, (), fanout, page.accepted)
            )
        finally:
            self._pages -= 1
            self._flow.release(len(page.device_tokens))
            pages.release_on_behalf_of(page_slot)

    async def _send_page(self, fanout: Fanout, page: Page) -> None:
        owner = self._owner
        try:
            todo = self._notifications(fanout, page.device_tokens)
        except InvalidNotification as error:
            now = self._dispatcher.clock()
            reason = f"Invalid {error.field or 'notification'}"
            page.ends += [
                End(fanout.id, -1, "failed", now, 0, reason, 0, token) for token in page.device_tokens
            ]
            return
        environment = owner.app.settings.environments[0]
        while todo:
            line = owner.app.best_line(environment)
            if line.client is None or line.stopped is not None:
                if self._dispatcher.draining:
                    page.retries += self._put_off(fanout, todo)
                    return
                with trio.move_on_after(LOOK_EVERY):
                    await owner.app.changed()
                continue
            held: list[Notification] = []
            async with line.client.send_many(todo) as responses:
                async for batch in responses.batches():
                    self._judge(fanout, page, batch, held)
            todo = held
            if held and (stopped := line.client.statistics().stopped) is not None:
                line.stop(stopped, refused=True)

    def _put_off(self, fanout: Fanout, todo: list[Notification]) -> list[Retry]:
        """Leave devices to the next start, so that the cursor can move over the rest of their page."""
        now = self._dispatcher.clock()
        return [Retry(fanout.id, -1, now, 0, now, 0, "Shutdown", found.device_token) for found in todo]

    def _notifications(self, fanout: Fanout, device_tokens: list[str]) -> list[Notification]:
        entry = fanout.entry
        payload = self._owner.maker.payload(entry, fanout.audience)
        found = []
        for device_token in device_tokens:
            text = uuid_text(fanout.apns_id(device_token))
            found.append(
                Notification(
                    device_token,
                    payload,
                    topic=entry.topic,
                    push_type=entry.push_type,
                    priority=entry.priority,
                    expiration=entry.expiration,
                    collapse_id=collapse_id_of(entry, text),
                    apns_id=text,
                )
            )
        return found

    def _judge(self, fanout: Fanout, page: Page, batch: list[Response], held: list[Notification]) -> None:
        rest = [response for response in batch if not response.accepted]
        page.accepted += len(batch) - len(rest)
        if not rest:
            return
        now = self._dispatcher.clock()
        verdicts = []
        for response in rest:
            token = response.notification.device_token
            if response.status is not None:
                verdicts.append(verdict_of(response, now))
            verdict = judge(
                response, fanout.entry, batch=fanout.id, index=-1, device_token=token, before=0, now=now,
                chance=random.random(), patience=self._dispatcher.patience,
            )  # fmt: skip
            if isinstance(verdict, Retry):
                page.retries.append(verdict)
            elif isinstance(verdict, End):
                page.ends.append(verdict)
            elif verdict is Way.HELD:
                held.append(response.notification)
            else:
                page.ends.append(
                    End(fanout.id, -1, "rejected", now, response.status or 0, response.reason or "", 1, token)
                )
        if verdicts:
            self._dispatcher.devices.report(self._owner.app.name, verdicts)
