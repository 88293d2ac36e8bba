"""`/live`: server-sent events that say when a page is worth fetching again, and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import trio
from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.console.pages import HEADERS, Console, Visit, page_route
from fastpush.gateway.problems import Problem

if TYPE_CHECKING:
    from fastpush.gateway.api import Gateway

__all__ = ["routes"]

LOOK_EVERY = 1.0  # seconds; nothing is looked at while nobody watches
SILENCE = 15.0  # seconds after which a comment shows that the connection is alive
MOST_WATCHERS = 64


def routes(console: Console) -> list[BaseRoute]:
    """One stream for each page that is open; the event `change` has no content."""
    watchers: set[Changes] = set()

    async def live(visit: Visit) -> Response:
        if len(watchers) >= MOST_WATCHERS:
            raise Problem(503, "Too many watchers", f"{MOST_WATCHERS} pages are watched already.")
        return Changes(visit, watchers)

    return [page_route(console, "/live", live)]


@final
class Changes(Response):
    """Says `change` whenever what pages show is another, until browser, session or gateway ends."""

    def __init__(self, visit: Visit, watchers: set[Changes]) -> None:
        super().__init__(headers=HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._visit = visit
        self._gateway = visit.gateway
        self._watchers = watchers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer; the request has no body, so that all that may come is the end of it."""
        self._watchers.add(self)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_gone, receive, nursery.cancel_scope)
                await self._tell(send)
                nursery.cancel_scope.cancel()
        finally:
            self._watchers.discard(self)

    async def _until_gone(self, receive: Any, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _tell(self, send: Any) -> None:
        async def line(text: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": more})

        known, told_at = what_is_shown(self._gateway), trio.current_time()
        await line(b"retry: 2000\n\n")
        while not self._gateway.draining() and self._visit.stands():
            await trio.sleep(LOOK_EVERY)
            found = what_is_shown(self._gateway)
            if found != known:
                known, told_at = found, trio.current_time()
                await line(b"event: change\ndata:\n\n")
            elif trio.current_time() - told_at >= SILENCE:
                told_at = trio.current_time()
                await line(b":\n\n")
        await line(b"", more=False)


def what_is_shown(gateway: Gateway) -> tuple[object, ...]:
    """A few numbers, one of which is another when a page would be."""
    counters = gateway.counters
    latest = None if gateway.vitals is None else gateway.vitals.latest
    return (
        sum(counters.outcomes.values()),
        sum(counters.retries.values()),
        sum(counters.notifications.values()),
        None if gateway.alarms is None else gateway.alarms.statistics(),
        tuple(gateway.outbox.waiting().items()),
        tuple((name, app.state, app.reason) for name, app in gateway.apps.items()),
        None if gateway.notices is None else tuple(gateway.notices.standing()),
        None if latest is None else latest.at,
    )
