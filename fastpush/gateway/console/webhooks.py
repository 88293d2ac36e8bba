"""What the senders posted last and what became of it; and what a post would become, without posting it."""

from __future__ import annotations

import tomllib
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway import banners
from fastpush.gateway import routes as routing
from fastpush.gateway.alarms import AlarmRow, judge
from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.outbox import Audience
from fastpush.gateway.problems import Problem
from fastpush.gateway.sources import alarm_digest, alarm_key
from fastpush.gateway.sources.opmanager import parse

__all__ = ["routes"]

PAGE = 30
KINDS = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "text/xml",
    "text/plain",
)
_EXAMPLE = """{
  "alarmid": "7",
  "entity": "sw-core-01_Interface_3",
  "displayName": "sw-core-01",
  "stringseverity": "Critical",
  "category": "Switch",
  "message": "Interface Gi0/3 is down"
}"""


def routes(console: Console) -> list[BaseRoute]:
    return [
        page_route(console, "/webhooks", listed),
        page_route(console, "/webhooks/preview", previewed),
        page_route(console, "/webhooks/preview/result", previewed, "POST"),
    ]


async def listed(visit: Visit) -> Response:
    source, before = visit.asked("source")[:256], visit.place("before")
    posts: list[Any] = await visit.gateway.alarms.posts(PAGE + 1, before=before, source=source)
    query = urlencode({"source": source} if source else {})
    return visit.render(
        "webhooks.html",
        posts=posts[:PAGE],
        source=source,
        newest=f"/webhooks?{query}" if before is not None else "",
        next=f"/webhooks?{query}&before={posts[PAGE - 1].number}" if len(posts) > PAGE else "",
    )


async def previewed(visit: Visit) -> Response:
    """Nothing is stored, so that a read-only key may preview too; its form is sent by GET."""
    given = visit.given if visit.request.method == "POST" else visit.asked
    kind = given("kind", KINDS[0])
    asked = {
        "body": given("body", _EXAMPLE),
        "kind": kind if kind in KINDS else KINDS[0],
        "source": given("source", "opmanager")[:256] or "opmanager",
        "routes": given("routes") or routes_text(visit.gateway.config.routes),
    }
    wrong, result = "", None
    try:
        result = await preview(visit, asked)
    except (Problem, ValueError) as error:
        wrong = error.detail if isinstance(error, Problem) else str(error)
    return visit.render("preview.html", asked=asked, kinds=KINDS, wrong=wrong, result=result)


async def preview(visit: Visit, asked: dict[str, str]) -> dict[str, Any]:
    """What the gateway would make of a body now.

    Raises:
      ValueError: the routes are none.
    """
    gateway = visit.gateway
    event = parse(asked["body"].encode(), asked["kind"], source=asked["source"])
    if event.unreadable or event.is_test:
        return {"event": event, "row": None}
    history = await gateway.alarms.get(alarm_digest(event.source, alarm_key(event)), limit=1)
    before: AlarmRow | None = None if history is None else history.row
    now = gateway.clock()
    row, verdict, rule = judge(before, event, now)
    found = routing.Routes(read_routes(asked["routes"]), gateway.config.alarms.admin_tag)
    addressed = routing.address(found, row, rule)
    pushed = banners.banner(addressed.row, rule, now, look=gateway.config.alarms.look.look())
    app = gateway.config.alarm_app
    return {
        "event": event,
        "row": addressed.row,
        "before": before,
        "verdict": verdict,
        "rule": rule,
        "addressed": addressed,
        "app": app,
        "devices": await _reached(visit, app, addressed.tags) if pushed and addressed.tags else 0,
        "payload": None if pushed is None else pushed.payload.encode(),
        "banner": pushed,
    }


async def _reached(visit: Visit, app: str, tags: tuple[str, ...]) -> int:
    return int(await visit.gateway.devices.count(app, Audience(any_of=tags)))


def read_routes(text: str) -> tuple[routing.Route, ...]:
    """Routes as the configuration spells them: `[[routes]]` tables of TOML.

    Raises:
      ValueError: with what is wrong.
    """
    if len(text) > 64 << 10:
        raise ValueError(f"The routes have {len(text):,} characters; 65,536 are allowed.")
    try:
        tables = tomllib.loads(text).get("routes", [])
        return msgspec.convert(tables, tuple[routing.Route, ...])
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"The routes are not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ValueError(f"The routes: {error}") from None


def routes_text(routes: Any) -> str:
    """Routes as the configuration spells them."""
    tables = []
    for route in routes:
        lines = ["[[routes]]"]
        for name, value in msgspec.structs.asdict(route).items():
            if value:
                text = msgspec.json.encode(list(value) if isinstance(value, tuple) else value).decode()
                lines.append(f"{name} = {text}")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)
