"""What is sent and what became of it: the values of the public face.

`Payload`, `Alert`, `Sound` and `LiveActivity` are content, `Notification` is one push to one device, and
`Response` is its one end. All are checked when made, never change, and are compiled where they exist once
per push. What is here in plain Python is asked once per connection, or once per rejection.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson

from fastpush._encode import Alert, Payload, Sound
from fastpush._live_activity import LiveActivity
from fastpush._notification import (
    MAX_COLLAPSE_ID_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_VOIP_PAYLOAD_BYTES,
    TOPIC_SUFFIXES,
    Notification,
    Response,
)

__all__ = [
    "MAX_BROADCAST_PAYLOAD_BYTES",
    "MAX_COLLAPSE_ID_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MAX_VOIP_PAYLOAD_BYTES",
    "TOPIC_SUFFIXES",
    "Alert",
    "LiveActivity",
    "Notification",
    "Payload",
    "Response",
    "Sound",
    "parse_error_body",
    "topic_for",
    "unregistered_at",
]

MAX_BROADCAST_PAYLOAD_BYTES = 5120  # Apple, "Sending broadcast push notification requests to APNs"

# Apple's longest reason has 27 characters; a line of a log should not be filled by a stranger.
_REASON_CHARACTERS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def topic_for(topic: str, push_type: str) -> str:
    """The `apns-topic` for a bundle id: with the suffix of the push type, unless it is there already.

    A push type that is not in `TOPIC_SUFFIXES` gets none. A bundle id that itself ends in the suffix must be
    given with the suffix.

    Source: Apple, "Sending notification requests to APNs", table of apns-push-type.
    """
    suffix = TOPIC_SUFFIXES.get(push_type, "")
    return topic if topic.endswith(suffix) else topic + suffix


def parse_error_body(body: bytes) -> tuple[str | None, int | None]:
    """What the body of a rejection says: the reason, and the `timestamp` of a 410 in milliseconds.

    Never raises: each is None where the body is empty, no JSON object, or of another type there. Blanks
    in a reason are taken out, since Apple's pages print "Service Unavailable" too.

    Source: Apple, "Handling notification responses from APNs".
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None, None
    if not isinstance(answer, dict):
        return None, None
    reason, timestamp = answer.get("reason"), answer.get("timestamp")
    if isinstance(reason, str):
        reason = "".join(filter(str.isprintable, "".join(reason.split())))[:_REASON_CHARACTERS]
    if isinstance(timestamp, float) and timestamp.is_integer():
        timestamp = int(timestamp)
    return (
        reason if isinstance(reason, str) and reason else None,
        timestamp if isinstance(timestamp, int) and not isinstance(timestamp, bool) else None,
    )


def unregistered_at(timestamp_ms: int | None) -> datetime | None:
    """The instant of a 410's `timestamp`, in UTC; None without one, or where no `datetime` can hold it."""
    if timestamp_ms is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=timestamp_ms)
    except OverflowError:
        return None
