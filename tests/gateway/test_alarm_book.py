"""The alarms on disk: row, verdict and push are one, also after a restart, a full disk and a kill."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from fastpush.gateway.alarm_book import AlarmLimits, Alarms, open_alarms
from fastpush.gateway.outbox.sqlite import OutboxLimits, SqliteOutbox, open_outbox
from fastpush.gateway.routes import Route, Routes
from fastpush.gateway.sources import Event, alarm_digest
from fastpush.gateway.storage import Job, Limits, Storage, StorageFull, open_storage

APP = "com.example.opmanager"
ROUTES = Routes(
    [
        Route(name="network", tags=("net",), category=("Switch", "Router")),
        Route(name="worst", tags=("duty",), severity=("critical", "service_down")),
    ]
)
SLOW_DISK = OutboxLimits(pending_after=60.0, fanouts=20_000)  # is not what these tests are about
ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)


def event(severity: str, entity: str = "core_Poll", **fields) -> Event:
    return Event(
        **{"source": "opm1", "entity": entity, "device": "core", "category": "Switch", "severity": severity}
        | fields
    )


@asynccontextmanager
async def opened(path, *, limits=ROOMY, routes=ROUTES, limits_of_outbox=None, alarm_limits=None, **options):
    async with open_storage(path, limits) as storage:
        outbox = await open_outbox(storage, limits=limits_of_outbox or SLOW_DISK)
        alarms = await open_alarms(storage, outbox, routes, app=APP, limits=alarm_limits, **options)
        yield Book(storage, outbox, alarms)


class Book:
    def __init__(self, storage: Storage, outbox: SqliteOutbox, alarms: Alarms) -> None:
        self.storage, self.outbox, self.alarms = storage, outbox, alarms

    async def pushes(self) -> list:
        return sorted(await self.outbox.claim_fanouts(APP), key=lambda fanout: fanout.id)

    def count(self, *tags: str) -> int:
        return self.alarms.open_count(APP, tags)


async def test_an_alarm_is_one_row_with_all_that_was_said_of_it(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db") as book:
        words = ["attention", "critical", "critical", "clear", "clear", "trouble"]
        recorded = [await book.alarms.record(event(word)) for word in words]
        assert [one.rule for one in recorded] == [
            "first.new", "escalated.rank", "repeat.counted", "clear.open", "stale.clear_of_cleared",
            "first.reopened",
        ]  # fmt: skip
        pushes = await book.pushes()
        assert [one.push for one in recorded if one.push] == [fanout.id for fanout in pushes]
        assert [fanout.audience.any_of for fanout in pushes] == [
            ("net",), ("net", "duty"), ("net", "duty"), ("net",),
        ]  # fmt: skip
        assert {fanout.entry.collapse_id for fanout in pushes} == {f"a.{recorded[0].id}"}
        assert all(fanout.entry.high and fanout.entry.badge for fanout in pushes)  # none overtakes another
        assert all(fanout.entry.payload[:8] == b'{"aps":{' for fanout in pushes)
        history = await book.alarms.get(recorded[0].id)
        assert [told.rule for _, _, told in history.verdicts] == [one.rule for one in recorded[::-1]]
        assert [told.push for _, _, told in history.verdicts] == [one.push for one in recorded[::-1]]
        assert history.row == recorded[-1].row
        before = history.row, history.verdicts
    async with opened(tmp_path / "gateway.db") as book:
        history = await book.alarms.get(recorded[0].id)
        assert (history.row, history.verdicts) == before
        assert [fanout.id for fanout in await book.pushes()] == [fanout.id for fanout in pushes]
        assert (await book.alarms.record(event("trouble"))).rule == "repeat.counted"


async def test_the_badge_counts_what_is_open_and_nobody_took(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db") as book:
        first = await book.alarms.record(event("critical", "a"))
        await book.alarms.record(event("trouble", "b"))
        assert (book.count("net"), book.count("duty"), book.count("net", "duty"), book.count("x")) == (
            2,
            1,
            2,
            0,
        )
        await book.alarms.acknowledge(first.id, "jo")
        assert (book.count("net"), book.count("duty")) == (1, 0)
    async with opened(tmp_path / "gateway.db") as book:
        assert (book.count("net"), book.count("duty")) == (1, 0)
        await book.alarms.record(event("clear", "a"))
        await book.alarms.record(event("critical", "a"))
        await book.alarms.record(event("clear", "b"))
        assert (book.count("net"), book.count("duty")) == (1, 1)


async def test_ten_thousand_alarms_at_once_and_two_events_of_each(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db", limits=ROOMY) as book:
        rules = []

        async def post(number: int, severity: str) -> None:
            rules.append((await book.alarms.record(event(severity, f"e{number}"))).rule)

        async with trio.open_nursery() as nursery:
            for number in range(10_000):
                nursery.start_soon(post, number, "critical")
                nursery.start_soon(post, number, "critical")
        assert (rules.count("first.new"), rules.count("repeat.counted")) == (10_000, 10_000)
        assert book.count("net") == 10_000
        assert len(await book.pushes()) == 10_000
        assert book.alarms.statistics().cached_octets <= AlarmLimits().cached_octets


# Commits of which nobody knows, and callers who do not wait.


class Held:
    """Holds the writing thread, so that what comes meanwhile is one commit; and lets that commit fail."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.gate = threading.Event()

    async def __aenter__(self) -> Held:
        begun = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wait(connection) -> None:
            token.run_sync_soon(begun.set)
            self.gate.wait()

        self.storage.submit(Job(change=wait))
        await begun.wait()
        return self

    async def __aexit__(self, *_) -> None:
        self.gate.set()

    def fail(self, *, stored: bool) -> None:
        """What was queued so far fails as a flush does: it is there all the same, or it is not."""

        def change(connection) -> None:
            if stored:
                connection.execute("COMMIT")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        self.storage.submit(Job(change=change))


@pytest.mark.parametrize("stored", [True, False], ids=["stored all the same", "not stored"])
async def test_a_commit_of_which_nobody_knows_is_looked_after_and_ends_as_one_push(tmp_path, stored) -> None:
    """OpManager posts once: what can still be stored is, and nothing twice."""
    async with opened(tmp_path / "gateway.db") as book:
        await book.alarms.record(event("attention"))
        recorded = []

        async def post() -> None:
            recorded.append(await book.alarms.record(event("critical")))

        async with trio.open_nursery() as nursery, Held(book.storage) as held:
            nursery.start_soon(post)
            await trio.testing.wait_all_tasks_blocked()
            held.fail(stored=stored)
        assert [one.rule for one in recorded] == ["escalated.rank"]
        pushes = await book.pushes()
        assert len(pushes) == 2
        assert pushes[1].id == recorded[0].push
        assert book.storage.statistics().flush_errors == 1
        history = await book.alarms.get(recorded[0].id)
        assert [told.rule for _, _, told in history.verdicts] == ["escalated.rank", "first.new"]
        assert (await book.alarms.record(event("critical"))).rule == "repeat.counted"
        assert (book.count("net"), book.count("duty")) == (1, 1)
    async with opened(tmp_path / "gateway.db") as book:
        assert [fanout.id for fanout in await book.pushes()] == [fanout.id for fanout in pushes]
        assert (book.count("net"), book.count("duty")) == (1, 1)


@pytest.mark.parametrize("severity", ["critical", "attention"], ids=["pushed", "recorded only"])
@pytest.mark.parametrize("fate", ["stored", "failed and stored", "failed"])
async def test_who_does_not_wait_leaves_memory_and_disk_agreed(tmp_path, severity, fate) -> None:
    """The caller is gone before the commit; the next event of the alarm is judged by what is on disk."""
    async with opened(tmp_path / "gateway.db") as book, trio.open_nursery() as nursery:
        await nursery.start(book.alarms.run)
        name = (await book.alarms.record(event("attention"))).id
        results = []

        async def post_next() -> None:
            results.append(await book.alarms.record(event("clear")))

        async with trio.open_nursery() as posting, Held(book.storage) as held:
            gone = trio.CancelScope()

            async def post() -> None:
                with gone:
                    await book.alarms.record(event(severity))

            posting.start_soon(post)
            await trio.testing.wait_all_tasks_blocked()
            gone.cancel()
            await trio.testing.wait_all_tasks_blocked()
            posting.start_soon(post_next)  # its turn is not yet
            await trio.testing.wait_all_tasks_blocked()
            assert book.alarms.statistics().waiting == 1
            if fate != "stored":
                held.fail(stored=fate != "failed")
        kept = {"critical": "escalated.rank", "attention": "repeat.counted"}[severity]
        rules = ["first.new", *([kept] if fate != "failed" else []), "clear.open"]
        history = await book.alarms.get(name)
        assert [told.rule for _, _, told in history.verdicts][::-1] == rules
        await trio.testing.wait_all_tasks_blocked(0.05)
        pushes = [told.push for _, _, told in history.verdicts if told.push]
        assert sorted(fanout.id for fanout in await book.pushes()) == sorted(pushes)
        assert book.count("net", "duty") == 0
        await book.alarms.record(event("critical"))
        assert (book.count("net"), book.count("duty")) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_a_full_disk_changes_nothing_and_says_so(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db") as book:
        name = (await book.alarms.record(event("attention"))).id
    full = Limits(low_water_octets=1 << 60, reserve_octets=4_096)
    async with opened(tmp_path / "gateway.db", limits=full) as book:
        for severity in ("critical", "attention", "clear"):
            with pytest.raises(StorageFull):
                await book.alarms.record(event(severity))
        with pytest.raises(StorageFull):
            await book.alarms.acknowledge(name, "jo")
        assert book.count("net") == 1
    async with opened(tmp_path / "gateway.db") as book:
        history = await book.alarms.get(name)
        assert (history.row.severity, len(history.verdicts), history.row.acknowledged_by) == (
            "attention",
            1,
            None,
        )


# No room in the outbox.


async def send(book, pushes) -> None:
    """What the dispatcher does: each goes to its devices, and is done."""
    for fanout in pushes:
        await book.outbox.settle_page(fanout.id, "", accepted=1, ends=(), retries=(), last=True)


def shown(fanout) -> tuple:
    aps = msgspec.json.decode(fanout.entry.payload)["aps"]
    return aps["alert"]["title"], aps["thread-id"], "sound" in aps, fanout.audience.any_of


async def test_what_finds_no_room_in_the_outbox_is_recorded_and_pushed_later_as_it_stands(tmp_path) -> None:
    """APNs is away for hours and the storm goes on: no webhook is refused, and nobody hears old news."""
    options = {
        "limits_of_outbox": OutboxLimits(pending_after=60.0, fanouts=2),
        "alarm_limits": AlarmLimits(late_after=0.01),
    }
    net, duty = ("net",), ("net", "duty")

    async def record(book, words: str, device: str) -> list[int]:
        events = [event(word, device, device=device) for word in words.split()]
        recorded = [await book.alarms.record(each) for each in events]
        assert all(one.push or one.owed for one in recorded if one.rule != "clear.open")
        return [one.push for one in recorded]

    async with opened(tmp_path / "gateway.db", **options) as book:
        assert all(await record(book, "attention trouble", "shown"))
        assert not any(await record(book, "critical", "shown"))
        assert not any(await record(book, "attention critical trouble", "better"))
        assert not any(await record(book, "attention clear", "gone"))
        assert not any(await record(book, "trouble", "taken"))
        assert not any(await record(book, "trouble clear trouble", "again"))
        taken = await book.alarms.acknowledge(alarm_digest("opm1", "taken"), "jo")
        assert taken.push == 0
        assert book.alarms.statistics().owed == 4
        assert (book.count("net"), book.count("duty")) == (3, 2)
    async with opened(tmp_path / "gateway.db", **options) as book, trio.open_nursery() as nursery:
        assert book.alarms.statistics().owed == 4
        first = await book.pushes()
        assert [shown(push)[0] for push in first] == ["Attention: shown", "Trouble: shown"]
        assert await record(book, "clear", "shown") == [0]  # its banners are on their way
        await nursery.start(book.alarms.run)
        late = []
        while book.alarms.statistics().owed:
            await send(book, await book.pushes())
            await trio.sleep(0.02)
            late += await book.pushes()
        late = {push.id: push for push in late if push.id not in {each.id for each in first}}
        assert sorted(map(shown, late.values())) == [
            ("Cleared: shown", "opm1/shown", False, duty),
            ("Trouble: again", "opm1/again", True, net),
            ("Trouble: better", "opm1/better", True, duty),
            ("Trouble: taken", "opm1/taken", False, net),
        ]
        history = await book.alarms.get(alarm_digest("opm1", "better"))
        assert [told.rule for _, _, told in history.verdicts] == [
            "late", "lowered.rank", "escalated.rank", "first.new",
        ]  # fmt: skip
        assert history.verdicts[0][2].push in late
        assert book.alarms.statistics().rules["late"] == 4
        nursery.cancel_scope.cancel()
    async with opened(tmp_path / "gateway.db", **options) as book:
        assert book.alarms.statistics().owed == 0
        assert not (await book.alarms.record(event("trouble", "better", device="better"))).push


async def test_what_is_owed_goes_with_the_next_push(tmp_path) -> None:
    """And is heard then, also if that push would have been silent."""
    async with opened(
        tmp_path / "gateway.db", limits_of_outbox=OutboxLimits(pending_after=60.0, fanouts=1)
    ) as book:
        await book.alarms.record(event("trouble", "other"))
        assert not (await book.alarms.record(event("critical"))).push
        assert not (await book.alarms.record(event("critical"))).push
        await send(book, await book.pushes())
        assert (await book.alarms.record(event("trouble"))).rule == "lowered.rank"
        assert [shown(push)[::2] for push in await book.pushes()] == [("Trouble: core", True)]
        assert book.alarms.statistics().owed == 0


# Who is told.


async def test_what_no_route_takes_goes_to_the_administrators_and_is_said(tmp_path, caplog) -> None:
    async with opened(tmp_path / "gateway.db") as book:
        recorded = await book.alarms.record(event("trouble", category="Printer"))
        assert (recorded.unrouted, recorded.row.tags) == ("no route", ("admin",))
        assert [fanout.audience.any_of for fanout in await book.pushes()] == [("admin",)]
        assert book.alarms.statistics().unrouted == {"no route": 1}
        assert "an alarm goes to the administrators" in caplog.text
        assert "reason='no route takes it'" in caplog.text


async def test_what_reaches_no_device_goes_to_the_administrators_too(tmp_path, caplog) -> None:
    asked, now = [], [1_800_000_000.0]

    async def reach(app, audience) -> bool:
        asked.append((app, audience.any_of))
        await trio.lowlevel.checkpoint()
        return "duty" in audience.any_of

    async with opened(tmp_path / "gateway.db", reach=reach, clock=lambda: now[0]) as book:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(book.alarms.record, event("trouble", f"e{number}"))
        assert asked == [(APP, ("net",)), (APP, ("admin",))]  # a storm asks once
        assert book.alarms.statistics().unrouted == {"no device": 50, "nobody": 50}
        recorded = await book.alarms.record(event("attention", "next"))
        assert (recorded.unrouted, recorded.row.tags) == ("no device", ("net", "admin"))
        assert "an alarm reaches NOBODY" in caplog.text
        assert "no device has ('net'" in caplog.text
        assert not (await book.alarms.record(event("critical", "worst"))).unrouted
        assert {fanout.audience.any_of for fanout in await book.pushes()} == {
            ("net", "admin"),
            ("net", "duty"),
        }
        assert (await book.alarms.record(event("clear", "next"))).row.tags == ("net", "admin")
        now[0] += AlarmLimits().reach_after
        await book.alarms.record(event("trouble", "later"))
        assert asked[2:] == [(APP, ("net", "duty")), (APP, ("net",)), (APP, ("admin",))]


async def test_a_registry_that_fails_holds_no_alarm_up(tmp_path) -> None:
    async def reach(app, audience) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    async with opened(tmp_path / "gateway.db", reach=reach) as book:
        assert not (await book.alarms.record(event("trouble"))).unrouted


async def test_our_own_alarm_in_opmanager_comes_back_and_is_pushed_to_nobody(tmp_path) -> None:
    """The watchdog raised it and told whom it concerns; a push of it might raise the next."""
    async with opened(tmp_path / "gateway.db") as book:
        for word in ("attention", "critical", "clear", "critical"):
            recorded = await book.alarms.record(event(word, "apns-cert-com.example.app"))
            assert (recorded.push, recorded.unrouted, recorded.row.tags) == (0, "", ())
        history = await book.alarms.get(recorded.id)
        assert [told.rule for _, _, told in history.verdicts][::-1] == [
            "first.new", "escalated.rank", "clear.open", "first.reopened",
        ]  # fmt: skip
        assert {told.quirks for _, _, told in history.verdicts} == {("echo",)}
        assert await book.pushes() == []
        assert book.count("net", "duty", "admin") == 0


async def test_an_alarm_that_nobody_was_told_of_is_not_pushed_to_everybody(tmp_path) -> None:
    """The end of an echo may not look like one, and somebody may take it."""
    async with opened(tmp_path / "gateway.db") as book:
        ours = event("critical", "", alarm_id="7", message="fastpush: the certificate ends in 3 days")
        name = (await book.alarms.record(ours)).id
        assert (await book.alarms.acknowledge(name, "jo")).row.acknowledged_by == "jo"
        ended = await book.alarms.record(event("clear", "", alarm_id="7", message="cleared by hand"))
        assert (ended.rule, ended.push) == ("clear.open", 0)
        assert await book.pushes() == []


# What is shown, and forgotten.


async def test_lists_go_by_pages_the_newest_opened_first(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db") as book:
        names = [
            (await book.alarms.record(event("trouble", f"e{n}", device=f"Sw[{n}]"))).id for n in range(7)
        ]
        for number in (1, 2):
            await book.alarms.record(event("clear", f"e{number}"))
        await book.alarms.acknowledge(names[5], "jo")

        async def ids(**options) -> list[int]:
            return [names.index(listed.id) for listed in await book.alarms.list(**options)]

        assert await ids() == [6, 5, 4, 3, 2, 1, 0]
        assert await ids(state="open") == [6, 5, 4, 3, 0]
        assert await ids(state="unacknowledged") == [6, 4, 3, 0]
        assert await ids(state="cleared") == [2, 1]
        assert await ids(device="sw[[]?]") == []
        assert await ids(device="SW[4]") == [4]
        assert await ids(device="*[[]*") == []
        assert await ids(severity=("clear", "critical")) == [2, 1]
        assert await ids(tags=("net",), limit=2) == [6, 5]
        assert await ids(tags=("duty",)) == await ids(tags=()) == []
        found, after = [], None
        while page := await book.alarms.list(after=after, limit=2):
            found += [names.index(listed.id) for listed in page]
            after = page[-1].place
        assert found == [6, 5, 4, 3, 2, 1, 0]


async def test_a_history_goes_by_pages_too(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db") as book:
        for _ in range(7):
            recorded = await book.alarms.record(event("trouble"))
        seen, before = [], None
        while True:
            page = await book.alarms.get(recorded.id, before=before, limit=3)
            seen.append(len(page.verdicts))
            before = page.before
            if not before:
                break
        assert seen == [3, 3, 1]
        assert await book.alarms.get("A" * 43) is None
        assert await book.alarms.get("nonsense") is None
        assert await book.alarms.acknowledge("A" * 43, "jo") is None
        assert await book.alarms.acknowledge("ä" * 43, "jo") is None


async def test_history_is_bounded_by_age_and_a_cleared_alarm_goes_with_its_last_verdict(tmp_path) -> None:
    now = [1_800_000_000.0]
    async with opened(tmp_path / "gateway.db", clock=lambda: now[0]) as book:
        old = await book.alarms.record(event("trouble", "old"))
        await book.alarms.record(event("clear", "old"))
        still = await book.alarms.record(event("trouble", "still"))
        now[0] += AlarmLimits().history_after + 1
        young = await book.alarms.record(event("trouble", "young"))
        await book.alarms.trim()
        assert await book.alarms.get(old.id) is None
        kept = await book.alarms.get(still.id)
        assert (kept.row.state, kept.verdicts) == ("open", ())
        assert len((await book.alarms.get(young.id)).verdicts) == 1
        assert book.count("net") == 2
        assert (await book.alarms.record(event("trouble", "old"))).rule == "first.new"
        assert (await book.alarms.record(event("trouble", "still"))).rule == "repeat.counted"


async def test_history_is_bounded_by_size(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db", alarm_limits=AlarmLimits(history_octets=200_000)) as book:
        for turn in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(1_500):
                    word = "clear" if turn else "trouble"
                    nursery.start_soon(book.alarms.record, event(word, f"{number}", raw="x" * 500))
        await book.alarms.trim()
        octets, verdicts, alarms = await book.storage.read(
            lambda connection: connection.execute(
                "SELECT (SELECT octets FROM alarm_history),"
                " (SELECT sum(length(told) + 64) FROM alarm_verdict), (SELECT count(*) FROM alarm)"
            ).fetchone()
        )
        assert octets == verdicts
        assert 199_000 < octets <= 200_000
        assert 0 < alarms < 400
        assert len(await book.alarms.list(limit=500)) == alarms


async def test_unreadable_posts_are_kept_so_many(tmp_path) -> None:
    async with opened(tmp_path / "gateway.db", alarm_limits=AlarmLimits(unreadable=3)) as book:
        raws = ["\x00\x01", "ü", '"', "<html>", "last"]
        for raw in raws:
            await book.alarms.keep_unreadable("opm1", "text/plain", len(raw), raw)
        posts = await book.alarms.unreadable()
        assert [post.raw for post in posts] == raws[:1:-1]
        assert [post.raw for post in await book.alarms.unreadable(1, before=posts[0].number)] == ["<html>"]
        await book.alarms.keep_unreadable("opm1", "", 2, raws[0])
        assert (await book.alarms.unreadable(1))[0].raw == raws[0]
