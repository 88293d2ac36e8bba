"""TLS to one server, in batches of records.

One `recv` brings up to 256 KiB, and all records in it are decrypted before anybody is woken; what is
sent is encrypted at once and written with as few `send` calls as the socket allows. trio's SSLStream
hands out one record a call, which costs ten times as much where a server writes small records.
"""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import trio

__all__ = ["BrokenTransport", "Proxy", "Transport", "TransportError", "open_transport"]

RECEIVE_OCTETS = 256 * 1024
RECORD_OCTETS = 16 * 1024  # a TLS record's plaintext, RFC 8446 §5.1
STAGGER = 0.25  # seconds between connection attempts to one name, RFC 8305 §5
CONNECT_WITHIN = 5.0  # seconds, as the next two
PROXY_WITHIN = 5.0
TLS_WITHIN = 5.0
USER_TIMEOUT_MS = 10_000  # TCP_USER_TIMEOUT: unacknowledged data ends the connection


class TransportError(Exception):
    """No connection came about.

    Attributes:
      lasting: it will fail in the same way until somebody changes something (a certificate that does not
        verify, no HTTP/2): not a matter of trying again soon.
      credential: the server's TLS refused our certificate.
    """

    def __init__(self, reason: str, *, lasting: bool = False, credential: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting
        self.credential = credential


class BrokenTransport(Exception):
    """The connection is lost: reset, timed out, or a TLS alert. `credential` as in TransportError."""

    def __init__(self, reason: str, *, credential: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.credential = credential


# What a server's alert says of our certificate (RFC 8446 §6.2): bad, unsupported, revoked, expired, unknown.
_CREDENTIAL_ALERTS = (
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_CERTIFICATE_REQUIRED",
    "ALERT_UNKNOWN_CA",
    "ALERT_ACCESS_DENIED",
)


def _is_about_credential(error: ssl.SSLError) -> bool:
    return any(alert in (error.reason or "") for alert in _CREDENTIAL_ALERTS)


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate does not verify: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


class Transport:
    """One TLS connection over a non-blocking socket. One task at most reads, one at most waits to write."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._unsent = memoryview(b"")
        self._received = bytearray(RECEIVE_OCTETS)
        self._plain = bytearray(RECEIVE_OCTETS)
        self.write_calls = 0

    @property
    def peer(self) -> str:
        """The address that was connected to, for messages."""
        with contextlib.suppress(OSError):
            address = self._socket.getpeername()
            return f"{address[0]} port {address[1]}"
        return "a closed socket"

    async def handshake(self) -> None:
        """Shake hands and check that HTTP/2 was agreed on, or that the server left the choice open.

        Raises:
          TransportError: with the cause; nothing of HTTP was sent.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._collect()
                await self._drain()
                if not await self._fill():
                    raise TransportError("the server closed the connection in the TLS handshake") from None
            except ssl.SSLError as error:
                self._collect()
                with contextlib.suppress(OSError, BrokenTransport):
                    self.flush()  # the alert tells the server why
                raise TransportError(
                    _words(error),
                    lasting=isinstance(error, ssl.SSLCertVerificationError) or _is_about_version(error),
                    credential=_is_about_credential(error),
                ) from error
            else:
                self._collect()
                await self._drain()
                break
        # A server that speaks no ALPN may still speak HTTP/2 (RFC 9113 §3.3, prior knowledge).
        protocol = self._tls.selected_alpn_protocol()
        if protocol not in ("h2", None):
            raise TransportError(f"the server chose {protocol!r} by ALPN and not 'h2'", lasting=True)

    # Writing: encrypt, then send what the socket takes; the rest waits for `drain`.

    def write(self, octets: bytes) -> bool:
        """Encrypt and send what the socket takes now. True when nothing is left over.

        Raises:
          BrokenTransport: the connection is lost.
        """
        try:
            self._tls.write(octets)
        except ssl.SSLError as error:
            raise BrokenTransport(_words(error)) from error
        self._collect()
        return self.flush()

    def flush(self) -> bool:
        """Send what is left over, as far as the socket takes it. True when nothing is left."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return False
            except OSError as error:
                raise BrokenTransport(_words(error)) from error
            self.write_calls += 1
            self._unsent = self._unsent[sent:]
        return True

    @property
    def unsent(self) -> int:
        """Encrypted octets that the socket did not take yet."""
        return len(self._unsent)

    async def writable(self) -> None:
        """Wait until the socket takes more."""
        with _socket_errors():
            await trio.lowlevel.wait_writable(self._socket)

    async def _drain(self) -> None:
        while not self.flush():
            await self.writable()

    def _collect(self) -> None:
        if self._outgoing.pending:
            octets = self._outgoing.read()
            self._unsent = memoryview(bytes(self._unsent) + octets if self._unsent else octets)

    # Reading.

    async def receive(self) -> memoryview | None:
        """Wait for octets and return all plaintext that they hold, up to 256 KiB; None at the end.

        The view is good until the next call. It may be empty (a session ticket, say). Whatever was
        decrypted before a TLS alert or a reset is returned; the next call raises.

        Raises:
          BrokenTransport: the connection is lost.
        """
        if not self._incoming.pending and not await self._fill():
            self._incoming.write_eof()
        plain = memoryview(self._plain)
        filled = 0
        while filled + RECORD_OCTETS <= RECEIVE_OCTETS:
            try:
                count: int = self._tls.read(RECEIVE_OCTETS - filled, plain[filled:])  # type: ignore[assignment]
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return plain[:filled] if filled else None
            except ssl.SSLError as error:
                if filled:
                    break
                raise BrokenTransport(_words(error), credential=_is_about_credential(error)) from error
            if not count:
                return plain[:filled] if filled else None
            filled += count
            if not self._incoming.pending and not self._tls.pending():
                break
        if self._outgoing.pending:  # an answer of TLS itself: KeyUpdate (RFC 8446 §4.6.3)
            self._collect()
            self.flush()
        return plain[:filled]

    async def _fill(self) -> bool:
        while True:
            try:
                count = self._socket.recv_into(self._received)
            except BlockingIOError:
                with _socket_errors():
                    await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise BrokenTransport(_words(error)) from error
            else:
                self._incoming.write(memoryview(self._received)[:count])
                return count > 0

    def close(self) -> None:
        """Say goodbye (close_notify) if the socket takes it at once, and close."""
        with contextlib.suppress(ssl.SSLError, BrokenTransport):
            self._tls.unwrap()
        with contextlib.suppress(BrokenTransport):
            self._collect()
            self.flush()
        self.abort()

    def abort(self) -> None:
        """Close the socket; a task that waits for it is woken."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _is_about_version(error: ssl.SSLError) -> bool:
    reason = error.reason or ""
    return any(
        word in reason for word in ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_APPLICATION_PROTOCOL")
    )


@contextlib.contextmanager
def _socket_errors() -> Iterator[None]:
    try:
        yield
    except (trio.ClosedResourceError, OSError) as error:
        raise BrokenTransport(_words(error)) from error


# Opening.


async def open_transport(
    host: str, port: int, context: ssl.SSLContext, *, proxy: Proxy | None = None
) -> Transport:
    """Connect, through the proxy if there is one, set the socket's options and shake hands.

    The name is resolved anew for each connection, and addresses are tried in random order, as Apple asks
    ("Establishing a connection to APNs"); a slow address does not hold up the next (RFC 8305).

    Raises:
      TransportError: with the cause in its `reason`.
    """
    with _within(CONNECT_WITHIN, f"cannot connect to {host if proxy is None else proxy.host}"):
        connected = await _connect(*((host, port) if proxy is None else (proxy.host, proxy.port)))
    if proxy is not None:
        try:
            with _within(PROXY_WITHIN, f"no answer from the proxy {proxy.host}"):
                await proxy.open(connected, host, port)
        except BaseException:
            connected.close()
            raise
    transport = Transport(_plain_socket(connected), context, host)
    try:
        with _within(TLS_WITHIN, "no end of the TLS handshake"):
            await transport.handshake()
    except BrokenTransport as error:
        transport.abort()
        raise TransportError(error.reason, credential=error.credential) from error
    except BaseException:
        transport.abort()
        raise
    return transport


@contextlib.contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise TransportError(f"{what} within {seconds:g} s") from error


async def _connect(host: str, port: int) -> trio.socket.SocketType:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TransportError(f"no address for {host}: {_words(error)}") from error
    winners: list[trio.socket.SocketType] = []
    errors: list[OSError] = []
    try:
        async with trio.open_nursery() as nursery:

            async def attempt(family: int, address: object, failed: trio.Event) -> None:
                sock = trio.socket.socket(family, socket.SOCK_STREAM)
                try:
                    await sock.connect(address)
                except OSError as error:
                    sock.close()
                    errors.append(error)
                    failed.set()
                except BaseException:
                    sock.close()
                    raise
                else:
                    winners.append(sock)
                    nursery.cancel_scope.cancel()

            for family, _, _, _, address in _in_turn(found):
                failed = trio.Event()
                nursery.start_soon(attempt, family, address, failed)
                with trio.move_on_after(STAGGER):
                    await failed.wait()
    except BaseException:
        # Cancelled from outside just when one had connected.
        for sock in winners:
            sock.close()
        raise
    for late in winners[1:]:
        late.close()
    if not winners:
        causes = ", ".join(sorted({_words(error) for error in errors}))
        raise TransportError(f"cannot connect to {host} port {port}: {causes}")
    return winners[0]


def _plain_socket(connected: trio.socket.SocketType) -> socket.socket:
    sock = socket.socket(fileno=connected.detach())
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    return sock


_AddressInfo = tuple[Any, ...]


def _in_turn(found: Sequence[_AddressInfo]) -> list[_AddressInfo]:
    """Shuffle within each address family and take the families in turn (RFC 8305 §4)."""
    families: dict[int, list[_AddressInfo]] = {}
    for info in found:
        families.setdefault(info[0], []).append(info)
    for infos in families.values():
        random.shuffle(infos)
    ordered: list[_AddressInfo] = []
    while any(families.values()):
        ordered.extend(infos.pop() for infos in families.values() if infos)
    return ordered


# Proxies.

MAX_PROXY_HEAD_OCTETS = 16_384

# RFC 1928 §6.
_SOCKS_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A way out: HTTP CONNECT (RFC 9110 §9.3.6) or SOCKS5 (RFC 1928, RFC 1929). It resolves the name."""

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read "http://user:password@host:port" or "socks5://…"; default ports 8080 and 1080.

        Raises:
          ValueError: naming what is wrong, without the password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("proxy: the port is not a number from 0 to 65535") from None
        if parts.scheme not in ("http", "socks5", "socks5h"):
            raise ValueError(f"proxy: the scheme is {parts.scheme!r}; 'http' and 'socks5' are supported")
        if not parts.hostname:
            raise ValueError("proxy: no host; write http://host:port or socks5://host:port")
        http = parts.scheme == "http"
        username = None if parts.username is None else unquote(parts.username)
        password = None if parts.password is None else unquote(parts.password)
        if not http and max(len((username or "").encode()), len((password or "").encode())) > 255:
            raise ValueError("proxy: SOCKS5 allows 255 octets for user name and password (RFC 1929)")
        return cls(
            "http" if http else "socks5", parts.hostname, port or (8080 if http else 1080), username, password
        )

    async def open(self, sock: trio.socket.SocketType, host: str, port: int) -> None:
        """Ask for a tunnel on a fresh connection to the proxy.

        Raises:
          TransportError: naming the proxy and its answer.
        """
        try:
            if self.scheme == "http":
                await self._connect(sock, host, port)
            else:
                await self._socks(sock, host, port)
        except OSError as error:
            raise self._error(_words(error)) from error

    def _error(self, what: str, *, lasting: bool = False) -> TransportError:
        return TransportError(f"proxy {self.host} port {self.port}: {what}", lasting=lasting)

    async def _connect(self, sock: trio.socket.SocketType, host: str, port: int) -> None:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        if self.username is not None:
            credentials = base64.b64encode(f"{self.username}:{self.password or ''}".encode()).decode()
            head += f"Proxy-Authorization: Basic {credentials}\r\n"
        await _send_all(sock, f"{head}\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            octets = await sock.recv(4096)
            answer += octets
            if not octets or len(answer) > MAX_PROXY_HEAD_OCTETS:
                raise self._error("closed the connection" if not octets else "its answer is no HTTP")
        # TLS begins with our octets, so there is nothing behind the head yet.
        words = answer.split(b"\r\n", 1)[0].split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise self._error("its answer is no HTTP")
        status = int(words[1])
        if not 200 <= status < 300:
            raise self._error(f"answered CONNECT with status {status}", lasting=status in (401, 403, 407))

    async def _socks(self, sock: trio.socket.SocketType, host: str, port: int) -> None:
        with_password = self.username is not None
        await _send_all(sock, b"\x05\x02\x00\x02" if with_password else b"\x05\x01\x00")
        version, method = await self._exactly(sock, 2)
        if version != 5:
            raise self._error("speaks no SOCKS5", lasting=True)
        if method == 2 and with_password:
            username, password = (self.username or "").encode(), (self.password or "").encode()
            await _send_all(sock, b"\x01%c%b%c%b" % (len(username), username, len(password), password))
            _, status = await self._exactly(sock, 2)
            if status != 0:
                raise self._error("refuses user name and password", lasting=True)
        elif method != 0:
            raise self._error("wants another kind of authentication", lasting=True)
        name = host.encode("idna")
        await _send_all(sock, b"\x05\x01\x00\x03%c%b" % (len(name), name) + port.to_bytes(2, "big"))
        _, reply, _, kind = await self._exactly(sock, 4)
        if reply != 0:
            raise self._error(_SOCKS_REPLIES.get(reply, f"reply {reply}"), lasting=reply == 2)
        length = {1: 4, 4: 16}.get(kind)
        if length is None:
            length = (await self._exactly(sock, 1))[0]
        await self._exactly(sock, length + 2)  # the address it bound, of no use to us

    async def _exactly(self, sock: trio.socket.SocketType, count: int) -> bytes:
        octets = b""
        while len(octets) < count:
            more = await sock.recv(count - len(octets))
            if not more:
                raise self._error("closed the connection")
            octets += more
        return octets


async def _send_all(sock: trio.socket.SocketType, octets: bytes) -> None:
    while octets:
        octets = octets[await sock.send(octets) :]
