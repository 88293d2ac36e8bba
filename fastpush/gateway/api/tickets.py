"""`POST /v1/console-tickets`: a link into the console, for commands that print one."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import Gateway, json_response, operation
from fastpush.gateway.problems import Problem

__all__ = ["admin_routes"]


class Ticket(msgspec.Struct, frozen=True):
    """A way into the console, for one login within ten minutes."""

    path: str


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    @operation(
        "A link that logs in to the console",
        description="As the key that asks for it, which needs the scope `console` or `admin`.",
        scope="console",
        answers={201: Ticket},
        refusals=(503,),
        tag="keys",
    )
    async def make(request: Request) -> Response:
        principal = await gateway.keys.authenticate(request.scope)
        if principal.kind != "key" or not principal.scopes & {"admin", "console"}:
            raise Problem(403, detail="This takes a key with the scope console or admin.")
        ticket = Ticket(f"/login?ticket={gateway.sessions.ticket(principal.key_id)}")
        return json_response(ticket, 201, {"Cache-Control": "no-store"})

    return [Route("/v1/console-tickets", make, methods=["POST"])]
