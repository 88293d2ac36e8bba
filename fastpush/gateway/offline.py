"""The administration of a stopped gateway: the admin application over its file, in a command's own process.

What needs a gateway that runs (connections to APNs, its metrics, its configuration) is not there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastpush.gateway.api import Gateway
from fastpush.gateway.app import admin_app
from fastpush.gateway.control import Application
from fastpush.gateway.counters import Counters
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.storage import Storage

__all__ = ["open_administration"]


class _Owner:
    """Whoever may open the file may do everything with it."""

    name = "control"

    async def authenticate(self, *_: Any, **__: Any) -> _Owner:
        return self

    def require(self, *_: Any) -> None: ...

    async def audit(self, *_: Any) -> None: ...


@asynccontextmanager
async def open_administration(storage: Storage) -> AsyncGenerator[Application]:
    """Open the registries of a file that no gateway runs on, and the application over them."""
    yield admin_app(
        Gateway(
            storage=storage,
            outbox=await open_outbox(storage),
            devices=None,
            keys=_Owner(),
            alarms=None,
            apps=None,
            notices=None,
            config=None,
            clock=time.time,
            counters=Counters(),
        )
    )
