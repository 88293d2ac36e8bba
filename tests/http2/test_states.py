"""Every state of a stream with every type of frame (RFC 9113 §5.1): all of a small table."""

import pytest

from fastpush.http2 import ErrorCode

from . import frames
from .frames import END_HEADERS, END_STREAM, raw, rst_stream, settings, window_update
from .story import codes_of_resets, kinds

# What comes of it:
NOTHING = "nothing is said, and no outcome changes"
ACCEPTED = "taken in, the stream goes on"
ANSWER = "the answer: status 200"
RESET = "the stream ends as unknown"
VERDICT = "the stream ends with the status that came before"
MALFORMED = "a stream error PROTOCOL_ERROR"
CLOSED = "a stream or a connection error STREAM_CLOSED"
ERROR = "a connection error PROTOCOL_ERROR"

FRAMES = {
    "DATA": lambda stream_id: raw(frames.DATA, 0, stream_id, b"x"),
    "HEADERS": lambda stream_id: raw(frames.HEADERS, END_HEADERS | END_STREAM, stream_id, b"\x88"),
    "PRIORITY": lambda stream_id: raw(frames.PRIORITY, 0, stream_id, bytes(5)),
    "RST_STREAM": lambda stream_id: raw(frames.RST_STREAM, 0, stream_id, b"\0\0\0\x08"),
    "SETTINGS": lambda stream_id: raw(frames.SETTINGS, 0, stream_id, bytes(6)),
    "PUSH_PROMISE": lambda stream_id: raw(
        frames.PUSH_PROMISE, END_HEADERS, stream_id, b"\x00\x00\x00\x02\x82"
    ),
    "PING": lambda stream_id: raw(frames.PING, 0, stream_id, bytes(8)),
    "GOAWAY": lambda stream_id: raw(frames.GOAWAY, 0, stream_id, bytes(8)),
    "WINDOW_UPDATE": lambda stream_id: window_update(stream_id, 1),
    "CONTINUATION": lambda stream_id: raw(frames.CONTINUATION, END_HEADERS, stream_id, b"\x88"),
    "unknown": lambda stream_id: raw(0xBB, 0xFF, stream_id, b"?"),
}
ON_NO_STREAM = dict.fromkeys(("SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "CONTINUATION"), ERROR)
ANYWHERE = ON_NO_STREAM | {"PRIORITY": NOTHING, "unknown": NOTHING}

TABLE = {
    "idle": {"DATA": ERROR, "HEADERS": ERROR, "RST_STREAM": ERROR, "WINDOW_UPDATE": ERROR},
    "the server's own": {"DATA": ERROR, "HEADERS": ERROR, "RST_STREAM": ERROR, "WINDOW_UPDATE": ERROR},
    "open, the body waits": {
        "DATA": MALFORMED,
        "HEADERS": ANSWER,
        "RST_STREAM": RESET,
        "WINDOW_UPDATE": ACCEPTED,
    },
    "half-closed (local)": {
        "DATA": MALFORMED,
        "HEADERS": ANSWER,
        "RST_STREAM": RESET,
        "WINDOW_UPDATE": ACCEPTED,
    },
    "interim response came": {
        "DATA": MALFORMED,
        "HEADERS": ANSWER,
        "RST_STREAM": RESET,
        "WINDOW_UPDATE": ACCEPTED,
    },
    "status came": {"DATA": ACCEPTED, "HEADERS": VERDICT, "RST_STREAM": VERDICT, "WINDOW_UPDATE": ACCEPTED},
    "closed by END_STREAM": {
        "DATA": CLOSED,
        "HEADERS": CLOSED,
        "RST_STREAM": NOTHING,
        "WINDOW_UPDATE": NOTHING,
    },
    "closed by RST_STREAM": {
        "DATA": CLOSED,
        "HEADERS": CLOSED,
        "RST_STREAM": NOTHING,
        "WINDOW_UPDATE": NOTHING,
    },
    "given up by us": {"DATA": NOTHING, "HEADERS": NOTHING, "RST_STREAM": NOTHING, "WINDOW_UPDATE": NOTHING},
    "refused by GOAWAY": {
        "DATA": NOTHING,
        "HEADERS": NOTHING,
        "RST_STREAM": NOTHING,
        "WINDOW_UPDATE": NOTHING,
    },
}


def arrive_at(story, state):
    """Bring a stream into this state; return its id."""
    story.start(max_concurrent_streams=10, initial_window_size=0 if "waits" in state else 65_535)
    (stream_id,) = story.open()
    match state:
        case "idle":
            return 99
        case "the server's own":
            return 2
        case "interim response came":
            story.server(story.frames.headers(stream_id, 100))
        case "status came":
            story.server(story.frames.headers(stream_id, 410))
        case "closed by END_STREAM":
            story.server(story.frames.accept(stream_id))
        case "closed by RST_STREAM":
            story.server(rst_stream(stream_id, ErrorCode.INTERNAL_ERROR))
        case "given up by us":
            story.give_up(stream_id)
        case "refused by GOAWAY":
            story.server(frames.goaway(0))
    story.sent()
    return stream_id


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("state", TABLE)
def test_each_frame_in_each_state(story, state, frame):
    stream_id = arrive_at(story, state)
    before = dict(story.outcomes)
    expected = (ANYWHERE | TABLE[state])[frame]
    events = story.server(FRAMES[frame](stream_id))

    if expected is ERROR:
        story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
        return
    if expected is CLOSED and story.engine.closed:
        story.assert_connection_error(ErrorCode.STREAM_CLOSED)
        return
    sent = story.sent()
    resets = codes_of_resets(sent, stream_id)
    if expected is NOTHING:
        assert events == []
        assert sent == []
    elif expected is CLOSED:
        assert events == []
        assert resets == [ErrorCode.STREAM_CLOSED]
    elif expected is ACCEPTED:
        assert events == []
        assert resets == []
        assert story.engine.streams_open == 1
    else:
        (ended,) = events
        status, error_code = {
            ANSWER: (200, None),
            RESET: (None, ErrorCode.CANCEL),
            VERDICT: (410, ended.error_code),
            MALFORMED: (None, ErrorCode.PROTOCOL_ERROR),
        }[expected]
        assert (ended.status, ended.error_code) == (status, error_code)
        assert resets == ([ErrorCode.PROTOCOL_ERROR] if expected is MALFORMED else resets)
    if expected in (NOTHING, CLOSED, ACCEPTED):
        assert story.outcomes == before
    story.assert_alive()


@pytest.mark.parametrize("state", TABLE)
def test_each_state_at_the_end(story, state):
    """Whatever state a stream is in when the connection is lost, it has one outcome then."""
    arrive_at(story, state)
    story.finish()
    told = 0 if state == "given up by us" else 1
    assert len(story.outcomes) == told


@pytest.mark.parametrize("frame", [name for name in FRAMES if name not in ON_NO_STREAM])
def test_each_stream_frame_on_stream_0(story, frame):
    story.start()
    story.open()
    story.server(FRAMES[frame](0))
    if frame in ("WINDOW_UPDATE", "unknown"):
        story.assert_alive()
        assert kinds(story.sent()) == []
    else:
        story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("frame", FRAMES)
def test_each_frame_before_settings(story, frame):
    """§3.4: only SETTINGS may come first."""
    story.begin()
    story.server(FRAMES[frame](0))
    if frame == "SETTINGS":
        story.server(settings())
        story.assert_alive()
    else:
        story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
