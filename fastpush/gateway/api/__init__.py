"""What the families of routes share: their means, bodies and answers, and what a route says of itself.

A module of routes has functions of the gateway, any of these:

    def routes(gateway: Gateway) -> list[BaseRoute]          for senders and phones
    def admin_routes(gateway: Gateway) -> list[BaseRoute]    for the admin listener
    def hot_routes(gateway: Gateway) -> list[HotRoute]       bare ASGI, for senders

They bind the gateway and touch nothing of it, so that the OpenAPI document is made without one. A handler
is described where it is written:

    @operation("What became of a batch", scope="notify", answers={200: BatchBody}, refusals=(404,))
    async def show_batch(request: Request) -> Response:
        principal = await permitted(gateway, request, "notify")
        ...
        return json_response(BatchBody(...))

A handler refuses by raising `Problem`. What storage and outbox raise becomes one by itself.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fastpush.gateway.counters import Counters
from fastpush.gateway.outbox import IdempotencyConflict, OutboxBusy
from fastpush.gateway.problems import Problem
from fastpush.gateway.quotas import Quotas
from fastpush.gateway.storage import StorageBroken, StorageFull, StorageUnknown

if TYPE_CHECKING:
    from fastpush.gateway.auth import Authenticator, Principal
    from fastpush.gateway.devices import Devices
    from fastpush.gateway.outbox import Outbox
    from fastpush.gateway.storage import Storage

__all__ = [
    "JSON_BODY_OCTETS",
    "Answer",
    "Gateway",
    "HotRoute",
    "Operation",
    "Parameter",
    "decode",
    "json_response",
    "operation",
    "permitted",
    "problem_of",
    "read_body",
    "retry_after",
    "told",
    "whole_number",
    "why_no_json",
]

JSON_BODY_OCTETS = 256 << 10
"""The largest body of one object."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
ASGI = Callable[[Any, Any, Any], Awaitable[None]]

FIELD_AT_FAULT = re.compile(r"Object (?:contains unknown|missing required) field `([^`]*)`")

T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., Any])


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Gateway:
    """What routes may use. `clock` gives UNIX seconds; `draining` is asked, not told."""

    storage: Storage
    outbox: Outbox
    devices: Devices
    keys: Authenticator
    alarms: Any
    apps: Any
    notices: Any
    config: Any
    clock: Callable[[], float]
    counters: Counters
    dispatcher: Any = None
    vitals: Any = None
    renewals: Any = None
    sessions: Any = None
    watchdog: Any = None
    traced: bool = False
    draining: Callable[[], bool] = lambda: False
    quotas: Quotas = field(default_factory=Quotas)

    def configure(self, config: Any) -> None:
        """Show another configuration, the one thing in here that changes: after SIGHUP."""
        object.__setattr__(self, "config", config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


async def permitted(gateway: Gateway, request: Request, scope: str) -> Principal:
    """Who asks, with what it takes; the route may still look at the app.

    Raises:
      Problem: 401, no good key came; 403, it lacks the scope; 429, too many wrong ones came from there.
    """
    principal = await gateway.keys.authenticate(request.scope)
    principal.require(scope)
    return principal


# Bodies, parameters and answers.


async def read_body(receive: Receive, limit: int = JSON_BODY_OCTETS) -> bytes:
    """The whole body of a request; `receive` is ASGI's, of Starlette's request `request.receive`.

    Raises:
      Problem: 413, it is larger than `limit` octets.
      ClientDisconnect: it was cut off; nobody waits for an answer.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        if part:
            size += len(part)
            if size > limit:
                raise Problem(413, detail=f"The body exceeds {limit:,} octets, the limit here.")
            parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def decode(body: bytes, kind: type[T] | msgspec.json.Decoder[T], *, at: str = "") -> T:
    """Read JSON as a type of msgspec's.

    Args:
      at: where in the request this stands; the field of the problem begins with it.

    Raises:
      Problem: 400, it is no JSON; 422, it is not of that type. With the field.
    """
    decoder: Any = kind if isinstance(kind, msgspec.json.Decoder) else msgspec.json.Decoder(kind)
    try:
        return decoder.decode(body)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        found, place = told(error, at)
        raise Problem(422, "invalid value", found, field=place) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "not JSON", f"The body is not JSON: {why_no_json(error)}.") from None


def told(error: msgspec.ValidationError, at: str = "") -> tuple[str, str | None]:
    """Sentence and field of a validation error, whose message ends like ' - at `$.alert.title`'."""
    sentence, _, place = str(error).partition(" - at `")
    path = place.rstrip("`").removeprefix("key in ").removeprefix("$")
    named = FIELD_AT_FAULT.match(sentence)
    if named is not None:
        path += f".{named[1]}"
    where = at + path if at else path.removeprefix(".")
    return sentence.replace("`", "")[:200] + ".", where[:200] or None


def why_no_json(error: Exception) -> str:
    """A few words on why octets are no JSON, without any of them."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error).removeprefix("JSON is malformed: ")


def whole_number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A parameter of the query.

    Raises:
      Problem: 400, it is no number, or not within its limits.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and least <= int(text) <= most):
        raise Problem(400, "invalid value", f"A number from {least} to {most:,}.", field=name)
    return int(text)


_encode = msgspec.json.Encoder().encode


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of JSON. Ids that may exceed 2**53 are given as strings: JavaScript's numbers end there."""
    return Response(_encode(value), status, headers, "application/json")


def problem_of(error: Exception) -> Problem | None:
    """What an exception means to the client; None for what nobody has foreseen."""
    match error:
        case Problem():
            return error
        case StorageFull():
            detail = "The gateway's disk is full. Nothing of this request was stored; repeat it later."
            return Problem(507, "disk full", detail, headers=retry_after(30), stored=False)
        case StorageUnknown() | StorageBroken():
            detail = (
                "The gateway's disk failed while this was written. It may be stored or not: repeat the"
                " request with the same Idempotency-Key, and it is accepted once."
            )
            return Problem(503, "disk failed", detail, headers=retry_after(5), stored="unknown")
        case OutboxBusy():
            detail = f"Nothing of this request was stored: {error}. Repeat it later."
            return Problem(503, "busy", detail, headers=retry_after(error.retry_after), stored=False)
        case IdempotencyConflict():
            detail = "This Idempotency-Key was used before, for a request with another content."
            return Problem(409, "idempotency key used", detail, field="Idempotency-Key", stored=False)
        case HTTPException():
            return Problem(error.status_code, detail=error.detail, headers=error.headers)
    return None


def retry_after(seconds: float) -> dict[str, str]:
    """A fifth more or less, so that those who were refused together do not come back together."""
    return {"Retry-After": str(math.ceil(seconds * random.uniform(0.8, 1.2)))}


# What a route says of itself.


class Parameter(NamedTuple):
    """Of a path, a query or a header; the type is msgspec's."""

    name: str
    where: Literal["path", "query", "header"] = "query"
    type: Any = str
    description: str = ""
    required: bool = False


class Answer(NamedTuple):
    """A type of an answer, a tuple of several, None for no body."""

    type: Any
    description: str = ""
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}
    """Name and description."""


@dataclass(frozen=True)
class Operation:
    """What the OpenAPI document says of a route.

    Attributes:
      summary: a few words.
      description: more of them, in Markdown.
      scope: of the key that it needs; None where anybody may.
      parameters: those of the path need not be named when they are plain strings.
      body: the type of the JSON, or content types and theirs.
      answers: by status: a type, or an `Answer`.
      refusals: statuses of `application/problem+json`, besides those that follow from scope and body.
      tag: the family it is shown under.
    """

    summary: str
    description: str = ""
    scope: str | None = None
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    answers: Mapping[int, Any] = field(default_factory=dict)
    refusals: tuple[int, ...] = ()
    tag: str = ""


def operation(
    summary: str,
    *,
    description: str = "",
    scope: str | None = None,
    parameters: Iterable[Parameter] = (),
    body: Any = None,
    answers: Mapping[int, Any],
    refusals: Iterable[int] = (),
    tag: str = "",
) -> Callable[[H], H]:
    """Describe a handler; see `Operation`. The handler is given back as it was."""
    described = Operation(
        summary, description, scope, tuple(parameters), body, answers, tuple(refusals), tag
    )  # fmt: skip

    def describe(handler: H) -> H:
        handler.operation = described  # type: ignore[attr-defined]
        return handler

    return describe


class HotRoute(NamedTuple):
    """A route that is found by its path alone, before Starlette; `app` is ASGI, described by `operation`."""

    method: str
    path: str
    app: ASGI
