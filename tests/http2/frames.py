"""Any frame that a server may send, right or wrong, as octets.

Good frames are built by hyperframe and hpack, which know nothing of our engines. `raw` builds the
others: its header says what it is told to say.
"""

import itertools
import struct

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6
MAX_STREAM_ID = MAX_WINDOW = 2**31 - 1


def raw(kind, flags=0, stream_id=0, payload=b"", *, length=None, reserved=False):
    """One frame octet by octet (RFC 9113 §4.1). `length` may lie."""
    length = len(payload) if length is None else length
    return (
        struct.pack(">HBBBL", length >> 8, length & 0xFF, kind, flags, stream_id | reserved << 31) + payload
    )


def settings(*entries, **by_name):
    """SETTINGS with entries in this order: pairs of numbers, or the RFC's names in lower case."""
    named = [(globals()[name.upper()], value) for name, value in by_name.items()]
    return raw(SETTINGS, 0, 0, b"".join(struct.pack(">HL", *entry) for entry in [*entries, *named]))


def settings_ack():
    return raw(SETTINGS, ACK)


def ping(opaque=b"server's", *, ack=False):
    return PingFrame(0, opaque, flags=["ACK"] if ack else []).serialize()


def goaway(last_stream_id, error_code=0, debug_data=b""):
    return GoAwayFrame(0, last_stream_id, error_code, debug_data).serialize()


def rst_stream(stream_id, error_code):
    return RstStreamFrame(stream_id, error_code).serialize()


def window_update(stream_id, increment):
    return WindowUpdateFrame(stream_id, increment).serialize()


def priority(stream_id, depends_on=0):
    return PriorityFrame(stream_id, depends_on, 15).serialize()


def data(stream_id, octets=b"", *, end_stream=False, pad=None):
    frame = DataFrame(stream_id, octets, pad_length=pad or 0)
    if end_stream:
        frame.flags.add("END_STREAM")
    if pad is not None:
        frame.flags.add("PADDED")
    return frame.serialize()


def header_block(
    stream_id, block, *, end_stream=False, pad=None, cuts=(), kind=HeadersFrame, end_headers=True, **kw
):
    """HEADERS or PUSH_PROMISE with this block, cut into CONTINUATION frames at the offsets `cuts`."""
    edges = [0, *cuts, len(block)]
    parts = [block[start:end] for start, end in itertools.pairwise(edges)]
    first = kind(stream_id, data=parts[0], pad_length=pad or 0, **kw)
    frames = [first, *(ContinuationFrame(stream_id, part) for part in parts[1:])]
    if pad is not None:
        first.flags.add("PADDED")
    if end_stream:
        first.flags.add("END_STREAM")
    if end_headers:
        frames[-1].flags.add("END_HEADERS")
    return b"".join(frame.serialize() for frame in frames)


class ServerFrames:
    """The frames whose octets depend on the connection: those with a header block."""

    def __init__(self):
        self.encoder = hpack.Encoder()

    def headers(self, stream_id, status=200, fields=(), *, raw_fields=None, **kw):
        """A response's HEADERS. `raw_fields` replaces all of its fields, `:status` too."""
        if raw_fields is None:
            raw_fields = [(b":status", str(status).encode()), *fields]
        return header_block(stream_id, self.encoder.encode(raw_fields), **kw)

    def trailers(self, stream_id, fields=((b"x-checksum", b"1"),)):
        return header_block(stream_id, self.encoder.encode(list(fields)), end_stream=True)

    def accept(self, stream_id):
        """What APNs answers to a notification it takes: 200, an apns-id, no body."""
        return self.headers(stream_id, 200, [(b"apns-id", apns_id(stream_id))], end_stream=True)

    def reject(self, stream_id, status=400, reason=b"BadDeviceToken"):
        body = b'{"reason":"' + reason + b'"}'
        return self.headers(stream_id, status, [(b"apns-id", apns_id(stream_id))]) + data(
            stream_id, body, end_stream=True
        )

    def push_promise(self, stream_id, promised_stream_id=2):
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a.b")]
        return header_block(
            stream_id,
            self.encoder.encode(fields),
            kind=PushPromiseFrame,
            promised_stream_id=promised_stream_id,
        )


def apns_id(stream_id):
    return b"%08x-0000-4000-8000-000000000000" % stream_id
