"""Rows 26 to 31 of docs/nasty-servers.md: windows that stay shut, trickle or overflow (RFC 9113 §6.9)."""

import pytest

from fastpush.http2 import ErrorCode, Limits, LocalProtocolError

from . import frames
from .frames import settings, window_update
from .story import IN_FLIGHT, kinds, script


def use_up(story, streams):
    """Open up to `streams` requests until the connection's window of 65,535 octets is used up."""
    body = b"x" * (65_535 // streams + 1)
    while story.engine.room() > 0:
        story.open(body=body)
    assert len(story.requests) <= streams
    assert story.connection_window == 0
    return list(story.requests)


@script(streams=IN_FLIGHT)
def test_row_26_the_connection_window_is_used_up(story, streams):
    """§6.9: no request is taken, yet PING works, streams can be given up, and it all resumes."""
    story.start(max_concurrent_streams=1100, initial_window_size=1_000_000)
    stream_ids = use_up(story, streams)
    assert story.engine.room() == 0
    assert story.engine.window_blocked
    assert story.engine.send_window == 0
    with pytest.raises(LocalProtocolError):
        story.open()
    story.assert_alive()

    assert story.give_up(stream_ids[-1])  # its deadline passed
    assert kinds(story.sent()) == ["RstStream"]
    assert story.engine.room() == 0

    story.server(window_update(0, 1_000_000))
    assert story.engine.room() > 0
    assert not story.engine.window_blocked
    story.server(*(story.frames.accept(stream_id) for stream_id in stream_ids[:-1]))
    story.sent()
    story.open()
    assert {ended.status for ended in story.outcomes.values()} <= {200}


@script()
def test_row_26_what_waits_follows_in_the_order_of_streams(story):
    story.start(max_concurrent_streams=10, initial_window_size=0)
    stream_ids = story.open(10, body=b"x" * 10_000)
    story.server(settings(initial_window_size=10_000))  # the connection's window is 65,535
    sent = [frame.stream_id for frame in story.sent() if kinds([frame]) == ["Data"]]
    assert sent == stream_ids[:7]
    story.server(window_update(0, 100_000))
    sent = [frame.stream_id for frame in story.sent()]
    assert sent == stream_ids[6:]


@script(streams=IN_FLIGHT)
def test_row_27_window_updates_of_one_octet(story, streams):
    """§6.9, §10.5: each lets one octet out; nothing is lost, nothing is sent beyond."""
    story.start(max_concurrent_streams=1100, initial_window_size=1_000_000)
    use_up(story, streams)
    waiting = sum(len(request.body) - len(request.arrived) for request in story.requests.values())
    assert waiting > 0
    for _ in range(min(waiting, 300)):
        story.server(window_update(0, 1))
        assert sum(frame.body_len for frame in story.sent()) == 1
    assert sum(len(request.body) - len(request.arrived) for request in story.requests.values()) == (
        waiting - min(waiting, 300)
    )


@script(streams=IN_FLIGHT)
def test_row_28_a_window_update_of_zero_on_a_stream(story, streams):
    story.start()
    stream_ids = story.open(streams)
    story.server(frames.raw(frames.WINDOW_UPDATE, 0, stream_ids[0], bytes(4)))
    story.assert_stream_error(stream_ids[0], ErrorCode.PROTOCOL_ERROR)
    assert story.engine.streams_open == streams - 1
    story.server(*map(story.frames.accept, stream_ids[1:]))
    assert len(story.outcomes) == streams
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_28_a_window_update_of_zero_on_the_connection(story, streams):
    story.start()
    story.open(streams)
    story.server(frames.raw(frames.WINDOW_UPDATE, 0, 0, bytes(4)))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert {ended.processed for ended in story.outcomes.values()} == {None}


@script(streams=IN_FLIGHT)
def test_row_29_a_stream_window_over_its_maximum(story, streams):
    """§6.9.1: that stream is reset; at the maximum itself it is still good."""
    story.start(max_concurrent_streams=1000, initial_window_size=0)
    stream_ids = story.open(streams)
    story.server(window_update(stream_ids[0], len(story.requests[1].body)))
    story.sent()
    story.server(window_update(stream_ids[0], frames.MAX_WINDOW))
    story.assert_alive()
    story.server(window_update(stream_ids[0], 1))
    story.assert_stream_error(stream_ids[0], ErrorCode.FLOW_CONTROL_ERROR)
    story.server(*map(story.frames.reject, stream_ids[1:]))
    assert len(story.outcomes) == streams
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_29_the_connection_window_over_its_maximum(story, streams):
    story.start(max_concurrent_streams=1000, initial_window_size=0)
    story.open(streams)
    story.server(window_update(0, frames.MAX_WINDOW - 65_535))
    story.assert_alive()
    story.server(window_update(0, 1))
    story.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR)
    assert {ended.processed for ended in story.outcomes.values()} == {None}


@script(streams=IN_FLIGHT)
def test_row_30_data_beyond_our_window(story, streams):
    """§6.9.1: a stream or a connection error of type FLOW_CONTROL_ERROR."""
    story.start(limits=Limits(frame_octets=200_000, connection_window_octets=65_535))
    stream_ids = story.open(streams)
    story.server(story.frames.headers(stream_ids[0]), frames.data(stream_ids[0], bytes(65_536)))
    assert story.outcome(stream_ids[0]).status == 200
    assert story.outcome(stream_ids[0]).error_code == ErrorCode.FLOW_CONTROL_ERROR
    if story.engine.closed:
        story.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR)


@script(streams=IN_FLIGHT)
def test_row_31_data_on_streams_that_we_gave_up(story, streams):
    """§5.1, §6.9: dropped, but given back to the connection's window: a million octets stall nothing."""
    story.start(limits=Limits(connection_window_octets=65_535))
    received = 0
    while received < 1_000_000:
        stream_ids = story.open(min(streams, 100))
        for stream_id in stream_ids:
            assert story.give_up(stream_id)
        story.sent()
        for stream_id in stream_ids:
            story.server(story.frames.headers(stream_id))
            for _ in range(3):
                assert story.our_connection_window >= 16_384, "the server may not send: the connection stalls"
                story.server(frames.data(stream_id, bytes(16_384)))
                received += 16_384
                story.sent()
        story.now += 1.0
    assert story.outcomes == {}
    assert story.engine.late_responses == len(story.requests)
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_31_the_body_of_an_answer_is_given_back_too(story, streams):
    """Our stream windows are never the bottleneck of an honest server, however long its answer is."""
    story.start(limits=Limits(connection_window_octets=65_535))
    stream_ids = story.open(streams)
    stream_id, window = stream_ids[0], 65_535
    story.server(story.frames.headers(stream_id))
    for _ in range(40):
        assert min(window, story.our_connection_window) >= 10_000
        story.server(frames.data(stream_id, bytes(10_000 - 1 - 9), pad=9))
        window -= 10_000
        for frame in story.sent():
            if kinds([frame]) == ["WindowUpdate"] and frame.stream_id == stream_id:
                window += frame.window_increment
    story.server(frames.data(stream_id, end_stream=True))
    assert story.outcome(stream_id).status == 200
    assert story.outcome(stream_id).body == bytes(4096)


@script()
def test_the_send_window_counts_each_queued_octet_once(story):
    """DATA that waits for its stream's window is taken off the connection's in advance, and not again."""
    story.start(initial_window_size=40)
    first, second = story.open(2, body=b"x" * 100)
    assert story.engine.send_window == 65_535 - 200
    assert story.engine.window_blocked
    story.server(window_update(first, 25))
    assert story.engine.send_window == 65_535 - 200
    story.server(window_update(first, 35))
    assert story.engine.send_window == 65_535 - 200
    assert story.give_up(second)
    assert story.engine.send_window == 65_535 - 140
    assert not story.engine.window_blocked
    story.sent()
    story.server(story.frames.accept(first))
    assert story.engine.send_window == 65_535 - 140
