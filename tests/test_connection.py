"""One connection's deadlines and signs of life, and what becomes of a credential that APNs refuses.

Time is virtual; what is on the wire is read by hyperframe.
"""

from __future__ import annotations

import logging
import time

import pytest
import trio
import trio.testing
from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame

import fastpush
from fastpush import Connected, CredentialWasRefused
from fastpush.connection import Connection, _authority, _goaway_reason
from fastpush.simulator import Answer, Delay, Goaway, Settings, Swallow, open_simulator
from tests.clocks import story_clock
from tests.http2 import frames
from tests.peers import (
    TOPIC,
    check,
    device_token,
    http_date,
    open_client_on,
    open_pair,
    open_peer,
    outcomes,
    push,
    pushes,
    send_all,
    signing_key,
    trusted,
)


@pytest.fixture
def clock():
    return story_clock()


async def test_a_late_thread_does_not_move_the_clock(clock, monkeypatch):
    """Or reading the trust store on a busy machine would take an hour, and each story end unbegun."""
    read = fastpush.SigningKey.ssl_context

    def read_late(self, **options):
        time.sleep(4 * clock.autojump_threshold)
        return read(self, **options)

    monkeypatch.setattr(fastpush.SigningKey, "ssl_context", read_late)
    began = trio.current_time()
    async with open_pair() as (_, client):
        assert trio.current_time() - began < 1
        assert (await client.send(push(1))).accepted


# Deadlines.


@pytest.mark.parametrize(
    ("host", "port", "authority"),
    [
        ("api.push.apple.com", 443, b"api.push.apple.com"),
        ("api.push.apple.com", 2197, b"api.push.apple.com:2197"),
        ("bücher.example", 443, b"xn--bcher-kva.example"),
        ("::1", 443, b"[::1]"),
        ("fe80::1%eth0", 2197, b"[fe80::1]:2197"),
    ],
)
def test_the_authority_of_a_request(host, port, authority):
    """RFC 3986 §3.2: an address of IPv6 stands in brackets; RFC 6874 §1: its zone is nobody else's."""
    assert _authority(host, port) == authority


async def test_a_request_has_ten_seconds_from_its_writing(clock, tmp_path):
    """Then its stream is reset, so that the server does not count it either, and its end is unknown."""

    async def script(peer):
        await peer.start()
        stream_id = await peer.request()
        reset = await peer.frame(RstStreamFrame)
        assert (reset.stream_id, reset.error_code) == (stream_id, 8)
        await peer.accept(stream_id)  # too late, and only counted
        await peer.accept(await peer.request())
        await peer.to_end()

    async with open_peer(script, tmp_path) as (server, client):
        began = trio.current_time()
        with pytest.raises(fastpush.OutcomeUnknown, match="no answer within 10 s") as caught:
            await client.send(push(1))
        assert trio.current_time() - began == pytest.approx(10.0, abs=0.1)
        assert (caught.value.attempts, caught.value.processed) == (1, None)
        assert (await client.send(push(2))).accepted
        assert client.statistics().connections[0].late_responses == 1
        assert len(server.opened_at) == 1


async def test_waiting_in_the_queue_does_not_count(clock, tmp_path):
    async def script(peer):
        await peer.start(max_concurrent_streams=1)
        while True:
            stream_id = await peer.request()
            await trio.sleep(3.5)
            await peer.accept(stream_id)

    async with open_peer(script, tmp_path) as (_, client):
        responses = await send_all(client, pushes(4))
        assert outcomes(responses) == {"accepted": 4}
        assert max(response.elapsed for response in responses) >= 14


async def test_a_deadline_met_with_a_collapse_id_is_sent_again(clock):
    async with open_pair(faults=[Swallow(overall=1)]) as (_, client):
        response = await client.send(push(1, collapse_id="core-1"))
        assert (response.outcome, response.attempts) == ("accepted", 2)
        assert 10 <= response.elapsed <= 11


async def test_three_deadlines_in_a_row_and_the_connection_is_left(clock):
    """PING still works on such connections (pushy issue 773), so nothing else shows it."""
    faults = [Swallow(connection=1)]
    async with open_pair(faults=faults, client={"max_connections": 1}) as (apns, client):
        for _ in range(3):
            with pytest.raises(fastpush.OutcomeUnknown):
                await client.send(push(1))
        assert (await client.send(push(2))).accepted
        assert [seen.connection for seen in apns.ledger.seen if seen.delivered] == [2]


async def test_two_deadlines_and_an_answer_are_no_three_in_a_row(clock):
    faults = [Swallow(device_token=device_token(1))]
    async with open_pair(faults=faults, client={"max_connections": 1}) as (apns, client):
        for _ in range(3):
            for _ in range(2):
                with pytest.raises(fastpush.OutcomeUnknown):
                    await client.send(push(1))
            assert (await client.send(push(2))).accepted
        assert apns.statistics().connections_opened == 1


async def test_h13_one_in_a_hundred_is_never_answered(clock):
    """Only those meet their deadline; the others do not feel it, and no stream stays taken."""
    faults = [Swallow(every=100)]
    async with open_pair(faults=faults) as (apns, client):
        responses = await send_all(client, pushes(3_000))
        found = outcomes(responses)
        assert found["unknown"] == apns.statistics().fates["swallowed"]
        assert 25 <= found["unknown"] <= 35
        answered = [response.elapsed for response in responses if response.accepted]
        assert max(answered) < 3
        assert client.statistics().in_flight == 0
        check(apns, responses)


async def test_row_25_settings_that_are_never_acknowledged(clock):
    from fastpush.simulator import LeaveSettingsUnacknowledged

    async with open_pair(
        faults=[LeaveSettingsUnacknowledged(connection=1)], client={"max_connections": 1}
    ) as (
        apns,
        client,
    ):
        assert (await client.send(push(1))).accepted
        await trio.sleep(12)
        assert (await client.send(push(2))).accepted
        assert [seen.connection for seen in apns.ledger.seen] == [1, 2]


# Signs of life.


async def test_ping_after_four_seconds_of_silence_and_the_end_after_four_more(clock, tmp_path):
    pinged = []

    async def script(peer):
        await peer.start()
        peer.answers_pings = False
        if peer.number == 1:
            await peer.request()
            asked = trio.current_time()
            await peer.frame(PingFrame)
            pinged.append(trio.current_time() - asked)
            await peer.to_end()
            pinged.append(trio.current_time() - asked)
        while True:
            await peer.accept(await peer.request())

    async with open_peer(script, tmp_path) as (_, client):
        await client.wait_ready()
        await trio.sleep(20)
        with pytest.raises(fastpush.OutcomeUnknown, match="no answer to PING within 4 s"):
            await client.send(push(1))
        assert (await client.send(push(2))).accepted
    assert pinged == [pytest.approx(4.0, abs=0.1), pytest.approx(8.0, abs=0.1)]


async def test_whatever_comes_is_a_sign_of_life(clock, tmp_path):
    async def script(peer):
        await peer.start()
        peer.answers_pings = False
        stream_id = await peer.request()
        for _ in range(3):
            await trio.sleep(3)
            await peer.send(frames.ping())
        await peer.accept(stream_id)
        assert not [frame for frame in peer.all(PingFrame) if "ACK" not in frame.flags]
        await peer.to_end()

    async with open_peer(script, tmp_path) as (_, client):
        assert (await client.send(push(1))).accepted


async def test_an_idle_connection_is_pinged_each_minute(clock, tmp_path):
    """Found dead within 65 s, although nothing is sent."""
    pinged = []

    async def script(peer):
        await peer.start()
        if peer.number > 1:
            await peer.to_end()
        began = trio.current_time()
        for _ in range(2):
            await peer.frame(PingFrame)
            pinged.append(trio.current_time() - began)
        peer.answers_pings = False
        await peer.frame(PingFrame)
        await peer.to_end()
        pinged.append(trio.current_time() - began)

    async with open_peer(script, tmp_path) as (server, client):
        await client.wait_ready()
        await trio.sleep(250)
        assert len(server.opened_at) == 2
    assert pinged == [pytest.approx(each, abs=0.2) for each in (60, 120, 184)]


async def test_row_60_a_server_that_stands_still(clock):
    """Its kernel acknowledges, so only PING shows it; the work moves to the other connection."""
    async with open_pair() as (apns, client):
        await send_all(client, pushes(100))
        apns.freeze()
        async with trio.open_nursery() as nursery:
            found = []

            async def send():
                found.extend(await send_all(client, pushes(200, collapse_id="x")))

            began = trio.current_time()
            nursery.start_soon(send)
        assert outcomes(found) == {"accepted": 200}
        assert trio.current_time() - began <= 12


async def test_draining_ends_after_thirty_seconds(clock, tmp_path):
    """After GOAWAY what is in flight goes on (RFC 9113 §6.8), with its own deadline."""

    async def script(peer):
        await peer.start()
        stream_id = await peer.request()
        await peer.send(frames.goaway(stream_id))
        await trio.sleep(6)
        await peer.accept(stream_id)
        assert await peer.frame(GoAwayFrame)
        await peer.to_end()

    async with open_peer(script, tmp_path) as (server, client):
        response = await client.send(push(1))
        assert response.accepted
        assert 6 <= response.elapsed < 7
        assert len(server.opened_at) == 2


async def test_stopped_before_it_began(clock):
    """Then it does not even connect."""
    async with open_pair() as (apns, client):
        await client.wait_ready()
        opened = apns.statistics().connections_opened
        pool = client._pool
        connection = Connection(pool, apns.host, apns.port, pool._context, lambda topic, kind: TOPIC)
        connection.stop("not wanted any more")
        await connection.run()
        assert (connection.state, connection.end_reason) == ("closed", "not wanted any more")
        assert connection.ended.is_set()
        assert apns.statistics().connections_opened == opened


# The provider token.


async def test_o8_one_provider_token_for_all(clock):
    """Of all connections and clients within its half hour (TooManyProviderTokenUpdates)."""
    from tests.peers import issued_key

    shown = set()
    async with open_simulator() as apns:
        key, twin = trusted(apns), signing_key()
        assert key is not twin
        for credential in (key, twin):
            shown.add(credential.authorization(1_800_000_000.0 + 900)[1])
            async with open_client_on(apns, credential) as client:
                assert outcomes(await send_all(client, pushes(100))) == {"accepted": 100}
    assert len(shown) == 1
    assert issued_key().key_id == "ABC123DEFG"


async def test_an_open_connection_takes_the_token_of_the_next_slot_and_never_goes_back(clock, tmp_path):
    """Nor when our clock is set back over the border: APNs has seen the later one."""
    shown = []

    async def script(peer):
        await peer.start()
        while True:
            stream_id = await peer.request()
            shown.append(peer.requests[stream_id][b"authorization"])
            await peer.accept(stream_id)

    async with open_peer(script, tmp_path) as (_, client):
        border = 1_800 * 1_000_000
        for wall in (border - 10, border - 1, border + 1, border - 2, border + 2, border + 1_801):
            client._pool._wall_clock = lambda wall=wall: wall
            assert (await client.send(push(1))).accepted
    key = signing_key()
    slots = [border - 1_800, border - 1_800, border, border, border, border + 1_800]
    assert shown == [key.authorization(slot)[1] for slot in slots]


async def test_a_stale_token_gives_way_to_the_current_one_once(clock, tmp_path):
    """ExpiredProviderToken wedges the connection, so the push goes to another one."""

    async def script(peer):
        await peer.start()
        while True:
            stream_id = await peer.request()
            token = peer.requests[stream_id][b"authorization"]
            if token == signing_key().authorization(border - 1)[1]:
                client._pool._wall_clock = lambda: border + 1  # it took a while
                await peer.reject(stream_id, 403, b"ExpiredProviderToken")
            else:
                await peer.accept(stream_id)

    border = 1_800 * 1_000_000
    async with open_peer(script, tmp_path) as (server, client):
        client._pool._wall_clock = lambda: border - 1
        response = await client.send(push(1))
        assert (response.outcome, response.attempts) == ("accepted", 2)
        assert len(server.opened_at) == 2
        assert client.statistics().stopped is None


async def test_our_clock_is_behind_and_the_answer_has_a_date(clock):
    """Then slots follow the server's clock (docs/credentials.md)."""
    now = time.time()
    date = (b"date", http_date(now + 7_200))
    faults = [Answer(overall=1, status=403, reason="ExpiredProviderToken", fields=(date,))]
    async with open_simulator(faults=faults, clock=lambda: time.time() + 7_200) as apns:
        key = trusted(apns)
        async with open_client_on(apns, key) as client:
            response = await client.send(push(1))
            assert (response.outcome, response.attempts) == ("accepted", 2)
            assert key.clock_offset == pytest.approx(7_200, abs=5)
            assert outcomes(await send_all(client, pushes(100))) == {"accepted": 100}


async def test_our_clock_is_behind_and_nothing_says_by_how_much(clock):
    heard = []
    async with open_simulator(clock=lambda: time.time() + 7_200) as apns:  # noqa: SIM117
        async with open_client_on(apns, listener=heard.append) as client:
            response = await client.send(push(1))
            assert (response.outcome, response.reason) == ("rejected", "ExpiredProviderToken")
            with pytest.raises(fastpush.CredentialRefused, match="our clock is behind"):
                await client.send(push(2))
            assert "our clock is behind" in client.statistics().stopped
            [told] = [event for event in heard if isinstance(event, CredentialWasRefused)]
            assert "clock" in told.reason


async def test_too_many_provider_token_updates_is_never_answered_with_another(clock, tmp_path):
    shown = []

    async def script(peer):
        await peer.start()
        stream_id = await peer.request()
        shown.append(peer.requests[stream_id][b"authorization"])
        if len(shown) == 1:
            await peer.reject(stream_id, 429, b"TooManyProviderTokenUpdates")
        else:
            await peer.accept(stream_id)
        await peer.to_end()

    async with open_peer(script, tmp_path) as (_, client):
        response = await client.send(push(1))
        assert (response.outcome, response.attempts) == ("accepted", 2)
    assert len(shown) == 2
    assert len(set(shown)) == 1


# A credential that APNs refuses.


async def test_a_revoked_key_stops_the_client_and_it_resumes_by_itself(clock, caplog):
    caplog.set_level(logging.INFO)
    heard = []
    async with open_simulator() as apns:
        key = trusted(apns)
        async with open_client_on(apns, key, listener=heard.append) as client:
            assert (await client.send(push(1))).accepted
            apns.revoke_key(key.key_id)
            responses = await send_all(client, pushes(3_000))
            # The first in flight were answered; all others end at once, with the reason.
            assert set(outcomes(responses)) == {"rejected", "not_sent"}
            assert {r.reason for r in responses if r.outcome == "rejected"} == {"InvalidProviderToken"}
            errors = [r.error for r in responses if r.error]
            assert {type(error) for error in errors} == {fastpush.CredentialRefused}
            assert all(error.attempts == 0 and error.processed is False for error in errors)
            assert all(error.apns_id for error in errors)
            assert len([e for e in heard if isinstance(e, CredentialWasRefused)]) == 1
            began = trio.current_time()
            for late in (client.wait_ready(), client.send(push(1))):
                with pytest.raises(fastpush.CredentialRefused, match="InvalidProviderToken"):
                    await late
            assert trio.current_time() == began, "at once"
            # At most one try a minute: of the pushes that come one goes out, and it tells.
            before = apns.statistics().requests
            for _ in range(30):
                await trio.sleep(10)
                await send_all(client, pushes(10))
            tried = apns.statistics().requests - before
            assert 3 <= tried <= 6
            trusted(apns)
            await trio.sleep(61)
            assert (await client.send(push(1))).accepted
            assert client.statistics().stopped is None
            assert outcomes(await send_all(client, pushes(100))) == {"accepted": 100}
    assert "bearer" not in caplog.text
    assert "is accepted again" in caplog.text


async def test_row_4_goaway_bad_certificate(clock):
    """The error code is NO_ERROR all the same; the reason decides. No reconnect loop."""
    heard = []
    async with open_simulator() as apns:
        certificate = apns.provider_certificate(TOPIC)
        apns.faults.add("bad-certificate")
        async with open_client_on(apns, certificate, listener=heard.append) as client:
            with pytest.raises(fastpush.CredentialRefused, match="BadCertificate"):
                await client.send(push(1))
            opened = apns.statistics().connections_opened
            assert opened <= 2
            await trio.sleep(600)
            assert apns.statistics().connections_opened - opened <= 11
            assert [e.reason for e in heard if isinstance(e, CredentialWasRefused)] == ["BadCertificate"]
            apns.faults.clear()
            await trio.sleep(62)
            with trio.fail_after(1):
                await client.wait_ready()
                assert (await client.send(push(1))).accepted


async def test_goaway_with_many_in_flight_that_were_not_processed(clock):
    """They end with the refusal and are not what tries it out."""
    faults = [Delay(seconds=0.5), Goaway(request=300, last="zero", debug_data=b'{"reason":"BadCertificate"}')]
    async with open_simulator(faults=faults) as apns:  # noqa: SIM117
        async with open_client_on(apns, apns.provider_certificate(TOPIC), max_connections=2) as client:
            responses = await send_all(client, pushes(2_000))
            assert set(outcomes(responses)) <= {"accepted", "not_sent"}
            check(apns, responses)
            assert apns.statistics().connections_opened == 2


async def test_an_expired_certificate(clock):
    """Alert 45, after the client's handshake is done (RFC 8446 §4.4.2.4): refused, not unreachable."""
    async with open_simulator() as apns:
        certificate = apns.provider_certificate(TOPIC, valid_until=time.time() - 86_400)
        async with open_client_on(apns, certificate) as client:
            with pytest.raises(fastpush.CredentialRefused, match="certificate expired"):
                await client.send(push(1))
            failed = apns.statistics().handshakes_failed
            await trio.sleep(300)
            assert apns.statistics().handshakes_failed - failed <= 6


# Another credential.


async def test_use_credential_under_load_loses_nothing(clock):
    async with open_pair(faults=[Delay(seconds=0.01)]) as (apns, client):
        responses = []
        used = []

        async def change():
            for _ in range(3):
                await trio.sleep(0.05)
                new = apns.signing_key(team_id=apns.team_id)
                await client.use_credential(new)
                used.append(new.key_id)
                assert new.key_id in repr(client)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            responses = await send_all(client, pushes(6_000))
        assert outcomes(responses) == {"accepted": 6_000}
        proofs = {seen.apns_id for seen in apns.ledger.seen if seen.device_token == "0" * 64}
        assert len(proofs) == 3
        report = apns.ledger.check([r.apns_id for r in responses], {r.apns_id: r.outcome for r in responses})
        assert set(report.unexpected) == proofs
        assert (report.lost, report.duplicated, report.contradicted) == ((), (), ())


async def test_another_topic_comes_with_a_credential_that_covers_it(clock):
    """In full flow: each push goes with one of the two, the later ones with the new one; none is lost."""
    other = "org.example.other"
    async with open_simulator(topics=[TOPIC, other], faults=[Delay(seconds=0.01)]) as apns:
        old, new = apns.provider_certificate(TOPIC), apns.provider_certificate(other)
        topics = []
        for number in range(1, 6_001):
            apns.on_delivery(device_token(number), lambda delivery: topics.append(delivery.topic))
        async with open_client_on(apns, old) as client, trio.open_nursery() as nursery:
            await client.wait_ready()
            with pytest.raises(fastpush.InvalidCredential, match="does not cover the topic"):
                await client.use_credential(old, topic=other)
            with pytest.raises(ValueError, match="visible ASCII"):
                await client.use_credential(new, topic="a b")

            async def change():
                await trio.sleep(0.005)
                await client.use_credential(new, topic=other)

            nursery.start_soon(change)
            responses = await send_all(client, pushes(6_000))
            assert outcomes(responses) == {"accepted": 6_000}
            assert set(topics) == {TOPIC, other}
            assert (await client.send(push(9))).accepted
        assert (len(topics), topics[-1]) == (6_001, other)


async def test_what_is_said_of_the_old_credential_no_longer_counts(clock):
    """The old key is revoked while its pushes are in flight: they go again with the new one."""
    async with open_simulator(
        faults=[Delay(seconds=3, connection=1), Delay(seconds=3, connection=2)]
    ) as apns:
        old = trusted(apns)
        async with open_client_on(apns, old) as client, trio.open_nursery() as nursery:
            responses = []

            async def send():
                responses.extend(await send_all(client, pushes(2)))

            await client.wait_ready()
            nursery.start_soon(send)
            await trio.sleep(1)
            assert client.statistics().in_flight == 2
            new = apns.signing_key(team_id=old.team_id)
            apns.revoke_key(old.key_id)
            await client.use_credential(new)
            await trio.sleep(5)
            assert outcomes(responses) == {"accepted": 2}
            assert {response.attempts for response in responses} == {2}
            assert client.statistics().stopped is None
            assert (await client.send(push(9))).accepted


async def test_a_new_credential_that_is_refused_changes_nothing(clock):
    heard = []
    async with open_pair(client={"listener": heard.append}) as (apns, client):
        assert (await client.send(push(1))).accepted
        before = repr(client)
        stranger = apns.signing_key(team_id=apns.team_id)
        apns.revoke_key(stranger.key_id)
        with pytest.raises(fastpush.CredentialRefused, match="InvalidProviderToken"):
            await client.use_credential(stranger)
        with pytest.raises(fastpush.InvalidCredential, match="of team"):
            await client.use_credential(apns.signing_key(team_id="OTHERTEAM1"))
        with pytest.raises(fastpush.InvalidCredential):
            await client.use_credential(apns.provider_certificate(TOPIC, environments=("development",)))
        with pytest.raises(fastpush.InvalidCredential):
            await client.use_credential(apns.provider_certificate("org.other"))
        expired = apns.provider_certificate(TOPIC, valid_until=time.time() - 10)
        with pytest.raises(fastpush.CredentialRefused):
            await client.use_credential(expired)
        apns.refuse_connections()
        with pytest.raises(fastpush.NotSent, match="not proved"):
            await client.use_credential(apns.signing_key(team_id=apns.team_id))
        assert repr(client) == before
        assert (await client.send(push(2))).accepted
        assert client.statistics().stopped is None
        assert not [event for event in heard if isinstance(event, CredentialWasRefused)]


async def test_a_server_that_lets_nothing_through_does_not_hold_up_the_proof(clock, tmp_path):
    async def script(peer):
        await peer.start(max_concurrent_streams=0 if peer.number > 1 else 1_000)
        await peer.to_end()

    async with open_peer(script, tmp_path) as (_, client):
        await client.wait_ready()
        began = trio.current_time()
        with pytest.raises(fastpush.NotSent, match="not proved: no answer within 15 s"):
            await client.use_credential(signing_key())
        assert trio.current_time() - began < 17


async def test_the_proofs_connection_dies_with_its_answer(clock, tmp_path):
    """The credential is proved; connections are opened anew, and none that is dead is kept."""

    async def script(peer):
        await peer.start()
        if peer.number == 2:
            await peer.accept(await peer.request())
            return
        while True:
            await peer.accept(await peer.request())

    async with open_peer(script, tmp_path) as (_, client):
        assert (await client.send(push(1))).accepted
        await client.use_credential(signing_key())
        assert (await client.send(push(2))).accepted
        assert all(each.state == "open" for each in client.statistics().connections)


async def test_a_graceful_goaway_before_the_answer_does_not_spoil_the_proof(clock, tmp_path):
    async def script(peer):
        await peer.start()
        if peer.number == 2:
            stream_id = await peer.request()
            await peer.send(frames.goaway(stream_id))
            await trio.sleep(1)
            await peer.accept(stream_id)
        while True:
            await peer.accept(await peer.request())

    async with open_peer(script, tmp_path) as (_, client):
        assert (await client.send(push(1))).accepted
        await client.use_credential(signing_key())
        assert (await client.send(push(2))).accepted


async def test_row_21_a_request_that_is_too_large_for_the_server(clock):
    """SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 §6.5.2): said here, and not sent."""
    async with open_pair(faults=[Settings(header_list_octets=100)]) as (apns, client):
        await client.wait_ready()
        with pytest.raises(fastpush.NotSent, match=r"the header list has .* the peer takes 100"):
            await client.send(push(1))
        assert not apns.ledger.seen


async def test_a_new_credential_ends_a_stop_and_wakes_who_waits(clock):
    heard = []
    async with open_simulator() as apns:
        old = trusted(apns)
        apns.revoke_key(old.key_id)
        async with open_client_on(apns, old, listener=heard.append) as client:
            await client.send(push(1))
            with pytest.raises(fastpush.CredentialRefused):
                await client.send(push(2))
            await client.use_credential(apns.signing_key(team_id=old.team_id))
            await client.wait_ready()
            assert (await client.send(push(3))).accepted
            assert Connected(apns.host, "main") in heard


async def test_recycle_under_load_loses_nothing(clock):
    async with open_pair(faults=[Delay(seconds=0.01)], client={"max_connections": 2}) as (apns, client):
        responses = []

        async def recycle():
            await trio.sleep(0.05)
            await client.recycle()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recycle)
            responses = await send_all(client, pushes(6_000))
        assert outcomes(responses) == {"accepted": 6_000}
        check(apns, responses)
        assert apns.statistics().connections_opened == 4
        await trio.sleep(2)
        assert len(client.statistics().connections) == 2


async def test_recycle_keeps_what_it_cannot_replace(clock):
    async with open_pair() as (apns, client):
        assert (await client.send(push(1))).accepted
        apns.refuse_connections()
        with pytest.raises(fastpush.NotSent, match="no new connection"):
            await client.recycle()
        assert (await client.send(push(2))).accepted


# Letting answers gather.


async def test_answers_gather_only_while_send_many_fills_the_streams(clock):
    """Between two receives the bulk path rests: half of the time to answer all, 2 ms at most."""
    async with open_pair(stream_limit=10, probing=False, client={"max_connections": 1}) as (apns, client):
        await client.wait_ready()
        (connection,) = client._pool._main.connections
        await send_all(client, pushes(40))
        apns.faults.add(Swallow())
        async with client.send_many(pushes(40)):
            while connection.exchange.in_flight < 10:
                await trio.lowlevel.checkpoint()
            connection._accepted_at_rest, connection._answered_at = 30, 100.0
            assert connection._rest(100.0002) == pytest.approx(0.0001)
            # A receive that brought no answer, of WINDOW_UPDATE alone, is no reason to wake again at once.
            assert connection._rest(100.1) == pytest.approx(0.0001)
            connection._accepted_at_rest, connection._answered_at = 39, 100.0
            assert connection._rest(101.0) == 0.002
            connection._seconds_an_answer = 0.0  # none was ever answered: nobody knows how long it takes
            assert connection._rest(102.0) == 0.0


async def test_of_one_stream_nothing_gathers(clock):
    """APNs begins with a limit of 1, and each rest there would be lost."""
    async with open_pair(stream_limit=1, probing=False, client={"max_connections": 1}) as (apns, client):
        await send_all(client, pushes(40))
        (connection,) = client._pool._main.connections
        apns.faults.add(Swallow())
        async with client.send_many(pushes(2)):
            while not connection.exchange.in_flight:
                await trio.lowlevel.checkpoint()
            connection._accepted_at_rest, connection._answered_at = 39, 100.0
            assert connection._rest(101.0) == 0.0


async def test_who_awaits_an_answer_is_not_kept_waiting(clock):
    async with open_pair(stream_limit=10, probing=False, client={"max_connections": 1}) as (apns, client):
        await send_all(client, pushes(40))
        (connection,) = client._pool._main.connections
        apns.faults.add(Swallow())
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client.send, push())
            while connection.exchange.awaited < 10:
                await trio.lowlevel.checkpoint()
            connection._accepted_at_rest, connection._answered_at = 39, 100.0
            assert connection._rest(101.0) == 0.0
            nursery.cancel_scope.cancel()
        assert connection.exchange.awaited == 0


@pytest.mark.parametrize("fields", [[], [(b"apns-id", b"12345678-9abc-4def-8123-456789abcdef")]])
async def test_row_51_an_apns_id_that_differs_or_is_missing_is_logged_once(clock, tmp_path, caplog, fields):
    async def script(peer):
        await peer.start()
        while True:
            stream_id = await peer.request()
            await peer.send(peer.made.headers(stream_id, 200, fields, end_stream=True))

    caplog.set_level(logging.INFO, "fastpush.connection")
    async with open_peer(script, tmp_path, client={"max_connections": 1}) as (server, client):
        responses = await send_all(client, pushes(3))
        assert outcomes(responses) == {"accepted": 3}
        [peer] = server.peers
        assert {response.apns_id for response in responses} == set(peer.apns_ids)
    assert [record.getMessage() for record in caplog.records if "apns-id" in record.getMessage()] == [
        "127.0.0.1 answers with another apns-id, or none; the stream tells whose it is"
    ]


@pytest.mark.parametrize(
    ("debug_data", "reason"),
    [
        (b'{"reason":"BadCertificate"}', "BadCertificate"),
        (b'{"reason":"Shut\\ndown\\u001b[2J"}', "Shutdown[2J"),
        (b"max age\n\x1b[2J\xff", r"max age\n\x1b[2J\ufffd"),
        (b'{"cause":1}\n', r'{"cause":1}\n'),
        (b"", None),
    ],
)
def test_what_a_goaway_says_is_one_line_of_plain_characters(debug_data, reason):
    """It goes to the log, and in the reasons of events and errors."""
    assert _goaway_reason(debug_data) == reason
