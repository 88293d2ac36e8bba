"""Notices on disk, and the tasks that carry them: each channel on its own, each telling until it is told.

Judgement and tellings are one transaction: what was judged is told, also by the next process. A channel that
fails is tried again with growing pauses and holds up nobody else. A kill between a telling and its record
repeats that one telling.

What a newer telling of the same notice overtakes is not sent any more, and what was never told is not
withdrawn.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, final

import msgspec
import trio

from fastpush.gateway.log import get_logger
from fastpush.gateway.notices.values import CHANNELS, Change, Channel, Judgement, Notice, Told, title_of
from fastpush.gateway.storage import Storage, StorageError

__all__ = [
    "Carrier",
    "LogCarrier",
    "NotTold",
    "Notices",
    "Shown",
    "Telling",
    "Trial",
    "open_notices",
]

logger = get_logger("fastpush.gateway.notices")

FIRST_PAUSE, LONGEST_PAUSE = 15.0, 3_600.0
TOLD_WITHIN = 3 * 86_400.0
"""Seconds after which a telling is given up: then its day has passed, and others have followed."""
CARRIED_WITHIN = 120.0
"""Seconds that a channel may take for one telling."""
KEPT_AFTER = 400 * 86_400.0
"""Seconds for which tellings are remembered, for people; notices themselves are remembered for good."""

State = Literal["waiting", "told", "failed", "superseded"]

MIGRATIONS = [
    (
        """
        CREATE TABLE notices (id TEXT PRIMARY KEY, at REAL NOT NULL, standing INTEGER NOT NULL,
            content BLOB NOT NULL) WITHOUT ROWID
        """,
        """
        CREATE TABLE tellings (number INTEGER PRIMARY KEY, notice TEXT NOT NULL, channel TEXT NOT NULL,
            change TEXT NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
            detail TEXT NOT NULL DEFAULT '', ended_at REAL, content BLOB NOT NULL)
        """,
        "CREATE INDEX tellings_by_notice ON tellings (notice, number)",
    )
]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Notice).decode


class NotTold(Exception):
    """A channel could not tell. `lasting`: not before somebody changes something; it is not tried again.

    The message is for people and has no secret.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class Telling(msgspec.Struct, frozen=True):
    """One notice on its way by one channel.

    Attributes:
      change: `withdrawn` takes back what was raised; `trial` is a test of the channel.
      at: when it was judged, UNIX seconds.
    """

    number: int
    notice: Notice
    channel: Channel
    change: Change
    at: float
    attempts: int = 0


class Carrier(Protocol):
    """A way to tell."""

    channel: Channel

    async def tell(self, telling: Telling) -> str:
        """Tell, and say who has taken it in a few words.

        Raises:
          NotTold: with the reason.
        """


class ToldBy(msgspec.Struct, frozen=True):
    """How a telling went, for people."""

    channel: Channel
    change: Change
    state: State
    at: float
    detail: str = ""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A notice as it stands now.

    Attributes:
      title: with the time that is left now.
      told_at: when it was told last.
      tellings: how each channel took it.
    """

    notice: Notice
    title: str
    told_at: float
    tellings: tuple[ToldBy, ...] = ()


class Trial(msgspec.Struct, frozen=True):
    """What became of a trial by one channel."""

    channel: Channel
    told: bool
    detail: str


@final
class LogCarrier:
    """Writes to the log."""

    channel: Channel = "log"

    async def tell(self, telling: Telling) -> str:
        notice = telling.notice
        if telling.change == "withdrawn":
            logger.warning("notice over", notice=notice.title)
        elif telling.change == "trial":
            logger.info("notice on trial", notice=notice.title)
        else:
            tell = logger.error if notice.severity <= 2 else logger.warning
            tell("notice raised", notice=notice.title, reason=notice.body, cure=notice.cure)
        await trio.lowlevel.checkpoint()
        return "the log"


async def open_notices(
    storage: Storage, carriers: Iterable[Carrier] = (), *, clock: Callable[[], float] = time.time
) -> Notices:
    """Read what was told so far.

    Args:
      carriers: one at most for each channel; a channel without one is not told.
      clock: UNIX seconds.
    """
    await storage.add_schema("notices", MIGRATIONS)
    notices = Notices(storage, carriers, clock)
    await notices._read()
    return notices


@final
class Notices:
    """What was told and what is still to be told; made by `open_notices`, carried by `run`."""

    def __init__(self, storage: Storage, carriers: Iterable[Carrier], clock: Callable[[], float]) -> None:
        self._storage = storage
        self._carriers: dict[Channel, Carrier] = {carrier.channel: carrier for carrier in carriers}
        self._clock = clock
        self._told: dict[str, Told] = {}
        self._waiting: dict[Channel, list[Telling]] = {}
        self._busy: set[int] = set()
        self._bells: dict[Channel, trio.Event] = {channel: trio.Event() for channel in CHANNELS}
        self._idle = trio.lowlevel.ParkingLot()
        self._changing = trio.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self.standing())} standing>"

    @property
    def told(self) -> Mapping[str, Told]:
        """All that was ever told, by the notice's id; for `judge`."""
        return self._told

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Those that are told of a notice: the ones that are asked, and the ones with a carrier."""
        return tuple(channel for channel in CHANNELS if channel in ASKED or channel in self._carriers)

    def use_carriers(self, carriers: Iterable[Carrier]) -> None:
        """Tell by these from now on, what waits too; what was told is not told again by a new one."""
        self._carriers = {carrier.channel: carrier for carrier in carriers}
        for bell in self._bells.values():
            bell.set()

    def standing(self) -> list[Notice]:
        """What has not been withdrawn, the worst first."""
        found = [before.notice for before in self._told.values() if before.standing]
        return sorted(found, key=lambda notice: (notice.severity, notice.expires_at or 0.0, notice.id))

    async def shown(self, channel: Literal["console", "app"] = "console") -> list[Shown]:
        """What stands, for the console or for phones, with the title of now and how it was told."""
        now = self._clock()
        notices = [notice for notice in self.standing() if channel in notice.channels]
        rows = await self._storage.read(lambda connection: _newest(connection, [one.id for one in notices]))
        return [
            Shown(
                notice=notice,
                title=notice.title
                if notice.expires_at is None
                else title_of(notice.kind, notice.name, notice.expires_at, now),
                told_at=self._told[notice.id].at,
                tellings=tuple(rows.get(notice.id, ())),
            )
            for notice in notices
        ]

    async def history(self, limit: int = 1_000) -> list[tuple[str, ToldBy]]:
        """The last tellings, the oldest first: the notice's id, and how it went."""

        def query(connection: sqlite3.Connection) -> list[tuple[str, ToldBy]]:
            rows = connection.execute(
                "SELECT notice, channel, change, state, at, detail FROM tellings"
                " ORDER BY number DESC LIMIT ?",
                (limit,),
            ).fetchall()
            return [(row[0], ToldBy(*row[1:])) for row in reversed(rows)]

        return await self._storage.read(query)

    # Judgements.

    async def apply(self, judgement: Judgement, now: float) -> None:
        """Make a judgement durable, and let the channels tell.

        Raises:
          StorageFull, StorageUnknown: nothing is told; judge again later.
        """
        if not judgement:
            return
        async with self._changing:
            told, tellings = self._after(judgement, now)
            superseded = self._superseded_by(tellings)

            def change(connection: sqlite3.Connection) -> list[int]:
                for key in judgement.forget:
                    connection.execute("DELETE FROM notices WHERE id = ?", (key,))
                connection.executemany(
                    "INSERT INTO notices VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                    " at = excluded.at, standing = excluded.standing, content = excluded.content",
                    [(key, one.at, one.standing, _encode(one.notice)) for key, one in told.items()],
                )
                connection.executemany(
                    "UPDATE tellings SET state = 'superseded', ended_at = ? WHERE number = ?",
                    [(now, number) for number in superseded],
                )
                return [_insert(connection, telling) for telling in tellings]

            numbers = await self._storage.write(change, essential=True)
            for key in judgement.forget:
                self._told.pop(key, None)
            self._told.update(told)
            for channel, queue in self._waiting.items():
                self._waiting[channel] = [one for one in queue if one.number not in superseded]
            for number, telling in zip(numbers, tellings, strict=True):
                if telling.channel not in ASKED:
                    queue = self._waiting.setdefault(telling.channel, [])
                    queue.append(msgspec.structs.replace(telling, number=number))
                    self._bells[telling.channel].set()

    def _after(self, judgement: Judgement, now: float) -> tuple[dict[str, Told], list[Telling]]:
        told: dict[str, Told] = {}
        tellings: list[Telling] = []
        for key in judgement.withdraw:
            before = self._told[key]
            if key not in judgement.forget:
                told[key] = Told(before.notice, before.at, standing=False)
            for channel in self.channels:
                if channel in before.notice.channels:
                    tellings.append(Telling(0, before.notice, channel, "withdrawn", now))
        for notice in judgement.restore:
            told[notice.id] = Told(notice, self._told[notice.id].at)
        for notice in judgement.tell:
            told[notice.id] = Told(notice, now)
            for channel in self.channels:
                if channel in notice.channels:
                    tellings.append(Telling(0, notice, channel, "raised", now))
        return told, [one for one in tellings if one.change == "raised" or self._was_raised(one)]

    def _was_raised(self, telling: Telling) -> bool:
        """Whether there is anything to withdraw there: not where the raising still waits untried."""
        if telling.channel in ASKED:
            return True
        return not any(
            one.notice.id == telling.notice.id and not one.attempts and one.number not in self._busy
            for one in self._waiting.get(telling.channel, ())
        )

    def _superseded_by(self, tellings: Sequence[Telling]) -> set[int]:
        ids = {telling.notice.id for telling in tellings}
        return {
            one.number
            for queue in self._waiting.values()
            for one in queue
            if one.notice.id in ids and one.number not in self._busy
        }

    # Carrying.

    async def run(self, *, task_status: trio.TaskStatus[Notices] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry tellings until cancelled."""
        async with trio.open_nursery() as nursery:
            for channel in CHANNELS:
                if channel not in ASKED:
                    nursery.start_soon(self._carry, channel)
            task_status.started(self)
            await trio.sleep_forever()

    async def wait_told(self) -> None:
        """Wait until no telling waits; with a channel that fails, that may be days."""
        while any(self._waiting.get(channel) for channel in self._carriers):
            await self._idle.park()

    async def trial(self, now: float | None = None) -> list[Trial]:
        """Send a marked trial by every channel, at once, and say which have taken it."""
        now = self._clock() if now is None else now
        found: dict[Channel, Trial] = {}

        async def try_out(carrier: Carrier) -> None:
            notice = trial_notice(carrier.channel)
            telling = Telling(0, notice, carrier.channel, "trial", now)
            try:
                detail, told = await _within(carrier, telling), True
            except NotTold as error:
                detail, told = str(error), False
            found[carrier.channel] = Trial(carrier.channel, told, detail)

        async with trio.open_nursery() as nursery:
            for carrier in self._carriers.values():
                nursery.start_soon(try_out, carrier)
        return [found[channel] for channel in CHANNELS if channel in found]

    async def _carry(self, channel: Channel) -> None:
        """Tell what waits, in order; one that failed waits for its time and lets the others pass."""
        carrier: Carrier | None = None
        due: dict[int, float] = {}
        while True:
            if carrier is not self._carriers.get(channel):
                carrier, due = self._carriers.get(channel), {}  # with another one it may go at once
            queue, now = self._waiting.get(channel, []) if carrier is not None else [], trio.current_time()
            due = {one.number: due.get(one.number, now) for one in queue}
            telling = next((one for one in queue if due[one.number] <= now), None)
            if telling is None or carrier is None:
                if not queue:
                    self._idle.unpark_all()
                bell = self._bells[channel] = trio.Event()
                with trio.move_on_at(min(due.values(), default=math.inf)):
                    await bell.wait()
                continue
            self._busy.add(telling.number)
            try:
                told = await self._tell(carrier, telling)
            finally:
                self._busy.discard(telling.number)
            if not told:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(telling.attempts, 16))
                due[telling.number] = trio.current_time() + pause

    async def _tell(self, carrier: Carrier, telling: Telling) -> bool:
        """Tell one, and write down how it went. False: try again."""
        state: State = "told"
        try:
            detail = await _within(carrier, telling)
        except NotTold as error:
            detail = str(error)
            overdue = not 0 <= self._clock() - telling.at <= TOLD_WITHIN
            queue = self._waiting[telling.channel]
            overtaken = any(
                one.notice.id == telling.notice.id and one.number > telling.number for one in queue
            )
            state = "superseded" if overtaken else "failed" if error.lasting or overdue else "waiting"
            logger.warning(
                "notice not told", notice=telling.notice.title, channel=telling.channel, reason=detail
            )
        attempts, ended = telling.attempts + 1, None if state == "waiting" else self._clock()
        try:
            await self._storage.write(
                lambda connection: connection.execute(
                    "UPDATE tellings SET state = ?, attempts = ?, detail = ?, ended_at = ? WHERE number = ?",
                    (state, attempts, detail, ended, telling.number),
                ),
                essential=True,
            )
        except StorageError as error:
            logger.error("how a notice was told cannot be written", channel=telling.channel, error=str(error))
        queue = self._waiting[telling.channel]  # it may be another list by now
        place = next(at for at, one in enumerate(queue) if one.number == telling.number)
        if state == "waiting":
            queue[place] = msgspec.structs.replace(telling, attempts=attempts)
            return False
        del queue[place]
        return True

    async def _read(self) -> None:
        def query(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            return (
                connection.execute("SELECT at, standing, content FROM notices").fetchall(),
                connection.execute(
                    "SELECT number, content, channel, change, at, attempts FROM tellings"
                    " WHERE state = 'waiting' ORDER BY number"
                ).fetchall(),
            )

        notices, tellings = await self._storage.read(query)
        for at, standing, content in notices:
            notice = _decode(content)
            self._told[notice.id] = Told(notice, at, bool(standing))
        for number, octets, channel, change, judged_at, attempts in tellings:
            telling = Telling(number, _decode(octets), channel, change, judged_at, attempts)
            self._waiting.setdefault(telling.channel, []).append(telling)
        limit = self._clock() - KEPT_AFTER
        await self._storage.write(
            lambda connection: connection.execute(
                "DELETE FROM tellings WHERE at < ? AND state <> 'waiting'", (limit,)
            ),
            essential=True,
        )


ASKED: tuple[Channel, ...] = ("console", "app")
"""Told by being asked: what is in force is all that they show."""


def trial_notice(channel: Channel) -> Notice:
    """What a trial says."""
    return Notice(
        id=f"trial:{channel}",
        kind="trial",
        severity=3,
        title="Trial of fastpush's notices",
        body="Somebody ran `fastpush notices test`. This is how a warning comes to you.",
        cure="Nothing needs to be done.",
        entity="fastpush-trial",
        channels=(channel,),
    )


async def _within(carrier: Carrier, telling: Telling) -> str:
    """Tell in bounded time; what a carrier did not foresee is a failure of that channel alone."""
    try:
        with trio.fail_after(CARRIED_WITHIN):
            return await carrier.tell(telling)
    except trio.TooSlowError:
        raise NotTold(f"no answer within {CARRIED_WITHIN:g} s") from None
    except NotTold:
        raise
    except Exception as error:
        logger.exception("a channel failed", channel=carrier.channel)
        raise NotTold(f"{type(error).__name__}; the log has more") from error


def _insert(connection: sqlite3.Connection, telling: Telling) -> int:
    asked = telling.channel in ASKED
    state: State = "told" if asked else "waiting"
    cursor = connection.execute(
        "INSERT INTO tellings (notice, channel, change, at, state, attempts, ended_at, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            telling.notice.id, telling.channel, telling.change, telling.at, state, int(asked),
            telling.at if asked else None, _encode(telling.notice),
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _newest(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, list[ToldBy]]:
    """How each channel took the last telling of these notices."""
    found: dict[str, list[ToldBy]] = {}
    for key in ids:
        rows = connection.execute(
            "SELECT channel, change, state, COALESCE(ended_at, at), detail FROM tellings WHERE number IN"
            " (SELECT MAX(number) FROM tellings WHERE notice = ? GROUP BY channel) ORDER BY number",
            (key,),
        ).fetchall()
        found[key] = [ToldBy(*row) for row in rows]
    return found
