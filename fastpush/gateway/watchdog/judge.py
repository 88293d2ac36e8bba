"""What is to be told, and what is well again: a function of what is seen, what was told, and the time.

    ahead of the end          told by
    30 days                   console, log, metric, e-mail
    10, 3, 2, 1 days, and 0   every channel
    ingest's certificate      every channel, once, when a fifth of its lifetime is left

A certificate is told of once at each line of the table, and at most once at each judgement: at the most
urgent line that it has crossed. Lines are kept by the certificate's fingerprint, so that neither a restart
nor the same file under another name repeats one. Troubles of another kind are told at once and withdrawn
when they are over.

No clock is read here. A telling that lies in the future was made by a clock that has been set back since: it
does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from fastpush.gateway.notices.values import (
    DAY,
    EVERY_CHANNEL,
    QUIET_CHANNELS,
    Judgement,
    Kind,
    Notice,
    Told,
    date_of,
    title_of,
)

__all__ = [
    "SET_BACK",
    "Certificate",
    "Sight",
    "Table",
    "Trouble",
    "judge",
    "stage_of",
    "trouble_id",
]

SET_BACK = 0.5 * DAY
"""Seconds by which a telling may lie in the future: a clock is set right by less than that every day."""

FIFTH = 0.2


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """How many days ahead of its end a certificate is told of, besides at the end itself.

    Attributes:
      early: on console, in log and metric, and by e-mail.
      days: on every channel.
    """

    early: tuple[float, ...] = (30,)
    days: tuple[float, ...] = (10, 3, 2, 1)

    @property
    def stages(self) -> tuple[float, ...]:
        return (*self.early, *self.days, 0)


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that is in use. Times are UNIX seconds.

    Attributes:
      kind: `certificate` is a provider certificate, `intermediate` what it came with.
      apps: whose it is; the ingest's is everybody's.
      source: the file that a new one goes to, for the cure; "" where nobody knows.
    """

    kind: Literal["certificate", "intermediate", "ingest_certificate", "trust_root"]
    name: str
    fingerprint: str
    not_before: float
    expires_at: float
    apps: tuple[str, ...] = ()
    topic: str | None = None
    source: str = ""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong now.

    Attributes:
      subject: what is in trouble; with `kind` it makes the notice's id.
      title, body, cure: as of a Notice.
    """

    kind: Kind
    subject: str
    title: str
    body: str
    cure: str
    severity: int = 2
    apps: tuple[str, ...] = ()
    topic: str | None = None
    entity: str = ""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """All that is watched, at one moment.

    Attributes:
      unknown: ids of troubles of which nobody knows now whether they last; they are left as they are.
    """

    certificates: tuple[Certificate, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    unknown: frozenset[str] = frozenset()


def judge(sight: Sight, told: Mapping[str, Told], now: float, table: Table | None = None) -> Judgement:
    """Judge what is seen.

    Args:
      sight: one certificate may be in it several times, for several apps: it is told of once.
      told: by the notice's id, all that was ever told.
      now: UNIX seconds.
    """
    table = table or Table()
    tell: list[Notice] = []
    restore: list[Notice] = []
    void = {key for key, before in told.items() if before.at > now + SET_BACK}
    current = set(sight.unknown)
    for notice in _due(sight, now, table):
        current.add(notice.id)
        before = None if notice.id in void else told.get(notice.id)
        if before is None or _is_worse(notice, before.notice):
            tell.append(notice)
        elif not before.standing:
            if notice.stage is None:
                tell.append(notice)  # it was over, and is there again
            else:
                restore.append(before.notice)
        elif (notice.name, notice.topic) != (before.notice.name, before.notice.topic):
            # Of the same thing under another name: who asks is told that, and nobody is told again. It is
            # withdrawn from where it was raised.
            restore.append(
                msgspec.structs.replace(
                    notice,
                    stage=before.notice.stage,
                    channels=before.notice.channels,
                    entity=before.notice.entity,
                )
            )
    for certificate in _once(sight.certificates):
        # Told of already, and the clock went back a little over the line.
        before = told.get(_certificate_id(certificate))
        if before is not None and before.standing and before.notice.id not in void:
            current.add(before.notice.id)
    withdraw = [key for key, before in told.items() if before.standing and key not in current]
    return Judgement(tuple(tell), tuple(restore), tuple(withdraw), tuple(void - {one.id for one in tell}))


def stage_of(certificate: Certificate, now: float, table: Table) -> float | None:
    """The most urgent line of the table that is crossed, None where none is."""
    left = (certificate.expires_at - now) / DAY
    if certificate.kind == "ingest_certificate":
        fifth = FIFTH * (certificate.expires_at - certificate.not_before) / DAY
        return fifth if left <= fifth else None
    return min((stage for stage in table.stages if left <= stage), default=None)


def trouble_id(kind: Kind, subject: str) -> str:
    """The id of a trouble's notice."""
    return f"{kind}:{subject}"


def _due(sight: Sight, now: float, table: Table) -> Iterable[Notice]:
    for certificate in _once(sight.certificates):
        stage = stage_of(certificate, now, table)
        if stage is not None:
            yield _expiring(certificate, stage, now, table)
        if certificate.kind == "certificate" and now < certificate.not_before:
            yield _not_yet_valid(certificate, now)
    for trouble in sight.troubles:
        yield Notice(
            id=trouble_id(trouble.kind, trouble.subject),
            kind=trouble.kind,
            severity=trouble.severity,
            title=trouble.title,
            body=trouble.body,
            cure=trouble.cure,
            entity=trouble.entity or _entity(trouble.kind, trouble.subject),
            channels=EVERY_CHANNEL,
            apps=trouble.apps,
            topic=trouble.topic,
        )


def _once(certificates: Iterable[Certificate]) -> list[Certificate]:
    """Each certificate one time, with all apps that use it."""
    found: dict[str, Certificate] = {}
    for certificate in certificates:
        key = _certificate_id(certificate)
        if key in found:
            apps = dict.fromkeys((*found[key].apps, *certificate.apps))
            found[key] = msgspec.structs.replace(found[key], apps=tuple(apps))
        else:
            found[key] = certificate
    return list(found.values())


def _is_worse(notice: Notice, before: Notice) -> bool:
    return notice.stage is not None and (before.stage is None or notice.stage < before.stage)


def _certificate_id(certificate: Certificate) -> str:
    return f"{certificate.kind}:{certificate.fingerprint[:32]}"


def _expiring(certificate: Certificate, stage: float, now: float, table: Table) -> Notice:
    kind, expires = certificate.kind, date_of(certificate.expires_at)
    quiet = kind != "ingest_certificate" and stage in table.early
    severity = 1 if certificate.expires_at <= now else 2 if certificate.expires_at <= now + 3 * DAY else 3
    over = "expired on" if certificate.expires_at <= now else "is good until"
    return Notice(
        id=_certificate_id(certificate),
        kind=kind,
        severity=severity,
        title=title_of(kind, certificate.name, certificate.expires_at, now),
        body=f"{_BODIES[kind][0]} {over} {expires}. {_BODIES[kind][1]}{_of_apps(certificate.apps)}",
        cure=_CURES[kind] + (f" It goes to {certificate.source}." if certificate.source else ""),
        entity=_entity(kind, certificate.topic or certificate.name or certificate.fingerprint[:16]),
        channels=QUIET_CHANNELS if quiet else EVERY_CHANNEL,
        stage=stage,
        apps=certificate.apps,
        topic=certificate.topic,
        name=certificate.name,
        expires_at=certificate.expires_at,
    )


def _not_yet_valid(certificate: Certificate, now: float) -> Notice:
    begins = date_of(certificate.not_before)
    return Notice(
        id=f"not_yet_valid:{certificate.fingerprint[:32]}",
        kind="not_yet_valid",
        severity=2,
        title=f"Push certificate {certificate.name} is not valid yet",
        body=f"It is good from {begins}; this clock says {date_of(now)}.{_of_apps(certificate.apps)}",
        cure="Set this machine's clock, or give the certificate that is valid now until then.",
        entity=_entity("not_yet_valid", certificate.topic or certificate.name),
        channels=EVERY_CHANNEL,
        apps=certificate.apps,
        topic=certificate.topic,
        name=certificate.name,
    )


_BODIES: Mapping[str, tuple[str, str]] = {
    "certificate": ("The provider certificate", "Without a new one no push leaves after that."),
    "intermediate": ("The intermediate in the certificate's file", "APNs may refuse the certificate then."),
    "ingest_certificate": (
        "The certificate of the gateway's own address",
        "It should have renewed itself by now; when it ends, senders and phones cannot connect.",
    ),
    "trust_root": (
        "The root certificate that proves to us that APNs is APNs",
        "Without another root no connection to APNs comes about then.",
    ),
}
_CURES: Mapping[str, str] = {
    "certificate": 'Make a new one on Apple\'s page "Certificates" and put its file in place of the old.',
    "intermediate": "Export the certificate again, with today's intermediate, in place of the old file.",
    "ingest_certificate": "See why the certificate did not renew itself (certbot, acme.sh), and renew it.",
    "trust_root": "Update this machine's trusted certificates (ca-certificates), or the file at ca_file.",
}


def _of_apps(apps: tuple[str, ...]) -> str:
    return f" It is used by: {', '.join(apps)}." if apps else ""


def _entity(kind: Kind, subject: str) -> str:
    """Under 100 characters, since it is a key in OpManager's database."""
    prefix = "apns-cert-" if kind in ("certificate", "not_yet_valid") else f"fastpush-{kind}-"
    if kind == "not_yet_valid":
        prefix = "apns-cert-start-"
    name = "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in subject)
    if len(name) > 60:
        name = name[:40] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return prefix.replace("_", "-") + name
