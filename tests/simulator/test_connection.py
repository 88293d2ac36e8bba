"""The server's side of HTTP/2 without TLS or clock: what is right, what is wrong; nothing crashes it."""

import os
import random
import struct

import hpack
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastpush.http2._hpack import Decoder, Encoder
from fastpush.simulator import rules
from fastpush.simulator._server import ACCEPTED, REJECTED, SWALLOWED, Log, ServerConnection, Shared
from fastpush.simulator.director import Director
from fastpush.simulator.faults import FaultPlan
from fastpush.simulator.rules import Binding, World, judge, read_request

from .offline import PREFACE, WALL, Offline

PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 1, 3, 5, 6
REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 9, 11


def raw(kind, flags=0, stream_id=0, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">L", length)[1:] + struct.pack(">BBL", kind, flags, stream_id) + payload


def read_frames(octets):
    frames = []
    while octets:
        frame, length = Frame.parse_frame_header(memoryview(octets[:9]), strict=False)
        frame.parse_body(memoryview(octets[9 : 9 + length]))
        frames.append(frame)
        octets = octets[9 + length :]
    return frames


@pytest.fixture
def offline():
    return Offline()


def fresh_connection(offline):
    """A connection that has not seen the client's preface."""
    offline.connection = ServerConnection(
        offline.shared, offline.host, 2, decoder=Decoder(4_096, 8_000), encoder=Encoder(4_096)
    )
    return offline


def session():
    """Preface, SETTINGS and two requests, as octets."""
    offline = Offline()
    first, second = (offline.request([("apns-id", "a")])[1] for _ in range(2))
    return PREFACE + SettingsFrame(0).serialize() + first + second


def exchange(offline, *octets):
    for each in octets:
        offline.connection.receive_data(each, 0.0)
    return read_frames(offline.connection.data_to_send())


def goaway_of(offline, *octets):
    last = exchange(offline, *octets)[-1]
    assert isinstance(last, GoAwayFrame), last
    assert offline.connection.closing == "flush"
    assert offline.connection.error
    # Nothing is done after it.
    assert exchange(offline, PingFrame(0, b"x" * 8).serialize()) == []
    return last.error_code


def block(offline, **fields):
    named = {":method": "POST", ":scheme": "https", ":path": "/3/device/abab", **fields}
    return offline.encoder.encode(named.items())


class TestWhatIsRight:
    def test_a_session_cut_at_every_octet(self):
        whole = session()
        for cut in range(1, len(whole)):
            offline = fresh_connection(Offline())
            frames = exchange(offline, whole[:cut], whole[cut:])
            assert [frame.stream_id for frame in frames] == [0, 1, 3], cut

    def test_octet_by_octet(self, offline):
        _, first = offline.request()
        _, second = offline.request()
        frames = exchange(offline, *[octet.to_bytes(1, "big") for octet in first + second])
        assert [frame.stream_id for frame in frames] == [1, 3]

    def test_priority_padding_and_continuation(self, offline):
        octets = block(offline)
        headers = HeadersFrame(1, octets[:3], flags=["PADDED", "PRIORITY"], pad_length=7, depends_on=0)
        more = ContinuationFrame(1, octets[3:8]), ContinuationFrame(1, octets[8:], flags=["END_HEADERS"])
        data = DataFrame(1, b"{}", flags=["END_STREAM", "PADDED"], pad_length=200)
        frames = exchange(offline, *[frame.serialize() for frame in (headers, *more, data)])
        assert [frame.stream_id for frame in frames] == [1]
        assert offline.host.handled[0][2] == b"{}"

    def test_a_body_in_many_frames_and_an_empty_last_one(self, offline):
        _, octets = offline.request(body=b"")
        headers = octets[: len(octets) - 9]
        data = [DataFrame(1, bytes([65 + number])).serialize() for number in range(5)]
        exchange(offline, headers, *data, DataFrame(1, b"", flags=["END_STREAM"]).serialize())
        assert offline.host.handled[0][2] == b"ABCDE"

    def test_headers_of_many_requests_before_their_bodies(self, offline):
        """nghttp2 sends them in this order."""
        requests = [offline.request() for _ in range(20)]
        size = len(DataFrame(1, b'{"aps":{}}').serialize())
        frames = exchange(
            offline, *[octets[:-size] for _, octets in requests], *[octets[-size:] for _, octets in requests]
        )
        assert [frame.stream_id for frame in frames] == [stream_id for stream_id, _ in requests]

    def test_trailers_end_a_request(self, offline):
        octets = block(offline)
        trailers = offline.encoder.encode([("x-end", "1")])
        frames = exchange(
            offline,
            HeadersFrame(1, octets, flags=["END_HEADERS"]).serialize(),
            DataFrame(1, b"{}").serialize(),
            HeadersFrame(1, trailers, flags=["END_HEADERS", "END_STREAM"]).serialize(),
        )
        assert [type(frame) for frame in frames] == [HeadersFrame]
        assert offline.host.handled[0][2] == b"{}"

    def test_a_reset_by_the_client_and_frames_that_were_on_their_way(self, offline):
        exchange(offline, HeadersFrame(1, block(offline), flags=["END_HEADERS"]).serialize())
        assert exchange(offline, RstStreamFrame(1, error_code=8).serialize()) == []
        assert exchange(offline, DataFrame(1, b"{}", flags=["END_STREAM"]).serialize()) == []
        assert offline.ledger.counts["cancelled"] == 1
        assert offline.connection.streams_open == 0

    def test_what_has_no_meaning_is_ignored(self, offline):
        unknown = raw(0x5A, 0xFF, 7, b"whatever")
        settings_frame = raw(4, 0, 0, struct.pack(">HL", 0xF000, 1))
        assert exchange(offline, unknown, PriorityFrame(9).serialize()) == []
        assert [frame.flags for frame in exchange(offline, settings_frame)] == [{"ACK"}]

    def test_a_client_that_says_goaway_is_served_on(self, offline):
        frames = exchange(offline, GoAwayFrame(0, 0, error_code=2).serialize(), offline.request()[1])
        assert [frame.stream_id for frame in frames] == [1]
        assert offline.connection.client_goaway == 2

    def test_error_bodies_wait_for_the_clients_windows(self, offline):
        offline.host.fate = REJECTED
        exchange(offline, SettingsFrame(0, settings={4: 10}).serialize())
        frames = exchange(offline, offline.request()[1])
        assert [frame.data for frame in frames if isinstance(frame, DataFrame)] == [b'{"reason":']
        assert offline.connection.streams_open == 1
        frames = exchange(offline, WindowUpdateFrame(1, 5).serialize())
        assert [frame.data for frame in frames] == [b'"BadD']
        frames = exchange(offline, SettingsFrame(0, settings={4: 1_000}).serialize())
        assert [frame.data for frame in frames if isinstance(frame, DataFrame)] == [b'eviceToken"}']
        assert offline.connection.streams_open == 0

    def test_error_bodies_wait_for_the_connections_window(self, offline):
        offline.host.fate = REJECTED
        sent = 0
        while True:
            frames = exchange(offline, offline.request()[1])
            sent += sum(len(frame.data) for frame in frames if isinstance(frame, DataFrame))
            if not any("END_STREAM" in frame.flags for frame in frames):
                break
        assert sent == 65_535
        (headers,) = exchange(offline, offline.request()[1])
        assert isinstance(headers, HeadersFrame)
        (frame,) = exchange(offline, WindowUpdateFrame(0, 5).serialize())
        assert len(frame.data) == 5
        assert exchange(offline, PingFrame(0, bytes(8), flags=["ACK"]).serialize()) == []
        frames = exchange(offline, WindowUpdateFrame(0, 10_000).serialize())
        assert [frame.flags >= {"END_STREAM"} for frame in frames] == [True, True]

    def test_a_body_far_too_long_is_answered_before_it_ends(self, offline):
        offline.host.fate = REJECTED
        exchange(offline, HeadersFrame(1, block(offline), flags=["END_HEADERS"]).serialize())
        frames = exchange(offline, *[DataFrame(1, bytes(16_000)).serialize()] * 2)
        assert [type(frame) for frame in frames[:3]] == [HeadersFrame, DataFrame, RstStreamFrame]
        assert exchange(offline, DataFrame(1, bytes(100), flags=["END_STREAM"]).serialize()) == []

    def test_a_client_without_a_header_table_is_answered_without_one(self, offline):
        exchange(offline, SettingsFrame(0, settings={1: 0}).serialize())
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = 0
        for _ in range(3):
            frames = exchange(offline, offline.request([("apns-id", "a" * 36)])[1])
            assert dict(decoder.decode(frames[0].data))[":status"] == "200"


WRONG = {
    "no preface": (PROTOCOL_ERROR, [b"GET / HTTP/1.1\r\n"]),
    "frame over the limit": (FRAME_SIZE_ERROR, [raw(0, 0, 1, b"", 16_385)]),
    "DATA on stream 0": (PROTOCOL_ERROR, [raw(0, 0, 0, b"x")]),
    "DATA on an idle stream": (PROTOCOL_ERROR, [raw(0, 0, 9, b"x")]),
    "HEADERS on stream 0": (PROTOCOL_ERROR, [raw(1, 5, 0, b"\x82")]),
    "HEADERS on an even stream": (PROTOCOL_ERROR, [raw(1, 5, 2, b"\x82")]),
    "HEADERS shorter than its pad length": (PROTOCOL_ERROR, [raw(1, 0xD, 1, b"\xff\x82")]),
    "HEADERS without its pad length": (FRAME_SIZE_ERROR, [raw(1, 0xD, 1)]),
    "HEADERS without its priority": (FRAME_SIZE_ERROR, [raw(1, 0x25, 1, b"1234")]),
    "a header block that cannot be decoded": (COMPRESSION_ERROR, [raw(1, 5, 1, b"\xff\xff\xff\xff\xff\xff")]),
    "a header block interrupted": (PROTOCOL_ERROR, [raw(1, 0, 1, b"\x82"), raw(6, 0, 0, bytes(8))]),
    "a header block continued elsewhere": (PROTOCOL_ERROR, [raw(1, 0, 1, b"\x82"), raw(9, 4, 3, b"\x82")]),
    "CONTINUATION alone": (PROTOCOL_ERROR, [raw(9, 4, 1, b"\x82")]),
    "CONTINUATION without end": (ENHANCE_YOUR_CALM, [raw(1, 0, 1), *[raw(9, 0, 1)] * 40]),
    "PRIORITY on stream 0": (PROTOCOL_ERROR, [raw(2, 0, 0, bytes(5))]),
    "PRIORITY of 4 octets": (FRAME_SIZE_ERROR, [raw(2, 0, 1, bytes(4))]),
    "RST_STREAM of 3 octets": (FRAME_SIZE_ERROR, [raw(3, 0, 1, bytes(3))]),
    "RST_STREAM on an idle stream": (PROTOCOL_ERROR, [raw(3, 0, 1, bytes(4))]),
    "SETTINGS on a stream": (PROTOCOL_ERROR, [raw(4, 0, 1)]),
    "SETTINGS of 5 octets": (FRAME_SIZE_ERROR, [raw(4, 0, 0, bytes(5))]),
    "SETTINGS ACK with a payload": (FRAME_SIZE_ERROR, [raw(4, 1, 0, bytes(6))]),
    "ENABLE_PUSH 2": (PROTOCOL_ERROR, [raw(4, 0, 0, struct.pack(">HL", 2, 2))]),
    "INITIAL_WINDOW_SIZE 2**31": (FLOW_CONTROL_ERROR, [raw(4, 0, 0, struct.pack(">HL", 4, 2**31))]),
    "MAX_FRAME_SIZE 16,383": (PROTOCOL_ERROR, [raw(4, 0, 0, struct.pack(">HL", 5, 16_383))]),
    "PUSH_PROMISE": (PROTOCOL_ERROR, [raw(5, 4, 1, bytes(4))]),
    "PING on a stream": (PROTOCOL_ERROR, [raw(6, 0, 1, bytes(8))]),
    "PING of 7 octets": (FRAME_SIZE_ERROR, [raw(6, 0, 0, bytes(7))]),
    "a flood of PING": (ENHANCE_YOUR_CALM, [raw(6, 0, 0, bytes(8)) * 10_001]),
    "GOAWAY on a stream": (PROTOCOL_ERROR, [raw(7, 0, 1, bytes(8))]),
    "GOAWAY of 7 octets": (FRAME_SIZE_ERROR, [raw(7, 0, 0, bytes(7))]),
    "WINDOW_UPDATE of 0": (PROTOCOL_ERROR, [raw(8, 0, 0, bytes(4))]),
    "WINDOW_UPDATE of 3 octets": (FRAME_SIZE_ERROR, [raw(8, 0, 0, bytes(3))]),
    "WINDOW_UPDATE over 2**31 - 1": (FLOW_CONTROL_ERROR, [raw(8, 0, 0, b"\x7f\xff\xff\xff")]),
    "WINDOW_UPDATE on an idle stream": (PROTOCOL_ERROR, [raw(8, 0, 9, b"\0\0\0\1")]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_connection_error_is_told_and_ends_it(offline, name):
    error_code, octets = WRONG[name]
    if name == "no preface":
        fresh_connection(offline)
    assert goaway_of(offline, *octets) == error_code


class TestWrongStreams:
    def test_the_first_frame_must_be_settings(self, offline):
        fresh_connection(offline)
        assert goaway_of(offline, PREFACE, PingFrame(0, bytes(8)).serialize()) == PROTOCOL_ERROR

    def test_data_over_the_connections_window(self, offline):
        offline.connection.returns_window = False
        requests = [offline.request(body=b"{" + b"x" * 5_000 + b"}")[1] for _ in range(14)]
        assert goaway_of(offline, *requests) == FLOW_CONTROL_ERROR

    def test_data_after_the_end_of_an_open_stream(self, offline):
        offline.host.fate = SWALLOWED  # so that it stays open
        frames = exchange(offline, offline.request()[1], DataFrame(1, b"more").serialize())
        assert [(frame.stream_id, frame.error_code) for frame in frames] == [(1, STREAM_CLOSED)]

    def test_headers_on_a_closed_stream(self, offline):
        exchange(offline, offline.request()[1])
        again = HeadersFrame(1, block(offline), flags=["END_HEADERS", "END_STREAM"]).serialize()
        assert goaway_of(offline, again) == STREAM_CLOSED

    def test_a_second_header_block_that_does_not_end_the_request(self, offline):
        octets = HeadersFrame(1, block(offline), flags=["END_HEADERS"]).serialize()
        again = HeadersFrame(1, block(offline), flags=["END_HEADERS"]).serialize()
        frames = exchange(offline, octets, again)
        assert [(frame.stream_id, frame.error_code) for frame in frames] == [(1, PROTOCOL_ERROR)]

    def test_a_window_of_a_stream_raised_by_0_or_too_far(self, offline):
        offline.host.fate = SWALLOWED
        for stream_id, increment, error_code in ((1, 0, PROTOCOL_ERROR), (3, 2**31 - 1, FLOW_CONTROL_ERROR)):
            exchange(offline, offline.request()[1])
            frames = exchange(offline, raw(8, 0, stream_id, increment.to_bytes(4, "big")))
            assert [(frame.stream_id, frame.error_code) for frame in frames] == [(stream_id, error_code)]

    def test_streams_over_the_limit(self):
        offline = Offline(limit=2)
        offline.host.fate = SWALLOWED
        frames = exchange(offline, *[offline.request()[1] for _ in range(4)])
        assert [(f.stream_id, f.error_code) for f in frames] == [(5, REFUSED_STREAM), (7, REFUSED_STREAM)]
        exchange(offline, RstStreamFrame(1).serialize())
        assert exchange(offline, offline.request()[1]) == []

    def test_an_answer_counts_until_it_is_taken(self):
        """The client cannot know of it before, so that what it opens then is over the limit (§5.1.2)."""
        offline = Offline(limit=2)
        frames = exchange(offline, b"".join(offline.request()[1] for _ in range(3)))
        assert [type(frame) for frame in frames] == [HeadersFrame, HeadersFrame, RstStreamFrame]
        assert frames[-1].error_code == REFUSED_STREAM
        assert [type(frame) for frame in exchange(offline, offline.request()[1])] == [HeadersFrame]

    def test_goaway_spares_its_own_last_stream_id(self, offline):
        """Row 1 from the other side: up to it all goes on, above it nothing is processed (§6.8)."""
        opened = [offline.request(flags=("END_HEADERS",)) for _ in range(4)]
        heads, bodies = zip(*((octets[: -9 - 10], octets[-9 - 10 :]) for _, octets in opened), strict=True)
        exchange(offline, *heads[:3])
        offline.connection.send_goaway(3, 0, b"")
        assert offline.connection.streams_open == 2
        frames = exchange(offline, *bodies[:3], heads[3], bodies[3])
        assert [frame.stream_id for frame in frames] == [0, 1, 3]
        assert [entry[2] for entry in offline.ledger.log.read(0)] == [5, 1, 3, 7]

        ahead = Offline()
        ahead.connection.send_goaway(3, 0, b"")
        frames = exchange(ahead, *(ahead.request()[1] for _ in range(3)))
        assert [frame.stream_id for frame in frames] == [0, 1, 3]

    def test_an_error_after_goaway_does_not_raise_its_last_stream_id(self, offline):
        exchange(offline, offline.request()[1], offline.request()[1])
        offline.connection.send_goaway(1, 0, b"")
        *_, last = exchange(offline, raw(6, 0, 0, b"short"))
        assert (last.last_stream_id, last.error_code) == (1, FRAME_SIZE_ERROR)

    def test_the_connections_window_to_its_last_octet(self, offline):
        offline.connection.returns_window = False
        for stream_id in (1, 3, 5, 7):
            octets = 16_384 - (stream_id == 7)
            assert exchange(
                offline,
                HeadersFrame(stream_id, block(offline), flags=["END_HEADERS"]).serialize(),
                raw(0, 0, stream_id, bytes(octets)),
            ) == []  # fmt: skip
        assert goaway_of(offline, raw(0, 0, 1, b"x")) == FLOW_CONTROL_ERROR

    def test_a_streams_window_to_its_last_octet(self, offline):
        exchange(offline, HeadersFrame(1, block(offline), flags=["END_HEADERS"]).serialize())
        padding = raw(0, 0x8, 1, b"\xff" + bytes(255))
        frames = exchange(offline, *[padding] * 255, raw(0, 0x8, 1, b"\xfe" + bytes(254)))
        assert {type(frame) for frame in frames} == {WindowUpdateFrame}
        frame, _ = exchange(offline, raw(0, 0x8, 1, b"\0"))
        assert frame.error_code == FLOW_CONTROL_ERROR

    def test_the_window_is_given_back_by_halves(self, offline):
        heads = (HeadersFrame(n, block(offline), flags=["END_HEADERS"]).serialize() for n in (1, 3))
        assert exchange(offline, *heads, raw(0, 0, 1, bytes(16_384)), raw(0, 0, 3, bytes(16_383))) == []
        (frame,) = exchange(offline, raw(0, 0, 3, b"x"))
        assert frame.window_increment == 32_768
        assert exchange(offline, raw(0, 0x1, 1)), "a body of just 16,384 octets waited for its end"

    def test_windows_raised_to_their_end(self, offline):
        offline.host.fate = SWALLOWED
        most = (2**31 - 1 - 65_535).to_bytes(4, "big")
        assert exchange(offline, offline.request()[1], raw(8, 0, 0, most), raw(8, 0, 1, most)) == []
        (frame,) = exchange(offline, raw(8, 0, 1, b"\0\0\0\x01"))
        assert frame.error_code == FLOW_CONTROL_ERROR
        assert goaway_of(offline, raw(8, 0, 0, b"\0\0\0\x01")) == FLOW_CONTROL_ERROR

    @pytest.mark.parametrize(("count", "good"), [(32, True), (33, False)])
    def test_header_blocks_in_pieces(self, offline, count, good):
        octets = HeadersFrame(1, b"").serialize() + b"".join(
            ContinuationFrame(
                1, block(offline) if last else b"", flags=["END_HEADERS"] if last else []
            ).serialize()
            for last in [False] * (count - 1) + [True]
        )
        frames = exchange(offline, octets)
        assert [frame.error_code for frame in frames] == ([] if good else [ENHANCE_YOUR_CALM])

    @pytest.mark.parametrize(("count", "good"), [(10_000, True), (10_001, False)])
    def test_answers_to_pings_are_counted(self, offline, count, good):
        frames = exchange(offline, PingFrame(0, bytes(8)).serialize() * count)
        assert isinstance(frames[-1], PingFrame if good else GoAwayFrame)

    def test_a_refused_header_block_still_changes_the_table(self):
        offline = Offline(limit=1)
        offline.host.fate = SWALLOWED
        exchange(offline, offline.request([("x-first", "1")])[1], offline.request([("x-second", "2")])[1])
        exchange(
            offline, RstStreamFrame(1).serialize(), offline.request([("x-second", "2"), ("x-first", "1")])[1]
        )
        assert dict(offline.host.handled[-1][1])[b"x-second"] == b"2"

    def test_a_header_list_over_the_limit_is_431(self, offline):
        frames = exchange(offline, offline.request([(f"x-{n}", "v" * 400) for n in range(30)])[1])
        assert dict(hpack.Decoder().decode(frames[0].data))[":status"] == "431"
        assert [type(frame) for frame in exchange(offline, offline.request()[1])] == [HeadersFrame]

    def test_answering_what_does_not_wait_is_a_mistake(self, offline):
        with pytest.raises(ValueError, match="stream 1 waits for no answer"):
            offline.connection.answer(1, 200, (), b"", ACCEPTED)
        offline.host.fate = SWALLOWED
        exchange(offline, offline.request()[1])
        with pytest.raises(ValueError, match="stream 1 waits for no answer"):
            offline.connection.reset(1, 2, REJECTED)


# The fast lane.

UUID = "eabeae54-14a8-11e5-b60b-1697f925ec7b"

FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "apns-id": st.sampled_from([UUID, UUID.upper(), UUID[1:], "x", ""]),
        "apns-expiration": st.sampled_from(["0", "1900000000", "-1", "", "1.0", "9" * 18, "9" * 19]),
        "apns-collapse-id": st.sampled_from(["a", "", "c" * 64, "c" * 65, "a\x01b", " a"]),
        "apns-priority": st.sampled_from(["10", "5", "1", "7", ""]),
        "apns-push-type": st.sampled_from(["alert", "background", "voip", "nonsense", ""]),
        "apns-topic": st.sampled_from(["com.example.app", "com.example.app.voip", "com.other", "", "a b"]),
        "content-length": st.sampled_from(["10", "11", "", "x"]),
        "content-type": st.sampled_from(["application/json", "a\x00b"]),
        "user-agent": st.sampled_from(["x", " x"]),
        "host": st.sampled_from(["localhost", "elsewhere"]),
        "x-other": st.just("y"),
        "te": st.sampled_from(["trailers", "gzip"]),
        "connection": st.just("close"),
        ":authority": st.just("localhost"),
    },
)  # fmt: skip
BODIES = st.sampled_from(
    [
        b'{"aps":{}}',
        b"",
        b"[]",
        b"{",
        b" {} ",
        b'{"a":"' + b"x" * 4088 + b'"}',
        b'{"a":"' + b"x" * 4089 + b'"}',
    ]
)
PATHS = st.sampled_from(
    [
        "/3/device/abab",
        "/3/device/ABAB",
        "/3/device/aba",
        "/3/device/",
        "/3/device/abxy",
        "/4/device/abab",
        "/",
    ]
)
METHODS = st.sampled_from(["POST", "POST", "POST", "GET"])


# Often the remembered headers, so that what differs is seen by the fast lane and by nothing else.
KNOWN = st.one_of(st.just({"apns-topic": "com.example.app"}), FIELDS)


@given(st.lists(st.tuples(METHODS, PATHS, KNOWN, BODIES, st.booleans()), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
@example([("POST", "/3/device/aba", {"apns-topic": "com.example.app"}, b'{"aps":{}}', False)])
@example([("POST", "/3/device/abab", {"apns-topic": "com.example.app"}, b"{" + b" " * 4095 + b"}", False)])
def test_the_fast_lane_answers_as_the_rules_do(requests):
    """One connection with a memory of what was good, and the rules alone, on the same requests."""
    world = World(topics=frozenset({"com.example.app"}), verify=False)
    shared = Shared(Log(), 0)
    shared.wall = WALL
    director = Director(
        world,
        shared,
        FaultPlan(),
        stream_limit=1_000,
        probing=False,
        clock=lambda: WALL,
        monotonic=lambda: 0.0,
    )
    connection = director.open_connection(None)
    connection.receive_data(PREFACE + SettingsFrame(0).serialize(), 0.0)
    connection.data_to_send()
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    # {"alg":"ES256","kid":"K"} and {"iss":"T","iat":1800000000}, unsigned.
    authorization = "bearer eyJhbGciOiJFUzI1NiIsImtpZCI6IksifQ.eyJpc3MiOiJUIiwiaWF0IjoxODAwMDAwMDAwfQ.x"
    binding, stream_id = Binding(), 1
    good = ("POST", "/3/device/abab", {"apns-topic": "com.example.app"}, b'{"aps":{}}', False)
    for method, path, fields, body, repeat in [good, *requests, good]:
        pairs = [(":method", method), (":scheme", "https"), (":path", path)]
        pairs += [pair for pair in fields.items() if pair[0][0] == ":"]
        pairs += [("authorization", authorization)]
        pairs += [pair for pair in fields.items() if pair[0][0] != ":"]
        pairs += pairs[-1:] if repeat else []
        octets = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        try:
            verdict = judge(read_request(octets, body), binding, world, WALL)
        except rules.Malformed:
            expected = None
        else:
            expected = verdict.status
            binding = verdict.binding or binding
        sent = HeadersFrame(stream_id, encoder.encode(octets), flags=["END_HEADERS"]).serialize()
        sent += DataFrame(stream_id, body, flags=["END_STREAM"]).serialize()
        connection.receive_data(sent, 0.0)
        first = next(f for f in read_frames(connection.data_to_send()) if f.stream_id == stream_id)
        status = (
            None if isinstance(first, RstStreamFrame) else int(dict(decoder.decode(first.data))[":status"])
        )
        assert status == expected, (method, path, fields, body)
        stream_id += 2


def test_the_fast_lane_is_taken():
    """A request like an earlier good one does not reach the host."""
    offline = Offline()
    offline.host.good = (WALL + 10, 4_096)
    for _ in range(5):
        exchange(offline, offline.request([("apns-topic", "t")])[1])
    assert len(offline.host.handled) == 1
    exchange(offline, offline.request([("apns-topic", "u")])[1])
    assert len(offline.host.handled) == 2
    offline.shared.wall = WALL + 11
    exchange(offline, offline.request([("apns-topic", "t")])[1])
    assert len(offline.host.handled) == 3
    offline.host.good = (WALL + 100, 4_096)
    exchange(offline, *[offline.request([("apns-topic", "t")])[1] for _ in range(2)])
    assert len(offline.host.handled) == 4
    offline.shared.generation += 1
    exchange(offline, offline.request([("apns-topic", "t")])[1])
    assert len(offline.host.handled) == 5
    assert offline.ledger.counts["accepted"] == 10


# Fuzz.

ROUNDS = int(os.environ.get("FASTPUSH_FUZZ_ROUNDS", "3000"))


def test_what_was_good_is_asked_for_again_in_time():
    """At the end of its time and not before, and at once when anything has changed."""
    offline = Offline()
    offline.host.good = (WALL + 10.0, 4_096)

    def handled():
        exchange(offline, offline.request()[1])
        return len(offline.host.handled)

    assert [handled(), handled()] == [1, 1]
    offline.shared.wall = WALL + 10.0
    assert handled() == 1
    offline.shared.wall = WALL + 10.25
    assert handled() == 2
    offline.shared.wall = WALL
    assert handled() == 2
    offline.shared.generation += 1
    assert [handled(), handled()] == [3, 3]


def mutated(source, octets):
    """Octets with something wrong in them."""
    kind = source.randrange(6)
    at = source.randrange(len(octets) + 1)
    if kind == 0:
        return octets[:at] + bytes([source.randrange(256)]) + octets[at + 1 :]
    if kind == 1:
        return octets[:at] + source.randbytes(source.randrange(20)) + octets[at:]
    if kind == 2:
        return octets[:at] + octets[at + source.randrange(20) :]
    if kind == 3:
        return octets[:at]
    if kind == 4:
        return octets[:at] + octets[source.randrange(len(octets) + 1) :]
    return octets


def test_no_octets_crash_it():
    """Mutated sessions, cut at random: no exception, and bounded output. FASTPUSH_SEED repeats a run."""
    seed = int(os.environ.get("FASTPUSH_SEED") or random.SystemRandom().randrange(2**32))
    print(f"FASTPUSH_SEED={seed}")
    source = random.Random(seed)
    for _ in range(ROUNDS):
        offline = Offline(limit=source.choice([1, 5, 2**31 - 1]))
        connection = offline.connection
        pieces = []
        for _ in range(source.randrange(1, 6)):
            pieces.append(offline.request([("apns-id", "x"), ("x", "y" * source.randrange(50))])[1])
            pieces.append(
                source.choice(
                    [
                        b"",
                        PingFrame(0, bytes(8)).serialize(),
                        SettingsFrame(0, settings={source.randrange(8): source.randrange(2**32)}).serialize(),
                        WindowUpdateFrame(source.randrange(8), source.randrange(1, 2**31)).serialize(),
                        RstStreamFrame(source.randrange(1, 8)).serialize(),
                        raw(
                            source.randrange(11),
                            source.randrange(256),
                            source.randrange(9),
                            source.randbytes(9),
                        ),
                    ]
                )
            )
        octets = b"".join(pieces)
        for _ in range(source.randrange(4)):
            octets = mutated(source, octets)
        while octets:
            size = source.randrange(1, len(octets) + 1)
            offline.host.fate = source.randrange(5)
            connection.receive_data(octets[:size], 0.0)
            octets = octets[size:]
            assert connection.octets_ready() < 100_000
            if source.random() < 0.5:
                read_frames(connection.data_to_send())
        connection.check_time(source.random() * 10)
        connection.connection_lost()
        assert connection.streams_open == 0
        counts = offline.ledger.counts
        assert sum(counts.values()) == len(offline.ledger.seen)
