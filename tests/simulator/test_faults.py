"""Every fault as the client sees it, octet by octet, and as the ledger tells it. Over real TLS."""

import contextlib
import json
import ssl

import pytest
import trio
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from fastpush.simulator import (
    PROFILES,
    Answer,
    Close,
    Collapse,
    Delay,
    Fault,
    FaultPlan,
    Goaway,
    IgnorePings,
    KeepWindow,
    LeaveSettingsUnacknowledged,
    Refuse,
    RejectionLimit,
    SendOctets,
    Settings,
    Stall,
    Swallow,
    TlsAlert,
    Trickle,
    open_simulator,
)

from .provider_tokens import make_provider_token
from .wire import DEVICE_TOKEN, open_wire

OTHER_DEVICE = "cd" * 32
SHUTDOWN = b'{"reason":"Shutdown"}'


@contextlib.asynccontextmanager
async def faulty(*faults, **options):
    """A simulator with faults, and a client on it. The full stream limit is there from the start."""
    async with (
        open_simulator(faults=faults, probing=False, **options) as simulator,
        open_wire(simulator, simulator.signing_key()) as wire,
    ):
        wire.simulator = simulator
        yield wire


def fates(wire):
    """How many requests had each fate."""
    return {fate: count for fate, count in wire.simulator.ledger.counts.items() if count}


async def burst(wire, count):
    """Requests in one segment."""
    requests = [wire.request_frames() for _ in range(count)]
    await wire.stream.send_all(b"".join(octets for _, octets in requests))
    return [stream_id for stream_id, _ in requests]


class TestWhen:
    async def test_by_device_token(self):
        async with faulty(
            Answer(status=410, reason="Unregistered", device_token=DEVICE_TOKEN.upper())
        ) as wire:
            assert (await wire.push()).status == 410
            assert (await wire.push(OTHER_DEVICE)).status == 200

    async def test_by_number_on_a_connection(self):
        async with faulty(Answer(status=500, request=2)) as wire:
            assert [(await wire.push()).status for _ in range(3)] == [200, 500, 200]

    async def test_by_number_over_all_connections(self):
        async with faulty(Answer(status=500, overall=2)) as wire:
            assert (await wire.push()).status == 200
            async with open_wire(wire.simulator, wire.simulator.signing_key()) as second:
                assert [(await second.push()).status for _ in range(2)] == [500, 200]

    async def test_each_nth_and_not_oftener_than_said(self):
        async with faulty(Answer(status=500, every=2, times=2)) as wire:
            assert [(await wire.push()).status for _ in range(7)] == [200, 500, 200, 500, 200, 200, 200]

    async def test_on_one_connection(self):
        async with (
            faulty(Answer(status=500, connection=2)) as wire,
            open_wire(wire.simulator, wire.simulator.signing_key()) as second,
        ):
            assert (await wire.push()).status == 200
            assert (await second.push()).status == 500

    async def test_all_conditions_must_hold(self):
        both = Answer(status=500, every=2, device_token=DEVICE_TOKEN)
        elsewhere = Answer(status=503, connection=2, device_token=DEVICE_TOKEN)
        async with faulty(both, elsewhere) as wire:
            pushed = [
                await wire.push(each) for each in (DEVICE_TOKEN, OTHER_DEVICE, OTHER_DEVICE, DEVICE_TOKEN)
            ]
            assert [answer.status for answer in pushed] == [200, 200, 200, 500]

    async def test_by_chance_and_the_seed_repeats_it(self):
        async def statuses(seed):
            async with faulty(Answer(status=500, one_in=4), seed=seed) as wire:
                for stream_id in await burst(wire, 200):
                    await wire.answer(stream_id)
                return [answer.status for answer in wire.answers.values()]

        first = await statuses(7)
        assert 20 < first.count(500) < 90
        assert await statuses(7) == first
        assert await statuses(8) != first

    async def test_from_now_on_and_no_longer(self):
        async with faulty() as wire:
            assert (await wire.push()).status == 200
            wire.simulator.faults.add("internal-error")
            assert (await wire.push()).reason == "InternalServerError"
            wire.simulator.faults.clear()
            assert (await wire.push()).status == 200

    def test_a_wrong_condition_is_told(self):
        with pytest.raises(ValueError, match="every is 0"):
            Swallow(every=0)
        with pytest.raises(ValueError, match="not hex"):
            Swallow(device_token="phone")
        with pytest.raises(ValueError, match="no fault profile is named 'rain'"):
            FaultPlan(["rain"])

    def test_a_plan_tells_what_is_in_force_and_how_often_it_happened(self):
        plan = FaultPlan([Swallow(request=3)])
        assert plan.at_request(1, 2, 2, b"") == []
        assert plan.at_request(1, 3, 3, b"") == [Swallow(request=3)]
        assert (list(plan), plan.fired(Swallow(request=3))) == ([Swallow(request=3)], 1)
        plan.remove(Swallow(request=3))
        with pytest.raises(ValueError, match="not in force"):
            plan.remove(Swallow(request=3))


class TestAnswers:
    async def test_an_unknown_reason(self):
        async with faulty("unknown-reason") as wire:
            answers = [await wire.push() for _ in range(10)]
            assert (answers[-1].status, answers[-1].reason) == (400, "SolarFlare")
            assert fates(wire) == {"accepted": 9, "rejected": 1}

    @pytest.mark.parametrize("timestamp", [1_700_000_000_000, None])
    async def test_410_with_and_without_timestamp(self, timestamp):
        async with faulty(Answer(status=410, reason="Unregistered", timestamp=timestamp)) as wire:
            answer = json.loads((await wire.push()).body)
            assert answer == {"reason": "Unregistered"} | ({"timestamp": timestamp} if timestamp else {})

    async def test_a_body_in_pieces_padded_with_trailers_after_interim_answers(self):
        fault = Answer(
            status=400, reason="BadDeviceToken", pieces=4, padding=9, interim=2, trailers=((b"x-end", b"1"),)
        )
        async with faulty(fault) as wire:
            answer = await wire.push()
            assert [block.get(b":status") for block in answer.blocks] == [b"103", b"103", b"400", None]
            assert (answer.reason, len(answer.pieces)) == ("BadDeviceToken", 4)
            assert {piece.pad_length for piece in answer.pieces} == {9}

    async def test_a_missing_body(self):
        async with faulty(Answer(status=400, reason="BadDeviceToken", body=b"")) as wire:
            answer = await wire.push()
            assert (answer.status, answer.body, answer.ended) == (400, b"", True)

    async def test_a_missing_apns_id_and_retry_after(self):
        async with faulty(
            Answer(status=503, reason="ServiceUnavailable", retry_after=7, apns_id=False)
        ) as wire:
            answer = await wire.push()
            assert answer.fields[b"retry-after"] == b"7"
            assert b"apns-id" not in answer.fields

    @pytest.mark.parametrize(("processed", "fate"), [(False, "swallowed"), (True, "unanswered")])
    async def test_a_swallowed_request_leaves_the_connection_good(self, processed, fate):
        async with faulty(Swallow(request=1, processed=processed)) as wire:
            swallowed = await wire.send()
            assert (await wire.push()).status == 200
            await wire.settle()
            assert not wire.answers[swallowed].settled
            assert fates(wire) == {fate: 1, "accepted": 1}

    async def test_a_refused_stream(self):
        async with faulty(Refuse(request=1)) as wire:
            assert (await wire.push()).error_code == 7
            assert fates(wire) == {"refused": 1}

    async def test_a_stream_refused_twice(self):
        async with faulty(Refuse(request=1, twice=True)) as wire:
            await wire.push()
            await wire.settle()
            assert [frame.error_code for frame in wire.all(RstStreamFrame)] == [7, 5]

    async def test_a_reset_that_does_not_say_whether_it_was_delivered(self):
        async with faulty(Refuse(error_code=2, processed=True)) as wire:
            assert (await wire.push()).error_code == 2
            assert fates(wire) == {"unanswered": 1}
        with pytest.raises(ValueError, match="not processed"):
            Refuse(processed=True)


class TestGoaway:
    async def test_here_what_was_in_flight_after_it_is_not_processed(self):
        async with faulty(Goaway(request=2)) as wire:
            streams = await burst(wire, 5)
            await wire.to_end()
            assert [wire.answers[each].status for each in streams] == [200, 200, None, None, None]
            assert [(frame.last_stream_id, frame.additional_data) for frame in wire.goaways] == [
                (3, SHUTDOWN)
            ]
            assert fates(wire) == {"accepted": 2, "refused": 3}

    async def test_the_answer_comes_in_the_same_segment_after_it(self):
        async with faulty(Goaway(request=1)) as wire:
            await wire.push()
            segment = next(each for each in wire.segments if any(isinstance(f, GoAwayFrame) for f in each))
            kinds = [type(frame) for frame in segment]
            assert kinds.index(GoAwayFrame) < kinds.index(HeadersFrame)

    @pytest.mark.parametrize(("last", "stream_id"), [("before", 1), ("zero", 0), (1, 1)])
    async def test_lower_ones(self, last, stream_id):
        async with faulty(Goaway(request=2, last=last)) as wire:
            streams = await burst(wire, 3)
            await wire.to_end()
            assert wire.goaways[0].last_stream_id == stream_id
            assert [wire.answers[each].status for each in streams] == [200, None, None]
            assert fates(wire) == {"accepted": 1, "refused": 2}

    async def test_delayed_requests_above_it_are_never_processed(self):
        async with faulty(
            Goaway(request=3, last="zero"), Delay(seconds=3_600, request=1), Delay(seconds=3_600, request=2)
        ) as wire:
            await burst(wire, 3)
            await wire.to_end()
            assert fates(wire) == {"refused": 3}

    async def test_the_largest_first_and_the_real_one_later(self, mock_clock):
        async with faulty(Goaway(request=1, last="max", real_after=2.0)) as wire:
            assert (await wire.push()).status == 200
            assert [frame.last_stream_id for frame in wire.goaways] == [2**31 - 1]
            assert (await wire.push()).status == 200
            mock_clock.jump(2.0)
            await wire.to_end()
            assert [frame.last_stream_id for frame in wire.goaways] == [2**31 - 1, 3]

    async def test_the_connection_stays_open(self):
        async with faulty(Goaway(request=1, close="never")) as wire:
            await wire.push()
            await wire.settle()
            late = await wire.send()
            await wire.settle()
            assert not wire.answers[late].settled
            assert fates(wire) == {"accepted": 1, "refused": 1}

    async def test_closed_at_once_nothing_is_answered(self):
        async with faulty(Goaway(request=1, close="at once", last="here")) as wire:
            await wire.send()
            await wire.to_end()
            assert len(wire.goaways) == 1
            assert wire.answers[1].status is None
            assert fates(wire) == {"cancelled": 1}

    async def test_twice_the_second_without_data(self):
        async with faulty(Goaway(request=1, copies=2)) as wire:
            await wire.push()
            await wire.to_end()
            assert [frame.additional_data for frame in wire.goaways] == [SHUTDOWN, b""]

    async def test_at_open(self):
        async with faulty("bad-certificate") as wire:
            await wire.to_end()
            assert [(f.last_stream_id, f.error_code, f.additional_data) for f in wire.goaways] == [
                (0, 0, b'{"reason":"BadCertificate"}'),
                (0, 0, b""),
            ]

    async def test_after_too_many_rejections_but_410_is_not_counted(self):
        async with faulty(RejectionLimit(rejections=2)) as wire:
            wire.simulator.mark_unregistered(OTHER_DEVICE)
            pushed = [await wire.push(each) for each in (OTHER_DEVICE, OTHER_DEVICE, "xx", "xx")]
            assert [answer.status for answer in pushed] == [410, 410, 400, 400]
            await wire.to_end()
            assert len(wire.goaways) == 1


class TestTheTransport:
    async def test_closed_without_goaway(self):
        async with faulty(Close(request=2)) as wire:
            await burst(wire, 3)
            await wire.to_end()
            assert not wire.goaways
            assert wire.eof is True
            assert [wire.answers[each].status for each in (1, 3, 5)] == [200, None, None]

    async def test_delivered_but_cut_within_the_answer(self):
        async with faulty(Close(request=1, how="reset", processed=True, octets=5)) as wire:
            await wire.send()
            await wire.to_end()
            assert isinstance(wire.eof, trio.BrokenResourceError)
            assert 0 < len(wire._left) <= 5
            assert fates(wire) == {"accepted": 1}

    async def test_a_tls_alert_after_the_handshake(self):
        async with faulty(TlsAlert(request=1)) as wire:
            await wire.send()
            await wire.to_end()
            assert isinstance(wire.eof.__cause__, ssl.SSLError)
            assert "BAD_RECORD_MAC" in str(wire.eof.__cause__)

    async def test_a_stall_ends_with_all_that_was_held_back(self):
        async with faulty(Stall(request=1)) as wire:
            streams = await burst(wire, 2)
            with trio.move_on_after(0.05) as patience:
                await wire.until(lambda: wire.answers[1].settled)
            assert patience.cancelled_caught
            wire.simulator.thaw()
            for stream_id in streams:
                assert (await wire.answer(stream_id)).status == 200

    async def test_a_trickle(self):
        async with faulty(Trickle(octets=3, interval=0.0001)) as wire:
            answer = await wire.push()
            assert answer.status == 200
            assert len(wire.segments) > 10

    async def test_any_octets(self):
        garbage = b"\0\0\1\x3f\0\0\0\0\0!"
        async with faulty(SendOctets(octets=garbage, request=1)) as wire:
            await wire.push()
            await wire.settle()
            assert any(frame.type == 0x3F for frame in wire.frames)


class TestTheConnection:
    async def test_pings_unanswered(self):
        async with faulty(IgnorePings()) as wire:
            await wire.ping()
            assert (await wire.push()).status == 200
            assert not wire.all(PingFrame)
            assert wire.simulator.statistics().pings == 1

    async def test_settings_never_acknowledged(self):
        async with faulty(LeaveSettingsUnacknowledged()) as wire:
            await wire.push()
            await wire.settle()
            assert not [frame for frame in wire.all(SettingsFrame) if "ACK" in frame.flags]
        async with faulty() as wire:
            await wire.settle()
            assert [frame for frame in wire.all(SettingsFrame) if "ACK" in frame.flags]

    async def test_the_window_is_never_given_back(self):
        body = b'{"aps":{},"pad":"' + b"x" * 4_000 + b'"}'
        async with faulty(KeepWindow()) as wire:
            for _ in range(16):
                assert (await wire.push(body=body)).status == 200
            assert not wire.all(WindowUpdateFrame)
            await wire.push(body=body)
            await wire.to_end()
            assert wire.goaways[0].error_code == 3

    async def test_settings_change_in_flight(self):
        changed = Settings(request=1, stream_limit=3, initial_window=0, table_octets=0, frame_octets=20_000)
        async with faulty(changed) as wire:
            await wire.push()
            assert dict(wire.all(SettingsFrame)[-1].settings) == {1: 0, 3: 3, 4: 0, 5: 20_000}

    async def test_a_lowered_limit_holds_when_it_is_acknowledged(self):
        async with faulty(Settings(request=1, stream_limit=1)) as wire:
            streams = await burst(wire, 3)
            assert [(await wire.answer(each)).status for each in streams] == [200] * 3
            await wire.acknowledge_settings()  # the first
            await wire.acknowledge_settings()
            streams = await burst(wire, 3)
            assert [(await wire.answer(each)).error_code for each in streams] == [None, 7, 7]

    async def test_a_strictly_lowered_limit_holds_at_once_and_comes_back(self, mock_clock):
        async with faulty(Settings(request=1, stream_limit=1, strict=True, restored_after=2.0)) as wire:
            streams = await burst(wire, 2)
            assert (await wire.answer(streams[1])).error_code == 7
            assert wire.stream_limits == [1_000, 1]
            mock_clock.jump(2.0)
            await wire.until(lambda: wire.stream_limits == [1_000, 1, 1_000])

    async def test_a_rejection_collapses_the_limit_and_an_accepted_request_restores_it(self):
        async with faulty(Collapse()) as wire:
            await wire.push()
            await wire.push("xx")
            await wire.settle()
            assert wire.stream_limits == [1_000, 1]
            await wire.push()
            await wire.settle()
            assert wire.stream_limits == [1_000, 1, 1_000]

    async def test_every_answer_is_late_by_the_latency_and_by_no_more(self, mock_clock):
        async with faulty(Delay(seconds=2.0)) as wire:
            streams = await burst(wire, 50)
            await wire.settle()
            mock_clock.jump(1.9)
            await wire.settle()
            assert not any(answer.settled for answer in wire.answers.values())
            assert not fates(wire)
            mock_clock.jump(0.2)
            for stream_id in streams:
                assert (await wire.answer(stream_id)).status == 200

    async def test_a_spread_delay_lets_answers_overtake(self, mock_clock):
        async with faulty(Delay(seconds=1.0, spread=5.0), seed=3) as wire:
            streams = await burst(wire, 20)
            await wire.settle()
            mock_clock.jump(6.0)
            for stream_id in streams:
                await wire.answer(stream_id)
            order = [frame.stream_id for frame in wire.all(HeadersFrame)]
            assert sorted(order) == streams != order

    async def test_a_body_far_too_long_is_answered_late_and_not_reset_before(self, mock_clock):
        async with faulty(Delay(seconds=2.0)) as wire:
            stream_id, octets = wire.request_frames(body=b"{" + bytes(16_000))
            octets = octets[:-16_010] + DataFrame(stream_id, bytes(16_000)).serialize() * 2
            await wire.stream.send_all(octets)
            await wire.settle()
            assert not wire.answers[stream_id].settled
            mock_clock.jump(3.0)
            assert (await wire.answer(stream_id)).reason == "PayloadTooLarge"

    async def test_a_request_reset_while_it_waits_is_never_processed(self, mock_clock):
        async with faulty(Delay(seconds=2.0)) as wire:
            stream_id = await wire.send()
            await wire.stream.send_all(RstStreamFrame(stream_id, error_code=8).serialize())
            await wire.settle()
            mock_clock.jump(3.0)
            await wire.settle()
            assert fates(wire) == {"cancelled": 1}


async def test_an_expired_provider_token_wedges_the_connection(simulator):
    """The limit drops to 1, what is over it is reset with two codes, nothing brings it back (pushy 476)."""
    issued = simulator.issue_signing_key()

    def bearer(age):
        return "bearer " + make_provider_token(issued, simulator.clock() - age).decode()

    async with open_wire(simulator, headers={"authorization": bearer(1_500)}, warm=True) as wire:
        expired, first = wire.request_frames(authorization=bearer(4_000))
        excess, second = wire.request_frames()
        await wire.stream.send_all(first + second)
        assert (await wire.answer(expired)).reason == "ExpiredProviderToken"
        await wire.settle()
        assert [(frame.stream_id, frame.error_code) for frame in wire.all(RstStreamFrame)] == [
            (excess, 7),
            (excess, 5),
        ]
        assert wire.stream_limits == [1, 1_000, 1]
        assert (await wire.push()).status == 200
        await wire.settle()
        assert wire.stream_limits == [1, 1_000, 1]


async def test_a_connection_wedged_from_the_start_never_gets_the_full_limit(simulator, key):
    async with open_wire(simulator, key) as wire:
        issued = simulator.issue_signing_key()
        expired = "bearer " + make_provider_token(issued, simulator.clock() - 4_000).decode()
        assert (await wire.push(authorization=expired)).reason == "ExpiredProviderToken"
        assert (await wire.push()).status == 200
        await wire.settle()
        assert wire.stream_limits == [1, 1]


@pytest.mark.parametrize("name", PROFILES)
async def test_every_profile_is_lived_through(name):
    """A client that only knows the wire sends 40 requests; the simulator must not fail, whatever it does."""
    async with open_simulator(faults=[name], probing=False) as simulator:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            async with open_wire(simulator, simulator.signing_key()) as wire:
                streams = await burst(wire, 40)
                with trio.move_on_after(0.1):
                    await wire.until(lambda: all(wire.answers[each].settled for each in streams))
        assert simulator.statistics().connections_opened == 1


class TestByHand:
    """What a test does to the connections while they are in use."""

    async def test_goaway_now(self, simulator, key):
        async with open_wire(simulator, key, warm=True) as wire:
            assert simulator.send_goaway() == 1
            await wire.to_end()
            assert (wire.goaways[0].last_stream_id, wire.goaways[0].additional_data) == (1, SHUTDOWN)

    async def test_limits_now(self, simulator, key):
        async with open_wire(simulator, key, warm=True) as wire:
            simulator.set(stream_limit=5)
            await wire.until(lambda: wire.stream_limits[-1] == 5)
            simulator.set(stream_limit=500)
            await wire.until(lambda: wire.stream_limits[-1] == 500)

    async def test_frozen_and_thawed(self, simulator, key):
        async with open_wire(simulator, key, warm=True) as wire:
            simulator.freeze()
            stream_id = await wire.send()
            with trio.move_on_after(0.05) as patience:
                await wire.answer(stream_id)
            assert patience.cancelled_caught
            assert simulator.ledger.counts["accepted"] == 1
            simulator.thaw()
            assert (await wire.answer(stream_id)).status == 200

    @pytest.mark.parametrize("how", ["fin", "close notify", "reset", "alert"])
    async def test_closed_now_even_when_frozen(self, simulator, key, how):
        async with open_wire(simulator, key, warm=True) as wire:
            simulator.freeze()
            simulator.close_connections(how)
            await wire.to_end()
            assert bool(wire.eof)

    async def test_connecting_refused_for_a_while(self, simulator, key):
        async with open_wire(simulator, key, warm=True) as wire:
            simulator.refuse_connections()
            with pytest.raises(OSError):  # noqa: PT011  (all attempts failed to connect)
                await trio.open_tcp_stream(simulator.host, simulator.port)
            assert (await wire.push()).status == 200
            simulator.accept_connections()
            async with open_wire(simulator, key) as second:
                assert (await second.push()).status == 200

    async def test_a_device_dies_and_comes_back(self, simulator, key):
        async with open_wire(simulator, key, warm=True) as wire:
            simulator.mark_unregistered(DEVICE_TOKEN, 1_700_000_000)
            dead = await wire.push()
            assert (dead.status, dead.body) == (410, b'{"reason":"Unregistered","timestamp":1700000000000}')
            simulator.forget_device(DEVICE_TOKEN)
            assert (await wire.push()).status == 200

    async def test_a_device_of_another_app(self, simulator, key):
        async with open_wire(simulator, key, warm=True) as wire:
            simulator.register(DEVICE_TOKEN, topic="com.example.other")
            assert (await wire.push()).reason == "DeviceTokenNotForTopic"

    async def test_a_key_is_revoked(self, simulator, key):
        async with open_wire(simulator, key, warm=True) as wire:
            simulator.revoke_key(key.key_id)
            assert (await wire.push()).reason == "InvalidProviderToken"


def test_every_kind_of_fault_is_frozen_and_comparable():
    for kind in Fault.__subclasses__():
        assert kind.__dataclass_params__.frozen, kind
