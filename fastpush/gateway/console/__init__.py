"""The console: pages for the people who run the gateway, on the admin listener.

Drawn by the server and complete without JavaScript; with it they stay current by server-sent events. Each
family of pages is a module with `routes(console)`; `Console` is what they share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from fastpush.gateway.console import (
    alarms,
    credentials,
    devices,
    failures,
    fanouts,
    live,
    notifications,
    overview,
    webhooks,
)
from fastpush.gateway.console.access import access_routes
from fastpush.gateway.console.pages import Console, problem_page, static_routes

if TYPE_CHECKING:
    from fastpush.gateway.api import Gateway

__all__ = ["Console", "admin_routes", "problem_page"]

PAGES = (overview, alarms, notifications, fanouts, webhooks, devices, credentials, failures, live)


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """The console's routes; they are for people, and stand in no OpenAPI document."""
    console = Console(gateway)
    found: list[BaseRoute] = [*static_routes(), *access_routes(console)]
    for module in PAGES:
        found += module.routes(console)
    return found
