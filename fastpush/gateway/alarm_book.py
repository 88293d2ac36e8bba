"""The alarms on disk: each with its row, all that was ever judged of it, and the push of each verdict.

An event goes: judge, address, store, push. What is decided here is written by alarm_ledger.py: row, verdict
and the outbox's entry in one transaction, and one row of the storage's funnel each, so that a thousand
webhooks at once are a few commits. alarm_table.py has the tables.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, final

import msgspec
import trio

from fastpush.gateway.alarm_ledger import LATE, LOUDLY, UNSEEN, Known, Ledger, Step
from fastpush.gateway.alarm_table import (
    ALARM,
    SCHEMA,
    UNREADABLE,
    History,
    Listed,
    ListedState,
    Post,
    Told,
    Unreadable,
    forget_alarms,
    list_alarms,
    octets_of,
    read_history,
    read_owed,
    read_posts,
    read_unreadable,
    trim_verdicts,
)
from fastpush.gateway.alarms import LOUD, SHOWN, AlarmRow, Verdict, acknowledge, judge
from fastpush.gateway.banners import Look, acknowledged_banner, banner
from fastpush.gateway.log import get_logger
from fastpush.gateway.notices import is_echo
from fastpush.gateway.outbox import Audience, Outbox, OutboxBusy
from fastpush.gateway.routes import Routes, address
from fastpush.gateway.sources import Event, Severity, alarm_digest, alarm_key
from fastpush.gateway.storage import Storage, StorageError, Value

__all__ = [
    "AlarmLimits",
    "AlarmStatistics",
    "Alarms",
    "History",
    "Listed",
    "ListedState",
    "Post",
    "Recorded",
    "Told",
    "Unreadable",
    "open_alarms",
]

logger = get_logger(__name__)

Reach = Callable[[str, Audience], Awaitable[bool]]
"""Whether an app has any device of an audience."""

HOUR = 3_600.0
TRIM_EVERY = 60.0  # seconds
TOLD_EVERY = 10.0  # seconds between two lines of the log about the same trouble
MAX_TROUBLES = 100  # whose last line of the log is remembered
MAX_REACHED = 1_000  # audiences whose reach is remembered


class AlarmLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, and for how long.

    Attributes:
      history_after, history_octets: when verdicts are dropped: by age in seconds, or earlier, oldest first,
        while there are more octets of them. A cleared alarm is forgotten with its last verdict, an open one
        never.
      unreadable: the newest posts that nobody could read.
      cached_octets: of rows in memory.
      late_after: seconds after which pushes are tried again that the outbox had no room for.
      reach_after: seconds for which it is believed that an audience has, or has not, a device.
    """

    history_after: float = 30 * 24 * HOUR
    history_octets: int = 256 << 20
    unreadable: int = 1_000
    cached_octets: int = 8 << 20
    late_after: float = 1.0
    reach_after: float = 30.0


class Recorded(msgspec.Struct, frozen=True):
    """What became of an event, or of an acknowledgement; it is durable.

    Attributes:
      id: the alarm's, of 43 characters.
      push: the fan-out's id in the outbox; 0 where nothing was pushed.
      unrouted: as in `Told`.
      owed: a push follows, once the outbox has room.
    """

    id: str
    row: AlarmRow
    verdict: Verdict | Literal["acknowledged"]
    rule: str
    push: int = 0
    unrouted: str = ""
    owed: bool = False


class AlarmStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start, and `unacknowledged`, `waiting` and `cached_octets` of now.

    Attributes:
      rules: events by the rule that decided, and "acknowledged".
      unrouted: by why they went to the administrators, "no route" or "no device"; under "nobody" those of
        them that went to no device at all.
      unreadable, tests: posts that were no alarms.
      owed: alarms that wait for a push until the outbox has room.
      waiting: events that wait for another of the same alarm.
    """

    rules: dict[str, int]
    unrouted: dict[str, int]
    unreadable: int
    tests: int
    owed: int
    waiting: int
    unacknowledged: int
    cached_octets: int


async def open_alarms(
    storage: Storage,
    outbox: Outbox,
    routes: Routes,
    *,
    app: str,
    look: Look | None = None,
    limits: AlarmLimits | None = None,
    reach: Reach | None = None,
    clock: Callable[[], float] = time.time,
) -> Alarms:
    """Open the alarms in a storage. `Alarms.run` trims their history; start it in a nursery.

    Args:
      app: whose phones are told.
      look: how its banners come.
      reach: tells whether an audience has any device; None where that is not asked.
      clock: UNIX seconds.
    """
    await storage.add_schema("alarms", [SCHEMA.split(";\n")])
    kind = await storage.add_kind(ALARM)
    unreadable = await storage.add_kind(UNREADABLE)
    limits = limits or AlarmLimits()
    ledger = Ledger(storage, outbox, app, kind, limits.cached_octets, clock)
    await ledger.load()
    return Alarms(storage, ledger, routes, app, look or Look(), limits, reach, clock, unreadable)


@final
class Alarms:
    """Made by `open_alarms`; used from one trio program, by any number of tasks."""

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        routes: Routes,
        app: str,
        look: Look,
        limits: AlarmLimits,
        reach: Reach | None,
        clock: Callable[[], float],
        unreadable: int,
    ) -> None:
        self.routes = routes
        self.look = look
        self._storage = storage
        self._ledger = ledger
        self._app = app
        self._limits = limits
        self._reach = reach
        self._clock = clock
        self._unreadable_kind = unreadable
        self._reached: dict[tuple[str, ...], tuple[float, bool]] = {}
        self._reaching = trio.Lock()
        self._rules: Counter[str] = Counter()
        self._unrouted: Counter[str] = Counter()
        self._unreadable = 0
        self._tests = 0
        self._told_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._app}, {self._ledger.unacknowledged} unacknowledged>"

    @property
    def app(self) -> str:
        """Whose phones are told."""
        return self._app

    def configure(self, routes: Routes, look: Look) -> None:
        """Go by other routes, and let banners look otherwise, from the next event on."""
        self.routes, self.look = routes, look

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Trim the history each minute; until cancelled."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ledger.take_up)
            nursery.start_soon(self._push_late)
            while True:
                await trio.sleep(TRIM_EVERY)
                with suppress(StorageError):  # told by the storage; the next turn tries again
                    await self.trim()

    async def _push_late(self) -> None:
        """Let those banners go out that there was no room for, once there is."""
        while True:
            await self._ledger.wait_for_owed()
            await trio.sleep(self._limits.late_after)
            with suppress(OutboxBusy, StorageError):
                while names := await self._storage.read(partial(read_owed, limit=100)):
                    for name in names:
                        _, step, push = await self._ledger.change(name, self._late)
                        if step is not None:
                            self._rules[LATE] += 1
                            _tell_judged(name, step, push)

    # What happens to alarms.

    async def record(self, event: Event) -> Recorded:
        """Take an event into its alarm, and push what its verdict says; all of it is durable on return.

        Cancelled, it may be recorded all the same.

        Raises:
          ValueError: the event is a test.
          StorageFull: nothing was recorded.
          StorageUnknown: it was tried several times, and nobody knows.
        """
        name = alarm_digest(event.source, alarm_key(event))
        known, step, push = await self._ledger.change(name, partial(self._judge, event))
        assert step is not None
        told = step.told
        self._rules[told.rule] += 1
        _tell_judged(name, step, push)
        if told.unrouted:
            await self._tell_unrouted(name, step.row, told)
        verdict: Any = told.rule.partition(".")[0]
        return Recorded(name, known.row, verdict, told.rule, push, told.unrouted, bool(known.owed))

    async def acknowledge(
        self,
        name: str,
        by: str,
        *,
        generation: int | None = None,
        rows: Sequence[Sequence[Value]] = (),
    ) -> Recorded | None:
        """Note that somebody has taken an alarm; the banners of all who were told say so, silently.

        The first one counts; one who comes later, or after the end, finds the row as it is.

        Args:
          name: the alarm's id.
          by: who.
          generation: which opening of the alarm is meant; another one is left alone.
          rows: of the storage's funnel, written in the same transaction if it is this one that counts.

        Returns:
          None where there is no such alarm.
        """
        if octets_of(name) is None:
            await trio.lowlevel.checkpoint()
            return None
        known, step, push = await self._ledger.change(name, partial(self._acknowledge, by, generation, rows))
        if known is None:
            return None
        if step is not None:
            self._rules["acknowledged"] += 1
        return Recorded(name, known.row, "acknowledged", "acknowledged", push)

    async def _judge(self, event: Event, known: Known | None, now: float) -> Step:
        row = known.row if known else None
        after, _, rule = judge(row, event, now)
        opens = row is None or after.generation != row.generation
        if is_echo(event):  # ours: whoever it concerns has been told, and another push would raise another
            told = self._told(event, after, rule)
            return Step(after, msgspec.structs.replace(told, quirks=(*told.quirks, "echo")), None, opens)
        addressed = address(self.routes, after, rule)
        unrouted: Literal["", "no route", "no device"] = "no route" if addressed.unrouted else ""
        after, tags = addressed.row, addressed.tags
        if rule in LOUD and not unrouted and not await self._reaches(tags):
            unrouted = "no device"
            tags = tuple(dict.fromkeys((*tags, self.routes.admin_tag)))
            after = msgspec.structs.replace(after, tags=tags)
        told = msgspec.structs.replace(
            self._told(event, after, rule), routes=addressed.routes, tags=tags, unrouted=unrouted
        )
        shown = rule
        if known is not None and known.owed:
            if known.owed == UNSEEN and rule == "clear.open":
                return Step(after, told, None, opens)  # come and gone before anybody could be told
            if known.owed >= LOUDLY and rule in SHOWN and after.counts_in_badge:
                shown = "first.new"  # nobody has heard it yet
        return Step(after, told, banner(after, shown, now, look=self.look), opens)

    async def _late(self, known: Known | None, now: float) -> Step | None:
        if known is None or not known.owed:
            return None
        row = known.row
        told = Told(rule=LATE, severity=row.severity, generation=row.generation, tags=row.tags)
        shown = acknowledged_banner(row, now, look=self.look)
        if shown is None:
            loud = known.owed >= LOUDLY and row.state == "open"
            shown = banner(row, "first.new" if loud else "repeat.changed", now, look=self.look)
        return Step(row, told, shown, opens=False)

    @staticmethod
    def _told(event: Event, after: AlarmRow, rule: str) -> Told:
        return Told(
            rule=rule,
            severity=after.severity,
            generation=after.generation,
            source_at=event.at,
            time_text=event.time_text,
            message=event.message,
            raw=event.raw,
            quirks=event.quirks,
        )

    async def _acknowledge(
        self,
        by: str,
        generation: int | None,
        rows: Sequence[Sequence[Value]],
        known: Known | None,
        now: float,
    ) -> Step | None:
        row = known.row if known else None
        if row is None or (generation is not None and row.generation != generation):
            return None
        after = acknowledge(row, by, now)
        if after is row:
            return None
        told = Told(
            rule="acknowledged", severity=row.severity, generation=row.generation, by=by, tags=row.tags
        )
        return Step(after, told, acknowledged_banner(after, now, look=self.look), opens=False, rows=rows)

    async def _tell_unrouted(self, name: str, row: AlarmRow, told: Told) -> None:
        why = "no route takes it" if told.unrouted == "no route" else f"no device has {told.tags[:5]}"
        self._unrouted[told.unrouted] += 1
        event = "an alarm goes to the administrators"
        if not await self._reaches((self.routes.admin_tag,)):
            self._unrouted["nobody"] += 1
            event, why = "an alarm reaches NOBODY", f"{why}, and no device is an administrator's"
        about = {"alarm": name, "device": row.device, "severity": row.severity, "reason": why}
        self._warn(f"unrouted: {told.unrouted}", event, **about)

    async def _reaches(self, tags: tuple[str, ...]) -> bool:
        """Whether any device has one of the tags, as far as was seen in the last moments."""
        if self._reach is None:
            return True
        found = self._reached.get(tags)
        if found is None or not 0.0 <= self._clock() - found[0] < self._limits.reach_after:
            async with self._reaching:  # a storm asks once
                if self._reached.get(tags) is found:
                    await self._ask_reach(self._reach, tags)
            found = self._reached[tags]
        return found[1]

    async def _ask_reach(self, reach: Reach, tags: tuple[str, ...]) -> None:
        try:
            any_device = await reach(self._app, Audience(any_of=tags))
        except (StorageError, sqlite3.Error):
            logger.exception(
                "whether any device has these tags could not be read: it is taken for granted", tags=tags[:5]
            )
            any_device = True
        self._reached[tags] = self._clock(), any_device
        if len(self._reached) > MAX_REACHED:
            self._reached.pop(next(iter(self._reached)))

    def _warn(self, trouble: str, event: str, **fields: object) -> None:
        """Tell of a trouble in the log, now and then."""
        now = time.monotonic()
        if now - self._told_at.get(trouble, -TOLD_EVERY) >= TOLD_EVERY:
            if len(self._told_at) >= MAX_TROUBLES:
                self._told_at.clear()
            self._told_at[trouble] = now
            logger.error(event, **fields)

    # Posts that are about no alarm.

    async def keep_unreadable(self, source: str, content_type: str, octets: int, raw: str) -> int:
        """Keep a post in which nothing is known, for people to look at; returns its number."""
        now = self._clock()
        number = self._ledger.next_number(now)
        self._unreadable += 1
        self._warn(
            f"unreadable: {source}",
            "a post is unreadable, and kept",
            source=source, octets=octets, content_type=content_type[:100] or None, number=number,
        )  # fmt: skip
        row = (
            self._unreadable_kind, number, now, source, content_type[:200], octets, raw,
            self._limits.unreadable,
        )  # fmt: skip
        await self._storage.insert([row])
        return number

    async def unreadable(self, limit: int = 100, *, before: int | None = None) -> list[Unreadable]:
        """The newest posts that nobody could read, newest first."""
        return await self._storage.read(partial(read_unreadable, limit=limit, before=before))

    async def posts(self, limit: int = 100, *, before: int | None = None, source: str = "") -> list[Post]:
        """The newest posts of all sources, or of one, and what each became; newest first."""
        return await self._storage.read(partial(read_posts, source=source, limit=limit, before=before))

    def count_test(self) -> None:
        """Count a test of a sender's settings."""
        self._tests += 1

    # What is known of alarms.

    def open_count(self, app: str, tags: Iterable[str]) -> int:
        """Open and unacknowledged alarms of those who have any of the tags; nothing waits for it."""
        if app != self._app:
            return 0
        return self._ledger.open_count(tags)

    async def list(
        self,
        *,
        state: ListedState | None = None,
        device: str = "",
        severity: Sequence[Severity] = (),
        tags: Iterable[str] | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> list[Listed]:
        """Alarms, the newest opened first.

        Args:
          state: "open" has the acknowledged ones in it.
          device: a pattern with `*` and `?`, upper and lower case alike.
          severity: any of these; of a cleared alarm it is "clear".
          tags: told to those who have any of them; None for all.
          after: the place of the last one of the page before.
          limit: at most so many.
        """
        sets = None
        if tags is not None:
            sets = self._ledger.sets_with(tags)
            if not sets:
                await trio.lowlevel.checkpoint()
                return []
        query = partial(
            list_alarms,
            state=state,
            device=device,
            severity=tuple(severity),
            sets=sets,
            after=after,
            limit=limit,
        )
        return await self._storage.read(query)

    async def get(self, name: str, *, before: int | None = None, limit: int = 100) -> History | None:
        """An alarm by its id, with what happened to it; None where there is none."""
        alarm = octets_of(name)
        if alarm is None:
            await trio.lowlevel.checkpoint()
            return None
        return await self._storage.read(
            partial(read_history, alarm=alarm, name=name, before=before, limit=limit)
        )

    def statistics(self) -> AlarmStatistics:
        return AlarmStatistics(
            rules=dict(self._rules),
            unrouted=dict(self._unrouted),
            unreadable=self._unreadable,
            tests=self._tests,
            owed=self._ledger.owed,
            waiting=self._ledger.waiting,
            unacknowledged=self._ledger.unacknowledged,
            cached_octets=self._ledger.cached_octets,
        )

    # What is forgotten.

    async def trim(self) -> None:
        """Drop verdicts that are too old, or too many, and the cleared alarms that they were the last of."""
        old, octets = self._clock() - self._limits.history_after, self._limits.history_octets
        while await self._storage.write(partial(trim_verdicts, old=old, octets=octets), essential=True):
            pass
        while forgotten := await self._storage.write(forget_alarms, essential=True):
            for alarm in forgotten:
                self._ledger.forget(alarm)


def _tell_judged(name: str, step: Step, push: int) -> None:
    """The line by which a webhook leads to its push: from here on `batch` is its id."""
    logger.info(
        "alarm judged", alarm=name, source=step.row.source, device=step.row.device, rule=step.told.rule,
        severity=step.told.severity, batch=str(push) if push else None,
    )  # fmt: skip
