"""The exceptions of fastpush: one base and few leaves, each a case in which a caller acts differently.

A rejection by APNs is an answer and so a `Response`, never an exception. An exception says
that there is no answer, or that none was asked for.
"""

from __future__ import annotations

__all__ = [
    "CredentialRefused",
    "Expired",
    "FastpushError",
    "InvalidCredential",
    "InvalidNotification",
    "NotSent",
    "OutcomeUnknown",
]


class FastpushError(Exception):
    """Base of every exception that fastpush raises on purpose."""


class InvalidNotification(FastpushError, ValueError):
    """A notification or payload that APNs would refuse; raised where it is made, before any octet is written.

    The message names the field, the size or value found, and the limit; never a text or a device token.

    Attributes:
      field: the argument at fault, as in `badge` or `loc_args[2]`; None where no single one is.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_invalid, (type(self), str(self), self.field)


def _rebuild_invalid(kind: type[InvalidNotification], message: str, field: str | None) -> InvalidNotification:
    return kind(message, field=field)


class InvalidCredential(FastpushError, ValueError):
    """A key or certificate that cannot be used: unreadable, mismatched, expired, of the other environment."""


class _NoVerdict(FastpushError):
    """What the four errors without a verdict from APNs have in common.

    Attributes:
      apns_id: the canonical lower-case UUID of the push; None if none was drawn for it.
      attempts: how many times its HEADERS frame was written (0 if never).
      processed: False when APNs has surely not processed it (RFC 9113 §8.7), None when that is unknown.
      reason: why, in one short line.
    """

    processed: bool | None = False

    def __init__(self, reason: str, *, apns_id: str | None = None, attempts: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.apns_id = apns_id
        self.attempts = attempts

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.reason, self.apns_id, self.attempts)


def _rebuild(kind: type[_NoVerdict], reason: str, apns_id: str | None, attempts: int) -> _NoVerdict:
    return kind(reason, apns_id=apns_id, attempts=attempts)


class CredentialRefused(_NoVerdict):
    """APNs refuses the key or certificate; nothing goes out until it changes."""


class NotSent(_NoVerdict):
    """Surely not processed by APNs: it is safe to send it again."""


class OutcomeUnknown(_NoVerdict):
    """Lost after it was written: APNs may have processed it."""

    processed = None


class Expired(_NoVerdict):
    """Its expiration passed before it could be sent."""
