"""The tables of devices.

    device_app    the numbers by which apps are known here
    device        the registry: one row for each device token of an app
    audience      who is meant by a tag: living devices by tag, and once more under the tag ""
    device_event  device tokens found dead, by growing number
    device_webhook  the last event that the webhook was told of, and the last of those it is being told of

Device tokens are blobs. Instants are milliseconds, as APNs counts them. `audience` has no more than a fan-out
needs, in the order that it walks: a page of it is one range.
"""

from __future__ import annotations

from fastpush.gateway.storage import Migration

__all__ = ["MIGRATIONS", "REGISTER"]

_VERSION_1 = (
    "CREATE TABLE device_app (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """CREATE TABLE device (
        app INTEGER NOT NULL, token BLOB NOT NULL, environment TEXT NOT NULL, user TEXT NOT NULL,
        tags TEXT NOT NULL, locale TEXT NOT NULL, registered_at INTEGER NOT NULL, seen_at INTEGER NOT NULL,
        enrolment TEXT, environment_at INTEGER NOT NULL DEFAULT 0,
        refused_in TEXT NOT NULL DEFAULT '', dead_at INTEGER, dead_reason TEXT,
        PRIMARY KEY (app, token)
    ) WITHOUT ROWID""",
    "CREATE INDEX device_of_user ON device (app, user, token) WHERE user <> ''",
    "CREATE INDEX device_dead ON device (dead_at) WHERE dead_at IS NOT NULL",
    """CREATE TABLE audience (
        app INTEGER NOT NULL, tag TEXT NOT NULL, token BLOB NOT NULL, environment TEXT NOT NULL,
        PRIMARY KEY (app, tag, token)
    ) WITHOUT ROWID""",
    """CREATE TABLE device_event (
        id INTEGER PRIMARY KEY AUTOINCREMENT, app INTEGER NOT NULL, at INTEGER NOT NULL, token BLOB NOT NULL,
        environment TEXT NOT NULL, user TEXT NOT NULL, status INTEGER NOT NULL, reason TEXT NOT NULL,
        unregistered_at INTEGER, sent_at INTEGER NOT NULL, apns_id BLOB
    )""",
    """CREATE TABLE device_webhook (
        id INTEGER PRIMARY KEY CHECK (id = 1), told INTEGER NOT NULL, telling INTEGER NOT NULL
    )""",
    "INSERT INTO device_webhook VALUES (1, 0, 0)",
)

MIGRATIONS: list[Migration] = [_VERSION_1]

# app, token, environment, user, tags (JSON, "" among them), locale, since when it is registered, enrolment,
# the device token that it had before, now. NULL keeps what was there. What a key says of an enrolled phone
# holds for its enrolment too.
REGISTER = """
DELETE FROM audience WHERE app = NEW.a AND token = NEW.i AND tag IN
  (SELECT value FROM device, json_each(device.tags) WHERE device.app = NEW.a AND device.token = NEW.i);
DELETE FROM device WHERE app = NEW.a AND token = NEW.i;
DELETE FROM audience WHERE NEW.e IS NOT NULL AND app = NEW.a AND token = NEW.b AND tag IN
  (SELECT value FROM device, json_each(device.tags) WHERE device.app = NEW.a AND device.token = NEW.b
   EXCEPT SELECT value FROM json_each(NEW.e));
INSERT INTO device (app, token, environment, user, tags, locale, registered_at, seen_at, enrolment)
  VALUES (NEW.a, NEW.b, NEW.c, coalesce(NEW.d, ''), coalesce(NEW.e, '[""]'), coalesce(NEW.f, ''), NEW.g,
    NEW.j, NEW.h)
  ON CONFLICT (app, token) DO UPDATE SET environment = NEW.c, user = coalesce(NEW.d, user),
    tags = coalesce(NEW.e, tags), locale = coalesce(NEW.f, locale),
    registered_at = max(registered_at, NEW.g), seen_at = NEW.j,
    enrolment = coalesce(NEW.h, enrolment), refused_in = '',
    dead_reason = iif(NEW.g < dead_at, dead_reason, NULL), dead_at = iif(NEW.g < dead_at, dead_at, NULL);
INSERT INTO audience (app, tag, token, environment)
  SELECT NEW.a, value, NEW.b, NEW.c FROM device, json_each(device.tags)
  WHERE device.app = NEW.a AND device.token = NEW.b AND device.dead_at IS NULL
  ON CONFLICT (app, tag, token) DO UPDATE SET environment = NEW.c WHERE environment <> NEW.c;
UPDATE enrolment SET tags = coalesce(NEW.e, tags), user = coalesce(NEW.d, user)
  WHERE NEW.h IS NULL AND id =
    (SELECT enrolment FROM device WHERE device.app = NEW.a AND device.token = NEW.b);
"""
