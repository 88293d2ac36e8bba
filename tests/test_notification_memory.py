"""No public function of the values keeps memory: each runs in its own process, and the rest is counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SETUP = """
import copy, pickle, gc, sys
from datetime import datetime, UTC
from fastpush import *
from fastpush.notification import *
TOKEN = "00fc13adff785122b4ad28809a342098"
PAYLOAD = Payload(alert=Alert(title="a", body="b" * 300), data={"x": [1.5]})
PUSH = Notification(TOKEN, PAYLOAD, collapse_id="c")
def refused(make):
    try:
        make()
    except (InvalidNotification, TypeError):
        return
    raise AssertionError
"""

WORK = [
    "Alert(title='a', body='ü', loc_args=['x' * 50, str(place)], summary_arg_count=place)",
    "Sound('x' * 50, critical=True, volume=0.25)",
    "Payload(alert=str(place) * 50, badge=place, relevance_score=0.3, data={str(place): [place]}).encode()",
    "Payload(alert='語' * 3000 + str(place)).encode()",
    "Payload(alert='x' * 100_000 + str(place)).encode()",
    # With the same keys each time: orjson.loads keeps the first thousand or two that it reads.
    "Payload(data={'x': None, 'y': 1.5, 'place': [place]}).data",
    "Payload.raw(b'{\"x\":%d}' % place).encode()",
    "PAYLOAD.shortened(200).encode()",
    "Notification(TOKEN.upper(), PAYLOAD, topic='com.x', expiration=datetime.now(UTC), collapse_id='é' * 9)",
    "Response(PUSH, 'rejected', status=410, reason='x' * 50, apns_id='a' * 36, error=NotSent('x'))",
    "LiveActivity(event='end', timestamp=datetime.now(UTC), content_state={'x': place}, alert='y')",
    "copy.copy(pickle.loads(pickle.dumps([PUSH, Response(PUSH, 'accepted', status=200)])))",
    "(hash(PUSH), repr(PUSH), PUSH == Notification(TOKEN, PAYLOAD), hash(PAYLOAD), repr(PAYLOAD))",
    "(topic_for('com.x', 'voip'), parse_error_body(b'{\"reason\":\"x y\"}'), unregistered_at(place))",
    "refused(lambda: Alert(body='x' * 100 + '\\ud800'))",
    "refused(lambda: Payload(alert='x' * 500, data={'x': {place}}))",
    "refused(lambda: Payload(tittle='x'))",
    "refused(lambda: Payload.raw(b'{' * 500))",
    "refused(lambda: Notification(TOKEN, Payload(alert='x' * 5000)))",
    "refused(lambda: Notification(TOKEN, PAYLOAD, collapse_id='x' * 65))",
    "refused(lambda: Notification.__new__(Notification))",
    "refused(lambda: PAYLOAD.shortened(10))",
]

# Blocks of Python's allocator, and the heap in all: the second sees what malloc was asked for directly.
PROGRAM = """
def work(times):
    for place in range(times):
        {work}
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
work(300); gc.collect()
blocks, octets = sys.getallocatedblocks(), resident()
work(3000); gc.collect()
print(sys.getallocatedblocks() - blocks, resident() - octets)
"""


def growth(work: str) -> tuple[int, int]:
    program = SETUP + PROGRAM.format(work=work)
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True
    )
    blocks, octets = found.stdout.split()
    return int(blocks), int(octets)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the heap is read from /proc")
@pytest.mark.parametrize("work", WORK)
def test_three_thousand_calls_leave_nothing(work):
    blocks, octets = growth(work)
    assert blocks < 300, f"{blocks} blocks after 3000 calls"
    assert octets < 512 * 1024, f"{octets} bytes after 3000 calls"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the heap is read from /proc")
def test_a_leak_would_be_seen():
    assert growth("globals().setdefault('kept', []).append(Alert(title=str(place)))")[0] > 2000
    assert growth("globals().setdefault('kept', []).append(b'x' * 5000)")[1] > 8_000_000
