"""A gateway's ingest with alarms, on a real socket: storage, outbox, keys, devices and alarms, no APNs."""

from __future__ import annotations

from contextlib import asynccontextmanager

import httpx
import msgspec
import trio

from fastpush.gateway.alarm_book import open_alarms
from fastpush.gateway.api import Gateway
from fastpush.gateway.app import ingest_app
from fastpush.gateway.auth import CONTROL, open_authenticator
from fastpush.gateway.counters import Counters
from fastpush.gateway.devices import Registration, open_devices
from fastpush.gateway.http import Limits as ServerLimits
from fastpush.gateway.http import open_listener, serve
from fastpush.gateway.outbox.sqlite import OutboxLimits, open_outbox
from fastpush.gateway.routes import Route, Routes
from fastpush.gateway.storage import Limits, open_storage

APP = "opmanager"
NOW = 1_800_000_000.0
ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
ROUTES = Routes(
    [
        Route(name="network", tags=("net",), category=("Switch", "Router")),
        Route(name="worst", tags=("duty",), severity=("critical", "service_down")),
    ]
)


class House:
    """What a test has in hand.

    Attributes:
      key: of an OpManager called "opmanager".
      client, stranger: speak HTTP/1.1 to the ingest, with that key and without any.
    """

    def __init__(
        self, gateway: Gateway, key: str, client: httpx.AsyncClient, stranger: httpx.AsyncClient, port: int
    ) -> None:
        self.gateway, self.key, self.client, self.stranger, self.port = gateway, key, client, stranger, port
        self.alarms, self.outbox, self.keys = gateway.alarms, gateway.outbox, gateway.keys

    async def post(
        self, body: bytes, content_type: str = "", *, query: str = "", **headers
    ) -> httpx.Response:
        if content_type:
            headers["Content-Type"] = content_type
        return await self.client.post(f"/v1/opmanager{query}", content=body, headers=headers)

    async def pushes(self) -> list:
        return await self.outbox.claim_fanouts(APP)

    async def phone(self, user: str, *tags: str, number: int = 1) -> dict[str, str]:
        """The headers of a phone that has enrolled and registered."""
        code = await self.keys.phones.create_code(APP, user, tags, by=CONTROL)
        enrolled = await self.keys.phones.enrol(code.code)
        headers = {"Authorization": f"Bearer {enrolled.device_secret}"}
        principal = await self.keys.authenticate(
            {"headers": [(b"authorization", headers["Authorization"].encode())], "client": ("127.0.0.1", 1),
             "query_string": b"", "extensions": {}, "type": "http", "state": {}}
        )  # fmt: skip
        registration = Registration(device_token=f"{number:064x}", tags=tags)
        await self.gateway.devices.register(APP, registration, by=principal)
        return headers


@asynccontextmanager
async def alarm_house(
    path, *, limits=ROOMY, routes=ROUTES, alarm_limits=None, clock=lambda: NOW, reach=None, watchdog=None
):
    async with open_storage(path / "gateway.db", limits) as storage, trio.open_nursery() as nursery:
        outbox = await open_outbox(storage, limits=OutboxLimits(pending_after=60.0))
        keys = await open_authenticator(storage)
        devices = await open_devices(storage, keys=keys)
        alarms = await open_alarms(
            storage, outbox, routes, app=APP, limits=alarm_limits, clock=clock, reach=reach
        )
        await nursery.start(alarms.run)
        gateway = Gateway(
            storage=storage, outbox=outbox, devices=devices, keys=keys, alarms=alarms, apps=None,
            notices=None, config=None, clock=clock, counters=Counters(), watchdog=watchdog,
        )  # fmt: skip
        listener = open_listener("127.0.0.1:0")
        stop, stopped = trio.Event(), trio.Event()

        async def run(task_status) -> None:
            await serve(
                ingest_app(gateway),
                [listener],
                limits=ServerLimits(connections_per_address=256),
                shutdown_trigger=stop.wait,
                task_status=task_status,
            )
            stopped.set()

        await nursery.start(run)
        key = "" if storage.full else (await keys.create("opmanager", ["alarms"])).secret
        url = f"http://127.0.0.1:{listener.port}"
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client,
            httpx.AsyncClient(base_url=url) as stranger,
        ):
            yield House(gateway, key, client, stranger, listener.port)
        stop.set()
        with trio.fail_after(15):
            await stopped.wait()
        nursery.cancel_scope.cancel()


def shown(fanout) -> dict:
    """A push as it is kept beside the bodies: whom it goes to, its header fields, and its payload's text."""
    entry = fanout.entry
    return {
        "tags": list(fanout.audience.any_of),
        "priority": entry.priority,
        "expires_after": entry.expiration - int(NOW),
        "collapse_id": entry.collapse_id,
        "payload": entry.payload.decode(),
    }


def answered(response: httpx.Response) -> dict:
    """An answer without what differs each time."""
    body = msgspec.json.decode(response.content)
    if "push" in body:
        body["push"] = "…"
    if body.get("result") == "unreadable":
        body["id"] = "…"
    body.pop("detail", None)
    return {"http": response.status_code, **body}
