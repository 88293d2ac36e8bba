"""The control socket: the administration of a running gateway, for programs of the same user.

`serve` listens on it beside the database and serves the admin application through `trusted`; the rights of
the file are its authentication. `fastpush outbox`, `keys`, `devices` and others come in here, since only one
process may write the database.

    listener = open_listener(f"unix:{socket_path(database)}", mode=0o600)
    await serve(trusted(admin_app(gateway)), [listener])
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

__all__ = ["Application", "is_trusted", "socket_path", "trusted"]

Application = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application: scope, receive, send."""


def socket_path(database: str | os.PathLike[str]) -> Path:
    """Where the gateway that holds this database listens."""
    path = Path(database).absolute()
    return path.with_name(path.name + ".control")


def trusted(application: Application) -> Application:
    """Let all requests to the application be known as the administrator's own: see `is_trusted`."""

    async def mark(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "state": {**scope.get("state", {}), "control": True}}
        await application(scope, receive, send)

    return mark


def is_trusted(scope: Any) -> bool:
    """Whether a request came over the control socket: it may do everything, as the principal "control".

    The mark is made by the server and not by what a client sends.
    """
    return scope.get("state", {}).get("control") is True
