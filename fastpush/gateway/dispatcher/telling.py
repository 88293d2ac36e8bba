"""A line of the log for each notification that did not end well: the last link from a webhook to Apple."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from itertools import islice

from fastpush.gateway.dispatcher.settling import Outcomes
from fastpush.notification import Response

__all__ = ["MOST", "tell_of_answers", "tell_of_ends"]

logger = logging.getLogger("fastpush.gateway.ends")

MOST = 5  # lines for one write of outcomes; the log's own filter lets no more of a kind through at once


def tell_of_ends(outcomes: Outcomes) -> None:
    """Log what was not accepted, once it is on disk.

    `trace` is the notification's own: the alarm's id, or the id of the request that brought it. A storm pays
    for the first few of each write and counts the rest.
    """
    fanout = outcomes.fanout
    claims = outcomes.claims if fanout is None else (None,) * len(outcomes.ends)
    bad = [
        (end, claim) for end, claim in zip(outcomes.ends, claims, strict=False) if end.outcome != "accepted"
    ]
    if not bad or not logger.isEnabledFor(logging.WARNING):
        return
    for number, (end, claim) in enumerate(islice(bad, MOST)):
        if claim is not None:
            apns_id, entry = claim.apns_id, claim.entry
        else:
            assert fanout is not None
            apns_id, entry = fanout.apns_id(end.device_token or ""), fanout.entry
        logger.warning(
            f"notification {end.outcome}",  # the outcome makes a kind of its own
            extra={
                "app": outcomes.app, "apns_id": str(uuid.UUID(bytes=apns_id)), "trace": entry.trace,
                "batch": str(end.batch), "status": end.status or None, "reason": end.reason or None,
                "attempts": end.attempts, "device_token": end.device_token or entry.device_token,
                "more": len(bad) - MOST if number == MOST - 1 and len(bad) > MOST else None,
            },
        )  # fmt: skip


def tell_of_answers(app: str, responses: Iterable[Response], trace: Callable[[Response], str | None]) -> None:
    """At level debug: by which apns-unique-id Apple's Push Notifications Console knows a push.

    Only the development environment gives one, on acceptance.
    """
    if not logger.isEnabledFor(logging.DEBUG):
        return
    for response in responses:
        if response.apns_unique_id is not None:
            ids = {"apns_id": response.apns_id, "apns_unique_id": response.apns_unique_id}
            logger.debug("notification answered", extra={"app": app, **ids, "trace": trace(response)})
