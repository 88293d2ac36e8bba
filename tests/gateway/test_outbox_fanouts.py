"""Fan-outs by time, and what became of a device in them although most of it was only counted."""

from __future__ import annotations

import pytest

from fastpush.gateway.outbox import Audience, End, Entry, Retry
from fastpush.gateway.outbox import fanouts as listing
from tests.gateway.test_outbox import APP, Life

OTHER = "com.example.other"
TOKENS = [f"{number:064x}" for number in range(10)]


@pytest.fixture
def life(tmp_path):
    return Life(tmp_path / "gateway.db")


async def begin(outbox, audience=None, app=APP, source="alarm", **fields):
    entry = Entry(None, b"{}", **fields)
    return (await outbox.accept_fanout(app, audience or Audience(), entry, source=source)).batch


async def told(outbox, batch, token):
    found = (await outbox.passages([batch], token))[batch]
    return found.outcome, found.attempt and found.attempt.reason


def end(life, batch, token, outcome="rejected", reason="Unregistered"):
    return End(batch, -1, outcome, life.clock(), 410, reason, 1, token)


async def test_a_device_that_was_gone_by_was_accepted(life):
    async with life as outbox:
        batch = await begin(outbox)
        (fanout,) = await outbox.claim_fanouts(APP)
        assert await told(outbox, batch, TOKENS[0]) == (None, None), "nobody was sent to"
        retry = Retry(batch, -1, life.clock() + 5, 1, life.clock(), 503, "Shutdown", TOKENS[3])
        await outbox.settle_page(
            batch, TOKENS[4], accepted=3, ends=[end(life, batch, TOKENS[1])], retries=[retry], last=False
        )
        assert await told(outbox, batch, TOKENS[0]) == ("accepted", None)
        assert await told(outbox, batch, TOKENS[1]) == ("rejected", "Unregistered")
        assert await told(outbox, batch, TOKENS[3]) == (None, "Shutdown")
        assert await told(outbox, batch, TOKENS[4].upper()) == ("accepted", None)
        assert await told(outbox, batch, TOKENS[5]) == (None, None), "the walk has not come to it"
        await outbox.settle_page(batch, TOKENS[7], accepted=3, ends=[], retries=[], last=True)
        assert await told(outbox, batch, TOKENS[5]) == ("accepted", None)
        assert await told(outbox, batch, TOKENS[9]) == ("accepted", None), (
            "there are none behind the last page"
        )
        assert await told(outbox, batch, TOKENS[3]) == (None, "Shutdown"), "it is still parked"
        life.clock.now += 10
        await outbox.claim(APP, 9)
        await outbox.settle([End(batch, -1, "accepted", life.clock(), 200, "", 2, TOKENS[3])])
        (passage,) = (await outbox.passages([batch, 1], TOKENS[3])).values()
        assert (passage.outcome, passage.attempt.attempts) == ("accepted", 2)
        assert passage.apns_id == fanout.apns_id(TOKENS[3])
        assert (await outbox.find(passage.apns_id)).outcome == "accepted"
    async with life as outbox:
        assert await told(outbox, batch, TOKENS[0]) == ("accepted", None)


async def test_what_was_purged_did_not_reach_those_behind(life):
    async with life as outbox:
        batch = await begin(outbox)
        retry = Retry(batch, -1, life.clock() + 5, 1, life.clock(), 503, "Shutdown", TOKENS[3])
        await outbox.settle_page(batch, TOKENS[4], accepted=4, ends=[], retries=[retry], last=False)
        await outbox.pause(APP)
        await outbox.purge(APP)
        assert await told(outbox, batch, TOKENS[4]) == ("accepted", None)
        assert await told(outbox, batch, TOKENS[3]) == ("failed", "Purged")
        assert await told(outbox, batch, TOKENS[5]) == ("failed", "Purged")


async def test_a_page_of_which_nobody_knows_is_unknown(life):
    async with life as outbox:
        batch = await begin(outbox, delivery="once")
        await outbox.begin_page(batch, TOKENS[4], 5)
    async with life as outbox:
        assert await told(outbox, batch, TOKENS[2]) == ("unknown", "Restarted")
        assert await told(outbox, batch, TOKENS[5]) == (None, None)


async def test_a_long_log_is_read_for_the_device_alone(life, monkeypatch):
    read = []
    monkeypatch.setattr(listing, "read_log", lambda log: read.append(log) or iter(()))
    async with life as outbox:
        batch = await begin(outbox)
        many = [end(life, batch, token) for token in TOKENS]
        await outbox.settle_page(batch, TOKENS[9], accepted=0, ends=many, retries=[], last=True)
        assert await told(outbox, batch, "ff" * 32) == ("accepted", None)
        assert read == []
        await told(outbox, batch, TOKENS[9])
        assert len(read) == 1


@pytest.mark.parametrize(
    ("audience", "meant"),
    [
        (Audience(), True),
        (Audience(any_of=("night", "network")), True),
        (Audience(any_of=("storage",)), False),
        (Audience(all_of=("network", "night")), False),
        (Audience(all_of=("network",), none_of=("away",)), True),
        (Audience(none_of=("network",)), False),
    ],
)
def test_an_audience_knows_whom_it_means(audience, meant):
    assert audience.means(["network", "oncall"]) is meant


async def test_fan_outs_are_listed_by_app_time_and_tags(life, monkeypatch):
    monkeypatch.setattr(listing, "CHUNK", 2)
    monkeypatch.setattr(listing, "MOST_CHUNKS", 3)
    async with life as outbox:
        numbers = []
        for number in range(8):
            audience = Audience(any_of=("network" if number % 2 else "storage",))
            numbers.append(await begin(outbox, audience, OTHER if number == 7 else APP))
            life.clock.now += 60

        async def found(**query):
            page = await outbox.fanouts(**query)
            below = None if page.below is None else numbers.index(page.below)
            return [numbers.index(one.batch) for one in page.rows], below

        assert await found(limit=3) == ([7, 6, 5], 5)
        assert await found(limit=3, below=numbers[5]) == ([4, 3, 2], 2)
        assert await found(limit=3, below=numbers[2]) == ([1, 0], None)
        assert await found() == ([7, 6, 5, 4, 3, 2], 2), "so many are looked through at once, and no more"
        assert await found(app=OTHER) == ([7], 2)
        assert await found(tags=["network"], app=APP) == ([5, 3], 2)
        assert await found(source="alarm") == ([7, 6, 5, 4, 3, 2], 2)
        assert await found(source="ops") == ([], 2)
        started = life.clock() - 8 * 60
        assert await found(after=started + 150, before=started + 270) == ([4, 3], None)
        await outbox.settle_page(
            numbers[0], TOKENS[4], accepted=4, ends=[end(life, numbers[0], TOKENS[1])], retries=[], last=True
        )
        (oldest,) = (await outbox.fanouts(below=numbers[1])).rows
        assert (oldest.accepted, oldest.ended, oldest.walking) == (4, 1, False)
        assert (oldest.app, oldest.source, oldest.audience.any_of) == (APP, "alarm", ("storage",))
