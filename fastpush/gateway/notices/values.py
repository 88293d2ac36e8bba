"""What a notice is, and the ways by which one is told."""

from __future__ import annotations

import datetime
import math
from typing import Literal, get_args

import msgspec

__all__ = [
    "CATEGORY",
    "CHANNELS",
    "DAY",
    "EVERY_CHANNEL",
    "QUIET_CHANNELS",
    "Change",
    "Channel",
    "Judgement",
    "Kind",
    "Notice",
    "Told",
    "date_of",
    "time_left",
    "title_of",
]

DAY = 86_400.0
CATEGORY = "OPM_CERT"
"""Of the push: the app's own name for this kind of notification."""

Channel = Literal["console", "log", "email", "app", "push", "opmanager", "webhook"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)
"""`console` and `app` are told by being asked: the console's banner, and `GET /v1/notices` of a phone."""
QUIET_CHANNELS: tuple[Channel, ...] = ("console", "log", "email")
EVERY_CHANNEL: tuple[Channel, ...] = CHANNELS

Change = Literal["raised", "withdrawn", "trial"]

Kind = Literal[
    "certificate",
    "not_yet_valid",
    "intermediate",
    "ingest_certificate",
    "trust_root",
    "trust_root_missing",
    "credential_refused",
    "credential_unusable",
    "file_refused",
    "rest_key",
    "clock",
    "silence",
    "source_silence",
    "canary",
    "breaker",
    "trial",
]


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody should see to.

    Attributes:
      id: the same for as long as it is the same thing: of a certificate it names the certificate.
      kind: what is wrong, for programs.
      severity: as OpManager counts: 1 critical, 2 trouble, 3 attention.
      stage: of what comes nearer: how many days ahead it is told now, 0 at the end; else None.
      title, body, cure: what it is, what is known of it, and what to do, each for people.
      entity: what it is called inside OpManager.
      apps: whose pushes it concerns; none stands for all.
      topic: the bundle id, where it is about one.
      name: of the certificate or key that it is about.
      expires_at: UNIX seconds, where something expires.
      channels: by which it is told.
    """

    id: str
    kind: Kind
    severity: int
    title: str
    body: str
    cure: str
    entity: str
    channels: tuple[Channel, ...]
    stage: float | None = None
    apps: tuple[str, ...] = ()
    topic: str | None = None
    name: str = ""
    expires_at: float | None = None


class Told(msgspec.Struct, frozen=True):
    """What is remembered of a notice.

    Attributes:
      at: when it was last told, UNIX seconds.
      standing: it has not been withdrawn.
    """

    notice: Notice
    at: float
    standing: bool = True


class Judgement(msgspec.Struct, frozen=True):
    """What follows.

    Attributes:
      tell: notices to be told now.
      restore: notices that stand again and were told before, so that nobody is told again.
      withdraw: ids of what is over.
      forget: ids of what was told by a clock that was wrong.
    """

    tell: tuple[Notice, ...] = ()
    restore: tuple[Notice, ...] = ()
    withdraw: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tell or self.restore or self.withdraw or self.forget)


_EXPIRING: dict[str, str] = {
    "certificate": "Push certificate",
    "intermediate": "Intermediate of the push certificate",
    "ingest_certificate": "Gateway's own TLS certificate",
    "trust_root": "Trust root of APNs",
}


def title_of(kind: Kind, name: str, expires_at: float, now: float) -> str:
    """The line above all others, with the time that is left now."""
    what = _EXPIRING[kind]
    name = f" {name}" if name else ""
    left = expires_at - now
    if left <= 0:
        return f"{what}{name} has expired"
    return f"{what}{name} expires in {time_left(left)}"


def time_left(seconds: float) -> str:
    """In days, and in hours of the last: never more than there is, except that the last hour counts."""
    if seconds >= DAY:
        days = math.floor(seconds / DAY + 1e-9)
        return f"{days} day{'' if days == 1 else 's'}"
    hours = max(1, math.floor(seconds / 3600 + 1e-9))
    return f"{hours} hour{'' if hours == 1 else 's'}"


def date_of(at: float) -> str:
    """A point in time for people."""
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M} UTC"
