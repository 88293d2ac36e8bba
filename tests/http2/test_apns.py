"""What APNs was seen to do on a connection, and what it does to an engine.

Each comes from a public report: pushy (issues 254 to 1025), apns2 (163, 209), aapns, node-apn, and
Apple's "Sending notification requests to APNs".
"""

import pytest

from fastpush.http2 import ErrorCode, GoawayReceived, LocalProtocolError

from . import frames
from .frames import data, goaway, rst_stream, settings, window_update
from .story import BODY, kinds, script

APNS_SETTINGS = {
    "header_table_size": 4_096,
    "initial_window_size": 65_535,
    "max_frame_size": 16_384,
    "max_header_list_size": 8_000,
}


@script()
def test_one_stream_until_the_first_answer_then_a_thousand(story):
    """Token authentication: the limit is 1 until a request was valid."""
    story.start(max_concurrent_streams=1, **APNS_SETTINGS)
    assert story.engine.room() == 1
    (first,) = story.open()
    assert story.engine.room() == 0
    with pytest.raises(LocalProtocolError):
        story.open()
    story.server(story.frames.accept(first), settings(max_concurrent_streams=1_000))
    assert kinds(story.sent()) == ["Settings"]
    assert story.engine.room() == 1_000
    assert len(story.open(1_000)) == 1_000
    assert story.engine.room() == 0


@script()
def test_no_stream_is_opened_before_settings_came(story):
    """RFC 9113 begins with "unlimited"; APNs resets what is above its limit of 1."""
    story.begin()
    assert story.engine.stream_limit == 0
    with pytest.raises(LocalProtocolError):
        story.open()
    assert story.sent() == []


@script()
def test_a_rejection_drops_the_limit_to_one_and_an_answer_restores_it(story):
    story.start(max_concurrent_streams=500)
    for _ in range(10):
        stream_ids = story.open(3)
        story.server(story.frames.reject(stream_ids[0]), settings(max_concurrent_streams=1))
        assert story.engine.room() == 0
        story.server(*map(story.frames.accept, stream_ids[1:]), settings(max_concurrent_streams=500))
        assert story.engine.room() == 500
        story.sent()
        story.now += 1.0


@script()
def test_streams_above_a_lowered_limit_are_refused_and_their_data_too(story):
    """pushy 476: REFUSED_STREAM for HEADERS, then STREAM_CLOSED for the DATA frame of the same stream."""
    story.start(max_concurrent_streams=1_000)
    kept, *above = story.open(20)
    story.server(
        settings(max_concurrent_streams=1),
        *(rst_stream(stream_id, ErrorCode.REFUSED_STREAM) for stream_id in above),
        *(rst_stream(stream_id, ErrorCode.STREAM_CLOSED) for stream_id in above),
        story.frames.accept(kept),
    )
    assert story.outcome(kept).status == 200
    assert {story.outcome(stream_id).processed for stream_id in above} == {False}
    assert {story.outcome(stream_id).error_code for stream_id in above} == {ErrorCode.REFUSED_STREAM}
    assert story.engine.room() == 1
    story.assert_alive()


@script()
def test_the_limit_was_really_exceeded(story):
    """pushy 356: GOAWAY with error code 7 and plain text; the last stream id decides as ever."""
    story.start(max_concurrent_streams=1_000)
    stream_ids = story.open(4)
    text = b"Maximum active streams violated for this endpoint."
    *ended, told = story.server(goaway(stream_ids[1], ErrorCode.REFUSED_STREAM, text))
    assert told == GoawayReceived(stream_ids[1], ErrorCode.REFUSED_STREAM, text)
    assert [event.stream_id for event in ended] == stream_ids[2:]
    story.server(*map(story.frames.accept, stream_ids[:2]))
    assert [story.outcome(stream_id).processed for stream_id in stream_ids] == [True, True, False, False]


@script()
def test_two_goaway_frames_of_a_graceful_shutdown(story):
    story.start()
    stream_ids = story.open(6)
    reason = b'{"reason":"Shutdown"}'
    assert len(story.server(goaway(frames.MAX_STREAM_ID, 0, reason))) == 1
    story.server(story.frames.accept(stream_ids[0]))
    assert len(story.server(goaway(stream_ids[3], 0, reason))) == 3
    assert len(story.server(goaway(stream_ids[3], 0, reason))) == 1
    story.server(*map(story.frames.accept, stream_ids[1:4]))
    assert story.engine.streams_open == 0
    assert not story.engine.closed


@script()
def test_goaway_after_a_bad_device_token_and_the_connection_is_closed(story):
    """Seen in the sandbox: a tenth of the neighbours in flight die with it, and may have been delivered."""
    story.start()
    stream_ids = story.open(10)
    story.server(story.frames.reject(stream_ids[0]), goaway(stream_ids[6]))
    story.take_events(story.tell("connection_lost", "end of file"))
    assert story.outcome(stream_ids[0]).status == 400
    assert [story.outcome(stream_id).processed for stream_id in stream_ids[1:]] == [None] * 6 + [False] * 3


@script()
def test_the_window_comes_back_in_halves(story):
    """pushy 356: WINDOW_UPDATE of 32,822 on the connection, whose window is all that bounds the rate."""
    story.start(max_concurrent_streams=1_000, **APNS_SETTINGS)
    body = b"x" * 4_096
    sent = 0
    for _ in range(20):
        while story.engine.room():
            story.open(body=body)
            sent += 1
        assert story.connection_window == 0
        assert story.engine.room() == 0
        story.server(window_update(0, 32_822))
        story.sent()
        story.server(*(story.frames.accept(s) for s in list(story.open_streams) if story.finished(s)))
        story.sent()
    assert sent >= (65_535 + 19 * 32_822) // 4_096


@script()
def test_a_request_that_is_never_answered(story):
    """pushy 816: TCP and PING work, one request is not answered. It is given up; a late 200 counts."""
    story.start(max_concurrent_streams=2)
    silent, other = story.open(2)
    story.server(story.frames.accept(other))
    assert story.engine.room() == 1
    assert story.give_up(silent)
    (reset,) = story.sent()
    assert (kinds([reset]), reset.stream_id, reset.error_code) == (["RstStream"], silent, ErrorCode.CANCEL)
    assert story.engine.room() == 2
    assert story.server(story.frames.accept(silent)) == []
    assert story.engine.late_responses == 1
    assert not story.give_up(silent)
    story.assert_alive()


@script()
def test_what_is_given_up_twice_or_too_late(story):
    story.start()
    first, second = story.open(2)
    assert story.give_up(first)
    assert not story.give_up(first)
    story.server(story.frames.accept(second))
    assert not story.give_up(second)
    for never in (0, 2, 99):
        assert story.tell("reset_stream", never) is False
    assert kinds(story.sent()) == ["RstStream"]
    assert story.engine.late_responses == 0


@script()
def test_a_connection_of_three_million_requests(story):
    """pushy 865 saw the last stream id 6,920,769."""
    story.start(first_stream_id=6_920_767)
    first, second, third = story.open(3)
    assert second == 6_920_769
    story.server(goaway(second), story.frames.accept(first), story.frames.accept(second))
    assert [story.outcome(stream_id).processed for stream_id in (first, second, third)] == [True, True, False]


@script()
def test_unregistered_with_its_timestamp(story):
    story.start()
    (stream_id,) = story.open()
    body = b'{"reason":"Unregistered","timestamp":1454948015990}'
    story.server(
        story.frames.headers(stream_id, 410, [(b"apns-id", frames.apns_id(stream_id))]),
        data(stream_id, body[:20]),
        data(stream_id, body[20:], end_stream=True),
    )
    ended = story.outcome(stream_id)
    assert (ended.status, ended.body, ended.processed, ended.reason) == (410, body, True, "")
    assert ended.field(b"apns-id") == frames.apns_id(stream_id)


@script(status=(400, 403, 429, 500, 503))
def test_an_error_without_a_body(story, status):
    """A 503 without a body is an answer too: its sender must not wait for ever."""
    story.start()
    (stream_id,) = story.open()
    story.server(story.frames.headers(stream_id, status, end_stream=True))
    assert (story.outcome(stream_id).status, story.outcome(stream_id).body) == (status, b"")


@script()
def test_a_body_without_its_end(story):
    """The connection breaks in the middle of an error body: the status was the verdict."""
    story.start()
    (stream_id,) = story.open()
    story.server(story.frames.headers(stream_id, 400), data(stream_id, b'{"reason":"BadDev'))
    story.take_events(story.tell("connection_lost", "connection reset by peer"))
    ended = story.outcome(stream_id)
    assert (ended.status, ended.processed, ended.body) == (400, True, b'{"reason":"BadDev')
    assert ended.reason


@script()
def test_close_says_goodbye_and_tells_what_was_never_written(story):
    story.start()
    written = story.open(2)
    unwritten = story.open(2, take=False)
    story.server(story.frames.accept(written[0]))
    story.take_events(story.tell("close"))
    sent = story.sent()
    assert kinds(sent)[-1] == "GoAway"
    assert sent[-1].error_code == ErrorCode.NO_ERROR
    assert [story.outcome(stream_id).processed for stream_id in (*written, *unwritten)] == [
        True,
        None,
        False,
        False,
    ]
    assert story.tell("close") == []
    assert story.tell("connection_lost", "later") == []
    assert story.server(story.frames.accept(written[1])) == []


@script()
def test_a_body_of_the_largest_payload_in_every_window(story):
    """5,120 octets (VoIP) through windows of each size that APNs or a proxy before it may choose."""
    for window in (1, 100, 4_096, 5_119, 5_120, 65_535):
        story.engine and story.finish()
        story.__init__(story.make_engine)
        story.start(max_concurrent_streams=10, initial_window_size=window)
        body = bytes(range(256)) * 20
        (stream_id,) = story.open(body=body)
        while story.requests[stream_id].arrived != body:
            story.server(window_update(stream_id, window))
            assert story.sent()
        story.server(story.frames.accept(stream_id))
        assert story.outcome(stream_id).status == 200
    assert len(BODY) < 4_096
