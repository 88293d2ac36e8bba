"""The alarms on disk: row, verdict and push are one, also after a restart, a full disk and a kill."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio

from fastpush.gateway.alarm_book import AlarmLimits, Alarms, open_alarms
from fastpush.gateway.outbox.sqlite import SqliteOutbox, open_outbox
from fastpush.gateway.routes import Route, Routes
from fastpush.gateway.sources import Event
from fastpush.gateway.storage import Limits, Storage, open_storage

APP = "com.example.opmanager"
ROUTES = Routes(
    [
        Route(name="network", tags=("net",), category=("Switch", "Router")),
        Route(name="worst", tags=("duty",), severity=("critical", "service_down")),
    ]
)
ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)


def event(severity: str, entity: str = "core_Poll", **fields) -> Event:
    return Event(
        **{"source": "opm1", "entity": entity, "device": "core", "category": "Switch", "severity": severity}
        | fields
    )


@asynccontextmanager
async def opened(path, *, limits: Limits = ROOMY, routes: Routes = ROUTES, **options):
    async with open_storage(path, limits) as storage:
        outbox = await open_outbox(storage)
        yield Book(storage, outbox, await open_alarms(storage, outbox, routes, app=APP, **options))


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
        assert all(fanout.entry.badge and fanout.entry.payload[:8] == b'{"aps":{' for fanout in pushes)
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
