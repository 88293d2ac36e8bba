"""The administration of a stopped gateway: the admin application over its file, in a command's own process.

What needs a gateway that runs (connections to APNs, its metrics, its configuration) is not there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastpush.gateway.api import Gateway
from fastpush.gateway.app import admin_app
from fastpush.gateway.auth import open_authenticator
from fastpush.gateway.control import Application
from fastpush.gateway.counters import Counters
from fastpush.gateway.devices import open_devices
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.storage import Storage

__all__ = ["open_administration"]


@asynccontextmanager
async def open_administration(storage: Storage) -> AsyncGenerator[Application]:
    """Open the registries of a file that no gateway runs on, and the application over them."""
    keys = await open_authenticator(storage)
    yield admin_app(
        Gateway(
            storage=storage,
            outbox=await open_outbox(storage),
            devices=await open_devices(storage, keys=keys),
            keys=keys,
            alarms=None,
            apps=None,
            notices=None,
            config=None,
            clock=time.time,
            counters=Counters(),
        )
    )
