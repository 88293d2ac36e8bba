"""A whole gateway before a simulated APNs, with keys and some phones, for the tests of its console."""

from __future__ import annotations

import email.utils
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import trio

from fastpush.gateway.config import load_config
from fastpush.gateway.devices import Registration
from fastpush.gateway.serve import Service
from fastpush.proof import NOBODY
from fastpush.simulator import open_simulator
from fastpush.simulator.faults import Answer
from tests.gateway.settings import ON_THIS_MACHINE

# All that can be opened without naming something.
PAGES = (
    "/",
    "/alarms",
    "/notifications",
    "/batches",
    "/webhooks",
    "/webhooks/preview",
    "/devices",
    "/credentials",
    "/failures",
)
TOPIC = "com.example.opmanager"
CONFIG = (
    ON_THIS_MACHINE
    + """
[apps.opm]
topic = "{topic}"
environment = "{environment}"
host = "127.0.0.1"
port = {port}
ca_file = "authorities.pem"

[apps.opm.credential]
certificate_file = "provider.p12"

[[routes]]
name = "network"
tags = ["network"]
severity = ["critical", "service_down", "trouble", "attention"]
"""
)


@dataclass
class House:
    """What a story needs of it."""

    simulator: Any
    gateway: Any
    folder: Any
    console: str
    ingest: str
    keys: dict[str, str] = field(default_factory=dict)
    key_ids: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    browsers: list[httpx.AsyncClient] = field(default_factory=list)

    async def post(self, **alarm):
        """One webhook of OpManager; gives what the gateway answered."""
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{self.ingest}/v1/opmanager", params={"token": self.keys["alice"]}, json=alarm
            )
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def critical(self, device="sw-core-01", message="No answer for three polls", **fields):
        """An alarm that the route takes."""
        alarm = {
            "alarmid": "7", "entity": f"{device}_ping", "displayName": device, "stringseverity": "Critical",
            "category": "Switch", "message": message,
        } | fields  # fmt: skip
        return await self.post(**alarm)

    async def settled(self):
        """Wait until nothing waits."""
        seen = 0
        with trio.fail_after(20):
            while any(one.count or one.fanouts for one in self.gateway.outbox.waiting().values()):
                seen = await self._something(seen)

    async def indexed(self):
        """Let the index of what was accepted and ended come to the present."""
        await self.gateway.outbox._fill_index()

    def handle(self, token):
        """What stands for a phone's device token in the console's addresses, once somebody is logged in."""
        return self.gateway.sessions.handles.seal("opm", token)

    async def _something(self, seen):
        with trio.move_on_after(0.05):
            return await self.gateway.outbox.wait_for_work(seen)
        return seen

    def stranger(self, *, follow_redirects=False, **about):
        """An HTTP client that is not logged in, and says where its forms come from, as browsers do."""
        origin = {"Origin": self.console}
        return httpx.AsyncClient(
            base_url=self.console, headers=origin, follow_redirects=follow_redirects, **about
        )

    async def browser(self, name="alice"):
        """An HTTP client that is logged in."""
        client = self.stranger()
        self.browsers.append(client)
        answer = await client.post("/login", data={"key": self.keys[name]})
        assert answer.status_code == 303, answer.text
        return client


@asynccontextmanager
async def open_house(folder, *, days=200, phones=3, faults=(), environment="production", variables=None):
    async with (
        open_simulator(topics=[TOPIC], faults=faults, environment=environment) as simulator,
        trio.open_nursery() as nursery,
    ):
        # Asked about nobody's device token the server tells its date: the watchdog trusts no clock alone.
        date = email.utils.formatdate(usegmt=True).encode()
        simulator.faults.add(
            Answer(status=400, reason="BadDeviceToken", device_token=NOBODY, fields=((b"date", date),))
        )
        ends = datetime.now(UTC) + timedelta(days=days, hours=1)
        certificate = simulator.authority.issue_provider_certificate(TOPIC, not_after=ends)
        (folder / "provider.p12").write_bytes(certificate.to_pkcs12(None))
        (folder / "provider.p12").chmod(0o600)
        (folder / "authorities.pem").write_bytes(simulator.ca_pem)
        (folder / "fastpush.toml").write_text(
            CONFIG.format(topic=TOPIC, port=simulator.port, environment=environment)
        )
        service = Service(load_config(folder / "fastpush.toml", variables or {}))
        started = await nursery.start(service.run)
        gateway = started.gateway
        house = House(simulator, gateway, folder, started.admin[0], started.ingest[0])
        for name, scopes in (
            ("alice", ["admin", "alarms", "notify", "devices"]),
            ("nightwatch", ["console"]),
            ("opmanager", ["alarms"]),
        ):
            made = await gateway.keys.create(name, scopes)
            house.keys[name], house.key_ids[name] = made.secret, made.key_id
        for _ in range(phones):
            house.tokens.append(f"{random.getrandbits(256):064x}")
            simulator.register(house.tokens[-1])
            await gateway.devices.register(
                "opm",
                Registration(
                    device_token=house.tokens[-1], tags=("network",), user="alice", environment=environment
                ),
            )
        yield house
        for browser in house.browsers:
            await browser.aclose()
        service.stop()


def csrf_of(page: str) -> str:
    """The word that a page's forms bring."""
    return page.partition('name="csrf" value="')[2].partition('"')[0]
