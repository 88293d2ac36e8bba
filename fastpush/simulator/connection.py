"""One client of the simulator: its socket, TLS in batches, and the time.

All decisions are `Director`'s and `ServerConnection`'s; here octets are carried and waits are made.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol, final

import trio
from cryptography import x509

from fastpush._apple_certificate import apple_fields
from fastpush.simulator._server import ServerConnection, Shared
from fastpush.simulator.director import ConnectionState, Director, state_of
from fastpush.simulator.ledger import Ledger
from fastpush.simulator.rules import Certificate

__all__ = ["Connection"]

RECEIVE_OCTETS = 256 * 1024
HANDSHAKE_WITHIN = 10.0
LINGER = 1.0
"""Seconds in which a client may still read what it was sent, and close in its turn."""


class Owner(Protocol):
    """Of `Simulator`: what its connections share."""

    director: Director
    ledger: Ledger
    shared: Shared
    clock: Callable[[], float]
    handshakes_failed: int


class _Broken(Exception):
    """The transport ended."""


class _Ending(Exception):
    """The connection is to be ended by us."""


@final
class Connection:
    """One client: its socket, its TLS, and the server's side of HTTP/2."""

    def __init__(self, simulator: Owner, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._simulator = simulator
        self._director = simulator.director
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._encrypted = bytearray(RECEIVE_OCTETS)
        self._plain = bytearray(RECEIVE_OCTETS + 65_536)
        self._writing = trio.Lock()
        self._bell = trio.lowlevel.ParkingLot()
        self._rung = False
        self._timer_at = math.inf
        self.http: ServerConnection | None = None

    async def run(self) -> None:
        """Serve it to its end."""
        with self._socket:
            try:
                with trio.fail_after(HANDSHAKE_WITHIN):
                    await self._handshake()
            except (_Broken, OSError, trio.TooSlowError):
                self._simulator.handshakes_failed += 1
                with contextlib.suppress(OSError):
                    await self._linger()
                return
            http = self.http = self._director.open_connection(self._certificate())
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_done, self._keep_time, nursery.cancel_scope)
                    await self._until_done(self._read, nursery.cancel_scope)
            finally:
                http.connection_lost()
                self._simulator.ledger.flush()
            if http.closing:
                with contextlib.suppress(OSError):
                    await self._end(http.closing)

    def ring(self) -> None:
        """Something happened outside of reading: time or a hand has changed the connection."""
        self._rung = True
        self._bell.unpark_all()

    @property
    def state(self) -> ConnectionState:
        assert self.http is not None
        return state_of(self.http)

    async def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send(self._outgoing.read())
                if not await self._receive():
                    raise _Broken from None
            except ssl.SSLError:
                # The alert tells the client why.
                await self._send(self._outgoing.read())
                raise _Broken from None
            else:
                break
        if self._tls.selected_alpn_protocol() not in (None, "h2"):
            raise _Broken
        await self._send(self._outgoing.read())

    def _certificate(self) -> Certificate | None:
        der = self._tls.getpeercert(binary_form=True)
        if der is None:
            return None
        certificate = x509.load_der_x509_certificate(der)
        fields = apple_fields(certificate)
        return Certificate(
            tuple(sorted(fields.topics or ())),
            tuple(sorted(fields.environments or ())),
            certificate.not_valid_after_utc.timestamp(),
        )

    async def _until_done(self, part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        """Run one of the two tasks; the other ends with it."""
        with contextlib.suppress(_Broken, _Ending, OSError):  # an SSLError is an OSError too
            await part()
        scope.cancel()

    async def _read(self) -> None:
        http = self.http
        assert http is not None
        plain = memoryview(self._plain)
        length = self._decrypt(plain)  # may have come with the end of the handshake
        while True:
            if length:
                now = trio.current_time()
                self._simulator.shared.wall = self._simulator.clock()
                http.receive_data(plain[:length], now)
            if self._director.next_time(http) < self._timer_at:
                self.ring()
            await self._flush()
            await self._while_stalled()
            if not await self._receive():
                # What came with the last octets was answered already.
                return
            await self._while_stalled()
            length = self._decrypt(plain)

    async def _keep_time(self) -> None:
        http = self.http
        assert http is not None
        while True:
            self._timer_at = self._director.next_time(http)
            if not self._rung:
                with trio.move_on_at(self._timer_at):
                    await self._bell.park()
            self._rung = False
            await self._while_stalled()
            self._simulator.shared.wall = self._simulator.clock()
            self._director.check_time(http, trio.current_time())
            await self._flush()

    async def _while_stalled(self) -> None:
        while self.state.stalled_until > trio.current_time():
            with trio.move_on_at(self.state.stalled_until):
                await self._bell.park()

    def _decrypt(self, plain: memoryview) -> int:
        """Decrypt all whole records; there is room for all that one receive brings."""
        length = 0
        while length < len(plain):
            try:
                got = self._tls.read(len(plain) - length, plain[length:])
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                break
            if not got:
                break
            length += got  # type: ignore[operator]
        return length

    async def _receive(self) -> bool:
        """Wait for octets; False at the end of the stream."""
        while True:
            try:
                length = self._socket.recv_into(self._encrypted)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
        if not length:
            return False
        self._incoming.write(memoryview(self._encrypted)[:length])
        return True

    async def _flush(self) -> None:
        """Write all that is ready, in one go.

        Raises:
          _Ending: that was the last of it.
        """
        http = self.http
        assert http is not None
        async with self._writing:
            # What is told to the client is on record before it.
            self._simulator.ledger.flush()
            while octets := http.data_to_send():
                await self._while_stalled()
                if self.state.trickle is None:
                    await self._write(octets)
                    continue
                for at in range(0, len(octets), self.state.trickle.octets):
                    await self._write(octets[at : at + self.state.trickle.octets])
                    await trio.sleep(self.state.trickle.interval)
            if http.closing:
                raise _Ending

    async def _write(self, octets: bytes) -> None:
        self._tls.write(octets)
        await self._send(self._outgoing.read())

    async def _send(self, octets: bytes) -> None:
        view = memoryview(octets)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)

    async def _end(self, how: str) -> None:
        """Close as `ServerConnection.closing` says."""
        if how == "reset":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if how == "alert":
            # A record that cannot be decrypted makes OpenSSL send bad_record_mac (RFC 8446 §6.2).
            self._incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))
            with contextlib.suppress(ssl.SSLError):
                while self._tls.read(RECEIVE_OCTETS):
                    pass
            await self._send(self._outgoing.read())
        elif how == "flush":
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            await self._send(self._outgoing.read())
        await self._linger()

    async def _linger(self) -> None:
        """Let the client read all that was sent: closing with octets unread would be a TCP RST."""
        self._socket.shutdown(socket.SHUT_WR)
        with trio.move_on_after(LINGER):
            while await self._receive():
                self._incoming.read()
