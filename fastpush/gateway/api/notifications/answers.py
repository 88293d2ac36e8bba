"""What `/v1/notifications` and `/v1/batches` answer.

Batch ids are texts: JavaScript's numbers end at 2**53.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fastpush.gateway.api.notifications.upload import BadLine, Uploaded
from fastpush.gateway.outbox import Acceptance, Attempt, BatchRecord, End, Outcome, Record

__all__ = [
    "AttemptBody",
    "BadLines",
    "BatchBody",
    "BatchStatus",
    "NotificationStatus",
    "OutcomeBody",
    "Outcomes",
    "UploadBody",
    "batch_status",
    "notification_status",
    "outcomes",
    "upload_body",
    "uuid_text",
]

Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
BatchId = Annotated[str, Meta(description="Decimal digits.", extra_json_schema={"pattern": "^[0-9]+$"})]
Instant = Annotated[float, Meta(description="UNIX seconds.")]


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """What was accepted, and is on disk."""

    app: str
    batch: BatchId
    count: Annotated[
        int | None, Meta(description="Of notifications; null for an audience, which nobody has counted yet.")
    ]
    ids: Annotated[list[Uuid], Meta(description="The apns-ids, in the order of the request.")]


class OutcomeBody(msgspec.Struct, frozen=True, kw_only=True):
    """How a notification ended."""

    apns_id: Uuid
    outcome: Annotated[Outcome | Literal["waiting"], Meta(description="`waiting`: it has no end yet.")]
    status: Annotated[int | None, Meta(description="Of APNs' answer; null without one.")] = None
    reason: str | None = None
    at: Instant | None = None
    attempts: int = 0


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """What was accepted, and how all of it ended in the time that the sender wanted to wait."""

    app: str
    batch: BatchId
    count: int
    outcomes: list[OutcomeBody]


class BadLines(msgspec.Struct, frozen=True, kw_only=True):
    """Lines that were left out; the first of them one by one."""

    count: int
    lines: list[BadLine]


class UploadBody(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the lines of an upload; what was accepted is on disk."""

    app: str
    batch: Annotated[BatchId | None, Meta(description="Null if no line was good.")]
    count: Annotated[int, Meta(description="Of notifications in good lines.")]
    lines: int
    bad_lines: BadLines
    ids: Annotated[
        list[Uuid] | None,
        Meta(
            description="The apns-ids in the order of the lines; null if there are more than 1,000, or if an"
            " earlier upload stored some of the lines."
        ),
    ]


class AttemptBody(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened: an end, or an attempt that is to be repeated at `due_at`."""

    at: Instant
    outcome: Outcome | Literal["retry"]
    status: int | None
    reason: str | None
    attempts: int
    due_at: Instant | None = None
    apns_unique_id: Annotated[
        str | None,
        Meta(description="Apple's own id of the push; only the development environment gives one."),
    ] = None


class NotificationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a notification. The device token is shortened; the payload is kept for a day."""

    apns_id: Uuid
    app: str
    batch: BatchId
    source: str
    received_at: Instant
    device_token: str | None
    push_type: str
    priority: int
    expiration: int
    collapse_id: str | None
    topic: str | None
    delivery: Literal["resend", "once"]
    urgent: bool
    outcome: Annotated[Outcome | Literal["waiting"], Meta(description="`waiting`: it has no end yet.")]
    attempts: list[AttemptBody]
    payload: Annotated[msgspec.Raw | None, Meta(extra_json_schema={"type": ["object", "null"]})]


class BatchStatus(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a batch, an upload's stream or a fan-out to an audience."""

    batch: BatchId
    app: str
    source: str
    kind: Literal["batch", "fanout", "stream"]
    received_at: Instant
    count: Annotated[int, Meta(description="Of notifications; of a fan-out the devices seen so far.")]
    waiting: Annotated[
        int | None, Meta(description="Without an end; null while the audience is still being walked.")
    ]
    outcomes: dict[str, int]
    batches: Annotated[list[BatchId], Meta(description="Of a stream.")]


def uuid_text(octets: bytes) -> str:
    """A UUID in the usual form."""
    digits = octets.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def outcomes(acceptance: Acceptance, app: str, ends: Mapping[int, End]) -> Outcomes:
    """The ends of a batch that has them all."""
    ended = [(acceptance.apns_id(index), ends[index]) for index in range(acceptance.count)]
    return Outcomes(
        app=app,
        batch=str(acceptance.batch),
        count=acceptance.count,
        outcomes=[
            OutcomeBody(
                apns_id=uuid_text(apns_id),
                outcome=end.outcome,
                status=end.status or None,
                reason=end.reason or None,
                at=end.at,
                attempts=end.attempts,
            )
            for apns_id, end in ended
        ],
    )


def upload_body(uploaded: Uploaded) -> UploadBody:
    return UploadBody(
        app=uploaded.app,
        batch=None if uploaded.batch is None else str(uploaded.batch),
        count=uploaded.count,
        lines=uploaded.lines,
        bad_lines=BadLines(count=uploaded.bad_line_count, lines=list(uploaded.bad_lines)),
        ids=None if uploaded.ids is None else [uuid_text(octets) for octets in uploaded.ids],
    )


def notification_status(record: Record) -> NotificationStatus:
    entry, token = record.entry, record.entry.device_token
    return NotificationStatus(
        apns_id=uuid_text(record.apns_id),
        app=record.app,
        batch=str(record.batch),
        source=record.source,
        received_at=record.received_at,
        device_token=None if token is None else shortened(token),
        push_type=entry.push_type,
        priority=entry.priority,
        expiration=entry.expiration,
        collapse_id=entry.collapse_id,
        topic=entry.topic,
        delivery=entry.delivery,
        urgent=entry.high,
        outcome=record.outcome or "waiting",
        attempts=[_attempt(attempt) for attempt in record.attempts],
        payload=msgspec.Raw(entry.payload) if entry.payload else None,
    )


def _attempt(attempt: Attempt) -> AttemptBody:
    return AttemptBody(
        at=attempt.at,
        outcome=attempt.outcome,
        status=attempt.status or None,
        reason=attempt.reason or None,
        attempts=attempt.attempts,
        due_at=attempt.due_at,
        apns_unique_id=attempt.apns_unique_id,
    )


def batch_status(record: BatchRecord) -> BatchStatus:
    return BatchStatus(
        batch=str(record.batch),
        app=record.app,
        source=record.source,
        kind=record.kind,
        received_at=record.received_at,
        count=record.count,
        waiting=record.waiting,
        outcomes=record.outcomes,
        batches=[str(batch) for batch in record.batches],
    )


def shortened(device_token: str) -> str:
    """Its first and last four digits."""
    return device_token if len(device_token) <= 8 else f"{device_token[:4]}…{device_token[-4:]}"
