"""`/live`: server-sent events that say when a page is worth fetching again, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import trio
from starlette.responses import Response, StreamingResponse
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
    watchers = 0

    async def live(visit: Visit) -> Response:
        if watchers >= MOST_WATCHERS:
            raise Problem(503, "Too many watchers", f"{MOST_WATCHERS} pages are watched already.")

        async def events() -> AsyncGenerator[bytes, None]:
            nonlocal watchers
            watchers += 1
            try:
                async for line in changes(visit.gateway):
                    yield line
            finally:
                watchers -= 1

        return StreamingResponse(events(), headers=HEADERS, media_type="text/event-stream")

    return [page_route(console, "/live", live)]


async def changes(gateway: Gateway) -> AsyncGenerator[bytes, None]:
    """A line whenever anything that pages show is another; ends when the gateway is about to."""
    known, told_at = what_is_shown(gateway), trio.current_time()
    yield b"retry: 2000\n\n"
    while not gateway.draining():
        await trio.sleep(LOOK_EVERY)
        found = what_is_shown(gateway)
        if found != known:
            known, told_at = found, trio.current_time()
            yield b"event: change\ndata:\n\n"
        elif trio.current_time() - told_at >= SILENCE:
            told_at = trio.current_time()
            yield b":\n\n"


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
