"""The latency benchmark: its arithmetic, its proxy by a virtual clock, and small runs from end to end."""

import json
import re
from dataclasses import replace

import pytest
import trio
import trio.testing

from benchmarks import data, latency, measure
from benchmarks.contenders.pacing import PacedJob, PacedReport
from benchmarks.delay_proxy import Delay, forward
from benchmarks.percentiles import intended_by_ticks, percentile, summary
from benchmarks.servers import NotInstalled, haproxy
from tests.clocks import story_clock

ANYWHERE = measure.Cores(None, None)


@pytest.fixture
def clock():
    return story_clock(0)


# Percentiles.


def test_a_percentile_is_a_value_that_was_measured():
    """Nearest rank: at least that share of the values is no larger."""
    hundred = list(range(1, 101))
    assert [percentile(hundred, share) for share in (0.01, 0.5, 0.99, 0.999, 1.0)] == [1, 50, 99, 100, 100]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.999) == 7.0
    assert percentile(list(range(1, 1_001)), 0.999) == 999
    # 0.07 * 100 is 7.000000000000001 in binary.
    assert percentile(hundred, 0.07) == 7


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_outside_of_the_values_is_refused(share):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        percentile([1.0], share)


def test_without_values_there_is_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        summary([])


def test_a_summary_is_in_milliseconds():
    found = summary([0.001] * 990 + [0.5] * 10)
    assert found == {"count": 1_000, "p50_ms": 1.0, "p99_ms": 1.0, "p999_ms": 500.0, "max_ms": 500.0}


# When h2load meant to send.

RATE = 1_000.0  # ten to a tick


def bursts(late_by):
    """Starts as h2load logs them: one with the connection, then ten at each tick, 20 us apart."""
    starts = [100.0]
    for tick, late in enumerate(late_by, start=1):
        starts += [100.0 + tick * 0.010 + late + number * 0.000_020 for number in range(10)]
    return starts


def test_a_burst_was_intended_at_its_tick():
    starts = bursts([0.0] * 50)
    intended = intended_by_ticks(starts, RATE)
    waits = [1e3 * (start - due) for start, due in zip(starts, intended, strict=True)]
    assert max(waits) == pytest.approx(9 * 0.020, abs=0.001)
    assert min(waits) == 0.0


def test_a_late_tick_counts_as_late():
    late_by = [0.0] * 50
    late_by[20] = 0.004
    starts = bursts(late_by)
    waits = [1e3 * (start - due) for start, due in zip(starts, intended_by_ticks(starts, RATE), strict=True)]
    assert max(waits) == pytest.approx(4.0 + 9 * 0.020, abs=0.01)
    assert sum(wait > 1.0 for wait in waits) == 10


def test_the_first_tick_may_be_the_late_one():
    starts = bursts([0.003] + [0.0] * 49)
    waits = [1e3 * (start - due) for start, due in zip(starts, intended_by_ticks(starts, RATE), strict=True)]
    assert waits[1] == pytest.approx(3.0, abs=0.01)
    assert max(waits[11:]) < 0.2


def test_a_tick_that_comes_a_little_early_is_no_tick_late():
    """Most ticks come 0.2 ms after the earliest; these belong to their own tick and not to the one before."""
    starts = bursts([0.0 if tick % 25 == 0 else 0.000_2 for tick in range(100)])
    waits = [start - due for start, due in zip(starts, intended_by_ticks(starts, RATE), strict=True)]
    assert max(waits) < 0.001


def test_a_client_that_falls_behind_is_charged_for_it():
    """It stops for a second in the middle; a closed loop would never tell."""
    starts = bursts([0.0] * 20 + [1.0] * 30)
    waits = [start - due for start, due in zip(starts, intended_by_ticks(starts, RATE), strict=True)]
    assert max(waits[:200]) < 0.001
    # But for the one tick that is its own.
    assert min(waits[201:]) == pytest.approx(0.990, abs=0.001)


def test_nothing_is_intended_after_it_was_sent():
    starts = bursts([0.0, 0.002, 0.0, 0.009, 0.0, 0.001] * 10)
    starts.sort()
    assert all(due <= start for due, start in zip(intended_by_ticks(starts, RATE), starts, strict=True))


# Reports.


def paced_job(**changes):
    usual = PacedJob(seed=1, rate=100.0, seconds=1.0, warm_up=0.5, tick=0.01, body_octets=200, connections=1)
    return replace(usual, **changes)


def test_a_report_leaves_the_warm_up_out_and_counts_from_the_intended_time():
    # Slow in the first half; then 2 ms each, of which 1 passed before the sender had it in hand.
    rows = [(n / 100, n / 100 + 0.001, n / 100 + (0.3 if n < 50 else 0.002)) for n in range(100)]
    report = PacedReport.of(paced_job(), rows, 100, 0.01)
    assert report.latency["count"] == 50
    assert report.latency["p999_ms"] == pytest.approx(2.0)
    assert report.from_submission["p999_ms"] == pytest.approx(1.0)
    assert report.per_second == pytest.approx(100, abs=2)


def test_a_sink_that_refuses_all_gives_no_maximum(monkeypatch, tmp_path):
    """Without a rate only the sender knows how many it sent; both ends accepted none, and agree."""

    def refusing(directory, **arguments):
        return haproxy(directory, **arguments | {"body_octets": 10_000})

    monkeypatch.setattr(latency, "haproxy", refusing)
    job = paced_job(rate=0.0, seconds=0.2, warm_up=0.05)
    try:
        with pytest.raises(measure.NoFigure, match=r"^0 of .* were accepted"):
            latency.run_paced(latency.STREAM, job, latency.Cell("stream", 0.0, 200), ANYWHERE, 1)
    except NotInstalled as reason:
        pytest.skip(str(reason))


def test_what_cannot_keep_up_has_a_lower_rate():
    """Asked for a hundred a second, it answers one each 20 ms."""
    rows = [(n / 100, n / 100, n / 50) for n in range(100)]
    report = PacedReport.of(paced_job(), rows, 100, 0.01)
    assert report.per_second == pytest.approx(50, abs=2)


@pytest.mark.parametrize("octets", [200, 220, 4_096])
def test_bodies_have_the_size_that_is_asked_for(octets):
    assert {len(data.body_for(index, octets)) for index in (0, 1, 9_999)} == {octets}


# The proxy, by a clock that takes no time.


async def test_octets_come_out_after_the_delay_and_in_order(clock):
    delay = Delay(0.05)
    delay.add(b"a")
    await trio.sleep(0.02)
    delay.add(b"b")
    began = trio.current_time()
    assert await delay.next() == b"a"
    assert trio.current_time() - began == pytest.approx(0.03)
    assert await delay.next() == b"b"
    assert trio.current_time() - began == pytest.approx(0.05)


async def test_what_came_together_leaves_together(clock):
    """A delay and no throttle: a megabyte is no slower than an octet."""
    delay = Delay(0.05)
    for _ in range(16):
        delay.add(bytes(65_536))
    assert len(await delay.next()) == 16 * 65_536
    assert trio.current_time() == pytest.approx(clock.current_time())


async def test_the_end_is_delayed_too_and_comes_last(clock):
    delay = Delay(0.05)
    began = trio.current_time()
    delay.add(b"last")
    delay.add(b"")
    assert [await delay.next(), await delay.next()] == [b"last", b""]
    assert trio.current_time() - began == pytest.approx(0.05)


async def test_one_direction_is_carried_to_its_end(clock):
    """Sent at 0, 1 and 2 seconds, and closed at 3: all of it arrives half a second later."""
    near, source = trio.testing.memory_stream_one_way_pair()
    arrived = []

    class Sink:
        async def send_all(self, octets):
            arrived.append((trio.current_time() - began, bytes(octets)))

        async def send_eof(self):
            arrived.append((trio.current_time() - began, b"end"))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward, source, Sink(), 0.5)
        for word in (b"one", b"two", b"three"):
            await near.send_all(word)
            await trio.sleep(1)
        await near.aclose()
    assert arrived == [
        (pytest.approx(0.5), b"one"),
        (pytest.approx(1.5), b"two"),
        (pytest.approx(2.5), b"three"),
        (pytest.approx(3.5), b"end"),
    ]


# Small runs from end to end.

CONDITIONS = {"date": "2026-11-23", "cpu": "none", "cores": 2, "load": 0.0, "python": "3.11", "commit": "0",
              "command": "", "sink": "haproxy", "streams": 1_000}  # fmt: skip


def test_a_short_run_at_a_rate_over_a_round_trip(tmp_path):
    """Each push takes the round trip at least, and the simulator saw as many as were accepted."""
    cell = latency.Cell("stream", 0.020, 200)
    job = paced_job(rate=200.0, seconds=1.0, warm_up=0.4, connections=2)
    report = latency.run_paced(latency.STREAM, job, cell, ANYWHERE, 1)
    assert report.accepted == 200
    assert report.latency["p50_ms"] >= 20
    one = latency.figure(cell, "fastpush", 0.5, 200.0, 400.0, [report])
    assert set(one) >= {"offered_per_second", "per_second", "latency", "from_submission", "load"}
    result = {"conditions": CONDITIONS, "figures": [one], "windows": [], "no_figure": {}, "not_run": {}}
    assert re.search(r"20 ms +200 +50%", str(latency.table(json.loads(json.dumps(result)))))


@pytest.mark.parametrize("contender", [latency.TASKS, latency.H2LOAD], ids=lambda one: one.name)
def test_the_other_paced_senders_keep_the_rate(contender):
    if missing := contender.missing():
        pytest.skip(missing)
    try:
        report = latency.run_paced(
            contender, paced_job(rate=500.0, seconds=1.0), latency.Cell("tasks", 0.0, 200), ANYWHERE, 1
        )
    except NotInstalled as reason:
        pytest.skip(str(reason))
    assert report.accepted == 500
    assert 0 < report.latency["p50_ms"] <= report.latency["p99_ms"]
    assert report.from_submission["p50_ms"] <= report.latency["p50_ms"]
