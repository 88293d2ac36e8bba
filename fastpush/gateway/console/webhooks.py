"""What the senders posted last and what became of it; and what a post would become, without posting it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway import banners
from fastpush.gateway import routes as routing
from fastpush.gateway.alarms import AlarmRow, judge
from fastpush.gateway.console.notifications import pushed as earlier_push
from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.outbox import Audience
from fastpush.gateway.problems import Problem
from fastpush.gateway.sources import alarm_digest, alarm_key
from fastpush.gateway.sources.bodies import MAX_BODY_OCTETS
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
TEMPLATE = (
    '{"src":"opm1","alarmid":"$alarmid","entity":"$entity","stringseverity":"$stringseverity",\n'
    '"severity":"$severity","displayName":"$displayName","ipAddress":"$DeviceField(ipAddress)",\n'
    '"category":"$category","monitor":"$MonitorField(monitorName)","eventType":"$eventType",\n'
    '"strModTime":"$strModTime","message":"$message"}'
)
# What OpManager would put in place of its variables, for an alarm that never was; the form has three of them.
EXAMPLE = {
    "alarmid": "4092",
    "entity": "sw-core-01_Poll",
    "severity": "1",
    "category": "Switch",
    "eventType": "Device Down",
    "strModTime": "23 Nov 2026 08:15:42 PM UTC",
    "lastPolledValue": "0",
    "ipAddress": "192.0.2.7",
    "type": "Switch",
    "dependent": "sw-edge",
    "ifName": "Gi0/3",
    "monitorName": "Availability",
}
SEVERITY_WORDS = ("Critical", "Service Down", "Trouble", "Attention", "Clear", "Info")
_VARIABLE = re.compile(r"\$(?:[A-Za-z]+\((\w+)\)|(\w+))")


def expanded(template: str, values: Mapping[str, str]) -> str:
    """The template as OpManager posts it: known variables replaced, unknown ones left as they are.

    Raises:
      ValueError: it becomes longer than any post that is read.
    """
    length = len(template)
    for found in _VARIABLE.finditer(template):
        length += len(values.get(found[1] or found[2], found[0])) - len(found[0])
    if length > MAX_BODY_OCTETS:
        raise ValueError(
            f"The template becomes a body of {length:,} characters; {MAX_BODY_OCTETS:,} octets are read."
        )
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], found[0]), template)


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
        "body": given("body", TEMPLATE),
        "displayName": given("displayName", "sw-core-01")[:256],
        "stringseverity": given("stringseverity", "Critical")[:64],
        "message": given("message", "No answer for three polls")[:4096],
        "kind": kind if kind in KINDS else KINDS[0],
        "source": given("source", "opmanager")[:256] or "opmanager",
        "routes": given("routes") or routes_text(visit.gateway.config.routes),
    }
    wrong, result = "", None
    try:
        result = await preview(visit, asked)
    except (Problem, ValueError) as error:
        wrong = error.detail if isinstance(error, Problem) else str(error)
    return visit.render(
        "preview.html", asked=asked, kinds=KINDS, severities=SEVERITY_WORDS, wrong=wrong, result=result
    )


async def preview(visit: Visit, asked: dict[str, str]) -> dict[str, Any]:
    """What the gateway would make of a body now.

    Raises:
      ValueError: the routes are none.
    """
    gateway = visit.gateway
    variables = EXAMPLE | {name: asked[name] for name in ("displayName", "stringseverity", "message")}
    event = parse(expanded(asked["body"], variables).encode(), asked["kind"], source=asked["source"])
    if event.unreadable or event.is_test:
        return {"event": event, "row": None}
    history = await gateway.alarms.get(alarm_digest(event.source, alarm_key(event)), limit=20)
    before: AlarmRow | None = None if history is None else history.row
    now = gateway.clock()
    row, verdict, rule = judge(before, event, now)
    found = routing.Routes(read_routes(asked["routes"]), gateway.config.alarms.admin_tag)
    addressed = routing.address(found, row, rule)
    pushed = banners.banner(addressed.row, rule, now, look=gateway.config.alarms.look.look())
    app = gateway.config.alarm_app
    earlier = None
    if pushed is not None and history is not None:
        pushes = [told.push for *_, told in history.verdicts if told.push]
        earlier = await earlier_push(visit, pushes, pushed.collapse_id)
    return {
        "event": event,
        "row": addressed.row,
        "earlier": earlier,
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
    except RecursionError:
        raise ValueError("The routes are nested too deeply.") from None
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
