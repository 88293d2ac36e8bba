"""`PUT /v1/apps/{app}/credential`: a new key or certificate, proved and taken without a restart."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import Gateway, Parameter, decode, json_response, operation, read_body
from fastpush.gateway.apps import Role
from fastpush.gateway.problems import Problem
from fastpush.gateway.uploads import Offer

__all__ = ["admin_routes"]

MAX_BODY_OCTETS = 2 << 20

Text = Annotated[str, Meta(min_length=1)]


class CredentialBody(msgspec.Struct, forbid_unknown_fields=True):
    """Either `certificate`, or `key` with its ids.

    Attributes:
      certificate: PEM (with the private key, or beside it), or a .p12 in base64.
      private_key: PEM, where `certificate` has none.
      password: of either.
      key: a .p8, PEM.
      key_id, team_id: of the key, 10 letters and digits each.
    """

    certificate: Text | None = None
    private_key: Text | None = None
    password: str | None = None
    key: Text | None = None
    key_id: str | None = None
    team_id: str | None = None


class TakenBody(msgspec.Struct):
    """What is in use now. `proved` is false where APNs could not be asked; it will be."""

    app: str
    role: Role
    credential: str
    fingerprint: str
    expires_at: float | None
    proved: bool


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    @operation(
        "Give an app a new key or certificate",
        description="It is checked, proved to APNs by one harmless request, and taken without a lost push. It"
        " survives a restart, until the configured file changes. What is refused leaves the old one in use.",
        scope="admin",
        parameters=(
            Parameter("app", "path"),
            Parameter("role", type=Literal["main", "standby"], description="`main` without it."),
        ),
        body=CredentialBody,
        answers={200: TakenBody},
        refusals=(400, 404, 413, 422),
        tag="apps",
    )
    async def put_credential(request: Request) -> Response:
        principal = await gateway.keys.authenticate(request.scope)
        app = request.path_params["app"]
        principal.require("admin", app)
        role = request.query_params.get("role", "main")
        if app not in gateway.config.apps:
            raise Problem(404, "no such app", f"There is no app {app[:64]!r}.")
        if role not in ("main", "standby"):
            raise Problem(422, "invalid value", "`role` is `main` or `standby`.", field="role")
        if role == "standby" and gateway.config.apps[app].standby is None:
            raise Problem(404, "no standby", "The app has no standby in the configuration.", field="role")
        body = decode(await read_body(request.receive, MAX_BODY_OCTETS), CredentialBody)
        offer = Offer(
            certificate=None if body.certificate is None else octets_of(body.certificate),
            private_key=None if body.private_key is None else body.private_key.encode(),
            password=body.password,
            key=None if body.key is None else body.key.encode(),
            key_id=body.key_id,
            team_id=body.team_id,
        )
        verdict = await gateway.watchdog.renewal.offer(app, role, offer)
        if not verdict.taken or verdict.credential is None:
            raise Problem(422, "credential refused", f"The old one stays in use. {verdict.reason}.")
        await gateway.keys.audit(
            principal, "credential.replaced", f"{app} {role}", verdict.credential.identity
        )
        expires_at = verdict.credential.expires_at
        return json_response(
            TakenBody(
                app=app,
                role=verdict.role,
                credential=verdict.credential.identity,
                fingerprint=verdict.credential.fingerprint,
                expires_at=None if expires_at is None else expires_at.timestamp(),
                proved=verdict.proved,
            )
        )

    return [Route("/v1/apps/{app}/credential", put_credential, methods=["PUT"])]


def octets_of(certificate: str) -> bytes:
    """PEM as it is; anything else is base64 of a .p12."""
    if "-----BEGIN" in certificate:
        return certificate.encode()
    try:
        return base64.b64decode("".join(certificate.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(
            422, "invalid value", "It is neither PEM nor base64 of a .p12.", field="certificate"
        ) from None
