"""One connection: hypercorn's TCPServer, with every wait bounded and every error its own."""

from __future__ import annotations

import ssl
from contextlib import suppress
from math import inf
from typing import Any

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from ._exchange import Guard, logger
from ._http1 import GuardedHTTP1
from ._http2 import GuardedHTTP2
from ._listeners import client_certificate

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, OSError)


class Connection(TCPServer):
    """A deadline on the one read that waits takes the place of hypercorn's task for idleness."""

    protocol: GuardedHTTP1 | GuardedHTTP2  # type: ignore[assignment]

    def __init__(self, *of_hypercorn: Any, guard: Guard) -> None:
        super().__init__(*of_hypercorn)
        self.guard = guard
        self.started = False
        self._reading: trio.CancelScope | None = None
        self._last_call = inf
        self._linger_until = inf  # finite once we have ended our side
        self._owner: str | None = None

    async def run(self) -> None:
        """Serve it to its end. Nothing that goes wrong in here reaches another connection."""
        try:
            await self._run()
        except* GONE:
            pass
        except* Exception:
            self.guard.statistics.refused["error"] += 1
            logger.exception("a connection failed")
        finally:
            self.guard.owners.move(self._owner, None)
            await trio.aclose_forcefully(self.stream)

    def owned_by(self, name: str) -> bool:
        """The application knows whose connection this is; whether that is not one too many."""
        if not self.guard.owners.move(self._owner, name):
            self.guard.statistics.refused["connections of an owner"] += 1
            return False
        self._owner = name
        return True

    async def _run(self) -> None:
        alpn, certificate, secure = "http/1.1", None, False
        connected: Any = self.stream
        if isinstance(self.stream, trio.SSLStream):
            try:
                with trio.fail_after(self.guard.limits.tls_handshake):
                    await self.stream.do_handshake()
            except (*GONE, trio.TooSlowError, ssl.SSLError):
                self.guard.statistics.refused["tls handshake"] += 1
                return
            alpn, secure = self.stream.selected_alpn_protocol() or "http/1.1", True
            certificate = client_certificate(self.stream._ssl_object)
            connected = self.stream.transport_stream
        sock = connected.socket
        client = parse_socket_addr(sock.family, sock.getpeername())
        server = parse_socket_addr(sock.family, sock.getsockname())
        async with TaskGroup() as task_group:
            self._task_group = task_group
            protocol = GuardedHTTP2 if alpn == "h2" else GuardedHTTP1
            self.protocol = protocol(
                self.app,
                self.config,
                self.context,
                task_group,
                ConnectionState(self.state),
                secure,
                client,
                server,
                self.protocol_send,
                guard=self.guard,
                certificate=certificate,
                owned_by=self.owned_by,
            )
            self.started = True
            await self.protocol.initiate()
            if self._last_call < inf:
                await self.last_call(self._last_call)
            try:
                await self._read_data()
            finally:
                await trio.aclose_forcefully(self.stream)

    async def last_call(self, deadline: float) -> None:
        """The server ends. What is under way is finished; an idle connection has until `deadline`."""
        self._last_call = deadline
        if self.started:
            if isinstance(self.protocol, GuardedHTTP2):
                await self.protocol.go_away()
            self.protocol.last_call(deadline)
            self._wake()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if not await self._write(event.data):
                await self.protocol.handle(Closed())
                self._wake()
        elif isinstance(event, Closed):
            await self._end_our_side()
            await self.protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._wake()

    async def _write(self, octets: bytes) -> bool:
        async with self.send_lock:
            with trio.move_on_after(self.guard.limits.write_seconds) as late:
                try:
                    await self.stream.send_all(octets)
                except GONE:
                    late.cancel()
                else:
                    return True
            if late.cancelled_caught:
                self.guard.statistics.refused["reads too slowly"] += 1
            self._linger_until = -inf
            await trio.aclose_forcefully(self.stream)
        return False

    async def _end_our_side(self) -> None:
        """Say that nothing follows, and read on for a moment: octets unread at the close would reset the
        connection, and the client might lose our answer (RFC 9112 §9.6)."""
        if self._linger_until < inf:
            return
        self._linger_until = trio.current_time() + self.guard.limits.linger_seconds
        if isinstance(self.stream, trio.SocketStream):
            with suppress(*GONE):
                async with self.send_lock:
                    await self.stream.send_eof()
        self._wake()

    def _wake(self) -> None:
        """Something has changed that the deadline depends on."""
        if self._reading is not None:
            self._reading.deadline = self._read_deadline()

    def _read_deadline(self) -> float:
        return self._linger_until if self._linger_until < inf else self.protocol.read_deadline()

    async def _read_data(self) -> None:
        discarded = 0
        while discarded <= self.guard.limits.linger_octets:
            with trio.CancelScope(deadline=self._read_deadline()) as self._reading:
                try:
                    octets = await self.stream.receive_some(MAX_RECV)
                except GONE:
                    octets = b""
            late, self._reading = self._reading.cancelled_caught, None
            if self._linger_until < inf:
                if late or not octets:
                    break
                discarded += len(octets)
            elif late:
                await self.protocol.too_late()
            else:
                await self.protocol.handle(RawData(bytes(octets)))
                if not octets:
                    break
        await self.protocol.handle(Closed())
