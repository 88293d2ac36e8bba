"""Rows 52 to 57 of docs/nasty-servers.md: frames of odd and wrong forms (RFC 9113 §3.4, §4, §6).

Row 56, every frame cut at every octet, is test_cutting.py.
"""

from fastpush.http2 import ErrorCode

from . import frames
from .frames import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, ping, raw, settings
from .story import IN_FLIGHT, kinds, script


@script(streams=IN_FLIGHT)
def test_row_52_unknown_types_flags_and_the_reserved_bit(story, streams):
    """§4.1, §5.5: ignored."""
    story.start()
    stream_ids = story.open(streams)
    story.server(
        *(
            raw(kind, 0xFF, stream, b"anything")
            for kind in (0x0A, 0x0B, 0x0C, 0x10, 0xFF)
            for stream in (0, 1, 2, 99)
        ),
        raw(frames.PING, 0xFE, 0, b"12345678", reserved=True),
        raw(frames.SETTINGS, 0xFE, 0),
        raw(frames.WINDOW_UPDATE, 0xFF, 0, b"\x80\x00\x00\x01", reserved=True),
        raw(frames.RST_STREAM, 0xFF, stream_ids[0], bytes(4), reserved=True),
        raw(frames.PRIORITY, 0xFF, 99, bytes(5)),
    )
    assert kinds(story.sent()) == ["Ping", "Settings"]
    for stream_id in stream_ids[1:]:
        story.server(raw(HEADERS, 0xD0 & ~0x20 | END_HEADERS | END_STREAM, stream_id, b"\x88", reserved=True))
        assert story.outcome(stream_id).status == 200
    story.assert_alive()


@script(streams=(1, 100), kind=(*range(10), 0x42))
def test_row_53_a_frame_above_our_maximum_is_refused_by_its_header(story, streams, kind):
    """§4.2: nobody waits for sixteen megabytes to find that they are too many."""
    story.start()
    story.open(streams)
    story.server(raw(kind, 0, 0 if kind in (4, 6, 7) else 1, length=16_385))
    story.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR)
    assert len(story.outcomes) == streams


WRONG_FORMS = {
    "DATA on stream 0": (raw(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA padded by its whole length": (raw(DATA, PADDED, 1, b"\x04abc"), ErrorCode.PROTOCOL_ERROR),
    "DATA padded by more than its length": (raw(DATA, PADDED, 1, b"\xffabc"), ErrorCode.PROTOCOL_ERROR),
    "DATA padded, without a pad length": (raw(DATA, PADDED, 1), ErrorCode.FRAME_SIZE_ERROR),
    "HEADERS on stream 0": (raw(HEADERS, END_HEADERS, 0, b"\x88"), ErrorCode.PROTOCOL_ERROR),
    "HEADERS padded by its length": (
        raw(HEADERS, END_HEADERS | PADDED, 1, b"\x02\x88"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "HEADERS padded, without a pad length": (
        raw(HEADERS, END_HEADERS | PADDED, 1),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "HEADERS with a priority of four octets": (
        raw(HEADERS, END_HEADERS | 0x20, 1, bytes(4)),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "PRIORITY on stream 0": (raw(frames.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM of three octets": (raw(frames.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "RST_STREAM of five octets": (raw(frames.RST_STREAM, 0, 1, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "RST_STREAM on stream 0": (raw(frames.RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "PING of seven octets": (raw(frames.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "PING of nine octets": (raw(frames.PING, ACK, 0, bytes(9)), ErrorCode.FRAME_SIZE_ERROR),
    "PING on a stream": (raw(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE of three octets": (raw(frames.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of five octets": (raw(frames.WINDOW_UPDATE, 0, 1, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "CONTINUATION on stream 0": (raw(frames.CONTINUATION, END_HEADERS, 0), ErrorCode.PROTOCOL_ERROR),
}


@script(streams=(1, 100), form=WRONG_FORMS)
def test_row_54_frames_of_a_wrong_form(story, streams, form):
    """§6.1 to §6.10, each as its section says."""
    story.start()
    story.open(streams)
    octets, code = WRONG_FORMS[form]
    story.server(octets)
    story.assert_connection_error(code)
    assert {ended.processed for ended in story.outcomes.values()} == {None}
    assert len(story.outcomes) == streams


@script(length=(0, 4, 6))
def test_row_54_priority_of_a_wrong_length(story, length):
    """§6.3: a stream error FRAME_SIZE_ERROR, which may end the connection (§5.4.1)."""
    story.start()
    (stream_id,) = story.open()
    story.server(raw(frames.PRIORITY, 0, stream_id, bytes(length)))
    if story.engine.closed:
        story.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR)
    else:
        story.assert_stream_error(stream_id, ErrorCode.FRAME_SIZE_ERROR)


@script(streams=IN_FLIGHT)
def test_row_55_a_flood_of_pings(story, streams):
    """§10.5: a hundred a second are acknowledged in order, one more ends the connection."""
    story.start()
    story.open(streams)
    story.server(*(ping(b"%08d" % number) for number in range(100)))
    assert [frame.opaque_data for frame in story.sent()] == [b"%08d" % number for number in range(100)]
    story.server(ping())
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)
    assert len(story.outcomes) == streams


@script(streams=IN_FLIGHT)
def test_row_55_an_acknowledgement_of_a_ping_that_was_never_sent(story, streams):
    story.start()
    story.open(streams)
    assert story.server(ping(b"whatever", ack=True)) == []
    story.tell("ping", b"ours....")
    story.sent()
    assert story.server(ping(b"not ours", ack=True)) == []
    assert [event.opaque for event in story.server(ping(b"ours....", ack=True))] == [b"ours...."]
    assert story.server(ping(b"ours....", ack=True)) == []
    story.assert_alive()


STRANGERS = {
    "HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n",
    "SMTP": b"220 mail.example.com ESMTP\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a TLS alert in clear": b"\x15\x03\x03\x00\x02\x02\x28" + bytes(2),
    "zeros": bytes(9),
    "PING first": ping(),
    "an acknowledgement first": raw(frames.SETTINGS, ACK),
    "GOAWAY first": frames.goaway(0),
    "an unknown frame first": raw(0x42, 0, 0, b"?"),
    "SETTINGS on a stream first": raw(frames.SETTINGS, 0, 1),
    "a client's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings(),
}


@script(stranger=STRANGERS)
def test_row_57_a_peer_that_does_not_speak_http_2(story, stranger):
    """§3.4: the first frame is SETTINGS. Told after nine octets, in words that an operator understands."""
    story.begin()
    story.server(STRANGERS[stranger][:9])
    story.server(STRANGERS[stranger][9:])
    ended = story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert "peer does not speak HTTP/2" in ended.reason
