"""The dead letters: what failed for good, by reason, and sending it again."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.console.notifications import octets_of
from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.problems import Problem

__all__ = ["routes"]

NEWEST = 20


def routes(console: Console) -> list[BaseRoute]:
    return [
        page_route(console, "/failures", listed),
        page_route(console, "/failures/again", sent_again, "POST"),
    ]


async def listed(visit: Visit) -> Response:
    outbox: Any = visit.gateway.outbox
    page = await outbox.search(outcome="failed", limit=NEWEST)
    return visit.render("failures.html", failures=await outbox.failures(), newest=page.rows)


async def sent_again(visit: Visit) -> Response:
    """One by its apns-id, or all of an app and a reason."""
    outbox: Any = visit.gateway.outbox
    apns_id = octets_of(visit.given("apns_id"))
    app, reason = visit.given("app"), visit.given("reason")
    if apns_id is None and not app:
        raise Problem(422, "nothing chosen", "Choose a notification, or an app and a reason.")
    try:
        if apns_id is not None:
            sent = await outbox.send_again(apns_id=apns_id)
        else:
            sent = await outbox.send_again(app=app, reason=reason)
    except LookupError as error:
        raise Problem(409, "not sent again", str(error)) from None
    await visit.audit(
        "notifications.sent_again", visit.given("apns_id") or f"{app} {reason}", f"{sent.count}"
    )
    said = f"{sent.count:,} accepted once more."
    if sent.gone:
        said += f" Of {sent.gone:,} the payload is not kept any more."
    if sent.meanwhile:
        said += f" {sent.meanwhile:,} somebody else sent again at the same moment."
    if sent.stopped:
        said += f" The rest was not: {sent.stopped}"
    back = visit.given("back")
    return visit.back(back if back.startswith("/notifications/") else "/failures", said)
