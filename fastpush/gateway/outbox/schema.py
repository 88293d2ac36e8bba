"""The outbox's tables, and how rows of the funnel get into them.

    app          the numbers by which apps are known here
    batch, body  what was accepted: heads, and payloads, which are dropped earlier
    waiting      the batches with a notification that has no end, by lane and age: what is left to do
    outcome      the log of what became of a batch's notifications
    retry        parked notifications, by lane and due time
    sending      marks of notifications that must not be sent again after a crash
    fanout, walk a fan-out, and its place while it is walked
    idempotency  which batch a sender's own name for a request stands for
    stream…      uploads in chunks
    start        how often the outbox was opened: the upper half of the ids of logs
    search, unindexed   apns-ids that senders brought, indexed behind
    segment, indexed…   the search index, filled behind
    again        which notification a dead letter was sent again as

A lane is an app's high or normal priority: twice the app's number, plus one for normal. Batch ids grow with
time, so that tables grow at their end, need no second index, and are trimmed as ranges.
"""

from __future__ import annotations

from fastpush.gateway.storage import Question

_VERSION_1 = """
CREATE TABLE app (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, paused INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE batch (
    id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, count INTEGER NOT NULL,
    received_at REAL NOT NULL, source TEXT NOT NULL, tag INTEGER NOT NULL, own INTEGER NOT NULL,
    head BLOB NOT NULL
);
CREATE TABLE body (
    batch INTEGER PRIMARY KEY, kept INTEGER NOT NULL, payloads BLOB NOT NULL
);
CREATE TABLE waiting (
    lane INTEGER NOT NULL, batch INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (lane, batch)
) WITHOUT ROWID;
CREATE TABLE outcome (
    batch INTEGER NOT NULL, id INTEGER NOT NULL, failed INTEGER NOT NULL, log BLOB NOT NULL,
    PRIMARY KEY (batch, id)
) WITHOUT ROWID;
CREATE TABLE retry (
    lane INTEGER NOT NULL, due INTEGER NOT NULL, batch INTEGER NOT NULL, place INTEGER NOT NULL,
    device TEXT NOT NULL, attempts INTEGER NOT NULL, PRIMARY KEY (lane, due, batch, place, device)
) WITHOUT ROWID;
CREATE TABLE sending (
    batch INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (batch, place)
) WITHOUT ROWID;
CREATE TABLE fanout (
    id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, received_at REAL NOT NULL, source TEXT NOT NULL,
    tag INTEGER NOT NULL, audience BLOB NOT NULL, head BLOB NOT NULL,
    accepted INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE walk (
    id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, cursor TEXT NOT NULL DEFAULT '', mark TEXT,
    marked INTEGER NOT NULL DEFAULT 0, walked INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE idempotency (
    key BLOB PRIMARY KEY, digest BLOB NOT NULL, batch INTEGER NOT NULL, count INTEGER NOT NULL,
    received_at REAL NOT NULL, tag INTEGER NOT NULL, own INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE stream (
    id INTEGER PRIMARY KEY, app INTEGER NOT NULL, received_at REAL NOT NULL, source TEXT NOT NULL,
    lines INTEGER NOT NULL, running_hash BLOB NOT NULL, entries INTEGER NOT NULL, answer BLOB
);
CREATE TABLE stream_key (
    key BLOB PRIMARY KEY, stream INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE stream_part (
    stream INTEGER NOT NULL, batch INTEGER NOT NULL, PRIMARY KEY (stream, batch)
) WITHOUT ROWID;
CREATE TABLE search (
    apns_id BLOB PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE unindexed (
    batch INTEGER PRIMARY KEY
);
CREATE TABLE start (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL
)
"""

# How far a fan-out was walked when it was purged or done: a page that is recorded later is counted once.
_VERSION_2 = "ALTER TABLE fanout ADD COLUMN cursor TEXT NOT NULL DEFAULT ''"

# The search index (index.py), and what was sent again.
_VERSION_3 = """
CREATE TABLE segment (
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    count INTEGER NOT NULL, waiting INTEGER NOT NULL, classes BLOB NOT NULL, codes BLOB NOT NULL,
    devices BLOB NOT NULL, keys BLOB NOT NULL, batches BLOB NOT NULL, places BLOB NOT NULL,
    tokens BLOB NOT NULL
);
CREATE TABLE indexed (
    id INTEGER PRIMARY KEY, upto INTEGER NOT NULL
);
CREATE TABLE indexed_fanout (
    fanout INTEGER PRIMARY KEY, log INTEGER NOT NULL
);
CREATE TABLE again (
    batch INTEGER NOT NULL, place INTEGER NOT NULL, device TEXT NOT NULL, apns_id BLOB NOT NULL,
    PRIMARY KEY (batch, place, device)
) WITHOUT ROWID;
CREATE INDEX again_apns_id ON again (apns_id)
"""

MIGRATIONS = [_VERSION_1.split(";"), [_VERSION_2], _VERSION_3.split(";")]

_FIRST = "(NEW.j IS NULL OR NOT EXISTS (SELECT 1 FROM idempotency WHERE key = NEW.j))"

# id, lane, count, received_at, source, tag, own, head, payloads, key, digest
ACCEPT = f"""
INSERT INTO batch SELECT NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.g, NEW.h WHERE {_FIRST};
INSERT INTO body SELECT NEW.a, 0, NEW.i WHERE {_FIRST};
INSERT INTO waiting SELECT NEW.b, NEW.a, NEW.c WHERE {_FIRST};
INSERT INTO unindexed SELECT NEW.a WHERE NEW.g AND {_FIRST};
INSERT INTO idempotency SELECT NEW.j, NEW.k, NEW.a, NEW.c, NEW.d, NEW.f, NEW.g
  WHERE NEW.j IS NOT NULL AND {_FIRST};
"""

# id, lane, received_at, source, tag, audience, (nothing), head, payloads, key, digest
FANOUT = f"""
INSERT INTO fanout (id, lane, received_at, source, tag, audience, head)
  SELECT NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f, NEW.h WHERE {_FIRST};
INSERT INTO body SELECT NEW.a, 0, NEW.i WHERE {_FIRST};
INSERT INTO walk (id, lane) SELECT NEW.a, NEW.b WHERE {_FIRST};
INSERT INTO idempotency SELECT NEW.j, NEW.k, NEW.a, 0, NEW.c, NEW.e, 0 WHERE NEW.j IS NOT NULL AND {_FIRST};
"""

# batch, id, failed, log, and the lane if nothing of the batch is left
OUTCOME = """
INSERT INTO outcome SELECT NEW.a, NEW.b, NEW.c, NEW.d WHERE NEW.d IS NOT NULL;
DELETE FROM waiting WHERE lane = NEW.e AND batch = NEW.a;
"""

# A walk is over once all its pages are recorded and no device of it is parked.
_FINISH_WALK = """
UPDATE fanout SET accepted = walk.accepted, ended = walk.ended, cursor = walk.cursor FROM walk
  WHERE fanout.id = {id} AND walk.id = {id} AND walk.walked AND walk.parked = 0;
DELETE FROM walk WHERE id = {id} AND walked AND parked = 0;
"""
_PARKED = "lane = NEW.a AND due = NEW.b AND batch = NEW.c AND place = NEW.d AND device = NEW.e"

# Of retries and pages a repetition changes nothing: it may follow an error that left nobody knowing.
# lane, due, batch, index, device token or "", attempts
PARK = f"""
UPDATE walk SET parked = parked + 1
  WHERE id = NEW.c AND NEW.e <> '' AND NOT EXISTS (SELECT 1 FROM retry WHERE {_PARKED});
INSERT OR REPLACE INTO retry VALUES (NEW.a, NEW.b, NEW.c, NEW.d, NEW.e, NEW.f);
"""
# lane, due, batch, index, device token or ""; of a device whether it was accepted, or ended otherwise
UNPARK = f"""
UPDATE walk SET parked = parked - 1, accepted = accepted + NEW.f, ended = ended + NEW.g
  WHERE id = NEW.c AND NEW.e <> '' AND EXISTS (SELECT 1 FROM retry WHERE {_PARKED});
DELETE FROM retry WHERE {_PARKED};
{_FINISH_WALK.format(id="NEW.c")}
"""

# batch, index
MARK = "INSERT OR IGNORE INTO sending VALUES (NEW.a, NEW.b)"
UNMARK = "DELETE FROM sending WHERE batch = NEW.a AND place = NEW.b"

# fan-out, cursor, how much accepted and ended grow, whether it is the last page
PAGE = f"""
UPDATE fanout SET accepted = accepted + NEW.c, ended = ended + NEW.d, cursor = NEW.b
  WHERE id = NEW.a AND NEW.b > cursor AND NOT EXISTS (SELECT 1 FROM walk WHERE id = NEW.a);
UPDATE walk SET accepted = accepted + NEW.c, ended = ended + NEW.d, cursor = NEW.b
  WHERE id = NEW.a AND NEW.b > cursor;
UPDATE walk SET mark = NULL, walked = walked OR NEW.e WHERE id = NEW.a;
{_FINISH_WALK.format(id="NEW.a")}
"""

KNOWN = Question("idempotency", "key", ("hex(digest)", "batch", "count", "received_at", "tag", "own"))
KNOWN_ONE = f"SELECT {', '.join(KNOWN.columns)} FROM idempotency WHERE key = ?"

_BATCH = """json_array(batch.id, batch.count, batch.tag, hex(batch.head), hex(body.payloads),
    (SELECT group_concat(id || ':' || hex(log), ' ') FROM outcome WHERE outcome.batch = batch.id))"""

# Whole batches of a lane behind a cursor, at least one, then up to so many notifications; one JSON text.
LANE_PAGE = f"""
SELECT json_group_array({_BATCH})
FROM (SELECT batch FROM (SELECT batch, sum(count) OVER (ORDER BY batch) - count AS before
        FROM (SELECT batch, count FROM waiting WHERE lane = :lane AND batch > :after
              ORDER BY batch LIMIT 512))
      WHERE before < :count) AS page
CROSS JOIN batch ON batch.id = page.batch LEFT JOIN body ON body.batch = batch.id
"""

# Due retries of a lane behind a cursor, and the batches that they belong to.
DUE_PAGE = """
SELECT json_group_array(json_array(due, batch, place, device, attempts))
FROM (SELECT * FROM retry WHERE lane = :lane AND due <= :now
        AND (due, batch, place, device) > (:due, :batch, :place, :device)
      ORDER BY due, batch, place, device LIMIT :count)
"""
BATCHES = f"""
SELECT json_group_array({_BATCH}) FROM batch LEFT JOIN body ON body.batch = batch.id
WHERE batch.id IN (SELECT value FROM json_each(?))
"""
NEXT_DUE = "SELECT due FROM retry WHERE lane = ? AND due > ? ORDER BY due LIMIT 1"
