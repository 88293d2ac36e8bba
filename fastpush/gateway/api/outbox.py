"""Routes of the outbox for administrators: what waits, pausing, purging; and the backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import Gateway, decode, json_response, operation, permitted, read_body
from fastpush.gateway.control import is_trusted
from fastpush.gateway.outbox import Waiting
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import BackupRefused, StorageError

__all__ = ["AppBody", "BackupBody", "BackupRequest", "OutboxBody", "PurgeBody", "admin_routes"]


class AppBody(msgspec.Struct, frozen=True, kw_only=True):
    """What waits of one app, in flight included."""

    app: str
    waiting: int
    """Notifications without an end; devices of a fan-out that is still walked are not counted."""
    fanouts: int
    oldest_at: float | None
    """UNIX seconds."""
    paused: bool


class OutboxBody(msgspec.Struct, frozen=True, kw_only=True):
    apps: list[AppBody]
    disk_full: bool
    file_octets: int


class PurgeBody(msgspec.Struct, frozen=True, kw_only=True):
    app: str
    purged: int


class BackupRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    destination: Annotated[str, msgspec.Meta(min_length=1, max_length=4_096)]
    """An absolute path on the gateway's machine. An earlier backup there is replaced, other files are not."""


class BackupBody(msgspec.Struct, frozen=True, kw_only=True):
    destination: str
    octets: int


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """For the admin listener and the control socket."""

    @operation("What waits, by app", scope="admin", answers={200: OutboxBody}, tag="outbox")
    async def show_outbox(request: Request) -> Response:
        await permitted(gateway, request, "admin")
        figures = gateway.storage.statistics()
        apps = [_app(name, waiting) for name, waiting in sorted(gateway.outbox.waiting().items())]
        return json_response(OutboxBody(apps=apps, disk_full=figures.full, file_octets=figures.file_octets))

    @operation(
        "Send nothing of an app",
        description="Accepting goes on. It stays paused over restarts, until it is resumed.",
        scope="admin",
        answers={200: AppBody},
        refusals=(404,),
        tag="outbox",
    )
    async def pause(request: Request) -> Response:
        app = await named(request, "outbox.pause")
        await gateway.outbox.pause(app)
        return json_response(_app(app, gateway.outbox.waiting()[app]))

    @operation("Send again", scope="admin", answers={200: AppBody}, refusals=(404,), tag="outbox")
    async def resume(request: Request) -> Response:
        app = await named(request, "outbox.resume")
        await gateway.outbox.resume(app)
        return json_response(_app(app, gateway.outbox.waiting()[app]))

    @operation(
        "End all that waits of an app",
        description='As failed, with the reason "Purged". What is in flight gets its own end.',
        scope="admin",
        answers={200: PurgeBody},
        refusals=(404,),
        tag="outbox",
    )
    async def purge(request: Request) -> Response:
        app = await named(request, "outbox.purge")
        return json_response(PurgeBody(app=app, purged=await gateway.outbox.purge(app)))

    @operation(
        "Save the database",
        description="One consistent state, checked and flushed. Over the control socket only, since the file"
        " is written wherever the request says.",
        scope="admin",
        body=BackupRequest,
        answers={200: BackupBody},
        refusals=(409, 500),
        tag="outbox",
    )
    async def back_up(request: Request) -> Response:
        principal = await permitted(gateway, request, "admin")
        if not is_trusted(request.scope):
            raise Problem(403, "control socket only", "A backup is made by `fastpush backup`.")
        wanted = decode(await read_body(request.receive), BackupRequest)
        destination = Path(wanted.destination)
        if not destination.is_absolute():
            raise Problem(422, "invalid value", "Expected an absolute path.", field="destination")
        await gateway.keys.audit(principal, "backup", str(destination))
        try:
            octets = await gateway.storage.backup(destination)
        except BackupRefused as error:
            raise Problem(409, "no backup made", str(error), field="destination") from None
        except StorageError as error:
            raise Problem(500, "no backup made", str(error)) from None
        return json_response(BackupBody(destination=str(destination), octets=octets))

    async def named(request: Request, action: str) -> str:
        """Authenticate, find the app of the path, and remember what is about to be done with it."""
        principal = await gateway.keys.authenticate(request.scope)
        app: str = request.path_params["app"]
        principal.require("admin", app)
        known = gateway.outbox.waiting()
        if app not in known and (gateway.apps is None or app not in gateway.apps):
            there = ", ".join(sorted(known)) or "none yet"
            raise Problem(404, "no such app", f"The outbox knows these apps: {there}.", field="app")
        await gateway.keys.audit(principal, action, app)
        return app

    return [
        Route("/v1/outbox", show_outbox, methods=["GET"]),
        Route("/v1/outbox/{app}/pause", pause, methods=["POST"]),
        Route("/v1/outbox/{app}/resume", resume, methods=["POST"]),
        Route("/v1/outbox/{app}/purge", purge, methods=["POST"]),
        Route("/v1/backup", back_up, methods=["POST"]),
    ]


def _app(name: str, waiting: Waiting) -> AppBody:
    return AppBody(
        app=name,
        waiting=waiting.count,
        fanouts=waiting.fanouts,
        oldest_at=waiting.oldest_at,
        paused=waiting.paused,
    )
