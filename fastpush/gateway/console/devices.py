"""Registered devices by app and tag, why a device token was dropped, a test push, and codes to enrol with."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.auth.checks import checked_tags, checked_user
from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.outbox import Audience, Entry
from fastpush.gateway.problems import Problem
from fastpush.notification import Alert, Payload

__all__ = ["routes"]

PAGE = 50
TRIAL_FOR = 600  # seconds for which APNs may keep a test push
CODE_FOR = 7 * 86_400.0


def routes(console: Console) -> list[BaseRoute]:
    return [
        page_route(console, "/devices", listed),
        page_route(console, "/devices/codes", coded, "POST"),
        page_route(console, "/devices/{app}/{handle}", shown),
        page_route(console, "/devices/{app}/{handle}/test", tried, "POST"),
    ]


async def listed(visit: Visit) -> Response:
    return await _list(visit)


async def _list(visit: Visit, code: Any = None) -> Response:
    devices, apps = visit.gateway.devices, list(visit.gateway.apps)
    app = visit.asked("app") if visit.asked("app") in apps else (apps[0] if apps else "")
    tag, after = visit.asked("tag")[:256], visit.opened(app, visit.asked("after")) or ""
    found = await _page(devices, app, tag, after) if app else []
    query = urlencode({"app": app, "tag": tag} if tag else {"app": app})
    return visit.render(
        "devices.html",
        apps=apps,
        app=app,
        tag=tag,
        devices=found[:PAGE],
        count=await devices.count(app) if app else 0,
        breaker=devices.breaker(app) if app else None,
        events=await devices.latest_events(app or None),
        code=code,
        newest=f"/devices?{query}" if after else "",
        next=f"/devices?{query}&after={visit.handle(app, found[PAGE - 1].device_token)}"
        if len(found) > PAGE
        else "",
    )


async def _page(devices: Any, app: str, tag: str, after: str) -> list[Any]:
    if not tag:
        return list(await devices.list(app, after=after, limit=PAGE + 1))
    page = await devices.page(app, Audience(any_of=(tag,)), after, PAGE + 1)
    found = [await devices.get(app, device_token) for device_token in page.device_tokens]
    return [device for device in found if device is not None]


async def shown(visit: Visit) -> Response:
    device = await _device(visit)
    return visit.render("device.html", device=device)


async def tried(visit: Visit) -> Response:
    device = await _device(visit)
    payload = Payload(
        alert=Alert(title="Test of fastpush", body=f"Sent from the console by {visit.principal.name}."),
        sound="default",
    )
    entry = Entry(
        device.device_token,
        payload.encode(),
        expiration=int(visit.gateway.clock()) + TRIAL_FOR,
        high=True,
    )
    accepted = await visit.gateway.outbox.accept(device.app, [entry], source="console")
    await visit.audit("device.tested", f"{device.app} {device.device_token[:4]}…")
    return visit.back(f"/notifications/{_text(accepted.apns_id(0))}", "The test push is on its way.")


async def coded(visit: Visit) -> Response:
    app = visit.given("app")
    if app not in visit.gateway.apps:
        raise Problem(422, "no such app", "Choose an app.", field="app")
    user = checked_user(visit.given("user"))
    tags = checked_tags([tag.strip() for tag in visit.given("tags").split(",") if tag.strip()])
    code = await visit.gateway.keys.phones.create_code(app, user, tags, CODE_FOR, by=visit.principal)
    return await _list(visit, code)


async def _device(visit: Visit) -> Any:
    where = visit.request.path_params
    token = visit.opened(where["app"], where["handle"])
    device = None if token is None else await visit.gateway.devices.get(where["app"], token)
    if device is None:
        raise Problem(404, "no such device", "It is not registered, or not any more.")
    return device


def _text(apns_id: bytes) -> str:
    digits = apns_id.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
