"""Rows 9 to 25 of docs/nasty-servers.md: SETTINGS, at any time and with any value (RFC 9113 §6.5)."""

import math

import pytest

from fastpush.http2 import ErrorCode, HeaderListTooLarge, LocalProtocolError

from . import frames
from .frames import rst_stream, settings, settings_ack, window_update
from .story import BODY, IN_FLIGHT, kinds, script


def assert_all_unknown(story, streams):
    """A connection error of ours: the requests were written, and nobody can say what became of them."""
    assert len(story.outcomes) == streams
    assert {ended.processed for ended in story.outcomes.values()} <= {None}


@script(streams=IN_FLIGHT)
def test_row_09_a_lowered_stream_limit_parks_new_requests_only(story, streams):
    """§5.1.2: open streams may be more than the new limit; none is opened until they are fewer."""
    story.start(max_concurrent_streams=1000)
    stream_ids = story.open(streams)
    story.server(settings(max_concurrent_streams=1))
    assert story.engine.stream_limit == 1
    assert story.engine.streams_open == streams
    for stream_id in stream_ids:
        assert story.engine.room() == 0
        with pytest.raises(LocalProtocolError):
            story.open()
        story.server(story.frames.accept(stream_id))
        assert story.outcome(stream_id).status == 200
    assert story.engine.room() == 1
    story.open()
    assert story.engine.room() == 0


@script(streams=IN_FLIGHT)
def test_row_10_a_limit_of_zero_and_back(story, streams):
    story.start(max_concurrent_streams=1000)
    stream_ids = story.open(streams)
    story.server(settings(max_concurrent_streams=0))
    story.server(*(story.frames.accept(stream_id) for stream_id in stream_ids))
    assert story.engine.streams_open == 0
    assert story.engine.stream_limit == 0
    assert story.engine.room() == 0
    story.server(settings(max_concurrent_streams=1000))
    assert story.engine.room() == 1000
    story.sent()
    assert len(story.open(streams, body=b"x")) == streams


@script()
def test_row_10_a_limit_of_zero_from_the_start(story):
    story.start(max_concurrent_streams=0)
    assert story.engine.room() == 0
    story.server(settings(max_concurrent_streams=3))
    assert story.engine.room() == 3


@script(streams=IN_FLIGHT)
def test_row_11_refused_stream_then_stream_closed_on_one_id(story, streams):
    """Seen at APNs when it lowers the limit: the second RST_STREAM is for the DATA frame, and is ignored."""
    story.start(max_concurrent_streams=1000)
    stream_ids = story.open(streams)
    story.server(settings(max_concurrent_streams=1))
    for stream_id in stream_ids:
        (ended,) = story.server(
            rst_stream(stream_id, ErrorCode.REFUSED_STREAM), rst_stream(stream_id, ErrorCode.STREAM_CLOSED)
        )
        assert (ended.processed, ended.error_code) == (False, ErrorCode.REFUSED_STREAM)
        story.now += 0.02
    assert story.engine.streams_open == 0
    assert story.engine.room() == 1
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_12_windows_go_negative_and_are_waited_for(story, streams):
    """§6.9.2: a window may become negative; nothing is sent until WINDOW_UPDATE has made it positive."""
    story.start(max_concurrent_streams=1000, initial_window_size=20)
    stream_ids = story.open(streams)
    assert {request.arrived for request in story.requests.values()} == {BODY[:20]}
    story.server(settings(initial_window_size=5))  # now it is -15
    assert kinds(story.sent()) == ["Settings"]
    for stream_id in stream_ids:
        story.server(window_update(stream_id, 15))
        assert story.sent() == []
        story.server(window_update(stream_id, 1))
        assert kinds(story.sent()) == ["Data"]
        assert story.requests[stream_id].arrived == BODY[:21]
    story.server(settings(initial_window_size=100))
    story.sent()
    assert {request.arrived for request in story.requests.values()} == {BODY}


@script(streams=IN_FLIGHT)
def test_row_13_a_stream_window_of_zero_from_the_start(story, streams):
    """§6.9.2: HEADERS need no window. A request that waits for one can be given up, and frees its slot."""
    story.start(max_concurrent_streams=1000, initial_window_size=0)
    story.open(streams, take=False)
    assert kinds(story.sent()) == ["Headers"] * streams
    assert story.engine.window_blocked
    first, *rest = story.requests
    assert story.give_up(first)
    assert kinds(story.sent()) == ["RstStream"]
    assert story.engine.streams_open == streams - 1
    story.server(settings(initial_window_size=len(BODY)))
    sent = story.sent()
    assert [frame.stream_id for frame in sent if kinds([frame]) == ["Data"]] == rest
    assert story.requests[first].arrived == b""
    assert not story.engine.window_blocked


@script(streams=IN_FLIGHT, value=(2**31, 2**32 - 1))
def test_row_14_an_initial_window_above_the_maximum(story, streams, value):
    story.start()
    story.open(streams)
    story.server(settings(initial_window_size=value))
    story.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR)
    assert_all_unknown(story, streams)


@script()
def test_row_14_the_maximum_itself_is_good(story):
    story.start(initial_window_size=2**31 - 1)
    story.open()
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_15_a_raise_that_overflows_an_open_streams_window(story, streams):
    """§6.9.2: at 2**31 - 1 it is good, one octet more is an error of the whole connection."""
    story.start(max_concurrent_streams=1000, initial_window_size=100)
    stream_id = story.open(streams, body=b"x")[-1]
    story.server(window_update(stream_id, frames.MAX_WINDOW - 199))  # the window is now 2**31 - 101
    story.server(settings(initial_window_size=200))
    story.sent()
    story.assert_alive()
    story.server(settings(initial_window_size=201))
    story.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR)
    assert_all_unknown(story, streams)


@script(changes=((2**24 - 1,), (2**24 - 1, 16_384), (20_000, 16_385)))
def test_row_16_max_frame_size_changes_between_headers_and_data(story, changes):
    """§4.2: what waited is split by the value in force when it leaves."""
    story.start(max_concurrent_streams=1000, initial_window_size=0)
    body = bytes(range(256)) * 195  # 49,920 octets
    (stream_id,) = story.open(body=body)
    for value in changes:
        story.server(settings(max_frame_size=value))
    story.sent()
    story.server(window_update(stream_id, len(body)))
    lengths = [frame.body_len for frame in story.sent()]
    assert sum(lengths) == len(body)
    assert max(lengths) <= changes[-1]
    assert story.requests[stream_id].arrived == body


@script(streams=(1, 100), value=(0, 16_383, 2**24, 2**32 - 1))
def test_row_17_a_max_frame_size_out_of_range(story, streams, value):
    story.start()
    story.open(streams)
    story.server(settings(max_frame_size=value))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert_all_unknown(story, streams)


@script(streams=IN_FLIGHT)
def test_row_18_a_header_table_of_zero(story, streams):
    """RFC 7541 §4.2, §6.3: the next block begins with the size update, and nothing is indexed any more."""
    story.start()
    story.open(streams)
    story.server(settings(header_table_size=0))
    story.sent()
    story.open(2, take=False)
    first, second = (frame for frame in story.sent() if kinds([frame]) == ["Headers"])
    assert first.block[:1] == b"\x20"
    assert second.block[:1] != b"\x20"
    assert len(story.decoder.header_table.dynamic_entries) == 0
    story.server(*(story.frames.accept(stream_id) for stream_id in story.requests))
    assert {ended.status for ended in story.outcomes.values()} == {200}


@script(streams=IN_FLIGHT, segments=(1, 2))
def test_row_19_the_header_table_shrinks_and_grows_before_the_next_block(story, streams, segments):
    """RFC 7541 §4.2: the smallest size first, then the final one, else the tables part."""
    story.start()
    story.open(streams)
    changes = [(frames.HEADER_TABLE_SIZE, 0), (frames.HEADER_TABLE_SIZE, 4096)]
    if segments == 1:
        story.server(settings(*changes))
    else:
        story.server(*(settings(change) for change in changes))
    story.sent()
    story.open(2, take=False)
    first, second = (frame for frame in story.sent() if kinds([frame]) == ["Headers"])
    assert first.block[:4] == b"\x20\x3f\xe1\x1f"
    assert len(second.block) < len(first.block)  # its fields are in the table again


@script(sizes=((0, 0), (0, 100, 50, 4096), (100, 0, 0, 4096, 4096), (64, 128)))
def test_row_19_any_walk_of_table_sizes_keeps_the_tables_together(story, sizes):
    story.start()
    for _ in range(3):
        story.open(2)
        story.server(settings(*((frames.HEADER_TABLE_SIZE, size) for size in sizes)))
        story.sent()
        story.open(2, take=False)
        first = next(frame for frame in story.sent() if kinds([frame]) == ["Headers"])
        assert first.block[0] & 0xE0 == 0x20 or story.decoder.header_table_size == sizes[-1]
    assert story.decoder.header_table_size <= sizes[-1]


@script(streams=IN_FLIGHT, value=(4097, 65_536, 2**32 - 1))
def test_row_20_a_larger_header_table_is_not_used(story, streams, value):
    """RFC 7541 §4.2: an encoder may use less than it is offered; ours keeps 4,096."""
    story.start(max_concurrent_streams=1000, header_table_size=value)
    story.open(streams)
    assert story.decoder.header_table_size == 4096
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_21_a_header_list_larger_than_the_peer_takes(story, streams):
    """§6.5.2: told to the caller before anything is written; the next stream id is not used up."""
    story.start()
    stream_ids = story.open(streams)
    story.server(settings(max_header_list_size=100))
    story.sent()
    before = story.engine.streams_open, story.engine.requests_sent
    with pytest.raises(HeaderListTooLarge, match="100"):
        story.open()
    assert (story.engine.streams_open, story.engine.requests_sent) == before
    assert story.sent() == []
    story.server(settings(max_header_list_size=8000), *map(story.frames.accept, stream_ids))
    story.sent()
    story.open()
    assert {ended.status for ended in story.outcomes.values()} == {200}


@script()
def test_row_21_exactly_the_peers_header_list_size_is_sent(story):
    story.start()
    story.open()
    (request,) = story.requests.values()
    octets = sum(len(name) + len(value) + 32 for name, value in request.fields)
    story.server(settings(max_header_list_size=octets))
    story.sent()
    story.open()
    story.server(settings(max_header_list_size=octets - 1))
    story.sent()
    with pytest.raises(HeaderListTooLarge):
        story.open()


@script(streams=(1, 100), value=(1, 2))
def test_row_22_a_server_that_enables_push(story, streams, value):
    story.start()
    story.open(streams)
    story.server(settings(enable_push=value))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert_all_unknown(story, streams)


@script()
def test_row_22_push_disabled_by_the_server_is_good(story):
    story.start(enable_push=0)
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_23_a_thousand_unknown_settings(story, streams):
    """§6.5.2: ignored; one acknowledgement to a frame."""
    story.start()
    story.open(streams)
    story.server(settings(*((0x1000 + number, number) for number in range(1000))))
    assert kinds(story.sent()) == ["Settings"]
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_23_settings_in_a_flood(story, streams):
    """§10.5: twenty a second are acknowledged, one more ends the connection."""
    story.start()
    story.open(streams)
    story.server(*[settings()] * 20)
    assert kinds(story.sent()) == ["Settings"] * 20
    story.server(settings())
    story.assert_connection_error(ErrorCode.ENHANCE_YOUR_CALM)
    assert_all_unknown(story, streams)


@script(
    streams=(1, 100),
    fault=(
        (frames.raw(frames.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.raw(frames.SETTINGS, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.raw(frames.SETTINGS, frames.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.raw(frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.raw(frames.SETTINGS, frames.ACK, 1), ErrorCode.PROTOCOL_ERROR),
    ),
)
def test_row_24_settings_frames_of_a_wrong_form(story, streams, fault):
    story.start()
    story.open(streams)
    octets, code = fault
    story.server(octets)
    story.assert_connection_error(code)
    assert_all_unknown(story, streams)


@script(streams=IN_FLIGHT)
def test_row_25_our_settings_are_never_acknowledged(story, streams):
    """§6.5.3: ten seconds after they were sent the connection ends with SETTINGS_TIMEOUT."""
    story.begin()
    story.server(settings(max_concurrent_streams=1000))
    story.sent()
    story.open(streams)
    assert story.engine.next_time() == 10.0
    assert story.tell("check_time", 9.9) == []
    assert not story.engine.closed
    story.take_events(story.tell("check_time", 10.1))
    story.assert_connection_error(ErrorCode.SETTINGS_TIMEOUT)
    assert_all_unknown(story, streams)
    assert story.engine.next_time() == math.inf


@script()
def test_row_25_an_acknowledgement_ends_the_wait(story):
    story.begin()
    story.server(settings(), settings_ack())
    assert story.engine.next_time() == math.inf
    assert story.tell("check_time", 1e9) == []
    story.assert_alive()
