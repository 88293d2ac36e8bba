"""`serve`: hypercorn's worker for trio, with listeners of ours and an end that comes."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from time import time
from typing import Any, final
from wsgiref.handlers import format_date_time

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import wrap_app

from fastpush.gateway.log import stdlib_logger

from ._connection import Connection
from ._exchange import Application, Guard, logger
from ._limits import BodyRules, Limits, Owners, Statistics, problem
from ._listeners import Listener
from ._proxies import TrustedProxies

LAST_CALL = 0.25  # seconds that an idle connection has at the end; a request may be on its way
TELL_EVERY = 60.0  # seconds between two lines of the log on refused connections
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
NO_ROOM_REST = (
    0.1  # seconds; the listener stays readable and nobody tells when there is room: without it, a spin
)
SHUTDOWN_OF_APPLICATION = 10.0
RETURNED = trio.ClosedResourceError, trio.BrokenResourceError  # from an application that has no lifespan


class _Config(Config):
    """hypercorn's, with what every answer carries made once a second."""

    include_server_header = False
    _second = -1
    _headers: list[tuple[bytes, bytes]]

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        now = int(time())
        if now != self._second:
            self._second, self._headers = now, [(b"date", format_date_time(now).encode("ascii"))]
        return self._headers


@final
class Server:
    """What `serve` reports when it listens.

    Attributes:
        addresses: Of the listeners, in their order: `http://127.0.0.1:8080`, `unix:/run/fastpush.sock`.
        statistics: Counters, kept up to date.
    """

    def __init__(self, addresses: list[str], statistics: Statistics) -> None:
        self.addresses, self.statistics = addresses, statistics


@final
class _Reception:
    """Takes connections, as many as may be."""

    def __init__(
        self,
        guard: Guard,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        nursery: trio.Nursery,
    ) -> None:
        self.guard, self.config, self.context, self.state = guard, config, context, state
        self.nursery = nursery
        self.open: set[Connection] = set()
        self.count = 0
        self.by_address: Counter[str] = Counter()
        self._tell_again_at = 0.0

    async def take_from(self, listener: Listener) -> None:
        listening = trio.socket.from_stdlib_socket(listener.socket)
        while True:
            try:
                sock, _ = await listening.accept()
            except OSError as error:
                if error.errno in NO_ROOM:
                    logger.error("connections cannot be accepted", error=error.strerror)
                    await trio.sleep(NO_ROOM_REST)
                elif error.errno == errno.EBADF:
                    raise
                continue  # that client is gone; the next
            self.take(sock, listener)

    def take_rest(self, listener: Listener) -> None:
        """Who has connected before we ended, and would find nobody when the queue goes."""
        while True:
            try:
                sock, _ = listener.socket.accept()
            except OSError:
                return
            sock.setblocking(False)
            self.take(trio.socket.from_stdlib_socket(sock), listener)

    def take(self, sock: trio.socket.SocketType, listener: Listener) -> None:
        statistics, limits = self.guard.statistics, self.guard.limits
        who = self._who(sock)
        if self.count >= limits.connections or (
            who is not None and self.by_address[who] >= limits.connections_per_address
        ):
            statistics.refused["connections"] += 1
            self._tell_refused(who)
            _turn_away(sock, plain=listener.tls is None)
            return
        statistics.accepted += 1
        self.count += 1
        statistics.open = self.count
        if who is not None:
            self.by_address[who] += 1
        self.nursery.start_soon(self._serve, sock, listener, who)

    def _tell_refused(self, who: str | None) -> None:
        """Once a minute: a sender whose connections are refused may have sent what it sends once."""
        now = trio.current_time()
        if now >= self._tell_again_at:
            self._tell_again_at = now + TELL_EVERY
            logger.warning(
                "connections are refused", connections=self.count, address=who,
                of_address=None if who is None else self.by_address[who],
            )  # fmt: skip

    def _who(self, sock: trio.socket.SocketType) -> str | None:
        """The address that is counted; None is not counted, as a proxy has many clients."""
        if sock.family == socket.AF_UNIX:
            return None
        try:
            host, port = sock.getpeername()[:2]
        except OSError:
            return None
        if self.guard.proxies.trusts((host, port)):
            return None
        address = ip_address(host.partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ip_network((address, 64), strict=False))
        return str(host)

    async def _serve(self, sock: trio.socket.SocketType, listener: Listener, who: str | None) -> None:
        try:
            stream: Any = trio.SocketStream(sock)
            if listener.tls is not None:
                stream = trio.SSLStream(stream, listener.tls.context, server_side=True, https_compatible=True)
            app: Any = None  # the guard has it
            connection = Connection(app, self.config, self.context, self.state, stream, guard=self.guard)
            self.open.add(connection)
            if self.context.terminated.is_set():
                await connection.last_call(trio.current_time() + LAST_CALL)
            try:
                await connection.run()
            finally:
                self.open.discard(connection)
        finally:
            self.count -= 1
            self.guard.statistics.open = self.count
            if who is not None:
                self.by_address[who] -= 1
                if not self.by_address[who]:
                    del self.by_address[who]


def _turn_away(sock: trio.socket.SocketType, *, plain: bool) -> None:
    body = problem(503, "There are too many connections.")
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
    )
    try:
        if plain:
            raw = socket.socket(fileno=sock.detach())
            with raw:
                raw.setblocking(False)
                raw.send(head.encode() + body)
                raw.shutdown(socket.SHUT_WR)
        else:
            sock.close()
    except OSError:
        pass  # gone already


async def serve(
    app: Application,
    listeners: Sequence[Listener],
    *,
    limits: Limits | None = None,
    body_rules: BodyRules | None = None,
    trusted_proxies: TrustedProxies | None = None,
    graceful_timeout: float = 10.0,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application until the trigger, then end in bounded time.

    Args:
        app: ASGI 3, with or without lifespan.
        listeners: From `open_listener`; closed at the end.
        limits: Of connections, heads and times.
        body_rules: The rule of a request's body by its scope; `limits.body` for all when None.
        trusted_proxies: Whose forwarded addresses count.
        graceful_timeout: Seconds for what is under way once the trigger has come; then it is cancelled.
        shutdown_trigger: Returns when it is time to end; without one `serve` runs until it is cancelled.
        task_status: Told the `Server` once all listeners accept.

    Raises:
        hypercorn.utils.LifespanFailureError: The application refused to start or failed to stop.
    """
    limits = limits or Limits()
    body_rule = limits.body
    statistics = Statistics()
    guard = Guard(
        app,
        limits,
        body_rules or (lambda scope: body_rule),
        trusted_proxies or TrustedProxies(),
        statistics,
        Owners(limits.connections_per_owner),
    )
    config = _Config()
    config.errorlog = stdlib_logger("fastpush.gateway.http.hypercorn")
    config.shutdown_timeout = SHUTDOWN_OF_APPLICATION
    state: LifespanState = {}
    context = WorkerContext(None)
    try:
        lifespan = Lifespan(wrap_app(app, 0, "asgi"), config, state)
        async with trio.open_nursery() as around:
            await around.start(lifespan.handle_lifespan)
            with suppress(*RETURNED):
                await lifespan.wait_for_startup()
            async with trio.open_nursery() as nursery:
                connection_state = ConnectionState(state)
                reception = _Reception(guard, config, context, connection_state, nursery)
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(reception.take_from, listener)
                    task_status.started(Server([each.address for each in listeners], statistics))
                    await (shutdown_trigger or trio.sleep_forever)()
                    accepting.cancel_scope.cancel()
                now = trio.current_time()
                nursery.cancel_scope.deadline = now + graceful_timeout
                await context.terminated.set()
                for listener in listeners:
                    if not listener.inherited:
                        reception.take_rest(listener)
                    listener.close()
                for connection in list(reception.open):
                    nursery.start_soon(partial(connection.last_call, now + LAST_CALL))
            with suppress(*RETURNED):
                await lifespan.wait_for_shutdown()
            around.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()
