"""Alarms by device and severity, what happened to each, and taking one."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.alarms import RULES
from fastpush.gateway.console.pages import Console, Visit, page_route, row_number
from fastpush.gateway.problems import Problem
from fastpush.gateway.sources import SEVERITIES

__all__ = ["routes"]

PAGE = 50


def routes(console: Console) -> list[BaseRoute]:
    return [
        page_route(console, "/alarms", listed),
        page_route(console, "/alarms/{id}", shown),
        page_route(console, "/alarms/{id}/acknowledge", acknowledged, "POST"),
    ]


async def listed(visit: Visit) -> Response:
    state = visit.asked("state", "open")
    wanted = {
        "state": state if state in ("open", "cleared", "all") else "open",
        "device": visit.asked("device")[:256],
        "severity": visit.asked("severity") if visit.asked("severity") in SEVERITIES else "",
    }
    after = visit.place("after")
    alarms: list[Any] = await visit.gateway.alarms.list(
        state=None if wanted["state"] == "all" else wanted["state"],
        device=f"*{wanted['device']}*" if wanted["device"] else "",
        severity=(wanted["severity"],) if wanted["severity"] else (),
        after=after,
        limit=PAGE + 1,
    )
    more = len(alarms) > PAGE
    query = urlencode({name: value for name, value in wanted.items() if value})
    return visit.render(
        "alarms.html",
        alarms=alarms[:PAGE],
        wanted=wanted,
        severities=[word for word in SEVERITIES if word != "clear"],
        newest=f"/alarms?{query}" if after is not None else "",
        next=f"/alarms?{query}&after={alarms[PAGE - 1].place}" if more else "",
    )


async def shown(visit: Visit) -> Response:
    name = visit.request.path_params["id"]
    before = visit.place("before")
    history = await visit.gateway.alarms.get(name, before=before, limit=PAGE)
    if history is None:
        raise Problem(
            404, "no such alarm", "There is no alarm with this id; it may be older than what is kept."
        )
    return visit.render(
        "alarm.html",
        history=history,
        rules=RULES,
        newest=f"/alarms/{name}" if before is not None else "",
        next=f"/alarms/{name}?before={history.before}" if history.before else "",
    )


async def acknowledged(visit: Visit) -> Response:
    name = visit.request.path_params["id"]
    meant = row_number(visit.given("generation"))
    taken = await visit.gateway.alarms.acknowledge(name, visit.principal.name, generation=meant)
    if taken is None:
        raise Problem(404, "no such alarm", "There is no alarm with this id.")
    found = taken.row
    if meant is not None and found.generation != meant:
        said = "Nothing was done: it had cleared, and opened again. Look at it as it is now."
    elif found.acknowledged_at is None:
        said = "Nothing was done: it had cleared before."
    elif found.acknowledged_by != visit.principal.name:
        said = f"Nothing was done: {found.acknowledged_by} had taken it before."
    else:
        await visit.audit("alarm.acknowledged", name)
        said = "Acknowledged. The phones that were told show it, silently."
    return visit.back(f"/alarms/{name}", said)
