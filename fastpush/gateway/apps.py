"""The apps that the gateway pushes for: a credential, a topic and limits each, and the clients for them.

An app has up to four *lines*, each a `fastpush.Client` of its own: for production and development, each with
the credential and with the standby's. A line is opened when it is first needed; a credential that cannot be
used, or that APNs refuses, stops its line and no other one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, final

import msgspec
import trio

from fastpush import proof
from fastpush.client import HOSTS, PORT, Client, open_client
from fastpush.credentials import Credential
from fastpush.errors import CredentialRefused, FastpushError, InvalidCredential, NotSent
from fastpush.events import ClientEvent, ClientStatistics, Connected, CredentialWasRefused
from fastpush.gateway.config import AppSettings, CredentialSettings, SecretUnusable
from fastpush.gateway.log import get_logger
from fastpush.transport import Proxy

__all__ = ["App", "AppSettings", "Apps", "CredentialSettings", "Line", "Role", "State"]

logger = get_logger("fastpush.gateway.apps")

Environment = Literal["production", "development"]
Role = Literal["main", "standby"]
State = Literal["running", "paused", "refused", "unreachable"]

LOOK_EVERY = 1.0  # seconds between two looks at whether a client has a connection, and goes on
LOST_AFTER = 10.0  # seconds without any connection after which an app counts as unreachable


@final
class Line:
    """One client of an app, and whether APNs takes anything through it.

    Attributes:
      client: None while the credential cannot be used at all.
      stopped: why nothing goes out, None if it does.
      refused: it is stopped because APNs refuses the credential, or because it cannot be used.
    """

    def __init__(self, app: App, environment: Environment, role: Role) -> None:
        self.app = app
        self.environment = environment
        self.role = role
        self.client: Client | None = None
        self.stopped: str | None = None
        self.refused = False
        self._opening = False
        self._connected_at = 0.0
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<{self.role} line of {self.app.name} to {self.environment}, {self.stopped or 'open'}>"

    def stop(self, reason: str, *, refused: bool) -> None:
        """Say that nothing goes out through it. Who feeds it waits for `changed`."""
        news = self.stopped is None
        self.stopped, self.refused = reason, refused
        if news:
            logger.error("nothing is sent", app=self.app.name, environment=self.environment, reason=reason)
            self._notify()
            self.app._line_changed(self)

    def go_on(self) -> None:
        """Say that it takes pushes again."""
        if self.stopped is not None:
            logger.info("sending goes on", app=self.app.name, environment=self.environment)
            self.stopped, self.refused = None, False
            self._notify()
            self.app._line_changed(self)

    async def changed(self) -> None:
        """Wait until it stops, goes on, or is opened."""
        await self._changed.wait()

    @property
    def address(self) -> tuple[str | None, int | None]:
        """Another host and port than APNs' own."""
        settings = self.app.settings
        if self.environment == "development":
            return settings.development_host or settings.host, settings.development_port or settings.port
        return settings.host, settings.port

    async def _settled(self) -> None:
        """Wait while its client is being opened."""
        while self._opening and self.client is None:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _heard(self, event: ClientEvent) -> None:
        if isinstance(event, CredentialWasRefused):
            self.stop(f"APNs refuses {event.identity}: {event.reason}", refused=True)
        elif isinstance(event, Connected) and self.client is not None:
            self._connected_at = trio.current_time()
            if not self.refused and self.client.statistics().stopped is None:
                self.go_on()

    async def _run(self, credential: Credential) -> None:
        settings = self.app.settings
        host, port = self.address
        async with open_client(
            credential,
            topic=settings.topic,
            environment=self.environment,
            host=host,
            port=port,
            ca_file=settings.ca_file,
            proxy=settings.proxy_url(),
            max_connections=settings.max_connections,
            listener=self._heard,
        ) as client:
            self.client = client
            self.go_on()
            self._notify()
            self._connected_at = trio.current_time()
            while True:
                await trio.sleep(LOOK_EVERY)
                self._look(client.statistics())

    def _look(self, statistics: ClientStatistics) -> None:
        """See whether a stopped client goes on, and whether one has no connection for long."""
        now = trio.current_time()
        connected = any(connection.state in ("open", "draining") for connection in statistics.connections)
        if connected:
            self._connected_at = now
        if statistics.stopped is None and connected:
            self.go_on()
        elif self.stopped is None and now > self._connected_at + LOST_AFTER:
            reason = statistics.stopped or f"no connection for {LOST_AFTER:g} s"
            self.stop(reason, refused=False)


@final
class App:
    """One app, made by `Apps`."""

    def __init__(self, settings: AppSettings, nursery: trio.Nursery) -> None:
        self.settings = settings
        self.name = settings.name
        self.paused: str | None = None
        """Why nothing is dispatched although APNs would take it: an operator's pause, or the breaker."""
        self.watchers: list[Callable[[Line], None]] = []
        """Called at once with a line that stopped or goes on."""
        self._nursery = nursery
        self._credentials: dict[Role, Credential] = {}
        self._lines: dict[tuple[Environment, Role], Line] = {}
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<app {self.name}, {self.state}>"

    @property
    def lines(self) -> Sequence[Line]:
        """Those that were needed so far."""
        return tuple(self._lines.values())

    @property
    def client(self) -> Client | None:
        """The one with the app's own credential and first environment; None if that cannot be used."""
        return self.line(self.settings.environments[0]).client

    @property
    def standby(self) -> Client | None:
        """The one with the standby credential, where there is one and it was needed."""
        line = self._lines.get((self.settings.environments[0], "standby"))
        return None if line is None else line.client

    @property
    def state(self) -> State:
        """ "refused" or "unreachable" only where no standby takes over."""
        if self.paused is not None:
            return "paused"
        line = self.best_line(self.settings.environments[0])
        return "running" if line.stopped is None else "refused" if line.refused else "unreachable"

    @property
    def reason(self) -> str | None:
        """Why it does not run; also why its own credential does not, while the standby does."""
        return self.paused or self.line(self.settings.environments[0]).stopped

    def line(self, environment: Environment, role: Role = "main") -> Line:
        """The line, opened in the background if it was not."""
        line = self._lines.get((environment, role))
        if line is None:
            line = self._lines[environment, role] = Line(self, environment, role)
            self._open(line)
        return line

    def best_line(self, environment: Environment) -> Line:
        """The one to send through: the standby's where it works and the app's own does not."""
        main = self.line(environment)
        if main.stopped is None or not self._has_standby:
            return main
        standby = self.line(environment, "standby")
        return standby if standby.stopped is None else main

    def credential(self, role: Role = "main") -> Credential | None:
        """What it uses; None for a standby that was not needed yet, or what could not be read."""
        return self._credentials.get(role)

    @property
    def _has_standby(self) -> bool:
        return self.settings.standby is not None or "standby" in self._credentials

    async def use_credential(
        self, credential: Credential, *, role: Role = "main", topic: str | None = None, prove: bool = True
    ) -> None:
        """Prove another credential, and use it from now on; nothing is lost.

        Args:
          topic: what it is to push for, where that is another one too; see `use_topic`.
          prove: without it APNs is not asked: for when nobody answers.

        Raises:
          InvalidCredential, CredentialRefused, NotSent: as `Client.use_credential`. Nothing has changed.
        """
        for (_, owner), line in list(self._lines.items()):
            if owner == role:
                await line._settled()  # else it would be opened with the old one
        before, wanted = self._credentials.get(role), topic or self.settings.topic
        credential.check_topic(wanted)
        taken: list[Line] = []
        for (_, owner), line in list(self._lines.items()):
            if owner == role and line.client is not None:
                try:
                    await line.client.use_credential(credential, topic=wanted, prove=prove)
                except FastpushError:
                    # One environment takes it and the other does not: then neither is to have it.
                    for other in taken:
                        if before is not None and other.client is not None:
                            await other.client.use_credential(before, topic=self.settings.topic, prove=False)
                    raise
                taken.append(line)
        if prove and not taken:
            await self._prove(credential, wanted, self.settings.environments[0], role)
        self._credentials[role] = credential
        for line in taken:
            line.go_on()
        for (_, owner), line in list(self._lines.items()):
            if owner == role and line.client is None:
                self._open(line)

    async def use_topic(self, topic: str, credentials: Mapping[Role, Credential]) -> None:
        """Push for another bundle id from now on; nothing is lost.

        Args:
          credentials: that are to be used for it, by role, proved as in `use_credential`.

        Raises:
          InvalidCredential, CredentialRefused, NotSent: as there. Nothing has changed.
        """
        before = dict(self._credentials)
        taken: list[Role] = []
        for role, credential in credentials.items():
            try:
                await self.use_credential(credential, role=role, topic=topic)
            except FastpushError:
                for other in taken:
                    if other in before:
                        await self.use_credential(before[other], role=other, prove=False)
                raise
            taken.append(role)
        self.settings = msgspec.structs.replace(self.settings, topic=topic)

    async def _prove(self, credential: Credential, topic: str, environment: Environment, role: Role) -> None:
        """Ask APNs about a credential on a connection of its own: there is no client that could.

        Raises:
          InvalidCredential, CredentialRefused, NotSent
        """
        settings = self.settings
        ca_file = settings.ca_file
        context = await trio.to_thread.run_sync(lambda: credential.ssl_context(ca_file=ca_file))
        host, port = Line(self, environment, role).address
        url = settings.proxy_url()
        answer = await proof.ask(
            credential,
            topic,
            host or HOSTS[environment],
            port or PORT,
            context,
            time.time(),
            proxy=None if url is None else Proxy.parse(url),
        )
        if answer.refused:
            raise CredentialRefused(f"APNs refuses {credential.identity}: {answer.reason}")
        if answer.status is None:
            raise NotSent(f"{credential.identity} is not proved: {answer.lost}")

    async def changed(self) -> None:
        """Wait until one of its lines stops or goes on."""
        await self._changed.wait()

    def statistics(self) -> dict[str, ClientStatistics]:
        """Of its clients, by environment and role, as in "production main"."""
        return {
            f"{environment} {role}": line.client.statistics()
            for (environment, role), line in self._lines.items()
            if line.client is not None
        }

    def _open(self, line: Line) -> None:
        credential = self._credentials.get(line.role)
        if line._opening:
            return
        if credential is None:
            wanted = self.settings.credential if line.role == "main" else self.settings.standby
            assert wanted is not None
            try:
                credential = self._credentials[line.role] = wanted.load()
            except (InvalidCredential, OSError) as error:
                line.stop(f"the credential cannot be used: {error}", refused=True)
                return
        line._opening = True
        self._nursery.start_soon(self._run_line, line, credential)

    async def _run_line(self, line: Line, credential: Credential) -> None:
        try:
            await line._run(credential)
        except (InvalidCredential, CredentialRefused, SecretUnusable) as error:
            line.stop(f"the credential cannot be used: {error}", refused=True)
        finally:
            line._opening, line.client = False, None
            line._notify()

    def _line_changed(self, line: Line) -> None:
        if line.stopped is not None and line.role == "main" and self._has_standby:
            self.line(line.environment, "standby")
        for watcher in self.watchers:
            watcher(line)
        self._changed.set()
        self._changed = trio.Event()


@final
class Apps(Mapping[str, App]):
    """All apps by name. `run` opens their clients and keeps them until it is cancelled."""

    def __init__(
        self,
        settings: Sequence[AppSettings],
        *,
        credentials: Mapping[str, Credential] | None = None,
        standbys: Mapping[str, Credential] | None = None,
    ) -> None:
        """Take the settings, and for some apps credentials in place of what their settings name."""
        self._settings = settings
        self._given: dict[Role, Mapping[str, Credential]] = {
            "main": credentials or {},
            "standby": standbys or {},
        }
        self._apps: dict[str, App] = {}

    def __getitem__(self, name: str) -> App:
        return self._apps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._apps)

    def __len__(self) -> int:
        return len(self._apps)

    async def run(self, *, task_status: trio.TaskStatus[Apps] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the clients and keep them; started at once, whatever APNs says of the credentials."""
        async with trio.open_nursery() as nursery:
            for settings in self._settings:
                app = self._apps[settings.name] = App(settings, nursery)
                for role, given in self._given.items():
                    if settings.name in given:
                        app._credentials[role] = given[settings.name]
            for app in self._apps.values():
                app.line(app.settings.environments[0])
            task_status.started(self)
            await trio.sleep_forever()

    def statistics(self) -> dict[str, dict[str, ClientStatistics]]:
        """Of all clients, by app."""
        return {name: app.statistics() for name, app in self._apps.items()}
