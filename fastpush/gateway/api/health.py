"""`/healthz`: the process answers. `/readyz`: it may be given work."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import Gateway, json_response, operation

__all__ = ["admin_routes", "routes"]


class Health(msgspec.Struct, frozen=True):
    """It answers."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether notifications are accepted, and if not, why. An app that APNs refuses is no reason: what is
    accepted for it waits."""

    ready: bool
    reasons: list[str]
    apps: dict[str, str]


def routes(gateway: Gateway) -> list[BaseRoute]:
    @operation("The process answers", answers={200: Health}, tag="health")
    async def health(request: Request) -> Response:
        return json_response(Health())

    @operation(
        "Notifications are accepted",
        description="503 with the reasons when they are not: the disk, or the gateway is about to end.",
        answers={200: Readiness, 503: Readiness},
        tag="health",
    )
    async def readiness(request: Request) -> Response:
        reasons = why_not(gateway)
        apps = {name: app.state for name, app in gateway.apps.items()}
        found = Readiness(ready=not reasons, reasons=reasons, apps=apps)
        return json_response(found, 503 if reasons else 200, {"Cache-Control": "no-store"})

    return [
        Route("/healthz", health, methods=["GET"]),
        Route("/readyz", readiness, methods=["GET"]),
    ]


admin_routes = routes


def why_not(gateway: Gateway) -> list[str]:
    """Reasons for not being ready."""
    storage, reasons = gateway.storage, []
    if gateway.draining():
        reasons.append("draining: the gateway is about to end")
    if storage.full:
        reasons.append("disk full: below the low-water mark")
    elif not storage.healthy:
        reasons.append("disk failed: nothing can be written")
    return reasons
