"""Rows 1 to 8 of docs/nasty-servers.md: how a server may end the connection (RFC 9113 §6.8, §8.7)."""

import pytest

from fastpush.http2 import ConnectionEnded, ErrorCode, GoawayReceived, LocalProtocolError

from . import frames
from .frames import goaway, ping, settings, window_update
from .story import BODY, IN_FLIGHT, kinds, script


@script(streams=IN_FLIGHT)
def test_row_01_goaway_lets_streams_up_to_its_last_id_finish(story, streams):
    """§6.8: those above the last stream id were not processed; those up to it go on to their answers."""
    story.start()
    stream_ids = story.open(streams)
    kept, refused = stream_ids[: streams // 2], stream_ids[streams // 2 :]
    last = kept[-1] if kept else 0

    *ended, told = story.server(goaway(last))
    assert told == GoawayReceived(last, ErrorCode.NO_ERROR, b"")
    assert sorted(event.stream_id for event in ended) == refused
    assert {(event.status, event.processed) for event in ended} == {(None, False)}
    assert {event.error_code for event in ended} == {ErrorCode.NO_ERROR}

    assert story.engine.draining
    assert not story.engine.closed
    assert story.engine.room() == 0
    assert story.engine.streams_open == len(kept)
    with pytest.raises(LocalProtocolError):
        story.open()
    assert story.sent() == []

    for stream_id in kept:
        story.server(story.frames.accept(stream_id))
        assert story.outcome(stream_id).status == 200
    assert story.engine.streams_open == 0
    assert len(story.outcomes) == streams


@script(streams=IN_FLIGHT)
def test_row_01_goaway_and_the_answers_in_one_segment(story, streams):
    story.start()
    stream_ids = story.open(streams)
    story.server(goaway(stream_ids[-1]), *(story.frames.accept(stream_id) for stream_id in stream_ids))
    assert {story.outcome(stream_id).status for stream_id in stream_ids} == {200}


@script(streams=IN_FLIGHT)
def test_row_02_first_goaway_only_stops_opening_the_second_decides(story, streams):
    """§6.8: a graceful server first says 2**31 - 1, and its real last stream id later."""
    story.start()
    stream_ids = story.open(streams)
    events = story.server(goaway(frames.MAX_STREAM_ID))
    assert events == [GoawayReceived(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR, b"")]
    assert story.engine.room() == 0
    assert story.engine.streams_open == streams

    story.server(story.frames.accept(stream_ids[0]))
    last = stream_ids[0]
    *ended, told = story.server(goaway(last, ErrorCode.NO_ERROR, b'{"reason":"Shutdown"}'))
    assert told == GoawayReceived(last, ErrorCode.NO_ERROR, b'{"reason":"Shutdown"}')
    assert sorted(event.stream_id for event in ended) == stream_ids[1:]
    assert all(event.processed is False for event in ended)
    assert story.outcome(stream_ids[0]).status == 200


@script(streams=IN_FLIGHT)
def test_row_02_the_same_goaway_twice(story, streams):
    story.start()
    stream_ids = story.open(streams)
    told = GoawayReceived(stream_ids[-1], ErrorCode.NO_ERROR, b"")
    assert story.server(goaway(stream_ids[-1]), goaway(stream_ids[-1])) == [told, told]
    story.server(*(story.frames.accept(stream_id) for stream_id in stream_ids))
    assert {ended.status for ended in story.outcomes.values()} == {200}


@script(streams=IN_FLIGHT)
def test_row_03_a_higher_second_last_id_is_a_violation_and_changes_no_outcome(story, streams):
    """§6.8: "Endpoints MUST NOT increase the value". What ended as not processed is under way elsewhere."""
    story.start()
    stream_ids = story.open(streams)
    lower = stream_ids[streams // 2 - 1] if streams > 1 else 0
    story.server(goaway(lower))
    refused = dict(story.outcomes)
    assert len(refused) == streams - streams // 2

    story.server(goaway(stream_ids[-1] + 2))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert all(story.outcomes[tag] is ended for tag, ended in refused.items())
    rest = [ended for tag, ended in story.outcomes.items() if tag not in refused]
    assert {ended.processed for ended in rest} <= {None}


@script(streams=(1, 100), code=(ErrorCode.NO_ERROR, ErrorCode.PROTOCOL_ERROR, ErrorCode.ENHANCE_YOUR_CALM))
def test_row_04_goaway_hands_its_code_and_debug_data_on(story, streams, code):
    """APNs names the cause in JSON, often under NO_ERROR: who pauses what is the connection's to say."""
    story.start()
    story.open(streams)
    reason = b'{"reason":"BadCertificate"}'
    assert story.server(goaway(0, code, reason))[-1] == GoawayReceived(0, code, reason)
    assert {ended.error_code for ended in story.outcomes.values()} == {code}
    assert {ended.processed for ended in story.outcomes.values()} == {False}


@script()
def test_row_04_debug_data_may_be_plain_text(story):
    """Seen at APNs with error code 7, when its stream limit was exceeded; it is no JSON."""
    story.start()
    text = b"Maximum active streams violated for this endpoint."
    assert story.server(goaway(0, ErrorCode.REFUSED_STREAM, text)) == [
        GoawayReceived(0, ErrorCode.REFUSED_STREAM, text)
    ]


@script()
def test_row_05_goaway_before_any_stream(story):
    story.start()
    assert story.server(goaway(0)) == [GoawayReceived(0, ErrorCode.NO_ERROR, b"")]
    assert story.engine.draining
    assert story.engine.room() == 0
    assert story.engine.requests_sent == 0


@script()
def test_row_05_goaway_right_after_the_first_settings(story):
    story.begin()
    events = story.server(settings(), goaway(0, ErrorCode.ENHANCE_YOUR_CALM))
    assert events == [GoawayReceived(0, ErrorCode.ENHANCE_YOUR_CALM, b"")]
    assert story.engine.room() == 0


@script(streams=IN_FLIGHT)
def test_row_06_after_goaway_everything_else_goes_on(story, streams):
    """§6.8: answers, trailers, PING, SETTINGS and WINDOW_UPDATE are dealt with as before."""
    story.start(max_concurrent_streams=1000, initial_window_size=10)
    stream_ids = story.open(streams)
    assert story.requests[stream_ids[0]].arrived == BODY[:10]
    story.server(goaway(stream_ids[-1]))

    story.server(ping(b"12345678"), settings(initial_window_size=20))
    sent = story.sent()
    assert {"Ping", "Settings"} <= set(kinds(sent))
    assert all(request.arrived == BODY[:20] for request in story.requests.values())

    story.server(*(window_update(stream_id, len(BODY)) for stream_id in stream_ids))
    story.sent()
    assert all(request.arrived == BODY for request in story.requests.values())

    for stream_id in stream_ids:
        story.server(story.frames.headers(stream_id), story.frames.trailers(stream_id))
        assert story.outcome(stream_id).status == 200
        assert story.outcome(stream_id).error_code is None


@script(streams=IN_FLIGHT)
def test_row_06_a_ping_of_ours_is_answered_after_goaway(story, streams):
    story.start()
    story.open(streams)
    story.server(goaway(frames.MAX_STREAM_ID))
    story.tell("ping", b"8 octets")
    assert kinds(story.sent()) == ["Ping"]
    assert [event.opaque for event in story.server(ping(b"8 octets", ack=True))] == [b"8 octets"]


@script(streams=IN_FLIGHT)
def test_row_07_goaway_then_the_connection_is_cut(story, streams):
    """§6.8: up to the last stream id they might have been processed, above it they were surely not."""
    story.start()
    stream_ids = story.open(streams)
    last = stream_ids[streams // 2]
    story.server(goaway(last))
    events = story.take_events(story.tell("connection_lost", "connection reset by peer"))
    assert isinstance(events[-1], ConnectionEnded)
    assert events[-1].reason == "connection reset by peer"
    for stream_id in stream_ids:
        expected = None if stream_id <= last else False
        assert story.outcome(stream_id).processed is expected


@script(streams=IN_FLIGHT)
def test_row_07_the_connection_is_cut_before_all_was_written(story, streams):
    """What was never taken from the engine cannot have been processed (§8.7)."""
    story.start()
    written = story.open(streams)
    left = story.open(2, take=False)
    story.take_events(story.tell("connection_lost", "connection reset by peer"))
    assert {story.outcome(stream_id).processed for stream_id in written} == {None}
    assert {story.outcome(stream_id).processed for stream_id in left} == {False}


@script(streams=IN_FLIGHT)
def test_row_08_goaway_on_a_stream(story, streams):
    story.start()
    stream_ids = story.open(streams)
    story.server(frames.raw(frames.GOAWAY, 0, stream_ids[0], bytes(8)))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert {ended.processed for ended in story.outcomes.values()} == {None}
    assert len(story.outcomes) == streams


@script()
def test_row_08_goaway_of_less_than_eight_octets(story):
    story.start()
    story.server(frames.raw(frames.GOAWAY, 0, 0, bytes(7)))
    story.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR)
