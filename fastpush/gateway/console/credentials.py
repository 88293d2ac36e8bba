"""Each app's credentials: how long they last, what they cover, whether they work; and taking a new one."""

from __future__ import annotations

import math
from contextlib import aclosing
from typing import Any

import trio
from starlette.datastructures import UploadFile
from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.doctor import Check, examine, targets_of
from fastpush.gateway.problems import Problem

__all__ = ["days_left", "routes"]

DOCTOR_WITHIN = 12.0  # seconds


def routes(console: Console) -> list[BaseRoute]:
    return [
        page_route(console, "/credentials", listed),
        page_route(console, "/credentials/{app}", uploaded, "POST"),
        page_route(console, "/credentials/{app}/doctor", examined, "POST"),
    ]


def days_left(app: Any, now: float) -> int | None:
    """Whole days until an app's own credential expires, negative afterwards; None where it does not."""
    credential = app.credential("main")
    if credential is None or credential.expires_at is None:
        return None
    return int((credential.expires_at.timestamp() - now) // 86_400)


async def listed(visit: Visit) -> Response:
    now = visit.gateway.clock()
    rows = []
    for app in visit.gateway.apps.values():
        for role in ("main", "standby"):
            credential = app.credential(role)
            if credential is None:
                continue
            lines = [line for line in app.lines if line.role == role]
            ends = None if credential.expires_at is None else credential.expires_at.timestamp()
            rows.append(
                {
                    "app": app,
                    "role": role,
                    "credential": credential,
                    "expires_at": ends,
                    "days": None if ends is None else math.floor((ends - now) / 86_400),
                    "lines": lines,
                    "accepted": sum(
                        line.client.statistics().accepted for line in lines if line.client is not None
                    ),
                }
            )
    return visit.render(
        "credentials.html",
        rows=rows,
        missing=[app for app in visit.gateway.apps.values() if app.credential("main") is None],
        can_upload=visit.gateway.renewals is not None,
        accepted_at=visit.gateway.counters.accepted_at,
    )


async def examined(visit: Visit) -> Response:
    """What `fastpush doctor` finds of one app, as far as it comes within the time of a page."""
    name = visit.request.path_params["app"]
    if name not in visit.gateway.apps:
        raise Problem(404, "no such app", "There is no app of this name.")
    checks: list[Check] = []
    with trio.move_on_after(DOCTOR_WITHIN) as scope:
        for target in targets_of(visit.gateway.config):
            if target.about.partition(" ")[0] == name:
                async with aclosing(examine(target, clock=visit.gateway.clock)) as found:
                    async for check in found:
                        checks.append(check)
    await visit.audit("doctor.run", name)
    return visit.render("doctor.html", name=name, checks=checks, cut=scope.cancelled_caught)


async def uploaded(visit: Visit) -> Response:
    """The same way as `PUT /v1/apps/{app}/credential`: judged, proved, then taken."""
    name = visit.request.path_params["app"]
    if name not in visit.gateway.apps:
        raise Problem(404, "no such app", "There is no app of this name.")
    if visit.gateway.renewals is None:
        raise Problem(409, "not possible", "This gateway takes credentials from its files only.")
    file = visit.form.get("file")
    if not isinstance(file, UploadFile) or not file.size:
        raise Problem(422, "file missing", "Choose the file of the new credential.", field="file")
    try:
        told = await visit.gateway.renewals.accept(
            name,
            await file.read(),
            password=visit.given("password") or None,
            key_id=visit.given("key_id") or None,
            team_id=visit.given("team_id") or None,
            by=visit.principal,
        )
    except Problem:
        await visit.audit("credential.refused", name)
        raise
    await visit.audit("credential.replaced", name)
    return visit.back("/credentials", told)
