"""The dead letters: what failed for good, by reason, and sending it again."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.console.pages import Console, Visit, page_route

__all__ = ["routes"]


def routes(console: Console) -> list[BaseRoute]:
    return [page_route(console, "/failures", listed)]


async def listed(visit: Visit) -> Response:
    return visit.render("failures.html")
