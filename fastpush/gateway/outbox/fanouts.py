"""Fan-outs by time, and what became of one device in them.

Of a fan-out's devices those that APNs accepted at once are counted and not written down: an alarm for a
hundred thousand devices would otherwise leave as many rows. What is known of one of them follows from what
is written down: how far the fan-out was walked, and the ends of all others.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

import msgspec

from fastpush.gateway.outbox import Attempt, Audience, FanoutPage, FanoutRecord, Passage, fanout_apns_id
from fastpush.gateway.outbox.packing import PAGE, REST, read_log

__all__ = ["fanouts", "passages"]

CHUNK, MOST_CHUNKS = 500, 10
LONE = 512
"""Octets. A log that ends all the rest, or a page of which nobody knows, has nothing else in it."""

_from_json = msgspec.json.Decoder().decode
_audience = msgspec.msgpack.Decoder(Audience).decode

_FANOUTS = """
SELECT json_group_array(json_array(page.id, app.name, source, received_at, hex(audience),
    coalesce(walk.accepted, page.accepted), coalesce(walk.ended, page.ended), walk.id IS NOT NULL))
FROM (SELECT id, lane, source, received_at, audience, accepted, ended FROM fanout
      WHERE id >= :low AND id < :high ORDER BY id DESC LIMIT :count) AS page
JOIN app ON app.number = page.lane / 2 LEFT JOIN walk ON walk.id = page.id
"""


def fanouts(
    connection: sqlite3.Connection,
    app: str | None,
    source: str | None,
    tags: Collection[str] | None,
    low: int,
    high: int,
    limit: int,
) -> FanoutPage:
    """The newest between two ids, `high` not among them; looks through some thousand at most."""
    rows: list[FanoutRecord] = []
    for _ in range(MOST_CHUNKS):
        values = {"low": low, "high": high, "count": CHUNK}
        found = sorted(_from_json(connection.execute(_FANOUTS, values).fetchone()[0]), reverse=True)
        for number, owner, record_source, at, packed, accepted, ended, walking in found:
            audience = _audience(bytes.fromhex(packed))
            record = FanoutRecord(number, owner, record_source, at, audience, accepted, ended, bool(walking))
            if (
                app in (None, record.app)
                and source in (None, record.source)
                and (tags is None or audience.means(tags))
            ):
                if len(rows) == limit:
                    return FanoutPage(rows, high)
                rows.append(record)
            high = number
        if len(found) < CHUNK:
            return FanoutPage(rows, None)
    return FanoutPage(rows, high)


def passages(connection: sqlite3.Connection, batches: Sequence[int], device_token: str) -> dict[int, Passage]:
    """What became of a device in each of these fan-outs."""
    connection.execute("BEGIN")
    token = device_token.lower()
    return {batch: found for batch in batches if (found := _passage(connection, batch, token)) is not None}


def _passage(connection: sqlite3.Connection, batch: int, token: str) -> Passage | None:
    row = connection.execute(
        "SELECT tag, coalesce(walk.cursor, fanout.cursor), coalesce(walk.walked, 1)"
        " FROM fanout LEFT JOIN walk ON walk.id = fanout.id WHERE fanout.id = ?",
        (batch,),
    ).fetchone()
    if row is None:
        return None
    tag, cursor, walked = row
    own: list[Attempt] = []
    rest: Attempt | None = None
    doubt: Attempt | None = None
    for (log,) in connection.execute(
        "SELECT log FROM outcome WHERE batch = ? AND (length(log) < ? OR instr(log, ?)) ORDER BY id",
        (batch, LONE, token.encode()),
    ):
        for fate in read_log(log):
            if fate.device_token == token:
                own.append(fate.attempt)
            elif fate.place == REST:
                rest = rest or fate.attempt
            elif fate.place == PAGE and token <= fate.attempt.reason:
                doubt = doubt or fate.attempt
    apns_id = fanout_apns_id(batch, tag, token)
    end = next((attempt for attempt in own if attempt.outcome != "retry"), None)
    if own and end is None:
        end = rest
        if end is None:
            return Passage(batch, apns_id, None, own[-1])
    if end is None:
        if token <= cursor or (walked and rest is None):
            if doubt is None:
                return Passage(batch, apns_id, "accepted", None)
            end = msgspec.structs.replace(doubt, reason="Restarted", attempts=1)
        else:
            end = rest
    if end is None or end.outcome == "retry":
        return Passage(batch, apns_id, None, None)
    return Passage(batch, apns_id, end.outcome, end)
