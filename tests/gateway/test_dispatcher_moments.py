"""What the dispatcher waits for: each wait ends with its cause, and not at the next look."""

import time

import pytest
import trio

from fastpush.simulator.faults import Answer, Delay
from tests.clocks import story_clock
from tests.gateway.dispatch_house import Registry, entry, open_all, token

STORM, WARM = 150, 200
RAMP = 10.0  # seconds, after which a line that was opened takes all there is


@pytest.fixture
def clock():
    return story_clock()


class Count:
    """Waits until so many ended."""

    def __init__(self, house):
        self.ended = self.retried = 0
        self.ended_at = 0.0
        self._more = trio.Event()
        house.dispatcher.on_outcomes(self._hear)

    def _hear(self, outcomes):
        self.ended += len(outcomes.ends)
        self.retried += len(outcomes.retries)
        self.ended_at = trio.current_time()
        self._more.set()
        self._more = trio.Event()

    async def until(self, count):
        with trio.fail_after(300.0):
            while self.ended < count:
                await self._more.wait()

    async def until_retried(self, count):
        with trio.fail_after(300.0):
            while self.retried < count:
                await self._more.wait()


async def test_a_drain_ends_with_the_last_outcome(tmp_path, clock):
    slow = Delay(seconds=3.3, device_token=token(0))
    async with open_all(tmp_path / "gateway.db", faults=[slow]) as (_, house):
        count = Count(house)
        await house.accept([entry(number) for number in range(20)])
        await count.until(19)
        assert house.dispatcher.busy
        started = trio.current_time()
        await house.dispatcher.drain(started + 20.0)
        assert house.ends() == {"accepted": 20}
        assert started < count.ended_at == trio.current_time()


async def test_a_drain_with_nothing_in_flight_ends_at_once(tmp_path, clock):
    async with open_all(tmp_path / "gateway.db") as (_, house):
        started = trio.current_time()
        await house.dispatcher.drain(started + 20.0)
        assert trio.current_time() == started


async def test_normal_priority_goes_on_when_the_breaker_closes(tmp_path, clock):
    """Until then 200 try it each minute."""
    registry = Registry()
    registry.broken = "more than a fifth is BadDeviceToken"
    async with open_all(tmp_path / "gateway.db", devices=registry) as (apns, house):
        count = Count(house)
        await trio.sleep(RAMP)
        await house.accept([entry(number) for number in range(500)])
        await count.until(200)
        await trio.sleep(0.1)
        assert count.ended == apns.ledger.counts["accepted"] == 200
        registry.cure()
        cured_at = trio.current_time()
        await count.until(500)
        assert count.ended_at - cured_at < 0.5


async def test_a_storm_of_retries_keeps_no_first_attempt_waiting(tmp_path, clock):
    """They have a part of the app's slots, however many are due and however slow to be answered."""
    storm = [token(number) for number in range(STORM)]
    busy = [
        Answer(status=429, reason="TooManyRequests", retry_after=31, device_token=one, times=1)
        for one in storm
    ]
    began = time.time()
    options = {"clock": lambda: began + trio.current_time()}
    async with open_all(tmp_path / "gateway.db", faults=busy, app={"max_in_flight": 40}, options=options) as (
        apns,
        house,
    ):
        count = Count(house)
        await trio.sleep(RAMP)
        await house.accept([entry(STORM + number) for number in range(WARM)])  # APNs grants streams for these
        await count.until(WARM)
        await house.accept([entry(number) for number in range(STORM)])
        await count.until_retried(STORM)
        apns.faults.add(*[Delay(seconds=5.0, device_token=one) for one in storm])
        await trio.sleep(33.0)  # all of them are due, and the first on their way
        assert count.ended == WARM
        started = trio.current_time()
        await house.accept([entry(STORM + number) for number in range(20)])
        await count.until(WARM + 20)
        assert count.ended_at - started < 1.0
        await count.until(WARM + 20 + STORM)
        assert house.ends() == {"accepted": WARM + 20 + STORM}
