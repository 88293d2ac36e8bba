"""The alarms' tables, what is asked of them, and what is forgotten.

    alarm             one row each, with what lists are made by beside it
    alarm_verdict     what was judged of each, its newest last; a verdict names its alarm's previous one,
                      which makes a history without an index
    alarm_tags        each set of tags that an alarm was ever told to
    alarm_history     how many octets of verdicts there are
    alarm_unreadable  posts in which nothing is known

Numbers of verdicts are microseconds, and grow. An alarm's `opened` is the number of the verdict that began
its generation: lists go by it.
"""

from __future__ import annotations

import base64
import binascii
import sqlite3
from typing import Any, Literal

import msgspec

from fastpush.gateway.alarms import AlarmRow
from fastpush.gateway.sources import Severity
from fastpush.gateway.storage import Question

__all__ = [
    "ALARM",
    "KNOWN",
    "SCHEMA",
    "UNREADABLE",
    "History",
    "Listed",
    "ListedState",
    "Post",
    "Told",
    "Unreadable",
    "encode",
    "forget_alarms",
    "list_alarms",
    "name_of",
    "octets_of",
    "read_history",
    "read_owed",
    "read_posts",
    "read_push",
    "read_row",
    "read_state",
    "read_tags",
    "read_told",
    "read_unreadable",
    "tags_text",
    "trim_verdicts",
]

ListedState = Literal["open", "unacknowledged", "cleared"]

TRIM_ROWS = 500  # so that no commit of others waits for more than a few milliseconds
VERDICT_OCTETS = 64  # of a verdict's row besides what is told, about

SCHEMA = """
CREATE TABLE alarm (
    id BLOB PRIMARY KEY, open INTEGER NOT NULL, unread INTEGER NOT NULL, opened INTEGER NOT NULL,
    last INTEGER NOT NULL, severity TEXT NOT NULL, device TEXT NOT NULL, tags TEXT NOT NULL,
    row BLOB NOT NULL, owed INTEGER NOT NULL
);
CREATE INDEX alarm_listed ON alarm (open, opened);
CREATE INDEX alarm_unread ON alarm (tags) WHERE unread;
CREATE INDEX alarm_owed ON alarm (id) WHERE owed;
CREATE TABLE alarm_tags (
    tags TEXT PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE alarm_verdict (
    id INTEGER PRIMARY KEY, alarm BLOB NOT NULL, previous INTEGER NOT NULL, at REAL NOT NULL,
    told BLOB NOT NULL
);
CREATE TABLE alarm_history (
    id INTEGER PRIMARY KEY, octets INTEGER NOT NULL
);
INSERT INTO alarm_history VALUES (1, 0);
CREATE TABLE alarm_unreadable (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, source TEXT NOT NULL, content_type TEXT NOT NULL,
    octets INTEGER NOT NULL, raw TEXT NOT NULL
)
"""
# id, open and four times what is owed, unread, opened, last, previous, at, severity, device, tags, row, told
ALARM = f"""
INSERT INTO alarm VALUES
    (NEW.a, NEW.b & 1, NEW.c, NEW.d, NEW.e, NEW.h, NEW.i, NEW.j, NEW.k, NEW.b >> 2)
  ON CONFLICT (id) DO UPDATE SET open = excluded.open, unread = excluded.unread, opened = excluded.opened,
    last = excluded.last, severity = excluded.severity, device = excluded.device, tags = excluded.tags,
    row = excluded.row, owed = excluded.owed;
INSERT INTO alarm_verdict VALUES (NEW.e, NEW.a, NEW.f, NEW.g, NEW.l);
INSERT OR IGNORE INTO alarm_tags VALUES (NEW.j);
UPDATE alarm_history SET octets = octets + length(NEW.l) + {VERDICT_OCTETS};
"""
# number, at, source, content type, octets, raw, how many are kept
UNREADABLE = """
INSERT INTO alarm_unreadable VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f);
DELETE FROM alarm_unreadable WHERE id <=
  (SELECT id FROM alarm_unreadable ORDER BY id DESC LIMIT 1 OFFSET NEW.g);
"""
KNOWN = Question("alarm", "id", ("opened", "last", "hex(row)", "owed"))


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to an alarm, as it is kept.

    Attributes:
      rule: of `alarms.RULES`, "acknowledged", or "late": the push that there was no room for before.
      severity, generation: the alarm's afterwards.
      source_at, time_text: the source's own time.
      message, raw, quirks: of the event; the beginning of its body.
      by: who acknowledged.
      routes, tags: those that matched; those of the devices that were told.
      unrouted: no route took it, or no device has the tags, so that it went to the administrators.
      push: the fan-out's id in the outbox; 0 where nothing was pushed.
    """

    rule: str
    severity: Severity
    generation: int
    source_at: int | None = None
    time_text: str = ""
    message: str = ""
    raw: str = ""
    quirks: tuple[str, ...] = ()
    by: str = ""
    routes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    unrouted: Literal["", "no route", "no device"] = ""
    push: int = 0


class Listed(msgspec.Struct, frozen=True):
    """An alarm of a list; `place` is the cursor behind it."""

    id: str
    row: AlarmRow
    place: int


class History(msgspec.Struct, frozen=True):
    """An alarm and what happened to it, newest first.

    Attributes:
      verdicts: (number, UNIX seconds, what was told).
      before: the cursor for those that are older; 0 when there are no more.
    """

    id: str
    row: AlarmRow
    verdicts: tuple[tuple[int, float, Told], ...]
    before: int


class Post(msgspec.Struct, frozen=True):
    """One post of a source, whatever became of it.

    Attributes:
      number: the cursor behind it.
      at: UNIX seconds.
      raw: the beginning of the body.
      alarm, device: of the alarm that it was about; "" where nobody could read it.
      told: what became of it there.
    """

    number: int
    at: float
    source: str
    raw: str
    alarm: str = ""
    device: str = ""
    told: Told | None = None


class Unreadable(msgspec.Struct, frozen=True):
    """A post in which nothing is known: when it came (UNIX seconds), from whom, and its beginning."""

    number: int
    at: float
    source: str
    content_type: str
    octets: int
    raw: str


encode = msgspec.msgpack.Encoder().encode
read_row = msgspec.msgpack.Decoder(AlarmRow).decode
read_told = msgspec.msgpack.Decoder(Told).decode
read_tags = msgspec.json.Decoder(tuple[str, ...]).decode


def octets_of(name: str) -> bytes | None:
    """The 32 octets of an id; None where it is none."""
    try:
        found = base64.b64decode(name + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == 32 and len(name) == 43 else None


def tags_text(row: AlarmRow) -> str:
    """The set of tags as a text, the same whatever their order."""
    return msgspec.json.encode(sorted(set(row.tags))).decode()


def read_state(connection: sqlite3.Connection) -> tuple[int, dict[str, int], list[str], int]:
    """The last number, how many are open and unacknowledged by their tags, all sets of tags, and how many
    alarms are owed a push.
    """
    connection.execute("BEGIN")
    last = connection.execute(
        "SELECT max(coalesce((SELECT max(id) FROM alarm_verdict), 0),"
        " coalesce((SELECT max(id) FROM alarm_unreadable), 0), coalesce((SELECT max(opened) FROM alarm), 0))"
    ).fetchone()[0]
    unread = connection.execute("SELECT tags, count(*) FROM alarm WHERE unread GROUP BY tags").fetchall()
    sets = connection.execute("SELECT tags FROM alarm_tags").fetchall()
    (owed,) = connection.execute("SELECT count(*) FROM alarm WHERE owed").fetchone()
    return last, dict(unread), [text for (text,) in sets], owed


def read_owed(connection: sqlite3.Connection, *, limit: int) -> list[str]:
    """The ids of some alarms that are owed a push."""
    (text,) = connection.execute(
        "SELECT json_group_array(hex(id)) FROM (SELECT id FROM alarm WHERE owed LIMIT ?)", (limit,)
    ).fetchone()
    return [name_of(digits) for digits in msgspec.json.decode(text)]


def list_alarms(
    connection: sqlite3.Connection,
    *,
    state: ListedState | None,
    device: str,
    severity: tuple[Severity, ...],
    sets: list[str] | None,
    after: int | None,
    limit: int,
) -> list[Listed]:
    where = ["open = :open"]
    values: dict[str, Any] = {"limit": limit}
    if state == "unacknowledged":
        where.append("unread")
    if device:
        where.append("device GLOB :device")
        values["device"] = device.casefold().replace("[", "[[]")
    if severity:
        where.append("severity IN (SELECT value FROM json_each(:severity))")
        values["severity"] = msgspec.json.encode(severity).decode()
    if sets is not None:
        where.append("tags IN (SELECT value FROM json_each(:sets))")
        values["sets"] = msgspec.json.encode(sets).decode()
    if after is not None:
        where.append("opened < :after")
        values["after"] = after
    sql = (
        "SELECT json_group_array(json_array(hex(id), opened, hex(row))) FROM"
        f" (SELECT id, opened, row FROM alarm WHERE {' AND '.join(where)} ORDER BY opened DESC LIMIT :limit)"
    )
    connection.execute("BEGIN")
    found: list[Listed] = []
    for is_open in (1, 0) if state is None else (0,) if state == "cleared" else (1,):
        (text,) = connection.execute(sql, values | {"open": is_open}).fetchone()
        found += [
            Listed(name_of(alarm), read_row(bytes.fromhex(row)), opened)
            for alarm, opened, row in msgspec.json.decode(text)
        ]
    found.sort(key=lambda listed: -listed.place)
    return found[:limit]


def name_of(digits: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(digits)).rstrip(b"=").decode()


def read_push(connection: sqlite3.Connection, *, number: int) -> int:
    """What was pushed of a verdict."""
    (told,) = connection.execute("SELECT told FROM alarm_verdict WHERE id = ?", (number,)).fetchone()
    return read_told(told).push


_WALK = """
WITH RECURSIVE walk(id, previous, at, told, steps) AS (
    SELECT id, previous, at, told, 1 FROM alarm_verdict WHERE id = :first AND alarm = :alarm
    UNION ALL
    SELECT verdict.id, verdict.previous, verdict.at, verdict.told, steps + 1
    FROM walk JOIN alarm_verdict AS verdict ON verdict.id = walk.previous
    WHERE steps < :limit AND verdict.alarm = :alarm
)
SELECT json_group_array(json_array(id, previous, at, hex(told))) FROM walk
"""


def read_history(
    connection: sqlite3.Connection, *, alarm: bytes, name: str, before: int | None, limit: int
) -> History | None:
    connection.execute("BEGIN")
    found = connection.execute("SELECT last, row FROM alarm WHERE id = ?", (alarm,)).fetchone()
    if found is None:
        return None
    last, row = found
    first = last if before is None else before
    (text,) = connection.execute(_WALK, {"first": first, "alarm": alarm, "limit": limit}).fetchone()
    verdicts = msgspec.json.decode(text)
    more = 0
    if verdicts:
        previous = verdicts[-1][1]
        kept = connection.execute("SELECT 1 FROM alarm_verdict WHERE id = ?", (previous,)).fetchone()
        more = previous if kept else 0
    told = tuple((number, at, read_told(bytes.fromhex(text))) for number, _, at, text in verdicts)
    return History(name, read_row(row), told, more)


def read_unreadable(connection: sqlite3.Connection, *, limit: int, before: int | None) -> list[Unreadable]:
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(id, at, source, content_type, octets, raw)) FROM"
        " (SELECT * FROM alarm_unreadable WHERE id < ? ORDER BY id DESC LIMIT ?)",
        (before if before is not None else 1 << 62, limit),
    ).fetchone()
    return [Unreadable(*columns) for columns in msgspec.json.decode(text)]


def read_posts(connection: sqlite3.Connection, *, source: str, limit: int, before: int | None) -> list[Post]:
    """The newest posts, readable or not, newest first."""
    before = 1 << 62 if before is None else before
    connection.execute("BEGIN")
    # A source's posts are looked for among the newest, so that a rare one costs no walk through all of them.
    (text,) = connection.execute(
        "SELECT json_group_array(json_array(verdict.id, at, hex(verdict.alarm), hex(told), hex(row)))"
        " FROM (SELECT * FROM alarm_verdict WHERE id < ? ORDER BY id DESC LIMIT ?) AS verdict"
        " JOIN alarm ON alarm.id = verdict.alarm",
        (before, limit if not source else 20 * limit),
    ).fetchone()
    posts = []
    for number, at, alarm, told, row in msgspec.json.decode(text):
        said, known = read_told(bytes.fromhex(told)), read_row(bytes.fromhex(row))
        if not said.by:
            posts.append(Post(number, at, known.source, said.raw, name_of(alarm), known.device, said))
    posts += [
        Post(one.number, one.at, one.source, one.raw)
        for one in read_unreadable(connection, limit=limit, before=before)
    ]
    if source:
        posts = [post for post in posts if post.source == source]
    posts.sort(key=lambda post: -post.number)
    return posts[:limit]


_OLDEST = f"""
SELECT max(id), max(running), count(*)
FROM (SELECT id, at, own, sum(own) OVER (ORDER BY id) AS running
      FROM (SELECT id, at, length(told) + {VERDICT_OCTETS} AS own FROM alarm_verdict ORDER BY id LIMIT :rows))
WHERE at < :old OR running - own < :excess
"""


def trim_verdicts(connection: sqlite3.Connection, *, old: float, octets: int) -> bool:
    """Drop some of the oldest, if they are to be dropped; whether there may be more."""
    (held,) = connection.execute("SELECT octets FROM alarm_history").fetchone()
    values = {"rows": TRIM_ROWS, "old": old, "excess": held - octets}
    last, size, count = connection.execute(_OLDEST, values).fetchone()
    if not count:
        return False
    connection.execute("DELETE FROM alarm_verdict WHERE id <= ?", (last,))
    connection.execute("UPDATE alarm_history SET octets = octets - ?", (size,))
    return bool(count == TRIM_ROWS)


def forget_alarms(connection: sqlite3.Connection) -> list[bytes]:
    """Drop some cleared alarms without a verdict, and return which."""
    floor = connection.execute("SELECT min(id) FROM alarm_verdict").fetchone()[0]
    some = "SELECT id FROM alarm WHERE open = 0 AND opened < ?1 AND last < ?1 ORDER BY opened LIMIT ?2"
    values = (floor if floor is not None else 1 << 62, TRIM_ROWS)
    (text,) = connection.execute(f"SELECT json_group_array(hex(id)) FROM ({some})", values).fetchone()
    connection.execute(f"DELETE FROM alarm WHERE id IN ({some})", values)
    return [bytes.fromhex(digits) for digits in msgspec.json.decode(text)]
