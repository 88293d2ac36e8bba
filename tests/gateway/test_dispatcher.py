"""From what was accepted to APNs' answer and its record: each once, whatever goes wrong on the way."""

import time

import trio

from fastpush.gateway.outbox import Audience, Entry
from fastpush.simulator import Answer
from tests.gateway.dispatch_house import APP, BODY, Registry, entry, judge, open_all, token, until


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
        assert apns.ledger.counts["accepted"] == 5_499
        assert [verdict[:3] for verdict in devices.reported] == [(token(17), 410, "Unregistered")]


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
