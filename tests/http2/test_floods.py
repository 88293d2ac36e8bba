"""Floods (RFC 9113 §10.5): memory does not grow with them, and those that have a limit end the connection.

The classes are those of CVE-2019-9511 to 9518, the CONTINUATION flood of 2024 and MadeYouReset of 2025.
"""

import os

import pytest

from fastpush.http2 import CompiledEngine, ErrorCode

from . import frames
from .frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADERS,
    data,
    ping,
    raw,
    rst_stream,
    settings,
    window_update,
)
from .story import Story, script

CALM = ErrorCode.ENHANCE_YOUR_CALM
SEGMENT = 16_384  # octets to a call, as from a TLS record
FLOOD = 4 * 2**20  # octets in all: a million frames of the smallest kind would be nine megabytes
GROWTH = 2 * 2**20

ENDED = {
    "PING": (ping(), CALM),
    "SETTINGS": (settings(), CALM),
    "SETTINGS with entries": (settings(*[(0x99, 1)] * 1_000), CALM),
    "RST_STREAM": (rst_stream(1, 8), CALM),
    "DATA without octets": (raw(HEADERS, 4, 1, b"\x88") + raw(DATA, 0, 1) * 1_000, CALM),
    "DATA of padding": (raw(HEADERS, 4, 1, b"\x88") + data(1, pad=255) * 1_000, CALM),
    "CONTINUATION": (raw(HEADERS, 0, 1, b"\x88") + raw(CONTINUATION, 0, 1, b"x" * 16_384) * 20, CALM),
    "CONTINUATION without octets": (raw(HEADERS, 0, 1, b"\x88") + raw(CONTINUATION, 0, 1) * 1_000, CALM),
    "PUSH_PROMISE": (raw(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), ErrorCode.PROTOCOL_ERROR),
}

ENDURED = {
    "WINDOW_UPDATE of 1": window_update(0, 1),
    "WINDOW_UPDATE of 1 on a stream": window_update(3, 1),
    "PRIORITY": frames.priority(3),
    "unknown frames": raw(0x99, 0, 0, b"x" * 1_000),
    "acknowledgements of PING": ping(ack=True),
    "acknowledgements of SETTINGS": frames.settings_ack(),
    "GOAWAY": frames.goaway(99, 0, b"x" * 1_000),
    "answers to a stream that we gave up": raw(HEADERS, 5, 5, b"\x88"),
    "bodies of a stream that we gave up": data(5, b"x" * 10_000),
}


def resident_octets():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flood(story, frame):
    """Send this again and again, and take what the engine sends as a writer would."""
    octets = frame * (FLOOD // len(frame) + 1)
    for at in range(0, len(octets), SEGMENT):
        story.engine.receive_data(octets[at : at + SEGMENT], story.now)
        story.engine.data_to_send()
        if story.engine.closed:
            return


def begin():
    story = Story(CompiledEngine)
    story.start()
    story.open(3)
    story.give_up(5)
    story.sent()
    return story


@pytest.mark.parametrize("kind", ENDED)
def test_a_flood_that_ends_the_connection(kind):
    story = begin()
    frame, code = ENDED[kind]
    sent = frame * (FLOOD // len(frame) + 1)
    before = resident_octets()
    ended = None
    for at in range(0, len(sent), SEGMENT):
        events = story.engine.receive_data(sent[at : at + SEGMENT], story.now)
        if story.engine.closed:
            ended = events[-1]
            break
    assert ended is not None
    assert ended.error_code == code
    assert len(story.engine.data_to_send()) < 200_000
    assert resident_octets() - before < GROWTH


@pytest.mark.parametrize("kind", ENDURED)
def test_a_flood_that_is_endured(kind):
    story = begin()
    flood(story, ENDURED[kind])  # what the allocator keeps is kept now
    before = resident_octets()
    for _ in range(3):
        flood(story, ENDURED[kind])
    assert not story.engine.closed
    assert resident_octets() - before < GROWTH


@script()
def test_interim_responses_without_end(story):
    """They end their stream, not the connection."""
    story.start()
    first, second = story.open(2)
    for _ in range(100):
        story.server(raw(HEADERS, 4, first, b"\x08\x03103"))
    assert story.outcome(first).processed is None
    story.server(raw(HEADERS, 4 | END_STREAM, second, b"\x88"))
    assert story.outcome(second).status == 200
    story.assert_alive()
