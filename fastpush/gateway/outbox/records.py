"""What the outbox reads from its tables, and its rarer changes. Each function is given a connection.

Rows that come by the hundred are packed by SQLite into one JSON text, blobs as hex digits: fetched one by
one, each would wait for Python's lock.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from fastpush.gateway.outbox import (
    Acceptance,
    Attempt,
    Audience,
    BatchRecord,
    Entry,
    Fanout,
    Hit,
    Outcome,
    Record,
    StreamState,
    batch_of,
    schema,
)
from fastpush.gateway.outbox.packing import (
    PAGE,
    REST,
    LogWriter,
    pack_rest,
    read_log,
    read_marks,
    unpack_entries,
)


class Found(NamedTuple):
    """A batch as it lies on disk, with what became of it so far."""

    batch: int
    size: int
    tag: int
    entries: list[Entry]
    ended: set[int]
    parked: set[int]
    rest: bool
    ended_earlier: int
    """How many ended before the outbox was opened this time."""


class DuePage(NamedTuple):
    rows: list[tuple[int, int, int, str, int]]
    """Due time in milliseconds, batch, index, device token or "", attempts."""
    batches: dict[int, Found]
    more: bool
    """Whether others are due now."""
    next_due: int | None


class State(NamedTuple):
    """What the outbox knows when it is opened."""

    apps: list[tuple[int, str, int]]
    waiting: list[tuple[int, int]]
    """Lane and count."""
    due: list[tuple[int, int]]
    """Lane and the earliest due time."""
    fanouts: list[tuple[int, Fanout, bool, int]]
    """Lane, fan-out, whether it is walked to its end, and how many of its devices are parked."""


def last_id(connection: sqlite3.Connection) -> int:
    found = connection.execute(
        "SELECT max(coalesce((SELECT max(id) FROM batch), 0), coalesce((SELECT max(id) FROM fanout), 0),"
        " coalesce((SELECT max(id) FROM stream), 0))"
    )
    return int(found.fetchone()[0])


def count_start(connection: sqlite3.Connection) -> int:
    """How often the outbox was opened, this time included."""
    connection.execute("INSERT INTO start VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET number = number + 1")
    return int(connection.execute("SELECT number FROM start").fetchone()[0])


def state(connection: sqlite3.Connection) -> State:
    connection.execute("BEGIN")
    apps = connection.execute("SELECT number, name, paused FROM app").fetchall()
    waiting = connection.execute("SELECT lane, sum(count) FROM waiting GROUP BY lane").fetchall()
    due = []
    for number, _, _ in apps:
        for lane in (2 * number, 2 * number + 1):
            due += [(lane, row[0]) for row in connection.execute(schema.NEXT_DUE, (lane, -1))]
    return State(apps, waiting, due, list(_walking(connection)))


def _walking(connection: sqlite3.Connection) -> Iterable[tuple[int, Fanout, bool, int]]:
    rows = connection.execute(
        "SELECT walk.lane, fanout.id, app.name, audience, head, payloads, received_at, walk.cursor, tag,"
        " walk.accepted, walk.ended, walk.walked, walk.parked FROM walk JOIN fanout ON fanout.id = walk.id"
        " JOIN app ON app.number = walk.lane / 2 LEFT JOIN body ON body.batch = fanout.id ORDER BY fanout.id"
    )
    for lane, number, app, audience, head, body, at, cursor, tag, accepted, ended, walked, parked in rows:
        fanout = Fanout(
            number,
            app,
            msgspec.msgpack.decode(audience, type=Audience),
            unpack_entries(head, body, 1)[0],
            at,
            cursor,
            tag,
            accepted,
            ended,
        )
        yield lane, fanout, bool(walked), parked


def add_app(connection: sqlite3.Connection, name: str) -> int:
    connection.execute("INSERT OR IGNORE INTO app (name) VALUES (?)", (name,))
    return int(connection.execute("SELECT number FROM app WHERE name = ?", (name,)).fetchone()[0])


def end_what_was_sending(connection: sqlite3.Connection, log_id: int, at: float) -> None:
    """End as unknown what was about to be sent when the process died and must not be sent twice."""
    marked: dict[int, list[int]] = {}
    for batch, place in connection.execute("SELECT batch, place FROM sending"):
        marked.setdefault(batch, []).append(place)
    for batch, places in marked.items():
        log = LogWriter(at)
        log.end_all(places, "unknown", "Restarted", at)
        connection.execute("INSERT INTO outcome VALUES (?, ?, 0, ?)", (batch, log_id, log.packed()))
        connection.executemany(
            "DELETE FROM retry"
            " WHERE lane = (SELECT lane FROM batch WHERE id = ?1) AND batch = ?1 AND place = ?2",
            [(batch, place) for place in places],
        )
    connection.execute("DELETE FROM sending")
    # Of a fan-out a whole page may have gone out.
    for walk, mark, count in connection.execute(
        "SELECT id, mark, marked FROM walk WHERE mark IS NOT NULL"
    ).fetchall():
        log = LogWriter(at)
        log.end_page(mark, count, at)
        connection.execute("INSERT INTO outcome VALUES (?, ?, 0, ?)", (walk, log_id, log.packed()))
        connection.execute(
            "UPDATE walk SET cursor = mark, mark = NULL, ended = ended + marked WHERE id = ?", (walk,)
        )


def lane_page(
    connection: sqlite3.Connection, lane: int, after: int, count: int, first_log: int
) -> list[Found]:
    values = {"lane": lane, "after": after, "count": count}
    (text,) = connection.execute(schema.LANE_PAGE, values).fetchone()
    return sorted([_found(row, first_log) for row in json.loads(text)], key=lambda found: found.batch)


def due_page(
    connection: sqlite3.Connection,
    lane: int,
    now: int,
    cursor: tuple[int, int, int, str],
    count: int,
    first_log: int,
) -> DuePage:
    connection.execute("BEGIN")
    due, batch, place, device = cursor
    values = {"lane": lane, "now": now, "due": due, "batch": batch, "place": place, "device": device}
    (text,) = connection.execute(schema.DUE_PAGE, values | {"count": count}).fetchone()
    rows = sorted(tuple(row) for row in json.loads(text))
    wanted = sorted({row[1] for row in rows if not row[3]})
    (text,) = connection.execute(schema.BATCHES, (json.dumps(wanted),)).fetchone()
    batches = {row[0]: _found(row, first_log) for row in json.loads(text)}
    if len(rows) == count:
        return DuePage(rows, batches, True, rows[-1][0])
    following = connection.execute(schema.NEXT_DUE, (lane, now)).fetchone()
    return DuePage(rows, batches, False, following[0] if following else None)


def _found(row: list[Any], first_log: int) -> Found:
    batch, count, tag, head, payloads, logs = row
    body = bytes.fromhex(payloads) if payloads else None
    marked = [item.split(":") for item in (logs or "").split()]
    ended, parked, rest = read_marks(bytes.fromhex(log) for _, log in marked)
    earlier = ended
    if any(int(log_id) >= first_log for log_id, _ in marked):
        earlier = read_marks(bytes.fromhex(log) for log_id, log in marked if int(log_id) < first_log)[0]
    entries = unpack_entries(bytes.fromhex(head), body, count)
    return Found(batch, count, tag, entries, ended, parked, rest, len(earlier))


def own_ids(connection: sqlite3.Connection, batch: int) -> dict[int, bytes]:
    row = connection.execute("SELECT head, count FROM batch WHERE id = ?", (batch,)).fetchone()
    entries = unpack_entries(row[0], None, row[1]) if row else []
    return {index: entry.apns_id for index, entry in enumerate(entries) if entry.apns_id is not None}


# Uploads in chunks.


def open_stream(
    connection: sqlite3.Connection, stream: int, app: int, at: float, source: str, key: bytes | None
) -> StreamState:
    if key is not None:
        row = connection.execute(
            "SELECT id, lines, running_hash, entries, answer FROM stream"
            " WHERE id = (SELECT stream FROM stream_key WHERE key = ?)",
            (key,),
        ).fetchone()
        if row is not None:
            return StreamState(*row)
        connection.execute("INSERT OR REPLACE INTO stream_key VALUES (?, ?)", (key, stream))
    connection.execute("INSERT INTO stream VALUES (?, ?, ?, ?, 0, x'', 0, NULL)", (stream, app, at, source))
    return StreamState(stream, 0, b"", 0, None)


# What became of it.


def find(connection: sqlite3.Connection, apns_id: bytes) -> Record | None:
    connection.execute("BEGIN")
    batch = batch_of(apns_id)
    if 0 < batch < 1 << 63:
        record = _find_in_batch(connection, batch, apns_id) or _find_in_fanout(connection, batch, apns_id)
        if record is not None:
            return _linked(connection, record)
    row = connection.execute("SELECT batch FROM search WHERE apns_id = ?", (apns_id,)).fetchone()
    if row is not None:
        return _linked(connection, _find_in_batch(connection, row[0], apns_id))
    for (unindexed,) in connection.execute("SELECT batch FROM unindexed").fetchall():
        record = _find_in_batch(connection, unindexed, apns_id)
        if record is not None:
            return _linked(connection, record)
    return None


def _linked(connection: sqlite3.Connection, record: Record | None) -> Record | None:
    """With what it was sent again as, and what it is the repetition of."""
    if record is None:
        return None
    device = (record.entry.device_token or "") if record.index < 0 else ""
    later = connection.execute(
        "SELECT apns_id FROM again WHERE batch = ? AND place = ? AND device = ?",
        (record.batch, record.index, device),
    ).fetchone()
    earlier = connection.execute(
        "SELECT batch, place, device FROM again WHERE apns_id = ?", (record.apns_id,)
    ).fetchone()
    if later is None and earlier is None:
        return record
    return msgspec.structs.replace(
        record,
        sent_again=None if later is None else later[0],
        again_of=None if earlier is None else _apns_id_of(connection, *earlier),
    )


def _apns_id_of(connection: sqlite3.Connection, batch: int, place: int, device: str) -> bytes | None:
    table = "fanout" if place < 0 else "batch"
    row = connection.execute(f"SELECT tag, head FROM {table} WHERE id = ?", (batch,)).fetchone()
    if row is None:
        return None
    tag, head = row
    if place < 0:
        return Fanout(batch, "", Audience(), Entry(None, b""), 0.0, "", tag).apns_id(device)
    count = connection.execute("SELECT count FROM batch WHERE id = ?", (batch,)).fetchone()[0]
    own = unpack_entries(head, None, count)[place].apns_id
    return own or Acceptance(batch, count, 0.0, False, tag).apns_id(place)


def contents(connection: sqlite3.Connection, hits: Sequence[Hit]) -> list[Entry | None]:
    """What was sent to each, None where its payload was dropped."""
    batches: dict[int, list[Entry] | None] = {}
    found: list[Entry | None] = []
    for hit in hits:
        if hit.batch not in batches:
            table, count = ("fanout", "1") if hit.index < 0 else ("batch", "count")
            row = connection.execute(
                f"SELECT head, payloads, {count} FROM {table} JOIN body ON body.batch = id WHERE id = ?",
                (hit.batch,),
            ).fetchone()
            batches[hit.batch] = None if row is None else unpack_entries(*row)
        entries = batches[hit.batch]
        entry = None if entries is None else entries[max(hit.index, 0)]
        if entry is None or not entry.payload:
            found.append(None)
        else:
            found.append(msgspec.structs.replace(entry, device_token=hit.device_token))
    return found


def _logs(connection: sqlite3.Connection, batch: int) -> list[bytes]:
    return [
        log for (log,) in connection.execute("SELECT log FROM outcome WHERE batch = ? ORDER BY id", (batch,))
    ]


def _find_in_batch(connection: sqlite3.Connection, batch: int, apns_id: bytes) -> Record | None:
    row = connection.execute(
        "SELECT app.name, source, received_at, count, tag, own, head, payloads FROM batch"
        " JOIN app ON app.number = batch.lane / 2 LEFT JOIN body ON body.batch = batch.id WHERE id = ?",
        (batch,),
    ).fetchone()
    if row is None:
        return None
    app, source, at, count, tag, own, head, payloads = row
    acceptance = Acceptance(batch, count, at, False, tag)
    index = int.from_bytes(apns_id, "big") >> 32 & (1 << 22) - 1
    entries = unpack_entries(head, payloads, count)
    if own:
        own_index = {entry.apns_id: number for number, entry in enumerate(entries)}.get(apns_id)
        index = index if own_index is None else own_index
    if index >= count or apns_id != (entries[index].apns_id or acceptance.apns_id(index)):
        return None
    outcome, attempts = _story(_logs(connection, batch), index, None)
    return Record(batch, index, apns_id, app, source, at, entries[index], outcome, attempts)


def _find_in_fanout(connection: sqlite3.Connection, fanout: int, apns_id: bytes) -> Record | None:
    row = connection.execute(
        "SELECT app.name, source, received_at, tag, head, payloads FROM fanout"
        " JOIN app ON app.number = fanout.lane / 2 LEFT JOIN body ON body.batch = fanout.id WHERE id = ?",
        (fanout,),
    ).fetchone()
    if row is None:
        return None
    app, source, at, tag, head, payloads = row
    entry = unpack_entries(head, payloads, 1)[0]
    walk = Fanout(fanout, app, Audience(), entry, at, "", tag)
    logs = _logs(connection, fanout)
    devices = {fate.device_token for log in logs for fate in read_log(log) if fate.place == -1}
    for device in devices:
        if device is not None and walk.apns_id(device) == apns_id:
            outcome, attempts = _story(logs, -1, device)
            entry = msgspec.structs.replace(entry, device_token=device)
            return Record(fanout, -1, apns_id, app, source, at, entry, outcome, attempts)
    return None


def _story(
    logs: Iterable[bytes], index: int, device_token: str | None
) -> tuple[Outcome | None, tuple[Attempt, ...]]:
    """The outcome and all attempts; what ended the rest counts only without an end of its own."""
    own: list[Attempt] = []
    rest: list[Attempt] = []
    for log in logs:
        for fate in read_log(log):
            if fate.place == index and fate.device_token == device_token:
                own.append(fate.attempt)
            elif fate.place == REST:
                rest.append(fate.attempt)
    ends = [attempt.outcome for attempt in own if attempt.outcome != "retry"]
    if not ends and rest:
        own += rest[:1]
        ends = [attempt.outcome for attempt in rest[:1] if attempt.outcome != "retry"]
    return (ends[0] if ends else None), tuple(own)


def find_batch(connection: sqlite3.Connection, batch: int, limit: int) -> BatchRecord | None:
    connection.execute("BEGIN")
    row = connection.execute(
        "SELECT app.name, source, received_at, count FROM batch JOIN app ON app.number = batch.lane / 2"
        " WHERE id = ?",
        (batch,),
    ).fetchone()
    if row is not None:
        app, source, at, count = row
        outcomes = _outcomes(connection, batch, count)
        waiting = count - sum(outcomes.values())
        return BatchRecord(batch, app, source, at, "batch", count, waiting, outcomes)
    row = connection.execute(
        "SELECT app.name, source, received_at, coalesce(walk.accepted, fanout.accepted),"
        " coalesce(walk.ended, fanout.ended), walk.walked, walk.parked, head, payloads, audience"
        " FROM fanout JOIN app ON app.number = fanout.lane / 2 LEFT JOIN walk ON walk.id = fanout.id"
        " LEFT JOIN body ON body.batch = fanout.id WHERE fanout.id = ?",
        (batch,),
    ).fetchone()
    if row is not None:
        app, source, at, accepted, ended, walked, parked, head, payloads, packed = row
        outcomes = _device_outcomes(connection, batch)
        outcomes["accepted"] = accepted
        waiting = None if walked == 0 else parked or 0
        entry = unpack_entries(head, payloads, 1)[0]
        audience = msgspec.msgpack.decode(packed, type=Audience)
        return BatchRecord(
            batch, app, source, at, "fanout", accepted + ended, waiting, outcomes, entry=entry,
            audience=audience,
        )  # fmt: skip
    row = connection.execute(
        "SELECT app.name, source, received_at, entries FROM stream JOIN app ON app.number = stream.app"
        " WHERE id = ?",
        (batch,),
    ).fetchone()
    if row is None:
        return None
    app, source, at, count = row
    total: dict[str, int] = {}
    parts = [
        part for (part,) in connection.execute("SELECT batch FROM stream_part WHERE stream = ?", (batch,))
    ]
    for part in parts:
        found = connection.execute("SELECT count FROM batch WHERE id = ?", (part,)).fetchone()
        for outcome, number in _outcomes(connection, part, found[0] if found else 0).items():
            total[outcome] = total.get(outcome, 0) + number
    waiting = count - sum(total.values())
    return BatchRecord(batch, app, source, at, "stream", count, waiting, total, tuple(parts[:limit]))


def _outcomes(connection: sqlite3.Connection, batch: int, count: int) -> dict[str, int]:
    ends: dict[int, str] = {}
    rest: str | None = None
    for log in _logs(connection, batch):
        for fate in read_log(log):
            if fate.place == REST:
                rest = rest or fate.attempt.outcome
            elif fate.attempt.outcome != "retry":
                ends.setdefault(fate.place, fate.attempt.outcome)
    counted: dict[str, int] = {}
    for outcome in ends.values():
        counted[outcome] = counted.get(outcome, 0) + 1
    if rest is not None and count > len(ends):
        counted[rest] = counted.get(rest, 0) + count - len(ends)
    return counted


def _device_outcomes(connection: sqlite3.Connection, fanout: int) -> dict[str, int]:
    ends: dict[str, str] = {}
    counted: dict[str, int] = {}
    for log in _logs(connection, fanout):
        for fate in read_log(log):
            if fate.device_token is not None and fate.attempt.outcome != "retry":
                ends.setdefault(fate.device_token, fate.attempt.outcome)
            elif fate.place == PAGE:
                counted["unknown"] = counted.get("unknown", 0) + fate.attempt.attempts
    for outcome in ends.values():
        if outcome != "accepted":
            counted[outcome] = counted.get(outcome, 0) + 1
    return counted


def purge(connection: sqlite3.Connection, lane: int, upto: int, log_id: int, at: float, limit: int) -> bool:
    """End at most `limit` batches of a lane as failed. Returns whether there may be more."""
    log = pack_rest("failed", "Purged", at)
    batches = [
        batch
        for (batch,) in connection.execute(
            "SELECT batch FROM waiting WHERE lane = ? AND batch <= ? ORDER BY batch LIMIT ?",
            (lane, upto, limit),
        )
    ]
    wanted = json.dumps(batches)
    connection.execute("INSERT INTO outcome SELECT value, ?, 1, ? FROM json_each(?)", (log_id, log, wanted))
    connection.execute(
        "DELETE FROM waiting WHERE lane = ? AND batch IN (SELECT value FROM json_each(?))", (lane, wanted)
    )
    connection.execute("DELETE FROM sending WHERE batch IN (SELECT value FROM json_each(?))", (wanted,))
    return len(batches) == limit


def purge_fanouts(connection: sqlite3.Connection, lane: int, upto: int, log_id: int, at: float) -> None:
    log, which = pack_rest("failed", "Purged", at), (lane, upto)
    connection.execute(
        "INSERT INTO outcome SELECT id, ?, 1, ? FROM walk WHERE lane = ? AND id <= ?", (log_id, log, *which)
    )
    connection.execute(
        "UPDATE fanout SET accepted = walk.accepted, ended = walk.ended, cursor = walk.cursor FROM walk"
        " WHERE fanout.id = walk.id AND walk.lane = ? AND walk.id <= ?",
        which,
    )
    connection.execute("DELETE FROM walk WHERE lane = ? AND id <= ?", which)


def purge_retries(connection: sqlite3.Connection, lane: int, upto: int, limit: int) -> bool:
    """Delete what is parked of batches and fan-outs that were purged; after these, see `_read_due`."""
    done = connection.execute(
        "DELETE FROM retry WHERE (lane, due, batch, place, device) IN (SELECT lane, due, batch, place, device"
        " FROM retry WHERE lane = ? AND batch <= ? LIMIT ?)",
        (lane, upto, limit),
    )
    return done.rowcount == limit
