"""The simulator as its users steer it, and the sockets on which it listens.

All decisions are `Director`'s and `ServerConnection`'s; `connection` carries the octets of one client.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import random
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import trio

from fastpush.credentials import ProviderCertificate, SigningKey
from fastpush.simulator._server import ServerConnection, Shared
from fastpush.simulator.authority import Authority, IssuedKey, ProviderCertificatePem
from fastpush.simulator.connection import Connection
from fastpush.simulator.director import Director, state_of
from fastpush.simulator.faults import FaultPlan, FaultSource
from fastpush.simulator.ledger import Ledger
from fastpush.simulator.provider_tokens import TrustedKey
from fastpush.simulator.rules import Delivery, Device, Environment, World

__all__ = ["Simulator", "SimulatorStatistics", "open_simulator"]

BACKLOG = 1_024
ACCEPT_REST = 0.01  # seconds after a failed accept; for a lack of file descriptors it fails at once again


@dataclass(frozen=True, slots=True)
class SimulatorStatistics:
    """What a simulator did so far."""

    connections_open: int
    connections_opened: int
    handshakes_failed: int
    requests: int
    """Requests that came whole."""
    fates: dict[str, int]
    """As in `Seen.fate`."""
    pings: int
    """PING frames on the connections open now."""


@final
class Simulator:
    """A running simulator; made by `open_simulator`."""

    host: str
    port: int

    def __init__(
        self,
        *,
        authority: Authority,
        world: World,
        ledger: Ledger,
        plan: FaultPlan,
        shared: Shared,
        director: Director,
        clock: Callable[[], float],
        directory: Path,
        identity: Path,
        seed: int,
    ) -> None:
        self.authority = authority
        self.ledger = ledger
        self.faults = plan
        self.seed = seed
        self.clock = clock
        self.shared = shared
        self.director = director
        self.handshakes_failed = 0
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(authority.ca_pem)
        self._world = world
        self._directory = directory
        self._identity = identity
        self._context = _server_context(identity, authority)
        self._revoked: tuple[ProviderCertificatePem, ...] = ()
        self._listener: socket.socket | None = None
        self._listening = trio.lowlevel.ParkingLot()
        self._connections: set[Connection] = set()
        self._opened = 0
        self._team_id = _draw_id(random.Random(seed))
        plan.on_change = self._replan

    def __repr__(self) -> str:
        return f"<Simulator {self.host}:{self.port}, {len(self._connections)} connections>"

    @property
    def ca_pem(self) -> bytes:
        """The certificate that a client must trust; `ca_file` is the path of a file that holds it."""
        return self.authority.ca_pem

    @property
    def team_id(self) -> str:
        """The team of the keys that are made without one."""
        return self._team_id

    @property
    def environment(self) -> Environment:
        return self._world.environment

    # Credentials.

    def issue_signing_key(
        self,
        *,
        key_id: str | None = None,
        team_id: str | None = None,
        topics: Iterable[str] | None = None,
        environments: Iterable[str] = ("production", "development"),
        related_key_id: str | None = None,
    ) -> IssuedKey:
        """Make a signing key that the simulator takes; `topics` makes it topic-specific."""
        issued = self.authority.issue_signing_key(key_id, team_id or self._team_id)
        trusted = TrustedKey(
            issued.key_id,
            issued.team_id,
            TrustedKey.point_of(issued.public_key),
            None if topics is None else frozenset(topics),
            tuple(environments),
            related_key_id,
        )
        self._world.keys[issued.key_id] = trusted
        self.director.script_changed()
        return issued

    def signing_key(
        self,
        *,
        key_id: str | None = None,
        team_id: str | None = None,
        topics: Iterable[str] | None = None,
        environments: Iterable[str] = ("production", "development"),
        related_key_id: str | None = None,
    ) -> SigningKey:
        """The same, loaded and ready to be handed to `open_client`."""
        issued = self.issue_signing_key(
            key_id=key_id,
            team_id=team_id,
            topics=topics,
            environments=environments,
            related_key_id=related_key_id,
        )
        return SigningKey.from_bytes(
            issued.p8, key_id=issued.key_id, team_id=issued.team_id, token_cache_dir=self._directory
        )

    def signing_key_file(self, issued: IssuedKey | None = None) -> Path:
        """Write a signing key as Apple's page does, AuthKey_<key id>.p8; it goes with the simulator."""
        if issued is None:
            issued = self.issue_signing_key()
        path = self._directory / f"AuthKey_{issued.key_id}.p8"
        path.write_bytes(issued.p8)
        path.chmod(0o600)
        return path

    def trust_key(self, key: TrustedKey) -> None:
        """Take provider tokens of a key made elsewhere."""
        self._world.keys[key.key_id] = key
        self.director.script_changed()

    def revoke_key(self, key_id: str) -> None:
        """Take no more provider tokens of a key: InvalidProviderToken from now on."""
        del self._world.keys[key_id]
        self.director.script_changed()

    def issue_provider_certificate(
        self,
        topic: str | None = None,
        *,
        environments: Iterable[str] | None = None,
        topics: Iterable[str] | None = None,
        valid_from: float | None = None,
        valid_until: float | None = None,
    ) -> ProviderCertificatePem:
        """Issue a provider certificate that the simulator takes, in PEM.

        Args:
          topic: bundle id; by default the first of the simulator's topics.
          environments: by default the simulator's; another makes it answer BadCertificateEnvironment.
          topics: by default `topic`, `topic`.voip and `topic`.complication.
          valid_from, valid_until: UNIX seconds; a past end makes the handshake fail with alert 45.
        """
        return self.authority.issue_provider_certificate(
            topic or self._first_topic(),
            environments=(self.environment,) if environments is None else environments,
            topics=topics,
            not_before=_date(valid_from),
            not_after=_date(valid_until),
        )

    def provider_certificate(
        self,
        topic: str | None = None,
        *,
        environments: Iterable[str] | None = None,
        topics: Iterable[str] | None = None,
        valid_from: float | None = None,
        valid_until: float | None = None,
    ) -> ProviderCertificate:
        """The same, loaded and ready to be handed to `open_client`."""
        issued = self.issue_provider_certificate(
            topic, environments=environments, topics=topics, valid_from=valid_from, valid_until=valid_until
        )
        return ProviderCertificate.from_bytes(issued.certificate_pem + issued.key_pem, allow_expired=True)

    def revoke_certificate(self, *certificates: ProviderCertificatePem) -> None:
        """From now on a handshake with one of these fails with alert 44; open connections go on."""
        self._revoked += certificates
        path = self._directory / "revoked.pem"
        path.write_bytes(self.authority.issue_revocation_list(*self._revoked))
        # A context keeps the first list of an issuer, so this takes a new one.
        self._context = _server_context(self._identity, self.authority, path)

    def _first_topic(self) -> str:
        return min(self._world.topics) if self._world.topics else "com.example.app"

    # Devices.

    def register(
        self, device_token: str, *, topic: str | None = None, environment: Environment | None = None
    ) -> None:
        """Bind a device token to an app, to an environment, or both; others are answered as Apple would."""
        self._set_device(device_token, Device(topic, environment))

    def on_delivery(self, device_token: str, phone: Callable[[Delivery], object]) -> None:
        """Call `phone` with each push that is accepted for a device token, as its phone would get it.

        It must return at once. What a fault answers or swallows in place of the rules does not reach it.
        """
        self.director.phones[device_token.lower().encode()] = phone
        if device_token.lower().encode() not in self._world.devices:
            self._set_device(device_token, Device())

    def mark_unregistered(
        self,
        device_token: str,
        when: float | None = None,
        *,
        reason: Literal["Unregistered", "ExpiredToken"] = "Unregistered",
    ) -> None:
        """Answer 410 for a device token from now on, with the time `when` (UNIX seconds; by default now)."""
        dead_since = self.clock() if when is None else when
        self._set_device(device_token, Device(dead_since=dead_since, dead_reason=reason))

    def forget_device(self, device_token: str) -> None:
        """Know nothing of a device token again: all is good."""
        self._world.devices.pop(device_token.lower().encode(), None)
        self._replan()

    def _set_device(self, device_token: str, device: Device) -> None:
        self._world.devices[device_token.lower().encode()] = device
        self._replan()

    # Live control.

    def _replan(self) -> None:
        self.director.script_changed()
        for connection in self._http():
            self.director.plan_ahead(connection)

    def set(
        self,
        *,
        stream_limit: int | None = None,
        environment: Environment | None = None,
        topics: Iterable[str] | None = None,
        ahead: float | None = None,
        strict: bool = False,
    ) -> None:
        """Change what the simulator believes, or the stream limit of all connections, open ones too.

        Args:
          strict: refuse what is over a lowered limit without waiting for the acknowledgement.
        """
        if environment is not None:
            self._world.environment = environment
            self.shared.development = environment == "development"
        if topics is not None:
            self._world.topics = frozenset(topics)
        if ahead is not None:
            self._world.ahead = ahead
        self.director.script_changed()
        if stream_limit is not None:
            self.director.stream_limit = stream_limit
            for connection in self._http():
                state_of(connection).full_limit = stream_limit
                if state_of(connection).proven and not state_of(connection).wedged:
                    self.director.limit_streams(connection, stream_limit, strict=strict)
            self._ring()

    def send_goaway(
        self,
        *,
        last: Literal["handled", "zero", "max"] | int = "handled",
        error_code: int = 0,
        debug_data: bytes = b'{"reason":"Shutdown"}',
        close: Literal["drained", "at once", "never"] = "drained",
    ) -> int:
        """Send GOAWAY on every open connection now, and tell on how many.

        Args:
          last: the last stream id: the highest that came; 0; 2**31 - 1; or a number.
        """
        connections = self._http()
        for connection in connections:
            named = {"handled": connection.last_stream_id, "zero": 0, "max": 2**31 - 1}
            stream_id = named[last] if isinstance(last, str) else last
            self.director.send_goaway(connection, stream_id, error_code=error_code, debug_data=debug_data)
            if close == "drained":
                connection.drains = True
            elif close == "at once":
                connection.closing = "flush"
        self._ring()
        return len(connections)

    def close_connections(self, how: Literal["fin", "close notify", "reset", "alert"] = "fin") -> int:
        """End every open connection now, without GOAWAY, and tell how many."""
        connections = self._http()
        for connection in connections:
            state_of(connection).stalled_until = -math.inf
            connection.closing = _CLOSINGS[how]
        self._ring()
        return len(connections)

    def freeze(self) -> None:
        """Read and write nothing on the open connections, until `thaw`; the kernel goes on to acknowledge."""
        for connection in self._http():
            state_of(connection).stalled_until = math.inf

    def thaw(self) -> None:
        """End `freeze`, and every stall."""
        for connection in self._http():
            state_of(connection).stalled_until = -math.inf
        self._ring()

    def refuse_connections(self) -> None:
        """Stop listening: connecting is refused until `accept_connections`. Open connections go on."""
        if self._listener is not None:
            trio.lowlevel.notify_closing(self._listener)
            self._listener.close()
            self._listener = None

    def accept_connections(self) -> None:
        """Listen again, on the same port."""
        if self._listener is None:
            self._listen(self.host, self.port)
            self._listening.unpark_all()

    def statistics(self) -> SimulatorStatistics:
        connections = self._http()
        return SimulatorStatistics(
            connections_open=len(connections),
            connections_opened=self._opened,
            handshakes_failed=self.handshakes_failed,
            requests=self.shared.requests,
            fates=self.ledger.counts,
            pings=sum(connection.pings for connection in connections),
        )

    def _http(self) -> list[ServerConnection]:
        return [each.http for each in self._connections if each.http is not None]

    def _ring(self) -> None:
        for connection in self._connections:
            connection.ring()

    # Sockets.

    def _listen(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                listener = self._listener
                if listener is None:
                    await self._listening.park()
                    continue
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    with contextlib.suppress(trio.ClosedResourceError):
                        await trio.lowlevel.wait_readable(listener)
                except OSError:
                    # The client was gone before we came, or there is no file descriptor left.
                    await trio.sleep(ACCEPT_REST)
                else:
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    nursery.start_soon(self._attend, Connection(self, sock, self._context))

    async def _attend(self, connection: Connection) -> None:
        self._opened += 1
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


_CLOSINGS = {"fin": "cut", "close notify": "flush", "reset": "reset", "alert": "alert"}


def _date(seconds: float | None) -> datetime.datetime | None:
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _draw_id(source: random.Random) -> str:
    return "".join(source.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=10))


def _issue_server(authority: Authority, host: str, directory: Path) -> Path:
    """Write the server's certificate and key to a file, for its names and addresses on this machine."""
    wildcards = ("0.0.0.0", "::")
    names = dict.fromkeys(("localhost", "127.0.0.1", "::1", *(() if host in wildcards else (host,))))
    certificate, key = authority.issue_server(*names)
    path = directory / "server.pem"
    path.touch(0o600)
    path.write_bytes(certificate + key)
    return path


def _server_context(identity: Path, authority: Authority, revoked: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(identity)
    # APNs asks every client for a certificate and takes none as an answer.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=authority.ca_pem.decode())
    if revoked is not None:
        context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


@contextlib.asynccontextmanager
async def open_simulator(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    topics: Iterable[str] | None = None,
    environment: Environment = "production",
    authority: Authority | None = None,
    faults: Iterable[FaultSource] = (),
    seed: int = 0,
    stream_limit: int = 1_000,
    probing: bool = True,
    verify: bool = True,
    ahead: float = 300.0,
    ledger: Literal["full", "counts"] = "full",
    ledger_file: Path | str | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Simulator, None]:
    """Run a fake APNs in this trio program, for as long as the block lasts.

    It listens when the block begins; connections are served by tasks of its own.

    Args:
      host, port: where to listen; 0 takes a free port, told by `Simulator.port`.
      topics: bundle ids, without suffixes, that may be pushed to; None for any.
      environment: "production" or "development"; decides which credentials are good, and apns-unique-id.
      authority: under which the server's and the clients' certificates are; by default a new one.
      faults: what goes wrong: faults or names of `PROFILES`.
      seed: of every chance; the same seed and the same requests give the same faults.
      stream_limit: SETTINGS_MAX_CONCURRENT_STREAMS when all is well.
      probing: with a signing key, allow one stream until the first good request was answered, as APNs does.
      verify: off, provider tokens need no known key and no good signature.
      ahead: seconds that a provider token's `iat` may lie in the future.
      ledger: "counts" keeps no single request, for millions of them in bounded memory.
      ledger_file: a file to which every request is appended as a line of JSON.
      clock: gives UNIX seconds.

    Raises:
      ValueError: an environment or a fault profile that there is not.
      OSError: the address cannot be listened on.
    """
    if environment not in ("production", "development"):
        raise ValueError(f"environment is {environment!r}; it may be 'production' or 'development'")
    world = World(environment, None if topics is None else frozenset(topics), verify=verify, ahead=ahead)
    book = Ledger(keep=ledger == "full", file=None if ledger_file is None else Path(ledger_file))
    shared = Shared(book.log, seed % 2**64)
    shared.wall = clock()
    shared.development = environment == "development"
    plan = FaultPlan(faults, seed=seed)
    director = Director(
        world,
        shared,
        plan,
        stream_limit=stream_limit,
        probing=probing,
        clock=clock,
        monotonic=trio.current_time,
    )
    directory = Path(tempfile.mkdtemp(prefix="fastpush-simulator-"))
    try:
        authority = authority or Authority()
        simulator = Simulator(
            authority=authority,
            world=world,
            ledger=book,
            plan=plan,
            shared=shared,
            director=director,
            clock=clock,
            directory=directory,
            identity=_issue_server(authority, host, directory),
            seed=seed,
        )
        simulator._listen(host, port)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(simulator._serve)
                yield simulator
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The nursery is ours and nobody else's business.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from group.exceptions[0].__cause__
            raise
        finally:
            simulator.refuse_connections()
    finally:
        book.close()
        shutil.rmtree(directory, ignore_errors=True)
