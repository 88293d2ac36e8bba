"""The log of a whole gateway: from a webhook to Apple's own id, and no device token whole."""

from __future__ import annotations

import io
import json

import pytest

from fastpush.gateway.log import open_log
from fastpush.gateway.outbox import Entry
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


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_apples_own_id_stands_beside_ours_at_level_debug(tmp_path, level):
    out = io.StringIO()
    with open_log(level, stream=out):
        async with open_house(tmp_path, environment="development") as house:
            recorded = await house.critical()
            await house.settled()
    found = lines(out, "notification answered")
    assert len(found) == (3 if level == "debug" else 0)
    for line in found:
        assert line["trace"] == recorded["id"]
        assert len(line["apns_id"]) == len(line["apns_unique_id"]) == 36
