"""`serve`: the whole gateway in one nursery, opened in order and ended in the reverse.

    configuration → storage → outbox, keys, devices, alarms → apps → dispatcher → listeners

Started is told when all of it is there. At the end the listeners stop accepting, what is in flight is
answered, the dispatcher claims no more and waits for APNs' answers, their outcomes are written, and only then
is the storage closed.
"""

from __future__ import annotations

import errno
import os
import ssl
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import trio

from fastpush.errors import InvalidCredential
from fastpush.gateway.alarm_book import open_alarms
from fastpush.gateway.api import Gateway
from fastpush.gateway.app import admin_app, body_rule, ingest_app
from fastpush.gateway.apps import Apps
from fastpush.gateway.auth import open_authenticator
from fastpush.gateway.config import Config, SecretUnusable, TLSSettings
from fastpush.gateway.console.sessions import Sessions
from fastpush.gateway.control import socket_path, trusted
from fastpush.gateway.counters import Counters
from fastpush.gateway.devices import open_devices
from fastpush.gateway.devices.webhook import tell_of_devices
from fastpush.gateway.dispatcher import Dispatcher, Patience
from fastpush.gateway.dispatcher.telling import Teller
from fastpush.gateway.http import Limits, Listener, Server, ServerTLS, TrustedProxies, open_listener
from fastpush.gateway.http import serve as serve_http
from fastpush.gateway.notices import Carrier, open_notices
from fastpush.gateway.notices.channels import carriers_of
from fastpush.gateway.outbox import Audience, Outbox
from fastpush.gateway.outbox.origin import BACKGROUND
from fastpush.gateway.outbox.origin import current as origin
from fastpush.gateway.outbox.sqlite import open_outbox
from fastpush.gateway.quotas import Quotas
from fastpush.gateway.reloading import Change, reload
from fastpush.gateway.routes import Routes
from fastpush.gateway.storage import Storage, StorageUnusable, open_storage
from fastpush.gateway.supervisor import Inherited
from fastpush.gateway.tracing import TracingUnusable, open_tracing
from fastpush.gateway.uploads import kept_credentials
from fastpush.gateway.vitals import Reading, Vitals, read
from fastpush.gateway.watchdog.timekeeping import Timekeeper
from fastpush.gateway.watchdog.watch import open_watchdog, state_directory_of

__all__ = ["END_WITHIN", "Service", "StartFailed", "Started", "check"]

# Seconds from the request to end. A supervisor kills after 30.
ANSWER_WITHIN = 8.0  # for requests that are being served
DISPATCH_WITHIN = 17.0  # for pushes in flight, and for their outcomes to be on disk
END_WITHIN = 20.0  # for all but the closing of the storage, which has its own limit
ADMIN_WITHIN = 1.0  # for streams to the console


class StartFailed(Exception):
    """The gateway cannot start; the message is one line, with the cure where there is one."""


class Started(NamedTuple):
    """What listens, and what is behind it.

    Attributes:
      ingest, admin: addresses such as `http://127.0.0.1:8080`.
      gateway: for whoever runs it in the same process.
    """

    ingest: list[str]
    admin: list[str]
    gateway: Gateway


@dataclass(frozen=True)
class _Doors:
    ingest: list[Listener]
    admin: list[Listener]
    control: Listener
    certificates: list[ServerTLS]


def check(config: Config) -> list[str]:
    """Load the keys and certificates of a configuration, as a start would.

    Returns:
      What cannot be used, a line each, with its option.
    """
    troubles = []
    for name, app in config.apps.items():
        for option, credential in (("credential", app.credential), ("standby", app.standby)):
            if credential is not None:
                try:
                    credential.load()
                except (InvalidCredential, OSError) as error:
                    troubles.append(f"apps.{name}.{option}: {_told(error)}")
        try:
            app.proxy_url()
        except SecretUnusable as error:
            troubles.append(f"apps.{name}.proxy_file: {error}")
    for section, tls in (("ingest", config.ingest.tls), ("admin", config.admin.tls)):
        try:
            _tls(tls)
        except OSError as error:
            troubles.append(f"{section}.tls: {_told(error)}")
    directory = config.storage.path.parent
    if not directory.is_dir():
        troubles.append(f"storage.path: {directory}: there is no such directory")
    elif not os.access(directory, os.W_OK | os.X_OK):
        troubles.append(f"storage.path: {directory}: we may not write there (user id {os.geteuid()})")
    return troubles


def _reading(
    counters: Counters, storage: Storage, outbox: Outbox, apps: Apps, clock: Callable[[], float]
) -> Reading:
    commit_p99 = storage.statistics().commit_p99
    return read(counters, outbox.waiting(), apps, commit_p99, at=clock(), monotonic=trio.current_time())


def _tls(settings: TLSSettings | None) -> ServerTLS | None:
    if settings is None:
        return None
    return ServerTLS(
        settings.certificate_file,
        settings.key_file,
        client_ca=settings.client_ca_file,
        client_certificates=settings.client_certificates,
    )


def _told(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "unreadable").replace("_", " ").lower()
        return f"OpenSSL does not take certificate and key: {reason}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@final
class Service:
    """One gateway. `run` it once; the other methods may be called from its trio program meanwhile.

    Args:
      config: what it is to be.
      inherited: listening sockets that were handed over, for addresses such as `fd://ingest`.
      clock: gives UNIX seconds.
    """

    def __init__(
        self, config: Config, *, inherited: Inherited | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.config = config
        self.draining = False
        self._inherited = inherited or {}
        self._clock = clock
        self._scope = trio.CancelScope()
        self._ending = trio.Event()
        self._doors: _Doors | None = None
        self._gateway: Gateway | None = None
        self._carriers: Callable[[Config], list[Carrier]] | None = None

    @property
    def started(self) -> bool:
        """Whether it is there to be reloaded."""
        return self._gateway is not None

    @property
    def cut_short(self) -> bool:
        """Whether it ended before all was answered and written."""
        return self._scope.cancelled_caught

    def stop(self) -> None:
        """Begin to end: not ready any more, then as the module says. Called again, it cuts that short."""
        if self.draining:
            self._scope.cancel()
            return
        self.draining = True
        self._scope.deadline = trio.current_time() + END_WITHIN
        self._ending.set()

    async def reload(self, config: Config) -> list[Change]:
        """Go by another configuration as far as that is possible while running.

        Returns:
          What has changed, what needs a restart, and what was refused; the rest is as before.
        """
        assert self._gateway is not None, "not started"
        assert self._doors is not None
        assert self._carriers is not None
        self.config, changes = await reload(
            self._gateway, self.config, config, self._doors.certificates, self._carriers
        )
        self._gateway.configure(self.config)
        return changes

    async def run(self, *, task_status: trio.TaskStatus[Started] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`; cancelled, it loses nothing that was acknowledged.

        Raises:
          StartFailed: before it has started.
          StorageBroken: the disk failed too often.
        """
        config = self.config
        with self._scope:
            troubles = await trio.to_thread.run_sync(check, config)
            if troubles:
                raise StartFailed("\n".join(troubles))
            try:
                async with open_storage(config.storage.path, config.storage.limits()) as storage:
                    with self._listening() as doors:
                        await self._serve(storage, doors, task_status)
            except TracingUnusable as error:
                raise StartFailed(str(error)) from error
            except StorageUnusable as error:
                raise StartFailed(f"storage.path: {error}") from error

    async def _serve(self, storage: Storage, doors: _Doors, task_status: trio.TaskStatus[Started]) -> None:
        """Open what stands on the storage, serve until the end has begun, and end in order."""
        config, clock = self.config, self._clock
        outbox = await open_outbox(
            storage, limits=config.storage.outbox_limits(), keep=config.storage.keep(), clock=clock
        )
        outbox.max_waiting |= {name: app.max_waiting for name, app in config.apps.items()}
        keys = await open_authenticator(storage, config.auth, clock=clock)
        devices = await open_devices(storage, keys=keys, clock=clock)

        async def reach(app: str, audience: Audience) -> bool:
            return bool((await devices.page(app, audience, limit=1)).device_tokens)

        alarms = await open_alarms(
            storage,
            outbox,
            Routes(config.routes, config.alarms.admin_tag),
            app=config.alarm_app,
            look=config.alarms.look.look(),
            reach=reach,
            clock=clock,
        )
        counters = Counters()
        traces = open_tracing(config.tracing, outbox.walking, clock)
        async with traces as tracer, trio.open_nursery() as background:
            if tracer is not None:
                origin.set(BACKGROUND)
            for service in (outbox, keys, devices, alarms):
                await background.start(service.run)
            if config.devices.webhook is not None:
                tell = partial(tell_of_devices, storage, devices, config.devices.webhook, clock=clock)
                await background.start(tell)
            directory = state_directory_of(config)
            mains, standbys = await trio.to_thread.run_sync(kept_credentials, config.apps, directory)
            opened = Apps(list(config.apps.values()), credentials=mains, standbys=standbys)
            apps = await background.start(opened.run)
            dispatcher = Dispatcher(
                outbox,
                devices,
                apps,
                badge=alarms.open_count,
                patience=_patience(config),
                clock=clock,
                counters=counters,
            )
            dispatcher.on_outcomes(Teller().tell)
            if tracer is not None:
                dispatcher.on_outcomes(tracer.heard)
            await background.start(dispatcher.run)
            vitals = Vitals(storage, partial(_reading, counters, storage, outbox, apps, clock), clock)
            await vitals.open()
            await background.start(vitals.run)
            timekeeper = Timekeeper(clock)  # what is told goes by the best time that is known
            self._carriers = partial(
                carriers_of, outbox=outbox, devices=devices, apps=apps, clock=clock, best_clock=timekeeper.now
            )
            notices = await open_notices(storage, self._carriers(config), clock=timekeeper.now)
            watchdog = await open_watchdog(
                config,
                storage=storage,
                outbox=outbox,
                apps=apps,
                notices=notices,
                breaker=devices.breaker,
                certificates=doors.certificates,
                timekeeper=timekeeper,
            )
            await background.start(notices.run)
            await background.start(watchdog.run)
            self._gateway = gateway = Gateway(
                storage=storage,
                outbox=outbox,
                devices=devices,
                keys=keys,
                alarms=alarms,
                apps=apps,
                notices=notices,
                config=config,
                clock=clock,
                counters=counters,
                dispatcher=dispatcher,
                vitals=vitals,
                renewals=watchdog.renewal,
                sessions=Sessions(storage, clock),
                watchdog=watchdog,
                traced=tracer is not None,
                draining=lambda: self.draining,
                quotas=Quotas(config.ingest.max_per_key),
            )
            async with trio.open_nursery() as administration:
                admin, admin_ends = admin_app(gateway), trio.Event()
                about = partial(
                    serve_http,
                    body_rules=body_rule,
                    graceful_timeout=ADMIN_WITHIN,
                    shutdown_trigger=admin_ends.wait,
                )
                of_admin: Server = await administration.start(partial(about, admin, doors.admin))
                await administration.start(partial(about, trusted(admin), [doors.control]))
                async with trio.open_nursery() as receiving:
                    of_ingest: Server = await receiving.start(
                        partial(
                            serve_http,
                            ingest_app(gateway),
                            doors.ingest,
                            limits=Limits(
                                connections=config.ingest.max_connections,
                                connections_per_address=config.ingest.max_connections_per_address,
                            ),
                            body_rules=body_rule,
                            trusted_proxies=TrustedProxies(
                                config.ingest.trusted_proxies, header=config.ingest.proxy_header
                            ),
                            graceful_timeout=ANSWER_WITHIN,
                            shutdown_trigger=self._ending.wait,
                        )
                    )
                    task_status.started(Started(of_ingest.addresses, of_admin.addresses, gateway))
                # All requests are answered. What they brought is on disk; what is in flight comes to its end.
                await dispatcher.drain(self._scope.deadline - END_WITHIN + DISPATCH_WITHIN)
                await devices.settle()
                admin_ends.set()
            background.cancel_scope.cancel()

    @contextmanager
    def _listening(self) -> Generator[_Doors, None, None]:
        """Open all sockets, so that who connects from now on waits and is not refused."""
        config = self.config
        with ExitStack() as stack:
            certificates = []
            opened: dict[str, list[Listener]] = {"ingest": [], "admin": []}
            for section, settings in (("ingest", config.ingest), ("admin", config.admin)):
                tls = _tls(settings.tls)
                if tls is not None:
                    certificates.append(tls)
                for address in settings.listen:
                    for each in self._resolved(section, address):
                        listener = _open(section, each, None if each.startswith("unix:") else tls)
                        stack.callback(listener.close)
                        opened[section].append(listener)
            control = _open("storage.path", f"unix:{socket_path(config.storage.path)}", None, mode=0o600)
            stack.callback(control.close)
            self._doors = _Doors(opened["ingest"], opened["admin"], control, certificates)
            yield self._doors

    def _resolved(self, section: str, address: str) -> list[str]:
        """`fd://NAME` as the descriptors that were handed over under this name."""
        name = address.removeprefix("fd://")
        if name == address or name.isdecimal():
            return [address]
        if name not in self._inherited:
            there = ", ".join(self._inherited) or "none"
            raise StartFailed(
                f"{section}.listen: {address}: no socket of this name was handed over (there are: {there}); "
                "is FileDescriptorName= set in the .socket unit, and the service started by it?"
            )
        return [f"fd://{descriptor}" for descriptor in self._inherited[name]]


def _patience(config: Config) -> Patience:
    return Patience(
        first_delay=config.dispatch.first_retry_seconds,
        longest_delay=config.dispatch.longest_retry_seconds,
        whole=config.dispatch.give_up_hours * 3600,
    )


_CURES = {
    errno.EADDRINUSE: "another process listens there; stop it, or choose another address",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
    errno.EACCES: "we may not listen there; ports below 1024 are for a systemd socket or a proxy in front",
}


def _open(section: str, address: str, tls: ServerTLS | None, *, mode: int = 0o660) -> Listener:
    key = section if "." in section else f"{section}.listen"
    try:
        return open_listener(address, tls=tls, mode=mode)
    except ValueError as error:
        raise StartFailed(f"{key}: {error}") from error
    except OSError as error:
        cure = _CURES.get(error.errno or 0) or error.strerror or str(error)
        raise StartFailed(f"{key}: {address}: {cure}") from error
