"""Routes of devices: phones register themselves, backends and administrators register, list and move many."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import (
    Answer,
    Gateway,
    Parameter,
    decode,
    json_response,
    operation,
    permitted,
    read_body,
    whole_number,
)
from fastpush.gateway.api.enrolments import chosen_app
from fastpush.gateway.auth import Principal
from fastpush.gateway.devices import Device, DeviceEvent, Registration, checked_token
from fastpush.gateway.devices.transfer import Export, Format, Imported, import_devices
from fastpush.gateway.devices.values import Environment
from fastpush.gateway.problems import Problem

__all__ = ["DeviceBody", "DevicesBody", "EventsBody", "RegistrationBody", "admin_routes", "routes"]

CURSOR = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
BODY_OCTETS = 16 << 10
MAX_LIMIT = 1_000
LIMIT = Parameter("limit", type=Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)])
TYPES: dict[str, Format] = {
    "text/csv": "csv",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
}
_APP = Parameter("app", description="May be left out where there is only one.")


class RegistrationBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of a device. What is left out stays as it is."""

    app: str | None = None
    """May be left out by a phone, and where there is only one."""
    environment: Environment = "production"
    """That of the app's build: APNs tells device tokens of the two apart."""
    user: str | None = None
    """A phone's is that of its enrolment."""
    tags: tuple[str, ...] | None = None
    """A phone may choose among those that it was granted."""
    locale: str | None = None


class DeviceBody(msgspec.Struct, frozen=True, kw_only=True):
    """A device. Instants are UNIX seconds."""

    device_token: str
    app: str
    environment: Environment
    user: str
    tags: tuple[str, ...]
    locale: str
    registered_at: float
    seen_at: float
    dead_at: float | None
    """Since when nothing is sent to it. Registering it again revives it."""
    dead_reason: str | None
    """In APNs' word."""


class DevicesBody(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is what `after` has to be for the devices that follow."""

    devices: tuple[DeviceBody, ...]
    next: str | None


class EventsBody(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is what `after` has to be for the events that follow, also for those to come."""

    events: tuple[DeviceEvent, ...]
    next: str


def routes(gateway: Gateway) -> list[BaseRoute]:
    """For phones and backends."""

    @operation(
        "Register a device",
        description="At each start of the app. With a phone's own secret: a new device token takes the place"
        " of the one that the phone had. With a key: any device of its apps.",
        scope="devices",
        body=RegistrationBody,
        answers={200: DeviceBody},
        refusals=(404, 409),
        tag="devices",
    )
    async def register(request: Request) -> Response:
        principal = await gateway.keys.authenticate(request.scope)
        wanted = decode(await read_body(request.receive, BODY_OCTETS), RegistrationBody)
        token = checked_token(request.path_params["device_token"])
        if principal.kind == "device":
            if wanted.user not in (None, principal.user or ""):
                raise Problem(
                    403, "not allowed", "A phone registers for the user of its enrolment.", field="user"
                )
        else:
            principal.require("devices")
        app = chosen_app(gateway, principal, wanted.app)
        registration = Registration(
            device_token=token,
            environment=wanted.environment,
            user=wanted.user,
            tags=wanted.tags,
            locale=wanted.locale,
        )
        return json_response(_body(await gateway.devices.register(app, registration, by=principal)))

    @operation(
        "A device",
        description="Also a dead one: the app sees here that its device token was refused.",
        scope="devices",
        parameters=(_APP,),
        answers={200: DeviceBody},
        refusals=(404, 422),
        tag="devices",
    )
    async def show_device(request: Request) -> Response:
        _, app, token = await _meant(gateway, request)
        device = await gateway.devices.get(app, token)
        if device is None:
            raise _nothing()
        return json_response(_body(device))

    @operation(
        "Take a device out",
        description="With the secret of its phone, which has to enrol to come again.",
        scope="devices",
        parameters=(_APP,),
        answers={204: None},
        refusals=(404, 422),
        tag="devices",
    )
    async def remove_device(request: Request) -> Response:
        principal, app, token = await _meant(gateway, request)
        if not await gateway.devices.remove(app, token, by=principal):
            raise _nothing()
        return Response(status_code=204)

    @operation(
        "Device tokens found dead",
        description="Oldest first. Keep `next`, and ask with it as `after` for what came since.",
        scope="devices",
        parameters=(
            Parameter("after", type=CURSOR, description="`next` of the answer before."),
            LIMIT,
            Parameter("app", description="Only of this app."),
        ),
        answers={200: EventsBody},
        refusals=(400, 404, 422),
        tag="devices",
    )
    async def show_events(request: Request) -> Response:
        principal = await permitted(gateway, request, "devices")
        app = request.query_params.get("app")
        if app is not None or principal.apps is not None:
            app = chosen_app(gateway, principal, app)
        after = whole_number(request, "after", 0, 0, 1 << 62)
        events = await gateway.devices.events(after, whole_number(request, "limit", 100, 1, MAX_LIMIT), app)
        following = events[-1].id if events else after
        return json_response(EventsBody(events=tuple(events), next=str(following)))

    return [
        Route("/v1/devices/{device_token}", register, methods=["PUT"]),
        Route("/v1/devices/{device_token}", show_device, methods=["GET"]),
        Route("/v1/devices/{device_token}", remove_device, methods=["DELETE"]),
        Route("/v1/device-events", show_events, methods=["GET"]),
    ]


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """For the admin listener and the control socket."""

    @operation(
        "Devices",
        description="In the order of their device tokens; with `tag` the living ones only.",
        scope="devices",
        parameters=(
            _APP,
            Parameter("user"),
            Parameter("tag"),
            Parameter("after"),
            LIMIT,
        ),
        answers={200: DevicesBody},
        refusals=(400, 404, 422),
        tag="devices",
    )
    async def list_devices(request: Request) -> Response:
        _, app = await _keeper(gateway, request)
        query = request.query_params
        limit = whole_number(request, "limit", 100, 1, MAX_LIMIT)
        after = checked_token(query["after"], "after") if query.get("after") else ""
        devices = await gateway.devices.list(
            app, user=query.get("user"), tag=query.get("tag"), after=after, limit=limit
        )
        shown = tuple(_body(device) for device in devices)
        return json_response(
            DevicesBody(devices=shown, next=shown[-1].device_token if len(shown) == limit else None)
        )

    @operation(
        "All living devices of an app, as CSV",
        description="As a stream that can be imported again.",
        scope="devices",
        parameters=(_APP,),
        answers={200: Answer(bytes, "A header, then a device on each line.", "text/csv; charset=utf-8")},
        refusals=(404, 422),
        tag="devices",
    )
    async def export_csv(request: Request) -> Response:
        return StreamingResponse(await export(request, "csv"), media_type="text/csv")

    @operation(
        "All living devices of an app, as NDJSON",
        description="As a stream that can be imported again.",
        scope="devices",
        parameters=(_APP,),
        answers={200: Answer(bytes, "A device on each line.", "application/x-ndjson")},
        refusals=(404, 422),
        tag="devices",
    )
    async def export_ndjson(request: Request) -> Response:
        return StreamingResponse(await export(request, "ndjson"), media_type="application/x-ndjson")

    async def export(request: Request, form: Format) -> Export:
        principal, app = await _keeper(gateway, request)
        await gateway.keys.audit(principal, "devices.exported", app)
        return Export(gateway.devices, app, form)

    @operation(
        "Register many devices",
        description="A file of any length: CSV with a header, or NDJSON. Wrong lines are told by their"
        " numbers and the others are taken; where all are wrong it is a 422. Repeating it does no harm.",
        scope="devices",
        parameters=(_APP,),
        body={"application/x-ndjson": bytes, "text/csv": bytes},
        answers={200: Imported},
        refusals=(400, 404, 415),
        tag="devices",
    )
    async def take_in(request: Request) -> Response:
        principal, app = await _keeper(gateway, request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in TYPES:
            raise Problem(415, detail=f"Send {' or '.join(sorted(TYPES))}.")
        async with aclosing(request.stream()) as body:
            imported = await import_devices(gateway.devices, app, body, TYPES[kind])
        if imported.refused and not imported.imported:
            raise Problem(
                422, "nothing taken", "No line of this is a device.", **msgspec.structs.asdict(imported)
            )
        told = f"{imported.imported} taken, {imported.refused} refused"
        await gateway.keys.audit(principal, "devices.imported", app, told)
        return json_response(imported)

    return [
        Route("/v1/devices", list_devices, methods=["GET"]),
        Route("/v1/devices", take_in, methods=["POST"]),
        Route("/v1/devices.csv", export_csv, methods=["GET"]),
        Route("/v1/devices.ndjson", export_ndjson, methods=["GET"]),
    ]


async def _meant(gateway: Gateway, request: Request) -> tuple[Principal, str, str]:
    """Who asks, for which app, about which device token."""
    principal = await gateway.keys.authenticate(request.scope)
    token = checked_token(request.path_params["device_token"])
    if principal.kind == "device":
        if token != principal.device_token:  # whether or not there is such a device
            raise Problem(403, "not allowed", "A phone's secret is good for its own device token only.")
    else:
        principal.require("devices")
    return principal, chosen_app(gateway, principal, request.query_params.get("app")), token


async def _keeper(gateway: Gateway, request: Request) -> tuple[Principal, str]:
    principal = await permitted(gateway, request, "devices")
    return principal, chosen_app(gateway, principal, request.query_params.get("app"))


def _nothing() -> Problem:
    return Problem(404, "no such device", "There is no such device.")


def _body(device: Device) -> DeviceBody:
    return DeviceBody(**msgspec.structs.asdict(device))
