"""Routes of keys and of the audit log, for administrators."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import (
    Gateway,
    Parameter,
    decode,
    json_response,
    operation,
    permitted,
    read_body,
    whole_number,
)
from fastpush.gateway.auth import AuditRecord, KeyRecord, Principal
from fastpush.gateway.problems import Problem

__all__ = ["AuditBody", "CreatedKeyBody", "KeyRequest", "KeysBody", "admin_routes"]

CURSOR = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
MAX_LIMIT = 1_000


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to be made."""

    name: str
    """Of the person or system that it is for."""
    scopes: tuple[str, ...]
    """Of notify, devices, alarms, admin, console."""
    apps: tuple[str, ...] | None = None
    """Left out: every app."""
    expires_at: float | None = None
    """UNIX seconds; left out: never."""
    signed: bool = False
    """Its requests are to be signed; the key itself then proves nothing."""


class CreatedKeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new key."""

    key_id: str
    secret: str
    """The key, or the signing secret of a key that signs. It is shown this once."""


class KeysBody(msgspec.Struct, frozen=True, kw_only=True):
    keys: tuple[KeyRecord, ...]


class AuditBody(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is what `after` has to be for the records that follow."""

    records: tuple[AuditRecord, ...]
    next: str


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """For the admin listener and the control socket."""

    @operation(
        "Make a key",
        description="It is shown in the answer, and nowhere afterwards. A key that is limited to some apps"
        " makes keys for these only.",
        scope="admin",
        body=KeyRequest,
        answers={201: CreatedKeyBody},
        tag="keys",
    )
    async def create_key(request: Request) -> Response:
        principal = await permitted(gateway, request, "admin")
        wanted = decode(await read_body(request.receive), KeyRequest)
        if principal.apps is not None and not principal.apps.issuperset(wanted.apps or ("",)):
            raise Problem(
                403, "not allowed", "This key makes keys for its own apps only; name them.", field="apps"
            )
        if gateway.apps is not None:  # while the gateway is stopped, nobody knows which there are
            for app in wanted.apps or ():
                if app not in gateway.apps:
                    raise Problem(
                        422, "no such app", f"No app {app[:128]!r} is configured here.", field="apps"
                    )
        created = await gateway.keys.create(
            wanted.name, wanted.scopes, wanted.apps, wanted.expires_at, signed=wanted.signed, by=principal
        )
        return json_response(CreatedKeyBody(key_id=created.key_id, secret=created.secret), 201)

    @operation(
        "All keys",
        description="Without their secrets, of which only hashes are kept.",
        scope="admin",
        answers={200: KeysBody},
        tag="keys",
    )
    async def list_keys(request: Request) -> Response:
        principal = await permitted(gateway, request, "admin")
        keys = tuple(record for record in gateway.keys.list() if _within(record, principal))
        return json_response(KeysBody(keys=keys))

    @operation(
        "Revoke a key",
        description="At once. It stays in the list.",
        scope="admin",
        answers={200: KeyRecord},
        refusals=(404,),
        tag="keys",
    )
    async def revoke_key(request: Request) -> Response:
        principal = await permitted(gateway, request, "admin")
        key_id = request.path_params["key_id"]
        if not any(record.key_id == key_id and _within(record, principal) for record in gateway.keys.list()):
            raise Problem(404, "no such key", f"There is no key {key_id[:20]!r}.")
        return json_response(await gateway.keys.revoke(key_id, by=principal))

    @operation(
        "What was done, and by whom",
        description="Oldest first. Notifications and registrations are not in it, which have records of their"
        " own. For keys of every app only.",
        scope="admin",
        parameters=(
            Parameter("after", type=CURSOR, description="`next` of the page before."),
            Parameter("limit", type=Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)]),
        ),
        answers={200: AuditBody},
        refusals=(400,),
        tag="keys",
    )
    async def show_audit(request: Request) -> Response:
        principal = await permitted(gateway, request, "admin")
        if principal.apps is not None:
            raise Problem(403, "not allowed", "The audit log is for keys that are not limited to some apps.")
        after = whole_number(request, "after", 0, 0, 1 << 62)
        records = await gateway.keys.log.read(after, whole_number(request, "limit", 100, 1, MAX_LIMIT))
        following = records[-1].id if records else after
        return json_response(AuditBody(records=tuple(records), next=str(following)))

    return [
        Route("/v1/keys", create_key, methods=["POST"]),
        Route("/v1/keys", list_keys, methods=["GET"]),
        Route("/v1/keys/{key_id}", revoke_key, methods=["DELETE"]),
        Route("/v1/audit", show_audit, methods=["GET"]),
    ]


def _within(record: KeyRecord, principal: Principal) -> bool:
    """Whether a key is the business of this principal, who may be limited to some apps."""
    return principal.apps is None or (record.apps is not None and principal.apps.issuperset(record.apps))
