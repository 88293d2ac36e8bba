"""Searching what was accepted: found by each of its marks, newest first, in the index yet or not."""

import itertools
from contextlib import suppress

import pytest
import trio
import trio.testing

from fastpush.gateway.outbox import Audience, End, Entry, OutboxBusy, Retry, index, search, sqlite
from fastpush.gateway.outbox.sqlite import Keep
from fastpush.gateway.storage import StorageFull
from tests.gateway.test_outbox import APP, Life, ends, entries, entry

OTHER = "com.example.other"


@pytest.fixture
def life(tmp_path):
    return Life(tmp_path / "gateway.db")


async def all_of(outbox, limit=3, **query):
    """All pages of a search, each of at most `limit`."""
    found, cursor = [], None
    while True:
        page = await outbox.search(cursor=cursor, limit=limit, **query)
        assert len(page.rows) <= limit
        found += page.rows
        cursor = page.cursor
        if cursor is None:
            return found
        assert len(page.rows) == limit


async def later(life, outbox):
    """As much later as it takes to be indexed."""
    life.clock.now += 60
    await outbox._fill_index()


async def fill(life, outbox):
    """Three batches a minute apart, of which some ended, some failed, some wait; and their ids."""
    batches = []
    for number, (app, source) in enumerate([(APP, "key ops"), (OTHER, "key ops"), (APP, "opmanager")]):
        batches.append((await outbox.accept(app, entries(4, 16 * number), source=source)).batch)
        life.clock.now += 60
    claims = await outbox.claim(APP, 8) + await outbox.claim(OTHER, 8)
    by = {(claim.batch, claim.index): claim for claim in claims}
    await outbox.settle(
        ends([by[batches[0], 0], by[batches[1], 0]])
        + ends([by[batches[0], 1]], "failed", status=503, reason="ServiceUnavailable")
        + ends([by[batches[2], 1]], "failed", status=500, reason="InternalServerError")
        + ends([by[batches[1], 2]], "rejected", status=410, reason="Unregistered"),
        [Retry(batches[2], 2, life.clock() + 600, 1, life.clock(), 503, "Shutdown")],
    )
    return batches


@pytest.mark.parametrize("indexed", ["not indexed", "indexed before its ends", "indexed", "indexed in parts"])
async def test_it_is_found_by_each_of_its_marks(life, indexed):
    async with life as outbox:
        if indexed == "indexed before its ends":
            settle, held = outbox.settle, []

            async def hold(*arguments):
                held.append(arguments)

            outbox.settle = hold
            a, b, c = await fill(life, outbox)
            outbox.settle = settle
            await later(life, outbox)
            assert len(await all_of(outbox, outcome="waiting")) == 12
            await settle(*held[0])
            await outbox._fill_index()
        else:
            a, b, c = await fill(life, outbox)
            if indexed == "indexed in parts":
                life.clock.now -= 60  # the last batch is too new
                await outbox._fill_index()
            elif indexed == "indexed":
                await later(life, outbox)
        where = lambda found: [(hit.batch, hit.index) for hit in found]  # noqa: E731
        everything = [(batch, index) for batch in (c, b, a) for index in (3, 2, 1, 0)]
        assert where(await all_of(outbox)) == everything
        assert where(await all_of(outbox, limit=100)) == everything
        assert where(await all_of(outbox, app=OTHER)) == everything[4:8]
        assert where(await all_of(outbox, source="opmanager")) == everything[:4]
        assert where(await all_of(outbox, source="nobody")) == []
        assert where(await all_of(outbox, outcome="failed")) == [(c, 1), (a, 1)]
        assert where(await all_of(outbox, outcome="failed", app=OTHER)) == []
        assert where(await all_of(outbox, outcome="accepted")) == [(b, 0), (a, 0)]
        assert where(await all_of(outbox, reason="Unregistered")) == [(b, 2)]
        assert len(await all_of(outbox, outcome="waiting")) == 7
        assert where(await all_of(outbox, device_ends="0022")) == [(c, 2)]
        assert where(await all_of(outbox, device_ends="2")) == [(c, 2), (b, 2), (a, 2)]
        assert where(await all_of(outbox, device_ends=f"{0x12:064x}")) == [(b, 2)]
        assert where(await all_of(outbox, device_ends=f"1{0x12:063x}")) == []
        started = 1_800_000_000
        assert where(await all_of(outbox, after=started + 30)) == everything[:8]
        assert where(await all_of(outbox, after=started + 30, before=started + 90)) == everything[4:8]
        (hit,) = await all_of(outbox, reason="InternalServerError")
        assert (hit.app, hit.status, hit.outcome, hit.received_at) == (APP, 500, "failed", started + 120)
        assert (await outbox.find(hit.apns_id)).attempts[0].reason == "InternalServerError"
        text = hit.apns_id.hex()
        for prefix in (text, f"{text[:8]}-{text[8:12]}-{text[12:16]}", text[:24], text[:12].upper()):
            assert (c, 1) in where(await all_of(outbox, apns_id_prefix=prefix))
        assert where(await all_of(outbox, apns_id_prefix=text[:24])) == [(c, 1)]
        assert where(await all_of(outbox, apns_id_prefix="no hex")) == []
        counts = [(one.app, one.reason, one.count) for one in await outbox.failures()]
        assert counts == [(APP, "InternalServerError", 1), (APP, "ServiceUnavailable", 1)]
        assert await outbox.failures(OTHER) == []


async def test_the_index_goes_on_after_a_restart_and_catches_up_with_ends(life):
    async with life as outbox:
        _, b, _ = await fill(life, outbox)
        await later(life, outbox)
        claims = await outbox.claim(APP, 9)
        life.outbox._indexer._touched.clear()  # the process died before it looked
    async with life as outbox:
        claims = await outbox.claim(OTHER, 9)
        await outbox.settle(ends(claims, "expired"))
        new = (await outbox.accept(APP, entries(1))).batch
        await later(life, outbox)
        assert [hit.batch for hit in await all_of(outbox, outcome="expired")] == [b, b]
        assert (await all_of(outbox))[0].batch == new
        assert len(await all_of(outbox)) == 13
        await outbox._fill_index()
        assert len(await all_of(outbox)) == 13


@pytest.mark.parametrize(
    ("known", "refused"), [*((True, place) for place in range(4)), *((False, place) for place in range(2))]
)
async def test_what_the_disk_refused_comes_into_the_index_later(life, monkeypatch, known, refused):
    monkeypatch.setattr(index, "SEGMENT", 2)
    async with life as outbox:
        storage, tries = life.storage, itertools.count()
        write = storage.write

        async def written(change, **how):
            if next(tries) == refused:
                raise StorageFull("the disk is full")
            return await write(change, **how)

        async def fill_index():
            monkeypatch.setattr(storage, "write", written)
            with suppress(StorageFull):
                await outbox._fill_index()
            monkeypatch.setattr(storage, "write", write)

        batches = [(await outbox.accept(APP, entries(1, n))).batch for n in range(5)]
        fanout = (await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))).batch
        await outbox.claim_fanouts(APP)
        token = f"{7:064x}"
        failed = End(fanout, -1, "failed", life.clock(), 503, "ServiceUnavailable", 3, token)
        claims = await outbox.claim(APP, 9)
        if known:  # to the index, without its ends
            await later(life, outbox)
        await outbox.settle_page(fanout, token, accepted=0, ends=[failed], retries=[], last=True)
        await outbox.settle(ends(claims))
        life.clock.now += 60
        await fill_index()
        assert next(tries) > refused, "the disk was full for a moment"
        await outbox._fill_index()
        assert await all_of(outbox, outcome="waiting") == []
        assert {hit.batch for hit in await all_of(outbox, outcome="accepted")} == {*batches, fanout}
        assert [hit.device_token for hit in await all_of(outbox, outcome="failed")] == [token]


async def test_an_own_apns_id_is_found_by_its_beginning(life):
    own = bytes.fromhex("feedc0de" + "00" * 12)
    async with life as outbox:
        await outbox.accept(APP, [entry(1), entry(2, apns_id=own)])
        await outbox._keeper.index()
        assert [hit.apns_id for hit in await all_of(outbox, apns_id_prefix="FEEDC0DE-0000")] == [own]


async def test_of_a_fan_out_itself_and_what_was_not_accepted_are_found(life):
    async with life as outbox:
        number = (await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"), source="alarm")).batch
        (fanout,) = await outbox.claim_fanouts(APP)
        tokens = [f"{n:064x}" for n in range(10)]
        await later(life, outbox)
        (hit,) = await all_of(outbox)
        assert (hit.batch, hit.index, hit.outcome, hit.source) == (number, -1, None, "alarm")
        failed = [
            End(number, -1, "failed", life.clock(), 503, "ServiceUnavailable", 3, token)
            for token in tokens[:5]
        ]
        retry = Retry(number, -1, life.clock() + 5, 1, life.clock(), 503, "Shutdown", tokens[7])
        await outbox.settle_page(number, tokens[7], accepted=2, ends=failed, retries=[retry])
        await outbox.settle_page(number, tokens[9], accepted=2, ends=[], retries=[], last=True)
        await outbox._fill_index()
        assert len(await all_of(outbox, outcome="failed")) == 5
        life.clock.now += 10
        (claim,) = await outbox.claim(APP, 9)
        at = life.clock()
        await outbox.settle([End(number, -1, "rejected", at, 410, "Unregistered", 2, tokens[7])])
        for _ in range(2):
            await later(life, outbox)
            found = await all_of(outbox)
            assert [hit.device_token for hit in found] == [tokens[7], *reversed(tokens[:5]), None]
            assert found[-1].outcome == "accepted"
            assert found[0].apns_id == claim.apns_id
            (hit,) = await all_of(outbox, device_ends=tokens[7][-6:])
            assert (hit.outcome, hit.reason, hit.ended_at) == ("rejected", "Unregistered", at)
            (hit,) = await all_of(outbox, apns_id_prefix=claim.apns_id.hex()[:30])
            assert hit.device_token == tokens[7]
            assert [(one.reason, one.count) for one in await outbox.failures()] == [("ServiceUnavailable", 5)]
    async with life as outbox:
        await outbox._fill_index()
        assert len(await all_of(outbox)) == 7
        done = await outbox.send_again(reason="ServiceUnavailable")
        assert (done.count, done.gone) == (5, 0)
        claims = await outbox.claim(APP, 9)
        assert sorted(claim.entry.device_token for claim in claims) == tokens[:5]
        assert (await outbox.find(claims[0].apns_id)).again_of in {fanout.apns_id(token) for token in tokens}


async def test_dead_letters_are_sent_again_once_and_linked(life):
    async with life as outbox:
        await fill(life, outbox)
        await later(life, outbox)
        (hit,) = await all_of(outbox, reason="ServiceUnavailable")
        done = await outbox.send_again(apns_id=hit.apns_id)
        assert (done.count, done.gone, len(done.batches)) == (1, 0, 1)
        (new,) = await outbox.claim(APP, 9)
        assert (new.batch, new.entry) == (done.batches[0], entry(1))
        assert new.apns_id != hit.apns_id
        assert (await outbox.find(hit.apns_id)).sent_again == new.apns_id
        assert (await outbox.find(new.apns_id)).again_of == hit.apns_id
        assert (await all_of(outbox, reason="ServiceUnavailable"))[0].sent_again == new.apns_id
        with pytest.raises(LookupError, match="sent again already"):
            await outbox.send_again(apns_id=hit.apns_id)
        (hit,) = await all_of(outbox, device_ends="0000000000")
        with pytest.raises(LookupError, match="accepted by APNs"):
            await outbox.send_again(apns_id=hit.apns_id)
        with pytest.raises(LookupError, match="no such"):
            await outbox.send_again(apns_id=bytes(16))
        assert (await outbox.send_again(app=APP)).count == 1  # the other one
        assert (await outbox.send_again(app=APP)).count == 0
        (new,) = await outbox.claim(APP, 9)
        assert new.entry == entry(33)
        assert (await outbox.find(new.apns_id)).source == "opmanager"


async def test_what_of_a_reason_was_sent_again_is_told_whatever_came_between(life, monkeypatch):
    monkeypatch.setattr(sqlite, "AGAIN_AT_ONCE", 2)
    async with life as outbox:
        for source in ("a", "b", "a"):
            await outbox.accept(APP, entries(2), source=source)
        await outbox.settle(ends(await outbox.claim(APP, 9), "failed", reason="Shutdown"))
        await later(life, outbox)
        last = (await all_of(outbox, outcome="failed"))[-1]
        search, pages = outbox.search, itertools.count()

        async def raced(**query):
            page = await search(**query)
            if next(pages) == 2:  # another operator, after the page was read
                await outbox.send_again(apns_id=last.apns_id)
            return page

        outbox.search = raced
        done = await outbox.send_again(app=APP, reason="Shutdown")
        outbox.search = search
        assert (done.count, done.meanwhile, done.gone, done.stopped) == (5, 1, 0, "")
        claims = await outbox.claim(APP, 9)
        assert len(claims) == 6, "each once"
        assert all(hit.sent_again for hit in await all_of(outbox, reason="Shutdown"))

        await outbox.settle(ends(claims, "failed", reason="Again"))
        await later(life, outbox)
        accept, tries = outbox._accept, itertools.count()

        async def busy(*arguments, **fields):
            if next(tries) == full_at:
                raise OutboxBusy("9 notifications wait to be sent", 1.0)
            return await accept(*arguments, **fields)

        outbox._accept = busy
        full_at = 0
        with pytest.raises(OutboxBusy):
            await outbox.send_again(app=APP, reason="Again")
        full_at = 3
        done = await outbox.send_again(app=APP, reason="Again")
        assert 0 < done.count < 6
        assert done.stopped == "9 notifications wait to be sent"
        assert len(await outbox.claim(APP, 9)) == done.count
        assert (await outbox.send_again(app=APP, reason="Again")).count == 6 - done.count


async def test_an_expiration_is_renewed_and_what_has_no_payload_is_counted(life):
    life.settings["keep"] = Keep(bodies_after=100, failed_bodies_after=1_000)
    async with life as outbox:
        await outbox.accept(APP, entries(2, expiration=int(life.clock()) + 60) + entries(1, 2))
        await outbox.settle(ends(await outbox.claim(APP, 9), "failed", reason="Shutdown"))
        await later(life, outbox)
        await outbox.send_again(app=APP, reason="Shutdown", expires_after=3_600)
        first, second, third = await outbox.claim(APP, 9)
        assert first.entry.expiration == second.entry.expiration == int(life.clock()) + 3_600
        assert third.entry.expiration == 0
        await outbox.settle(ends([first, second, third], "failed", reason="Again"))
        life.clock.now += 2_000
        await outbox._keeper.trim()
        await outbox._fill_index()
        done = await outbox.send_again(app=APP, reason="Again")
        assert (done.count, done.gone) == (0, 3)


async def test_what_was_dropped_is_not_found_and_its_segments_go(life):
    life.settings["keep"] = Keep(history_after=1_000)
    async with life as outbox:
        for _ in range(3):
            await outbox.accept(APP, entries(600))
            await outbox.settle(ends(await outbox.claim(APP, 600)))
            await later(life, outbox)
        assert len(await all_of(outbox, limit=700)) == 1_800
        life.clock.now += 2_000
        kept = (await outbox.accept(APP, entries(1))).batch
        await outbox._keeper.trim()
        await outbox._fill_index()
        assert [hit.batch for hit in await all_of(outbox)] == [kept]
        rows = await life.storage.read(lambda c: c.execute("SELECT count(*) FROM segment").fetchone())
        assert rows == (0,)


async def test_a_random_history_is_found_as_it_was(life, seed):
    """Each kind of search against a list, page by page, while it is indexed in between."""
    model = {}
    apps, sources = ("a", "b", "c"), ("x", "y")
    reasons = ["", "Unregistered", "Shutdown"]
    async with life as outbox:
        for _ in range(40):
            app, source = seed.choice(apps), seed.choice(sources)
            size = seed.choice([1, 1, 3, 200])
            tokens = [f"{seed.getrandbits(16):064x}" for _ in range(size)]
            taken = await outbox.accept(app, [Entry(token, b"{}") for token in tokens], source=source)
            for index, token in enumerate(tokens):
                model[taken.batch, index] = [app, source, token, "waiting", ""]
            life.clock.now += seed.uniform(0, 20)
            some = []
            for claim in await outbox.claim(seed.choice(apps), 250):
                outcome = seed.choice(["accepted", "accepted", "accepted", "rejected", "failed"])
                reason = "" if outcome == "accepted" else seed.choice(reasons)
                some += ends([claim], outcome, reason=reason)
                model[claim.batch, claim.index][3:] = [outcome, reason]
            await outbox.settle(some)
            if seed.random() < 0.4:
                await outbox._fill_index()
            if seed.random() < 0.3:
                await outbox._fill_index()
                wanted = {
                    name: seed.choice(values)
                    for name, values in {
                        "app": apps, "source": sources, "outcome": ("accepted", "failed", "waiting"),
                        "reason": reasons, "device_ends": ("7", "a3"),
                    }.items() if seed.random() < 0.4
                }  # fmt: skip
                order = ("app", "source", "device_ends", "outcome", "reason")
                expected = [
                    name
                    for name, told in sorted(model.items(), reverse=True)
                    if all(
                        told[place].endswith(wanted[field])
                        if field == "device_ends"
                        else told[place] == wanted[field]
                        for place, field in enumerate(order)
                        if field in wanted
                    )
                ]
                found = await all_of(outbox, limit=seed.choice([7, 100]), **wanted)
                assert [(hit.batch, hit.index) for hit in found] == expected


async def test_the_index_is_filled_while_it_runs(life):
    async with life as outbox, trio.open_nursery() as nursery:
        accepted = await outbox.accept(APP, entries(3))
        life.clock.now += 60
        await nursery.start(outbox.run)
        with trio.fail_after(5):
            await outbox.wait_for_index(accepted.batch)
        assert len(await all_of(outbox)) == 3
        nursery.cancel_scope.cancel()


async def test_who_waits_for_the_index_waits_for_ends_too(life):
    async with life as outbox, trio.open_nursery() as nursery:
        done = trio.Event()

        async def wait(batch):
            await outbox.wait_for_index(batch)
            done.set()

        async def fill():
            await outbox._fill_index()
            await trio.testing.wait_all_tasks_blocked()

        accepted = await outbox.accept(APP, entries(3))
        nursery.start_soon(wait, accepted.batch)
        await fill()
        assert not done.is_set(), "it was accepted just now: searches look at it itself"
        life.clock.now += 60
        claims = await outbox.claim(APP, 3)
        fill_once = outbox._indexer._fill

        async def settled_meanwhile(now):
            await fill_once(now)
            await outbox.settle(ends(claims))

        outbox._indexer._fill = settled_meanwhile
        await fill()
        assert outbox._indexer.indexed >= accepted.batch
        assert not done.is_set(), "its ends are not in the index"
        outbox._indexer._fill = fill_once
        await fill()
        assert done.is_set()


async def test_a_fan_out_before_the_oldest_batch_is_found_before_it_is_indexed(life, monkeypatch):
    async with life as outbox:
        fanout = (await outbox.accept_fanout(APP, Audience(), Entry(None, b"{}"))).batch
        batches = [(await outbox.accept(APP, entries(2))).batch for _ in range(3)]
        found = [hit.batch for hit in await all_of(outbox)]
        assert found == [batch for batch in reversed(batches) for _ in range(2)] + [fanout]
        for tail, seen in ((2, batches[2:]), (3, batches[1:]), (4, batches[1:]), (6, [fanout, *batches])):
            monkeypatch.setattr(search, "TAIL", tail)
            assert sorted({hit.batch for hit in (await outbox.search()).rows}) == seen, tail
