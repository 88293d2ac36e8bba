"""The server's side of TLS, octet by octet: what a test says goes on the wire, and in which segment.

A `Peer` is one accepted connection. It keeps what the client sent, encrypted and plain, so that a test can
say what was *not* sent.
"""

import contextlib
import socket
import ssl
import struct

import trio

from fastpush._tls_context import client_context
from fastpush.simulator import Authority

AUTHORITY = Authority("transport tests")

# No key makes sense of it, so OpenSSL answers with the alert bad_record_mac (RFC 8446 §6.2).
UNREADABLE_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)


def server_context(directory, *, hosts=("localhost", "127.0.0.1", "::1"), authority=AUTHORITY, **dates):
    """A context for a server that answers to these names; `dates` as in `Authority.issue_server`."""
    certificate, key = authority.issue_server(*hosts, **dates)
    path = directory / "server.pem"
    path.write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(path)
    return context


def trusting_context(authority=AUTHORITY):
    """What a client uses that trusts our authority."""
    return client_context(None, authority.ca_pem)


class Peer:
    """One accepted connection."""

    def __init__(self, stream, context):
        self.socket = stream.socket
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.sent = bytearray()  # encrypted
        self.encrypted = bytearray()  # as it came
        self.plain = bytearray()
        self.error = None  # of the handshake

    async def send_encrypted(self, octets=None):
        """Send what TLS has made so far, or these octets, in one segment if it is not too long."""
        octets = self.outgoing.read() if octets is None else octets
        self.sent += octets
        while octets:
            octets = octets[await self.socket.send(octets) :]

    async def fill(self):
        octets = await self.socket.recv(65_536)
        self.encrypted += octets
        self.incoming.write(octets)
        if not octets:
            self.incoming.write_eof()
        return bool(octets)

    async def handshake(self):
        """True when it came to an end; otherwise `error` says why not."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_encrypted()
                if not await self.fill():
                    self.error = self.error or EOFError()
                    return False
            except ssl.SSLError as error:
                self.error = error
                await self.send_encrypted()
                return False
            else:
                await self.send_encrypted()
                return True

    async def send(self, *records, behind=b"", alert=False):
        """Encrypt each as a record, and send them in one segment, with raw octets or a fatal alert behind."""
        for record in records:
            self.tls.write(record)
        if alert:
            self.incoming.write(UNREADABLE_RECORD)
            with contextlib.suppress(ssl.SSLError):
                while self.tls.read(65_536):
                    pass
        await self.send_encrypted(self.outgoing.read() + behind)

    async def receive(self, count):
        """Read until this many octets of plaintext are here, or the end."""
        self._decrypt()
        while len(self.plain) < count and await self.fill():
            self._decrypt()
        return self.plain

    async def receive_all(self):
        """Read to the end of the connection, whatever its kind."""
        with contextlib.suppress(OSError):
            while await self.fill():
                self._decrypt()
        self._decrypt()
        return self.plain

    def _decrypt(self):
        with contextlib.suppress(ssl.SSLError):
            while octets := self.tls.read(65_536):
                self.plain += octets

    def reset(self):
        """End with a TCP RST in place of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextlib.asynccontextmanager
async def serve(handler, context, *, host="127.0.0.1"):
    """Run `handler(peer)` for each connection and yield the port; `peers` of the listener has all of them.

    The connection is closed with a FIN when the handler returns.
    """
    (listener,) = await trio.open_tcp_listeners(0, host=host)
    peers = []

    async def attend(stream):
        peer = Peer(stream, context)
        peers.append(peer)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            await handler(peer)
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, attend, [listener])
        yield Listener(listener.socket.getsockname()[1], peers)
        nursery.cancel_scope.cancel()


class Listener:
    def __init__(self, port, peers):
        self.port = port
        self.peers = peers


@contextlib.contextmanager
def black_hole(host="127.0.0.1"):
    """A port at which a connect neither comes about nor fails: the queue of the listener is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind((host, 0))
        listener.listen(0)
        for _ in range(3):
            sock = stack.enter_context(socket.socket(family))
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


class Resolver(trio.abc.HostnameResolver):
    """Names with the addresses that a test gives them."""

    def __init__(self, **names):
        self.names = names
        self.asked = []

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        self.asked.append(host)
        await trio.lowlevel.checkpoint()
        name = host.decode()
        if name not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, type, proto, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, type, proto, "", (address, port))
            for address in self.names[name]
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError
