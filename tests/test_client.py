"""What a program holds in its hands: one push, one end, and the exceptions that say there is no answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from hyperframe.frame import GoAwayFrame, RstStreamFrame

import fastpush
from fastpush import Connected, DeviceTokenDead, Draining, Lost
from fastpush.simulator import Answer, Close, Stall, Swallow, open_simulator
from tests.clocks import story_clock
from tests.http2 import frames
from tests.peers import (
    TOPIC,
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

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clock():
    return story_clock()


async def test_accepted(clock):
    async with open_pair() as (apns, client):
        response = await client.send(push(1, apns_id="123E4567-E89B-12D3-A456-4266554400A0"))
        assert response.outcome == "accepted"
        assert response.accepted
        assert (response.status, response.reason, response.error) == (200, None, None)
        assert response.apns_id == "123e4567-e89b-12d3-a456-4266554400a0"
        assert response.attempts == 1
        assert response.notification.device_token == device_token(1)
        [seen] = apns.ledger.seen
        assert (seen.apns_id, seen.device_token) == (response.apns_id, device_token(1))


async def test_rejected_is_an_answer_and_not_an_exception(clock):
    async with open_pair() as (apns, client):
        apns.mark_unregistered(device_token(1), 1_700_000_000)
        response = await client.send(push(1))
        assert response.outcome == "rejected"
        assert not response.accepted
        assert (response.status, response.reason) == (410, "Unregistered")
        assert response.unregistered_at.timestamp() == 1_700_000_000
        assert (response.retryable, response.error) == (False, None)


async def test_in_the_sandbox_there_is_an_id_for_apples_console(clock):
    async with open_pair(environment="development", client={"environment": "sandbox"}) as (_, client):
        assert len((await client.send(push(1))).apns_unique_id) == 36


async def test_expired_before_it_could_be_sent(clock):
    async with open_pair() as (apns, client):
        await client.wait_ready()
        with pytest.raises(fastpush.Expired) as caught:
            await client.send(push(1, expiration=int(time.time()) - 5))
        assert (caught.value.attempts, caught.value.processed) == (0, False)
        assert caught.value.apns_id
        assert not apns.ledger.seen
        # 0 is one attempt, and never expired.
        assert (await client.send(push(1, expiration=0))).accepted


async def test_lost_after_it_was_written_is_unknown(clock):
    """RFC 9113 §6.8: without GOAWAY nobody can say what the server has processed."""
    async with open_pair(faults=[Close(device_token=device_token(1))]) as (_, client):
        with pytest.raises(fastpush.OutcomeUnknown) as caught:
            await client.send(push(1))
        error = caught.value
        assert (error.processed, error.attempts) == (None, 1)
        assert len(error.apns_id) == 36
        assert "closed the connection" in error.reason
        # The same with a collapse id is sent again: the phone shows it once in any case.
        with pytest.raises(fastpush.OutcomeUnknown) as caught:
            await client.send(push(1, collapse_id="core-1"))
        assert caught.value.attempts == 3


async def test_unknown_with_a_collapse_id_is_sent_again(clock):
    async with open_pair(faults=[Close(overall=1, processed=True)]) as (apns, client):
        response = await client.send(push(1, collapse_id="core-1"))
        assert (response.outcome, response.attempts) == ("accepted", 2)
        assert apns.ledger.accepted[response.apns_id] == 2
        assert client.statistics().resent == 1


async def test_the_first_of_a_burst_leave_before_its_last_is_made(clock):
    """An asynchronous input that never waits leaves the other tasks few turns."""
    async with open_pair(client={"max_connections": 1}) as (_, client):
        await client.send(push(1))  # from then on the server takes a thousand at once
        begun = []

        async def burst():
            for one in pushes(200, first=2):
                [connection] = client.statistics().connections
                begun.append(connection.requests - 1)
                yield one

        async with client.send_many(burst()) as responses:
            assert [response.outcome async for response in responses] == ["accepted"] * 200
        assert all(written >= number - number % 64 for number, written in enumerate(begun))


async def test_a_topic_that_the_credential_does_not_cover(clock):
    async with open_simulator() as apns:
        certificate = apns.provider_certificate(TOPIC)
        async with open_client_on(apns, certificate, topic=None) as client:
            assert (await client.send(push(1))).accepted  # the certificate's own topic
            with pytest.raises(fastpush.InvalidCredential, match="topic"):
                await client.send(push(1, topic="com.example.other"))
            assert (await client.send(push(1))).accepted


async def test_no_topic_at_all(clock):
    async with open_pair(client={"topic": None}) as (_, client):
        with pytest.raises(fastpush.InvalidNotification, match="topic: none in the notification"):
            await client.send(push(1))
        assert (await client.send(push(1, topic=TOPIC))).accepted
        assert client.statistics().not_sent == 1


@pytest.mark.parametrize("topic", ["", "com.example\r\nx: y", "com.example.\ud800", "com example", "ü"])
async def test_a_topic_that_is_none_is_refused_where_it_is_given(topic):
    async with open_simulator() as apns:
        with pytest.raises(ValueError, match="topic"):
            async with open_client_on(apns, topic=topic):
                pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_connections": 0}, "max_connections is 0; 1 to 64"),
        ({"max_connections": 65}, "max_connections is 65; 1 to 64"),
        ({"port": 0}, "port is 0; 1 to 65535"),
        ({"port": 65_536}, "port is 65536"),
        ({"environment": "staging"}, "environment"),
        ({"proxy": "ftp://127.0.0.1"}, "scheme"),
        ({"host": ""}, "neither a name nor an address"),
        ({"host": "https://127.0.0.1"}, "neither a name nor an address"),
        ({"host": "127.0.0.1:443"}, "the port has its own argument"),
        ({"host": "a\r\nb"}, r"host 'a\\r\\nb' is neither"),
        ({"host": "münchen..example"}, "neither a name nor an address"),
        ({"host": "a" * 64 + ".example"}, "neither a name nor an address"),
    ],
)
async def test_options_out_of_range(options, words):
    async with open_simulator() as apns:
        with pytest.raises(ValueError, match=words):
            async with open_client_on(apns, **options):
                pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"credential": "AuthKey_ABC123DEFG.p8"},
            "credential must be a SigningKey or a ProviderCertificate; this is str",
        ),
        ({"topic": 3}, "topic must be a str or None; this is int"),
        ({"host": b"127.0.0.1"}, "host must be a str or None; this is bytes"),
        ({"port": "443"}, "port must be an int; this is str"),
        ({"max_connections": 4.0}, "max_connections must be an int; this is float"),
        ({"max_connections": True}, "max_connections must be an int; this is bool"),
        ({"listener": "print"}, "listener must be a function or None; this is str"),
    ],
)
async def test_options_of_another_type(options, words):
    async with open_simulator() as apns:
        with pytest.raises(TypeError, match=words):
            async with open_client_on(apns, **options):
                pass


async def test_an_address_of_ipv6(clock):
    async with open_simulator(host="::1") as apns, open_client_on(apns) as client:
        assert (await client.send(push())).accepted


async def test_what_is_no_notification(clock):
    async with open_pair() as (_, client):
        with pytest.raises(TypeError, match="Notification"):
            await client.send("hello")


async def test_many_tasks_at_once_each_get_their_own(clock):
    async with open_pair() as (apns, client):
        found = {}

        async def one(number):
            found[number] = await client.send(push(number))

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(one, number)
        assert all(found[number].notification.device_token == device_token(number) for number in range(500))
        check(apns, list(found.values()))


# Leaving.


async def test_leaving_waits_for_what_is_in_flight(clock):
    from fastpush.simulator import Delay

    async with open_simulator(faults=[Delay(seconds=5.0)]) as apns, trio.open_nursery() as nursery:
        found = []

        async def send(number):
            found.append(await client.send(push(number)))

        async with open_client_on(apns) as client:
            for number in range(5):
                nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
        assert [response.outcome for response in found] == ["accepted"] * 5


async def test_leaving_ends_what_is_not_answered_within_fifteen_seconds(clock):
    """Queued pushes surely were not processed; of those in flight nobody knows."""
    async with open_simulator(stream_limit=1, faults=[Stall(request=1)]) as apns:
        ends = []

        async def send(number):
            try:
                await client.send(push(number))
            except fastpush.FastpushError as error:
                ends.append(error)

        async with trio.open_nursery() as nursery:
            async with open_client_on(apns, max_connections=1) as client:
                await client.wait_ready()
                await trio.sleep(6)
                began = trio.current_time()
                nursery.start_soon(send, 1)
                await trio.testing.wait_all_tasks_blocked()
                for number in (2, 3):
                    nursery.start_soon(send, number)
                await trio.testing.wait_all_tasks_blocked()
                apns.refuse_connections()
            assert trio.current_time() - began <= 15.5
        assert sorted(type(error).__name__ for error in ends) == ["NotSent", "NotSent", "OutcomeUnknown"]
        assert all(error.attempts == 0 for error in ends if isinstance(error, fastpush.NotSent))


async def test_leaving_does_not_wait_for_a_push_that_was_lost(clock):
    """The last push in flight ends with its connection; nothing is left to wait for."""
    async with open_simulator(faults=[Swallow()]) as apns, trio.open_nursery() as nursery:
        ends = []

        async def send():
            try:
                await client.send(push(1))
            except fastpush.OutcomeUnknown as error:
                ends.append(error)

        async with open_client_on(apns) as client:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            left_at = trio.current_time()
            nursery.start_soon(cut_soon, apns)
        assert len(ends) == 1
        assert trio.current_time() - left_at < 5.0


async def cut_soon(apns):
    await trio.sleep(1)
    apns.close_connections("reset")


async def test_leaving_does_not_wait_for_a_push_whose_caller_went_away(clock):
    """Not even where it was to be sent again in twenty seconds."""
    faults = [Answer(status=429, reason="TooManyRequests", retry_after=20)]
    async with open_simulator(faults=faults) as apns:
        async with open_client_on(apns) as client:
            with trio.move_on_after(2):
                await client.send(push(1))
            left_at = trio.current_time()
        assert trio.current_time() - left_at < 1.0


async def test_after_leaving_nothing_is_sent(clock):
    async with open_simulator() as apns:
        async with open_client_on(apns) as client:
            assert (await client.send(push(1))).accepted
        with pytest.raises(fastpush.NotSent, match="closed"):
            await client.send(push(2))
        assert outcomes(await send_all(client, pushes(10))) == {"not_sent": 10}
        for late in (client.wait_ready, client.recycle):
            with pytest.raises(fastpush.NotSent, match="closed"):
                await late()
        with pytest.raises(fastpush.NotSent, match="closed"):
            await client.use_credential(apns.signing_key(team_id=apns.team_id))
        assert len(apns.ledger.seen) == 1


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom("x"), ExceptionGroup("mine", [Boom("x")]), KeyboardInterrupt()])
async def test_what_the_block_raises_leaves_as_it_is(clock, error):
    async with open_simulator() as apns:
        began = trio.current_time()
        with pytest.raises(type(error)) as caught:  # noqa: PT012
            async with open_client_on(apns) as client:
                await client.send(push(1))
                raise error
        assert caught.value is error
        with pytest.raises(type(error)) as caught:  # noqa: PT012
            async with open_client_on(apns) as client, client.send_many(pushes(1_000)) as responses:
                async for _ in responses:
                    raise error
        assert caught.value is error
        assert trio.current_time() - began < 10


async def test_cancelling_the_block(clock):
    async with open_simulator() as apns:
        with trio.move_on_after(3) as scope:
            async with open_client_on(apns) as client:
                await client.wait_ready()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(fastpush.NotSent):
            await client.send(push(1))


async def test_an_exception_of_send_comes_alone(clock):
    """No ExceptionGroup of the client's own nurseries around it."""
    async with open_simulator(faults=[Close()]) as apns:
        with pytest.raises(fastpush.OutcomeUnknown):
            async with open_client_on(apns) as client:
                await client.send(push(1))


# The caller goes away.


async def test_a_cancelled_send_resets_its_stream_and_harms_no_other(clock, tmp_path):
    async def script(peer):
        await peer.start()
        first, second = await peer.request(), await peer.request()
        reset = await peer.frame(RstStreamFrame)
        assert (reset.stream_id, reset.error_code) == (first, 8)
        await peer.accept(second)
        await peer.to_end()

    async with open_peer(script, tmp_path) as (_, client), trio.open_nursery() as nursery:
        await client.wait_ready()
        scopes = [trio.CancelScope(), trio.CancelScope()]
        found = []

        async def send(number):
            with scopes[number]:
                found.append(await client.send(push(number)))

        nursery.start_soon(send, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send, 1)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert client.statistics().in_flight == 2
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert [response.notification.device_token for response in found] == [device_token(1)]
        assert client.statistics().in_flight == 0


async def test_cancelled_while_it_waits_for_a_stream(clock):
    async with open_pair() as (apns, client):
        apns.refuse_connections()
        apns.close_connections()
        with trio.move_on_after(1) as scope:
            await client.send(push(1))
        assert scope.cancelled_caught
        apns.accept_connections()
        assert (await client.send(push(2))).accepted
        assert client.statistics().queued == 0
        assert [seen.device_token for seen in apns.ledger.seen] == [device_token(2)]


async def test_the_last_push_on_a_draining_connection_is_cancelled(clock, tmp_path):
    """Then the connection is drained: it closes now, and not after half a minute."""
    ended = []

    async def script(peer):
        await peer.start()
        if peer.number == 1:
            stream_id = await peer.request()
            await peer.send(frames.goaway(stream_id))
            await peer.frame(GoAwayFrame)
            ended.append(trio.current_time())
        await peer.to_end()

    async with open_peer(script, tmp_path) as (_, client):
        with trio.move_on_after(2):
            await client.send(push(1))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert [each.state for each in client.statistics().connections] == ["open"]
        assert len(ended) == 1


# The listener.


async def test_a_listener_hears_of_connections_and_device_tokens(clock):
    heard = []
    async with open_pair(client={"listener": heard.append, "max_connections": 1}) as (apns, client):
        await client.wait_ready()
        assert heard == [Connected(apns.host, "main")]
        apns.mark_unregistered(device_token(1))
        dead = await client.send(push(1))
        assert heard[1:] == [DeviceTokenDead(dead)]
        apns.send_goaway()
        await trio.sleep(3)
        assert heard[2:] == [Draining(apns.host, "Shutdown"), Connected(apns.host, "main")]
        apns.close_connections()
        await trio.sleep(3)
        assert [type(event) for event in heard[4:]] == [Lost, Connected]
        assert heard[4].reason
    assert len(heard) == 6, "leaving is no loss"


async def test_a_listener_that_raises_is_logged_and_harms_nothing(clock, caplog):
    def listener(event):
        token = event.response.notification.device_token if isinstance(event, DeviceTokenDead) else ""
        raise Boom(f"no such device: {token}")

    async with open_pair(client={"listener": listener}) as (apns, client):
        apns.mark_unregistered(device_token(1))
        responses = await send_all(client, pushes(100))
        assert outcomes(responses) == {"accepted": 99, "rejected": 1}
    assert "the listener failed on DeviceTokenDead: Boom at " in caplog.text
    assert f"{__file__}:{listener.__code__.co_firstlineno + 2} in listener" in caplog.text
    assert device_token(1) not in caplog.text


# More than one.


async def test_two_clients_in_one_program(clock):
    async with (
        open_simulator() as one,
        open_simulator() as other,
        open_client_on(one) as first,
        open_client_on(other) as second,
    ):
        a, b = await send_all(first, pushes(300)), await send_all(second, pushes(300, 1_000))
        check(one, a)
        check(other, b)
        assert outcomes(a) == outcomes(b) == {"accepted": 300}


async def test_the_readable_engine_does_the_same(clock, monkeypatch):
    monkeypatch.setenv("FASTPUSH_ENGINE", "h2")
    async with open_pair() as (apns, client):
        apns.mark_unregistered(device_token(7))
        responses = await send_all(client, pushes(200, expiration=2_000_000_000, collapse_id="x"))
        assert outcomes(responses) == {"accepted": 199, "rejected": 1}
        check(apns, responses)
        assert (await client.send(push(1))).accepted


FORK = """
import os, sys, trio, fastpush
from fastpush.simulator import open_simulator
from fastpush._connection import Push

async def main():
    async with open_simulator() as apns:
        where = {"host": apns.host, "port": apns.port, "ca_file": apns.ca_file}
        async with fastpush.open_client(apns.signing_key(), topic="com.example.opmanager", **where) as client:
            notification = fastpush.Notification("ab" * 32, fastpush.Payload(alert="hello"))
            assert (await client.send(notification)).accepted
            read, write = os.pipe()
            child = os.fork()
            if not child:
                try:
                    try:
                        await client.send(notification)
                    except fastpush.FastpushError as error:
                        os.write(write, f"{error}\\n".encode())
                    try:
                        client.send_many([])
                    except fastpush.FastpushError as error:
                        os.write(write, b"send_many too\\n")
                    os.write(write, b" ".join(Push(notification, 0.0).apns_id for _ in range(100)))
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            told = os.read(read, 65536).decode().splitlines()
            assert "belongs to process" in told[0] and "open a client in the child" in told[0], told
            assert told[1] == "send_many too"
            ours = {Push(notification, 0.0).apns_id.decode() for _ in range(100)}
            assert not ours & set(told[2].split()), "the same apns-ids in parent and child"
            assert (await client.send(notification)).accepted
    print("good")
trio.run(main)
"""


def test_a_forked_child_gets_a_clear_error_and_apns_ids_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("good\n", "")
