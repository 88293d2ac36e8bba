"""The 57 cases that h2spec has for a client (github.com/summerwind/h2spec, client/), made anew.

They are grouped by the sections of RFC 9113. Each sends its frames to an engine with one request in
flight on stream 1, and says what must come of it. Where the RFC leaves a choice between a stream error
and a connection error (§5.4.1) both are taken.
"""

from fastpush.http2 import ErrorCode

from .frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    data,
    header_block,
    ping,
    priority,
    raw,
    rst_stream,
    settings,
    window_update,
)
from .story import codes_of_resets, kinds, script

PROTOCOL_ERROR = ErrorCode.PROTOCOL_ERROR
FRAME_SIZE_ERROR = ErrorCode.FRAME_SIZE_ERROR
FLOW_CONTROL_ERROR = ErrorCode.FLOW_CONTROL_ERROR
STREAM_CLOSED = ErrorCode.STREAM_CLOSED

OK = b"\x88"  # :status 200
LONG = [(b"x", b"x" * 100)] * 3


def answer(story):
    return story.frames.accept(1)


def cut_block(story, *, end_headers):
    block = story.frames.encoder.encode([(b":status", b"200"), *LONG])
    cuts = [1, len(block) // 2]
    return header_block(1, block, cuts=cuts, end_stream=True, end_headers=end_headers)


GOOD = {
    "3.4 sends a server connection preface": lambda _: b"",
    "4.1 sends a frame with an unknown type": lambda _: raw(0x16, 0, 0, bytes(8)),
    "4.1 sends a frame with an undefined flag": lambda _: raw(PING, 0x16, 0, bytes(8)),
    "4.1 sends a frame with the reserved bit": lambda _: raw(PING, 0, 0, bytes(8), reserved=True),
    "4.2 sends a DATA frame of 2**14 octets": lambda story: (
        story.frames.headers(1) + data(1, bytes(16_384), end_stream=True)
    ),
    "5.5 sends an unknown extension frame": lambda _: raw(0x16, 0, 1, bytes(8)),
    "6.10 sends multiple CONTINUATION frames": lambda story: cut_block(story, end_headers=True),
    "6.5.2 sends a SETTINGS frame with an unknown identifier": lambda _: settings((0xFF, 1)),
    "6.5.3 sends a SETTINGS frame without ACK": lambda _: settings(max_concurrent_streams=100),
    "6.7 sends a PING frame": lambda _: ping(b"\x00\x01\x02\x03\x04\x05\x06\x07"),
    "6.7 sends a PING frame with ACK": lambda _: ping(b"invalid\x00", ack=True),
}

CONNECTION_ERRORS = {
    "4.2 sends a HEADERS frame above SETTINGS_MAX_FRAME_SIZE": (
        lambda _: raw(HEADERS, END_HEADERS, 1, OK + b"\x88" * 16_384),
        FRAME_SIZE_ERROR,
    ),
    "4.3 sends an invalid header block": (
        lambda _: raw(HEADERS, END_HEADERS | END_STREAM, 1, b"\x40\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "5.1.1 sends an unexpected stream identifier": (
        lambda _: raw(HEADERS, END_HEADERS | END_STREAM, 101, OK),
        PROTOCOL_ERROR,
    ),
    "5.1 idle: sends a DATA frame": (lambda _: data(101, b"test", end_stream=True), PROTOCOL_ERROR),
    "5.1 idle: sends a RST_STREAM frame": (lambda _: rst_stream(101, 8), PROTOCOL_ERROR),
    "5.1 idle: sends a WINDOW_UPDATE frame": (lambda _: window_update(101, 100), PROTOCOL_ERROR),
    "5.1 idle: sends a CONTINUATION frame": (
        lambda _: raw(CONTINUATION, END_HEADERS, 101, OK),
        PROTOCOL_ERROR,
    ),
    "5.4.1 sends an invalid PING frame: the connection is closed": (
        lambda _: raw(PING, 0, 3, bytes(8)),
        PROTOCOL_ERROR,
    ),
    "5.4.1 sends an invalid PING frame: GOAWAY is received": (
        lambda _: raw(PING, 0, 0xFFFF, bytes(8)),
        PROTOCOL_ERROR,
    ),
    "6.1 sends a DATA frame on stream 0": (lambda _: raw(DATA, END_STREAM, 0, b"test"), PROTOCOL_ERROR),
    "6.1 sends a DATA frame with an invalid pad length": (
        lambda story: story.frames.headers(1) + raw(DATA, END_STREAM | PADDED, 1, b"\x06test"),
        PROTOCOL_ERROR,
    ),
    "6.2 sends a HEADERS frame without END_HEADERS, and PRIORITY": (
        lambda _: raw(HEADERS, 0, 1, OK) + priority(1),
        PROTOCOL_ERROR,
    ),
    "6.2 sends a HEADERS frame on stream 0": (lambda _: raw(HEADERS, END_HEADERS, 0, OK), PROTOCOL_ERROR),
    "6.2 sends a HEADERS frame with an invalid pad length": (
        lambda _: raw(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\x02" + OK),
        PROTOCOL_ERROR,
    ),
    "6.3 sends a PRIORITY frame on stream 0": (lambda _: raw(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    "6.4 sends a RST_STREAM frame on stream 0": (lambda _: raw(RST_STREAM, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "6.4 sends a RST_STREAM frame on an idle stream": (lambda _: rst_stream(3, 8), PROTOCOL_ERROR),
    "6.4 sends a RST_STREAM frame of 3 octets": (lambda _: raw(RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "6.5 sends a SETTINGS frame with ACK and payload": (
        lambda _: raw(SETTINGS, ACK, 0, bytes(1)),
        FRAME_SIZE_ERROR,
    ),
    "6.5 sends a SETTINGS frame on a stream": (lambda _: raw(SETTINGS, 0, 1, bytes(6)), PROTOCOL_ERROR),
    "6.5 sends a SETTINGS frame of 3 octets": (lambda _: raw(SETTINGS, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "6.5.2 sends an INITIAL_WINDOW_SIZE above the maximum": (
        lambda _: settings(initial_window_size=2**31),
        FLOW_CONTROL_ERROR,
    ),
    "6.5.2 sends a MAX_FRAME_SIZE below the initial value": (
        lambda _: settings(max_frame_size=16_383),
        PROTOCOL_ERROR,
    ),
    "6.5.2 sends a MAX_FRAME_SIZE above the maximum": (
        lambda _: settings(max_frame_size=16_777_216),
        PROTOCOL_ERROR,
    ),
    "6.7 sends a PING frame on a stream": (lambda _: raw(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "6.7 sends a PING frame of 6 octets": (lambda _: raw(PING, 0, 0, bytes(6)), FRAME_SIZE_ERROR),
    "6.8 sends a GOAWAY frame on a stream": (lambda _: raw(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "6.9 sends a WINDOW_UPDATE frame of 0": (lambda _: raw(WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "6.9 sends a WINDOW_UPDATE frame of 3 octets": (
        lambda _: raw(WINDOW_UPDATE, 0, 0, bytes(3)),
        FRAME_SIZE_ERROR,
    ),
    "6.9.1 raises the connection's window above 2**31-1": (
        lambda _: window_update(0, 2**31 - 1) * 2,
        FLOW_CONTROL_ERROR,
    ),
    "6.10 sends CONTINUATION followed by another frame": (
        lambda story: cut_block(story, end_headers=False) + data(1, b"test", end_stream=True),
        PROTOCOL_ERROR,
    ),
    "6.10 sends CONTINUATION on stream 0": (
        lambda _: raw(HEADERS, END_STREAM, 1, OK) + raw(CONTINUATION, END_HEADERS, 0),
        PROTOCOL_ERROR,
    ),
    "6.10 sends CONTINUATION after HEADERS with END_HEADERS": (
        lambda _: raw(HEADERS, END_HEADERS, 1, OK) + raw(CONTINUATION, END_HEADERS, 1),
        PROTOCOL_ERROR,
    ),
    "6.10 sends CONTINUATION after CONTINUATION with END_HEADERS": (
        lambda _: raw(HEADERS, 0, 1, OK) + raw(CONTINUATION, END_HEADERS, 1) * 2,
        PROTOCOL_ERROR,
    ),
    "6.10 sends CONTINUATION after DATA": (
        lambda story: story.frames.headers(1) + data(1, b"test") + raw(CONTINUATION, END_HEADERS, 1),
        PROTOCOL_ERROR,
    ),
}

EITHER_ERROR = {
    "4.2 sends a DATA frame above SETTINGS_MAX_FRAME_SIZE": (
        lambda story: story.frames.headers(1) + data(1, bytes(16_385)),
        FRAME_SIZE_ERROR,
    ),
    "6.3 sends a PRIORITY frame of 4 octets": (lambda _: raw(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    "6.9 sends a WINDOW_UPDATE frame of 0 on a stream": (
        lambda _: raw(WINDOW_UPDATE, 0, 1, bytes(4)),
        PROTOCOL_ERROR,
    ),
    "6.9.1 raises a stream's window above 2**31-1": (
        lambda _: window_update(1, 2**31 - 1) * 2,
        FLOW_CONTROL_ERROR,
    ),
    "5.1 closed by RST_STREAM: sends a DATA frame": (
        lambda _: rst_stream(1, 8) + data(1, b"x"),
        STREAM_CLOSED,
    ),
    "5.1 closed by RST_STREAM: sends a HEADERS frame": (
        lambda _: rst_stream(1, 8) + raw(HEADERS, END_HEADERS | END_STREAM, 1, OK),
        STREAM_CLOSED,
    ),
    "5.1 closed by RST_STREAM: sends a CONTINUATION frame": (
        lambda _: rst_stream(1, 8) + raw(CONTINUATION, END_HEADERS, 1, OK),
        PROTOCOL_ERROR,  # h2spec takes it as well as STREAM_CLOSED; no block is open (§6.10)
    ),
    "5.1 closed: sends a DATA frame": (lambda story: answer(story) + data(1, b"x"), STREAM_CLOSED),
    "5.1 closed: sends a HEADERS frame": (
        lambda story: answer(story) + raw(HEADERS, END_HEADERS | END_STREAM, 1, OK),
        STREAM_CLOSED,
    ),
    "5.1 closed: sends a CONTINUATION frame": (
        lambda story: answer(story) + raw(CONTINUATION, END_HEADERS, 1, OK),
        PROTOCOL_ERROR,
    ),
    "6.1 sends a DATA frame on a half-closed stream": (
        lambda story: story.frames.headers(1, end_stream=True) + data(1, b"test"),
        STREAM_CLOSED,
    ),
}


def test_there_are_57():
    assert len(GOOD) + len(CONNECTION_ERRORS) + len(EITHER_ERROR) == 57


@script(case=GOOD)
def test_good(story, case):
    story.start()
    story.open()
    expected = {"6.5.3": ["Settings"], "6.5.2": ["Settings"]}.get(case.split()[0], [])
    if ("PING" in case and "ACK" not in case) or "flag" in case or "reserved" in case:
        expected = ["Ping"]
    story.server(GOOD[case](story))
    assert kinds(story.sent()) == expected
    if story.outcome(1) is None:
        story.server(story.frames.accept(1))
    assert story.outcome(1).status == 200
    story.assert_alive()


@script(case=CONNECTION_ERRORS)
def test_connection_error(story, case):
    story.start()
    story.open()
    frames_sent, code = CONNECTION_ERRORS[case]
    story.server(frames_sent(story))
    story.assert_connection_error(code)
    assert story.outcome(1) is not None


@script(case=EITHER_ERROR)
def test_stream_or_connection_error(story, case):
    story.start()
    story.open()
    frames_sent, code = EITHER_ERROR[case]
    story.server(frames_sent(story))
    if story.engine.closed:
        story.assert_connection_error(code)
    else:
        assert codes_of_resets(story.sent(), 1) == [code]
        story.assert_alive()
    assert story.outcome(1) is not None
