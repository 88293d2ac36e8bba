"""`POST /v1/opmanager`: OpManager's webhook.

OpManager posts each alarm once and nobody has found it written what it makes of an answer. So whatever can be
kept is kept and answered with 200, at once when it is on disk: also a test, and a body that nobody can read.
Refused are a key that does not do (401, 403, 429), a body without end (413), and what cannot be stored
now (503).
"""

from __future__ import annotations

from functools import partial
from typing import Literal
from urllib.parse import parse_qsl

import msgspec
import trio
from starlette.requests import ClientDisconnect

from fastpush.gateway.api import Gateway, HotRoute, Operation, Parameter, Receive, Scope, Send
from fastpush.gateway.problems import Problem
from fastpush.gateway.sources import Event
from fastpush.gateway.sources.bodies import MAX_BODY_OCTETS
from fastpush.gateway.sources.opmanager import APPLICATIONS_MANAGER_NUMBERS, OPMANAGER_NUMBERS, parse
from fastpush.gateway.storage import StorageFull, StorageUnknown

__all__ = ["MAX_DRAINED_OCTETS", "WebhookAnswer", "hot_routes"]

PATH = "/v1/opmanager"
MAX_DRAINED_OCTETS = 4 << 20
"""A body beyond this is refused; up to it what exceeds the 256 KiB that are read is let go."""
_PARSED_ASIDE_OCTETS = 32 << 10  # longer bodies are parsed in another thread
_KEPT_UNREADABLE_OCTETS = 16 << 10

_NUMBERS = {"opmanager": OPMANAGER_NUMBERS, "applications-manager": APPLICATIONS_MANAGER_NUMBERS}

TEST = (
    "The webhook works. This post names no alarm (neither entity nor alarmid has a value), so that it counts"
    " as a test: nothing was recorded or pushed."
)
UNREADABLE = (
    "No known field was found in this body. It is kept, and shown at GET /v1/alarms/unreadable; nobody was"
    " told. The template to paste is in docs/opmanager.md."
)
LATE = "Too much waits to be sent; the push follows as soon as there is room for it."


class WebhookAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a post.

    Attributes:
      status: always "ok".
      result: "recorded", "test" (it names no alarm) or "unreadable" (it is kept for people to look at).
      id: the alarm's, as in `GET /v1/alarms/{id}`; of an unreadable post its number.
      verdict, rule: what it meant for the alarm.
      state, severity: the alarm's now.
      push: the id of what was pushed, as in `GET /v1/batches/{id}`; left out where nothing was.
      unrouted: no route takes the alarm, or no device has the tags: it went to the administrators.
      quirks: what had to be repaired in the body, or was left out.
      detail: for people.
    """

    status: Literal["ok"]
    result: Literal["recorded", "test", "unreadable"]
    id: str = ""
    verdict: str = ""
    rule: str = ""
    state: str = ""
    severity: str = ""
    push: str = ""
    unrouted: str = ""
    quirks: tuple[str, ...] = ()
    detail: str = ""


_encode = msgspec.json.Encoder().encode

OPERATION = Operation(
    "OpManager's webhook",
    "Takes JSON, form-data, URL-encoded forms, XML and text, whatever the content type says. The key may"
    " stand in the URL as `token`.",
    scope="alarms",
    parameters=(
        Parameter("source", description="The name of this OpManager where the body has no `src`."),
        Parameter(
            "product",
            type=Literal["opmanager", "applications-manager"],
            description="Whose numbers a severity is: they differ on 4.",
        ),
    ),
    body={"*/*": bytes},
    answers={200: WebhookAnswer},
    refusals=(413, 503),
    tag="alarms",
)


def hot_routes(gateway: Gateway) -> list[HotRoute]:
    """POST, and PUT since OpManager's form lets one choose."""

    async def take_webhook(scope: Scope, receive: Receive, send: Send) -> None:
        signed = gateway.keys.is_signed(scope)
        if not signed:  # then nothing is read of those who may not
            principal = await gateway.keys.authenticate(scope, query_token=True)
        body, octets = await _read(receive, MAX_DRAINED_OCTETS if signed else MAX_BODY_OCTETS + 1)
        if signed:
            principal = await gateway.keys.authenticate(scope, body=body)
        principal.require("alarms", gateway.alarms.app)
        source, product = _instance(scope)
        source = source or principal.name or "opmanager"
        kind = _content_type(scope)
        parsing = partial(parse, body, kind, source=source, numbers=_NUMBERS[product])
        event = (
            await trio.to_thread.run_sync(parsing) if len(body) > _PARSED_ASIDE_OCTETS else parsing()
        )  # fmt: skip
        if gateway.watchdog is not None:
            gateway.watchdog.heard(event.source)
        try:
            answer = await _kept(gateway, event, kind, body, octets)
        except StorageFull:
            detail = "The gateway's disk is full. Nothing of this alarm was stored."
            raise Problem(503, "disk full", detail, headers={"Retry-After": "30"}, stored=False) from None
        except StorageUnknown:
            detail = "The gateway's disk failed while this alarm was written. It may be stored or not."
            raise Problem(
                503, "disk failed", detail, headers={"Retry-After": "5"}, stored="unknown"
            ) from None
        await _answer(send, answer)

    take_webhook.operation = OPERATION  # type: ignore[attr-defined]
    return [HotRoute(method, PATH, take_webhook) for method in ("POST", "PUT")]


async def _kept(gateway: Gateway, event: Event, kind: str, body: bytes, octets: int) -> WebhookAnswer:
    """Keep what was read, as what it is."""
    alarms = gateway.alarms
    if event.unreadable and "empty" not in event.quirks:
        raw = body[:_KEPT_UNREADABLE_OCTETS].decode(errors="backslashreplace")
        number = await alarms.keep_unreadable(event.source, kind, octets, raw)
        return WebhookAnswer(
            status="ok", result="unreadable", id=str(number), quirks=event.quirks, detail=UNREADABLE
        )
    if event.is_test:
        alarms.count_test()
        return WebhookAnswer(status="ok", result="test", quirks=event.quirks, detail=TEST)
    recorded = await alarms.record(event)
    return WebhookAnswer(
        status="ok",
        result="recorded",
        id=recorded.id,
        verdict=recorded.verdict,
        rule=recorded.rule,
        state=recorded.row.state,
        severity=recorded.row.severity,
        push=str(recorded.push) if recorded.push else "",
        unrouted=recorded.unrouted,
        quirks=event.quirks,
        detail=LATE if recorded.owed else "",
    )


async def _read(receive: Receive, kept: int) -> tuple[bytes, int]:
    """The beginning of the body, at least so many octets of it, and how long the whole is.

    Raises:
      Problem: 413.
      ClientDisconnect: it was cut off.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        if size < kept:
            parts.append(part)
        size += len(part)
        if size > MAX_DRAINED_OCTETS:
            raise Problem(413, detail=f"The body exceeds {MAX_DRAINED_OCTETS:,} octets, the limit here.")
        if not message.get("more_body", False):
            return b"".join(parts), size


def _instance(scope: Scope) -> tuple[str, str]:
    """Name and product of the OpManager as the URL has them, "" where it has none.

    Raises:
      Problem: 400, the product is unknown.
    """
    octets = scope["query_string"]
    if not octets:
        return "", "opmanager"
    query = dict(reversed(parse_qsl(octets.decode("latin-1")[:4_096])))
    product = query.get("product", "opmanager")
    if product not in _NUMBERS:
        raise Problem(400, "unknown product", f"Allowed: {', '.join(_NUMBERS)}.", field="product")
    source = "".join(character for character in query.get("source", "") if character.isprintable())
    return source.strip()[:256], product


def _content_type(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bytes(value).decode("latin-1")
    return ""


async def _answer(send: Send, answer: WebhookAnswer) -> None:
    body = _encode(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
