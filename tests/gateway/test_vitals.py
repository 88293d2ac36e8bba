"""The gateway's vital signs: rates from counters, two rings of fixed size, and a restart in between."""

from __future__ import annotations

import math

import pytest
import trio

from fastpush.gateway.counters import BOUNDS, Counters, Histogram, quantile
from fastpush.gateway.outbox import Waiting
from fastpush.gateway.storage import open_storage
from fastpush.gateway.vitals import DAY, HOUR, Sample, Vitals, difference, mean, read
from tests.clocks import story_clock


class NoApps:
    def statistics(self):
        return {}


def reading(counters: Counters, at: float, waiting=None):
    return read(counters, waiting or {}, NoApps(), 0.004, at=at, monotonic=at)


def test_a_quantile_lies_within_its_bucket():
    histogram = Histogram()
    for _ in range(99):
        histogram.add(0.003)
    histogram.add(7.0)
    assert 0.002 < quantile(histogram.counts, 0.5) <= 0.005
    assert 5.0 < quantile(histogram.counts, 0.999) <= 10.0
    assert quantile([0] * 14, 0.5) is None
    assert math.isclose(histogram.total, 99 * 0.003 + 7.0)


def test_what_is_above_all_bounds_is_told_as_the_last():
    histogram = Histogram()
    histogram.add(60.0)
    assert quantile(histogram.counts, 0.99) == BOUNDS[-1]


def test_a_sample_is_what_grew_in_a_second():
    counters = Counters()
    counters.outcomes["opm", "accepted", ""] = 100
    before = reading(counters, 1000.0)
    counters.outcomes["opm", "accepted", ""] += 500
    counters.outcomes["opm", "rejected", "BadDeviceToken"] += 20
    counters.answers["/v1/opmanager", 200] += 30
    counters.apns_seconds["opm"].add(0.004)
    after = reading(counters, 1010.0, {"opm": Waiting(7, 0, None, 1001.0, False)})
    sample = difference(before, after, 0.02)
    assert (sample.accepted, sample.failed, sample.requests) == (50.0, 2.0, 3.0)
    assert 0.002 < sample.apns_p99 <= 0.005
    assert (sample.waiting, sample.oldest, sample.lag) == (7, 9.0, 0.02)


def test_a_wall_clock_that_jumps_makes_no_rates_up():
    counters = Counters()
    before = reading(counters, 1000.0)
    counters.outcomes["opm", "accepted", ""] += 100
    after = read(counters, {}, NoApps(), 0.0, at=-5000.0, monotonic=1010.0)
    assert difference(before, after, 0.0).accepted == 10.0


def test_together_rates_are_averaged_and_the_worst_is_kept():
    together = mean([Sample(10, accepted=10, apns_p99=None, lag=0.5), Sample(20, accepted=20, apns_p99=0.2)])
    assert (together.at, together.accepted, together.apns_p99, together.lag) == (20, 15, 0.2, 0.5)
    assert together.apns_p50 is None


@pytest.fixture
def now():
    return [1_000_000.0]


async def test_a_day_leaves_a_fixed_number_of_rows_and_survives_a_restart(tmp_path, now):
    async with open_storage(tmp_path / "gateway.db") as storage:
        vitals = Vitals(storage, lambda: reading(Counters(), now[0]), lambda: now[0])
        await vitals.open()
        for _ in range(400):
            now[0] += 600
            await vitals.take(Sample(now[0], accepted=1.0))
        rows = await storage.read(
            lambda c: c.execute("SELECT ring, count(*) FROM vitals GROUP BY ring").fetchall()
        )
    assert dict(rows)[HOUR.number] <= HOUR.slots
    assert dict(rows)[DAY.number] <= DAY.slots
    async with open_storage(tmp_path / "gateway.db") as storage:
        again = Vitals(storage, lambda: reading(Counters(), now[0]), lambda: now[0])
        await again.open()
        assert again.latest == Sample(now[0], accepted=1.0)
        assert len(again.samples(HOUR)) == 6, "ten minutes apart, the last hour"
        assert [sample.at for sample in again.samples(DAY)] == sorted(s.at for s in again.samples(DAY))


@pytest.fixture
def clock():
    return story_clock()


async def test_samples_are_taken_each_ten_seconds(tmp_path, now, clock):
    counters = Counters()
    async with open_storage(tmp_path / "gateway.db") as storage, trio.open_nursery() as nursery:
        clock.holds.append(lambda: storage.pending_rows > 0)
        began = trio.current_time()

        def observe():
            at = now[0] + trio.current_time() - began
            return read(counters, {}, NoApps(), 0.0, at=at, monotonic=trio.current_time())

        vitals = Vitals(storage, observe, lambda: now[0] + trio.current_time() - began)
        await vitals.open()
        await nursery.start(vitals.run)
        counters.outcomes["opm", "accepted", ""] += 50
        await trio.sleep(HOUR.seconds + 1)
        assert vitals.latest.accepted == pytest.approx(5.0, rel=0.01)
        nursery.cancel_scope.cancel()
