"""The log of a whole gateway: from a webhook to Apple's own id, and no device token whole."""

from __future__ import annotations

import io
import json
from collections import Counter

import httpx
import pytest

from fastpush.gateway.dispatcher import Outcomes
from fastpush.gateway.dispatcher.telling import Teller
from fastpush.gateway.log import open_log
from fastpush.gateway.outbox import Audience, End, Entry, Fanout
from fastpush.simulator.faults import Answer, Goaway
from tests.gateway.console_house import open_house


def lines(out, event):
    return [line for line in map(json.loads, out.getvalue().splitlines()) if line["event"] == event]


async def test_one_chain_of_ids_leads_from_a_webhook_to_the_end(tmp_path):
    out = io.StringIO()
    with open_log(stream=out):
        async with open_house(tmp_path) as house:
            gone = house.tokens[0]
            house.simulator.faults.add(Answer(status=400, reason="BadTopic", device_token=gone))
            house.simulator.faults.add(Goaway(times=1, request=2))
            recorded = await house.critical()
            await house.gateway.outbox.accept("opm", [Entry(gone, b'{"aps":{"alert":"x"}}', trace="r-17")])
            await house.settled()
            found = house.gateway.outbox
            ends = lines(out, "notification rejected")
            for line in ends:
                record = await found.find(bytes.fromhex(line["apns_id"].replace("-", "")))
                assert record is not None, "the line leads to the notification's page"
                assert record.outcome == "rejected"
            tokens = list(house.tokens)
    (judged,) = lines(out, "alarm judged")
    assert (judged["rule"], judged["alarm"]) == ("first.new", recorded["id"])
    assert judged["request"]
    assert {line["trace"] for line in ends} == {"r-17", recorded["id"]}
    assert judged["batch"] in {line["batch"] for line in ends}
    assert {(line["status"], line["reason"]) for line in ends} == {(400, "BadTopic")}
    for token in tokens:
        assert token not in out.getvalue().lower()
        assert token[4:60] not in out.getvalue().lower()
    assert "No answer for three polls" not in out.getvalue(), "a payload"


async def test_a_storm_of_rejections_is_a_few_lines(tmp_path):
    out = io.StringIO()
    with open_log(stream=out):
        async with open_house(tmp_path) as house:
            token = house.tokens[0]
            house.simulator.faults.add(Answer(status=400, reason="BadTopic", device_token=token))
            await house.gateway.outbox.accept("opm", [Entry(token, b'{"aps":{"alert":"x"}}')] * 500)
            await house.settled()
    assert 1 <= len(lines(out, "notification rejected")) <= 20
    assert sum(line.get("more") or 0 for line in lines(out, "notification rejected")) > 0


@pytest.mark.parametrize("environment", ["development", "production"])
async def test_one_id_leads_from_a_webhook_to_each_phone_and_to_apples_own_id(tmp_path, environment):
    """At the level that is logged unless told otherwise, through the whole gateway."""
    out = io.StringIO()
    with open_log(stream=out):
        async with open_house(tmp_path, environment=environment) as house:
            async with httpx.AsyncClient() as sender:
                answer = await sender.post(
                    f"{house.ingest}/v1/opmanager",
                    params={"token": house.keys["opmanager"]},
                    headers={"X-Request-Id": "opm-17"},
                    json={
                        "alarmid": "7",
                        "entity": "sw_ping",
                        "displayName": "sw",
                        "stringseverity": "Critical",
                    },
                )
            await house.critical("another-device")
            await house.settled()
            sent = {seen.apns_id.lower() for seen in house.simulator.ledger.seen if seen.delivered}
            browser = await house.browser()
            pages = {}
            for line in lines(out, "notification accepted"):
                page = await browser.get(f"/notifications/{line['apns_id']}")
                pages[line["apns_id"]] = page.text
            status = await house.gateway.outbox.find_batch(int(answer.json()["push"]))
    (judged,) = [line for line in lines(out, "alarm judged") if line.get("request") == "opm-17"]
    batch = judged["batch"]
    assert batch == answer.json()["push"], "the sender knows it too"
    ends = [line for line in lines(out, "notification accepted") if line["batch"] == batch]
    assert len(ends) == 3, "one for each phone"
    assert status.outcomes == {"accepted": 3}
    for line in ends:
        assert (line["level"], line["status"], line["trace"]) == ("info", 200, judged["alarm"])
        assert line["apns_id"] in sent
        assert "…" in line["device_token"]
        if environment == "development":
            assert len(line["apns_unique_id"]) == 36
            assert line["apns_unique_id"] in pages[line["apns_id"]], "the timeline has it too"
        else:
            assert "apns_unique_id" not in line, "only the development environment gives one"
            assert f"/batches/{batch}" in pages[line["apns_id"]], "the page leads to the fan-out"
    assert len({line["apns_id"] for line in lines(out, "notification accepted")}) == 6
    if environment == "development":
        assert len({line["apns_unique_id"] for line in lines(out, "notification accepted")}) == 6


async def test_what_was_accepted_beyond_that_is_told_in_one_line_or_not_at_all(tmp_path):
    """A fan-out to many is counted by its pages; single notifications have a line at level debug only."""
    for level in ("info", "debug"):
        out = io.StringIO()
        folder = tmp_path / level
        folder.mkdir()
        with open_log(level, stream=out):
            async with open_house(folder, phones=80, environment="development") as house:
                recorded = await house.critical()
                entry = Entry(house.tokens[0], b'{"aps":{"alert":"x"}}', trace="r-17")
                single = await house.gateway.outbox.accept("opm", [entry])
                await house.settled()
                record = await house.gateway.outbox.find(single.apns_id(0))
        (page,) = lines(out, "notifications of a page accepted")
        assert (page["count"], page["batch"], page["trace"]) == (80, recorded["push"], recorded["id"])
        told = lines(out, "notification accepted")
        assert [line["trace"] for line in told] == ([] if level == "info" else ["r-17"])
        (attempt,) = record.attempts
        assert len(attempt.apns_unique_id) == 36, "on disk"
        assert [line["apns_unique_id"] for line in told] == [attempt.apns_unique_id] * len(told)


def test_a_storm_of_alarms_is_followed_as_far_as_the_log_goes_and_counted_beyond(caplog):
    """What the log would hold back is not made in the first place: it would cost as much as the push."""
    caplog.set_level("INFO")
    now = 100.0
    teller = Teller(lambda: now)
    for number in range(100):
        fanout = Fanout(number, "opm", Audience(), Entry(None, b"{}", trace=f"alarm {number}"), 0.0, "", 7)
        ends = [End(number, -1, "accepted", 1.0, 200, "", 1, f"{device:064x}") for device in range(20)]
        teller.tell(Outcomes("opm", (), (), (), fanout, len(ends), ends))
    events = Counter(record.msg["event"] for record in caplog.records)
    assert events == {"notification accepted": 500, "notifications of a page accepted": 75}
    counted = sum(record.msg.get("count", 1) for record in caplog.records)
    assert counted == 2_000, "none is left out"
    caplog.clear()
    now += 1.0
    teller.tell(Outcomes("opm", (), (), (), fanout, 20, ends))
    assert len(caplog.records) == 20, "the allowance comes back"
