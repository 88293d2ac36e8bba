"""A client that looks at every frame: TLS by trio, frames by hyperframe, header blocks by hpack.

It knows no rule of HTTP/2, so it can break each, and it shows what is on the wire after a GOAWAY too.
"""

import contextlib
import ssl
import struct
import time
import uuid

import hpack
import trio
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEVICE_TOKEN = "ab" * 32
PAYLOAD = b'{"aps":{"alert":"Core switch down"}}'


def authorization(key):
    return key.authorization(time.time())[1].decode()


class Answer:
    """What came on one stream."""

    def __init__(self):
        self.fields = None
        self.body = b""
        self.ended = False
        self.error_code = None
        self.blocks = []
        self.pieces = []

    @property
    def status(self):
        return None if self.fields is None else int(self.fields[b":status"])

    @property
    def reason(self):
        import json

        return json.loads(self.body)["reason"] if self.body else None

    @property
    def settled(self):
        return self.ended or self.error_code is not None


class Wire:
    """One connection, as the client sees it."""

    def __init__(self, stream, headers):
        self.stream = stream
        self.headers = headers
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.next_stream_id = 1
        self.frames = []
        self.answers = {}
        self.segments = []
        self._left = b""
        self.eof = False

    def request_frames(self, device_token=DEVICE_TOKEN, *, body=PAYLOAD, path=None, method="POST", **fields):
        """HEADERS and DATA of one request; a field that is None is left out."""
        named = {":method": method, ":scheme": "https", ":authority": "localhost"}
        named[":path"] = f"/3/device/{device_token}" if path is None else path
        named.update(self.headers)
        named["apns-id"] = str(uuid.uuid4())
        named.update({name.replace("_", "-"): value for name, value in fields.items()})
        pairs = [(name, value) for name, value in named.items() if value is not None]
        stream_id, self.next_stream_id = self.next_stream_id, self.next_stream_id + 2
        self.answers[stream_id] = Answer()
        flags = ["END_HEADERS"] if body else ["END_HEADERS", "END_STREAM"]
        octets = HeadersFrame(stream_id, self.encoder.encode(pairs), flags=flags).serialize()
        if body:
            octets += DataFrame(stream_id, body, flags=["END_STREAM"]).serialize()
        return stream_id, octets

    async def send(self, *args, **fields):
        stream_id, octets = self.request_frames(*args, **fields)
        await self.stream.send_all(octets)
        return stream_id

    async def push(self, *args, **fields):
        """One request and its answer."""
        stream_id = await self.send(*args, **fields)
        return await self.answer(stream_id)

    async def answer(self, stream_id):
        await self.until(lambda: self.answers[stream_id].settled)
        return self.answers[stream_id]

    async def until(self, holds, seconds=10):
        """Read until it holds, or the connection ends."""
        with trio.fail_after(seconds):
            while not holds() and await self.read():
                pass

    async def read(self):
        """Read once; False at the end."""
        if self.eof:
            return False
        try:
            octets = await self.stream.receive_some(65_536)
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            self.eof = error
            return False
        if not octets:
            self.eof = True
            return False
        self._left += octets
        segment = []
        while len(self._left) >= 9:
            length = struct.unpack(">L", b"\0" + self._left[:3])[0]
            if len(self._left) < 9 + length:
                break
            frame, _ = Frame.parse_frame_header(memoryview(self._left[:9]), strict=False)
            frame.parse_body(memoryview(self._left[9 : 9 + length]))
            self._left = self._left[9 + length :]
            segment.append(frame)
            self._take(frame)
        self.frames += segment
        self.segments.append(segment)
        return True

    async def to_end(self):
        await self.until(lambda: False)

    def _take(self, frame):
        answer = self.answers.get(frame.stream_id)
        if isinstance(frame, HeadersFrame):
            fields = dict(self.decoder.decode(frame.data, raw=True))
            answer.blocks.append(fields)
            if b":status" in fields and answer.fields is None and not fields[b":status"].startswith(b"1"):
                answer.fields = fields
            answer.ended = "END_STREAM" in frame.flags
        elif isinstance(frame, DataFrame):
            answer.body += bytes(frame.data)
            answer.pieces.append(frame)
            answer.ended = "END_STREAM" in frame.flags
        elif isinstance(frame, RstStreamFrame) and answer is not None and answer.error_code is None:
            answer.error_code = frame.error_code

    def all(self, kind):
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def goaways(self):
        return self.all(GoAwayFrame)

    @property
    def stream_limits(self):
        """SETTINGS_MAX_CONCURRENT_STREAMS, each time it was told."""
        return [frame.settings[3] for frame in self.all(SettingsFrame) if 3 in frame.settings]

    async def ping(self, opaque=b"12345678"):
        await self.stream.send_all(PingFrame(0, opaque).serialize())

    async def acknowledge_settings(self):
        await self.stream.send_all(SettingsFrame(0, flags=["ACK"]).serialize())

    async def settle(self):
        """Everything sent so far is answered: a PING came back."""
        before = len(self.all(PingFrame))
        await self.ping()
        await self.until(lambda: len(self.all(PingFrame)) > before)

    async def raise_window(self, octets):
        await self.stream.send_all(WindowUpdateFrame(0, octets).serialize())


def client_context(simulator, *, alpn=True, certificate=None, directory=None):
    context = ssl.create_default_context(cafile=simulator.ca_file)
    if alpn:
        context.set_alpn_protocols(["h2"])
    if certificate is not None:
        path = directory / "client.pem"
        path.write_bytes(certificate.certificate_pem + certificate.key_pem)
        context.load_cert_chain(path)
    return context


@contextlib.asynccontextmanager
async def open_wire(simulator, key=None, *, settings=None, context=None, warm=False, headers=None, **more):
    """Connect, send the preface, and read the server's first SETTINGS.

    `warm` sends one good request first, so that the stream limit is the full one.
    """
    named = {"apns-topic": "com.example.app", "apns-push-type": "alert"}
    if key is not None:
        named["authorization"] = authorization(key)
    named.update(headers or {})
    tcp = await trio.open_tcp_stream(simulator.host, simulator.port)
    stream = trio.SSLStream(
        tcp, context or client_context(simulator, **more), server_hostname="localhost", https_compatible=True
    )
    try:
        await stream.do_handshake()
        wire = Wire(stream, named)
        await stream.send_all(PREFACE + SettingsFrame(0, settings or {}).serialize())
        await wire.until(lambda: wire.all(SettingsFrame))
        if warm:
            await wire.push()
        yield wire
    finally:
        await trio.aclose_forcefully(stream)
