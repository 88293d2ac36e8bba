"""`/v1/alarms`: what is open, what happened to it, and who takes it.

A key with the scope "alarms" sees all. A phone sees its user's: those that were told to one of its tags.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.alarm_book import ListedState
from fastpush.gateway.alarms import AlarmRow
from fastpush.gateway.api import Gateway, Parameter, decode, json_response, operation, read_body
from fastpush.gateway.problems import Problem
from fastpush.gateway.sources import SEVERITIES, Severity

__all__ = [
    "AcknowledgeBody",
    "AlarmBody",
    "AlarmHistoryBody",
    "AlarmListBody",
    "UnreadableListBody",
    "routes",
]

MAX_LIMIT = 500
_STATES = get_args(ListedState)


class AlarmBody(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm as it stands. Instants are UNIX seconds.

    Attributes:
      id: of the alarm, for life.
      generation: how often it has opened.
      rank: 4 is the worst, 0 is cleared.
      source_at: the source's own time in milliseconds since 1970, where it gives that.
      repeats: events of this generation that changed nothing.
      tags: devices with any of these were told.
    """

    id: str
    source: str
    device: str
    entity: str
    alarm_id: str
    state: Literal["open", "acknowledged", "cleared"]
    severity: Severity
    rank: int
    generation: int
    repeats: int
    opened_at: float
    changed_at: float
    seen_at: float
    source_at: int | None
    acknowledged_by: str | None
    acknowledged_at: float | None
    category: str
    monitor: str
    event_type: str
    address: str
    parent: str
    message: str
    time_text: str
    url: str
    tags: tuple[str, ...]


class AlarmListBody(msgspec.Struct, frozen=True):
    """Alarms, the newest opened first; `next` is `after` of the next page, null on the last."""

    alarms: tuple[AlarmBody, ...]
    next: str | None


class VerdictBody(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to an alarm.

    Attributes:
      at: UNIX seconds.
      rule: which rule decided; docs/opmanager.md has them.
      raw: the beginning of the body that said so.
      push: what was pushed, as in `GET /v1/batches/{id}`; null where nothing was.
      unrouted: "no route" or "no device" where it went to the administrators for that reason.
    """

    number: str
    at: float
    rule: str
    severity: Severity
    generation: int
    source_at: int | None
    time_text: str
    message: str
    raw: str
    quirks: tuple[str, ...]
    by: str
    routes: tuple[str, ...]
    tags: tuple[str, ...]
    unrouted: Literal["", "no route", "no device"]
    push: str | None


class AlarmHistoryBody(msgspec.Struct, frozen=True):
    """An alarm and its verdicts, newest first; `next` is `before` of the next page, null on the last."""

    alarm: AlarmBody
    verdicts: tuple[VerdictBody, ...]
    next: str | None


class AcknowledgeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """May be left out.

    Attributes:
      generation: which opening of the alarm is meant, as the phone was told it; another one is not touched.
    """

    generation: int | None = None


class UnreadableBody(msgspec.Struct, frozen=True):
    """A post in which nothing is known; `raw` is its beginning, `octets` how long it was."""

    number: str
    at: float
    source: str
    content_type: str
    octets: int
    raw: str


class UnreadableListBody(msgspec.Struct, frozen=True):
    """The newest first; `next` is `before` of the next page, null on the last."""

    posts: tuple[UnreadableBody, ...]
    next: str | None


_LIMIT = Parameter("limit", type=int, description=f"1 to {MAX_LIMIT}; 100 where it is left out.")


def routes(gateway: Gateway) -> list[BaseRoute]:
    @operation(
        "List alarms",
        description="A phone's secret shows the alarms of its user, a key all of them.",
        scope="alarms",
        parameters=(
            Parameter("state", type=ListedState, description='"open" has the acknowledged ones in it.'),
            Parameter("device", description="A pattern with `*` and `?`, upper and lower case alike."),
            Parameter("severity", description=f"Some of {', '.join(SEVERITIES)}, with commas between."),
            Parameter("tag", description="Told to devices with this tag; may be repeated."),
            Parameter("after", description="`next` of the page before."),
            _LIMIT,
        ),
        answers={200: AlarmListBody},
        refusals=(400,),
        tag="alarms",
    )
    async def list_alarms(request: Request) -> Response:
        tags = await _sight(gateway, request)
        query = request.query_params
        state = query.get("state")
        if state is not None and state not in _STATES:
            raise Problem(400, "invalid value", f"Allowed: {', '.join(_STATES)}.", field="state")
        severities = tuple(word for word in query.get("severity", "").split(",") if word)
        if not set(severities) <= set(SEVERITIES):
            raise Problem(400, "invalid value", f"Allowed: {', '.join(SEVERITIES)}.", field="severity")
        wanted = frozenset(query.getlist("tag"))
        if wanted:
            tags = wanted if tags is None else tags & wanted
        limit = _number(request, "limit", 100, 1, MAX_LIMIT)
        after = _number(request, "after", None, 0, 1 << 62)
        found = await gateway.alarms.list(
            state=state, device=query.get("device", "")[:256], severity=severities, tags=tags, after=after,
            limit=limit,
        )  # fmt: skip
        following = str(found[-1].place) if len(found) == limit else None
        bodies = tuple(_body(listed.id, listed.row) for listed in found)
        return json_response(AlarmListBody(bodies, following))

    @operation(
        "One alarm and what happened to it",
        scope="alarms",
        parameters=(Parameter("before", description="`next` of the page before."), _LIMIT),
        answers={200: AlarmHistoryBody},
        refusals=(400, 404),
        tag="alarms",
    )
    async def show_alarm(request: Request) -> Response:
        tags = await _sight(gateway, request)
        limit = _number(request, "limit", 100, 1, MAX_LIMIT)
        before = _number(request, "before", None, 0, 1 << 62)
        found = await gateway.alarms.get(request.path_params["id"], before=before, limit=limit)
        if found is None or not _seen(found.row, tags):
            raise _nothing()
        verdicts = tuple(
            VerdictBody(
                number=str(number),
                at=at,
                push=str(told.push) if told.push else None,
                **{name: getattr(told, name) for name in _TOLD},
            )
            for number, at, told in found.verdicts
        )
        following = str(found.before) if found.before else None
        return json_response(AlarmHistoryBody(_body(found.id, found.row), verdicts, following))

    @operation(
        "Take an alarm",
        description="The first one counts, and it may be repeated. The banners of all who were told say who"
        " it was, silently. An alarm that is cleared meanwhile is answered as it is.",
        scope="alarms",
        body=AcknowledgeBody,
        answers={200: AlarmBody},
        refusals=(404, 409, 422, 503, 507),
        tag="alarms",
    )
    async def acknowledge_alarm(request: Request) -> Response:
        principal = await _principal(gateway, request)
        tags = await _tags_of(gateway, principal)
        body = await read_body(request.receive, 4_096)
        wanted = decode(body, AcknowledgeBody) if body.strip() else AcknowledgeBody()
        name = request.path_params["id"]
        found = await gateway.alarms.get(name, limit=1)
        if found is None or not _seen(found.row, tags):
            raise _nothing()
        by = principal.user or principal.name
        note = gateway.keys.log.row(principal, "alarm.acknowledge", name)
        recorded = await gateway.alarms.acknowledge(name, by, generation=wanted.generation, rows=[note])
        if recorded is None:
            raise _nothing()
        row = recorded.row
        if wanted.generation is not None and row.generation != wanted.generation:
            detail = f"The alarm has opened anew: its generation is {row.generation}."
            raise Problem(409, "another generation", detail, field="generation")
        return json_response(_body(name, row))

    @operation(
        "Posts that nobody could read",
        description="What came to a webhook and held no known field, the newest first.",
        scope="alarms",
        parameters=(Parameter("before", description="`next` of the page before."), _LIMIT),
        answers={200: UnreadableListBody},
        refusals=(400,),
        tag="alarms",
    )
    async def list_unreadable(request: Request) -> Response:
        principal = await _principal(gateway, request)
        if principal.kind == "device":
            raise Problem(403, detail="A phone's secret does not open this.")
        limit = _number(request, "limit", 100, 1, MAX_LIMIT)
        before = _number(request, "before", None, 0, 1 << 62)
        found = await gateway.alarms.unreadable(limit, before=before)
        posts = tuple(
            UnreadableBody(str(post.number), post.at, post.source, post.content_type, post.octets, post.raw)
            for post in found
        )
        return json_response(UnreadableListBody(posts, posts[-1].number if len(posts) == limit else None))

    return [
        Route("/v1/alarms", list_alarms, methods=["GET"]),
        Route("/v1/alarms/unreadable", list_unreadable, methods=["GET"]),
        Route("/v1/alarms/{id}", show_alarm, methods=["GET"]),
        Route("/v1/alarms/{id}/acknowledge", acknowledge_alarm, methods=["POST"]),
    ]


_ROW = tuple(name for name in AlarmBody.__struct_fields__ if name not in ("id", "state"))
_TOLD = tuple(name for name in VerdictBody.__struct_fields__ if name not in ("number", "at", "push"))


def _body(name: str, row: AlarmRow) -> AlarmBody:
    taken = row.state == "open" and row.acknowledged_at is not None
    return AlarmBody(
        id=name,
        state="acknowledged" if taken else row.state,
        **{name: getattr(row, name) for name in _ROW},
    )


async def _principal(gateway: Gateway, request: Request) -> Any:
    principal = await gateway.keys.authenticate(request.scope)
    if principal.kind != "device":
        principal.require("alarms", gateway.alarms.app)
    return principal


async def _tags_of(gateway: Gateway, principal: Any) -> frozenset[str] | None:
    """The tags whose alarms are seen; None for all."""
    if principal.kind != "device":
        return None
    app = gateway.alarms.app
    if principal.app != app or principal.device_token is None:
        return frozenset()
    device = await gateway.devices.get(app, principal.device_token)
    return frozenset(device.tags) if device is not None else frozenset()


async def _sight(gateway: Gateway, request: Request) -> frozenset[str] | None:
    return await _tags_of(gateway, await _principal(gateway, request))


def _seen(row: AlarmRow, tags: frozenset[str] | None) -> bool:
    return tags is None or not tags.isdisjoint(row.tags)


def _nothing() -> Problem:
    return Problem(404, detail="There is no such alarm, or it is not this phone's.")


def _number(request: Request, name: str, default: Any, least: int, most: int) -> Any:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and least <= int(text) <= most):
        raise Problem(400, "invalid value", f"A number from {least} to {most}.", field=name)
    return int(text)
