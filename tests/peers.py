"""The two ends that stories about the client are told from.

`open_pair` is the simulator with a client on it. `open_peer` is a server that does what its script says,
frame by frame: frames are read by hyperframe and hpack, which share no code with ours.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
import struct
import time
from collections import Counter, deque

import hpack
import trio
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame

import fastpush
from fastpush.simulator import Authority, TrustedKey, open_simulator
from tests.http2 import frames

TOPIC = "com.example.opmanager"
PAYLOAD = fastpush.Payload(alert="Core switch down")
PATIENCE = 3_600  # seconds of the virtual clock; a story that hangs ends then
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def device_token(number):
    return f"{number:064x}"


def push(number=1, **fields):
    return fastpush.Notification(device_token(number), PAYLOAD, **fields)


def pushes(count, first=1, **fields):
    return [push(number, **fields) for number in range(first, first + count)]


@contextlib.asynccontextmanager
async def open_pair(credential=None, *, client=None, **simulator):
    """A simulator and a client on it; `client` is what else `open_client` gets."""
    with trio.fail_after(PATIENCE):
        async with (
            open_simulator(**simulator) as apns,
            open_client_on(apns, credential, **(client or {})) as it,
        ):
            yield apns, it


def open_client_on(apns, credential=None, **options):
    options = {"topic": TOPIC, "host": apns.host, "port": apns.port, "ca_file": apns.ca_file, **options}
    return fastpush.open_client(apns.signing_key() if credential is None else credential, **options)


async def send_all(client, notifications):
    """Send all of them and return the responses."""
    async with client.send_many(notifications) as responses:
        return [response async for response in responses]


def outcomes(responses):
    return Counter(response.outcome for response in responses)


def check(apns, responses, *, duplicates=0):
    """One end each, and the simulator's ledger agrees with all of them."""
    ids = [response.apns_id for response in responses]
    assert len(ids) == len(set(ids)), "a push has ended twice"
    report = apns.ledger.check(ids, {response.apns_id: response.outcome for response in responses})
    assert len(report.duplicated) <= duplicates, report
    assert duplicates or report.good, report
    return report


@contextlib.asynccontextmanager
async def raises_within(kind, seconds=60):
    """Some exception of this kind, and no group around it; hanging fails."""
    try:
        with trio.fail_after(seconds):
            yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


# A server by script.


@functools.cache
def _authority():
    return Authority()


@functools.cache
def issued_key():
    return _authority().issue_signing_key("ABC123DEFG", "DEF123GHIJ")


def signing_key():
    issued = issued_key()
    return fastpush.SigningKey.from_bytes(issued.p8, key_id=issued.key_id, team_id=issued.team_id)


def trusted(apns):
    """Let a simulator take the provider tokens of `signing_key`."""
    issued = issued_key()
    apns.trust_key(
        TrustedKey(
            issued.key_id,
            issued.team_id,
            TrustedKey.point_of(issued.public_key),
            None,
            ("production", "development"),
            None,
        )
    )
    return signing_key()


class Gone(Exception):
    """The client closed the connection."""


class Peer:
    """One connection, as the script has it. All it is told stands in `frames`, requests in `requests`."""

    def __init__(self, stream, number):
        self.stream = stream
        self.number = number  # counted from 1
        self.frames = []
        self.requests = {}  # stream id -> fields
        self.made = frames.ServerFrames()
        self.answers_pings = True
        self.gives_window = True
        self._ready = deque()
        self._decoder = hpack.Decoder()
        self._left = b""
        self._preface = PREFACE
        self._waiting = b""  # nothing may come before SETTINGS

    async def start(self, **settings):
        """Send SETTINGS, whatever they are; by default 1,000 streams."""
        first = frames.settings(**{"max_concurrent_streams": 1_000, **settings})
        self._waiting, octets = None, first + (self._waiting or b"")
        await self.send(octets)

    async def send(self, octets):
        try:
            await self.stream.send_all(octets)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone from error

    async def accept(self, *stream_ids):
        await self.send(b"".join(map(self.made.accept, stream_ids)))

    async def reject(self, stream_id, status, reason, fields=()):
        body = b'{"reason":"%b"}' % reason
        head = self.made.headers(stream_id, status, [(b"apns-id", frames.apns_id(stream_id)), *fields])
        await self.send(head + frames.data(stream_id, body, end_stream=True))

    async def request(self):
        """Wait for the next request that came whole and return its stream id."""
        while not self._ready:
            await self.read()
        return self._ready.popleft()

    async def frame(self, kind):
        """Wait for a frame of a kind that was not seen before this call."""
        seen = len(self.frames)
        while True:
            for frame in self.frames[seen:]:
                if isinstance(frame, kind):
                    return frame
            seen = len(self.frames)
            await self.read()

    async def to_end(self):
        """Read until the client closes."""
        with contextlib.suppress(Gone):
            while True:
                await self.read()

    async def read(self):
        try:
            octets = await self.stream.receive_some(65_536)
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise Gone from error
        if not octets:
            raise Gone
        self._left += octets
        if self._preface:
            if len(self._left) < len(PREFACE):
                return
            assert self._left.startswith(PREFACE)
            self._left, self._preface = self._left[len(PREFACE) :], b""
        reply = b""
        while len(self._left) >= 9:
            length = struct.unpack(">L", b"\0" + self._left[:3])[0]
            if len(self._left) < 9 + length:
                break
            frame, _ = Frame.parse_frame_header(memoryview(self._left[:9]), strict=True)
            frame.parse_body(memoryview(self._left[9 : 9 + length]))
            self._left = self._left[9 + length :]
            self.frames.append(frame)
            reply += self._take(frame)
        if self._waiting is not None:
            self._waiting += reply
        elif reply:
            await self.send(reply)

    def _take(self, frame):
        if isinstance(frame, HeadersFrame):
            self.requests[frame.stream_id] = dict(self._decoder.decode(bytes(frame.data), raw=True))
        elif isinstance(frame, DataFrame):
            if "END_STREAM" in frame.flags:
                self._ready.append(frame.stream_id)
            if self.gives_window and frame.data:
                return frames.window_update(0, len(frame.data))
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            return frames.settings_ack()
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags and self.answers_pings:
            return frames.ping(bytes(frame.opaque_data), ack=True)
        return b""

    def all(self, kind):
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def apns_ids(self):
        return [fields[b"apns-id"].decode() for fields in self.requests.values()]


class PeerServer:
    """Where the scripted server listens, and the connections it has had."""

    def __init__(self, directory):
        self.host = "127.0.0.1"
        self.port = 0
        self.peers = []
        self.opened_at = []  # seconds of trio's clock
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(_authority().ca_pem)


@contextlib.asynccontextmanager
async def open_peer(script, directory, *, client=None):
    """Run `script(peer)` for each connection, and a client; gives (server, client)."""
    certificate, key = _server_pem()
    (directory / "server.pem").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    context.set_alpn_protocols(["h2"])
    server = PeerServer(directory)

    async def serve(stream):
        server.opened_at.append(trio.current_time())
        stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        peer = Peer(stream, len(server.opened_at))
        try:
            await stream.do_handshake()
            server.peers.append(peer)
            await script(peer)
        except (Gone, trio.BrokenResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        server.port = listener.socket.getsockname()[1]
        options = {
            "topic": TOPIC, "host": server.host, "port": server.port, "ca_file": server.ca_file,
            "max_connections": 1, **(client or {}),
        }  # fmt: skip
        try:
            with trio.fail_after(PATIENCE):
                async with fastpush.open_client(signing_key(), **options) as it:
                    yield server, it
        finally:
            nursery.cancel_scope.cancel()


@functools.cache
def _server_pem():
    return _authority().issue_server("127.0.0.1", "localhost")


def http_date(seconds):
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds)).encode()
