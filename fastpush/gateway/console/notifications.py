"""Notifications: found by id, device, app, reason and time; and the whole story of one."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.problems import Problem

__all__ = ["routes"]


def routes(console: Console) -> list[BaseRoute]:
    return [
        page_route(console, "/notifications", listed),
        page_route(console, "/notifications/{apns_id}", shown),
        page_route(console, "/batches/{id}", batch),
    ]


async def listed(visit: Visit) -> Response:
    wanted = visit.asked("id")
    if octets_of(wanted) is not None:
        return visit.back(f"/notifications/{uuid.UUID(wanted)}")
    if wanted.isdecimal():
        return visit.back(f"/batches/{wanted}")
    return visit.render("notifications.html", wanted=wanted)


async def shown(visit: Visit) -> Response:
    apns_id = octets_of(visit.request.path_params["apns_id"])
    record: Any = None if apns_id is None else await visit.gateway.outbox.find(apns_id)
    if record is None:
        why = "There is none with this id, or it is older than what is kept."
        raise Problem(404, "no such notification", f"{why} A fan-out keeps only what was not accepted.")
    alarm = None
    if record.entry.trace and visit.gateway.alarms is not None:
        alarm = await visit.gateway.alarms.get(record.entry.trace, limit=100)
    body = None if alarm is None else post_of(alarm, record.batch)
    return visit.render(
        "notification.html", record=record, text=text_of(record.apns_id), alarm=alarm, body=body
    )


async def batch(visit: Visit) -> Response:
    text = visit.request.path_params["id"]
    record: Any = None
    if text.isdecimal() and len(text) < 20:
        record = await visit.gateway.outbox.find_batch(int(text))
    if record is None:
        raise Problem(404, "no such batch", "There is none with this id, or it is older than what is kept.")
    return visit.render("batch.html", record=record)


def post_of(alarm: Any, push: int) -> Any:
    """What was posted for a push, with its time; None where that is not kept any more."""
    return next(((at, told) for _, at, told in alarm.verdicts if told.push == push), None)


def octets_of(text: str) -> bytes | None:
    """The 16 octets of an apns-id, None where it is none."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return None


def text_of(apns_id: bytes) -> str:
    """An apns-id as Apple writes it."""
    return str(uuid.UUID(bytes=apns_id))
