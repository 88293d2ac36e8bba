"""Rows 41 to 51 of docs/nasty-servers.md: answers in odd shapes (RFC 9113 §8.1, §6.4, §5.1)."""

from fastpush.http2 import ErrorCode

from . import frames
from .frames import data, rst_stream, settings, window_update
from .story import BEFORE, BODY, IN_FLIGHT, codes_of_resets, kinds, script


@script(streams=IN_FLIGHT, interim=((100,), (103,) * 8, (100, 102, 103)))
def test_row_41_interim_responses_are_skipped(story, streams, interim):
    story.start()
    stream_ids = story.open(streams)
    for stream_id in stream_ids:
        story.server(*(story.frames.headers(stream_id, status) for status in interim))
        assert story.outcome(stream_id) is None
    for stream_id in stream_ids:
        story.server(story.frames.accept(stream_id))
        assert story.outcome(stream_id).status == 200
        assert story.outcome(stream_id).field(b"apns-id") == frames.apns_id(stream_id)


@script(streams=IN_FLIGHT)
def test_row_42_an_interim_response_that_ends_the_stream(story, streams):
    """§8.1: malformed. It is no answer, so the outcome is unknown."""
    story.start()
    stream_ids = story.open(streams)
    story.server(story.frames.headers(stream_ids[0], 100, end_stream=True))
    ended = story.outcome(stream_ids[0])
    assert (ended.status, ended.processed, ended.error_code) == (None, None, ErrorCode.PROTOCOL_ERROR)
    story.server(*map(story.frames.accept, stream_ids[1:]))
    assert len(story.outcomes) == streams
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_42_switching_protocols_is_not_in_http_2(story, streams):
    """§8.6"""
    story.start()
    stream_ids = story.open(streams)
    story.server(story.frames.headers(stream_ids[0], 101))
    story.assert_stream_error(stream_ids[0], ErrorCode.PROTOCOL_ERROR)
    story.server(*map(story.frames.accept, stream_ids[1:]))
    assert len(story.outcomes) == streams
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_43_trailers_are_ignored(story, streams):
    story.start()
    for stream_id in story.open(streams):
        story.server(
            story.frames.headers(stream_id, 400), data(stream_id, b"{}"), story.frames.trailers(stream_id)
        )
        ended = story.outcome(stream_id)
        assert (ended.status, ended.body, ended.error_code, ended.reason) == (400, b"{}", None, "")
        assert ended.field(b"x-checksum") is None


@script(
    streams=IN_FLIGHT, fields=(((b":status", b"200"),), ((b"x", b"1"), (b":path", b"/")), ((b"X", b"1"),))
)
def test_row_43_malformed_trailers(story, streams, fields):
    """§8.1: a stream error; the status was given before and still decides."""
    story.start()
    stream_ids = story.open(streams)
    story.server(story.frames.headers(stream_ids[0], 410), story.frames.trailers(stream_ids[0], fields))
    ended = story.outcome(stream_ids[0])
    assert (ended.status, ended.processed, ended.error_code) == (410, True, ErrorCode.PROTOCOL_ERROR)
    story.server(*map(story.frames.accept, stream_ids[1:]))
    assert len(story.outcomes) == streams
    story.assert_alive()


@script(streams=(1, 100))
def test_row_43_trailers_without_end_stream(story, streams):
    """§8.1: a second header block must end the stream."""
    story.start()
    stream_ids = story.open(streams)
    story.server(story.frames.headers(stream_ids[0], 200), story.frames.headers(stream_ids[0], 200))
    ended = story.outcome(stream_ids[0])
    assert (ended.status, ended.error_code) == (200, ErrorCode.PROTOCOL_ERROR)
    assert codes_of_resets(story.sent(), stream_ids[0]) == [ErrorCode.PROTOCOL_ERROR]
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_44_a_body_in_many_padded_and_empty_frames(story, streams):
    story.start()
    body = b'{"reason":"Unregistered","timestamp":1700000000000}'
    for stream_id in story.open(streams):
        story.server(
            story.frames.headers(stream_id, 410, pad=7),
            *(data(stream_id, body[at : at + 5], pad=at) + data(stream_id) for at in range(0, len(body), 5)),
            data(stream_id, pad=255),
            data(stream_id, end_stream=True),
        )
        assert story.outcome(stream_id).body == body
        assert story.outcome(stream_id).status == 410
    story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_45_the_answer_comes_before_our_body_is_sent(story, streams):
    """§8.1: take it, send no more of the request, and take the RST_STREAM that follows for no error."""
    story.start(max_concurrent_streams=1000, initial_window_size=10)
    stream_ids = story.open(streams)
    for stream_id in stream_ids:
        story.server(story.frames.accept(stream_id))
        ended = story.outcome(stream_id)
        assert (ended.status, ended.error_code, ended.reason) == (200, None, "")
        story.server(rst_stream(stream_id, ErrorCode.NO_ERROR))
        story.now += 0.02
    story.server(settings(initial_window_size=100))
    sent = story.sent()
    assert "Data" not in kinds(sent)
    for stream_id in stream_ids:
        assert set(codes_of_resets(sent, stream_id)) <= {ErrorCode.NO_ERROR, ErrorCode.CANCEL}
        assert story.requests[stream_id].arrived == BODY[:10]
    assert story.engine.streams_open == 0
    assert not story.engine.window_blocked
    story.assert_alive()


@script(streams=(1, 100), code=(*range(14), 14, 255, 2**32 - 1))
def test_row_46_rst_stream_with_each_code(story, streams, code):
    """§8.7: only REFUSED_STREAM says that nothing was done. §7: an unknown code is INTERNAL_ERROR."""
    all_are_reset(story, streams, code)


@script(streams=(1000,), code=(ErrorCode.NO_ERROR, ErrorCode.REFUSED_STREAM, 255))
def test_row_46_a_thousand_are_reset(story, streams, code):
    all_are_reset(story, streams, code)


def all_are_reset(story, streams, code):
    story.start()
    stream_ids = story.open(streams)
    events = story.server(*(rst_stream(stream_id, code) for stream_id in stream_ids))
    assert [event.stream_id for event in events] == stream_ids
    expected = code if code < 14 else ErrorCode.INTERNAL_ERROR
    assert {event.error_code for event in events} == {expected}
    assert {event.processed for event in events} == {False if code == ErrorCode.REFUSED_STREAM else None}
    assert story.engine.streams_open == 0
    assert story.sent() == []
    story.assert_alive()


@script(streams=IN_FLIGHT, code=(ErrorCode.NO_ERROR, ErrorCode.REFUSED_STREAM, ErrorCode.INTERNAL_ERROR))
def test_row_46_rst_stream_after_the_status(story, streams, code):
    """The headers are the answer: what is cut off is its body."""
    story.start()
    for stream_id in story.open(streams):
        story.server(story.frames.headers(stream_id, 200), rst_stream(stream_id, code))
        ended = story.outcome(stream_id)
        assert (ended.status, ended.processed, ended.error_code) == (200, True, code)
        assert ended.reason


@script(streams=(1, 100))
def test_row_47_rst_stream_after_a_complete_answer(story, streams):
    story.start()
    for stream_id in story.open(streams):
        story.server(story.frames.accept(stream_id))
        assert story.server(rst_stream(stream_id, ErrorCode.NO_ERROR)) == []
        assert story.sent() == []
        assert story.outcome(stream_id).error_code is None
    story.assert_alive()


@script(streams=IN_FLIGHT, kind=("headers", "data"))
def test_row_48_more_frames_after_end_stream(story, streams, kind):
    """§5.1: STREAM_CLOSED, for the stream or for the connection; the first answer stands."""
    story.start()
    stream_ids = story.open(streams)
    first = stream_ids[0]
    story.server(story.frames.accept(first))
    before = story.outcome(first)
    again = story.frames.headers(first, 500, end_stream=True) if kind == "headers" else data(first, b"more")
    story.server(again)
    assert story.outcome(first) is before
    if story.engine.closed:
        story.assert_connection_error(ErrorCode.STREAM_CLOSED)
    else:
        assert set(codes_of_resets(story.sent(), first)) <= {ErrorCode.STREAM_CLOSED}
        story.assert_alive()


@script(streams=IN_FLIGHT)
def test_row_49_push_promise(story, streams):
    """§8.4: our preface said that push is off, so it is an error at any time."""
    story.start()
    stream_ids = story.open(streams)
    story.server(story.frames.push_promise(stream_ids[0]))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert len(story.outcomes) == streams


@script()
def test_row_49_push_promise_before_our_settings_are_acknowledged(story):
    story.begin()
    story.server(settings())
    story.sent()
    (stream_id,) = story.open()
    story.server(story.frames.push_promise(stream_id))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)


IDLE_FRAMES = {
    "HEADERS on 9999": lambda story: story.frames.headers(9999, end_stream=True),
    "HEADERS on 2": lambda story: story.frames.headers(2, end_stream=True),
    "DATA on 9999": lambda _: data(9999, b"x"),
    "DATA on 2": lambda _: data(2, b"x"),
    "RST_STREAM on 9999": lambda _: rst_stream(9999, 0),
    "RST_STREAM on 2": lambda _: rst_stream(2, 0),
    "WINDOW_UPDATE on 9999": lambda _: window_update(9999, 1),
}


@script(streams=(1, 100), case=IDLE_FRAMES)
def test_row_50_frames_on_a_stream_that_nobody_opened(story, streams, case):
    """§5.1, §5.1.1, §6.4"""
    story.start()
    story.open(streams)
    story.server(IDLE_FRAMES[case](story))
    story.assert_connection_error(ErrorCode.PROTOCOL_ERROR)
    assert len(story.outcomes) == streams


@script(streams=IN_FLIGHT)
def test_row_51_an_apns_id_that_differs_or_is_missing(story, streams):
    """Answers are matched by stream; the field is handed on as it came."""
    story.start()
    stream_ids = story.open(streams)
    for stream_id in reversed(stream_ids):
        fields = [(b"apns-id", b"of somebody else")] if stream_id % 4 == 1 else []
        story.server(story.frames.headers(stream_id, 200, fields, end_stream=True))
        assert story.outcome(stream_id).status == 200
        assert story.outcome(stream_id).field(b"apns-id") == (fields[0][1] if fields else None)


@script(octets=(36, 20_000))
def test_a_request_without_a_body_ends_with_its_header_block(story, octets):
    """§8.1: END_STREAM is on HEADERS, also where CONTINUATION follows; no DATA, so no window is asked for."""
    story.start(initial_window_size=0)
    story.make_template(before=((b":method", b"GET"), *BEFORE[1:]))
    [stream_id] = story.open(body=b"", values=(b"x" * octets, None, None), take=False)
    assert not story.engine.window_blocked
    assert story.engine.send_window == 65_535
    first, *rest = story.sent()
    assert kinds([first, *rest]) == ["Headers", "Continuation"][: 1 + (octets > 16_384)]
    assert "END_STREAM" in first.flags
    assert "END_HEADERS" in [first, *rest][-1].flags
    story.server(story.frames.accept(stream_id))
    assert story.outcome(stream_id).status == 200
    assert story.engine.room() == 1_000
    assert story.sent() == []
