"""Any history of events, acknowledgements, restarts and full disks, held against a model in plain dicts."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush.gateway.sources import RANKS, alarm_digest
from fastpush.gateway.storage import Limits, StorageFull
from tests.gateway.test_alarm_book import APP, ROOMY, event, opened

FULL = Limits(low_water_octets=1 << 60, reserve_octets=4_096)
ENTITIES = {"switch": "Switch", "router": "Router", "printer": "Printer"}
TAGS = ("net", "duty", "admin")
MS = 1_800_000_000_000
TITLES = {
    "critical": "Critical", "service_down": "Service Down", "trouble": "Trouble", "attention": "Attention",
    "info": "Info", "unknown": "Alarm",
}  # fmt: skip


class Model:
    """What should be, by the sentences of docs/opmanager.md, without a line of the code's own."""

    def __init__(self) -> None:
        self.alarms: dict[str, dict] = {}
        self.pushes: list[tuple] = []
        self.rules: dict[str, list[str]] = {}

    def take(self, entity: str, severity: str, at: int | None, message: str) -> None:
        alarm = self.alarms.setdefault(
            entity,
            {"severity": "clear", "generation": 0, "repeats": 0, "at": None, "by": None, "tags": set(),
             "message": "", "seen": False},
        )  # fmt: skip
        rule = self._rule(alarm, severity, at, message)
        alarm["seen"] = True
        self.rules.setdefault(entity, []).append(rule)
        if rule == "stale.older":
            alarm["repeats"] += 1
            return
        alarm["at"] = at if at is not None else alarm["at"]
        alarm["message"] = message or alarm["message"]
        if rule in ("repeat.counted", "repeat.changed", "stale.clear_of_cleared"):
            alarm["repeats"] += 1
        if rule.startswith("first"):
            alarm |= {"generation": alarm["generation"] + 1, "repeats": 0, "by": None, "tags": set()}
        if rule == "escalated.rank":
            alarm["by"] = None
        alarm["severity"] = severity
        loud = rule.split(".")[0] in ("first", "escalated")
        if loud:
            told = {"net"} if ENTITIES[entity] in ("Switch", "Router") else set()
            told |= {"duty"} if RANKS[severity] == 4 else set()
            alarm["tags"] |= told or {"admin"}
        if loud or rule in ("lowered.rank", "repeat.changed", "clear.open"):
            title = "Cleared" if severity == "clear" else TITLES[severity]
            self.push(entity, title, "passive" if not loud or severity == "info" else "loud")

    @staticmethod
    def _rule(alarm: dict, severity: str, at: int | None, message: str) -> str:
        if at is not None and alarm["at"] is not None and at < alarm["at"]:
            return "stale.older"
        new, old = RANKS[severity], RANKS[alarm["severity"]]
        if old == 0:
            if new:
                return "first.reopened" if alarm["generation"] else "first.new"
            return "stale.clear_of_cleared" if alarm["seen"] else "stale.clear_of_unknown"
        if new == 0:
            return "clear.open"
        if new != old:
            return "escalated.rank" if new > old else "lowered.rank"
        if severity != alarm["severity"]:
            return "repeat.changed"
        changed = bool(message) and message != alarm["message"] and alarm["by"] is None
        return "repeat.changed" if changed else "repeat.counted"

    def acknowledge(self, entity: str, by: str) -> None:
        alarm = self.alarms.get(entity)
        if alarm is not None and RANKS[alarm["severity"]] and alarm["by"] is None:
            alarm["by"] = by
            self.rules[entity].append("acknowledged")
            self.push(entity, TITLES[alarm["severity"]], "passive", subtitle=f"Acknowledged by {by}")

    def push(self, entity: str, title: str, level: str, subtitle: str = "") -> None:
        alarm = self.alarms[entity]
        name = alarm_digest("opm1", entity)
        self.pushes.append((name, tuple(sorted(alarm["tags"])), f"{title}: {entity}", level, subtitle))

    def badge(self, tags: set[str]) -> int:
        return sum(
            1
            for alarm in self.alarms.values()
            if RANKS[alarm["severity"]] and alarm["by"] is None and alarm["tags"] & tags
        )


def shown(fanout) -> tuple:
    """A push as the model has it."""
    payload = msgspec.json.decode(fanout.entry.payload)
    aps = payload["aps"]
    subtitle = aps["alert"].get("subtitle", "")
    return (
        fanout.entry.collapse_id.removeprefix("a."),
        tuple(sorted(fanout.audience.any_of)),
        aps["alert"]["title"],
        "passive" if aps["interruption-level"] == "passive" else "loud",
        subtitle if subtitle.startswith("Acknowledged") else "",
    )


EVENTS = st.tuples(
    st.sampled_from(sorted(ENTITIES)),
    st.sampled_from(sorted(RANKS)),
    st.one_of(st.none(), st.none(), st.integers(MS - 3, MS + 3)),
    st.sampled_from(["", "a", "b"]),
)
STEPS = st.one_of(
    EVENTS,
    EVENTS,
    st.lists(EVENTS, min_size=2, max_size=3, unique_by=lambda step: step[0]),
    st.sampled_from(sorted(ENTITIES)),
    st.sampled_from([None, None, FULL]),
)


async def follow(path: Path, steps: list) -> None:
    model, turn, seen = Model(), count(), 0

    def clock() -> float:
        return MS / 1_000 + next(turn) / 1_000

    async with AsyncExitStack() as stack:

        async def start(limits: Limits):
            await stack.aclose()
            return await stack.enter_async_context(opened(path, limits=limits, clock=clock))

        limits = ROOMY
        book = await start(limits)
        for step in steps:
            match step:
                case None | Limits():
                    limits = step or ROOMY
                    book = await start(limits)
                    seen = 0
                case str():
                    await acknowledge(book, model, step, full=limits is FULL)
                case _:
                    moment = step if isinstance(step, list) else [step]
                    async with trio.open_nursery() as nursery:
                        for entity, severity, at, message in moment:
                            nursery.start_soon(post, book, entity, severity, at, message, limits is FULL)
                    if limits is not FULL:
                        for each in moment:
                            model.take(*each)
            for tags in (("net",), ("duty",), ("admin",), ("net", "admin"), TAGS):
                assert book.alarms.open_count(APP, tags) == model.badge(set(tags))
            pushes = await book.pushes()
            # At one moment any order is right; alarms keep theirs.
            assert Counter(map(shown, pushes[seen:])) == Counter(model.pushes[seen:])
            seen = len(pushes)
        await book_is_the_model(book, model)
        book = await start(ROOMY)
        await book_is_the_model(book, model)


async def post(book, entity, severity, at, message, full) -> None:
    told = event(severity, entity, device=entity, category=ENTITIES[entity], at=at, message=message)
    if full:
        with pytest.raises(StorageFull):
            await book.alarms.record(told)
    else:
        recorded = await book.alarms.record(told)
        loud = recorded.verdict in ("first", "escalated")
        unrouted = loud and ENTITIES[entity] == "Printer" and RANKS[severity] < 4
        assert recorded.unrouted == ("no route" if unrouted else "")


async def acknowledge(book, model, entity, *, full) -> None:
    name = alarm_digest("opm1", entity)
    alarm = model.alarms.get(entity)
    if full and alarm is not None and RANKS[alarm["severity"]] and alarm["by"] is None:
        with pytest.raises(StorageFull):
            await book.alarms.acknowledge(name, "jo")
        return
    recorded = await book.alarms.acknowledge(name, "jo")
    assert (recorded is None) == (alarm is None)
    if not full:
        model.acknowledge(entity, "jo")


async def book_is_the_model(book, model) -> None:
    listed = {each.row.key: each for each in await book.alarms.list()}
    assert set(listed) == set(model.alarms)
    for entity, alarm in model.alarms.items():
        history = await book.alarms.get(alarm_digest("opm1", entity))
        row = history.row
        assert row == listed[entity].row
        assert row.state == ("open" if RANKS[alarm["severity"]] else "cleared")
        assert (row.severity, row.generation, row.repeats, row.source_at, row.message) == (
            alarm["severity"], alarm["generation"], alarm["repeats"], alarm["at"], alarm["message"],
        )  # fmt: skip
        assert set(row.tags) == alarm["tags"]
        if row.state == "open":
            assert row.acknowledged_by == alarm["by"]
        assert [told.rule for _, _, told in history.verdicts][::-1] == model.rules[entity]
    wanted = [
        alarm for alarm in model.alarms.values() if RANKS[alarm["severity"]] and alarm["tags"] & {"net"}
    ]
    assert len(await book.alarms.list(state="open", tags=["net"])) == len(wanted)
    pushed = [push for each in await book.pushes() if (push := shown(each))]
    assert Counter(pushed) == Counter(model.pushes)


HISTORIES = st.lists(STEPS, max_size=25)


def check(steps: list) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(follow, Path(directory) / "gateway.db", steps)


@settings(max_examples=150, deadline=None)
@given(HISTORIES)
def test_whatever_happens_disk_memory_and_pushes_are_what_the_model_says(steps) -> None:
    """A list of events is a moment in which they come at once; None a restart, FULL one with a full disk."""
    check(steps)


@pytest.mark.slow
@pytest.mark.night
@settings(max_examples=5_000, deadline=None)
@given(HISTORIES)
def test_the_same_all_night(steps) -> None:
    check(steps)
