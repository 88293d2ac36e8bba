"""Rows 32 to 40 of docs/nasty-servers.md: header blocks, their compression, their fields.

RFC 9113 §4.3, §6.10, §8.1.1, §8.2, §8.3; RFC 7541 where it says so.
"""

from fastpush.http2 import ErrorCode

from . import frames
from .frames import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, data, header_block, ping, raw, settings
from .story import IN_FLIGHT, script

ANSWER = ((b":status", b"400"), (b"apns-id", b"0badc0de"), (b"content-length", b"2"))


@script(streams=IN_FLIGHT)
def test_row_32_a_header_block_cut_at_each_octet(story, streams):
    story.start()
    stream_ids = story.open(streams)
    length = len(story.frames.encoder.encode(ANSWER))  # from here on it is three indexes
    for stream_id in stream_ids:
        block = b"\x00\x07apns-id\x0b" + b"%011d" % stream_id
        block = story.frames.encoder.encode([(b":status", b"200")]) + block
        cut = 1 + stream_id % (len(block) - 1)
        story.server(header_block(stream_id, block, cuts=[cut], end_stream=True))
        assert story.outcome(stream_id).status == 200
        assert story.outcome(stream_id).field(b"apns-id") == b"%011d" % stream_id
    assert length > 3


@script()
def test_row_32_every_cut_of_one_block(story):
    story.start()
    block = story.frames.encoder.encode(ANSWER)
    story.open(len(block) - 1)
    for cut, stream_id in enumerate(story.requests, start=1):
        whole = block if cut == 1 else story.frames.encoder.encode([*ANSWER, (b"n", b"%d" % cut)])
        story.server(header_block(stream_id, whole, cuts=[min(cut, len(whole) - 1)]))
        story.server(data(stream_id, b"{}", end_stream=True))
        assert story.outcome(stream_id).status == 400
        assert story.outcome(stream_id).body == b"{}"


@script(streams=IN_FLIGHT)
def test_row_32_a_block_in_pieces_of_one_octet(story, streams):
    """Eight CONTINUATION frames are taken; the ninth is too many (row 33)."""
    story.start()
    stream_ids = story.open(streams)
    block = b"\x88\x00\x04name\x01v"  # nine octets: an index, and a literal (RFC 7541 §6.1, §6.2.2)
    for stream_id in stream_ids:
        story.server(header_block(stream_id, block, cuts=range(1, 9), end_stream=True))
        assert story.outcome(stream_id).status == 200
        assert story.outcome(stream_id).fields == ((b"name", b"v"),)


@script(streams=IN_FLIGHT, piece=(b"x", b""))
def test_row_33_continuation_without_end(story, streams, piece):
    """§10.5.1: whether the frames carry octets or none."""
    story.start()
    stream_ids = story.open(streams)
    story.server(raw(HEADERS, END_STREAM, stream_ids[0], b"\x88"))
    for _ in range(8):
        story.server(raw(CONTINUATION, 0, stream_ids[0], piece))
        assert not story.engine.closed
    story.server(raw(CONTINUATION, 0, stream_ids[0], piece))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)
    assert {ended.processed for ended in story.outcomes.values()} == {None}
    assert len(story.outcomes) == streams


@script(
    streams=(1, 100),
    intruder=(
        ping(),
        settings(),
        data(1),
        frames.window_update(0, 1),
        frames.goaway(0),
        frames.rst_stream(1, 0),
        frames.priority(1),
        raw(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88"),
        raw(CONTINUATION, END_HEADERS, 3, b""),
        raw(CONTINUATION, END_HEADERS, 0, b""),
        raw(0x20, 0, 0, b"unknown"),
    ),
)
def test_row_34_another_frame_inside_a_header_block(story, streams, intruder):
    """§4.3, §6.10: even a frame of an unknown type."""
    story.start()
    story.open(streams)
    story.server(raw(HEADERS, END_STREAM, 1, b"\x88"), intruder)
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert len(story.outcomes) == streams


@script(streams=IN_FLIGHT)
def test_row_34_continuation_without_a_block(story, streams):
    story.start()
    story.open(streams)
    story.server(raw(CONTINUATION, END_HEADERS, 1, b"\x88"))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)


@script(streams=IN_FLIGHT)
def test_row_35_a_header_list_that_unpacks_to_twenty_megabytes(story, streams):
    """RFC 7541 §7.3: nine thousand octets name one entry of 4,000 again and again."""
    story.start()
    stream_ids = story.open(streams)
    entry = b"\x40\x04bomb\x7f\xa1\x1e" + b"b" * 4000  # literal with indexing, §6.2.1: now at index 62
    block = b"\x88" + entry + b"\xbe" * 5000
    story.server(header_block(stream_ids[0], block, end_stream=True))
    if story.engine.closed:
        story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.COMPRESSION_ERROR)
        assert len(story.outcomes) == streams
        return
    assert story.outcome(stream_ids[0]).error_code is not None
    for stream_id in stream_ids[1:]:
        story.server(header_block(stream_id, b"\x88\xbe", end_stream=True))  # the table is still right
        assert story.outcome(stream_id).field(b"bomb") == b"b" * 4000
    story.assert_alive()


COMPRESSION_FAULTS = {
    "index 0": b"\x80",
    "an index beyond the table": b"\xff\x80\x01",
    "a literal whose name is beyond the table": b"\x7f\x80\x01\x01x",
    "an integer above 2**32": b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "an integer without end": b"\xff" + b"\x80" * 30,
    "a Huffman string that holds EOS": b"\x00\x01n\x84\xff\xff\xff\xff",
    "Huffman padding of eight bits": b"\x00\x01n\x82\x1f\xff",
    "Huffman padding that is not ones": b"\x00\x01n\x81\x18",
    "a string longer than the block": b"\x00\x01n\x10abc",
    "a literal that ends after its name": b"\x00\x01n",
}


@script(streams=(1, 100), fault=COMPRESSION_FAULTS)
def test_row_36_a_block_that_does_not_decode(story, streams, fault):
    """§4.3: the tables are apart for ever, so the connection ends with COMPRESSION_ERROR."""
    story.start()
    stream_ids = story.open(streams)
    story.server(header_block(stream_ids[0], b"\x88" + COMPRESSION_FAULTS[fault], end_stream=True))
    story.assert_connection_error(ErrorCode.COMPRESSION_ERROR)
    assert {(ended.status, ended.processed) for ended in story.outcomes.values()} == {(None, None)}
    assert len(story.outcomes) == streams


SIZE_UPDATE_FAULTS = {
    "above our limit of 4,096": b"\x3f\xe2\x1f\x88",
    "far above it": b"\x3f\xff\xff\xff\xff\x0f\x88",
    "after a field": b"\x88\x20",
}


@script(streams=(1, 100), fault=SIZE_UPDATE_FAULTS)
def test_row_37_a_table_size_update_that_may_not_be(story, streams, fault):
    """RFC 7541 §4.2: at most our SETTINGS_HEADER_TABLE_SIZE, and only at the start of a block."""
    story.start()
    stream_ids = story.open(streams)
    story.server(header_block(stream_ids[0], SIZE_UPDATE_FAULTS[fault], end_stream=True))
    story.assert_connection_error(ErrorCode.COMPRESSION_ERROR)
    assert len(story.outcomes) == streams


@script(streams=IN_FLIGHT)
def test_row_37_size_updates_within_the_limit(story, streams):
    story.start()
    for stream_id in story.open(streams):
        story.server(header_block(stream_id, b"\x20\x3f\xe1\x1f\x88", end_stream=True))
        assert story.outcome(stream_id).status == 200


@script(streams=(2, 100, 1000))
def test_row_38_headers_on_a_stream_we_reset_still_fill_the_table(story, streams):
    """§4.3, §5.1: they are decoded, and then ignored; the next block counts on it."""
    story.start()
    first, *others = story.open(streams)
    assert story.give_up(first)
    story.server(header_block(first, b"\x88\x40\x07apns-id\x04late", end_stream=True))
    assert story.engine.late_responses == 1
    for stream_id in others:
        story.server(header_block(stream_id, b"\x88\xbe", end_stream=True))
        assert story.outcome(stream_id).field(b"apns-id") == b"late"
    assert len(story.outcomes) == streams - 1
    story.assert_alive()


@script()
def test_row_38_only_a_final_response_is_a_late_one(story):
    """It is counted once, whatever its status, and whatever follows it."""
    story.start()
    (stream_id,) = story.open()
    assert story.give_up(stream_id)
    story.server(story.frames.headers(stream_id, 103))
    assert story.engine.late_responses == 0
    story.server(story.frames.headers(stream_id, 410), story.frames.trailers(stream_id))
    assert story.engine.late_responses == 1
    story.assert_alive()


MALFORMED_FIELDS = {
    "no :status": [(b"apns-id", b"1")],
    "no fields at all": [],
    ":status twice": [(b":status", b"200"), (b":status", b"200")],
    ":status abc": [(b":status", b"abc")],
    ":status empty": [(b":status", b"")],
    ":status of two digits": [(b":status", b"20")],
    ":status of four digits": [(b":status", b"2000")],
    ":status 000": [(b":status", b"000")],
    ":status 099": [(b":status", b"099")],
    ":status 600": [(b":status", b"600")],
    ":status with a space": [(b":status", b"200 ")],
    ":status +20": [(b":status", b"+20")],
    "a pseudo-header field after a regular one": [(b"a", b"1"), (b":status", b"200")],
    "a request's pseudo-header field": [(b":status", b"200"), (b":path", b"/")],
    "an unknown pseudo-header field": [(b":status", b"200"), (b":reason", b"OK")],
    "an upper-case name": [(b":status", b"200"), (b"Apns-Id", b"1")],
    "an empty name": [(b":status", b"200"), (b"", b"1")],
    "a space in a name": [(b":status", b"200"), (b"apns id", b"1")],
    "a colon in a name": [(b":status", b"200"), (b"apns:id", b"1")],
    "a name of 8 bits": [(b":status", b"200"), (b"apns-\xe9", b"1")],
    "NUL in a value": [(b":status", b"200"), (b"a", b"1\x002")],
    "CR in a value": [(b":status", b"200"), (b"a", b"1\r2")],
    "LF in a value": [(b":status", b"200"), (b"a", b"1\n2")],
    "a value that begins with a space": [(b":status", b"200"), (b"a", b" 1")],
    "a value that ends with a tab": [(b":status", b"200"), (b"a", b"1\t")],
    "connection": [(b":status", b"200"), (b"connection", b"close")],
    "keep-alive": [(b":status", b"200"), (b"keep-alive", b"5")],
    "proxy-connection": [(b":status", b"200"), (b"proxy-connection", b"close")],
    "transfer-encoding": [(b":status", b"200"), (b"transfer-encoding", b"chunked")],
    "upgrade": [(b":status", b"200"), (b"upgrade", b"h3")],
}


@script(streams=(1, 100), fault=MALFORMED_FIELDS)
def test_row_39_a_malformed_response_fails_alone(story, streams, fault):
    """§8.1.1: a stream error PROTOCOL_ERROR; without a status its outcome is unknown; all others live."""
    one_is_malformed(story, streams, fault)


@script(streams=(1000,), fault=("connection", ":status abc"))
def test_row_39_one_of_a_thousand_is_malformed(story, streams, fault):
    one_is_malformed(story, streams, fault)


def one_is_malformed(story, streams, fault):
    story.start()
    stream_ids = story.open(streams)
    malformed = story.frames.headers(stream_ids[0], raw_fields=MALFORMED_FIELDS[fault])
    story.server(malformed, *map(story.frames.accept, stream_ids[1:]))
    story.assert_stream_error(stream_ids[0], ErrorCode.PROTOCOL_ERROR)
    assert [story.outcome(stream_id).status for stream_id in stream_ids[1:]] == [200] * (streams - 1)
    assert story.engine.streams_open == 0
    story.assert_alive()


@script(fault=MALFORMED_FIELDS)
def test_row_39_a_malformed_response_with_end_stream(story, fault):
    story.start()
    first, second = story.open(2)
    story.server(story.frames.headers(first, raw_fields=MALFORMED_FIELDS[fault], end_stream=True))
    ended = story.outcome(first)
    assert (ended.status, ended.processed, ended.error_code) == (None, None, ErrorCode.PROTOCOL_ERROR)
    story.server(story.frames.accept(second))
    assert story.outcome(second).status == 200
    story.assert_alive()


GOOD_FIELDS = {
    "an empty value": [(b"a", b"")],
    "8 bits in a value": [(b"a", "Grüße".encode())],
    "inner spaces": [(b"a", b"1 2\t3")],
    "te: trailers": [(b"te", b"trailers")],
    "one field twice": [(b"a", b"1"), (b"a", b"2")],
    "all token characters": [(b"!#$%&'*+-.^_`|~09az", b"1")],
}


@script(case=GOOD_FIELDS)
def test_row_39_what_looks_odd_and_is_good(story, case):
    story.start()
    (stream_id,) = story.open()
    fields = GOOD_FIELDS[case]
    story.server(story.frames.headers(stream_id, 200, fields, end_stream=True))
    assert story.outcome(stream_id).status == 200
    assert story.outcome(stream_id).fields == tuple(fields)


LENGTH_FAULTS = {
    "more octets than announced": (b"2", [b"{}", b"x"]),
    "fewer octets than announced": (b"20", [b"{}"]),
    "octets where none were announced": (b"0", [b"{}"]),
}


@script(streams=IN_FLIGHT, fault=LENGTH_FAULTS)
def test_row_40_a_content_length_that_differs_from_the_body(story, streams, fault):
    """§8.1.1: a stream error, but the status was given and still decides."""
    story.start()
    stream_ids = story.open(streams)
    length, parts = LENGTH_FAULTS[fault]
    story.server(
        story.frames.headers(stream_ids[0], 410, [(b"content-length", length)]),
        *(data(stream_ids[0], part, end_stream=part is parts[-1]) for part in parts),
    )
    ended = story.outcome(stream_ids[0])
    assert (ended.status, ended.processed, ended.error_code) == (410, True, ErrorCode.PROTOCOL_ERROR)
    assert ended.reason
    story.server(*map(story.frames.accept, stream_ids[1:]))
    assert len(story.outcomes) == streams
    story.assert_alive()


@script(value=(b"abc", b"-1", b"1,2", b"0x10", b" 2"))
def test_row_40_a_content_length_that_is_no_number(story, value):
    story.start()
    first, second = story.open(2)
    story.server(story.frames.headers(first, 200, [(b"content-length", value)]))
    assert story.outcome(first).error_code == ErrorCode.PROTOCOL_ERROR
    story.server(story.frames.accept(second))
    assert story.outcome(second).status == 200
    story.assert_alive()


@script(streams=(1, 100))
def test_row_40_the_right_content_length(story, streams):
    story.start()
    for stream_id in story.open(streams):
        story.server(
            story.frames.headers(stream_id, 400, [(b"content-length", b"27")]),
            data(stream_id, b'{"reason":', pad=20),
            data(stream_id, b'"BadDeviceToken"}', end_stream=True),
        )
        assert story.outcome(stream_id).error_code is None
        assert story.outcome(stream_id).body == b'{"reason":"BadDeviceToken"}'
