"""Searching: through the index and what is too new for it, newest first.

Whatever is found is read from batch and log before it is shown: the index may lag, and is never believed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from heapq import merge
from typing import Any, NamedTuple

import msgspec

from fastpush.gateway.outbox import (
    Acceptance,
    Audience,
    Failures,
    Fanout,
    Hit,
    SearchPage,
    apns_id_base,
    batch_of,
)
from fastpush.gateway.outbox.index import (
    COLUMNS,
    DEVICE_CHARACTERS,
    DEVICES,
    MANY,
    NOTIFICATIONS,
    Class,
    Row,
    accepted,
)
from fastpush.gateway.outbox.packing import REST, Fate, read_log, unpack_entries

__all__ = ["Query", "failures", "search"]

TAIL = 20_000  # notifications that are not indexed yet and are looked at in a search
LIMIT = 1_000
LAST = (1 << 63) - 1  # of all ids
_decode = msgspec.msgpack.Decoder().decode


class Query(NamedTuple):
    """What is looked for; None is anything. Instants are UNIX seconds."""

    app: str | None = None
    outcome: str | None = None
    reason: str | None = None
    device_ends: str | None = None
    source: str | None = None
    apns_id_prefix: str | None = None
    after: float | None = None
    before: float | None = None

    def wants(self, one: Class) -> bool:
        return (
            (self.app is None or self.app == one[0])
            and (self.source is None or self.source == one[1])
            and (self.outcome is None or self.outcome == one[2])
            and (self.reason is None or self.reason == one[3])
        )


class _Candidate(NamedTuple):
    """Something that may be what is looked for; compared by the order in which they are shown, backward."""

    key: int
    kind: int
    place: int
    batch: int
    device_token: str


def search(
    connection: sqlite3.Connection, query: Query, cursor: str | None, limit: int, indexed: int
) -> SearchPage:
    """The newest that the query wants, behind the cursor."""
    limit = min(limit, LIMIT)
    behind = _read_cursor(cursor)
    low = 0 if query.after is None else int(query.after * 1_000) << 20
    high = LAST if query.before is None else int(query.before * 1_000) << 20
    own: list[_Candidate] = []
    first, last = 0, LAST
    if query.apns_id_prefix:
        prefix = query.apns_id_prefix.replace("-", "").lower()
        query = query._replace(apns_id_prefix=prefix)
        bounds = _bounds(prefix)
        if bounds is None:
            return SearchPage([], None)
        first, last = bounds
        own = _own_ids(connection, prefix)
    among = range(first, last + 1)
    if behind is not None:
        high = min(high, behind.key)
    newer, older = max(low, first), min(high, last)
    streams = [
        _unindexed(connection, query, indexed, newer, older),
        _through(connection, NOTIFICATIONS, query, newer, older, among),
        # The key of a device's end is its time, and its id holds the fan-out.
        _through(connection, DEVICES, query, newer, high, among),
        iter(own),
    ]
    hits: list[Hit] = []
    shown: set[_Candidate] = set()
    reader = _Reader(connection)
    at = None
    for candidate in merge(*streams, reverse=True):
        if candidate in shown or (behind is not None and candidate >= behind):
            continue
        hit = reader.read(candidate)
        if hit is None or not _fits(query, hit):
            continue
        shown.add(candidate)
        if len(hits) == limit:
            return SearchPage(hits, at)
        hits.append(hit)
        at = ".".join(map(str, candidate))
    return SearchPage(hits, None)


def _read_cursor(cursor: str | None) -> _Candidate | None:
    if not cursor:
        return None
    key, kind, place, batch, device_token = cursor.split(".", 4)
    return _Candidate(int(key), int(kind), int(place), int(batch), device_token)


def _fits(query: Query, hit: Hit) -> bool:
    return (
        query.wants((hit.app, hit.source, hit.outcome or "waiting", hit.reason))
        and (
            query.device_ends is None or (hit.device_token or "").lower().endswith(query.device_ends.lower())
        )
        and (query.apns_id_prefix is None or hit.apns_id.hex().startswith(query.apns_id_prefix))
    )


def _bounds(prefix: str) -> tuple[int, int] | None:
    """The first and the last batch whose ids may begin so; None for what is no prefix of an id."""
    try:
        low, high = (int(prefix.ljust(32, digit)[:32], 16) for digit in "0f")
    except ValueError:
        return None
    return min(batch_of(low.to_bytes(16, "big")), LAST), min(batch_of(high.to_bytes(16, "big")), LAST)


def _own_ids(connection: sqlite3.Connection, prefix: str) -> list[_Candidate]:
    """Those whose senders brought their own ids."""
    try:
        low, high = (bytes.fromhex(prefix.ljust(32, digit)[:32]) for digit in "0f")
    except ValueError:
        return []
    rows = connection.execute(
        "SELECT batch, place FROM search WHERE apns_id >= ? AND apns_id <= ? LIMIT ?", (low, high, LIMIT)
    ).fetchall()
    return sorted([_Candidate(batch, NOTIFICATIONS, place, batch, "") for batch, place in rows], reverse=True)


def _through(
    connection: sqlite3.Connection, kind: int, query: Query, low: int, high: int, among: range
) -> Iterator[_Candidate]:
    """Candidates out of the segments of a kind, newest first."""
    ending = None if query.device_ends is None else query.device_ends.lower()[-DEVICE_CHARACTERS:].encode()
    numbers = [
        number
        for (number,) in connection.execute(
            "SELECT id FROM segment WHERE kind = ? AND last >= ? AND first <= ? ORDER BY id DESC",
            (kind, low, high),
        )
    ]
    for number in numbers:
        row = connection.execute(f"SELECT {COLUMNS} FROM segment WHERE id = ?", (number,)).fetchone()
        classes, codes, devices, keys, batches, places, tokens = row
        wanted = {code for code, one in enumerate(_decode(classes)) if query.wants(tuple(one))} | {MANY}
        mask = codes.translate(bytes([code in wanted for code in range(256)]))
        if b"\x01" not in mask or (ending is not None and ending not in devices):
            continue
        key_at, batch_at = memoryview(keys).cast("Q"), memoryview(batches).cast("Q")
        place_at = memoryview(places).cast("i")
        names = _decode(tokens)
        place = len(mask)
        found = []
        while (place := mask.rfind(b"\x01", 0, place)) >= 0:
            if ending is None or devices.endswith(ending, 0, (place + 1) * DEVICE_CHARACTERS):
                key, batch = key_at[place], batch_at[place]
                if low <= key <= high and batch in among:
                    name = names[place] if names else ""
                    found.append(_Candidate(key, kind, place_at[place], batch, name))
        yield from sorted(found, reverse=True) if kind == DEVICES else found


def _unindexed(
    connection: sqlite3.Connection, query: Query, indexed: int, low: int, high: int
) -> Iterator[_Candidate]:
    """Candidates among what is too new for the index."""
    after = max(indexed, low - 1)
    rows = _newest(connection, after, high)
    for key, batch, place, device_token, one in reversed(rows):
        if query.wants(one) and (
            query.device_ends is None or (device_token or "").lower().endswith(query.device_ends.lower())
        ):
            yield _Candidate(key, NOTIFICATIONS, place, batch, "")


def _newest(connection: sqlite3.Connection, after: int, upto: int) -> list[Row]:
    """At most some thousand of what is behind the index: the newest."""
    # Fan-outs are no batches: only where there are too many of these something is left out.
    row = connection.execute(
        "SELECT max(id) FROM (SELECT id, sum(count) OVER (ORDER BY id DESC) - count AS before"
        " FROM (SELECT id, count FROM batch WHERE id > ? AND id <= ? ORDER BY id DESC LIMIT ?))"
        " WHERE before >= ?",
        (after, upto, TAIL + 1, TAIL),
    ).fetchone()
    first = after if row[0] is None else row[0]
    rows: list[Row] = []
    while True:
        page = accepted(connection, first, upto, TAIL)
        rows += page.rows
        if not page.more:
            return rows
        first = page.upto


class _Reader:
    """Reads what a candidate really is; each batch once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._batches: dict[int, Any] = {}
        self._devices: dict[int, Any] = {}
        """Of fan-outs: what ended their devices, and what they were sent again as."""

    def read(self, candidate: _Candidate) -> Hit | None:
        found = self._batches.get(candidate.batch)
        if found is None:
            read = self._fanout if candidate.place < 0 else self._batch
            found = self._batches[candidate.batch] = read(candidate.batch)
        if not found:
            return None  # its history was dropped
        if candidate.kind == DEVICES:
            return self._device(found, candidate)
        if candidate.place < 0:
            fanout, source, walking = found
            return Hit(
                apns_id_base(fanout.id, 0).to_bytes(16, "big"), fanout.id, -1, None, fanout.app, source,
                fanout.received_at, None if walking else "accepted",
            )  # fmt: skip
        app, source, at, acceptance, entries, fates, again = found
        entry = entries[candidate.place]
        outcome, reason, status, ended_at = fates.get(candidate.place) or fates.get(REST) or _NO_END
        return Hit(
            entry.apns_id or acceptance.apns_id(candidate.place), candidate.batch, candidate.place,
            entry.device_token, app, source, at, outcome, reason, status, ended_at,
            again.get((candidate.place, "")),
        )  # fmt: skip

    def _batch(self, batch: int) -> Any:
        row = self._connection.execute(
            "SELECT app.name, source, received_at, count, tag, head FROM batch"
            " JOIN app ON app.number = batch.lane / 2 WHERE id = ?",
            (batch,),
        ).fetchone()
        if row is None:
            return ()
        app, source, at, count, tag, head = row
        acceptance = Acceptance(batch, count, at, False, tag)
        return (
            app,
            source,
            at,
            acceptance,
            unpack_entries(head, None, count),
            self._fates(batch),
            self._again(batch),
        )

    def _fates(self, batch: int) -> dict[Any, Any]:
        """What ended the places, or devices, of a batch: the first end is the one."""
        fates: dict[Any, Any] = {}
        for (log,) in self._connection.execute(
            "SELECT log FROM outcome WHERE batch = ? ORDER BY id", (batch,)
        ).fetchall():
            for fate in read_log(log):
                if fate.attempt.outcome != "retry":
                    fates.setdefault(_named(fate), _end(fate))
        return fates

    def _again(self, batch: int) -> dict[tuple[int, str], bytes]:
        return {
            (place, device): apns_id
            for place, device, apns_id in self._connection.execute(
                "SELECT place, device, apns_id FROM again WHERE batch = ?", (batch,)
            )
        }

    def _fanout(self, number: int) -> Any:
        row = self._connection.execute(
            "SELECT app.name, source, received_at, tag, head, walk.id IS NOT NULL FROM fanout"
            " JOIN app ON app.number = fanout.lane / 2 LEFT JOIN walk ON walk.id = fanout.id"
            " WHERE fanout.id = ?",
            (number,),
        ).fetchone()
        if row is None:
            return ()
        app, source, at, tag, head, walking = row
        entry = unpack_entries(head, None, 1)[0]
        return Fanout(number, app, Audience(), entry, at, "", tag), source, walking

    def _device(self, found: Any, candidate: _Candidate) -> Hit | None:
        fanout, source, _ = found
        if candidate.batch not in self._devices:
            self._devices[candidate.batch] = self._fates(candidate.batch), self._again(candidate.batch)
        fates, again = self._devices[candidate.batch]
        end = fates.get(candidate.device_token)
        if end is None:
            return None
        outcome, reason, status, at = end
        return Hit(
            fanout.apns_id(candidate.device_token), fanout.id, -1, candidate.device_token, fanout.app, source,
            fanout.received_at, outcome, reason, status, at, again.get((-1, candidate.device_token)),
        )  # fmt: skip


_NO_END = (None, "", 0, None)


def _named(fate: Fate) -> int | str:
    return fate.place if fate.device_token is None else fate.device_token


def _end(fate: Fate) -> tuple[str, str, int, float]:
    return fate.attempt.outcome, fate.attempt.reason, fate.attempt.status, fate.attempt.at


def failures(connection: sqlite3.Connection, indexed: int, app: str | None) -> list[Failures]:
    """Dead letters by app and reason, most first."""
    counts: dict[tuple[str, str], int] = {}
    for classes, codes in connection.execute("SELECT classes, codes FROM segment").fetchall():
        for code, (owner, _, outcome, reason) in enumerate(_decode(classes)):
            if outcome == "failed" and app in (None, owner):
                counts[owner, reason] = counts.get((owner, reason), 0) + codes.count(code)
    for *_, (owner, _, outcome, reason) in _newest(connection, indexed, LAST):
        if outcome == "failed" and app in (None, owner):
            counts[owner, reason] = counts.get((owner, reason), 0) + 1
    found = [Failures(owner, reason, count) for (owner, reason), count in counts.items() if count]
    return sorted(found, key=lambda one: (-one.count, one.app, one.reason))
