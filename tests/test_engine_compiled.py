"""What is particular to the compiled engine: cached header blocks, memory, and its face for other C code.

The rules of the wire are told in tests/http2/ for both engines. Here too its octets are judged by
readers that share no code with it: `hpack.Decoder` and hyperframe.
"""

import gc
import importlib
import itertools
import os
import pathlib
import random
import subprocess
import sys
import textwrap
import weakref

import hpack
import pytest
from hyperframe.frame import Frame, HeadersFrame

from fastpush.http2 import (
    CompiledEngine,
    ConnectionEnded,
    ErrorCode,
    HeaderListTooLarge,
    Limits,
    LocalProtocolError,
    StreamEnded,
)

from .http2 import frames

ROOT = pathlib.Path(__file__).parent.parent
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BEFORE = ((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.push.apple.com"))
AFTER = (
    (b"authorization", b"bearer " + b"x" * 180),
    (b"apns-topic", b"com.example.opmanager"),
    (b"apns-push-type", b"alert"),
)
VARIABLE = (b"apns-id", b"apns-expiration")
APNS_ID = b"eabeae54-14a8-11e5-b60b-1697f925ec7b"
BODY = b'{"aps":{"alert":"Core switch down"}}'
WIDE_OPEN = 2**31 - 1 - 65_535


def frames_in(octets):
    """Whole frames, read by hyperframe; each with the `size` of its payload."""
    octets, found = memoryview(octets), []
    while octets:
        frame, length = Frame.parse_frame_header(octets[:9], strict=True)
        assert len(octets) >= 9 + length, "the octets end within a frame"
        frame.parse_body(octets[9 : 9 + length])
        frame.size = length
        octets = octets[9 + length :]
        found.append(frame)
    return found


class Peer:
    """A server's view of one engine: its frames read by hyperframe, its header blocks by hpack."""

    def __init__(self, *, limits=None, streams=1_000, **settings):
        self.engine = CompiledEngine(limits=limits or Limits())
        self.engine.initiate(0.0)
        self.decoder = hpack.Decoder(max_header_list_size=2**20)
        assert self.engine.data_to_send().startswith(PREFACE)
        self.settings(max_concurrent_streams=streams, **settings)
        self.receive(frames.settings_ack() + frames.window_update(0, WIDE_OPEN))

    def receive(self, octets, now=0.0):
        return self.engine.receive_data(octets, now)

    def settings(self, *entries, now=0.0, **settings):
        assert self.receive(frames.settings(*entries, **settings), now) == []
        assert self.engine.data_to_send() == frames.settings_ack()
        # hpack holds that a table may be smaller than announced only after our update: nothing to do here.

    def template(self, after=AFTER, variable=VARIABLE, before=BEFORE):
        return self.engine.template(before, b"/3/device/", after, variable)

    def push(self, template, path=b"a" * 64, values=(APNS_ID, None), body=BODY, tag=None):
        return self.engine.send_request(template, path, values, body, tag, 0.0)

    def read(self):
        """The frames that the engine has to send."""
        return frames_in(self.engine.data_to_send())

    def read_block(self):
        """The header block of the one request that the engine has to send, and its fields."""
        headers, *others = self.read()
        block = headers.data
        while "END_HEADERS" not in headers.flags:
            headers = others.pop(0)
            block += headers.data
        assert others[-1].data == BODY
        return block, [tuple(field) for field in self.decoder.decode(block, raw=True)]


def fields_of(after=AFTER, path=b"/3/device/" + b"a" * 64, variable=((b"apns-id", APNS_ID),)):
    return [*BEFORE, (b":path", path), *after, *variable]


# Header blocks that are kept.


def test_a_block_that_indexes_is_sent_once_and_then_only_its_indexes():
    peer = Peer()
    template = peer.template()
    blocks = []
    for _ in range(3):
        peer.push(template)
        block, fields = peer.read_block()
        assert fields == fields_of()
        blocks.append(block)
    first, second, third = blocks
    assert b"api.push.apple.com" not in second
    assert second == third
    # Six indexes of an octet each, and what comes with each request; the name apns-id is Huffman-coded.
    assert len(second) == 6 + (1 + 1 + len("/3/device/") + 64) + (1 + 1 + 5 + 1 + 36)
    assert len(first) - len(second) > 150
    assert peer.decoder.header_table.dynamic_entries == type(peer.decoder.header_table.dynamic_entries)(
        [(name, value) for name, value in reversed([BEFORE[2], *AFTER])]
    )


def test_the_path_is_never_indexed_and_values_go_without_indexing():
    """RFC 7541 §6.2.3 and §6.2.2: the device token must not enter any table between here and there."""
    peer = Peer()
    template = peer.template()
    peer.push(template)
    peer.read_block()
    peer.push(template)
    block, _ = peer.read_block()
    path = block.index(b"/3/device/") - 2
    assert block[path] == 0x10 | 4, "0001, name by index 4"
    apns_id = block.index(APNS_ID) - 1 - 6 - 1
    assert block[apns_id] == 0x00, "0000, name spelled out in 6 octets"


def test_a_new_provider_token_is_a_new_template_and_the_old_one_stays_good():
    """Another field moves every entry: what was kept for the old template is made anew, not sent stale."""
    peer = Peer()
    old = peer.template()
    renewed = ((b"authorization", b"bearer " + b"y" * 180), *AFTER[1:])
    new = peer.template(after=renewed)
    for template, after in [(old, AFTER), (old, AFTER), (new, renewed), (old, AFTER), (new, renewed)] * 2:
        peer.push(template)
        assert peer.read_block()[1] == fields_of(after)


def test_the_table_of_the_peer_shrinks_vanishes_and_comes_back():
    """Whatever size the table has, blocks decode, and are kept from the second one on (row 18, row 19)."""
    peer = Peer()
    template = peer.template()
    for size in [4_096, 0, 4_096, 200, 0, 65_536, 600, 4_096]:
        peer.settings(header_table_size=size)
        peer.decoder.max_allowed_table_size = size
        for _ in range(4):
            peer.push(template)
            block, fields = peer.read_block()
            assert fields == fields_of()
        assert peer.decoder.header_table.maxsize == min(size, 4_096)
        assert peer.decoder.header_table._current_size <= min(size, 4_096)
        peer.push(template)
        assert peer.read_block()[0] == block


def test_what_does_not_fit_into_the_table_is_not_put_there():
    """Fields that push each other out would be indexed and evicted with every request, for nothing."""
    peer = Peer(header_table_size=300)
    peer.decoder.max_allowed_table_size = 300
    template = peer.template()
    blocks = []
    for _ in range(3):
        peer.push(template)
        block, fields = peer.read_block()
        assert fields == fields_of()
        assert [name for name, _ in peer.decoder.header_table.dynamic_entries] == [
            b"apns-push-type",
            b"apns-topic",
            b":authority",
        ]
        blocks.append(block)
    assert blocks[1] == blocks[2]


def test_random_templates_and_table_sizes_always_decode():
    """Many templates in any order, while the table changes: an independent decoder reads each request."""
    seed = os.environ.get("FASTPUSH_SEED") or str(random.SystemRandom().randrange(2**32))
    print(f"FASTPUSH_SEED={seed}")
    draw = random.Random(seed)
    peer = Peer()
    names = [
        b"apns-topic",
        b"apns-push-type",
        b"authorization",
        b"content-type",
        b"x-%d" % draw.randrange(99),
    ]
    made = []
    for number in range(600):
        if draw.random() < 0.1:
            size = draw.choice([0, 1, 60, 100, 200, 400, 1_000, 4_096, 70_000])
            peer.settings(header_table_size=size, now=float(number))
            peer.decoder.max_allowed_table_size = size
        if not made or draw.random() < 0.1:
            after = [
                (draw.choice(names), b"v" * draw.choice([0, 1, 30, 126, 127, 128, 300]))
                for _ in range(draw.randrange(5))
            ]
            made.append((peer.template(after=after), after))
        template, after = draw.choice(made)
        path = b"%x" % draw.getrandbits(draw.choice([8, 256, 4_096]))
        values = [draw.choice([None, b"", b"1", APNS_ID, b"z" * 300]) for _ in VARIABLE]
        stream_id = peer.push(template, path, values)
        given = [(name, value) for name, value in zip(VARIABLE, values, strict=True) if value is not None]
        assert peer.read_block()[1] == fields_of(after, b"/3/device/" + path, given)
        if number % 2:
            peer.receive(frames.header_block(stream_id, b"\x88", end_stream=True))
        else:
            assert peer.engine.reset_stream(stream_id)
            peer.engine.data_to_send()


@pytest.mark.parametrize("length", [16_384 - 200, 16_384, 3 * 16_384, 100_000])
def test_a_large_block_goes_on_in_continuation_frames(length):
    """RFC 9113 §6.10: cut exactly by the peer's SETTINGS_MAX_FRAME_SIZE, kept or not.

    "Z" is no shorter in Huffman code, so the length of the block is known.
    """
    peer = Peer()
    template = peer.template(after=[(b"x-large", b"Z" * length)])
    for _ in range(3):
        peer.push(template)
        found = peer.read()
        assert [frame.size for frame in found[:-2]] == [16_384] * (len(found) - 2)
        assert "END_HEADERS" in found[-2].flags
        assert len(found) >= 2 + length // 16_384
        block = b"".join(frame.data for frame in found[:-1])
        assert [tuple(field) for field in peer.decoder.decode(block, raw=True)][4] == (
            b"x-large",
            b"Z" * length,
        )
        assert found[-1].data == BODY


def test_a_request_without_a_body_ends_with_its_headers():
    peer = Peer()
    template = peer.template(before=((b":method", b"GET"), *BEFORE[1:]))
    stream_id = peer.push(template, body=b"")
    (headers,) = peer.read()
    assert "END_STREAM" in headers.flags
    (ended,) = peer.receive(frames.ServerFrames().accept(stream_id))
    assert ended.status == 200
    assert not peer.engine.window_blocked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(b":path", b"/")], b"/", [], []), "cannot come before :path"),
        (([(b"x", b"y")], b"/", [], []), "cannot come before :path"),
        (([], b"/", [(b":authority", b"a")], []), "octet that no field name may have"),
        (([], b"/", [(b"Upper", b"a")], []), "octet that no field name may have"),
        (([], b"/", [], [b""]), "field name is empty"),
        (([], b"/", [], [b"a b"]), "octet that no field name may have"),
        (([], b"/", [], [b"x%d" % number for number in range(17)]), "17 variable fields; at most 16"),
    ],
)
def test_a_template_that_no_peer_would_take_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompiledEngine().template(*arguments)


def test_a_template_is_good_for_its_engine_only():
    peer, other = Peer(), Peer()
    with pytest.raises(ValueError, match="another engine"):
        peer.push(other.template())
    assert peer.engine.data_to_send() == b""
    assert peer.engine.streams_open == 0


def test_refused_requests_leave_no_octet_and_no_entry_behind():
    """Neither the table nor the stream ids move: the next request is as if there had been no other."""
    peer = Peer(streams=1, max_header_list_size=800)
    large = peer.template(after=[*AFTER, (b"x-large", b"l" * 500)])
    template = peer.template()
    with pytest.raises(HeaderListTooLarge, match="the peer takes 800"):
        peer.push(large)
    with pytest.raises(ValueError, match="1 values; the template has 2"):
        peer.push(template, values=(None,))
    assert peer.engine.data_to_send() == b""
    assert peer.push(template) == 1
    assert peer.read_block()[1] == fields_of()
    with pytest.raises(LocalProtocolError, match="1 streams are open, the peer allows 1"):
        peer.push(template)
    assert peer.engine.data_to_send() == b""


def test_requests_that_never_left_are_taken_back_at_the_end():
    """They end as not processed, so their octets must not go out with GOAWAY; all others stay."""
    peer = Peer()
    template = peer.template()
    written, taken_back = peer.push(template), peer.push(template)
    assert len(peer.read()) == 4
    unwritten = [peer.push(template) for _ in range(3)]
    peer.engine.ping(b"12345678")
    assert peer.engine.reset_stream(unwritten[1])
    assert peer.engine.reset_stream(taken_back)
    events = peer.engine.close(ErrorCode.NO_ERROR)
    assert [(event.stream_id, event.processed) for event in events[:-1]] == [
        (written, None),
        (unwritten[0], False),
        (unwritten[2], False),
    ]
    assert [(type(frame).__name__, frame.stream_id) for frame in peer.read()] == [
        ("PingFrame", 0),
        ("RstStreamFrame", taken_back),
        ("GoAwayFrame", 0),
    ]


def test_an_engine_that_never_left_its_preface_still_begins_with_it():
    engine = CompiledEngine()
    engine.initiate(0.0)
    assert engine.close() == [ConnectionEnded(ErrorCode.NO_ERROR, "the connection was closed")]
    octets = engine.data_to_send()
    assert octets.startswith(PREFACE)
    assert [type(frame).__name__ for frame in frames_in(octets.removeprefix(PREFACE))] == [
        "SettingsFrame",
        "WindowUpdateFrame",
        "GoAwayFrame",
    ]


# Responses that are kept.


def test_equal_header_blocks_stand_for_the_same_fields_only_while_the_table_stays():
    """§2.3.3 of RFC 7541: one octet, 0xbe, names another field after each insertion."""
    peer = Peer()
    template = peer.template()
    ids = [peer.push(template) for _ in range(6)]
    first = b"\x88\x40\x01a\x011"  # a: 1 enters the table
    second = b"\x88\x40\x01a\x012"  # a: 2 too, and is 0xbe now
    again = b"\x88\xbe"
    events = peer.receive(
        b"".join(
            frames.header_block(stream_id, block, end_stream=True)
            for stream_id, block in zip(ids, [first, again, again, second, again, again], strict=True)
        )
    )
    assert [event.field(b"a") for event in events] == [b"1", b"1", b"1", b"2", b"2", b"2"]


def test_a_block_that_changes_the_table_changes_it_each_time():
    """The same octets twice are two entries: 0xbf is the older of them."""
    peer = Peer()
    template = peer.template()
    blocks = [b"\x88\x40\x01a\x011", b"\x88\x40\x01a\x011", b"\x88\xbf"]
    octets = [frames.header_block(peer.push(template), block, end_stream=True) for block in blocks]
    assert [event.field(b"a") for event in peer.receive(b"".join(octets))] == [b"1", b"1", b"1"]


def test_a_table_that_our_settings_take_away_voids_what_was_kept():
    """The same block is read anew after our smaller SETTINGS_HEADER_TABLE_SIZE came into force."""
    engine = CompiledEngine(limits=Limits(decoder_table_octets=0))
    engine.initiate(0.0)
    engine.receive_data(frames.settings(), 0.0)
    template = engine.template(BEFORE, b"/", (), ())
    for _ in range(3):
        engine.send_request(template, b"", (), BODY, None, 0.0)
    first = frames.header_block(1, b"\x88\x40\x01a\x011", end_stream=True)
    assert engine.receive_data(first, 0.0)[0].field(b"a") == b"1"
    assert (
        engine.receive_data(frames.header_block(3, b"\x88\xbe", end_stream=True), 0.0)[0].field(b"a") == b"1"
    )
    events = engine.receive_data(
        frames.settings_ack() + frames.header_block(5, b"\x88\xbe", end_stream=True), 0.0
    )
    assert events[-1].error_code == ErrorCode.COMPRESSION_ERROR


def test_fields_of_a_response_are_as_they_came():
    peer = Peer()
    template = peer.template()
    sent = [(b"apns-id", APNS_ID), (b"x", b""), (b"x", b"second"), (b"long", b"v" * 5_000)]
    stream_id = peer.push(template)
    (ended,) = peer.receive(frames.ServerFrames().headers(stream_id, 200, sent, end_stream=True))
    assert ended.fields == tuple(sent)
    assert ended.fields is ended.fields
    assert ended.field(b"x") == b"", "the first of them"
    assert ended.field(b":status") is None
    assert ended.field(b"apns") is None
    assert ended == StreamEnded(stream_id, None, status=200, processed=True, fields=sent)
    assert hash(ended) == hash(StreamEnded(stream_id, None, status=200, processed=True, fields=sent))
    assert ended != StreamEnded(stream_id, "other", status=200, processed=True, fields=sent)
    assert ended != stream_id


def test_the_repr_of_an_end_shows_no_tag_and_no_field():
    """Both may hold a device token."""
    shown = repr(StreamEnded(1, "the tag", status=400, fields=[(b"name", b"the value")], body=b"the body"))
    assert shown == "StreamEnded(stream_id=1, status=400, processed=None, error_code=None, reason='')"


def test_the_fields_of_an_end_made_by_hand_are_checked():
    with pytest.raises(ValueError, match="status is 99"):
        StreamEnded(1, None, status=99)
    with pytest.raises(TypeError):
        StreamEnded(1, None, fields=[("name", "value")])
    with pytest.raises(TypeError):
        StreamEnded(1, None, fields=[(b"name", None)])
    assert StreamEnded.__new__(StreamEnded).fields == ()


@pytest.mark.parametrize("octet", [b"\0", b"\r", b"\n"])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 36])
def test_a_forbidden_octet_is_found_wherever_it_is(octet, length):
    """RFC 9113 §8.2.1. A tab is none, though it is nearly as small."""
    peer = Peer()
    template = peer.template()
    good = b"\x88\x00\x01a" + bytes([length + 2]) + b"v" + b"\t" * length + b"v"
    (ended,) = peer.receive(frames.header_block(peer.push(template), good, end_stream=True))
    assert ended.field(b"a") == b"v" + b"\t" * length + b"v"
    for place in range(length):
        value = b"v" * place + octet + b"v" * (length - place - 1)
        block = b"\x88\x00\x01a" + bytes([length]) + value
        (ended,) = peer.receive(frames.header_block(peer.push(template), block, end_stream=True))
        assert (ended.status, ended.processed, ended.error_code) == (None, None, ErrorCode.PROTOCOL_ERROR)


def test_304_has_a_content_length_and_no_body():
    """RFC 9110 §8.6: it says what a 200 would have."""
    peer = Peer()
    fields = [(b"content-length", b"17")]
    answer = frames.ServerFrames().headers(peer.push(peer.template()), 304, fields, end_stream=True)
    (ended,) = peer.receive(answer)
    assert (ended.status, ended.error_code, ended.reason) == (304, None, "")


def test_refusals_of_headers_and_then_of_their_data_are_no_flood():
    """Row 11 with all streams at once: two RST_STREAM to each, within a second."""
    peer = Peer()
    template = peer.template()
    ids = [peer.push(template) for _ in range(1_000)]
    octets = [
        frames.rst_stream(stream_id, code)
        for stream_id in ids
        for code in (ErrorCode.REFUSED_STREAM, ErrorCode.STREAM_CLOSED)
    ]
    events = peer.receive(b"".join(octets))
    assert [(event.stream_id, event.processed) for event in events] == [
        (stream_id, False) for stream_id in ids
    ]
    assert not peer.engine.closed
    # A third one to each is beyond what any server has a reason for.
    events = peer.receive(b"".join(frames.rst_stream(stream_id, ErrorCode.CANCEL) for stream_id in ids))
    assert [event.error_code for event in events] == [ErrorCode.ENHANCE_YOUR_CALM]


def test_answers_to_closed_streams_are_bounded():
    """Row 48 a thousand times: each closed stream is answered once, and not more than may wait to be sent."""
    peer = Peer(limits=Limits(queued_control_frames=50))
    template = peer.template()
    ids = [peer.push(template) for _ in range(51)]
    answers = [frames.header_block(stream_id, b"\x88", end_stream=True) for stream_id in ids]
    assert len(peer.receive(b"".join(answers))) == 51
    peer.engine.data_to_send()
    assert peer.receive(b"".join(answers[:50] * 3)) == []
    assert peer.receive(answers[50])[-1].error_code == ErrorCode.ENHANCE_YOUR_CALM


def test_an_answer_that_had_begun_is_not_late():
    """`late_responses` counts answers that came after we had given up, each once."""
    peer = Peer()
    template = peer.template()
    begun, silent = peer.push(template), peer.push(template)
    answer = frames.header_block(begun, b"\x88")
    assert peer.receive(answer) == []
    for stream_id in (begun, silent):
        assert peer.engine.reset_stream(stream_id)
    assert peer.receive(answer) == []
    assert peer.engine.late_responses == 0
    for _ in range(2):
        assert peer.receive(frames.header_block(silent, b"\x88", end_stream=True)) == []
        assert peer.engine.late_responses == 1


# Limits that the constructor refuses.


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"frame_octets": 16_383}, "frame_octets is 16383"),
        ({"frame_octets": 2**24}, "frame_octets is 16777216"),
        ({"connection_window_octets": 65_534}, "connection_window_octets is 65534"),
        ({"connection_window_octets": 2**31}, "connection_window_octets is 2147483648"),
    ],
)
def test_limits_outside_of_the_rfc_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        CompiledEngine(limits=Limits(**limits))


@pytest.mark.parametrize("first_stream_id", [0, 2, -1, 2**31 + 1])
def test_a_first_stream_id_must_be_odd_and_within_31_bits(first_stream_id):
    with pytest.raises(ValueError, match="first_stream_id is"):
        CompiledEngine(first_stream_id=first_stream_id)


# Memory.


def test_records_grow_with_the_streams_and_each_keeps_its_tag():
    """5,000 streams open at once, ended in a random order; stragglers stay while others come and go."""
    peer = Peer(streams=5_000)
    template = peer.template()
    tags = {peer.push(template, tag=f"push {number}"): f"push {number}" for number in range(5_000)}
    order = list(tags)
    random.Random(7).shuffle(order)
    stragglers, order = order[:100], order[100:]
    octets = b"".join(frames.header_block(stream_id, b"\x88", end_stream=True) for stream_id in order)
    assert [(event.stream_id, event.tag) for event in peer.receive(octets)] == [
        (stream_id, tags[stream_id]) for stream_id in order
    ]
    for _ in range(20):
        ids = [peer.push(template) for _ in range(1_000)]
        octets = b"".join(frames.header_block(stream_id, b"\x88", end_stream=True) for stream_id in ids)
        assert len(peer.receive(octets)) == 1_000
        peer.engine.data_to_send()
        peer.receive(frames.window_update(0, 1_000 * len(BODY)))
    assert peer.engine.streams_open == 100
    ended = peer.engine.connection_lost("the wire was cut")
    assert [event.stream_id for event in ended[:-1]] == sorted(stragglers)
    assert all(event.tag == tags[event.stream_id] for event in ended[:-1])
    assert ended[-1] == ConnectionEnded(ErrorCode.NO_ERROR, "the wire was cut")


def test_a_tag_that_holds_its_engine_is_collected():
    """The engine's tags are visible to the garbage collector, also when nobody ended the connection."""

    class Tag:
        pass

    peer = Peer()
    tag = Tag()
    tag.engine = peer.engine
    gone = weakref.ref(tag)
    peer.push(peer.template(), tag=tag)
    del peer, tag
    gc.collect()
    assert gone() is None


def test_a_finalizer_may_call_back():
    """A tag's end may reset streams and send requests: in the middle of `receive_data` all stays whole."""
    peer = Peer()
    template = peer.template()
    engine = peer.engine
    taken_back = []

    class Tag:
        def __init__(self, other):
            self.other = other

        def __del__(self):
            taken_back.append(engine.reset_stream(self.other))
            if engine.room():
                peer.push(template)

    ids = list(range(1, 400, 2))
    for stream_id in ids:
        peer.push(template, tag=Tag(stream_id + 2 if stream_id % 4 == 1 else stream_id))
    octets = b"".join(
        frames.header_block(stream_id, b"\x88", end_stream=True) for stream_id in ids if stream_id % 4 == 1
    )
    events = peer.receive(octets)
    assert [event.stream_id for event in events] == ids[::2]
    for event in events:
        assert event.status == 200
    del events, event
    assert taken_back.count(True) == 100
    assert engine.streams_open == engine.requests_sent - 200
    assert len(engine.close()) == engine.requests_sent - 200 + 1


def test_padding_is_credited_with_the_octets_it_surrounds():
    """Row 40: the pad length, the octets and the padding all count, for stream and connection (§6.1)."""
    peer = Peer(limits=Limits(connection_window_octets=65_535))
    stream_id = peer.push(peer.template())
    peer.receive(frames.header_block(stream_id, b"\x88"))
    peer.engine.data_to_send()
    padded = frames.data(stream_id, b"x", pad=255)
    for _ in range(127):
        peer.receive(padded)
    assert peer.read() == []
    peer.receive(padded)
    credit = [(frame.stream_id, frame.window_increment) for frame in peer.read()]
    assert credit == [(0, 128 * 257), (stream_id, 128 * 257)]


def test_no_finalizer_runs_while_the_end_of_a_stream_is_told():
    """A StreamEnded is not the collector's, so that making one cannot start it and call back in between."""
    peer = Peer(streams=3_000)
    template = peer.template()
    reset = peer.engine.reset_stream

    class Garbage:
        def __init__(self, stream_id):
            self.itself = self
            self.stream_id = stream_id

        def __del__(self):
            taken_back.append(reset(self.stream_id))

    # More events than Cython's free list holds are alive, so the next one is allocated.
    alive = [StreamEnded(1, None) for _ in range(2_000)]
    taken_back = []
    stream_id = peer.push(template)
    answer = frames.header_block(stream_id, b"\x88", end_stream=True)
    thresholds = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        Garbage(stream_id)
        gc.set_threshold(1)
        gc.enable()
        events = peer.engine.receive_data(answer, 0.0)
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    assert len(alive) == 2_000
    assert not gc.is_tracked(alive[0])
    assert [event.stream_id for event in events] == [stream_id]
    assert True not in taken_back
    assert peer.engine.streams_open == 0


def test_a_large_output_is_given_back_when_it_was_taken():
    """A burst must not hold its memory for ever."""
    peer = Peer()
    template = peer.template()
    body = b"x" * 5_000
    for _ in range(1_000):
        peer.push(template, body=body)
    assert len(peer.engine.data_to_send()) > 5_000_000
    assert peer.engine.data_to_send() == b""
    before = resident_octets()
    for _ in range(5):
        for stream_id in range(1, 2_000, 2):
            peer.engine.reset_stream(stream_id)
        peer.engine.data_to_send()
    assert resident_octets() - before < 2_000_000


def resident_octets():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4_096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_requests_leave_nothing_behind():
    """Every way a stream ends, a thousand streams at a time: the process does not grow by 1 MB."""
    peer = Peer()
    engine = peer.engine
    template = peer.template()
    server = frames.ServerFrames()

    def round_trip(number):
        ids = [
            peer.push(template, b"%064x" % number, (APNS_ID, b"%d" % number), BODY, object())
            for _ in range(1_000)
        ]
        answers = []
        for stream_id in ids:
            kind = stream_id // 2 % 16
            if kind == 0:
                answers.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            elif kind == 1:
                answers.append(server.reject(stream_id))
            elif kind == 2:
                body = [frames.data(stream_id, b"x" * 3_000) for _ in range(2)]
                answers += [server.headers(stream_id, 500), *body, frames.data(stream_id, end_stream=True)]
            elif kind == 3:
                answers.append(frames.header_block(stream_id, b"\x88\x00\x01A\x01b"))  # malformed
            elif kind == 4:
                engine.reset_stream(stream_id)
            else:
                answers.append(frames.header_block(stream_id, b"\x88", end_stream=True))
        events = engine.receive_data(b"".join(answers), float(number))
        assert 937 <= len(events) <= 938
        for event in events[:50]:
            assert event.fields is not None
        engine.data_to_send()
        engine.receive_data(frames.window_update(0, 1_000 * len(BODY)), float(number))
        assert engine.streams_open == 0

    for number in range(100):
        round_trip(number)
    gc.collect()
    before = resident_octets()
    for number in range(100, 1_100):
        round_trip(number)
    gc.collect()
    assert resident_octets() - before < 1_000_000
    assert engine.requests_sent == 1_100_000


# Each allocation fails once.


def life_of_a_connection(fail_from):
    """Live through every path of the engine; from allocation `fail_from` on, `step` has none for a while.

    Returns how many MemoryErrors there were. Whatever happens, each request that was taken ends once, and
    what there is to send are whole frames, of those requests only.
    """
    import _testcapi

    allocations = itertools.count()
    failures = 0
    events, opened, asked, taken_back = [], [], [], 0
    engine = CompiledEngine()
    template = engine.template(BEFORE, b"/3/device/", AFTER, VARIABLE)
    small = engine.template(BEFORE, b"/3/device/", AFTER[:1], ())
    server = frames.ServerFrames()
    values = (APNS_ID, b"17")
    path = b"a" * 64
    long_body = b"x" * 60_000
    answers = [
        frames.settings(max_concurrent_streams=200),
        frames.settings_ack() + frames.ping(),
        frames.window_update(0, 1_000_000),
        server.accept(1) + server.reject(3),
        server.headers(5) + frames.data(5, b"y" * 900) + frames.data(5, b"z" * 900),
        frames.data(5, b"y" * 900, end_stream=True) + frames.rst_stream(7, 7),
        server.headers(9)[:-3],
        frames.goaway(131, 0, b"{}"),
    ]

    def step(method, *arguments):
        nonlocal failures
        starts = next(allocations) == fail_from[0]
        if starts:
            _testcapi.set_nomemory(fail_from[1], fail_from[1] + 1)
        try:
            return method(*arguments)
        except MemoryError:
            failures += 1
        except LocalProtocolError:
            pass
        finally:
            if starts:
                _testcapi.remove_mem_hooks()

    step(engine.initiate, 0.0)
    events += step(engine.receive_data, answers[0], 0.0) or []
    for number in range(70):
        body = long_body if number == 66 else BODY
        if number % 7:
            stream_id = step(engine.send_request, template, path, values, body, number, 0.0)
        else:
            stream_id = step(engine.send_request, small, path, (), body, number, 0.0)
        if stream_id is not None:
            opened.append(stream_id)
            asked.append(
                fields_of(variable=zip(VARIABLE, values, strict=True))
                if number % 7
                else fields_of(AFTER[:1], variable=())
            )
    written = step(engine.data_to_send) or engine.data_to_send()
    for answer in answers[1:-1]:
        events += step(engine.receive_data, answer, 0.0) or []
    taken_back += bool(step(engine.reset_stream, 11))
    step(engine.ping, b"12345678")
    events += step(engine.receive_data, answers[-1][:5], 0.0) or []
    events += step(engine.receive_data, answers[-1][5:], 0.0) or []
    events += step(engine.check_time, 100.0) or []
    events += step(engine.close) or []
    events += engine.connection_lost("it is over")
    steps = next(allocations)
    assert engine.closed
    assert engine.streams_open == 0
    assert engine.room() == 0
    ended = [event.stream_id for event in events if isinstance(event, StreamEnded)]
    assert len(ended) == len(set(ended))
    assert len(ended) == len(opened) - taken_back
    assert [type(event) for event in events].count(ConnectionEnded) == 1
    assert type(events[-1]) is ConnectionEnded
    sent = frames_in((written + engine.data_to_send()).removeprefix(PREFACE))
    headers = [frame for frame in sent if isinstance(frame, HeadersFrame)]
    assert [frame.stream_id for frame in headers] == opened
    decoder = hpack.Decoder()
    for frame, fields in zip(headers, asked, strict=True):
        assert [tuple(field) for field in decoder.decode(frame.data, raw=True)] == fields
    return steps, failures


def test_every_allocation_may_fail():
    """MemoryError at each allocation of each call: an exception, no crash, and every stream ends once."""
    pytest.importorskip("_testcapi")
    steps, failures = life_of_a_connection((-1, 0))
    assert failures == 0
    total = 0
    for step in range(steps):
        allocation = unfailing = 0
        # Not every failure is told, the interpreter allocates too: ten more that change nothing are the end.
        while unfailing < 10:
            _, failures = life_of_a_connection((step, allocation))
            total += failures
            allocation += 1
            unfailing = 0 if failures else unfailing + 1
    assert total > 100, "too few allocations were made to fail: this test says nothing"


def test_a_table_that_the_peer_never_sees_ends_the_connection():
    """Memory runs out within a header block: what the table took in was not sent, so nothing more can be."""
    testcapi = pytest.importorskip("_testcapi")
    outcomes = set()
    for allocation in range(20):
        peer = Peer(limits=Limits(encoder_table_octets=65_536), header_table_size=65_536)
        template = peer.template(after=[(b"x-%d" % number, b"Z" * 3_000) for number in range(8)])
        testcapi.set_nomemory(allocation, allocation + 1)
        try:
            peer.push(template)
            failed = False
        except MemoryError:
            failed = True
        finally:
            testcapi.remove_mem_hooks()
        outcomes.add((failed, peer.engine.room()))
        if failed:
            assert peer.engine.data_to_send() == b""
            assert peer.engine.streams_open == 0
        if failed and peer.engine.room() == 0:
            with pytest.raises(LocalProtocolError, match="the connection is closed"):
                peer.push(template)
            (ended,) = peer.engine.check_time(0.0)
            assert ended == ConnectionEnded(ErrorCode.INTERNAL_ERROR, "an earlier call failed half way")
    assert outcomes == {(False, 999), (True, 1_000), (True, 0)}


# The face for other compiled modules.


CALLER = """
# cython: language_level=3
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from fastpush.http2._engine cimport CompiledEngine, Octets, StreamEnded, Template

def open_stream(CompiledEngine engine, Template template, bytes path, bytes apns_id, bytes body, tag):
    cdef Octets values[2]
    values[0].octets = <const uint8_t *>PyBytes_AS_STRING(apns_id)
    values[0].length = len(apns_id)
    values[1].octets = NULL
    return engine.open_stream(
        template, <const uint8_t *>PyBytes_AS_STRING(path), len(path), values, body, tag
    )

def room(CompiledEngine engine):
    return engine.count_room()

def answer(StreamEnded event):
    return event.status_code, event.find(b"apns-id", 7), event.find(b"apns-unique-id", 14)
"""


@pytest.mark.slow
def test_a_compiled_module_sends_without_python_objects(tmp_path):
    """`open_stream` is `send_request` for other compiled modules: the same octets, the same refusals."""
    (tmp_path / "engine_caller.pyx").write_text(CALLER)
    (tmp_path / "setup.py").write_text(
        textwrap.dedent(
            f"""
            from Cython.Build import cythonize
            PATHS = [{str(ROOT)!r}]
            from setuptools import setup
            setup(name="caller", ext_modules=cythonize("engine_caller.pyx", include_path=PATHS, quiet=True))
            """
        )
    )
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "CFLAGS": "-O0"},
        check=True,
        capture_output=True,
    )
    sys.path.insert(0, str(tmp_path))
    try:
        caller = importlib.import_module("engine_caller")
    finally:
        sys.path.remove(str(tmp_path))
    compiled, python = Peer(streams=3), Peer(streams=3)
    templates = compiled.template(), python.template()
    for number in range(3):
        assert caller.room(compiled.engine) == 3 - number
        stream_id = caller.open_stream(compiled.engine, templates[0], b"a" * 64, APNS_ID, BODY, number)
        assert stream_id == python.push(templates[1]) == 2 * number + 1
    assert compiled.engine.data_to_send() == python.engine.data_to_send()
    with pytest.raises(LocalProtocolError):
        caller.open_stream(compiled.engine, templates[0], b"a" * 64, APNS_ID, BODY, None)
    (event,) = compiled.receive(frames.ServerFrames().accept(3))
    assert event.tag == 1
    assert caller.answer(event) == (200, frames.apns_id(3), None)
