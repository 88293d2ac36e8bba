"""Fan-outs: a list by time, and what became of a device of which they keep no row.

The outbox knows how far a fan-out was walked and what was not accepted, the registry which tags a device
bears. Together they tell whether a push was accepted, and with which reservation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.devices import Device
from fastpush.gateway.outbox import Audience, BatchRecord, Passage

__all__ = ["Told", "Trail", "among", "routes", "tell", "trails"]

PAGE = 50
NEWEST = 5  # of each device, beside the notifications that a search found
MOST_DEVICES = 3
NOT_MEANT = "not meant"


def routes(console: Console) -> list[BaseRoute]:
    return [page_route(console, "/batches", listed)]


class Told(NamedTuple):
    """What is known of a device in a fan-out.

    Attributes:
      outcome: as of a notification, None for one that waits; or `NOT_MEANT`.
      words: from what that follows.
      certain: whether it follows without reservation.
    """

    fanout: Any
    device: Device
    passage: Passage
    outcome: str | None
    words: str = ""
    certain: bool = True

    @property
    def has_page(self) -> bool:
        """Whether something is written down of it, which the page of its notification tells."""
        return self.passage.attempt is not None


class Trail(NamedTuple):
    """The fan-outs that mean a device, newest first, and the address of those before them."""

    device: Device
    rows: list[Told]
    older: str


def tell(fanout: Any, audience: Audience, device: Device, passage: Passage) -> Told:
    """What follows from a fan-out, the device as it is registered, and what is written down of both."""
    if passage.attempt is not None:
        return Told(fanout, device, passage, passage.outcome)
    again = device.seen_at > fanout.received_at  # its tags may have been others before
    dead = device.dead_at is not None
    if dead and device.dead_at <= fanout.received_at:
        return Told(fanout, device, passage, NOT_MEANT, f"it was dropped before: {device.dead_reason}")
    if not audience.means(device.tags):
        words = "it does not bear the tags"
        if again:
            words += " now; it registered again since, and may have had others"
        return Told(fanout, device, passage, NOT_MEANT, words, certain=not again)
    if passage.outcome is None:
        return Told(fanout, device, passage, None, "meant, and not reached yet")
    if again:
        words = "counted so if it had the tags then: it registered again since"
    elif dead:
        words = f"counted so if it was reached before it was dropped: {device.dead_reason}"
    else:
        words = "it bears the tags, was reached, and no other end of it was written down"
    return Told(fanout, device, passage, passage.outcome, words, certain=not again and not dead)


async def trails(visit: Visit, digits: str, app: str, **narrowed: Any) -> list[Trail]:
    """Of the devices whose device tokens end so, the newest fan-outs that mean them."""
    devices: list[Device] = []
    for name in [app] if app else visit.gateway.apps:
        devices += await visit.gateway.devices.ending(name, digits, MOST_DEVICES)
    return [await _trail(visit, device, NEWEST, **narrowed) for device in devices[:MOST_DEVICES]]


async def among(visit: Visit, record: BatchRecord, audience: Audience, digits: str) -> list[Told]:
    """What became in one fan-out of the devices whose device tokens end so."""
    found = []
    for device in await visit.gateway.devices.ending(record.app, digits):
        passages = await visit.gateway.outbox.passages([record.batch], device.device_token)
        found += [tell(record, audience, device, passage) for passage in passages.values()]
    return found


async def _trail(visit: Visit, device: Device, limit: int, **narrowed: Any) -> Trail:
    """The newest fan-outs that mean a device by the tags that it bears now."""
    outbox = visit.gateway.outbox
    page = await outbox.fanouts(app=device.app, tags=device.tags, limit=limit, **narrowed)
    found = await outbox.passages([one.batch for one in page.rows], device.device_token)
    rows = [tell(one, one.audience, device, found[one.batch]) for one in page.rows if one.batch in found]
    query = urlencode(
        {"app": device.app, "device": visit.handle(device.app, device.device_token), "below": page.below}
    )
    return Trail(device, rows, f"/batches?{query}" if page.below else "")


async def listed(visit: Visit) -> Response:
    """All fan-outs; those that mean one device where its handle is given."""
    app, below = visit.asked("app"), visit.place("below")
    app = app if app in visit.gateway.apps else ""
    token = visit.opened(app, visit.asked("device"))
    device = await visit.gateway.devices.get(app, token) if app and token else None
    query = {"app": app} if app else {}
    rows: Sequence[Any]
    if device is not None:
        query["device"] = visit.handle(app, device.device_token)
        _, rows, older = await _trail(visit, device, PAGE, below=below)
    else:
        page = await visit.gateway.outbox.fanouts(app=app or None, below=below, limit=PAGE)
        rows = page.rows
        older = f"/batches?{urlencode(query | {'below': str(page.below)})}" if page.below else ""
    return visit.render(
        "fanouts.html",
        apps=list(visit.gateway.apps),
        app=app,
        device=device,
        rows=rows,
        newest=f"/batches?{urlencode(query)}" if below is not None else "",
        next=older,
    )
