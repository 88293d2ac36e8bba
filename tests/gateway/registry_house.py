"""Keys, phones and devices on a real storage, with a clock that stands until it is moved."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import NamedTuple

from fastpush.gateway.api import Gateway
from fastpush.gateway.auth import Authenticator, open_authenticator
from fastpush.gateway.config.sections import AuthSettings
from fastpush.gateway.counters import Counters
from fastpush.gateway.devices import Devices, Registration, open_devices
from fastpush.gateway.storage import Limits, Storage, open_storage

ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
APP, OTHER = "opmanager", "weather"
NOW = 1_800_000_000.0


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


class House(NamedTuple):
    storage: Storage
    keys: Authenticator
    devices: Devices
    clock: Clock

    def gateway(self, apps=(APP, OTHER)):
        return Gateway(
            storage=self.storage, outbox=None, devices=self.devices, keys=self.keys, alarms=None,
            apps=None if apps is None else dict.fromkeys(apps), notices=None, config=None, clock=self.clock,
            counters=Counters(),
        )  # fmt: skip

    async def register(self, number, *tags, app=APP, **fields):
        return await self.devices.register(app, Registration(device_token=token(number), tags=tags, **fields))


@asynccontextmanager
async def open_house(folder, clock=None, **settings):
    """Each opening is one life of the process on the same file."""
    clock = clock or Clock()
    async with open_storage(folder / "gateway.db", ROOMY) as storage:
        keys = await open_authenticator(storage, AuthSettings(**settings), clock=clock)
        yield House(storage, keys, await open_devices(storage, keys=keys, clock=clock), clock)


def token(number):
    return f"{number:064x}"


def request(shown=None, *, scheme="Bearer", address="192.0.2.1", headers=(), query=b""):
    """The ASGI scope of a request that shows a key."""
    found = [(b"host", b"push.example.com"), (b"accept", b"*/*"), *headers]
    if shown is not None:
        found.append((b"authorization", f"{scheme} {shown}".encode()))
    return {
        "type": "http",
        "headers": found,
        "query_string": query,
        "client": (address, 50_000) if address else None,
        "state": {},
    }
