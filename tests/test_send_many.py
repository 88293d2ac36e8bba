"""Any number of notifications: one `Response` for each, bounded on the way, and no item ends the batch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import time

import pytest
import trio
import trio.testing

import fastpush
from fastpush.client import MOST_UNREAD, TAKEN_AT_ONCE
from fastpush.pool import MOST_APART, RESERVE
from fastpush.simulator import Answer, Close, Delay, Swallow, open_simulator
from tests.clocks import story_clock
from tests.peers import (
    TOPIC,
    check,
    device_token,
    open_client_on,
    open_pair,
    outcomes,
    push,
    pushes,
    send_all,
)


@pytest.fixture
def clock():
    return story_clock()


class Boom(Exception):
    pass


async def test_each_notification_has_one_response(clock):
    async with open_pair() as (apns, client):
        responses = await send_all(client, pushes(5_000))
        assert {r.notification.device_token for r in responses} == {device_token(n) for n in range(1, 5_001)}
        check(apns, responses)


@pytest.mark.parametrize("empty", [[], (), iter(()), {}])
async def test_empty_input(clock, empty):
    async with open_pair() as (_, client):
        assert await send_all(client, empty) == []


async def test_an_async_iterable(clock):
    async def notifications():
        for number in range(1_000):
            if number % 100 == 0:
                await trio.sleep(1)
            yield push(number)

    async with open_pair() as (apns, client):
        responses = await send_all(client, notifications())
        assert outcomes(responses) == {"accepted": 1_000}
        check(apns, responses)


async def test_an_empty_async_iterable(clock):
    receive_channel = trio.open_memory_channel[fastpush.Notification](0)
    await receive_channel[0].aclose()
    async with open_pair() as (_, client):
        assert await send_all(client, receive_channel[1]) == []


async def test_the_order_is_that_of_completion(clock):
    async with open_pair(faults=[Delay(device_token=device_token(1), seconds=5)]) as (_, client):
        responses = await send_all(client, pushes(50))
        assert responses[-1].notification.device_token == device_token(1)
        assert len(responses) == 50


async def test_one_item_never_ends_the_batch(clock):
    """What `send` would raise is in the response."""
    faults = [
        Close(device_token=device_token(3)),
        Answer(device_token=device_token(4), status=413, reason="PayloadTooLarge"),
    ]
    async with open_pair(faults=faults, client={"max_connections": 1}) as (_apns, client):
        await client.wait_ready()
        notifications = [
            push(1),
            push(2, expiration=int(time.time()) - 10),
            push(4),
            push(5),
        ]
        found = {int(r.notification.device_token, 16): r for r in await send_all(client, notifications)}
        found |= {int(r.notification.device_token, 16): r for r in await send_all(client, [push(3)])}
        assert {n: r.outcome for n, r in found.items()} == {
            1: "accepted", 2: "expired", 3: "unknown", 4: "rejected", 5: "accepted",
        }  # fmt: skip
        assert type(found[2].error) is fastpush.Expired
        assert type(found[3].error) is fastpush.OutcomeUnknown
        assert (found[3].status, found[3].attempts, found[3].error.processed) == (None, 1, None)
        assert found[3].apns_id == found[3].error.apns_id
        assert (found[4].status, found[4].reason, found[4].error) == (413, "PayloadTooLarge", None)


async def test_a_topic_that_is_not_covered_is_one_items_own_matter(clock):
    async with open_simulator() as apns, open_client_on(apns, apns.provider_certificate(TOPIC)) as client:
        responses = await send_all(client, [push(1), push(2, topic="org.other"), push(3)])
        assert outcomes(responses) == {"accepted": 2, "not_sent": 1}
        [error] = [response.error for response in responses if response.error]
        assert isinstance(error, fastpush.InvalidCredential)
        assert "org.other" in str(error)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_when_the_input_raises_what_was_taken_is_yielded_first(clock, kind):
    def plain():
        yield from pushes(700)
        raise Boom("no more")

    async def asynchronous():
        for notification in pushes(700):
            yield notification
        raise Boom("no more")

    async with open_pair() as (apns, client):
        responses = []
        with pytest.raises(Boom, match="no more"):  # noqa: PT012
            async with client.send_many(plain() if kind == "plain" else asynchronous()) as reader:
                async for response in reader:
                    responses.append(response)
        assert outcomes(responses) == {"accepted": 700}
        check(apns, responses)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_an_item_that_is_no_notification_ends_the_reading(clock, kind):
    async def asynchronous(items):
        for item in items:
            yield item

    items = [*pushes(10), "hello", *pushes(10, first=100)]
    async with open_pair() as (_, client):
        responses = []
        with pytest.raises(TypeError, match="Notification"):  # noqa: PT012
            async with client.send_many(items if kind == "plain" else asynchronous(items)) as reader:
                async for response in reader:
                    responses.append(response)
        assert len(responses) == 10
        with pytest.raises(TypeError, match="not iterable"):
            await send_all(client, 42)


async def test_leaving_early_leaves_the_rest_of_the_input_unread(clock):
    numbers = itertools.count(1)
    notifications = (push(number) for number in numbers)
    async with open_pair(faults=[Delay(seconds=0.05)], stream_limit=100) as (apns, client):
        async with client.send_many(notifications) as reader:
            async for _ in reader:
                break
        read = next(numbers)
        assert read < 100 * 4 + RESERVE + TAKEN_AT_ONCE
        await trio.sleep(5)
        assert next(numbers) == read + 1, "nothing is read after the block"
        assert client.statistics().queued == 0
        assert client.statistics().in_flight == 0
        assert next(notifications).device_token, "what was not read is still the caller's"
        assert len(apns.ledger.seen) <= 500


async def test_leaving_by_cancellation(clock):
    async with open_pair(faults=[Swallow()]) as (_, client):
        with trio.move_on_after(2) as scope:
            await send_all(client, pushes(5_000))
        assert scope.cancelled_caught
        assert client.statistics().queued == 0


async def test_a_slow_reader_bounds_what_is_read(clock):
    """Unread responses, and with them the input, wait for the reader."""
    numbers = itertools.count(1)
    async with open_pair() as (_, client):
        async with client.send_many(push(n) for n in numbers) as reader:
            await reader.__anext__()
            await trio.sleep(30)  # no idle PING, whose answer would wake it too
            most = MOST_UNREAD + 1_000 * 4 + RESERVE + TAKEN_AT_ONCE
            assert MOST_UNREAD <= next(numbers) <= most
            began = trio.current_time()
            for _ in range(20_000):
                await reader.__anext__()
            assert trio.current_time() - began < 5, "taking them wakes who reads the input"
        assert next(numbers) > 20_000


async def test_input_is_bounded_while_nothing_can_be_sent(clock):
    async with open_simulator() as apns:
        apns.refuse_connections()
        async with open_client_on(apns) as client:
            numbers = itertools.count(1)
            with trio.move_on_after(30):
                await send_all(client, (push(n) for n in numbers))
            assert next(numbers) <= RESERVE + TAKEN_AT_ONCE + 1


async def test_input_is_bounded_while_all_of_it_is_kept_aside(clock):
    """One device token that APNs asks to spare, again and again."""
    faults = [Answer(device_token=device_token(1), status=429, reason="TooManyRequests", retry_after=25)]
    async with open_pair(faults=faults) as (_, client), trio.open_nursery() as nursery:
        nursery.start_soon(send_all, client, pushes(1))
        await trio.sleep(1)
        taken = itertools.count(1)
        nursery.start_soon(send_all, client, (push(1) for _ in taken))
        await trio.sleep(10)
        assert next(taken) <= MOST_APART + TAKEN_AT_ONCE + 10
        nursery.cancel_scope.cancel()


async def test_batches(clock):
    async with open_pair() as (apns, client):
        async with client.send_many(pushes(3_000)) as reader:
            batches = [batch async for batch in reader.batches()]
        assert all(batches)
        responses = [response for batch in batches for response in batch]
        assert len(batches) < 3_000
        check(apns, responses)


async def test_batches_after_single_responses_leave_none_out(clock):
    async with open_pair() as (apns, client):
        async with client.send_many(pushes(1_000)) as reader:
            responses = [await reader.__anext__() for _ in range(10)]
            async for batch in reader.batches():
                responses += batch
        assert len(responses) == 1_000
        check(apns, responses)


async def test_it_is_over_when_it_is_over(clock):
    async with open_pair() as (_, client), client.send_many(pushes(5)) as reader:
        assert len([response async for response in reader]) == 5
        assert [response async for response in reader] == []
        assert [batch async for batch in reader.batches()] == []


async def test_two_tasks_must_not_read_the_same_responses(clock):
    async with open_pair(faults=[Swallow()]) as (_, client):  # noqa: SIM117
        async with client.send_many(pushes(1)) as reader, trio.open_nursery() as nursery:
            nursery.start_soon(reader.__anext__)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="another task"):
                await reader.__anext__()
            nursery.cancel_scope.cancel()


async def test_several_at_once_share_the_connections(clock):
    async with open_pair() as (apns, client):
        found = {}

        async def many(name, first):
            found[name] = await send_all(client, pushes(1_500, first=first))

        async with trio.open_nursery() as nursery:
            for name in range(4):
                nursery.start_soon(many, name, 1 + 10_000 * name)
        assert [outcomes(found[name]) for name in range(4)] == [{"accepted": 1_500}] * 4
        check(apns, functools.reduce(operator.iadd, found.values(), []))


async def test_the_input_may_itself_send(clock):
    """An input that waits for another push must not stop the client."""

    async with open_pair() as (_, client):

        async def notifications():
            for number in range(20):
                assert (await client.send(push(1_000 + number))).accepted
                yield push(number)

        assert outcomes(await send_all(client, notifications())) == {"accepted": 20}


async def test_leaving_the_client_inside_of_it(clock):
    """The client is closed while a batch is read: what is left ends as not sent, and the reading goes on."""
    async with open_simulator(faults=[Swallow()]) as apns:
        found = []

        async def read(client):
            found.extend(await send_all(client, pushes(3_000)))

        async with trio.open_nursery() as nursery, open_client_on(apns) as client:
            nursery.start_soon(read, client)
            await trio.sleep(1)
            apns.freeze()
        assert len(found) == 3_000
        assert set(outcomes(found)) == {"unknown", "not_sent"}
        check(apns, found)


def burn(seconds):
    """Compute, as an input or a reader may, without a checkpoint."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def longest_without_a_turn(work):
    """The most items that `work` appends to its argument between two turns of another task."""
    handled, most, before = [], 0, 0
    async with trio.open_nursery() as nursery:

        async def watch():
            nonlocal most, before
            while True:
                most, before = max(most, len(handled) - before), len(handled)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(watch)
        await work(handled)
        nursery.cancel_scope.cancel()
    return most


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_slow_input_leaves_the_others_their_turn_each_millisecond(kind):
    async with open_pair() as (_, client):
        await client.send(push())

        async def work(taken):
            def plain():
                for number in range(200):
                    burn(0.002)
                    taken.append(number)
                    yield push(number)

            async def asynchronous():
                for notification in plain():
                    yield notification

            responses = await send_all(client, plain() if kind == "plain" else asynchronous())
            assert outcomes(responses) == {"accepted": 200}

        # An item may run over the millisecond, and another task's turn may be that of the one who reads.
        assert await longest_without_a_turn(work) <= 4


async def test_a_slow_reader_leaves_the_others_their_turn_each_millisecond():
    async with open_pair() as (_, client):
        await client.send(push())

        async def work(handled):
            async with client.send_many(pushes(500)) as reader:
                await trio.sleep(0.5)  # most of them wait to be read by now
                async for response in reader:
                    burn(0.002)
                    handled.append(response)
            assert len(handled) == 500

        assert await longest_without_a_turn(work) <= 4


async def test_a_share_of_the_streams_is_left_to_others(clock):
    """Also where nothing is answered: what comes by another way goes out at once, and connections grow."""
    async with open_pair(faults=[Delay(seconds=5)], probing=False) as (apns, client):
        async with client.send_many(pushes(5_000), reserve=0.1) as responses:
            await trio.sleep(2)
            statistics = client.statistics()
            limit = sum(connection.stream_limit for connection in statistics.connections)
            assert len(statistics.connections) == 4
            assert 0.85 * limit < statistics.in_flight <= 0.9 * limit
            apns.faults.clear()  # what is delayed by now stays so
            before = trio.current_time()
            await client.send(push(6_000))
            assert trio.current_time() - before < 1
            assert client.statistics().in_flight > 0.85 * limit, "it waited for none of the others"
            found = [response async for response in responses]
        assert outcomes(found) == {"accepted": 5_000}


@pytest.mark.parametrize("reserve", [-0.1, 1.0, 2.0])
async def test_a_reserve_is_a_share(clock, reserve):
    async with open_pair() as (_, client):
        with pytest.raises(ValueError, match="reserve"):
            client.send_many([], reserve=reserve)


async def test_what_is_sent_once_ends_as_unknown_where_it_was_lost(clock):
    """With a collapse id it would be sent again; not if it must not arrive twice."""
    lost = Swallow(device_token=device_token(1), processed=True)
    for once, outcome, times in ((True, "unknown", 1), (False, "accepted", 2)):
        async with open_pair(faults=[dataclasses.replace(lost, times=1)]) as (apns, client):
            notification = push(1, collapse_id="a")
            async with client.send_many([notification], once=once) as responses:
                (response,) = [response async for response in responses]
            assert (response.outcome, apns.ledger.counts["unanswered"]) == (outcome, 1)
            assert len(apns.ledger.seen) == times
