"""`GET /v1/notices`: what the watchdog has to say, for the app's banner and for the console."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import Gateway, json_response, operation, permitted
from fastpush.gateway.notices import CATEGORY, Channel, Shown
from fastpush.gateway.problems import Problem
from fastpush.gateway.watchdog.values import Watched

__all__ = ["admin_routes", "routes"]


class ToldBody(msgspec.Struct):
    """How one channel took the last telling of a notice."""

    channel: Channel
    change: Literal["raised", "withdrawn", "trial"]
    state: Literal["waiting", "told", "failed", "superseded"]
    at: float
    detail: str = ""


class NoticeBody(msgspec.Struct):
    """A notice that stands. `severity`: 1 critical, 2 trouble, 3 attention. Times are UNIX seconds."""

    id: str
    kind: str
    category: str
    severity: int
    title: str
    body: str
    cure: str
    apps: tuple[str, ...]
    topic: str | None
    stage: float | None
    expires_at: float | None
    told_at: float
    told: tuple[ToldBody, ...] = ()


class NoticesBody(msgspec.Struct):
    """The worst first."""

    notices: list[NoticeBody]


class TrialBody(msgspec.Struct):
    """What became of a trial by one channel."""

    channel: Channel
    told: bool
    detail: str


class TrialsBody(msgspec.Struct):
    """Of each channel that is configured."""

    trials: list[TrialBody]


class WatchedBody(msgspec.Struct):
    """Credentials first."""

    watched: list[Watched]


def routes(gateway: Gateway) -> list[BaseRoute]:
    """For phones and senders."""
    return [Route("/v1/notices", lister(gateway), methods=["GET"])]


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """For the console and the command line."""

    @operation(
        "Send a marked trial by every channel",
        scope="admin",
        answers={200: TrialsBody},
        refusals=(503,),
        tag="notices",
    )
    async def send_trial(request: Request) -> Response:
        await permitted(gateway, request, "admin")
        there(gateway)
        trials = [TrialBody(one.channel, one.told, one.detail) for one in await gateway.notices.trial()]
        return json_response(TrialsBody(trials))

    @operation(
        "What is watched, and how it is",
        description="Every credential with its expiry (a signing key has none), our own certificate, and the"
        " root that APNs' chain stands on.",
        scope="console",
        answers={200: WatchedBody},
        refusals=(503,),
        tag="notices",
    )
    async def list_watched(request: Request) -> Response:
        principal = await gateway.keys.authenticate(request.scope)
        if not principal.scopes & {"admin", "console"}:
            principal.require("console")
        there(gateway)
        return json_response(WatchedBody(gateway.watchdog.status()), headers={"Cache-Control": "no-store"})

    return [
        Route("/v1/notices", lister(gateway), methods=["GET"]),
        Route("/v1/notices/trials", send_trial, methods=["POST"]),
        Route("/v1/watched", list_watched, methods=["GET"]),
    ]


def lister(gateway: Gateway):  # type: ignore[no-untyped-def]
    """The handler that both listeners have."""

    @operation(
        "What the watchdog has to say",
        description="For a phone, those that concern its app, to be shown as a banner; for a key of the scope"
        " `console` or `admin` all of them, with how each channel took them.",
        answers={200: NoticesBody},
        refusals=(401, 403, 429, 503),
        tag="notices",
    )
    async def list_notices(request: Request) -> Response:
        principal = await gateway.keys.authenticate(request.scope)
        whole = bool(principal.scopes & {"admin", "console"})
        if not whole and principal.kind != "device":
            principal.require("console")
        there(gateway)
        shown = await gateway.notices.shown("console" if whole else "app")
        found = [
            body_of(one, whole=whole)
            for one in shown
            if not one.notice.apps or principal.apps is None or principal.apps & set(one.notice.apps)
        ]
        return json_response(NoticesBody(found), headers={"Cache-Control": "no-store"})

    return list_notices


def there(gateway: Gateway) -> None:
    """Refuse where there is no watchdog: beside a gateway that is stopped."""
    if gateway.notices is None:
        raise Problem(503, "not running", "The gateway is not running, so nothing is watched. Start it.")


def body_of(shown: Shown, *, whole: bool) -> NoticeBody:
    """A notice as it is answered; who was told is nothing for phones."""
    notice = shown.notice
    told = [ToldBody(one.channel, one.change, one.state, one.at, one.detail) for one in shown.tellings]
    return NoticeBody(
        id=notice.id,
        kind=notice.kind,
        category=CATEGORY,
        severity=notice.severity,
        title=shown.title,
        body=notice.body,
        cure=notice.cure,
        apps=notice.apps,
        topic=notice.topic,
        stage=notice.stage,
        expires_at=notice.expires_at,
        told_at=shown.told_at,
        told=tuple(told) if whole else (),
    )
