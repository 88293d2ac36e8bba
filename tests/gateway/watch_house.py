"""A whole gateway before a simulated APNs, with a certificate of any dates and the channels asked for."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from fastpush.gateway.config import load_config
from fastpush.gateway.devices import Registration, open_devices
from fastpush.gateway.serve import Service
from fastpush.gateway.storage import open_storage
from tests.gateway.settings import ON_THIS_MACHINE

TOPIC = "com.example.opmanager"
CONFIG = (
    ON_THIS_MACHINE
    + """
[apps.opm]
topic = "{topic}"
host = "localhost"
port = {port}
ca_file = "{ca_file}"

[apps.opm.credential]
{credential}

{more}
"""
)


def pem(issued):
    return issued.certificate_pem + issued.key_pem


def drop(path, octets):
    """Put a file in place of another as `mv` does."""
    draft = path.with_name(".new")
    draft.write_bytes(octets)
    draft.chmod(0o600)
    draft.replace(path)


@dataclass
class House:
    simulator: Any
    service: Any
    gateway: Any
    folder: Any
    admin: str
    key: str
    phones: list[str]

    @property
    def app(self):
        return self.gateway.apps["opm"]

    @property
    def file(self):
        return self.folder / "push.pem"

    def pushes(self, device_token=None):
        """What a phone got, or all of them."""
        wanted = set(self.phones) if device_token is None else {device_token}
        return [one for one in self.simulator.ledger.seen if one.delivered and one.device_token in wanted]

    async def ask(self, method, path, **how):
        async with httpx.AsyncClient() as client:
            headers = {"authorization": f"Bearer {self.key}"}
            return await client.request(method, f"{self.admin}{path}", headers=headers, timeout=60, **how)

    async def until(self, condition, within=20):
        """Wait for something that nobody tells of, at the pace of the gateway's own looks."""
        with trio.fail_after(within):
            while not condition():  # noqa: ASYNC110 - files, sockets and another process have no event
                await trio.sleep(0.02)

    async def until_told(self, count, kind="certificate"):
        """Wait until so many notices of a kind stand, and all channels have told."""
        notices = self.gateway.notices
        await self.until(lambda: sum(one.kind == kind for one in notices.standing()) == count)
        with trio.fail_after(20):
            await notices.wait_told()

    async def until_stands(self, kind):
        """Wait until there is a notice of a kind, whether or not it could be told."""
        await self.until(lambda: any(one.kind == kind for one in self.gateway.notices.standing()))

    async def how_told(self, notice, channel):
        """How a channel took a notice, once it was tried."""
        with trio.fail_after(20):
            while True:
                for shown in await self.gateway.notices.shown():
                    for one in shown.tellings:
                        if shown.notice.id == notice and one.channel == channel and one.detail:
                            return one
                await trio.sleep(0.02)

    async def settled(self, within=60):
        """Wait until nothing waits in the outbox."""
        await self.until(
            lambda: not any(one.count or one.fanouts for one in self.gateway.outbox.waiting().values()),
            within,
        )


def write_config(simulator, folder, *, topic=TOPIC, more="", credential=None):
    """Write the file, and read it."""
    text = CONFIG.format(
        topic=topic, port=simulator.port, ca_file=simulator.ca_file, more=more,
        credential=credential or 'certificate_file = "push.pem"',
    )  # fmt: skip
    (folder / "fastpush.toml").write_text(text)
    return load_config(folder / "fastpush.toml", {})


async def register(database, tokens):
    """The first is a phone of the administrators. Before the gateway runs: its first notice finds them."""
    async with open_storage(database) as storage:
        devices = await open_devices(storage)
        for number, token in enumerate(tokens):
            tags = () if number else ("admin",)
            await devices.register("opm", Registration(device_token=token, tags=tags, user="alice"))


@asynccontextmanager
async def open_house(simulator, folder, *, ends=None, more="", credential=None, clock=time.time, phones=2):
    """Run it for as long as the block lasts; opened again on the same folder it is the next process."""
    if not (folder / "push.pem").exists():
        drop(folder / "push.pem", pem(simulator.issue_provider_certificate(TOPIC, valid_until=ends)))
    config = write_config(simulator, folder, more=more, credential=credential)
    tokens = [f"{number:064x}" for number in range(1, phones + 1)]
    await register(config.storage.path, tokens)
    service = Service(config, clock=clock)
    async with trio.open_nursery() as nursery:
        started = await nursery.start(service.run)
        gateway = started.gateway
        made = await gateway.keys.create(f"test {time.monotonic_ns()}", ["admin", "alarms", "notify"])
        yield House(simulator, service, gateway, folder, started.admin[0], made.secret, tokens)
        service.stop()
