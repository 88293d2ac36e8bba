"""Whatever is cancelled, at whichever step: the pool stays whole.

Each story is told once with a cancellation at its first step, once at its second, and so on until it is
over before. Every push ends or its caller is cancelled; no task and no socket stays behind; and where the
client lives on, its streams and windows are all there: with four streams and 64 KiB, what leaks is missed
soon.
"""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import fastpush
from fastpush.simulator import Answer, Delay, open_simulator
from tests.clocks import story_clock
from tests.peers import device_token, open_client_on, open_pair, push, pushes
from tests.steps import at_each_step, living

STREAMS = 4
LARGE = fastpush.Payload(alert="Core switch down", data={"more": "x" * 3_000})


@pytest.fixture
def clock():
    return story_clock(0.01)


class Ends:
    """Keeps account of pushes: how many were begun, and how each ended."""

    def __init__(self):
        self.begun = 0
        self.responses = []
        self.errors = []
        self.cancelled = 0

    @property
    def ended(self):
        return len(self.responses) + len(self.errors) + self.cancelled

    @property
    def accepted(self):
        return sum(response.accepted for response in self.responses)

    async def send(self, client, notification):
        self.begun += 1
        try:
            self.responses.append(await client.send(notification))
        except fastpush.FastpushError as error:
            self.errors.append(error)
        except trio.Cancelled:
            self.cancelled += 1
            raise


def large(count, first=1):
    return [fastpush.Notification(device_token(number), LARGE) for number in range(first, first + count)]


async def still_whole(client, apns, *, connections=None):
    """Nothing is counted that is not there, the streams can all be used, and both sides agree."""
    ends = Ends()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for notification in large(2 * STREAMS, first=100):
                nursery.start_soon(ends.send, client, notification)
    assert ends.accepted == 2 * STREAMS
    await wait_all_tasks_blocked(0.002)
    statistics = client.statistics()
    assert (statistics.queued, statistics.waiting, statistics.in_flight) == (0, 0, 0)
    assert statistics.stopped is None
    if connections is not None:
        assert [each.state for each in statistics.connections] == ["open"] * connections
        assert apns.statistics().connections_open == connections


class TestTheClient:
    """The scope is around the client: nothing is left."""

    async def everything(self, steps, apns, key, during=None, leave_early=False):
        before = await living()
        ends = Ends()
        with steps.cancelling():
            async with trio.open_nursery() as nursery, open_client_on(apns, key) as client:
                for number in range(6):
                    nursery.start_soon(ends.send, client, push(number))
                if during is not None:
                    await client.wait_ready()
                    during()
                if not leave_early:
                    async with client.send_many(pushes(6, first=10)) as responses:
                        async for response in responses:
                            assert response.outcome in ("accepted", "not_sent", "unknown")
                else:
                    await wait_all_tasks_blocked()
        assert ends.begun == ends.ended
        if steps.fired:
            assert not any(error.processed for error in ends.errors)
        else:
            assert ends.accepted == 6
        assert await living() == before
        assert apns.statistics().connections_open == 0
        return ends

    async def test_at_each_step_of_its_life(self, clock):
        async with open_simulator(stream_limit=STREAMS) as apns:
            key = apns.signing_key()
            await at_each_step(lambda steps: self.everything(steps, apns, key), least=60)

    async def test_at_each_step_of_goaway_and_replacement(self, clock):
        async with open_simulator(stream_limit=STREAMS) as apns:
            key = apns.signing_key()
            await at_each_step(
                lambda steps: self.everything(steps, apns, key, during=apns.send_goaway), least=100
            )

    async def test_at_each_step_of_draining(self, clock):
        """The block is left while answers are three seconds away."""
        async with open_simulator(stream_limit=STREAMS, faults=[Delay(seconds=3.0)]) as apns:
            key = apns.signing_key()
            await at_each_step(lambda steps: self.everything(steps, apns, key, leave_early=True), least=60)


class TestOneAmongOthers:
    """The scope is around one thing of many that one client does; the others do not notice."""

    async def test_one_send(self, clock):
        async with open_pair(stream_limit=STREAMS, client={"max_connections": 1}) as (apns, client):
            await client.send(push())

            async def story(steps):
                others, one = Ends(), Ends()
                async with trio.open_nursery() as nursery:
                    for notification in large(STREAMS):
                        nursery.start_soon(others.send, client, notification)
                    with steps.cancelling():
                        await one.send(client, large(1, first=50)[0])
                assert others.accepted == STREAMS
                assert one.begun == one.ended == 1
                assert one.accepted or one.cancelled
                await still_whole(client, apns, connections=1)

            await at_each_step(story, least=8)

    async def test_one_send_that_waits_for_a_stream(self, clock):
        async with open_pair(
            stream_limit=STREAMS, client={"max_connections": 1}, faults=[Delay(seconds=1.0)]
        ) as (apns, client):
            await client.send(push())

            async def story(steps):
                others, one = Ends(), Ends()
                async with trio.open_nursery() as nursery:
                    for notification in large(STREAMS):
                        nursery.start_soon(others.send, client, notification)
                    await wait_all_tasks_blocked()
                    with steps.cancelling():
                        await one.send(client, push(50))
                assert others.accepted == STREAMS
                assert one.begun == one.ended == 1
                await still_whole(client, apns, connections=1)

            await at_each_step(story, least=10)

    async def test_send_many(self, clock):
        async with open_pair(stream_limit=STREAMS, client={"max_connections": 1}) as (apns, client):
            await client.send(push())

            async def story(steps):
                others, seen = Ends(), []
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(others.send, client, push(1))
                    with steps.cancelling():
                        async with client.send_many(large(3 * STREAMS, first=50)) as responses:
                            async for response in responses:
                                seen.append(response)
                    if steps.fired:  # what was queued is withdrawn, but for the one of the others
                        assert client.statistics().queued <= 1
                assert others.accepted == 1
                assert all(response.accepted for response in seen)
                assert steps.fired or len(seen) == 3 * STREAMS
                await still_whole(client, apns, connections=1)

            await at_each_step(story, least=15)

    async def test_one_send_with_goaway_in_its_way(self, clock):
        """Each time the connection is replaced; the streams of the next one are all free."""
        async with open_pair(stream_limit=STREAMS, client={"max_connections": 1}) as (apns, client):
            await client.send(push())

            async def story(steps):
                others, one = Ends(), Ends()
                async with trio.open_nursery() as nursery:
                    for notification in large(STREAMS):
                        nursery.start_soon(others.send, client, notification)
                    await trio.lowlevel.checkpoint()
                    assert apns.send_goaway(last="zero", close="at once") == 1
                    with steps.cancelling():
                        await one.send(client, push(50))
                assert others.accepted == STREAMS
                assert one.begun == one.ended == 1
                await still_whole(client, apns, connections=1)

            await at_each_step(story, least=25)

    async def test_a_wait_for_the_next_attempt(self, clock):
        """429 for one device token: nobody else waits, and the wait holds no stream."""
        async with open_pair(stream_limit=STREAMS, client={"max_connections": 1}) as (apns, client):
            await client.send(push())

            async def story(steps):
                one, other = Ends(), Ends()
                asked = apns.statistics().requests
                apns.faults.add(
                    Answer(device_token=device_token(7), status=429, reason="TooManyRequests", times=1)
                )
                with steps.cancelling():
                    await one.send(client, push(7))
                requests = apns.statistics().requests - asked
                assert one.begun == one.ended == 1
                await other.send(client, push(8))
                assert other.accepted == 1
                await trio.sleep(30)
                if one.cancelled:  # nothing is sent for a caller who has gone
                    assert apns.statistics().requests - asked == requests + 1
                apns.faults.clear()
                await other.send(client, push(7))
                assert other.accepted == 2
                await still_whole(client, apns, connections=1)

            await at_each_step(story, least=8)

    async def test_use_credential(self, clock):
        """Either the new one has taken over or nothing has changed; connections are two in any case."""
        async with open_pair(stream_limit=STREAMS, client={"max_connections": 2}) as (apns, client):
            await client.send(push())
            await trio.sleep(5)

            async def story(steps):
                others = Ends()
                new = apns.signing_key()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(others.send, client, push(1))
                    with steps.cancelling():
                        await client.use_credential(new)
                    nursery.start_soon(others.send, client, push(2))
                assert others.accepted == 2
                assert steps.fired or new.key_id in repr(client)
                await trio.sleep(10)
                await still_whole(client, apns, connections=2)

            await at_each_step(story, least=25)

    async def test_recycle(self, clock):
        """A replacement that is not waited for does not stay beside what it was to replace."""
        async with open_pair(stream_limit=STREAMS, client={"max_connections": 2}) as (apns, client):
            await client.send(push())
            await trio.sleep(5)

            async def story(steps):
                others = Ends()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(others.send, client, push(1))
                    with steps.cancelling():
                        await client.recycle()
                    nursery.start_soon(others.send, client, push(2))
                assert others.accepted == 2
                await trio.sleep(10)
                await still_whole(client, apns, connections=2)

            await at_each_step(story, least=35)

    async def test_wait_ready(self, clock):
        async with open_simulator() as apns, open_client_on(apns) as client:
            apns.refuse_connections()

            async def story(steps):
                with steps.cancelling():
                    with trio.move_on_after(3.0):
                        await client.wait_ready()

            await at_each_step(story, least=4)
            apns.accept_connections()
            with trio.fail_after(120):
                await client.wait_ready()
            assert (await client.send(push())).accepted
