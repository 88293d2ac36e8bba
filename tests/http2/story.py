"""One connection told from both ends: the test is the server, an engine is the client.

A `Story` reads all that its engine sends with hyperframe and hpack, two readers which share no code
with it, and holds it to the rules that are never broken whatever the test is about:

- no DATA past a window, no frame past MAX_FRAME_SIZE, no stream past the limit, each as it was in
  force when our SETTINGS were acknowledged;
- each header block decodes into exactly the request, each body arrives whole;
- each request ends in exactly one `StreamEnded`, or in none if it was taken back.

It also keeps a transcript, so that the same story can be told again with the server's octets cut
elsewhere (`replay`).
"""

import dataclasses
import inspect
from collections import deque

import hpack
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from fastpush.http2 import ConnectionEnded, ErrorCode, GoawayReceived, Limits, PingAcknowledged, StreamEnded

from . import frames
from .frames import ServerFrames

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

BEFORE = ((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.push.apple.com"))
PATH_PREFIX = b"/3/device/"
AFTER = (
    (b"authorization", b"bearer " + b"x" * 180),
    (b"apns-topic", b"com.example.opmanager"),
    (b"apns-push-type", b"alert"),
)
VARIABLE = (b"apns-id", b"apns-expiration", b"apns-collapse-id")

BODY = b'{"aps":{"alert":"Core switch down"}}'

SCRIPTS = []


def script(**parameters):
    """Mark a test as a story to be told to both engines, with each combination of `parameters`.

    The scripts are also what test_cutting.py tells again, each with the first value of `streams`.
    """

    def register(function):
        SCRIPTS.append((function, parameters))
        wanted = set(inspect.signature(function).parameters) - {"story"}
        assert wanted == set(parameters), function.__name__
        for name, values in reversed(parameters.items()):
            function = pytest.mark.parametrize(name, values)(function)
        return function

    return register


IN_FLIGHT = (1, 100, 1000)


def frames_in(octets):
    """All frames in these octets, read by hyperframe."""
    view, found = memoryview(octets), []
    while view:
        frame, length = Frame.parse_frame_header(view[:9], strict=True)
        assert len(view) >= 9 + length, "the engine's octets end within a frame"
        frame.parse_body(view[9 : 9 + length])
        frame.octets = bytes(view[: 9 + length])
        found.append(frame)
        view = view[9 + length :]
    return found


@dataclasses.dataclass
class Request:
    """What the test asked the engine to send, and what of it has arrived."""

    tag: object
    fields: list
    body: bytes
    arrived: bytes = b""
    ended: bool = False


class Story:
    """See the module. `make_engine` is called with `limits` and `first_stream_id`."""

    def __init__(self, make_engine):
        self.make_engine = make_engine
        self.transcript = []
        self.now = 0.0
        self.frames = ServerFrames()
        self.decoder = hpack.Decoder()
        self.events = []
        self.outcomes = {}  # tag -> StreamEnded
        self.requests = {}  # stream id -> Request
        self.given_up = set()  # tags
        self.engine = None
        self.template = None
        # What the server has granted, as it must be obeyed.
        self.connection_window = 65_535
        self.stream_windows = {}
        self.initial_window = 65_535
        self.max_frame_size = 16_384
        self.stream_limit = 0
        self.unacknowledged = deque()
        self.open_streams = set()  # as the server counts them
        # What the engine has granted.
        self.our_connection_window = 65_535
        self.header_block = None

    # The client's side.

    def tell(self, method, *args):
        """Call a method of the engine and note it in the transcript."""
        self.transcript.append((method, args))
        return getattr(self.engine, method)(*args)

    def begin(self, *, limits=None, first_stream_id=1):
        """Make the engine and read its preface. Nothing has come from the server yet."""
        self.limits = limits or Limits()
        self.next_stream_id = first_stream_id
        self.transcript.append(("begin", (self.limits, first_stream_id)))
        self.engine = self.make_engine(limits=self.limits, first_stream_id=first_stream_id)
        assert not self.engine.settings_received
        assert self.engine.room() == 0
        self.tell("initiate", self.now)
        self.make_template()
        octets = self.take_octets()
        assert octets.startswith(PREFACE)
        self.preface = self.read(octets[len(PREFACE) :])
        return self.preface

    def make_template(self, before=BEFORE, prefix=PATH_PREFIX, after=AFTER, variable=VARIABLE):
        self.shape = (before, prefix, after, variable)
        self.transcript.append(("template", self.shape))
        self.template = self.engine.template(before, prefix, after, variable)

    def start(self, *entries, limits=None, first_stream_id=1, **settings):
        """Begin, and let the server answer as APNs does: its SETTINGS and the acknowledgement of ours."""
        self.begin(limits=limits, first_stream_id=first_stream_id)
        if not entries and not settings:
            settings = {"max_concurrent_streams": 1100}
        self.server(frames.settings(*entries, **settings), frames.settings_ack())
        assert self.engine.settings_received
        self.sent()
        self.now += 10.0  # the handshake is no part of what is counted within a second
        return self

    def open(self, count=1, *, body=BODY, values=None, take=True):
        """Send `count` requests, each to another device token; return their stream ids."""
        stream_ids = []
        for _ in range(count):
            number = len(self.requests)
            path = b"%064x" % (0xA1B2 << 200 | number)
            given = values
            if given is None:
                given = (b"%08x-1111-4111-8111-111111111111" % number, b"1700000000", None)
            tag = f"push {number}"
            stream_id = self.send_request(path, given, body, tag)
            stream_ids.append(stream_id)
        if take:
            self.sent()
        return stream_ids

    def send_request(self, path, values, body, tag):
        before, prefix, after, variable = self.shape
        self.transcript.append(("send_request", (path, values, body, tag, self.now)))
        stream_id = self.engine.send_request(self.template, path, values, body, tag, self.now)
        assert stream_id == self.next_stream_id
        self.next_stream_id += 2
        fields = [
            *before,
            (b":path", prefix + path),
            *after,
            *((name, value) for name, value in zip(variable, values, strict=True) if value is not None),
        ]
        self.requests[stream_id] = Request(tag, fields, body)
        return stream_id

    def give_up(self, stream_id):
        taken = self.tell("reset_stream", stream_id)
        if taken:
            self.given_up.add(self.requests[stream_id].tag)
        return taken

    def outcome(self, stream_id):
        """The one `StreamEnded` of this request, or None while it is in flight."""
        return self.outcomes.get(self.requests[stream_id].tag)

    # The server's side.

    def server(self, *octets):
        """Let the server send these frames in one segment; return the events they cause."""
        octets = b"".join(octets)
        self.note_granted(octets)
        return self.take_events(self.tell("receive_data", octets, self.now))

    def note_granted(self, octets):
        """Read what the server grants by these frames, as far as they are frames."""
        view = memoryview(octets)
        while len(view) >= 9:
            length, kind, flags = int.from_bytes(view[:3]), view[3], view[4]
            stream_id = int.from_bytes(view[5:9]) & 0x7FFF_FFFF
            payload = bytes(view[9 : 9 + length])
            if kind == frames.SETTINGS and not flags & frames.ACK:
                entries = [payload[start : start + 6] for start in range(0, len(payload) - 5, 6)]
                self.unacknowledged.append([(int.from_bytes(e[:2]), int.from_bytes(e[2:])) for e in entries])
            elif kind == frames.WINDOW_UPDATE and length == 4:
                increment = int.from_bytes(payload) & 0x7FFF_FFFF
                if stream_id == 0:
                    self.connection_window += increment
                elif stream_id in self.stream_windows:
                    self.stream_windows[stream_id] += increment
            elif kind == frames.RST_STREAM or (
                kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM
            ):
                if kind == frames.RST_STREAM or self.finished(stream_id):
                    self.open_streams.discard(stream_id)
                elif stream_id in self.requests:
                    self.requests[stream_id].ended = True
            elif kind == frames.DATA:
                self.our_connection_window -= length
            view = view[9 + length :]

    def finished(self, stream_id):
        request = self.requests.get(stream_id)
        return request is not None and request.arrived == request.body

    # What the engine says.

    def take_octets(self):
        return self.tell("data_to_send")

    def sent(self):
        """All frames that the engine has sent since the last call."""
        return self.read(self.take_octets())

    def read(self, octets):
        found = frames_in(octets)
        for frame in found:
            self.obey(frame)
        return found

    def obey(self, frame):
        """Be the server which takes this frame, and hold it to what was granted."""
        assert frame.body_len <= self.max_frame_size
        if self.header_block is not None:
            assert isinstance(frame, ContinuationFrame)
            assert frame.stream_id == self.header_block[0].stream_id
        match frame:
            case HeadersFrame() | ContinuationFrame():
                self.obey_headers(frame)
            case DataFrame():
                request = self.requests[frame.stream_id]
                assert not request.ended or frame.stream_id in self.open_streams
                assert frame.stream_id in self.open_streams, "DATA on a stream that is closed"
                self.connection_window -= frame.body_len
                self.stream_windows[frame.stream_id] -= frame.body_len
                if frame.body_len:
                    assert self.connection_window >= 0, "DATA past the connection's window"
                    assert self.stream_windows[frame.stream_id] >= 0, "DATA past the stream's window"
                request.arrived += frame.data
                if "END_STREAM" in frame.flags:
                    assert request.arrived == request.body
                    if request.ended:
                        self.open_streams.discard(frame.stream_id)
            case RstStreamFrame():
                assert frame.stream_id in self.requests, "RST_STREAM on a stream that never was"
                self.open_streams.discard(frame.stream_id)
            case SettingsFrame() if "ACK" in frame.flags:
                self.settings_are_in_force(self.unacknowledged.popleft())
            case WindowUpdateFrame(stream_id=0):
                self.our_connection_window += frame.window_increment
                assert self.our_connection_window <= frames.MAX_WINDOW

    def obey_headers(self, frame):
        self.header_block = [*(self.header_block or ()), frame]
        if "END_HEADERS" not in frame.flags:
            return
        first, block = self.header_block[0], b"".join(part.data for part in self.header_block)
        self.header_block = None
        stream_id = first.stream_id
        assert stream_id not in self.stream_windows, "a stream id is used twice"
        first.fields = self.decoder.decode(block, raw=True)
        first.block = block
        assert [tuple(pair) for pair in first.fields] == self.requests[stream_id].fields
        ended = "END_STREAM" in first.flags
        assert ended == (self.requests[stream_id].body == b""), "END_STREAM is on the request's last frame"
        if not (ended and self.requests[stream_id].ended):
            self.open_streams.add(stream_id)
        assert len(self.open_streams) <= self.stream_limit, "a stream past the peer's limit"
        self.stream_windows[stream_id] = self.initial_window

    def settings_are_in_force(self, entries):
        self.stream_limit = self.stream_limit or self.limits.default_stream_limit
        for code, value in entries:
            if code == frames.MAX_CONCURRENT_STREAMS:
                self.stream_limit = value
            elif code == frames.MAX_FRAME_SIZE:
                self.max_frame_size = value
            elif code == frames.HEADER_TABLE_SIZE:
                self.decoder.max_allowed_table_size = value
            elif code == frames.INITIAL_WINDOW_SIZE:
                for stream_id in self.stream_windows:
                    self.stream_windows[stream_id] += value - self.initial_window
                self.initial_window = value

    # What the engine tells.

    def take_events(self, events):
        for event in events:
            assert not (self.events and isinstance(self.events[-1], ConnectionEnded)), (
                "an event after the last"
            )
            assert isinstance(event, StreamEnded | GoawayReceived | PingAcknowledged | ConnectionEnded)
            self.events.append(event)
            if isinstance(event, StreamEnded):
                self.take_outcome(event)
        return events

    def take_outcome(self, ended):
        request = self.requests[ended.stream_id]
        assert ended.tag is request.tag
        assert ended.tag not in self.outcomes, f"{ended.tag} ended twice"
        assert ended.tag not in self.given_up, f"{ended.tag} was given up"
        self.outcomes[ended.tag] = ended
        if ended.status is not None:
            assert 200 <= ended.status <= 599
            assert ended.processed is True
        else:
            assert ended.processed in (False, None)
            assert ended.reason, "a stream without a verdict ends with a reason"
        assert "\n" not in ended.reason
        assert len(ended.body) <= self.limits.body_octets

    # The ends.

    def assert_alive(self):
        """The connection still works: a PING is answered, and nothing was said about closing."""
        assert not self.engine.closed
        self.now += 1.0
        self.server(frames.ping(b"alive???"))
        sent = self.sent()
        assert any(isinstance(f, PingFrame) and f.opaque_data == b"alive???" for f in sent)
        assert not any(isinstance(f, GoAwayFrame) for f in sent)

    def assert_connection_error(self, *codes):
        """The engine has closed the connection with one of these codes, and told so last."""
        assert self.engine.closed
        assert self.engine.room() == 0
        ended = self.events[-1]
        assert isinstance(ended, ConnectionEnded)
        assert ended.error_code in codes, f"{ErrorCode(ended.error_code)!r}: {ended.reason}"
        assert ended.reason
        last = self.sent()[-1]
        assert isinstance(last, GoAwayFrame)
        assert last.error_code == ended.error_code
        return ended

    def assert_stream_error(self, stream_id, *codes):
        """The engine has reset this one stream, its outcome is without a verdict, the others live."""
        ended = self.outcome(stream_id)
        assert ended is not None
        assert ended.status is None
        assert ended.processed is None
        assert ended.error_code in codes
        assert codes_of_resets(self.sent(), stream_id) in ([code] for code in codes)
        assert not self.engine.closed

    def finish(self):
        """Lose the connection; now each request must have its one outcome."""
        if self.engine is None:
            return
        self.take_octets()
        self.take_events(self.tell("connection_lost", "the test is over"))
        assert self.engine.closed
        assert self.engine.streams_open == 0
        assert isinstance(self.events[-1], ConnectionEnded)
        tags = {request.tag for request in self.requests.values()}
        assert set(self.outcomes) == tags - self.given_up


def codes_of_resets(sent, stream_id):
    return [f.error_code for f in sent if isinstance(f, RstStreamFrame) and f.stream_id == stream_id]


def kinds(sent):
    """The types of these frames, by name: a short way to assert what was sent."""
    return [type(frame).__name__.removesuffix("Frame") for frame in sent]
