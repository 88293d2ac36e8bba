"""The search index: filled behind the hot path, in columns, and read newest first.

A row and an index entry for each notification would cost more than the notification. The index is
*segments* of some thousand notifications in the order of their acceptance: a column of the last
characters of their device tokens, one of *classes* (app, source, outcome and reason, one octet for each
notification), one of batches and one of places. A search goes through these columns at the speed of
`bytes.find`; a million notifications are some hundred segments.

    notifications   those of batches, and fan-outs themselves (place -1)
    devices         ends of a fan-out's devices, by the time of their end

A segment is written a few seconds after the acceptance, when most have their end; ends that come later change
its classes. What is not in a segment yet is looked at itself. Whatever is found is read from batch and log
before it is shown: the index may lag, and is never believed.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import trio

from fastpush.gateway.outbox.packing import read_ends, read_log, read_only_end
from fastpush.gateway.storage import Storage

__all__ = [
    "COLUMNS",
    "DEVICES",
    "DEVICE_CHARACTERS",
    "MANY",
    "NOTIFICATIONS",
    "Class",
    "Indexer",
    "Row",
    "accepted",
]

SEGMENT = 4_096
DEVICE_CHARACTERS = 8
MANY = 255  # the class of what no class was left for; it matches everything
SETTLED_AFTER = 3.0  # seconds from acceptance to a place in the index
WORTHWHILE, AT_LATEST = 512, 15.0  # so many notifications, or so many seconds, make a segment
MOST_TOUCHED = 200_000

NOTIFICATIONS, DEVICES = 0, 1
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_from_json = msgspec.json.Decoder().decode

Class = tuple[str, str, str, str]
"""App, source, outcome ("waiting" without one) and reason."""


class Segment:
    """A segment that is being made, or changed."""

    def __init__(self, number: int = 0, row: Sequence[Any] | None = None) -> None:
        self.number = number
        self.classes: list[Class] = []
        self.codes = bytearray()
        self.devices: list[str] = []
        self.keys = array("Q")
        self.batches = array("Q")
        self.places = array("i")
        self.tokens: list[str] = []
        if row is not None:
            classes, codes, devices, keys, batches, places, tokens = row
            self.classes = [tuple(one) for one in _decode(classes)]
            self.codes = bytearray(codes)
            self.devices = [devices.decode()]
            for column, octets in ((self.keys, keys), (self.batches, batches), (self.places, places)):
                column.frombytes(octets)
            self.tokens = _decode(tokens)
        self._codes = {one: code for code, one in enumerate(self.classes)}

    def code(self, one: Class) -> int:
        found = self._codes.get(one)
        if found is None:
            if len(self.classes) == MANY:
                return MANY
            found = self._codes[one] = len(self.classes)
            self.classes.append(one)
        return found

    def row(self) -> tuple[Any, ...]:
        waiting = [code for code, one in enumerate(self.classes) if one[2] == "waiting"]
        left = sum(self.codes.count(code) for code in waiting) + self.codes.count(MANY)
        return (
            self.number, self.number & 1, self.keys[0], self.keys[-1], len(self.keys), left,
            _encode(self.classes), bytes(self.codes), "".join(self.devices).encode(), self.keys.tobytes(),
            self.batches.tobytes(), self.places.tobytes(), _encode(self.tokens),
        )  # fmt: skip


COLUMNS = "classes, codes, devices, keys, batches, places, tokens"


def _ending(device_token: str | None) -> str:
    """The last characters, as many for each; those of others than ASCII would shift the column."""
    ending = (device_token or "")[-DEVICE_CHARACTERS:].lower().rjust(DEVICE_CHARACTERS)
    return ending if ending.isascii() else " " * DEVICE_CHARACTERS


class Indexer:
    """Fills the index. Reading and packing is done beside the hot path, in a thread that only reads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._touched: set[int] = set()
        self._loaded = False
        self._filled = trio.Event()  # set when everything that was due is in the index
        self._indexed = 0
        self._numbers = [0, 1]
        """The newest segments of either kind."""

    @property
    def indexed(self) -> int:
        """Batches up to this one are in the index."""
        return self._indexed

    def touch(self, batches: Iterable[int]) -> None:
        """Something of these batches or fan-outs was settled."""
        self._touched.update(batches)
        if len(self._touched) > MOST_TOUCHED:
            self._touched.clear()
            self._loaded = False  # look through all that is open instead

    async def wait_for(self, batch: int) -> None:
        """Return when the index has everything up to this batch, with the ends that it has by then."""
        while True:
            await self._filled.wait()
            if self._indexed >= batch and not any(number <= batch for number in self._touched):
                return

    async def run_once(self, now: float) -> None:
        """Index what is due, a segment at a time."""
        await self._fill(now)
        self._filled.set()
        self._filled = trio.Event()

    async def _fill(self, now: float) -> None:
        storage = self._storage
        if not self._loaded:
            self._indexed, numbers, touched = await storage.read(_open_segments)
            self._numbers = [max(numbers[kind], kind) for kind in (0, 1)]
            self._touched |= touched
            self._loaded = True
        settled = now - SETTLED_AFTER - 2 * storage.pending_after
        upto = int(settled * 1_000) << 20
        wanted = sorted(number for number in self._touched if number <= self._indexed)
        # Those behind the index get their ends when they are put into it.
        self._touched = {number for number in self._touched if number > upto}
        done = 0
        try:
            for done in range(0, len(wanted), SEGMENT):
                await self._follow(wanted[done : done + SEGMENT])
            done = len(wanted)
        finally:
            self._touched.update(wanted[done:])  # what the disk refused is tried again
        while True:
            page = await storage.read(lambda connection: accepted(connection, self._indexed, upto))
            oldest = (page.rows[0][0] >> 20) / 1_000 if page.rows else now
            if len(page.rows) < WORTHWHILE and now - oldest < AT_LATEST:
                return
            await self._append(NOTIFICATIONS, page.rows, page.upto, [])
            fanouts = [number for number, _, place, *_ in page.rows if place == -1]
            try:
                ends = await storage.read(lambda connection, some=fanouts: _device_ends(connection, some))  # type: ignore[misc]
                await self._append(DEVICES, ends.rows, None, ends.logs)
            except BaseException:
                self._touched.update(fanouts)
                raise
            if not page.more:
                return

    async def _follow(self, batches: list[int]) -> None:
        """Bring the ends of batches and fan-outs that are in the index into it."""
        storage = self._storage
        changes = await storage.read(lambda connection: _changed(connection, batches))

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE segment SET waiting = ?, classes = ?, codes = ? WHERE id = ?", changes
            )

        if changes:
            await storage.write(change, essential=True)
        ends = await storage.read(lambda connection: _device_ends(connection, batches))
        await self._append(DEVICES, ends.rows, None, ends.logs)

    async def _append(
        self, kind: int, rows: Sequence[Row], upto: int | None, logs: Sequence[tuple[int, int]]
    ) -> None:
        """Put rows at the end of the newest segment of a kind, and into new ones."""
        if not rows and upto is None and not logs:
            return
        number = self._numbers[kind]
        last = await self._storage.read(lambda connection: _segment(connection, number))
        segments = await self._storage.read(lambda _: _packed(kind, number, last, rows))
        stored = [segment.row() for segment in segments]

        def change(connection: sqlite3.Connection) -> None:
            places = ", ".join("?" * 13)
            for row in stored:
                connection.execute(f"INSERT OR REPLACE INTO segment VALUES ({places})", row)
            if upto is not None:
                connection.execute("INSERT OR REPLACE INTO indexed VALUES (1, ?)", (upto,))
            connection.executemany("INSERT OR REPLACE INTO indexed_fanout VALUES (?, ?)", logs)

        await self._storage.write(change, essential=True)
        if segments:
            self._numbers[kind] = segments[-1].number
        if upto is not None:
            self._indexed = upto


Row = tuple[int, int, int, "str | None", Class]
"""Key, batch, place, device token, class."""


class _Accepted(NamedTuple):
    rows: list[Row]
    upto: int
    more: bool


class _DeviceEnds(NamedTuple):
    rows: list[Row]
    logs: list[tuple[int, int]]


def _segment(connection: sqlite3.Connection, number: int) -> Segment | None:
    row = connection.execute(f"SELECT {COLUMNS} FROM segment WHERE id = ?", (number,)).fetchone()
    return None if row is None else Segment(number, row)


def _packed(kind: int, number: int, last: Segment | None, rows: Sequence[Row]) -> list[Segment]:
    """The segments that change or are new; numbers of either kind are even, or odd."""
    segments: list[Segment] = []
    if last is not None and len(last.keys) < SEGMENT:
        segments.append(last)
    done = 0
    while done < len(rows):
        if not segments or len(segments[-1].keys) >= SEGMENT:
            number += 2
            segments.append(Segment(number))
        segment = segments[-1]
        part = rows[done : done + SEGMENT - len(segment.keys)]
        done += len(part)
        code = segment.code
        segment.keys.extend([row[0] for row in part])
        segment.batches.extend([row[1] for row in part])
        segment.places.extend([row[2] for row in part])
        segment.devices.append("".join([_ending(row[3]) for row in part]))
        segment.codes += bytes([code(row[4]) for row in part])
        if kind == DEVICES:
            segment.tokens += [row[3] or "" for row in part]
    return segments


def _open_segments(connection: sqlite3.Connection) -> tuple[int, list[int], set[int]]:
    """Up to where the index is filled, the newest segments, and the batches in it that had no end."""
    row = connection.execute("SELECT upto FROM indexed").fetchone()
    numbers = [0, 0]
    for kind, number in connection.execute("SELECT kind, max(id) FROM segment GROUP BY kind"):
        numbers[kind] = number
    touched: set[int] = {fanout for (fanout,) in connection.execute("SELECT id FROM walk")}
    for (number,) in connection.execute("SELECT id FROM segment WHERE kind = 0 AND waiting > 0").fetchall():
        segment = _segment(connection, number)
        if segment is not None:
            waiting = {code for code, one in enumerate(segment.classes) if one[2] == "waiting"} | {MANY}
            touched |= {
                batch for batch, code in zip(segment.keys, segment.codes, strict=True) if code in waiting
            }
    return (row[0] if row else 0), numbers, touched


_ACCEPTED = """
SELECT json_group_array(json_array(batch.id, app.name, batch.source, batch.count, hex(batch.head),
    (SELECT group_concat(hex(log), ' ') FROM outcome WHERE outcome.batch = batch.id)))
FROM (SELECT id FROM (SELECT id, sum(count) OVER (ORDER BY id) - count AS before
        FROM (SELECT id, count FROM batch WHERE id > :after AND id <= :upto ORDER BY id LIMIT 4096))
      WHERE before < :count) AS page
CROSS JOIN batch ON batch.id = page.id JOIN app ON app.number = batch.lane / 2
"""
_FANOUTS = """
SELECT fanout.id, app.name, fanout.source, walk.id IS NOT NULL FROM fanout
JOIN app ON app.number = fanout.lane / 2 LEFT JOIN walk ON walk.id = fanout.id
WHERE fanout.id > ? AND fanout.id <= ? ORDER BY fanout.id LIMIT ?
"""


def accepted(connection: sqlite3.Connection, after: int, upto: int, count: int = SEGMENT) -> _Accepted:
    """What was accepted behind a batch, in its order, with the ends that are known."""
    values = {"after": after, "upto": upto, "count": count}
    found = sorted(_from_json(connection.execute(_ACCEPTED, values).fetchone()[0]))
    more = sum([row[3] for row in found]) >= count or len(found) == 4_096
    if more:
        upto = found[-1][0]
    fanouts = connection.execute(_FANOUTS, (after, upto, count)).fetchall()
    if len(fanouts) == count:
        more, upto = True, fanouts[-1][0]
        found = [row for row in found if row[0] <= upto]
    rows: list[Row] = []
    append, fromhex = rows.append, bytes.fromhex
    for batch, app, source, size, head, logs in found:
        if size == 1:  # what comes one by one: 5 us each and not 8
            end = read_only_end(logs) if logs else None
            one = (app, source, "waiting", "") if end is None else (app, source, *end)
            append((batch, batch, 0, _decode(fromhex(head))[1][0], one))
            continue
        tokens = device_tokens(fromhex(head), size)
        ends, rest = read_ends([fromhex(log) for log in (logs or "").split()])
        classes: dict[Any, Class] = {end: (app, source, *end) for end in set(ends.values())}
        other = (app, source, *(rest or ("waiting", "")))
        rows += [
            (batch, batch, place, token, classes[ends[place]] if place in ends else other)
            for place, token in enumerate(tokens)
        ]
    for fanout, app, source, walking in fanouts:
        one = (app, source, "waiting" if walking else "accepted", "")
        rows.append((fanout, fanout, -1, None, one))
    if fanouts:
        rows.sort(key=lambda row: row[:3])
    return _Accepted(rows, upto, more)


def device_tokens(head: bytes, count: int) -> list[str | None]:
    tokens = _decode(head)[1]
    return tokens * count if len(tokens) == 1 else tokens[1]  # type: ignore[no-any-return]


def _changed(connection: sqlite3.Connection, batches: Sequence[int]) -> list[tuple[int, bytes, bytes, int]]:
    """The new classes of the segments in which these batches, in order, are."""
    numbers = [
        number
        for number, first, last in connection.execute(
            "SELECT id, first, last FROM segment WHERE kind = 0 AND waiting > 0 AND first <= ? AND last >= ?",
            (batches[-1], batches[0]),
        )
        if bisect_left(batches, first) < len(batches) and batches[bisect_left(batches, first)] <= last
    ]
    if not numbers:
        return []
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(batch, hex(log))) FROM outcome"
        " WHERE batch IN (SELECT value FROM json_each(?))",
        (json.dumps(batches),),
    ).fetchone()
    logs: dict[int, list[bytes]] = {}
    for batch, log in _from_json(text):
        logs.setdefault(batch, []).append(bytes.fromhex(log))
    ends = {batch: read_ends(some) for batch, some in logs.items()}
    walking = {number for (number,) in connection.execute("SELECT id FROM walk")}
    touched, changes = set(batches), []
    for number in numbers:
        segment = _segment(connection, number)
        if segment is None:
            continue
        for position, (batch, place, code) in enumerate(
            zip(segment.batches, segment.places, segment.codes, strict=True)
        ):
            if batch not in touched or code == MANY or segment.classes[code][2] != "waiting":
                continue
            app, source, *_ = segment.classes[code]
            if place < 0:
                end = None if batch in walking else ("accepted", "")
            else:
                some, rest = ends.get(batch, ({}, None))
                end = some.get(place, rest)
            if end is not None:
                segment.codes[position] = segment.code((app, source, *end))
        row = segment.row()
        changes.append((row[5], row[6], row[7], number))
    return changes


def _device_ends(connection: sqlite3.Connection, fanouts: Sequence[int]) -> _DeviceEnds:
    """Ends of devices of these fan-outs, if they are such, that are in no segment yet."""
    rows: list[Row] = []
    logs: list[tuple[int, int]] = []
    if not fanouts:
        return _DeviceEnds(rows, logs)
    for fanout, app, source, done in connection.execute(
        "SELECT fanout.id, app.name, source, coalesce(indexed_fanout.log, 0) FROM fanout"
        " JOIN app ON app.number = fanout.lane / 2 LEFT JOIN indexed_fanout ON fanout = fanout.id"
        " WHERE fanout.id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(fanouts)),),
    ).fetchall():
        last = done
        for number, log in connection.execute(
            "SELECT id, log FROM outcome WHERE batch = ? AND id > ? ORDER BY id", (fanout, done)
        ):
            last = number
            for fate in read_log(log):
                attempt = fate.attempt
                if fate.device_token is not None and attempt.outcome != "retry":
                    one = (app, source, attempt.outcome, attempt.reason)
                    rows.append((int(attempt.at * 1_000) << 20, fanout, -1, fate.device_token, one))
        if last != done:
            logs.append((fanout, last))
    rows.sort(key=lambda row: row[:3])
    return _DeviceEnds(rows, logs)
