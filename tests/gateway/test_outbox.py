"""The outbox: what is accepted is there until it has its one end, whoever dies meanwhile."""

import hashlib
import sqlite3
import threading
import time

import msgspec
import pytest
import trio
import trio.testing

from fastpush.gateway.outbox import (
    MAX_BATCH_ENTRIES,
    Audience,
    Chunk,
    End,
    Entry,
    Idempotency,
    IdempotencyConflict,
    OutboxBusy,
    Retry,
    Waiting,
    schema,
)
from fastpush.gateway.outbox.packing import LogWriter, pack_entries, unpack_entries
from fastpush.gateway.outbox.sqlite import Keep, OutboxLimits, open_outbox
from fastpush.gateway.storage import Limits, StorageFull, StorageUnknown, open_storage

ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
PATIENT = OutboxLimits(pending_after=60.0)
APP = "com.example.app"


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


class Life:
    """One process after the other on the same file: leaving the block is its death."""

    def __init__(self, path, **settings):
        self.path = path
        self.clock = Clock()
        self.settings = {"limits": PATIENT, "clock": self.clock} | settings

    async def __aenter__(self):
        self._storage = open_storage(self.path, ROOMY)
        self.storage = await self._storage.__aenter__()
        try:
            self.outbox = await open_outbox(self.storage, **self.settings)
        except BaseException:
            await self._storage.__aexit__(None, None, None)
            raise
        return self.outbox

    async def __aexit__(self, *error):
        return await self._storage.__aexit__(*error)


@pytest.fixture
def life(tmp_path):
    return Life(tmp_path / "gateway.db")


def entry(number=0, **fields):
    return Entry(f"{number:064x}", b'{"aps":{"alert":"%d"}}' % number, **fields)


def entries(count, first=0, **fields):
    return [entry(number, **fields) for number in range(first, first + count)]


def ends(claims, outcome="accepted", at=1_800_000_001.0, **fields):
    fields = {"status": 200 if outcome == "accepted" else 0} | fields
    return [End(claim.batch, claim.index, outcome, at, **fields) for claim in claims]


def tokens(claims):
    return [int(claim.entry.device_token, 16) for claim in claims]


async def test_what_is_accepted_is_claimed_once_and_settled(life):
    async with life as outbox:
        acceptance = await outbox.accept(APP, entries(3), source="test")
        assert (acceptance.count, acceptance.repeated) == (3, False)
        assert outbox.waiting()[APP].count == 3
        claims = await outbox.claim(APP, 2)
        assert tokens(claims) == [0, 1]
        assert [claim.apns_id for claim in claims] == [acceptance.apns_id(0), acceptance.apns_id(1)]
        assert claims[0].entry == entry(0)
        assert tokens(await outbox.claim(APP, 5)) == [2]
        assert await outbox.claim(APP, 5) == []
        assert await outbox.claim("com.example.unknown", 5) == []
        await outbox.settle(ends(claims))
        assert outbox.waiting()[APP].count == 1
        found = await outbox.find_batch(acceptance.batch)
        assert (found.outcomes, found.waiting, found.source) == ({"accepted": 2}, 1, "test")


async def test_what_had_no_end_waits_again_after_a_restart(life):
    async with life as outbox:
        await outbox.accept(APP, entries(10))
        await outbox.accept(APP, entries(5, 10))
        claims = await outbox.claim(APP, 12)
        await outbox.settle(
            ends(claims[:4]) + ends(claims[10:11], "rejected", status=410, reason="Unregistered")
        )
    async with life as outbox:
        assert outbox.waiting()[APP].count >= 10
        assert tokens(await outbox.claim(APP, 100)) == [*range(4, 10), *range(11, 15)]
        assert outbox.waiting()[APP].count == 10
    async with life as outbox:
        claims = await outbox.claim(APP, 100)
        await outbox.settle(ends(claims))
        assert outbox.waiting()[APP].count == 0
    async with life as outbox:
        assert await outbox.claim(APP, 100) == []
        assert outbox.waiting()[APP].count == 0


async def test_every_notification_is_found_by_its_id_with_its_story(life):
    own = bytes(range(16))
    async with life as outbox:
        acceptance = await outbox.accept(APP, [entry(1), entry(2, apns_id=own), entry(3)], source="key ops")
        claims = await outbox.claim(APP, 3)
        await outbox.settle(
            ends(claims[1:2], "rejected", status=400, reason="BadDeviceToken"),
            [Retry(claims[0].batch, 0, 1_800_000_060.0, 3, 1_800_000_002.0, 503, "ServiceUnavailable")],
        )
        record = await outbox.find(acceptance.apns_id(0))
        assert record.outcome is None
        assert record.entry == entry(1)
        assert [(each.outcome, each.status, each.due_at) for each in record.attempts] == [
            ("retry", 503, 1_800_000_060.0)
        ]
        record = await outbox.find(own)
        assert (record.outcome, record.attempts[0].reason, record.index) == ("rejected", "BadDeviceToken", 1)
        assert (await outbox.find(acceptance.apns_id(2))).attempts == ()
        assert await outbox.find(acceptance.apns_id(3)) is None
        assert await outbox.find(bytes(16)) is None
        await outbox._keeper.index()
        assert (await outbox.find(own)).outcome == "rejected"
    assert acceptance.apns_id(1) == own
    number = int.from_bytes(acceptance.apns_id(2), "big")
    assert (number >> 76 & 15, number >> 62 & 3) == (7, 2)  # RFC 9562: version and variant
    assert number >> 80 == 1_800_000_000_000


async def test_the_badge_survives_and_heads_of_before_it_are_read(life):
    packed, payloads = pack_entries([entry(1), entry(2, trace="t", high=True)])
    before = msgspec.msgpack.encode(msgspec.msgpack.decode(packed)[:-1])
    assert len(packed) - len(before) == 2  # octets of a batch in which none has one
    assert unpack_entries(before, payloads, 2) == [entry(1), entry(2, trace="t", high=True)]
    async with life as outbox:
        await outbox.accept(APP, [entry(1), entry(2, badge=True)])
        await outbox.accept_fanout(APP, Audience(), Entry(None, b'{"aps":{}}', badge=True))
    async with life as outbox:
        assert [claim.entry.badge for claim in await outbox.claim(APP, 9)] == [False, True]
        assert [fanout.entry.badge for fanout in await outbox.claim_fanouts(APP)] == [True]


async def test_ids_grow_with_time_even_if_the_clock_does_not(life):
    async with life as outbox:
        seen = [(await outbox.accept(APP, [entry()])).batch for _ in range(3)]
        life.clock.now -= 3_600
        seen.append((await outbox.accept(APP, [entry()])).batch)
    async with life as outbox:
        seen.append((await outbox.accept(APP, [entry()])).batch)
    assert seen == sorted(set(seen))


async def test_high_priority_overtakes(life):
    async with life as outbox:
        await outbox.accept(APP, entries(3))
        await outbox.accept(APP, entries(2, 10, high=True))
        assert tokens(await outbox.claim(APP, 1, high=False)) == [0]
        assert tokens(await outbox.claim(APP, 3)) == [10, 11, 1]
        assert await outbox.claim(APP, 3, high=True) == []


async def test_a_parked_notification_comes_back_when_it_is_due_also_after_a_restart(life):
    async with life as outbox:
        await outbox.accept(APP, entries(3))
        claims = await outbox.claim(APP, 3)
        await outbox.settle(
            ends(claims[:1]),
            [Retry(claims[1].batch, 1, life.clock() + 60, 3, life.clock()),
             Retry(claims[2].batch, 2, life.clock() + 30, 2, life.clock())],
        )  # fmt: skip
        assert await outbox.claim(APP, 3) == []
        life.clock.now += 31
        (claim,) = await outbox.claim(APP, 3)
        assert (claim.index, claim.attempts, claim.entry) == (2, 2, entry(2))
        assert await outbox.claim(APP, 3) == []
    async with life as outbox:
        # It was claimed and has no end: due still.
        assert [claim.index for claim in await outbox.claim(APP, 3)] == [2]
        life.clock.now += 30
        assert [claim.index for claim in await outbox.claim(APP, 3)] == [1]
        await outbox.settle([End(claim.batch, 2, "failed", life.clock(), attempts=3)])
        await outbox.settle([], [Retry(claim.batch, 1, life.clock() - 5, 4, life.clock())])
        (claim,) = [*await outbox.claim(APP, 3), *await trio_later(life, outbox)][:1]
        assert (claim.index, claim.attempts) == (1, 4)
        await outbox.settle(ends([claim]))
        assert outbox.waiting()[APP].count == 0
    async with life as outbox:
        life.clock.now += 1_000
        assert await outbox.claim(APP, 3) == []
        assert (await outbox.find_batch(claim.batch)).outcomes == {"accepted": 2, "failed": 1}


async def test_a_retry_read_in_the_very_millisecond_it_is_due_is_handed_out_once(life):
    async with life as outbox:
        await outbox.accept(APP, entries(2))
        one, two = await outbox.claim(APP, 2)
        now = life.clock.now
        await outbox.settle([], [Retry(one.batch, 0, now + 5, 1, now), Retry(two.batch, 1, now + 6, 1, now)])
        life.clock.now += 5
        assert [claim.index for claim in await outbox.claim(APP, 9)] == [0]
        life.clock.now += 1
        assert [claim.index for claim in await outbox.claim(APP, 9)] == [1]


async def trio_later(life, outbox):
    life.clock.now += 1
    return await outbox.claim(APP, 3)


async def test_what_must_not_be_sent_twice_ends_unknown_after_a_crash(life):
    async with life as outbox:
        acceptance = await outbox.accept(APP, entries(4, delivery="once"))
        claims = await outbox.claim(APP, 3)
        await outbox.settle(
            ends(claims[:1]), [Retry(claims[1].batch, 1, life.clock() + 5, 1, life.clock(), 503, "Shutdown")]
        )
        rows = await life.storage.read(lambda c: c.execute("SELECT place FROM sending").fetchall())
        assert rows == [(2,)]  # on disk before `claim` returned; gone with the end, and with the retry
    async with life as outbox:
        assert (await outbox.find(acceptance.apns_id(2))).outcome == "unknown"
        assert [claim.index for claim in await outbox.claim(APP, 9)] == [3]
        life.clock.now += 6
        assert [claim.index for claim in await outbox.claim(APP, 9)] == [1]
    async with life as outbox:
        assert await outbox.claim(APP, 9) == []
        assert outbox.waiting()[APP].count == 0
        assert (await outbox.find_batch(acceptance.batch)).outcomes == {"accepted": 1, "unknown": 3}


async def test_a_cancelled_claim_leaves_nothing_behind(life):
    async with life as outbox:
        await outbox.accept(APP, entries(3, delivery="once"))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.claim, APP, 3)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert tokens(await outbox.claim(APP, 3)) == [0, 1, 2]


async def test_settling_twice_is_settling_once(life):
    async with life as outbox:
        acceptance = await outbox.accept(APP, entries(3))
        claims = await outbox.claim(APP, 3)
        for _ in range(2):
            await outbox.settle(ends(claims[:2]))
        assert outbox.waiting()[APP].count == 1
        await outbox.settle(ends(claims))
        assert outbox.waiting()[APP].count == 0
        assert (await outbox.find_batch(acceptance.batch)).outcomes == {"accepted": 3}
        with pytest.raises(ValueError, match="of which nothing is claimed"):
            await outbox.settle([], [Retry(acceptance.batch, 0, 0.0, 1, 0.0)])


async def test_two_that_settle_the_rest_of_a_batch_at_once_finish_it(life):
    async with life as outbox:
        await outbox.accept(APP, entries(4))
        claims = await outbox.claim(APP, 4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.settle, ends(claims[:2]))
            nursery.start_soon(outbox.settle, ends(claims[2:]))
        await outbox.accept(APP, [entry(9)])
        await outbox.settle(ends(await outbox.claim(APP, 1)))
        rows = await life.storage.read(lambda c: c.execute("SELECT count(*) FROM waiting").fetchone())
        assert rows == (0,)


async def test_a_retry_that_is_due_does_not_hide_the_rest_of_its_batch(life):
    async with life as outbox:
        await outbox.accept(APP, entries(4))
        claims = await outbox.claim(APP, 2)
        await outbox.settle(ends(claims[:1]), [Retry(claims[1].batch, 1, life.clock() + 5, 1, life.clock())])
    life.clock.now += 6
    async with life as outbox:
        claims = await outbox.claim(APP, 9)
        assert [claim.index for claim in claims] == [1, 2, 3]
        assert outbox.waiting()[APP].count == 3
        await outbox.settle(ends(claims))
        assert outbox.waiting()[APP].count == 0
    async with life as outbox:
        assert outbox.waiting()[APP].count == 0


@pytest.mark.parametrize("lives", [60, pytest.param(3_000, marks=[pytest.mark.slow, pytest.mark.night])])
async def test_what_waits_is_counted_rightly_over_many_lives(life, lives, seed):
    """The count gates acceptance: were it to drift upward, nothing would be accepted for ever."""
    life.settings["limits"] = OutboxLimits(ready_entries=10, pending_after=60.0)
    waiting = {}  # batch and index to the due time, 0 for none
    for _ in range(lives):
        claimed = {}
        async with life as outbox:
            for _ in range(seed.randint(1, 12)):
                match seed.choice(
                    ["accept", "accept", "claim", "claim", "settle", "settle", "wait", "drain"]
                ):
                    case "accept":
                        count = seed.randint(1, 12)
                        taken = await outbox.accept(APP, entries(count), also=seed.choice([None, len_of]))
                        waiting |= {(taken.batch, index): 0.0 for index in range(count)}
                    case "claim":
                        for claim in await outbox.claim(APP, seed.randint(1, 15)):
                            assert (claim.batch, claim.index) not in claimed
                            assert waiting[claim.batch, claim.index] < life.clock.now + 0.001
                            claimed[claim.batch, claim.index] = claim
                    case "settle":
                        some = [claim for claim in claimed.values() if seed.random() < 0.7]
                        later = [claim for claim in some if seed.random() < 0.3]
                        due = life.clock.now + seed.randint(-2, 10)
                        await outbox.settle(
                            ends([claim for claim in some if claim not in later]),
                            [Retry(claim.batch, claim.index, due, 1, life.clock.now) for claim in later],
                        )
                        for claim in some:
                            del claimed[claim.batch, claim.index]
                            if claim in later:
                                # A due time in the past is as soon as may be.
                                waiting[claim.batch, claim.index] = due
                            else:
                                del waiting[claim.batch, claim.index]
                    case "wait":
                        life.clock.now += seed.uniform(0.0, 5.0)
                    case "drain":
                        life.clock.now += 0.005  # due times are milliseconds, and never the one just read
                        while claims := await outbox.claim(APP, 7):
                            claimed |= {(claim.batch, claim.index): claim for claim in claims}
                        assert outbox.waiting().get(APP, NOTHING).count == len(waiting)
                        ready = {name for name, due in waiting.items() if due < life.clock.now}
                        assert ready <= claimed.keys()
                assert outbox.waiting().get(APP, NOTHING).count >= len(waiting)
        life.clock.now += seed.uniform(0.0, 5.0)
    life.clock.now += 100
    async with life as outbox:
        while claims := await outbox.claim(APP, 50):
            await outbox.settle(ends(claims))
            for claim in claims:
                del waiting[claim.batch, claim.index]
        assert not waiting
        assert outbox.waiting()[APP].count == 0
    async with life as outbox:
        rows = await life.storage.read(lambda c: c.execute("SELECT count(*) FROM waiting").fetchone())
        assert (outbox.waiting()[APP].count, rows) == (0, (0,))


NOTHING = Waiting(0, 0, None, None, False)


def len_of(connection):
    return connection.total_changes


# Idempotency.


def named(key="k", body=b"body"):
    return Idempotency("ops", key, hashlib.sha256(body).digest())


async def test_a_repeated_request_is_accepted_once(life):
    async with life as outbox:
        first = await outbox.accept(APP, entries(3), idempotency=named())
        again = await outbox.accept(APP, entries(3), idempotency=named())
        assert (again.batch, again.count, again.repeated) == (first.batch, 3, True)
        assert again.apns_id(2) == first.apns_id(2)
        with pytest.raises(IdempotencyConflict):
            await outbox.accept(APP, entries(4), idempotency=named(body=b"other"))
        other = await outbox.accept(APP, entries(1), idempotency=Idempotency("dev", "k", b"x" * 32))
        assert not other.repeated
    async with life as outbox:
        written = []
        again = await outbox.accept(APP, entries(3), idempotency=named(), also=written.append)
        assert again.repeated
        assert not written
        assert len(await outbox.claim(APP, 100)) == 4


async def test_repetitions_at_once_are_one(life, seed):
    """D11: 5,000 requests, each sent 1 to 4 times, also over restarts."""
    requests = [number for number in range(5_000) for _ in range(seed.randint(1, 4))]
    seed.shuffle(requests)
    found = {}
    accepted = 0

    async def post(outbox, number):
        nonlocal accepted
        acceptance = await outbox.accept(APP, [entry(number)], idempotency=named(f"{number}", b"%d" % number))
        accepted += not acceptance.repeated
        assert found.setdefault(number, acceptance.apns_id(0)) == acceptance.apns_id(0)

    for part in range(3):
        async with life as outbox, trio.open_nursery() as nursery:
            for number in requests[part::3]:
                nursery.start_soon(post, outbox, number)
    assert accepted == len(found) == 5_000
    async with life as outbox:
        assert len(await outbox.claim(APP, 20_000)) == 5_000


async def test_an_own_apns_id_is_in_the_repeated_answer_too(life):
    own = b"o" * 16
    async with life as outbox:
        await outbox.accept(APP, [entry(1), entry(2, apns_id=own)], idempotency=named())
        again = await outbox.accept(APP, [entry(1), entry(2, apns_id=own)], idempotency=named())
        assert again.apns_id(1) == own


async def test_what_else_is_written_is_in_the_same_transaction(life):
    async with life as outbox:
        await life.storage.add_schema("alarms", [("CREATE TABLE alarm (name TEXT)",)])

        def also(connection):
            connection.execute("INSERT INTO alarm VALUES ('switch down')")

        def fails(connection):
            also(connection)
            raise LookupError

        await outbox.accept(APP, [entry(1)], also=also)
        with pytest.raises(LookupError):
            await outbox.accept(APP, [entry(2)], also=fails)
        assert tokens(await outbox.claim(APP, 5)) == [1]
        assert await life.storage.read(lambda c: c.execute("SELECT * FROM alarm").fetchall()) == [
            ("switch down",)
        ]


async def test_an_upload_goes_on_where_it_was_cut(life):
    async with life as outbox:
        stream = await outbox.open_stream(APP, idempotency=named())
        assert (stream.lines, stream.answer) == (0, None)
        await outbox.accept(APP, entries(3), chunk=Chunk(stream.stream, 0, 3, b"3"))
        await outbox.accept(APP, entries(2, 3), chunk=Chunk(stream.stream, 3, 6, b"6"))
        with pytest.raises(IdempotencyConflict):  # the repetition of a part that was stored
            await outbox.accept(APP, entries(2, 3), chunk=Chunk(stream.stream, 3, 6, b"6"))
    async with life as outbox:
        again = await outbox.open_stream(APP, idempotency=named())
        assert (again.stream, again.lines, again.running_hash, again.entries) == (stream.stream, 6, b"6", 5)
        await outbox.accept(APP, entries(1, 5), chunk=Chunk(again.stream, 6, 7, b"7"))
        await outbox.finish_stream(again.stream, b"answer")
        assert (await outbox.open_stream(APP, idempotency=named())).answer == b"answer"
        assert tokens(await outbox.claim(APP, 100)) == [0, 1, 2, 3, 4, 5]
        found = await outbox.find_batch(stream.stream)
        assert (found.kind, found.count, found.waiting, len(found.batches)) == ("stream", 6, 6, 3)
        assert (await outbox.open_stream(APP)).stream != stream.stream


# Memory and limits.


async def test_what_finds_no_room_in_memory_is_read_back_in_order(life):
    life.settings["limits"] = OutboxLimits(ready_entries=10, pending_after=60.0)
    async with life as outbox:
        for first in range(0, 5_000, 5):
            await outbox.accept(APP, entries(5, first))
            assert len(outbox._memory.batches) <= 4
        got = []
        for size in (3, 700, 1, 2_000, 5_000):
            claims = await outbox.claim(APP, size)
            got += tokens(claims)
            await outbox.settle(ends(claims[::2]))
            await outbox.settle(ends(claims[1::2]))
            # What comes meanwhile waits behind.
            await outbox.accept(APP, entries(1, 5_000 + size))
        assert got == [*range(5_000), 5_003, 5_700, 5_001, 7_000][: len(got)]
        assert len(got) == 5_004
        assert len(outbox._memory.batches) <= 1


async def test_too_much_is_refused_and_high_priority_last(life):
    life.settings["limits"] = OutboxLimits(waiting_entries=10, pending_after=60.0)
    async with life as outbox:
        await outbox.accept(APP, entries(9))
        with pytest.raises(OutboxBusy, match="9 notifications wait") as refused:
            await outbox.accept(APP, entries(1))
        assert refused.value.retry_after == 30.0
        await outbox.accept(APP, entries(1, high=True))
        with pytest.raises(OutboxBusy):
            await outbox.accept(APP, entries(1, high=True))
        await outbox.settle(ends(await outbox.claim(APP, 10)))
        await outbox.accept(APP, entries(1))


async def test_an_apps_own_limit_keeps_no_other_out(life):
    async with life as outbox:
        outbox.max_waiting[APP] = 10
        await outbox.accept(APP, entries(8))
        await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))
        with pytest.raises(OutboxBusy, match=r"9 notifications and fan-outs of com\.example\.app wait"):
            await outbox.accept(APP, entries(1))
        with pytest.raises(OutboxBusy):
            await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))
        await outbox.accept(APP, entries(1, high=True))
        with pytest.raises(OutboxBusy):
            await outbox.accept(APP, entries(1, high=True))
        await outbox.accept("com.example.other", entries(1))
        outbox.max_waiting[APP] = 20
        await outbox.accept(APP, entries(1))


@pytest.mark.parametrize("own", [True, False], ids=["the app's", "of all"])
@pytest.mark.parametrize("fanout", [False, True], ids=["batch", "fan-out"])
async def test_what_comes_at_once_is_limited_together(life, own, fanout):
    """Each is on its way to the disk while the next one is looked at."""
    if not own:
        life.settings["limits"] = OutboxLimits(**{"fanouts" if fanout else "waiting_entries": 10})
    async with life as outbox:
        if own:
            outbox.max_waiting[APP] = 10
        taken, refused = [], []

        async def accept():
            try:
                if fanout:
                    taken.append(await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}")))
                else:
                    taken.append(await outbox.accept(APP, entries(1)))
            except OutboxBusy as busy:
                refused.append(busy)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(accept)
        assert (len(taken), len(refused)) == (9, 21)
        await accept()
        assert (len(taken), len(refused)) == (9, 22)
        await outbox.purge(APP)
        await accept()
        assert (len(taken), len(refused)) == (10, 22)


async def test_as_many_retries_are_claimed_as_are_asked_for(life):
    """Those that were tried before come first, and never take the place of others beyond that."""
    async with life as outbox:
        await outbox.accept(APP, entries(4))
        claims = await outbox.claim(APP, 4)
        await outbox.settle(
            [], [Retry(one.batch, one.index, life.clock() + 1, 1, life.clock()) for one in claims]
        )
        await outbox.accept(APP, entries(4))
        life.clock.now += 2
        for retries, found in ((0, [0]), (1, [1, 0]), (2, [1, 1, 0]), (9, [1, 0])):
            claims = await outbox.claim(APP, len(found), high=False, retries=retries)
            assert [claim.attempts for claim in claims] == found
        assert await outbox.claim(APP, 9) == []


async def test_fan_outs_have_a_limit(life):
    life.settings["limits"] = OutboxLimits(fanouts=10, pending_after=60.0)
    async with life as outbox:
        for _ in range(9):
            await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))
        with pytest.raises(OutboxBusy, match="9 fan-outs wait"):
            await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))
        await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}", high=True))


@pytest.mark.parametrize("count", [0, MAX_BATCH_ENTRIES + 1])
async def test_a_batch_has_its_limits(life, count):
    async with life as outbox:
        with pytest.raises(ValueError, match=f"{count} entries"):
            await outbox.accept(APP, entries(count))


async def test_below_the_low_water_mark_nothing_is_accepted_and_outcomes_are_written(life):
    async with life as outbox:
        await outbox.accept(APP, entries(2))
        claims = await outbox.claim(APP, 2)
        life.storage._file.full = True
        with pytest.raises(StorageFull):
            await outbox.accept(APP, entries(2))
        await outbox.settle(ends(claims))
    async with life as outbox:
        assert await outbox.claim(APP, 2) == []


# Fan-outs.


async def test_a_fanout_is_walked_and_its_place_survives(life):
    async with life as outbox:
        audience = Audience(any_of=("noc",))
        template = Entry(None, b'{"aps":{}}', high=True)
        acceptance = await outbox.accept_fanout(APP, audience, template, idempotency=named())
        assert (await outbox.accept_fanout(APP, audience, template, idempotency=named())).repeated
        (fanout,) = await outbox.claim_fanouts(APP)
        assert (fanout.id, fanout.audience, fanout.entry, fanout.cursor) == (
            acceptance.batch, audience, template, "",
        )  # fmt: skip
        ids = {token: fanout.apns_id(token) for token in ("a", "b", "c", "d")}
        await outbox.settle_page(
            fanout.id,
            "c",
            accepted=1,
            ends=[End(fanout.id, -1, "rejected", life.clock(), 410, "Unregistered", 1, "b")],
            retries=[Retry(fanout.id, -1, life.clock() + 5, 1, life.clock(), 503, "Shutdown", "c")],
        )
    async with life as outbox:
        (fanout,) = await outbox.claim_fanouts(APP)
        assert (fanout.cursor, fanout.accepted, fanout.ended) == ("c", 1, 1)
        assert {token: fanout.apns_id(token) for token in ids} == ids
        await outbox.settle_page(fanout.id, "d", accepted=1, ends=[], retries=[], last=True)
        assert await outbox.claim_fanouts(APP) == []
        assert outbox.waiting()[APP].fanouts == 1  # one device is still to be sent to
        life.clock.now += 6
        (claim,) = await outbox.claim(APP, 5)
        assert (claim.index, claim.apns_id, claim.entry.device_token) == (-1, ids["c"], "c")
        await outbox.settle([End(fanout.id, -1, "accepted", life.clock(), 200, "", 2, "c")])
        assert outbox.waiting()[APP].fanouts == 0
        record = await outbox.find(ids["b"])
        assert (record.outcome, record.entry.device_token) == ("rejected", "b")
        assert [each.outcome for each in (await outbox.find(ids["c"])).attempts] == ["retry", "accepted"]
        assert await outbox.find(ids["a"]) is None  # accepted at once: counted only
        found = await outbox.find_batch(fanout.id)
        assert (found.count, found.waiting, found.outcomes) == (4, 0, {"accepted": 3, "rejected": 1})
    async with life as outbox:
        assert await outbox.claim_fanouts(APP) == []
        assert (await outbox.find_batch(fanout.id)).outcomes == {"accepted": 3, "rejected": 1}


async def test_a_page_that_must_not_be_sent_twice_is_unknown_after_a_crash(life):
    async with life as outbox:
        acceptance = await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}", delivery="once"))
        await outbox.begin_page(acceptance.batch, "m", 500)
        await outbox.settle_page(acceptance.batch, "m", accepted=500, ends=[], retries=[])
        await outbox.begin_page(acceptance.batch, "z", 300)
    async with life as outbox:
        (fanout,) = await outbox.claim_fanouts(APP)
        assert (fanout.cursor, fanout.accepted, fanout.ended) == ("z", 500, 300)
        assert (await outbox.find_batch(fanout.id)).outcomes == {"accepted": 500, "unknown": 300}


async def test_a_page_and_its_retries_recorded_twice_are_recorded_once(life):
    async with life as outbox:
        acceptance = await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))
        number = acceptance.batch
        rejected = End(number, -1, "rejected", life.clock(), 410, "Unregistered", 1, "b")
        parked = Retry(number, -1, life.clock() + 5, 1, life.clock(), 503, "Shutdown", "c")
        for _ in range(2):
            await outbox.settle_page(number, "d", accepted=2, ends=[rejected], retries=[parked])
        for _ in range(2):
            await outbox.settle_page(number, "e", accepted=1, ends=[], retries=[], last=True)
        assert outbox.waiting()[APP].fanouts == 1
        life.clock.now += 6
        (claim,) = await outbox.claim(APP, 5)
        again = Retry(number, -1, life.clock() + 5, 2, life.clock(), 503, "Shutdown", "c")
        for _ in range(2):
            await outbox.settle([], [again])
        life.clock.now += 6
        (claim,) = await outbox.claim(APP, 5)
        end = End(number, -1, "accepted", life.clock(), 200, "", 3, claim.entry.device_token)
        for _ in range(2):
            await outbox.settle([end])
        assert outbox.waiting()[APP].fanouts == 0
        found = await outbox.find_batch(number)
        assert (found.count, found.waiting, found.outcomes) == (5, 0, {"accepted": 4, "rejected": 1})
    async with life as outbox:
        assert await outbox.find_batch(number) == found
        life.clock.now += 60
        assert await outbox.claim(APP, 5) == []
        assert outbox.waiting()[APP].fanouts == 0


@pytest.mark.parametrize("stored", [False, True], ids=["not there", "there all the same"])
@pytest.mark.parametrize("repeated", [False, True], ids=["left", "repeated"])
@pytest.mark.parametrize("fanout", [False, True], ids=["batch", "fan-out"])
async def test_what_was_refused_as_unknown_is_sent_if_it_is_there(life, stored, repeated, fanout):
    """D7: a failed flush may leave what it reported as undone; see test_crash.py for real ones."""

    async def accept(outbox):
        if fanout:
            return await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"), idempotency=named())
        return await outbox.accept(APP, entries(2), idempotency=named())

    async def sent(outbox):
        fanouts = await outbox.claim_fanouts(APP)
        claims = await outbox.claim(APP, 9)
        return len(fanouts) if fanout else len(claims)

    async with life as outbox:
        await outbox.accept(APP, entries(1, 9))
        await outbox.settle(ends(await outbox.claim(APP, 1)))
        running, hold, rows = threading.Event(), threading.Event(), []

        async def refused():
            with pytest.raises(StorageUnknown):
                await accept(outbox)

        def fail(connection):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        async def failing():
            with pytest.raises(StorageUnknown):
                await life.storage.write(fail, essential=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.storage.write, lambda connection: running.set() or (hold.wait() and None))
            await trio.to_thread.run_sync(running.wait)
            nursery.start_soon(refused)
            await trio.testing.wait_all_tasks_blocked()
            rows += life.storage._pending[-1].rows
            nursery.start_soon(failing)
            await trio.testing.wait_all_tasks_blocked()
            hold.set()
        if stored:
            await life.storage.insert(rows)
        if repeated:
            assert (await accept(outbox)).repeated is stored
        await outbox.take_up_doubtful()  # as each second
        count = 1 if fanout else 2
        assert await sent(outbox) == (count if stored or repeated else 0)
        assert outbox.waiting()[APP].count == (count if (stored or repeated) and not fanout else 0)


# Commands.


async def test_a_paused_app_hands_nothing_out_also_after_a_restart(life):
    async with life as outbox:
        await outbox.pause(APP)
        await outbox.accept(APP, entries(1))
        assert await outbox.claim(APP, 1) == []
    async with life as outbox:
        assert outbox.waiting()[APP].paused
        assert await outbox.claim(APP, 1) == []
        await outbox.resume(APP)
        assert tokens(await outbox.claim(APP, 1)) == [0]


async def test_a_purge_ends_all_that_waits(life):
    life.settings["limits"] = OutboxLimits(ready_entries=10, pending_after=60.0)
    async with life as outbox:
        first = await outbox.accept(APP, entries(4))
        for number in range(30):
            await outbox.accept(APP, entries(2, 10 + number))
        other = await outbox.accept("com.example.other", entries(1))
        await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))
        claims = await outbox.claim(APP, 2)
        await outbox.settle([], [Retry(first.batch, 1, life.clock() + 5, 1, life.clock())])
        assert await outbox.purge(APP) == 64
        assert outbox.waiting()[APP].count == outbox.waiting()[APP].fanouts == 0
        assert await outbox.claim(APP, 100) == []
        await outbox.settle(ends(claims[:1]))  # was in flight
        assert outbox.waiting()[APP].count == 0
        assert (await outbox.find_batch(first.batch)).outcomes == {"accepted": 1, "failed": 3}
        assert (await outbox.find(first.apns_id(3))).attempts[0].reason == "Purged"
        await outbox.accept(APP, entries(1, 99))
        assert tokens(await outbox.claim(APP, 9)) == [99]
    async with life as outbox:
        life.clock.now += 60
        assert tokens(await outbox.claim(APP, 9)) == [99]
        assert tokens(await outbox.claim("com.example.other", 9)) == [0]
        assert (await outbox.find_batch(other.batch)).waiting == 1


async def test_a_purge_beside_everything_else_ends_all_once(life, seed):
    """What was accepted before it ends as purged or by its own end; what comes after it is sent."""
    life.settings["limits"] = OutboxLimits(ready_entries=30, pending_after=60.0)
    accepted, ended = set(), set()
    async with life as outbox, trio.open_nursery() as nursery:

        async def accept(task):
            for turn in range(60):
                size = seed.randint(1, 9)
                taken = await outbox.accept(
                    APP, entries(size, high=seed.random() < 0.2), also=seed.choice([None, len_of])
                )
                accepted.update((taken.batch, index) for index in range(size))
                if turn % 7 == task:
                    await trio.lowlevel.checkpoint()

        async def send():
            while True:
                claims = await outbox.claim(APP, seed.randint(1, 20))
                if not claims:
                    await trio.sleep(0.001)
                kept = [claim for claim in claims if seed.random() < 0.8]
                later = [claim for claim in kept if seed.random() < 0.2]
                due = life.clock.now + seed.randint(0, 2)
                now = [claim for claim in kept if claim not in later]
                await outbox.settle(
                    ends(now), [Retry(claim.batch, claim.index, due, 1, life.clock.now) for claim in later]
                )
                for claim in now:
                    assert (claim.batch, claim.index) not in ended
                    ended.add((claim.batch, claim.index))
                life.clock.now += 0.1

        async def purge():
            for _ in range(6):
                await trio.sleep(0.02)
                assert await outbox.purge(APP) >= 0
                assert outbox.waiting()[APP].count >= 0

        async with trio.open_nursery() as working:
            for task in range(4):
                working.start_soon(accept, task)
            working.start_soon(purge)
            for _ in range(2):
                nursery.start_soon(send)
        nursery.cancel_scope.cancel()
    async with life as outbox:
        life.clock.now += 100
        left = set()
        while claims := await outbox.claim(APP, 50):
            left |= {(claim.batch, claim.index) for claim in claims}
        assert not left & ended
        assert outbox.waiting()[APP].count == len(left)
        total = {"accepted": 0, "failed": 0}
        for batch in {batch for batch, _ in accepted}:
            for outcome, count in (await outbox.find_batch(batch)).outcomes.items():
                total[outcome] += count
        assert total["accepted"] >= len(ended)  # a settle that was cancelled may be on disk
        assert total["accepted"] + total["failed"] + len(left) == len(accepted)
        assert total["failed"]
        assert await outbox.purge(APP) == len(left)
        assert outbox.waiting()[APP].count == 0
        rows = await life.storage.read(
            lambda c: c.execute("SELECT (SELECT count(*) FROM waiting) + count(*) FROM retry").fetchone()
        )
        assert rows == (0,)


async def test_waiting_for_work_misses_nothing(life):
    async with life as outbox:
        seen = await outbox.wait_for_work()
        assert await outbox.claim(APP, 1) == []
        await outbox.accept(APP, entries(1))
        seen = await outbox.wait_for_work(seen)
        (claim,) = await outbox.claim(APP, 1)
        await outbox.settle([], [Retry(claim.batch, 0, life.clock() + 20, 1, life.clock())])
        seen = await outbox.wait_for_work(seen)


async def test_a_retry_claimed_in_the_millisecond_of_its_due_time_is_not_claimed_again(life):
    async with life as outbox:
        await outbox.accept(APP, entries(2))
        first, second = await outbox.claim(APP, 2)
        due = life.clock() + 1
        await outbox.settle(
            [],
            [
                Retry(first.batch, first.index, due, 1, life.clock()),
                Retry(second.batch, second.index, due + 1, 1, life.clock()),
            ],
        )
        life.clock.now = due
        assert tokens(await outbox.claim(APP, 5)) == [0]
        life.clock.now = due + 1
        assert tokens(await outbox.claim(APP, 5)) == [1]


# Files of before, and a million.


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS)))
async def test_a_file_of_each_earlier_version_is_brought_up_and_nothing_is_lost(life, version):
    """D15; test_storage.py kills the process in the middle."""
    now = life.clock.now
    add_fanout = (
        "INSERT INTO fanout (id, lane, received_at, source, tag, audience, head)"
        " VALUES (?, 3, ?, '', 7, ?, ?)"
    )
    async with open_storage(life.path, ROOMY) as storage:
        await storage.add_schema("outbox", schema.MIGRATIONS[:version])

        def fill(connection):
            head, payloads = pack_entries(entries(3))
            walked, bodies = pack_entries([Entry(None, b"{}")])
            batch, fanout = int(now * 1_000) << 20, int(now * 1_000 + 1) << 20
            log = LogWriter(now)
            log.end(End(batch, 0, "failed", now, 503, "ServiceUnavailable", 3))
            for statement, values in [
                ("INSERT INTO app VALUES (1, ?, 0)", (APP,)),
                ("INSERT INTO batch VALUES (?, 3, 3, ?, 'key ops', 7, 0, ?)", (batch, now, head)),
                ("INSERT INTO body VALUES (?, 0, ?)", (batch, payloads)),
                ("INSERT INTO waiting VALUES (3, ?, 3)", (batch,)),
                ("INSERT INTO outcome VALUES (?, 1, 1, ?)", (batch, log.packed())),
                (add_fanout, (fanout, now, msgspec.msgpack.encode(Audience()), walked)),
                ("INSERT INTO body VALUES (?, 0, ?)", (fanout, bodies)),
                ("INSERT INTO walk (id, lane, cursor, accepted) VALUES (?, 3, 'b', 2)", (fanout,)),
            ]:
                connection.execute(statement, values)

        await storage.write(fill)
    async with life as outbox:
        assert tokens(await outbox.claim(APP, 9)) == [1, 2]
        (fanout,) = await outbox.claim_fanouts(APP)
        assert (fanout.cursor, fanout.accepted) == ("b", 2)
        await outbox.settle_page(fanout.id, "c", accepted=1, ends=[], retries=[], last=True)
        assert (await outbox.find_batch(fanout.id)).outcomes == {"accepted": 3}
        life.clock.now += 60
        await outbox._fill_index()
        (hit,) = (await outbox.search(outcome="failed")).rows
        assert (hit.index, hit.reason) == (0, "ServiceUnavailable")


@pytest.mark.slow
async def test_a_million_are_handed_out_once_each(life):
    """D18, without a network: accepted, claimed by two and settled, a tenth of them retried once."""
    life.settings["clock"] = time.time
    total, size = 1_000_000, 1_000
    seen = bytearray(total)
    async with life as outbox:
        accepting = True

        async def accept(first):
            nonlocal accepting
            for number in range(first, total // size, 4):
                await outbox.accept(APP, entries(size, number * size))
                while outbox.waiting()[APP].count > 100_000:  # noqa: ASYNC110 (it is not told when less waits)
                    await trio.sleep(0.01)

        async def send():
            version = 0
            while True:
                claims = await outbox.claim(APP, 1_000)
                if not claims:
                    if not accepting and not outbox.waiting()[APP].count:
                        return
                    with trio.move_on_after(0.1):
                        version = await outbox.wait_for_work(version)
                    continue
                now, later = time.time(), []
                for claim in claims:
                    number = int(claim.entry.device_token, 16)
                    if number % 10 == 3 and claim.attempts == 0:
                        later.append(Retry(claim.batch, claim.index, now + 0.05, 1, now, 503))
                    else:
                        seen[number] += 1
                done = [
                    claim for claim in claims if claim.attempts or int(claim.entry.device_token, 16) % 10 != 3
                ]
                await outbox.settle(ends(done, at=now), later)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(send)
            async with trio.open_nursery() as accepters:
                for first in range(4):
                    accepters.start_soon(accept, first)
            accepting = False
    assert seen.count(1) == total, f"{seen.count(0)} lost, {total - seen.count(0) - seen.count(1)} twice"


# What is kept.


async def test_old_bodies_and_histories_are_dropped_and_nothing_that_waits(life):
    life.settings["keep"] = Keep(bodies_after=100, failed_bodies_after=1_000, history_after=5_000)
    async with life as outbox:
        done = await outbox.accept(APP, entries(2), idempotency=named())
        mixed = await outbox.accept(APP, [entry(5), entry(6, apns_id=b"m" * 16)])
        waiting = await outbox.accept(APP, entries(1, 9))
        claims = await outbox.claim(APP, 4)
        await outbox.settle(ends(claims[:3]) + ends(claims[3:], "failed", status=503))
        await outbox._keeper.index()

        async def payloads(acceptance):
            found = [await outbox.find(acceptance.apns_id(index)) for index in range(acceptance.count)]
            return [record and bool(record.entry.payload) for record in found]

        await outbox._keeper.trim()
        assert await payloads(done) == [True, True]
        life.clock.now += 101
        await outbox._keeper.trim()
        assert await payloads(done) == [False, False]
        assert await payloads(mixed) == [False, True]
        assert await payloads(waiting) == [True]
        assert (await outbox.find(b"m" * 16)).entry.payload == entry(6).payload
        life.clock.now += 1_000
        await outbox._keeper.trim()
        assert await payloads(mixed) == [False, False]
        life.clock.now += 5_000
        await outbox._keeper.trim()
        assert await payloads(done) == [None, None]
        assert await payloads(mixed) == [None, None]
        assert await payloads(waiting) == [True]
        for _ in range(256):
            await outbox._keeper.forget_names()
        assert (await outbox.accept(APP, entries(2), idempotency=named())).repeated  # 24 hours
        life.clock.now += 86_400
        for _ in range(256):
            await outbox._keeper.forget_names()
        assert not (await outbox.accept(APP, entries(2), idempotency=named())).repeated
    async with life as outbox:
        assert tokens(await outbox.claim(APP, 9)) == [9, 0, 1]


async def test_history_is_bounded_by_size_oldest_first(life):
    life.settings["keep"] = Keep(history_octets=2 << 20)
    async with life as outbox:
        first = await outbox.accept(APP, [entry(1)])
        for number in range(20):
            await outbox.accept(APP, [Entry(f"{number:064x}", bytes([n]) * 4_000) for n in range(100)])
        while claims := await outbox.claim(APP, 1_000):
            await outbox.settle(ends(claims))
            life.clock.now += 1
        kept = await outbox.accept(APP, [entry(2)])
        before = (await life.storage.read(lambda c: c.execute("PRAGMA page_count").fetchone()))[0]
        await outbox._keeper.trim()
        after = (await life.storage.read(lambda c: c.execute("PRAGMA page_count").fetchone()))[0]
        assert after < before / 2
        assert await outbox.find(first.apns_id(0)) is None
        assert await outbox.find(kept.apns_id(0)) is not None
        assert tokens(await outbox.claim(APP, 9)) == [2]


async def test_its_house_is_kept_while_it_runs(life):
    async with life as outbox, trio.open_nursery() as nursery:
        acceptance = await outbox.accept(APP, [entry(1, apns_id=b"i" * 16)])
        assert acceptance.apns_id(0) == b"i" * 16
        await nursery.start(outbox.run)
        with trio.fail_after(5):
            while (  # noqa: ASYNC110 (the disk tells nobody)
                await life.storage.read(lambda c: c.execute("SELECT count(*) FROM search").fetchone())
            ) == (0,):
                await trio.sleep(0.01)
        assert outbox.waiting()[APP].oldest_at == pytest.approx(life.clock(), abs=0.01)
        nursery.cancel_scope.cancel()
