"""TLS to one server, in batches of records.

One `recv` brings up to 256 KiB, and all records in it are decrypted before anybody is woken; what is
sent is encrypted at once and written with as few `send` calls as the socket allows. trio's SSLStream
hands out one record a call, which costs ten times as much where a server writes small records.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import random
import re
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
    """The connection is lost: reset, timed out, a TLS alert. `credential` as in TransportError."""

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
    if isinstance(error, socket.gaierror) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()  # trio puts the address into its own words
    return str(error) or type(error).__name__


class Transport:
    """One TLS connection over a non-blocking socket. One task at most reads, one at most waits to write.

    Only `receive` tells that the connection is lost, and only after everything that came before: a server
    answers, says why it goes (an alert), and closes, and a write may run into the end ahead of the reader.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._unsent = memoryview(b"")
        self._received = bytearray(RECEIVE_OCTETS)
        self._plain = bytearray(RECEIVE_OCTETS)
        self._read_to_end = False
        self._emptied = False  # the socket, by the last `recv`: it brought less than was asked for
        self._read_error: BrokenTransport | None = None
        self._write_error: BrokenTransport | None = None
        self.write_calls = 0

    @property
    def peer(self) -> str:
        """The address that was connected to, for messages."""
        with contextlib.suppress(OSError):
            address = self._socket.getpeername()
            return f"{address[0]} port {address[1]}"
        return "a closed socket"

    async def handshake(self) -> None:
        """Shake hands and check that HTTP/2 was agreed on.

        Raises:
          TransportError: with the cause; nothing of HTTP was sent.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._collect()
                await self._drain()
                try:
                    more = await self._fill()
                except BrokenTransport as error:
                    raise TransportError(f"in the TLS handshake: {error.reason}") from error
                if not more:
                    raise TransportError("the server closed the connection in the TLS handshake") from None
            except ssl.SSLError as error:
                self._collect()
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
        # Over TLS there is no HTTP/2 without ALPN (RFC 9113 §3.2, §3.3), and a server that has none of the
        # protocols offered may choose silence instead of an alert.
        protocol = self._tls.selected_alpn_protocol()
        if protocol != "h2":
            chose = "no protocol" if protocol is None else ascii(protocol)
            raise TransportError(f"no HTTP/2: by ALPN the server chose {chose} and not 'h2'", lasting=True)

    # Writing: encrypt, then send what the socket takes; the rest waits for `writable` and `flush`.

    def write(self, octets: bytes) -> bool:
        """Encrypt and send what the socket takes now. True when nothing is left over.

        On a lost connection nothing is left over either; `receive` will tell.
        """
        if self._write_error is not None:
            return True
        try:
            self._tls.write(octets)
        except ssl.SSLError as error:
            self._give_up_writing(error)
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
                self._give_up_writing(error)
                break
            self.write_calls += 1
            self._unsent = self._unsent[sent:]
        return True

    @property
    def unsent(self) -> int:
        """Encrypted octets that the socket did not take yet."""
        return len(self._unsent)

    async def writable(self) -> None:
        """Wait until the socket takes more.

        Raises:
          BrokenTransport: it was closed on this side.
        """
        if self._socket.fileno() == -1:
            raise BrokenTransport(_CLOSED_HERE)
        with _closed_here():
            await trio.lowlevel.wait_writable(self._socket)

    async def _drain(self) -> None:
        while not self.flush():
            await self.writable()

    def _collect(self) -> None:
        if self._outgoing.pending:
            octets = self._outgoing.read()
            if self._write_error is None:
                self._unsent = memoryview(bytes(self._unsent) + octets if self._unsent else octets)

    def _give_up_writing(self, error: OSError) -> None:
        self._write_error = BrokenTransport(_words(error))
        self._unsent = memoryview(b"")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader; what has arrived can still be read

    # Reading.

    async def receive(self, *, at_once: bool = True) -> memoryview | None:
        """Wait for octets and return all plaintext that they hold, up to 256 KiB; None at the end.

        The view is good until the next call. It may be empty (a session ticket, say). What was decrypted
        before an alert, a reset or the end is returned first.

        Args:
          at_once: take what is there without a checkpoint. Otherwise other tasks have their turn first, and
            a socket that the last call has emptied is not asked before it is readable.

        Raises:
          BrokenTransport: the connection is lost.
        """
        wanting = not (self._read_to_end or self._incoming.pending)
        if not at_once and not (wanting and self._emptied):
            await trio.lowlevel.checkpoint()
        if wanting:
            try:
                if not at_once and self._emptied:
                    await self._readable()
                if not await self._fill():
                    self._incoming.write_eof()
            except BrokenTransport as error:
                self._read_error = error
                self._read_to_end = True
        filled = 0 if self._read_to_end else self._decrypt()
        if self._outgoing.pending:  # of TLS itself: KeyUpdate (RFC 8446 §4.6.3), or an alert
            self._collect()
            self.flush()
        if filled or not self._read_to_end:
            return memoryview(self._plain)[:filled]
        lost = self._read_error or self._write_error
        if lost is not None:
            raise lost
        return None

    def _decrypt(self) -> int:
        """Decrypt the whole records there are, and note the end."""
        plain = memoryview(self._plain)
        filled = 0
        while filled + RECORD_OCTETS <= RECEIVE_OCTETS:
            try:
                count: int = self._tls.read(RECEIVE_OCTETS - filled, plain[filled:])  # type: ignore[assignment]
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                count = 0
            except ssl.SSLError as error:
                # OpenSSL tells it once; afterwards an alert looks like an orderly end.
                self._read_error = BrokenTransport(_words(error), credential=_is_about_credential(error))
                count = 0
            if not count:
                self._read_to_end = True
                break
            filled += count
            if not self._incoming.pending and not self._tls.pending():
                break
        return filled

    async def _fill(self) -> bool:
        while True:
            try:
                count = self._socket.recv_into(self._received)
            except BlockingIOError:
                await self._readable()
            except OSError as error:
                raise BrokenTransport(_words(error)) from error
            else:
                self._emptied = count < RECEIVE_OCTETS
                self._incoming.write(memoryview(self._received)[:count])
                return count > 0

    async def _readable(self) -> None:
        if self._socket.fileno() == -1:
            raise BrokenTransport(_CLOSED_HERE)
        with _closed_here():
            await trio.lowlevel.wait_readable(self._socket)

    def close(self) -> None:
        """Say goodbye (close_notify) if the socket takes it at once, and close."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
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


_CLOSED_HERE = "the connection was closed on this side"


@contextlib.contextmanager
def _closed_here() -> Iterator[None]:
    try:
        yield
    except trio.ClosedResourceError as error:
        raise BrokenTransport(_CLOSED_HERE) from error


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
    if proxy is None:
        connected = await _connect(host, port, host)
    else:
        connected = await _connect(proxy.host, proxy.port, f"the proxy {proxy.host}")
        try:
            with _within(PROXY_WITHIN, f"no answer from the proxy {proxy.host}"):
                await proxy.open(connected, host, port)
        except BaseException:
            connected.close()
            raise
    sock = socket.socket(fileno=connected.detach())
    try:
        _set_options(sock)
        transport = Transport(sock, context, host)
        with _within(TLS_WITHIN, "no end of the TLS handshake"):
            await transport.handshake()
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError | ValueError):  # no name to verify, or a socket lost this early
            raise TransportError(_words(error), lasting=isinstance(error, ValueError)) from error
        raise
    return transport


@contextlib.contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise TransportError(f"{what} within {seconds:g} s") from error


async def _connect(host: str, port: int, called: str) -> trio.socket.SocketType:
    """Give the first connection that comes about; all other sockets are closed, whatever happens."""
    connected: list[trio.socket.SocketType] = []
    causes: set[str] = set()
    try:
        with trio.move_on_after(CONNECT_WITHIN) as deadline:
            found = await _resolve(host, port)
            async with trio.open_nursery() as nursery:
                for family, _, _, _, address in _in_turn(found):
                    failed = trio.Event()
                    race = nursery.cancel_scope
                    nursery.start_soon(_attempt, family, address, connected, causes, failed, race)
                    with trio.move_on_after(STAGGER):
                        await failed.wait()
    except BaseException:
        for sock in connected:
            sock.close()
        raise
    for late in connected[1:]:
        late.close()
    if connected:
        return connected[0]
    told = sorted(causes)
    if deadline.cancelled_caught:
        told.append(f"no answer within {CONNECT_WITHIN:g} s")
    raise TransportError(f"cannot connect to {called} port {port}: {', '.join(told)}")


async def _resolve(host: str, port: int) -> Sequence[_AddressInfo]:
    try:
        return await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TransportError(f"no address for {host}: {_words(error)}") from error
    except ValueError as error:  # no name at all: an empty label, one of more than 63 octets
        raise TransportError(f"no address for {host!a}: it is no host name", lasting=True) from error


async def _attempt(
    family: int,
    address: object,
    connected: list[trio.socket.SocketType],
    causes: set[str],
    failed: trio.Event,
    race: trio.CancelScope,
) -> None:
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.connect(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        causes.add(_words(error))
        failed.set()
    else:
        connected.append(sock)
        race.cancel()


def _set_options(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


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
MAX_INTERIM_ANSWERS = 8

_ESCAPE = "write http://user:password@host:port, with %2F %3F %23 %40 %3A for / ? # @ : in name or password"

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")  # a lone LF is to be recognised too, RFC 9112 §2.2
_UNFIT = re.compile(rb"[\x00-\x20\x7f]")  # would end the request line, or a header field
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: |\r?\n)")

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
          ValueError: naming what is wrong, without user name and password.
        """
        scheme, separator, _ = url.partition("://")
        if not separator:
            raise ValueError("proxy: no scheme; write http://host:port or socks5://host:port")
        if scheme.lower() not in ("http", "socks5", "socks5h"):
            raise ValueError(f"proxy: the scheme is {scheme!r}; 'http' and 'socks5' are supported")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:  # its message would quote the password
            raise ValueError(f"proxy: no URL with a port from 1 to 65535; {_ESCAPE}") from None
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"proxy: more than a host and a port; {_ESCAPE}")
        if not host:
            raise ValueError("proxy: no host; write http://host:port or socks5://host:port")
        http = scheme.lower() == "http"
        if port is None:
            port = 8080 if http else 1080
        elif port == 0:
            raise ValueError("proxy: the port is 0; 1 to 65535 are allowed")
        try:
            username = None if parts.username is None else unquote(parts.username, errors="strict")
            password = None if parts.password is None else unquote(parts.password, errors="strict")
        except UnicodeDecodeError:
            raise ValueError("proxy: user name or password is not UTF-8, percent-encoded") from None
        if http and ":" in (username or ""):
            raise ValueError("proxy: a colon in the user name cannot be sent (RFC 7617 §2)")
        if not http and max(len((username or "").encode()), len((password or "").encode())) > 255:
            raise ValueError("proxy: SOCKS5 allows 255 octets for user name and password (RFC 1929)")
        return cls("http" if http else "socks5", host, port, username, password)

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

    def _name(self, host: str) -> bytes:
        """The host as it goes over the wire."""
        try:
            name = host.encode("ascii" if host.isascii() else "idna")
        except UnicodeError:
            name = b""
        if not 1 <= len(name) <= 255 or _UNFIT.search(name):
            raise self._error(f"cannot be asked for {host!a}: it is no host name", lasting=True)
        return name

    async def _connect(self, sock: trio.socket.SocketType, host: str, port: int) -> None:
        name = self._name(host)
        target = b"[%b]:%d" % (name, port) if b":" in name else b"%b:%d" % (name, port)
        head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (target, target)
        if self.username is not None:
            credentials = base64.b64encode(f"{self.username}:{self.password or ''}".encode())
            head += b"Proxy-Authorization: Basic %b\r\n" % credentials
        await _send_all(sock, head + b"\r\n")
        received = b""
        for _ in range(1 + MAX_INTERIM_ANSWERS):
            status, received = await self._answer(sock, received)
            if status >= 200:
                break
        if not 200 <= status < 300:
            raise self._error(f"answered CONNECT with status {status}", lasting=status in (401, 403, 407))
        if received:  # TLS begins with our octets, so these come from no server
            raise self._error("sent octets into the tunnel ahead of the server")

    async def _answer(self, sock: trio.socket.SocketType, received: bytes) -> tuple[int, bytes]:
        """Read the head of one answer; return its status and what came behind it."""
        while not (end := _END_OF_HEAD.search(received)):
            if len(received) > MAX_PROXY_HEAD_OCTETS:
                raise self._error(f"the head of its answer has more than {MAX_PROXY_HEAD_OCTETS} octets")
            octets = await sock.recv(4096)
            if not octets:
                raise self._error("closed the connection" if not received else "closed it amid its answer")
            received += octets
            if not b"HTTP/1.".startswith(received[:7]):
                raise self._error("its answer is no HTTP", lasting=True)
        status = _STATUS_LINE.match(received)
        if status is None:
            raise self._error("its answer is no HTTP", lasting=True)
        return int(status[1]), received[end.end() :]

    async def _socks(self, sock: trio.socket.SocketType, host: str, port: int) -> None:
        name = self._name(host)
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
        await _send_all(sock, b"\x05\x01\x00%b%b" % (_socks_address(name), port.to_bytes(2, "big")))
        version, reply, _, kind = await self._exactly(sock, 4)
        if version != 5:
            raise self._error("speaks no SOCKS5", lasting=True)
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


def _socks_address(name: bytes) -> bytes:
    """Kind and address of RFC 1928 §5."""
    try:
        address = ipaddress.ip_address(name.decode())
    except ValueError:
        return b"\x03%c%b" % (len(name), name)
    return (b"\x01" if address.version == 4 else b"\x04") + address.packed


async def _send_all(sock: trio.socket.SocketType, octets: bytes) -> None:
    while octets:
        octets = octets[await sock.send(octets) :]
