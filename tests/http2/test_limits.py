"""Every limit that an engine owns (`fastpush.http2.Limits`): at n it holds, at n + 1 it bites."""

import dataclasses
import math

import pytest

from fastpush.http2 import ErrorCode, GoawayReceived, Limits, LocalProtocolError

from . import frames
from .frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    data,
    header_block,
    ping,
    raw,
    rst_stream,
    settings,
)
from .story import codes_of_resets, kinds, script


def limits_with(name, value):
    return dataclasses.replace(Limits(), **{name: value})


@script(limit=(16_384, 20_000, 2**20))
def test_frame_octets(story, limit):
    story.start(limits=Limits(frame_octets=limit, connection_window_octets=2**24))
    first, second = story.open(2)
    window = 65_535  # our SETTINGS name no INITIAL_WINDOW_SIZE
    padding = b"x" * limit
    story.server(raw(0x42, 0, 0, padding))
    if limit < window:
        story.server(story.frames.headers(first), data(first, padding, end_stream=True))
        assert story.outcome(first).status == 200
    story.assert_alive()
    story.server(raw(DATA, 0, second, length=limit + 1))
    story.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR)


def test_our_settings_name_the_limits(story):
    preface = story.begin(
        limits=Limits(frame_octets=20_000, header_list_octets=9_000, decoder_table_octets=1_000)
    )
    ours = preface[0].settings
    assert ours[frames.MAX_FRAME_SIZE] == 20_000
    assert ours[frames.MAX_HEADER_LIST_SIZE] == 9_000
    assert ours[frames.HEADER_TABLE_SIZE] == 1_000
    assert ours[frames.ENABLE_PUSH] == 0


def list_of(octets):
    """A response whose header list has this many octets (RFC 9113 §6.5.2), in HPACK without any table."""
    value = octets - len(b":status200") - 32 - len(b"x") - 32
    length, prefix = value - 127, b"\x7f"
    while length >= 128:
        prefix += bytes([length & 0x7F | 0x80])
        length >>= 7
    return b"\x88\x00\x01x" + prefix + bytes([length]) + b"v" * value


@script(limit=(500, 16_384, 40_000))
def test_header_list_octets(story, limit):
    story.start(limits=Limits(header_list_octets=limit))
    first, second, third = story.open(3)
    cuts = range(10_000, limit, 10_000)
    story.server(header_block(first, list_of(limit), cuts=cuts, end_stream=True))
    assert story.outcome(first).status == 200
    story.server(header_block(second, list_of(limit + 1), cuts=cuts, end_stream=True))
    ended = story.outcome(second)
    assert ended.error_code is not None
    assert ended.reason
    if not story.engine.closed:
        story.server(story.frames.accept(third))
        assert story.outcome(third).status == 200


@script(limit=(0, 1, 8, 50))
def test_continuations(story, limit):
    story.start(limits=Limits(continuations=limit))
    first, second = story.open(2)
    block = b"\x88" + b"\x00\x01n\x01v" * 60
    story.server(header_block(first, block, cuts=range(1, 1 + limit), end_stream=True))
    assert story.outcome(first).status == 200
    story.server(header_block(second, block, cuts=range(1, 2 + limit), end_stream=True))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)


def size_update(size):
    prefix = size - 31
    octets = b"\x3f"
    while prefix >= 128:
        octets += bytes([prefix & 0x7F | 0x80])
        prefix >>= 7
    return octets + bytes([prefix])


@script(limit=(100, 1_000, 4_096, 65_536))
def test_decoder_table_octets(story, limit):
    story.start(limits=Limits(decoder_table_octets=limit))
    first, second = story.open(2)
    story.server(header_block(first, size_update(limit) + b"\x88", end_stream=True))
    assert story.outcome(first).status == 200
    story.server(header_block(second, size_update(limit + 1) + b"\x88", end_stream=True))
    story.assert_connection_error(ErrorCode.COMPRESSION_ERROR)


@script(limit=(0, 300, 4_096), offered=(None, 4_096, 100_000))
def test_encoder_table_octets(story, limit, offered):
    """Whatever the peer offers, our table never holds more: seen in the peer's own table."""
    given = {"max_concurrent_streams": 100} | ({"header_table_size": offered} if offered else {})
    story.start(limits=Limits(encoder_table_octets=limit), **given)
    for number in range(30):
        story.make_template(after=[(b"apns-topic", b"com.example.app%030d" % number)])
        story.open(2)
    table = story.decoder.header_table
    held = sum(len(name) + len(value) + 32 for name, value in table.dynamic_entries)
    assert held <= limit
    assert (held > 0) == (limit > 0)


@script(limit=(0, 10, 4_096))
def test_body_octets(story, limit):
    story.start(limits=Limits(body_octets=limit))
    for octets in (limit, limit + 1, limit + 5_000):
        (stream_id,) = story.open()
        body = bytes(number % 251 for number in range(octets))
        parts = [body[at : at + 1_000] for at in range(0, octets, 1_000)]
        story.server(
            story.frames.headers(stream_id, 400),
            *(data(stream_id, part) for part in parts),
            data(stream_id, end_stream=True),
        )
        assert story.outcome(stream_id).body == body[:limit]
        assert story.outcome(stream_id).error_code is None


@script(kind=("ping", "both"), limit=(10, 1_000))
def test_queued_control_frames(story, kind, limit):
    story.start(limits=Limits(queued_control_frames=limit, pings_per_second=10**6, settings_per_second=10**6))
    answered = [ping()] * limit if kind == "ping" else [ping(), settings()] * (limit // 2)
    story.server(*answered)
    assert len(story.sent()) == limit  # taken: the next may come
    story.server(*answered)
    assert not story.engine.closed
    story.server(answered[0])
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)


@script(limit=(1, 100))
def test_pings_per_second(story, limit):
    story.start(limits=Limits(pings_per_second=limit))
    for _ in range(3):
        story.server(*[ping()] * limit)
        assert kinds(story.sent()) == ["Ping"] * limit
        story.now += 1.0
    story.server(*[ping()] * (limit + 1))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)


@script(limit=(1, 20))
def test_settings_per_second(story, limit):
    story.start(limits=Limits(settings_per_second=limit))
    for _ in range(3):
        story.server(*[settings()] * limit)
        assert kinds(story.sent()) == ["Settings"] * limit
        story.now += 1.0
    story.server(*[settings()] * (limit + 1))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)


@script(limit=(1, 1_000))
def test_settings_entries(story, limit):
    story.start(limits=Limits(settings_entries=limit))
    story.server(settings(*[(0x99, 1)] * limit))
    story.assert_alive()
    story.server(settings(*[(0x99, 1)] * (limit + 1)))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)


@script(limit=(1, 100))
def test_empty_data_in_a_row(story, limit):
    story.start(limits=Limits(empty_frames_in_a_row=limit))
    (stream_id,) = story.open()
    story.server(story.frames.headers(stream_id))
    for _ in range(3):
        story.server(*[data(stream_id)] * limit, data(stream_id, b"x"))
    story.assert_alive()
    story.server(*[data(stream_id)] * limit)
    assert not story.engine.closed
    story.server(data(stream_id))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)
    assert story.outcome(stream_id).status == 200


@script(limit=(1, 50))
def test_empty_continuations_in_a_row(story, limit):
    story.start(limits=Limits(empty_frames_in_a_row=limit, continuations=10**6))
    first, second = story.open(2)
    empty = raw(CONTINUATION, 0, first)
    story.server(
        raw(HEADERS, END_STREAM, first, b"\x88"),
        *[empty] * limit,
        raw(CONTINUATION, END_HEADERS, first, b"\x00\x01n\x01v"),
    )
    assert story.outcome(first).status == 200
    empty = raw(CONTINUATION, 0, second)
    story.server(raw(HEADERS, END_STREAM, second, b"\x88"), *[empty] * (limit + 1))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)


@script(limit=(1, 100))
def test_resets_above_in_flight(story, limit):
    """One RST_STREAM for each stream that was open is the peer's right, even a thousand at once."""
    story.start(limits=Limits(resets_above_in_flight=limit))
    stream_ids = story.open(50)
    story.server(*(rst_stream(stream_id, 8) for stream_id in stream_ids))
    story.server(*[rst_stream(stream_ids[0], 8)] * limit)
    assert not story.engine.closed
    story.server(rst_stream(stream_ids[0], 8))
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)


@script(limit=(1, 100))
def test_resets_count_anew_each_second(story, limit):
    story.start(limits=Limits(resets_above_in_flight=limit))
    (stream_id,) = story.open()
    story.server(story.frames.accept(stream_id))
    for _ in range(5):
        story.now += 1.0
        story.server(*[rst_stream(stream_id, 8)] * limit)
    story.assert_alive()


@script(limit=(0, 1, 8))
def test_interim_responses(story, limit):
    story.start(limits=Limits(interim_responses=limit))
    first, second, third = story.open(3)
    interim = [story.frames.headers(first, 103) for _ in range(limit)]
    story.server(*interim, story.frames.accept(first))
    assert story.outcome(first).status == 200
    story.server(*(story.frames.headers(second, 103) for _ in range(limit + 1)))
    ended = story.outcome(second)
    assert (ended.status, ended.processed) == (None, None)
    if not story.engine.closed:
        assert codes_of_resets(story.sent(), second) == [ended.error_code]
        story.server(story.frames.accept(third))
        assert story.outcome(third).status == 200


@script(limit=(0, 10, 1_024))
def test_goaway_debug_octets(story, limit):
    story.start(limits=Limits(goaway_debug_octets=limit))
    text = b"debug data " * 200
    for octets in (limit, limit + 1, len(text)):
        assert story.server(frames.goaway(7, 0, text[:octets])) == [
            GoawayReceived(7, 0, text[:octets][:limit])
        ]


@script(limit=(0.5, 10.0))
def test_settings_acknowledged_within(story, limit):
    story.now = 1_000.0
    story.begin(limits=Limits(settings_acknowledged_within=limit))
    assert story.engine.next_time() == pytest.approx(1_000.0 + limit)
    assert story.tell("check_time", 1_000.0 + limit - 0.01) == []
    story.take_events(story.tell("check_time", 1_000.0 + limit + 0.01))
    story.assert_connection_error(ErrorCode.SETTINGS_TIMEOUT)


@script(limit=(1, 1_000))
def test_default_stream_limit(story, limit):
    """It stands for the value that a peer leaves out, and bounds none that a peer names."""
    story.start((frames.MAX_FRAME_SIZE, 16_384), limits=Limits(default_stream_limit=limit))
    assert story.engine.stream_limit == limit
    assert story.engine.room() == limit
    story.open(limit)
    assert story.engine.room() == 0
    with pytest.raises(LocalProtocolError):
        story.open()
    story.server(settings(max_concurrent_streams=limit + 7))
    assert story.engine.room() == 7


@script(window=(65_535, 65_536, 16 * 2**20, 2**31 - 1))
def test_connection_window_octets(story, window):
    story.begin(limits=Limits(connection_window_octets=window))
    assert story.our_connection_window == window


@script(last=(1, 7, 2**30 + 1, 2**31 - 1))
def test_last_stream_id(story, last):
    """The id itself is used, then the connection drains: its successor opens before the ids run out."""
    first = max(1, last - 6)
    story.start(limits=Limits(last_stream_id=last), first_stream_id=first)
    count = (last - first) // 2 + 1
    assert not story.engine.draining
    assert story.engine.room() == count
    stream_ids = story.open(count)
    assert stream_ids[-1] == last
    assert story.engine.draining
    assert story.engine.room() == 0
    with pytest.raises(LocalProtocolError):
        story.open()
    story.server(*map(story.frames.accept, stream_ids))
    assert {ended.status for ended in story.outcomes.values()} == {200}
    assert not story.engine.closed


def test_every_limit_has_its_test():
    tested = {
        "empty_frames_in_a_row": "test_empty_data_in_a_row",
    }
    for limit in dataclasses.fields(Limits):
        assert tested.get(limit.name, f"test_{limit.name}") in globals(), limit.name
    assert math.isfinite(Limits().settings_acknowledged_within)
