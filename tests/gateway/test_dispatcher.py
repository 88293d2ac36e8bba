"""From what was accepted to APNs' answer and its record: each once, whatever goes wrong on the way."""

import json
import time

import msgspec
import pytest
import trio

from fastpush import pool
from fastpush.errors import InvalidNotification
from fastpush.gateway.dispatcher import Patience, outlet
from fastpush.gateway.dispatcher._pages import make_notifications
from fastpush.gateway.outbox import Audience, Entry, Fanout, apns_id_base
from fastpush.notification import Payload
from fastpush.simulator import Answer, Delay, open_simulator
from tests.gateway.dispatch_house import (
    APP,
    BODY,
    Registry,
    entry,
    judge,
    open_all,
    open_house,
    settings,
    str_of,
    token,
    until,
)


async def test_what_is_accepted_arrives_and_has_an_end(tmp_path):
    async with open_all(tmp_path / "gateway.db") as (apns, house):
        for start in range(0, 2_000, 500):
            await house.accept([entry(start + number) for number in range(500)])
        await house.until_quiet()
        assert house.ends() == {"accepted": 2_000}
        assert apns.ledger.counts["accepted"] == 2_000
        await judge(apns, house)


async def test_a_fan_out_reaches_each_device_of_its_audience(tmp_path):
    devices = Registry([token(number) for number in range(5_500)])
    async with open_all(tmp_path / "gateway.db", devices=devices) as (apns, house):
        apns.mark_unregistered(token(17), time.time())
        acceptance = await house.outbox.accept_fanout(
            APP, Audience(), Entry(None, BODY, expiration=int(time.time()) + 600)
        )
        await house.until_quiet()
        record = await house.outbox.find_batch(acceptance.batch)
        assert record.outcomes == {"accepted": 5_499, "rejected": 1}
        fanout = Fanout(acceptance.batch, APP, Audience(), entry(0), 0.0, "", acceptance.tag)
        seen = {json.loads(line)["apns_id"] for line in apns.ledger_path.read_text().splitlines()}
        assert seen == {str_of(fanout.apns_id(each)) for each in devices.device_tokens}
        assert (await house.outbox.find(fanout.apns_id(token(17)))).outcome == "rejected"
        assert apns.ledger.counts["accepted"] == 5_499
        assert [verdict[:3] for verdict in devices.reported] == [(token(17), 410, "Unregistered")]


async def test_a_fan_out_that_was_cut_short_goes_on_where_all_was_done(tmp_path):
    """The place that is kept moves over a page only when all pages before it are on disk."""
    devices = Registry([token(number) for number in range(5_500)])
    path, slow = tmp_path / "gateway.db", Delay(seconds=3.0, device_token=token(3))
    async with open_simulator(topics=[APP], faults=[slow]) as apns:
        one = {"credentials": {APP: apns.signing_key()}, "devices": devices}
        async with open_house(path, [settings(apns)], **one) as house:
            fields = Entry(None, BODY, expiration=int(time.time()) + 600)
            acceptance = await house.outbox.accept_fanout(APP, Audience(), fields)
            await until(lambda: apns.ledger.counts["accepted"] >= 3_900)
            await trio.sleep(0.2)
            (fanout,) = await house.outbox.claim_fanouts(APP)
            assert fanout.cursor == ""
        async with open_house(path, [settings(apns)], **one) as house:
            await house.until_quiet()
            assert (await house.outbox.find_batch(acceptance.batch)).outcomes == {"accepted": 5_500}
        assert {seen.device_token for seen in apns.ledger.seen if seen.delivered} == set(
            devices.device_tokens
        )
        assert len({seen.apns_id for seen in apns.ledger.seen}) == 5_500


def test_the_notifications_of_a_page_have_the_apns_ids_of_their_fan_out():
    """Otherwise a page that is walked again would not repeat them, and `find` would not know them."""
    device_tokens = [token(number) for number in range(1, 2_000)]
    payload = Payload.raw(BODY)
    for number, tag in ((1_700_000_000_000 << 20 | 0xFFFFF, 0), ((1 << 63) - 1, (1 << 32) - 1)):
        fanout = Fanout(number, APP, Audience(), entry(0, collapse_id="a"), 0.0, "", tag)
        base, key = apns_id_base(number, 0).to_bytes(16, "big"), tag.to_bytes(4, "big")
        made = make_notifications(device_tokens, payload, fanout.entry, base, key, False)
        assert [one.apns_id for one in made] == [str_of(fanout.apns_id(each)) for each in device_tokens]
        assert [one.device_token for one in made] == device_tokens
        assert {one.collapse_id for one in made} == {"a"}
        own = make_notifications(device_tokens[:9], payload, fanout.entry, base, key, True)
        assert [one.collapse_id for one in own] == [one.apns_id for one in made[:9]]
    with pytest.raises(InvalidNotification, match="payload"):
        make_notifications(
            [token(1)], Payload.raw(b'{"a":"%s"}' % (b"x" * 5_000)), fanout.entry, base, key, True
        )
    with pytest.raises(ValueError, match="base of 3"):
        make_notifications([token(1)], payload, fanout.entry, b"123", key, True)


async def test_outcomes_can_be_waited_for(tmp_path):
    bad = Answer(status=400, reason="BadTopic", device_token=token(2))
    async with open_all(tmp_path / "gateway.db", faults=[bad]) as (_, house):
        acceptance = await house.accept([entry(1), entry(2)])
        with trio.fail_after(10):
            ends = await house.dispatcher.wait_for(acceptance, 5)
        assert {index: (end.outcome, end.reason) for index, end in ends.items()} == {
            0: ("accepted", ""),
            1: ("rejected", "BadTopic"),
        }
        assert (await house.dispatcher.wait_for(acceptance, 5)).keys() == {0, 1}


async def test_a_drain_sends_nothing_more_and_records_what_was_in_flight(tmp_path):
    """O10: what was not given to APNs stays in the outbox; nothing is sent twice by the next start."""
    path = tmp_path / "gateway.db"
    async with open_all(path, faults=["latency"]) as (apns, house):
        for start in range(0, 20_000, 1_000):
            await house.accept([entry(start + number) for number in range(1_000)])
        await until(lambda: apns.ledger.counts["accepted"] >= 2_000)
        started = trio.current_time()
        await house.dispatcher.drain(started + 20)
        assert trio.current_time() - started < 5
        sent = apns.ledger.counts["accepted"]
        assert 2_000 <= sent < 20_000
        await trio.sleep(0.2)
        assert apns.ledger.counts["accepted"] == sent
        assert house.ends() == {"accepted": sent}
        assert house.outbox.waiting()[APP].count == 20_000 - sent
        await judge(apns, house, quiet=False)


async def test_a_refused_credential_pauses_its_app_and_nothing_is_lost(tmp_path, monkeypatch):
    """Ingest goes on; with the new credential everything is sent, each once."""
    monkeypatch.setattr(pool, "PROBE_EVERY", 0.5)
    async with open_all(tmp_path / "gateway.db") as (apns, house):
        app = house.apps[APP]
        await house.accept([entry(number) for number in range(500)])
        await house.until_quiet()
        apns.revoke_key(house.key.key_id)
        await house.accept([entry(number) for number in range(500, 900)])
        await until(lambda: app.state == "refused")
        assert "InvalidProviderToken" in app.reason
        await house.accept([entry(number) for number in range(900, 1_500)])
        await trio.sleep(0.3)
        assert apns.ledger.counts["accepted"] == 500
        await app.use_credential(apns.signing_key())
        await house.until_quiet()
        assert app.state == "running"
        assert house.ends() == {"accepted": 1_500}
        await judge(apns, house)


async def test_it_goes_on_by_itself_when_apns_takes_the_credential_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "PROBE_EVERY", 0.3)
    monkeypatch.setattr(outlet, "PROBE_EVERY", 0.1)
    fault = Answer(status=403, reason="InvalidProviderToken")
    async with open_all(tmp_path / "gateway.db", faults=[fault]) as (apns, house):
        await house.accept([entry(number) for number in range(500)])
        await until(lambda: house.apps[APP].state == "refused")
        await trio.sleep(0.5)
        assert house.apps[APP].state == "refused"
        apns.faults.remove(fault)
        await house.until_quiet()
        assert house.apps[APP].state == "running"
        assert house.ends() == {"accepted": 500}
        await judge(apns, house)


async def test_the_standby_takes_over_and_the_credential_takes_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "PROBE_EVERY", 0.3)
    monkeypatch.setattr(outlet, "PROBE_EVERY", 0.1)
    async with open_all(tmp_path / "gateway.db", standby=True) as (apns, house):
        app = house.apps[APP]
        await house.accept([entry(number) for number in range(500)])
        await house.until_quiet()
        apns.revoke_key(house.key.key_id)
        await house.accept([entry(number) for number in range(500, 3_000)])
        await house.until_quiet()
        assert app.state == "running"
        assert "InvalidProviderToken" in app.reason
        assert app.standby.statistics().accepted > 1_000
        await app.use_credential(apns.signing_key())
        assert app.reason is None
        before = app.client.statistics().accepted
        await house.accept([entry(number) for number in range(3_000, 3_500)])
        await house.until_quiet()
        assert app.client.statistics().accepted == before + 500
        assert house.ends() == {"accepted": 3_500}
        await judge(apns, house)


async def test_after_a_pause_only_the_newest_for_a_device_and_collapse_id_goes_out(tmp_path):
    """The older ones end as expired, "Superseded": also those in other batches and of other priority."""
    few = {"max_in_flight": 100}  # so that the newest is not in memory when the oldest is
    async with open_all(tmp_path / "gateway.db", app=few) as (apns, house):
        await house.accept([entry(1)])
        await house.until_quiet()
        await house.outbox.pause(APP)
        await until(lambda: house.apps[APP].state == "paused")
        for turn in range(3):
            await house.accept([entry(number, collapse_id="a") for number in range(500)])
            await house.accept([entry(number, collapse_id="b", high=True) for number in range(turn, 10)])
        await house.accept([entry(number) for number in range(100)])
        await trio.sleep(0.1)
        assert apns.ledger.counts["accepted"] == 1
        await house.outbox.resume(APP)
        await house.until_quiet()
        assert house.ends() == {"accepted": 1 + 500 + 10 + 100, "expired": 1_000 + 17}
        assert {end.reason for told in house.told for end in told.ends if end.outcome == "expired"} == {
            "Superseded"
        }
        await house.accept([entry(1, collapse_id="a")])
        await house.accept([entry(1, collapse_id="a")])
        await house.until_quiet()
        assert house.ends()["accepted"] == 1 + 500 + 10 + 100 + 2
        await judge(apns, house)


async def test_after_a_pause_only_the_newest_fan_out_reaches_a_device(tmp_path):
    devices = Registry([token(number) for number in range(3_000)])
    some = tuple(token(number) for number in range(1_000))
    async with open_all(tmp_path / "gateway.db", devices=devices) as (_, house):
        await house.accept([entry(1)])
        await house.until_quiet()
        await house.outbox.pause(APP)
        await until(lambda: house.apps[APP].state == "paused")
        fields = Entry(None, BODY, collapse_id="a", expiration=int(time.time()) + 600, high=True)
        old = await house.outbox.accept_fanout(APP, Audience(), fields)
        new = await house.outbox.accept_fanout(APP, Audience(any_of=some), fields)
        other = await house.outbox.accept_fanout(
            APP, Audience(), msgspec.structs.replace(fields, collapse_id="b")
        )
        await house.outbox.resume(APP)
        await house.until_quiet()
        assert (await house.outbox.find_batch(new.batch)).outcomes == {"accepted": 1_000}
        assert (await house.outbox.find_batch(old.batch)).outcomes == {"accepted": 2_000, "expired": 1_000}
        assert (await house.outbox.find_batch(other.batch)).outcomes == {"accepted": 3_000}


async def test_a_device_token_of_the_other_environment_is_tried_there_once_and_remembered(tmp_path):
    async with (
        open_all(tmp_path / "gateway.db", both=True) as (apns, house),
    ):
        for number in range(10):
            apns.register(token(number), environment="development")
            house.development.register(token(number), environment="development")
        house.development.register(token(11), environment="production")
        apns.register(token(11), environment="development")
        await house.accept([entry(number) for number in (*range(12), 20)])
        await house.until_quiet()
        assert house.ends() == {"accepted": 12, "rejected": 1}
        assert house.devices.learnt == {token(number): "development" for number in range(10)}
        assert [verdict[:3] for verdict in house.devices.reported] == [(token(11), 400, "BadDeviceToken")]
        rejected = apns.ledger.counts["rejected"]
        await house.accept([entry(number) for number in range(10)])
        await house.until_quiet()
        assert house.ends()["accepted"] == 22
        assert apns.ledger.counts["rejected"] == rejected


async def test_a_fan_out_goes_to_each_device_in_its_environment(tmp_path):
    devices = Registry([token(number) for number in range(300)], {token(n): "d" for n in range(0, 300, 3)})
    async with open_all(tmp_path / "gateway.db", devices=devices, both=True) as (apns, house):
        apns.register(token(1), environment="development")
        house.development.register(token(1), environment="development")
        acceptance = await house.outbox.accept_fanout(
            APP, Audience(), Entry(None, BODY, expiration=int(time.time()) + 600)
        )
        await house.until_quiet()
        assert (await house.outbox.find_batch(acceptance.batch)).outcomes == {"accepted": 300}
        assert house.development.ledger.counts["accepted"] == 101
        assert apns.ledger.counts["accepted"] == 199
        assert devices.learnt == {token(1): "development"}


async def test_errors_of_apns_are_tried_again_later_and_end_with_the_expiration(tmp_path):
    """The slow lane: by its own times, over restarts, never after the expiration."""
    patience = Patience(first_delay=0.2, longest_delay=0.4)
    fault = Answer(status=503, reason="ServiceUnavailable", device_token=token(1))
    later = Answer(status=503, reason="ServiceUnavailable", device_token=token(2), times=5)
    path = tmp_path / "gateway.db"
    async with open_all(path, faults=[fault, later], options={"patience": patience}) as (apns, house):
        soon = int(time.time()) + 5
        acceptance = await house.accept([entry(1, expiration=soon), entry(2)])
        await house.accept([entry(number) for number in range(3, 503)])  # or the breaker would open
        await house.until_quiet()
        assert time.time() < soon + 3
        record = await house.outbox.find(acceptance.apns_id(0))
        assert record.outcome == "expired"
        assert record.attempts[-2].reason == "ServiceUnavailable"
        assert len(record.attempts) > 3
        assert record.attempts[-1].attempts >= 9
        record = await house.outbox.find(acceptance.apns_id(1))
        assert record.outcome == "accepted"
        assert record.attempts[-1].attempts >= 4
        await judge(apns, house)
