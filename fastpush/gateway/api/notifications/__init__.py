"""`/v1/notifications` and `/v1/batches`: take notifications, and tell what became of them."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import Gateway, HotRoute, json_response, operation, permitted
from fastpush.gateway.api.notifications import answers
from fastpush.gateway.api.notifications.intake import PATH, Intake
from fastpush.gateway.problems import Problem

__all__ = ["hot_routes", "routes"]


def hot_routes(gateway: Gateway) -> list[HotRoute]:
    return [HotRoute("POST", PATH, Intake(gateway).post)]


def routes(gateway: Gateway) -> list[BaseRoute]:
    @operation(
        "What became of a notification",
        scope="notify",
        answers={200: answers.NotificationStatus},
        refusals=(400, 404),
        tag="notifications",
    )
    async def show_notification(request: Request) -> Response:
        principal = await permitted(gateway, request, "notify")
        digits = request.path_params["apns_id"].replace("-", "")
        if not re.fullmatch(r"[0-9A-Fa-f]{32}", digits):
            raise Problem(400, detail="The apns-id is no UUID.", field="apns_id")
        record = await gateway.outbox.find(bytes.fromhex(digits))
        if record is None or not principal.may("notify", record.app):
            raise Problem(404, detail="There is no such notification, or no longer.")
        return json_response(answers.notification_status(record))

    @operation(
        "What became of a batch",
        description="Of a batch, an upload of lines, or a fan-out to an audience.",
        scope="notify",
        answers={200: answers.BatchStatus},
        refusals=(400, 404),
        tag="notifications",
    )
    async def show_batch(request: Request) -> Response:
        principal = await permitted(gateway, request, "notify")
        digits = request.path_params["batch"]
        if not re.fullmatch(r"[0-9]{1,19}", digits) or int(digits) >= 1 << 63:
            raise Problem(400, detail="The batch is no number of at most 63 bits.", field="batch")
        record = await gateway.outbox.find_batch(int(digits))
        if record is None or not principal.may("notify", record.app):
            raise Problem(404, detail="There is no such batch, or no longer.")
        return json_response(answers.batch_status(record))

    return [
        Route(PATH + "/{apns_id}", show_notification, methods=["GET"]),
        Route("/v1/batches/{batch}", show_batch, methods=["GET"]),
    ]
