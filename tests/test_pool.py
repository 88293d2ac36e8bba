"""Many pushes over connections that refuse, drain, break, throttle and come back: each ends once.

All over real TLS; the simulator's ledger says what was delivered, a scripted server what was on the wire.
"""

from __future__ import annotations

import itertools
import time

import pytest
import trio
import trio.testing

import fastpush
from fastpush import Connected, Lost
from fastpush import pool as pool_module
from fastpush.simulator import (
    Answer,
    Close,
    Delay,
    Goaway,
    KeepWindow,
    Refuse,
    RejectionLimit,
    Settings,
    Swallow,
    open_simulator,
)
from tests.clocks import story_clock
from tests.http2 import frames
from tests.peers import (
    check,
    device_token,
    open_client_on,
    open_pair,
    open_peer,
    outcomes,
    push,
    pushes,
    send_all,
)


@pytest.fixture
def clock():
    return story_clock()


@pytest.fixture
def quick_clock():
    """For stories in which the clock jumps some hundred times."""
    return story_clock(0.005)


# Streams that were surely not processed (RFC 9113 §8.7) go again, as often as it takes.


async def test_one_stream_in_twenty_is_refused(clock):
    async with open_pair(faults=[Refuse(one_in=20)]) as (apns, client):
        responses = await send_all(client, pushes(2_000))
        assert outcomes(responses) == {"accepted": 2_000}
        check(apns, responses)
        assert apns.statistics().fates["refused"] > 50
        assert {response.attempts for response in responses} == {1}
        statistics = client.statistics()
        assert (statistics.resent, statistics.accepted) == (0, 2_000)


async def test_row_1_goaway_each_two_hundred_streams(clock):
    """With 1,000 in flight: what is above the last stream id goes to the next connection, once."""
    faults = [Delay(seconds=0.02), Goaway(every=200)]
    async with open_pair(faults=faults, client={"max_connections": 2}) as (apns, client):
        responses = await send_all(client, pushes(2_000))
        assert outcomes(responses) == {"accepted": 2_000}
        check(apns, responses)
        assert apns.statistics().connections_opened >= 10
        assert all(response.attempts == 1 for response in responses)


async def test_row_2_goaway_in_two_steps(clock):
    faults = [Delay(seconds=0.02), Goaway(request=300, last="max", real_after=0.5)]
    async with open_pair(faults=faults, client={"max_connections": 2}) as (apns, client):
        responses = await send_all(client, pushes(2_000))
        assert outcomes(responses) == {"accepted": 2_000}
        check(apns, responses)


async def test_row_7_goaway_and_then_the_end_at_once(clock):
    """What was at or below the last stream id and not answered is unknown; the rest is sent again."""
    faults = [Delay(seconds=0.02), Goaway(request=500, close="at once", times=3)]
    async with open_pair(faults=faults) as (apns, client):
        responses = await send_all(client, pushes(3_000))
        assert set(outcomes(responses)) <= {"accepted", "unknown"}
        assert len(responses) == 3_000
        check(apns, responses)


async def test_h4_reset_twenty_times(clock):
    """A TCP RST in the middle: unknown for what was open, nothing else is lost, nothing hangs."""
    faults = [Close(every=100, how="reset", processed=True, octets=3, times=20)]
    async with open_pair(faults=faults) as (apns, client):
        responses = await send_all(client, pushes(4_000))
        assert len(responses) == 4_000
        assert set(outcomes(responses)) == {"accepted", "unknown"}
        check(apns, responses)
        assert {type(r.error) for r in responses if r.error} == {fastpush.OutcomeUnknown}


async def test_row_11_limit_lowered_and_what_is_above_it_refused_twice(clock):
    faults = [
        Settings(request=100, stream_limit=1, strict=True, restored_after=1.0),
        Refuse(every=50, twice=True),
    ]
    async with open_pair(faults=faults) as (apns, client):
        responses = await send_all(client, pushes(2_000))
        assert outcomes(responses) == {"accepted": 2_000}
        check(apns, responses)


async def test_a_server_that_refuses_everything_is_asked_ever_less_often(quick_clock):
    """Also after it has answered: no round trip after the other, for ever."""
    async with open_pair(client={"max_connections": 1}) as (apns, client):
        assert (await client.send(push(1))).accepted
        apns.faults.add(Refuse())
        with trio.move_on_after(60):
            await client.send(push(2))
        assert 10 <= apns.statistics().fates["refused"] <= 25
        apns.faults.clear()
        with trio.fail_after(10):
            assert (await client.send(push(3))).accepted


# Limits.


async def test_nothing_is_opened_before_settings(clock, tmp_path):
    async def script(peer):
        with trio.move_on_after(3):
            while True:
                await peer.read()
        assert not peer.requests
        await peer.start()
        await peer.accept(await peer.request())
        await peer.to_end()

    async with open_peer(script, tmp_path) as (server, client):
        began = trio.current_time()
        assert (await client.send(push(1))).accepted
        assert trio.current_time() - began >= 3
        assert len(server.opened_at) == 1


async def test_a_server_without_settings_is_left_after_five_seconds(clock, tmp_path):
    async def script(peer):
        if peer.number == 1:
            await peer.to_end()
        await peer.start()
        await peer.accept(await peer.request())
        await peer.to_end()

    heard = []
    async with open_peer(script, tmp_path, client={"listener": heard.append}) as (server, client):
        assert (await client.send(push(1))).accepted
        assert 5.0 <= server.opened_at[1] - server.opened_at[0] <= 7.0
        assert heard[0] == Lost(server.host, "the server sent no SETTINGS within 5 s")


async def test_one_stream_until_the_first_answer_and_then_a_thousand(clock, tmp_path):
    """So APNs begins with a signing key."""
    most = []

    async def script(peer):
        await peer.start(max_concurrent_streams=1)
        first = await peer.request()
        with trio.move_on_after(1):
            while True:
                await peer.read()
        assert list(peer.requests) == [first]
        await peer.send(peer.made.accept(first) + frames.settings(max_concurrent_streams=1_000))
        open_now = [await peer.request() for _ in range(499)]
        most.append(len(open_now))
        await peer.accept(*open_now)
        await peer.to_end()

    async with open_peer(script, tmp_path) as (_, client):
        assert outcomes(await send_all(client, pushes(500))) == {"accepted": 500}
    assert most == [499]


async def test_h5_rows_9_and_10_the_limit_changes_while_sending(clock):
    """1000 → 1 → 0 → 37 → 1000: never above the limit in force, and nobody hears of it."""
    async with open_pair(faults=[Delay(seconds=0.01)], client={"max_connections": 2}) as (apns, client):
        responses = []

        async def change():
            while True:
                for limit in (1, 0, 37, 1_000):
                    await trio.sleep(0.05)
                    apns.set(stream_limit=limit)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            responses = await send_all(client, pushes(8_000))
            nursery.cancel_scope.cancel()
        assert outcomes(responses) == {"accepted": 8_000}
        check(apns, responses)
        assert apns.statistics().fates["refused"] == 0


async def test_row_10_a_limit_of_zero_parks_and_the_raise_wakes_at_once(clock, tmp_path):
    raised = trio.Event()

    async def script(peer):
        await peer.start(max_concurrent_streams=0)
        await raised.wait()
        await peer.send(frames.settings(max_concurrent_streams=10))
        while True:
            await peer.accept(await peer.request())

    async with open_peer(script, tmp_path) as (_, client), trio.open_nursery() as nursery:
        found = []

        async def send():
            found.append(await client.send(push(1)))

        nursery.start_soon(send)
        await trio.sleep(20)
        assert not found
        assert client.statistics().queued == 1
        raised.set()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(found) == 1


async def test_h15_stream_ids_run_out(clock, monkeypatch):
    """Far from the end of all ids a connection gives way to the next, and nobody hears of it."""
    from fastpush import connection
    from fastpush.http2 import Limits, open_engine

    monkeypatch.setattr(
        connection, "open_engine", lambda limits: open_engine(limits=Limits(last_stream_id=599))
    )
    async with open_pair(client={"max_connections": 2}) as (apns, client):
        responses = await send_all(client, pushes(2_000))
        assert outcomes(responses) == {"accepted": 2_000}
        check(apns, responses)
        assert {response.attempts for response in responses} == {1}
        assert apns.statistics().connections_opened >= 7


async def test_connections_do_not_run_out_of_stream_ids_together(clock, monkeypatch):
    """They share their load evenly, so each has an end of its own, at most a quarter earlier."""
    from fastpush import connection
    from fastpush.http2 import open_engine

    last = []
    monkeypatch.setattr(
        connection,
        "open_engine",
        lambda limits: (last.append(limits.last_stream_id), open_engine(limits=limits))[1],
    )
    async with open_pair() as (_, client):
        for _ in range(5):
            await client.wait_ready()
            await client.recycle()
    assert len(set(last)) == len(last) > 5
    assert all(0.75 * 2**30 < each <= 2**30 + 1 and each % 2 for each in last)


# Answers that are no 200.


async def test_ten_thousand_bad_device_tokens(clock):
    """Each ends once, however often APNs ends the connection for it."""
    faults = [RejectionLimit(rejections=1_500), Answer(status=400, reason="BadDeviceToken")]
    async with open_pair(faults=faults) as (apns, client):
        responses = await send_all(client, pushes(10_000))
        assert outcomes(responses) == {"rejected": 10_000}
        check(apns, responses)
        assert {response.reason for response in responses} == {"BadDeviceToken"}
        statistics = client.statistics()
        assert (statistics.rejected, statistics.in_flight, statistics.queued) == (10_000, 0, 0)


async def test_lately_rejected_device_tokens_have_a_lane_of_their_own(clock):
    """APNs slows a connection down for each rejection; good pushes are not to feel it."""
    heard = []
    options = {"client": {"max_connections": 1, "listener": heard.append}}
    async with open_pair(**options) as (apns, client):
        bad = [device_token(number) for number in range(1, 21)]
        for token in bad:
            apns.register(token, environment="development")
        first = await send_all(client, pushes(20))
        assert {response.reason for response in first} == {"BadDeviceToken"}
        again = await send_all(client, pushes(200))
        assert outcomes(again) == {"accepted": 180, "rejected": 20}
        lanes = {each.lane: each for each in client.statistics().connections}
        assert set(lanes) == {"main", "rejected"}
        assert (lanes["rejected"].requests, lanes["rejected"].accepted) == (20, 0)
        assert Connected(apns.host, "rejected") in heard
        by_connection = {seen.device_token: seen.connection for seen in apns.ledger.seen}
        assert {by_connection[token] for token in bad} == {2}
        # Ten minutes later they are as good as any.
        for token in bad:
            apns.forget_device(token)
        await trio.sleep(601)
        assert outcomes(await send_all(client, pushes(20))) == {"accepted": 20}
        assert client.statistics().connections[0].accepted == 200
        # The lane had nothing to do for a minute, so its connection is gone.
        assert [each.lane for each in client.statistics().connections] == ["main"]


async def test_a_wedged_lane_of_rejected_device_tokens_holds_up_no_good_push(clock):
    async with open_pair(client={"max_connections": 1}) as (apns, client):
        apns.register(device_token(1), environment="development")
        await client.send(push(1))
        apns.faults.add(Swallow(device_token=device_token(1)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, pushes(1))
            await trio.sleep(1)
            began = trio.current_time()
            assert outcomes(await send_all(client, pushes(1_000, first=2))) == {"accepted": 1_000}
            assert trio.current_time() - began < 5
            nursery.cancel_scope.cancel()


async def test_o7_too_many_requests_for_one_device_delays_only_that_one(clock):
    """Its wait holds no stream."""
    faults = [
        Answer(device_token=device_token(1), status=429, reason="TooManyRequests", retry_after=5, times=1)
    ]
    async with open_pair(faults=faults, client={"max_connections": 1}) as (_apns, client):
        began = trio.current_time()
        waited = {}

        async def slow(name):
            response = await client.send(push(1))
            waited[name] = (response.outcome, response.attempts, trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow, "first")
            await trio.sleep(1)
            nursery.start_soon(slow, "second")  # waits with it, and costs no attempt
            await trio.testing.wait_all_tasks_blocked(0.02)
            statistics = client.statistics()
            assert (statistics.waiting, statistics.in_flight, statistics.queued) == (2, 0, 0)
            responses = await send_all(client, pushes(1_000, first=2))
            assert outcomes(responses) == {"accepted": 1_000}
            assert trio.current_time() - began < 4
        assert waited["first"] == ("accepted", 2, pytest.approx(5.0, abs=0.5))
        assert waited["second"] == ("accepted", 1, pytest.approx(5.0, abs=0.5))


@pytest.mark.parametrize("status", [500, 503])
async def test_three_attempts_and_then_the_answer(clock, status):
    async with open_pair(faults=[Answer(status=status, reason="InternalServerError")]) as (apns, client):
        response = await client.send(push(1))
        assert (response.outcome, response.status, response.attempts) == ("rejected", status, 3)
        assert response.retryable
        assert response.retry_after is None
        assert response.elapsed < 2.0
        assert len(apns.ledger.seen) == 3
        assert client.statistics().resent == 2


async def test_retry_after_is_obeyed_or_handed_on(clock):
    faults = [Answer(overall=1, status=503, reason="ServiceUnavailable", retry_after=7)]
    async with open_pair(faults=faults) as (apns, client):
        began = trio.current_time()
        response = await client.send(push(1))
        assert (response.outcome, response.attempts) == ("accepted", 2)
        assert trio.current_time() - began >= 7
        apns.faults.add(Answer(status=503, reason="ServiceUnavailable", retry_after=900))
        response = await client.send(push(1))
        assert (response.outcome, response.attempts, response.retry_after) == ("rejected", 1, 900)


async def test_o3_retries_are_a_tenth_and_no_more(quick_clock):
    """A server that is down gets at most a tenth more than was offered, and ten a second."""
    async with open_pair(faults=[Answer(status=503, reason="ServiceUnavailable")]) as (apns, client):
        began = trio.current_time()
        responses = await send_all(client, pushes(5_000))
        assert outcomes(responses) == {"rejected": 5_000}
        elapsed = trio.current_time() - began
        resent = len(apns.ledger.seen) - 5_000
        assert resent == client.statistics().resent
        assert 300 < resent <= 100 + 500 + 10 * elapsed + 1
        assert client.statistics().retry_budget < 500


async def test_shutdown_goes_to_another_connection_at_once(clock):
    faults = [Answer(overall=3, status=503, reason="Shutdown")]
    async with open_pair(faults=faults, client={"max_connections": 2}) as (apns, client):
        for number in (1, 2):
            await client.send(push(number))
        began = trio.current_time()
        response = await client.send(push(3))
        assert (response.outcome, response.attempts) == ("accepted", 2)
        assert trio.current_time() - began < 0.5
        one, other = (seen.connection for seen in apns.ledger.seen if seen.apns_id == response.apns_id)
        assert one != other


async def test_a_connection_that_answers_500_three_times_is_left(clock):
    faults = [Answer(status=500, reason="InternalServerError", connection=1)]
    async with open_pair(faults=faults, client={"max_connections": 1}) as (apns, client):
        for number in range(5):
            await client.send(push(number))
        assert {seen.connection for seen in apns.ledger.seen if seen.fate == "rejected"} == {1}
        assert len([seen for seen in apns.ledger.seen if seen.connection == 1]) == 3


# Expiration.


async def test_a_push_expires_while_no_connection_can_be_made(clock):
    async with open_simulator() as apns:
        apns.refuse_connections()
        async with open_client_on(apns) as client:
            began = trio.current_time()
            wall = time.time()
            client._pool._wall_clock = lambda: wall + trio.current_time() - began
            with pytest.raises(fastpush.Expired) as caught, trio.fail_after(60):
                await client.send(push(1, expiration=int(wall) + 20))
            assert 19 <= trio.current_time() - began <= 25
            assert caught.value.attempts == 0
            responses = await send_all(client, pushes(50, expiration=int(wall) + 40))
            assert outcomes(responses) == {"expired": 50}
            assert client.statistics().expired == 51
            assert client.statistics().queued == 0


# More connections.


async def test_streams_run_short_and_connections_are_added(quick_clock):
    async with open_pair(faults=[Delay(seconds=0.2)], stream_limit=10) as (apns, client):
        responses = await send_all(client, pushes(2_000))
        check(apns, responses)
        statistics = client.statistics()
        assert [each.state for each in statistics.connections] == ["open"] * 4
        assert statistics.stalled_on_streams > 1.0
        assert statistics.stalled_on_window == 0.0


async def test_row_26_a_window_that_is_used_up_is_not_waited_for(clock):
    """Another connection is opened within the second; PING still works on the one that is stuck."""
    options = {
        "client": {"max_connections": 3},
        "faults": [KeepWindow(connection=1), KeepWindow(connection=2)],
    }
    async with open_pair(**options) as (apns, client):
        big = fastpush.Payload(alert="x" * 3_900)
        notifications = [fastpush.Notification(device_token(n), big) for n in range(200)]
        began = trio.current_time()
        responses = await send_all(client, notifications)
        assert outcomes(responses) == {"accepted": 200} or outcomes(responses)["unknown"] <= 4
        assert trio.current_time() - began < 12
        statistics = client.statistics()
        assert statistics.stalled_on_window > 0.0
        assert apns.statistics().connections_opened >= 3
        by_connection = [seen.connection for seen in apns.ledger.seen if seen.delivered]
        assert by_connection.count(3) > 100


async def test_a_stall_without_any_progress_adds_a_connection_too(clock, tmp_path):
    """Nothing comes from the server, so only the clock can tell."""

    async def script(peer):
        await peer.start(max_concurrent_streams=1)
        if peer.number <= 2:
            await peer.to_end()
        while True:
            await peer.accept(await peer.request())

    async with open_peer(script, tmp_path, client={"max_connections": 3}) as (_server, client):
        await client.wait_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, pushes(2))
            await trio.sleep(1)
            assert client.statistics().in_flight == 2
            began = trio.current_time()
            assert (await client.send(push(3))).accepted
            assert trio.current_time() - began < 0.5
            nursery.cancel_scope.cancel()


async def test_what_is_idle_for_a_minute_is_let_go_down_to_two(quick_clock):
    async with open_pair(faults=[Delay(seconds=0.2)], stream_limit=10) as (apns, client):
        await send_all(client, pushes(1_000))
        assert len(client.statistics().connections) == 4
        await trio.sleep(300)
        assert len(client.statistics().connections) == 2
        assert apns.statistics().connections_open == 2
        assert (await client.send(push(1))).accepted


# Connecting, and not being able to.


async def test_row_5_goaway_before_any_answer_each_time(quick_clock):
    """It is no success: back-off grows. Pushes wait, and go when the server is well."""
    async with open_pair(faults=[Goaway(last="zero", close="at once")]) as (apns, client):
        with trio.move_on_after(300):
            await client.send(push(1))
        opened = apns.statistics().connections_opened
        assert 8 <= opened <= 60
        apns.faults.clear()
        with trio.fail_after(130):
            assert (await client.send(push(2))).accepted


async def test_after_failures_at_most_one_connect_a_second(quick_clock, monkeypatch):
    async with open_simulator() as apns:
        tried = []
        connect = pool_module.Connection.run

        async def run(self):
            tried.append(trio.current_time())
            await connect(self)

        monkeypatch.setattr(pool_module.Connection, "run", run)
        apns.refuse_connections()
        async with open_client_on(apns) as client:
            with trio.move_on_after(600):
                await client.send(push(1))
            gaps = [later - earlier for earlier, later in itertools.pairwise(tried[2:])]
            assert min(gaps) >= 0.999
            assert len(tried) < 60
            apns.accept_connections()
            with trio.fail_after(61):
                assert (await client.send(push(2))).accepted


async def test_graceful_goaways_are_no_failures_and_are_replaced_at_once(clock):
    async with open_pair(client={"max_connections": 2}) as (apns, client):
        waits = []
        for number in range(3):
            assert (await client.send(push(number))).accepted
            apns.send_goaway()
            began = trio.current_time()
            assert (await client.send(push(100 + number))).accepted
            waits.append(trio.current_time() - began)
        # A burst, then one a second.
        assert waits[0] < 0.5
        assert max(waits) <= 2.1


async def test_lost_while_nothing_else_is_open_and_pushes_wait(clock):
    async with open_pair(client={"max_connections": 2}) as (apns, client):
        await client.wait_ready()
        apns.refuse_connections()
        apns.close_connections("reset")
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with trio.open_nursery() as nursery:
            found = []

            async def send():
                found.extend(await send_all(client, pushes(3_000)))

            nursery.start_soon(send)
            await trio.sleep(5)
            assert client.statistics().queued <= 1_024
            apns.accept_connections()
        assert outcomes(found) == {"accepted": 3_000}
        check(apns, found)


async def test_a_server_that_cannot_be_trusted_stops_the_client(clock, tmp_path):
    """It will not change by trying again soon: no octet of HTTP leaves, pushes end at once."""
    async with open_simulator() as apns, open_simulator() as other:  # noqa: SIM117
        async with open_client_on(apns, ca_file=other.ca_file) as client:
            assert client.statistics().stopped is None
            with pytest.raises(fastpush.NotSent, match="does not verify"):
                await client.wait_ready()
            with pytest.raises(fastpush.NotSent, match="does not verify"):
                await client.send(push(1))
            assert "does not verify" in client.statistics().stopped
            await trio.sleep(200)
            assert 2 <= apns.statistics().handshakes_failed <= 6


async def test_wait_ready(clock):
    async with open_simulator() as apns:
        apns.refuse_connections()
        async with open_client_on(apns) as client:
            with trio.move_on_after(5) as scope:
                await client.wait_ready()
            assert scope.cancelled_caught
            apns.accept_connections()
            with trio.fail_after(60):
                await client.wait_ready()
            assert client.statistics().connections[0].state == "open"


async def test_statistics_add_up(clock):
    faults = [Answer(every=10, status=400, reason="BadTopic"), Close(overall=700)]
    async with open_pair(faults=faults) as (apns, client):
        responses = await send_all(client, pushes(2_000))
        found = outcomes(responses)
        statistics = client.statistics()
        told = {name: getattr(statistics, name) for name in found}
        assert told == found
        assert sum(told.values()) == 2_000
        assert (statistics.queued, statistics.waiting, statistics.in_flight) == (0, 0, 0)
        assert statistics.stopped is None
        assert {each.peer for each in statistics.connections if each.state == "open"} == {
            f"{apns.host} port {apns.port}"
        }
        assert "Client with key" in repr(client)


async def test_streams_that_are_never_answered_do_not_hold_up_the_others(clock, tmp_path):
    """Answers are gathered before the queue is looked at again, but not for ever."""

    async def script(peer):
        await peer.start(max_concurrent_streams=100)
        first = [await peer.request() for _ in range(100)]
        await peer.accept(*first[:5])  # and none of the other 95
        while True:
            await peer.accept(await peer.request())

    async with open_peer(script, tmp_path) as (_, client), trio.open_nursery() as nursery:
        nursery.start_soon(send_all, client, pushes(100))
        await trio.sleep(0.5)
        nursery.start_soon(send_all, client, pushes(100, first=101))
        began = trio.current_time()
        assert (await client.send(push(999))).accepted
        assert trio.current_time() - began < 0.2
        nursery.cancel_scope.cancel()


async def test_an_expiration_of_zero_is_answered_after_one_attempt():
    """A 503 would otherwise be tried three times."""
    async with open_pair(faults=[Answer(status=503, reason="ServiceUnavailable")]) as (apns, client):
        response = await client.send(push(expiration=0))
        assert (response.status, response.attempts, response.retryable) == (503, 1, True)
        assert len(apns.ledger.seen) == 1
