"""Routes by which phones come to a secret of their own."""

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
from fastpush.gateway.auth import Code, CodeRecord, Enrolled, Principal
from fastpush.gateway.auth.checks import checked_app
from fastpush.gateway.problems import Problem

__all__ = ["CodeRequest", "CodesBody", "EnrolmentRequest", "admin_routes", "routes"]

BODY_OCTETS = 16 << 10
MAX_LIMIT = 1_000
LIMIT = Parameter("limit", type=Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)])
DAY = 86_400.0


class EnrolmentRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With a code, that alone. Without one, for whom a key of the app's backend asks."""

    code: str | None = None
    """In any case, with or without hyphens and blanks."""
    app: str | None = None
    """May be left out where there is only one."""
    user: str = ""
    tags: tuple[str, ...] = ()
    """What the phone is granted: it registers with these or fewer."""


class CodeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code to be made, for one phone."""

    app: str | None = None
    user: str = ""
    tags: tuple[str, ...] = ()
    valid_for: float = DAY
    """Seconds, at most 30 days."""


class CodesBody(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is what `after` has to be for the codes that follow."""

    codes: tuple[CodeRecord, ...]
    next: str | None


def routes(gateway: Gateway) -> list[BaseRoute]:
    """For phones, and for the backends of apps."""

    @operation(
        "Enrol a phone",
        description="A phone sends its code, and no key. A backend sends a key with the scope devices, and"
        " for whom; it hands the secret on to the phone. The secret is shown this once.",
        body=EnrolmentRequest,
        answers={201: Enrolled},
        refusals=(401, 403, 404, 429),
        tag="devices",
    )
    async def enrol(request: Request) -> Response:
        wanted = decode(await read_body(request.receive, BODY_OCTETS), EnrolmentRequest)
        if wanted.code is not None:
            if wanted.app is not None or wanted.user or wanted.tags:
                raise Problem(
                    422, "invalid value", "A code says for whom it is; send it alone.", field="code"
                )
            address = request.client.host if request.client is not None else ""
            return json_response(await gateway.keys.phones.enrol(wanted.code, address=address), 201)
        principal = await permitted(gateway, request, "devices")
        app = chosen_app(gateway, principal, wanted.app)
        enrolled = await gateway.keys.phones.enrol_for(app, wanted.user, wanted.tags, by=principal)
        return json_response(enrolled, 201)

    @operation(
        "Revoke a phone's secret",
        description="At once. The phone stays registered; DELETE of its device takes both.",
        scope="devices",
        answers={204: None},
        refusals=(404,),
        tag="devices",
    )
    async def revoke_enrolment(request: Request) -> Response:
        principal = await permitted(gateway, request, "devices")
        await gateway.keys.phones.revoke(request.path_params["id"], apps=principal.apps, by=principal)
        return Response(status_code=204)

    return [
        Route("/v1/enrolments", enrol, methods=["POST"]),
        Route("/v1/enrolments/{id}", revoke_enrolment, methods=["DELETE"]),
    ]


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """For the admin listener and the control socket."""

    @operation(
        "Make an enrolment code",
        description="Good for one phone, once. It is shown in the answer, and nowhere afterwards.",
        scope="devices",
        body=CodeRequest,
        answers={201: Code},
        refusals=(404,),
        tag="devices",
    )
    async def create_code(request: Request) -> Response:
        principal = await permitted(gateway, request, "devices")
        wanted = decode(await read_body(request.receive, BODY_OCTETS), CodeRequest)
        app = chosen_app(gateway, principal, wanted.app)
        code = await gateway.keys.phones.create_code(
            app, wanted.user, wanted.tags, wanted.valid_for, by=principal
        )
        return json_response(code, 201)

    @operation(
        "Enrolment codes that wait to be used",
        description="Without their secrets.",
        scope="devices",
        parameters=(Parameter("after"), LIMIT),
        answers={200: CodesBody},
        refusals=(400,),
        tag="devices",
    )
    async def list_codes(request: Request) -> Response:
        principal = await permitted(gateway, request, "devices")
        limit = whole_number(request, "limit", 100, 1, MAX_LIMIT)
        codes = await gateway.keys.phones.codes(request.query_params.get("after", "")[:8], limit)
        shown = tuple(code for code in codes if principal.apps is None or code.app in principal.apps)
        return json_response(CodesBody(codes=shown, next=codes[-1].code_id if len(codes) == limit else None))

    @operation(
        "Withdraw an enrolment code",
        scope="devices",
        answers={204: None},
        refusals=(404,),
        tag="devices",
    )
    async def withdraw_code(request: Request) -> Response:
        principal = await permitted(gateway, request, "devices")
        await gateway.keys.phones.withdraw_code(
            request.path_params["code_id"], apps=principal.apps, by=principal
        )
        return Response(status_code=204)

    return [
        Route("/v1/enrolment-codes", create_code, methods=["POST"]),
        Route("/v1/enrolment-codes", list_codes, methods=["GET"]),
        Route("/v1/enrolment-codes/{code_id}", withdraw_code, methods=["DELETE"]),
    ]


def chosen_app(gateway: Gateway, principal: Principal, named: str | None) -> str:
    """The app that a request is about. While the gateway is stopped, nobody knows which there are.

    Raises:
      Problem: 403, 404, 422
    """
    if gateway.apps is not None:
        return principal.choose_app(named, gateway.apps)
    if named is not None:
        return checked_app(named)
    return principal.choose_app(named, gateway.devices.apps())
