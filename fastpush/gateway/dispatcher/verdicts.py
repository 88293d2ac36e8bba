"""What a response means for a notification of the outbox: its end, another time, or another way. Without I/O.

The client has tried up to three times by itself before it answers. What comes from there is for hours, not
for seconds: Apple asks to repeat after 15 minutes ("Handling error responses from APNs").
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TypeAlias

import msgspec

from fastpush import retry
from fastpush.errors import CredentialRefused, InvalidCredential, InvalidNotification
from fastpush.gateway.outbox import End, Entry, Retry
from fastpush.notification import Response

__all__ = ["Patience", "Verdict", "Way", "due_after", "judge", "known_reason", "verdict_of"]


# Apple, "Handling notification responses from APNs", and what is written here.
KNOWN_REASONS = frozenset(
    """
    BadCollapseId BadDeviceToken BadExpirationDate BadMessageId BadPriority BadTopic DeviceTokenNotForTopic
    DuplicateHeaders IdleTimeout InvalidPushType MissingDeviceToken MissingTopic PayloadEmpty TopicDisallowed
    BadCertificate BadCertificateEnvironment ExpiredProviderToken Forbidden InvalidProviderToken
    MissingProviderToken UnrelatedKeyIdInToken BadEnvironmentKeyIdInToken BadEnvironmentKeyInToken BadPath
    MethodNotAllowed ExpiredToken Unregistered PayloadTooLarge TooManyProviderTokenUpdates TooManyRequests
    InternalServerError ServiceUnavailable Shutdown
    Lost NotSent Superseded
    """.split()  # noqa: SIM905
)


def known_reason(reason: str) -> str:
    """The reason, or "other": a label of metrics may not be filled by strangers."""
    return reason if not reason or reason in KNOWN_REASONS else "other"


class Way(enum.Enum):
    """What is neither an end nor a matter of time."""

    HELD = "held"
    """Nothing goes out through this client now; it costs no try."""
    ELSEWHERE = "elsewhere"
    """The device token may belong to the other environment."""


Verdict: TypeAlias = "End | Retry | Way"


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a notification is tried again.

    Attributes:
      first_delay, longest_delay: seconds; the longest wait before the first retry, which doubles with each
        up to the second. The wait is drawn between half of it and all of it.
      whole: seconds after its acceptance from which on no further try is made.
      tries: requests at most, those of the client counted one by one.
    """

    first_delay: float = 15.0
    longest_delay: float = 900.0
    whole: float = 86_400.0
    tries: int = 300


def due_after(patience: Patience, rounds: int, chance: float, retry_after: float | None) -> float:
    """Seconds until the next try, after `rounds` that came to nothing; `chance` is drawn from 0 to 1."""
    most = min(patience.longest_delay, patience.first_delay * 2.0 ** min(rounds, 20))
    return max(most * (0.5 + 0.5 * chance), retry_after or 0.0)


def judge(
    response: Response,
    entry: Entry,
    *,
    batch: int,
    index: int,
    device_token: str | None,
    before: int,
    now: float,
    chance: float,
    patience: Patience,
) -> Verdict:
    """Decide what becomes of a notification whose response is not "accepted".

    Args:
      batch, index, device_token: its name in the outbox, for the End or Retry.
      before: attempts of earlier rounds.
      now: UNIX seconds.
      chance: drawn anew from 0 to 1, for the jitter.
    """
    outcome, error, status = response.outcome, response.error, response.status or 0
    attempts = before + response.attempts
    reason = response.reason or ""

    def end(outcome: str, reason: str = reason) -> End:
        return End(batch, index, outcome, now, status, reason, attempts, device_token)  # type: ignore[arg-type]

    if outcome == "expired":
        return end("expired")
    if outcome == "unknown":
        if entry.delivery == "once" or entry.expiration == 0:
            return end("unknown", "" if error is None else error.reason)  # type: ignore[attr-defined]
        reason = "Lost"
    elif outcome == "not_sent":
        if isinstance(error, InvalidNotification):
            return end("failed", f"Invalid {error.field or 'notification'}")
        if isinstance(error, CredentialRefused | InvalidCredential):
            return Way.HELD
        reason = "NotSent"
    else:
        rule = retry.rule_for(status, response.reason)
        if rule.refuses:
            return Way.HELD
        if reason == "BadDeviceToken":
            return Way.ELSEWHERE
        again = response.retryable or rule.action is retry.Action.RENEW
        if not again:
            return end("rejected")
        if entry.expiration == 0:
            return end("failed")
    rounds = -(-attempts // retry.MAX_ATTEMPTS) - 1
    due = now + due_after(patience, rounds, chance, response.retry_after)
    if 0 < entry.expiration < due:
        if entry.expiration <= now + 1.0:
            return end("expired", reason)
        due = entry.expiration - 1.0
    accepted_at = (batch >> 20) / 1_000
    if due > accepted_at + patience.whole or attempts >= patience.tries:
        return end("failed", reason)
    return Retry(batch, index, due, attempts, now, status, reason, device_token)


def verdict_of(response: Response, now: float) -> tuple[str, int, str, int | None, float]:
    """What the registry of devices is told of an answer."""
    gone: datetime | None = response.unregistered_at
    return (
        response.notification.device_token,
        response.status or 0,
        response.reason or "",
        None if gone is None else round(gone.timestamp() * 1_000),
        now,
    )
