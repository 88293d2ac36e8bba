"""How a push ends that APNs did not accept: rejected, or without a verdict; and how many did so."""

from __future__ import annotations

import datetime
from typing import TypeAlias, final

import trio

from fastpush._connection import Push
from fastpush.errors import CredentialRefused, Expired, FastpushError, NotSent, OutcomeUnknown
from fastpush.http2 import LocalProtocolError, StreamEnded
from fastpush.notification import Response

__all__ = ["Endings", "NoVerdict"]

NoVerdict: TypeAlias = type[NotSent] | type[OutcomeUnknown] | type[CredentialRefused] | type[Expired]
"""What `send` raises where there is no verdict of APNs."""

_OUTCOMES: dict[NoVerdict, str] = {
    NotSent: "not_sent",
    CredentialRefused: "not_sent",
    Expired: "expired",
    OutcomeUnknown: "unknown",
}


@final
class Endings:
    """Ends pushes, each once.

    Attributes:
      counts: of those that ended here, by outcome.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("rejected", "unknown", "not_sent", "expired"), 0)

    def rejected(
        self,
        push: Push,
        ended: StreamEnded,
        reason: str | None,
        *,
        unregistered_at: datetime.datetime | None,
        retryable: bool,
        retry_after: float | None,
        now: float,
    ) -> Response:
        """APNs has answered, and no."""
        unique_id = ended.field(b"apns-unique-id")
        response = Response(
            push.notification,
            "rejected",
            status=ended.status,
            reason=reason,
            apns_id=push.apns_id.decode(),
            apns_unique_id=None if unique_id is None else unique_id.decode("latin-1"),
            unregistered_at=unregistered_at,
            retryable=retryable,
            retry_after=retry_after,
            attempts=push.attempts,
            elapsed=now - push.began_at,
        )
        self.counts["rejected"] += 1
        push.end(response)
        return response

    def without_verdict(self, push: Push, kind: NoVerdict, reason: str) -> None:
        """There will be no answer; one that has ended already stays as it is."""
        if push.ended:
            return
        if push.doubtful and kind is not CredentialRefused:
            kind = OutcomeUnknown  # an earlier attempt was lost, and may have been processed
        error = kind(reason, apns_id=push.apns_id.decode(), attempts=push.attempts)
        if push.doubtful:
            error.processed = None
        self._end(push, "unknown" if push.doubtful else _OUTCOMES[kind], error)

    def expired(self, push: Push) -> None:
        """Its time was over before its turn."""
        self.without_verdict(push, Expired, "its expiration passed before it could be sent")

    def failed(self, push: Push, error: Exception | None) -> None:
        """It could not be written: what kept it from that, None where it has expired."""
        if error is None:
            self.expired(push)
        elif isinstance(error, LocalProtocolError):
            self.without_verdict(push, NotSent, str(error))
        else:
            assert isinstance(error, FastpushError)  # no topic, or none that the credential covers
            self._end(push, "not_sent", error)

    def _end(self, push: Push, outcome: str, error: FastpushError) -> None:
        self.counts[outcome] += 1
        response = Response(
            push.notification,
            outcome,
            apns_id=push.apns_id.decode(),
            retryable=outcome == "not_sent" and isinstance(error, NotSent | CredentialRefused),
            error=error,
            attempts=push.attempts,
            elapsed=trio.current_time() - push.began_at,
        )
        push.end(response, error)
