"""The watchdog at work: looks at everything once a minute, judges, and lets the notices tell.

It judges by the best time that is known. Before a certificate's notice is told for the first time since the
start, or since the clock was set, a server is asked for its date: so that a wrong clock neither tells of an
expiry nor hides one. It pauses nothing: what APNs refuses is the dispatcher's business, and here only told.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import msgspec
import trio

from fastpush import proof
from fastpush.client import PORT
from fastpush.credentials import Credential, ProviderCertificate
from fastpush.errors import FastpushError, InvalidCredential
from fastpush.gateway.apps import App, Apps, Line
from fastpush.gateway.config import AppSettings, Config, SecretUnusable
from fastpush.gateway.cures import RENEW, SET_CLOCK, cure_of
from fastpush.gateway.http import ServerTLS
from fastpush.gateway.log import get_logger
from fastpush.gateway.notices import Notices, NotTold
from fastpush.gateway.notices.outgoing import OpManagerCarrier
from fastpush.gateway.notices.values import date_of
from fastpush.gateway.outbox import Outbox
from fastpush.gateway.renewal import Renewal, Slot, Verdict
from fastpush.gateway.storage import Storage, StorageError
from fastpush.gateway.watchdog.canary import Canary
from fastpush.gateway.watchdog.judge import Certificate, Sight, Table, Trouble, judge, trouble_id
from fastpush.gateway.watchdog.silence import Silence, SourceSilence, Traffic
from fastpush.gateway.watchdog.sources import own_certificate, provider_certificates, server_of, trust_root
from fastpush.gateway.watchdog.timekeeping import Timekeeper, boot_time
from fastpush.gateway.watchdog.values import Watched
from fastpush.transport import Proxy

__all__ = ["Watchdog", "Watched", "open_watchdog"]

logger = get_logger("fastpush.gateway.watchdog")

LOOK_EVERY = 60.0  # seconds; a machine that slept is judged within as many
READ_EVERY = 3_600.0  # seconds between two looks at files that seldom change, and at OpManager's key
ASK_EVERY = 6 * 3_600.0  # seconds between two looks at a server's clock
ASKED_WITHIN = 20.0
CLOCK_OFF, CLOCK_RIGHT = 30.0, 10.0  # seconds

SCHEMA = [("CREATE TABLE sources (source TEXT PRIMARY KEY, heard_at REAL NOT NULL) WITHOUT ROWID",)]


async def open_watchdog(
    config: Config,
    *,
    storage: Storage,
    outbox: Outbox,
    apps: Apps,
    notices: Notices,
    breaker: Callable[[str], str | None] = lambda app: None,
    certificates: Sequence[ServerTLS] = (),
    state_directory: Path | None = None,
    timekeeper: Timekeeper | None = None,
) -> Watchdog:
    """Read what is remembered, and make the watchdog; `run` it.

    Args:
      breaker: why nothing of an app is deleted and dispatch is paused, None when all is well.
      certificates: of the listeners, ingest first, as the configuration has them.
      state_directory: for credentials that come by HTTP; beside the database without it.
    """
    await storage.add_schema("watchdog", SCHEMA)
    heard = await storage.read(
        lambda connection: dict(connection.execute("SELECT source, heard_at FROM sources").fetchall())
    )
    return Watchdog(
        config,
        storage,
        outbox,
        apps,
        notices,
        breaker,
        certificates,
        state_directory or state_directory_of(config),
        timekeeper or Timekeeper(),
        heard,
    )


def state_directory_of(config: Config) -> Path:
    """Where credentials that came by HTTP lie."""
    return config.storage.path.parent / "credentials"


@final
class Watchdog:
    """Made by `open_watchdog`.

    Attributes:
      renewal: takes new credentials.
      notices: what is told.
    """

    def __init__(
        self,
        config: Config,
        storage: Storage,
        outbox: Outbox,
        apps: Apps,
        notices: Notices,
        breaker: Callable[[str], str | None],
        certificates: Sequence[ServerTLS],
        state_directory: Path,
        timekeeper: Timekeeper,
        heard: Mapping[str, float],
    ) -> None:
        settings = config.watchdog
        self._config, self._storage, self._outbox, self._apps = config, storage, outbox, apps
        self._breaker = breaker
        self._time = timekeeper
        self.notices = notices
        self._table = Table(early=settings.early_days, days=settings.days)
        listeners = [tls for tls in (config.ingest.tls, config.admin.tls) if tls is not None]
        self.renewal = Renewal(
            apps,
            state_directory,
            certificates=[
                (serving, (tls.certificate_file, tls.key_file))
                for serving, tls in zip(certificates, listeners, strict=False)
            ],
            told=self._heard_of_credential,
            reloaded=self._heard_of_own,
            clock=timekeeper.now,
            database=config.storage.path,
        )
        self._standbys: dict[str, Credential] = {}
        self._own: Certificate | None = None
        self._own_refused: str | None = None
        self._roots: list[Certificate | Trouble] = []
        self._silences = {name: Silence(settings.silence_minutes * 60) for name in apps}
        self._sources = SourceSilence(settings.source_silence_minutes, heard)
        self._rest_key: Trouble | None = None
        self._rest_known = False
        self._canary = Canary(settings, apps, self._look_again) if settings.canary_minutes else None
        self._clock_trouble = False
        self._read_due = self._ask_due = 0.0
        self._bell = trio.Event()
        self._looking = trio.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._apps)} apps>"

    # What others ask and tell. None of these waits.

    def configure(self, config: Config) -> None:
        """Go by another configuration, its topics and OpManager's REST interface, and look at once."""
        if config.notices.opmanager != self._config.notices.opmanager:
            self._rest_known, self._rest_key = False, None
        self._config = config
        self._read_due = 0.0
        self._bell.set()

    @property
    def clock_skew(self) -> float | None:
        """Seconds that our clock is ahead of the servers'; None while nothing is known."""
        return self._time.offset

    def heard(self, source: str) -> None:
        """A webhook of this source came."""
        self._sources.heard(source, self._time.now())

    def expiry_timestamps(self) -> dict[tuple[str, str], float]:
        """When each certificate ends, UNIX seconds, by app and role; ("", "ingest") is our own."""
        return {
            (watched.app, watched.role or watched.what): watched.expires_at
            for watched in self.status()
            if watched.expires_at is not None
        }

    def status(self) -> list[Watched]:
        """All that is watched, as it was last seen."""
        found = []
        for slot in self.renewal.slots.values():
            credential = self._credential(slot)
            line = self._line(slot)
            if credential is None:
                reason = line.stopped if line is not None else None
                found.append(
                    Watched(
                        what="credential", name="", app=slot.app, role=slot.role,
                        state=reason or "not loaded", source=slot.source,
                    )
                )  # fmt: skip
                continue
            expires_at = credential.expires_at
            found.append(
                Watched(
                    what="credential",
                    name=credential.identity,
                    app=slot.app,
                    role=slot.role,
                    kind=credential.kind,
                    state=(line.stopped or "ok") if line is not None else "ok",
                    fingerprint=credential.fingerprint,
                    expires_at=None if expires_at is None else expires_at.timestamp(),
                    topics=tuple(sorted(credential.topics or ())),
                    environments=tuple(sorted(credential.environments or ())),
                    proved=None if line is None else slot.proved and _is_proved(line),
                    source=slot.source,
                )
            )
        if self._own is not None:
            found.append(
                Watched(
                    what="ingest", name=self._own.name, fingerprint=self._own.fingerprint,
                    expires_at=self._own.expires_at, state=self._own_refused or "ok",
                )
            )  # fmt: skip
        for root in self._roots:
            if isinstance(root, Certificate):
                found.append(
                    Watched(
                        what="trust_root", name=root.name, app=", ".join(root.apps), role="trust_root",
                        fingerprint=root.fingerprint, expires_at=root.expires_at,
                    )
                )  # fmt: skip
        return found

    # Its life.

    async def run(self, *, task_status: trio.TaskStatus[Watchdog] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled. Nothing that goes wrong here ends the gateway."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.renewal.run)
            for app in self._apps.values():
                nursery.start_soon(self._follow, app)
            if self._canary is not None:
                nursery.start_soon(self._canary.run)
            task_status.started(self)
            while True:
                try:
                    await self.look()
                except (StorageError, OSError) as error:
                    logger.error("the watchdog cannot look", error=str(error))
                except Exception:
                    logger.exception("the watchdog failed, and looks again in a minute")
                with trio.move_on_after(LOOK_EVERY):
                    await self._bell.wait()
                self._bell = trio.Event()

    async def look(self) -> None:
        """Look, judge and tell, once."""
        async with self._looking:
            if self._time.jumped():
                logger.warning("the clock of this machine was set, or it slept: all is judged again")
            await self._read()
            uptime = boot_time()
            if uptime >= self._ask_due:
                if self._ask_due:
                    await self._ask_for_time()
                self._ask_due = uptime + ASK_EVERY
            sight = self._see()
            judgement = judge(sight, self.notices.told, self._time.now(), self._table)
            if judgement and self._time.doubtful():
                await self._ask_for_time()
                sight = self._see()
                judgement = judge(sight, self.notices.told, self._time.now(), self._table)
                if self._time.doubtful():
                    # Nobody has told the time: what hangs on it waits, all else is told.
                    judgement = msgspec.structs.replace(
                        judgement,
                        tell=tuple(one for one in judgement.tell if not _hangs_on_clock(one.kind)),
                        restore=(),
                        forget=(),
                        withdraw=tuple(
                            key
                            for key in judgement.withdraw
                            if not _hangs_on_clock(self.notices.told[key].notice.kind)
                            or self._is_replaced(key, sight)
                        ),
                    )
            await self.notices.apply(judgement, self._time.now())

    def _is_replaced(self, key: str, sight: Sight) -> bool:
        """Whether a certificate's notice is over because the certificate is not in use any more."""
        fingerprint = key.partition(":")[2]
        return not any(one.fingerprint.startswith(fingerprint) for one in sight.certificates)

    def _look_again(self) -> None:
        self._bell.set()

    async def _follow(self, app: App) -> None:
        """Look at once when something happens to an app."""
        while True:
            await app.changed()
            self._bell.set()

    def _heard_of_credential(self, verdict: Verdict) -> None:
        if verdict.role == "standby" and verdict.credential is not None and verdict.taken:
            self._standbys[verdict.app] = verdict.credential
        self._bell.set()

    def _heard_of_own(self, refused: str | None) -> None:
        self._own_refused = refused
        self._read_due = 0.0
        self._bell.set()

    # What is read.

    async def _read(self) -> None:
        """Read the files that nobody else reads, and ask OpManager about its key, once an hour."""
        uptime = boot_time()
        if self._sources.changed:
            self._sources.changed = False
            heard = list(self._sources.heard_at.items())
            await self._storage.write(lambda connection: _write_heard(connection, heard), essential=True)
        if uptime < self._read_due:
            return
        self._read_due = uptime + READ_EVERY
        tls, apps = self._config.ingest.tls, dict(self._config.apps)
        own, self._roots, standbys = await trio.to_thread.run_sync(_read_files, tls, apps)
        if own is not None and self._own_refused is None:
            self._own = own  # of a file that was refused, the one before is still served
        for name, credential in standbys.items():
            self._standbys.setdefault(name, credential)
        rest = self._config.notices.opmanager
        if rest is not None:
            try:
                await OpManagerCarrier(rest).check_key()
            except NotTold as error:
                if error.lasting:
                    self._rest_known = True
                    self._rest_key = Trouble(
                        kind="rest_key",
                        subject="",
                        severity=3,
                        title="OpManager refuses the key of its REST interface",
                        body=f"{error}. The watchdog cannot raise alarms inside OpManager.",
                        cure="Turn REST access on for its user in OpManager; put the key into api_key_file.",
                    )
            else:
                self._rest_known, self._rest_key = True, None

    async def _ask_for_time(self) -> None:
        """Take the date of the first server that tells one."""
        for slot in self.renewal.slots.values():
            credential = self._apps[slot.app].credential(slot.role)
            if credential is None:
                continue
            try:
                with trio.move_on_after(ASKED_WITHIN):
                    date = await _server_date(credential, self._config.apps[slot.app], self._time.now())
                    if date is not None:
                        self._time.heard(date)
                        return
            except (FastpushError, SecretUnusable, ValueError, OSError) as error:
                logger.info("no server could be asked for the time", error=str(error))

    # What is seen.

    def _credential(self, slot: Slot) -> Credential | None:
        used = self._apps[slot.app].credential(slot.role)
        return used if used is not None or slot.role == "main" else self._standbys.get(slot.app)

    def _line(self, slot: Slot) -> Line | None:
        """The worst of its lines: one that is stopped, if any is."""
        lines = [line for line in self._apps[slot.app].lines if line.role == slot.role]
        return next((line for line in lines if line.stopped is not None), lines[0] if lines else None)

    def _see(self) -> Sight:
        certificates: list[Certificate] = []
        troubles: list[Trouble] = []
        unknown: set[str] = set()
        for slot in self.renewal.slots.values():
            credential = self._credential(slot)
            if credential is not None:
                topic = self._config.apps[slot.app].topic
                certificates += provider_certificates(credential, slot.app, topic, slot.source)
            troubles += self._of_line(slot, credential, unknown)
            if slot.verdict is not None and not slot.verdict.taken:
                troubles.append(_file_refused(slot.verdict))
        if self._own is not None:
            certificates.append(self._own)
        if self._own_refused is not None:
            troubles.append(
                Trouble(
                    kind="file_refused",
                    subject="ingest",
                    title="The gateway's new TLS certificate cannot be used",
                    body=f"{self._own_refused}. The old one is still served.",
                    cure="Put certificate and key that belong together in their places.",
                )
            )
        for root in self._roots:
            (certificates if isinstance(root, Certificate) else troubles).append(root)  # type: ignore[arg-type]
        troubles += self._of_clock(unknown)
        troubles += self._of_silence(unknown)
        troubles += self._sources.troubles(self._time.now())
        if self._rest_key is not None:
            troubles.append(self._rest_key)
        if self._canary is not None:
            if self._canary.trouble is not None:
                troubles.append(self._canary.trouble)
            elif not self._canary.known:
                unknown.add(trouble_id("canary", ""))
        if self._config.notices.opmanager is not None and not self._rest_known:
            unknown.add(trouble_id("rest_key", ""))
        return Sight(certificates=tuple(certificates), troubles=tuple(troubles), unknown=frozenset(unknown))

    def _of_line(self, slot: Slot, credential: Credential | None, unknown: set[str]) -> Iterable[Trouble]:
        """A credential that APNs refuses, or that cannot be used at all."""
        line, app = self._line(slot), self._apps[slot.app]
        subject = f"{slot.app}/{slot.role}"
        if credential is not None:
            subject += f"/{credential.fingerprint[:16]}"
        why = self._breaker(slot.app)
        if why is not None and slot.role == "main":
            yield Trouble(
                kind="breaker",
                subject=slot.app,
                title=f"APNs refuses many device tokens of {slot.app}",
                body=f"{why}. Dispatch is paused, and no device is deleted.",
                cure="See whether topic, environment and credential are those of the app, then resume it.",
                apps=(slot.app,),
            )
        if line is None or not (line.stopped is not None and line.refused):
            if line is None or not _is_proved(line):
                unknown.add(trouble_id("credential_refused", subject))
            return
        reason = line.stopped
        standby = app.settings.standby is not None and slot.role == "main" and app.state == "running"
        goes_on = (
            "The standby has taken over."
            if standby
            else "Nothing leaves; what is accepted waits."
            if slot.role == "main"
            else "It is the standby: there is nobody to take over."
        )
        yield Trouble(
            kind="credential_refused" if credential is not None else "credential_unusable",
            subject=subject,
            severity=2 if standby else 1,
            title=f"APNs refuses the {'standby ' if slot.role == 'standby' else ''}credential of {slot.app}"
            if credential is not None
            else f"The credential of {slot.app} cannot be used",
            body=f"{reason}. {goes_on}",
            cure=cure_of(reason) or (RENEW if isinstance(credential, ProviderCertificate) else _SEE),
            apps=(slot.app,),
            topic=app.settings.topic,
        )

    def _of_clock(self, unknown: set[str]) -> Iterable[Trouble]:
        offset = self._time.offset
        if offset is None:
            unknown.add(trouble_id("clock", ""))
            return
        if abs(offset) < CLOCK_RIGHT:
            self._clock_trouble = False
        elif abs(offset) > CLOCK_OFF:
            self._clock_trouble = True
        if self._clock_trouble:
            way = "ahead of" if offset > 0 else "behind"
            yield Trouble(
                kind="clock",
                subject="",
                title="The clock of the gateway's machine is wrong",
                body=f"It is {_spelled(abs(offset))} {way} APNs' clock, where it is"
                f" {date_of(self._time.now())}. Expiries are judged by APNs' clock.",
                cure=SET_CLOCK,
            )

    def _of_silence(self, unknown: set[str]) -> Iterable[Trouble]:
        waiting, uptime = self._outbox.waiting(), boot_time()
        for name, app in self._apps.items():
            traffic = _traffic(app, waiting[name].count + waiting[name].fanouts if name in waiting else 0)
            if app.state == "paused":
                traffic = traffic._replace(waiting=0)
            silent = self._silences[name].look(traffic, uptime)
            if not traffic.accepted:
                # Since the start: one that stood before lasts until APNs accepts something.
                unknown.add(trouble_id("silence", name))
            if silent is not None and app.state != "refused":  # of that there is a notice already
                yield Trouble(
                    kind="silence",
                    subject=name,
                    severity=1,
                    title=f"APNs has accepted no push of {name} for {_spelled(silent)}",
                    body=f"{traffic.waiting:,} are waiting. State of the app: {app.reason or app.state}.",
                    cure="Run `fastpush doctor` with the gateway's configuration.",
                    apps=(name,),
                )


_SEE = 'Compare key id and team id with Apple\'s page "Keys", and run `fastpush doctor`.'


def _hangs_on_clock(kind: str) -> bool:
    return kind in ("certificate", "intermediate", "ingest_certificate", "trust_root", "not_yet_valid")


def _is_proved(line: Line) -> bool:
    """Whether APNs has answered anything with this line's credential."""
    if line.client is None or line.stopped is not None:
        return False
    now = line.client.statistics()
    return bool(now.accepted or now.rejected)


def _traffic(app: App, waiting: int) -> Traffic:
    accepted = ended = 0
    for statistics in app.statistics().values():
        accepted += statistics.accepted
        ended += statistics.rejected + statistics.unknown + statistics.not_sent
    return Traffic(accepted, ended, waiting)


def _file_refused(verdict: Verdict) -> Trouble:
    where = "uploaded" if verdict.source == "upload" else f"at {verdict.source}"
    return Trouble(
        kind="file_refused",
        subject=f"{verdict.app}/{verdict.role}",
        severity=3,
        title=f"The new credential of {verdict.app} was refused",
        body=f"The one {where} is not used, and the old one stays: {verdict.reason}.",
        cure="Put a good one in its place; `fastpush doctor` says what is wrong with it.",
        apps=(verdict.app,),
    )


def _read_files(
    tls: Any, apps: Mapping[str, AppSettings]
) -> tuple[Certificate | None, list[Certificate | Trouble], dict[str, Credential]]:
    own = None if tls is None else own_certificate(tls)
    roots: list[Certificate | Trouble] = []
    standbys: dict[str, Credential] = {}
    for name, app in apps.items():
        root = trust_root(name, app)
        if root is not None:
            roots.append(root)
        if app.standby is not None:
            try:
                standbys[name] = app.standby.load()
            except (InvalidCredential, OSError) as error:
                logger.error("the standby cannot be used", app=name, error=str(error))
    return own, roots, standbys


async def _server_date(credential: Credential, app: AppSettings, now: float) -> float | None:
    ca_file = app.ca_file
    context = await trio.to_thread.run_sync(lambda: credential.ssl_context(ca_file=ca_file))
    proxy = app.proxy_url()
    answer = await proof.ask(
        credential,
        app.topic,
        server_of(app),
        app.port or PORT,
        context,
        now,
        proxy=None if proxy is None else Proxy.parse(proxy),
    )
    return answer.server_date


def _write_heard(connection: sqlite3.Connection, heard: list[tuple[str, float]]) -> None:
    connection.executemany("INSERT OR REPLACE INTO sources VALUES (?, ?)", heard)


def _spelled(seconds: float) -> str:
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.0f} seconds"
