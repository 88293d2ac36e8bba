"""Notifications: found by id, device, app, reason and time; and the whole story of one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.console import fanouts
from fastpush.gateway.console.fanouts import Trail
from fastpush.gateway.console.handles import ending
from fastpush.gateway.console.pages import Console, Visit, page_route, row_number
from fastpush.gateway.outbox import apns_id_base, batch_of
from fastpush.gateway.phone import card
from fastpush.gateway.problems import Problem

__all__ = ["Earlier", "pushed", "routes"]

PAGE = 50
ID_DIGITS = 32
LOOK_BACK = 5  # pushes before one that are looked at for the banner that it replaced
FIELDS = ("id", "app", "outcome", "reason", "device", "source", "after", "before")
OUTCOMES = ("waiting", "accepted", "rejected", "expired", "failed", "unknown")


def routes(console: Console) -> list[BaseRoute]:
    return [
        page_route(console, "/notifications", listed, digits="device"),
        page_route(console, "/notifications", asked_for, "POST", changes=False),
        page_route(console, "/notifications/{apns_id}", shown),
        page_route(console, "/batches/{id}", batch, digits="device"),
        page_route(console, "/batches/{id}", asked_of, "POST", changes=False),
    ]


async def asked_for(visit: Visit) -> Response:
    """A search as it was typed: a whole device token may be in it, and only its end goes on."""
    wanted = {name: visit.given(name)[:256] for name in FIELDS} | {"device": ending(visit.given("device"))}
    if len(wanted["id"].replace("-", "")) > ID_DIGITS:
        raise Problem(
            422, "no apns-id", f"An apns-id has {ID_DIGITS} hex digits, the number of a batch fewer."
        )
    query = urlencode({name: value for name, value in wanted.items() if value})
    return visit.back(f"/notifications?{query}" if query else "/notifications")


async def asked_of(visit: Visit) -> Response:
    """Whether a device was among those of a fan-out, as it was typed."""
    number = row_number(visit.request.path_params["id"])
    if number is None:
        raise Problem(404, "no such batch", "There is none with this id, or it is older than what is kept.")
    return visit.back(f"/batches/{number}?{urlencode({'device': ending(visit.given('device'))})}#among")


class Earlier(NamedTuple):
    """A push whose banner another took the place of: its payload, when it was accepted, and its page."""

    payload: bytes
    at: float
    page: str


async def listed(visit: Visit) -> Response:
    """An id leads to its page at once; part of one, and everything else, is searched for."""
    wanted = {name: visit.asked(name)[:256] for name in FIELDS}
    if octets_of(wanted["id"]) is not None:
        return visit.back(f"/notifications/{uuid.UUID(wanted['id'])}")
    if wanted["id"].isdecimal() and len(wanted["id"]) > 15:
        return visit.back(f"/batches/{wanted['id']}")
    cursor, wrong = visit.asked("cursor"), ""
    page: Any = None
    try:
        page = await visit.gateway.outbox.search(
            app=wanted["app"] or None,
            outcome=wanted["outcome"] or None,
            reason=wanted["reason"] or None,
            device_ends=checked_digits(wanted["device"], "device token") or None,
            source=wanted["source"] or None,
            apns_id_prefix=checked_digits(wanted["id"].replace("-", ""), "apns-id") or None,
            after=instant(wanted["after"]),
            before=instant(wanted["before"]),
            cursor=cursor or None,
            limit=PAGE,
        )
    except ValueError as error:
        wrong = str(error)
    trails: list[Trail] | None = None
    if page is not None and len(wanted["device"]) >= 4 and not (cursor or wanted["reason"] or wanted["id"]):
        trails = await fanouts.trails(
            visit,
            wanted["device"],
            wanted["app"],
            source=wanted["source"] or None,
            after=instant(wanted["after"]),
            before=instant(wanted["before"]),
        )
    query = urlencode({name: value for name, value in wanted.items() if value})
    return visit.render(
        "notifications.html",
        422 if wrong else 200,
        wanted=wanted,
        wrong=wrong,
        apps=list(visit.gateway.apps),
        outcomes=OUTCOMES,
        hits=() if page is None else page.rows,
        trails=trails,
        newest=f"/notifications?{query}" if cursor else "",
        next="" if page is None or not page.cursor else f"/notifications?{query}&cursor={quote(page.cursor)}",
    )


def checked_digits(text: str, what: str) -> str:
    """Hex digits in lower case. Raises ValueError."""
    if not re.fullmatch(r"[0-9a-fA-F]*", text):
        raise ValueError(f"Of the {what} only hex digits are searched for.")
    return text.lower()


def instant(text: str) -> float | None:
    """UNIX seconds of a time in UTC as a form gives it, such as 2026-11-23T20:15. Raises ValueError."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("A time looks like 2026-11-23T20:15; it is in UTC.") from None
    if (
        not 1970 <= moment.year < 2200
    ):  # beyond are dates that no clock of ours writes, and some that no number holds
        raise ValueError("A time is between the years 1970 and 2199.")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


async def shown(visit: Visit) -> Response:
    apns_id = octets_of(visit.request.path_params["apns_id"])
    record: Any = None if apns_id is None else await visit.gateway.outbox.find(apns_id)
    if record is None:
        return await _counted_only(visit, apns_id)
    alarm = await _alarm_of(visit, record.entry)
    body = None if alarm is None else post_of(alarm, record.batch)
    return visit.render(
        "notification.html",
        record=record,
        earlier=await earlier_of(visit, record, alarm),
        text=text_of(record.apns_id),
        alarm=alarm,
        body=body,
        may_be_sent_again=record.outcome in ("failed", "rejected", "expired", "unknown"),
    )


async def _counted_only(visit: Visit, apns_id: bytes | None) -> Response:
    """There is no such notification, or it is one of a fan-out that has no page."""
    number = 0 if apns_id is None else batch_of(apns_id)
    fanout: Any = await visit.gateway.outbox.find_batch(number) if 0 < number < 1 << 63 else None
    if apns_id is None or fanout is None or fanout.kind != "fanout":
        why = "There is none with this id, or it is older than what is kept."
        raise Problem(404, "no such notification", why)
    return visit.render("counted.html", 404, fanout=fanout, text=text_of(apns_id))


async def batch(visit: Visit) -> Response:
    number = row_number(visit.request.path_params["id"])
    record: Any = None if number is None else await visit.gateway.outbox.find_batch(number)
    if record is None:
        raise Problem(404, "no such batch", "There is none with this id, or it is older than what is kept.")
    alarm = await _alarm_of(visit, record.entry)
    digits, wrong = visit.asked("device")[:256], ""
    among = None
    try:
        if record.kind == "fanout" and len(checked_digits(digits, "device token")) >= 4:
            among = await fanouts.among(visit, record, record.audience, digits)
    except ValueError as error:
        wrong = str(error)
    return visit.render(
        "batch.html",
        record=record,
        alarm=alarm,
        body=None if alarm is None else post_of(alarm, record.batch),
        digits=digits,
        wrong=wrong,
        among=among,
        # The first 72 of the 74 bits that the apns-ids of a batch share; own ids of a sender begin otherwise.
        prefix=apns_id_base(record.batch, 0).to_bytes(16, "big").hex()[:18],
        earlier=await earlier_of(visit, record, alarm),
    )


async def _alarm_of(visit: Visit, entry: Any) -> Any:
    """The alarm behind a push, with its history; None where there is none."""
    if entry is None or not entry.trace or visit.gateway.alarms is None:
        return None
    return await visit.gateway.alarms.get(entry.trace, limit=100)


async def earlier_of(visit: Visit, record: Any, alarm: Any) -> Earlier | None:
    """The banner that a push took the place of: the newest before it with its collapse id, if it got out."""
    entry, outbox = record.entry, visit.gateway.outbox
    if entry is None or not entry.collapse_id:
        return None
    if alarm is not None:
        pushes = [told.push for *_, told in alarm.verdicts if 0 < told.push < record.batch]
        return await pushed(visit, sorted(pushes, reverse=True), entry.collapse_id)
    if entry.device_token is None:
        page = await outbox.fanouts(app=record.app, source=record.source, below=record.batch, limit=LOOK_BACK)
        same = [one.batch for one in page.rows if one.audience == record.audience]
        return await pushed(visit, same, entry.collapse_id)
    found: Any = await outbox.search(
        app=record.app, device_ends=entry.device_token, before=record.received_at, limit=LOOK_BACK
    )
    for hit in found.rows:
        before: Any = await outbox.find(hit.apns_id)
        if before is not None and before.outcome == "accepted" and _replaces(before.entry, entry.collapse_id):
            where = f"/notifications/{text_of(before.apns_id)}"
            return Earlier(before.entry.payload, before.received_at, where)
    return None


async def pushed(visit: Visit, pushes: Sequence[int], collapse_id: str) -> Earlier | None:
    """The first of these fan-outs that brought a banner with this collapse id to somebody."""
    for push in pushes[:LOOK_BACK]:
        before: Any = await visit.gateway.outbox.find_batch(push)
        if before is None or not before.outcomes.get("accepted") or before.entry is None:
            continue
        if _replaces(before.entry, collapse_id):
            return Earlier(before.entry.payload, before.received_at, f"/batches/{push}")
    return None


def _replaces(entry: Any, collapse_id: str) -> bool:
    """Whether a push was a banner that one with this collapse id takes the place of."""
    shown = card(entry.payload) if entry.collapse_id == collapse_id and entry.payload else None
    return shown is not None and not shown.silent


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
