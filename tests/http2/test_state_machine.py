"""Random walks of a server and a client over one connection, against a model in plain dicts.

The rules of windows, limits and outcomes are those of `Story` (which is the server, and counts what it
granted); the model here foretells them: how much of each body has arrived, how many streams are open,
how much room there is, and which outcome each request has. FASTPUSH_SEED replays a run.
"""

import os
import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fastpush.http2 import CompiledEngine, ErrorCode, GoawayReceived, LocalProtocolError
from fastpush.http2.reference import ReferenceEngine

from . import frames
from .frames import goaway, ping, rst_stream, window_update
from .story import Story, kinds

SEED = int(os.environ.get("FASTPUSH_SEED") or random.randrange(2**32))

BODIES = st.integers(1, 40_000).map(lambda octets: b"x" * octets) | st.just(b"{}")
WINDOWS = st.sampled_from([0, 1, 2, 100, 1_000, 16_384, 16_385, 65_535, 65_536, 200_000])
INCREMENTS = st.integers(1, 50_000) | st.sampled_from([1, 2**20])


class Connection(RuleBasedStateMachine):
    """The model: `waiting` and `windows` by stream id, and the connection's window."""

    engine = CompiledEngine

    def __init__(self):
        super().__init__()
        self.story = Story(self.engine)
        self.story.start(max_concurrent_streams=20)
        self.limit = 20
        self.window = 65_535
        self.initial = 65_535
        self.windows = {}  # open streams
        self.waiting = {}  # octets of the body not yet let out; open streams
        self.answered = {}  # streams whose status came, without their end
        self.expected = {}  # stream id -> (status, processed)
        self.last = None  # of GOAWAY
        self.cancelled = 0

    # How windows let octets out: in the order of streams, as much as both windows allow.

    def flow(self):
        for stream_id in sorted(self.waiting):
            octets = min(self.waiting[stream_id], self.window, self.windows[stream_id])
            if octets > 0:
                self.waiting[stream_id] -= octets
                self.window -= octets
                self.windows[stream_id] -= octets

    def ended(self, stream_id, status, processed):
        self.expected[stream_id] = (self.answered.pop(stream_id, status), processed)
        del self.windows[stream_id], self.waiting[stream_id]

    def some(self, data):
        self.story.sent()  # a server knows only of streams whose HEADERS it has got
        return data.draw(st.sampled_from(sorted(self.windows)), label="stream")

    def room(self):
        if self.last is not None or self.window <= 0:
            return 0
        return max(0, self.limit - len(self.windows))

    # The client.

    @rule(body=BODIES)
    def request(self, body):
        if self.room() == 0:
            with pytest.raises(LocalProtocolError):
                self.story.open()
            return
        (stream_id,) = self.story.open(body=body, take=False)
        self.windows[stream_id] = self.initial
        self.waiting[stream_id] = len(body)
        self.flow()

    @rule(count=st.integers(2, 20))
    def requests(self, count):
        for _ in range(min(count, self.room())):
            if self.room():
                self.request(b"x" * 3_000)

    @precondition(lambda self: self.windows)
    @rule(data=st.data())
    def cancel(self, data):
        stream_id = self.some(data)
        assert self.story.give_up(stream_id)
        self.answered.pop(stream_id, None)
        del self.windows[stream_id], self.waiting[stream_id]
        self.cancelled += 1

    @rule(opaque=st.binary(min_size=8, max_size=8))
    def ping_of_ours(self, opaque):
        self.story.tell("ping", opaque)
        assert [event.opaque for event in self.story.server(ping(opaque, ack=True))] == [opaque]

    @rule()
    def take(self):
        self.story.sent()

    # The server.

    @precondition(lambda self: self.windows)
    @rule(data=st.data())
    def accept(self, data):
        stream_id = self.some(data)
        if stream_id in self.answered:
            self.story.server(frames.data(stream_id, b"}", end_stream=True))
        else:
            self.story.server(self.story.frames.accept(stream_id))
        self.ended(stream_id, 200, True)

    @precondition(lambda self: self.windows)
    @rule(data=st.data(), status=st.sampled_from([400, 410, 429, 503]))
    def answer_without_its_end(self, data, status):
        stream_id = self.some(data)
        if stream_id not in self.answered:
            self.story.server(self.story.frames.headers(stream_id, status), frames.data(stream_id, b"{"))
            self.answered[stream_id] = status

    @precondition(lambda self: self.windows)
    @rule(data=st.data(), code=st.integers(0, 15))
    def reset(self, data, code):
        stream_id = self.some(data)
        self.story.server(rst_stream(stream_id, code))
        verdict = stream_id in self.answered
        self.ended(stream_id, None, True if verdict else False if code == ErrorCode.REFUSED_STREAM else None)

    @rule(increment=INCREMENTS)
    def open_the_connection_window(self, increment):
        self.story.server(window_update(0, increment))
        self.window += increment
        self.flow()

    @precondition(lambda self: self.windows)
    @rule(data=st.data(), increment=INCREMENTS)
    def open_a_stream_window(self, data, increment):
        stream_id = self.some(data)
        self.story.server(window_update(stream_id, increment))
        self.windows[stream_id] += increment
        self.flow()

    @rule(value=WINDOWS)
    def initial_window_size(self, value):
        self.next_second()
        self.story.server(frames.settings(initial_window_size=value))
        for stream_id in self.windows:
            self.windows[stream_id] += value - self.initial
        self.initial = value
        self.flow()

    @rule(value=st.sampled_from([16_384, 16_385, 20_000, 2**24 - 1]))
    def max_frame_size(self, value):
        self.next_second()
        self.story.server(frames.settings(max_frame_size=value))

    @rule(value=st.sampled_from([0, 1, 2, 5, 20, 40]))
    def max_concurrent_streams(self, value):
        self.next_second()
        self.story.server(frames.settings(max_concurrent_streams=value))
        self.limit = value

    @rule(size=st.sampled_from([0, 50, 300, 4_096, 10_000]))
    def header_table_size(self, size):
        self.next_second()
        self.story.server(frames.settings(header_table_size=size))

    @rule(opaque=st.binary(min_size=8, max_size=8))
    def ping_of_the_server(self, opaque):
        self.next_second()
        self.story.sent()
        self.story.server(ping(opaque))
        (answer,) = self.story.sent()
        assert kinds([answer]) == ["Ping"]
        assert answer.opaque_data == opaque

    @precondition(lambda self: self.story.requests)
    @rule(data=st.data())
    def goaway(self, data):
        highest = max(self.story.requests)
        last = data.draw(st.integers(0, highest + 2) | st.just(2**31 - 1), label="last")
        if self.last is not None:
            last = min(last, self.last)
        events = self.story.server(goaway(last))
        assert events[-1] == GoawayReceived(last, ErrorCode.NO_ERROR, b"")
        for stream_id in [stream_id for stream_id in self.windows if stream_id > last]:
            self.ended(stream_id, None, stream_id in self.answered)
        self.last = last

    def next_second(self):
        self.story.now += 1.0

    # What always holds.

    @invariant()
    def agrees(self):
        story, engine = self.story, self.story.engine
        assert not engine.closed
        assert engine.streams_open == len(self.windows)
        assert engine.stream_limit == self.limit
        assert engine.room() == self.room()
        assert engine.send_window == max(0, self.window - sum(self.waiting.values()))
        assert engine.draining == (self.last is not None)
        assert engine.window_blocked == (self.window <= 0 or any(self.waiting.values()))
        assert engine.requests_sent == len(story.requests)
        found = {}
        for stream_id in story.requests:
            ended = story.outcome(stream_id)
            if ended is not None:
                found[stream_id] = (ended.status, ended.processed)
        assert found == self.expected
        assert len(self.expected) + len(self.windows) + self.cancelled == len(story.requests)

    def teardown(self):
        """Whatever happened, what the windows let out is what arrived, and each request has its outcome."""
        self.story.sent()
        for stream_id, waiting in self.waiting.items():
            request = self.story.requests[stream_id]
            assert len(request.body) - len(request.arrived) == waiting
        self.story.finish()


@pytest.mark.parametrize("engine_class", [CompiledEngine, ReferenceEngine], ids=["compiled", "h2"])
def test_random_walks(engine_class):
    print(f"FASTPUSH_SEED={SEED}")
    machine = type("Walk", (Connection,), {"engine": engine_class})
    examples, steps = (150, 60) if engine_class is CompiledEngine else (30, 40)
    run_state_machine_as_test(
        seed(SEED)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[
                Phase.generate
            ],  # a walk that fails is short enough to be read; to shrink it takes minutes
            report_multiple_bugs=False,
        ),
    )


@pytest.mark.slow
def test_long_random_walks():
    print(f"FASTPUSH_SEED={SEED}")
    run_state_machine_as_test(
        seed(SEED)(type("Walk", (Connection,), {})),
        settings=settings(max_examples=1_500, stateful_step_count=150, deadline=None, database=None),
    )
