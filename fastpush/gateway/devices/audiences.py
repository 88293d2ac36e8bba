"""Who is meant by tags: one statement for each audience, which walks ranges of one index side by side.

Every tag is a range of `audience`, in the order of device tokens. UNION, INTERSECT and EXCEPT merge such
ranges without sorting and stop at the limit, so a page costs what it returns: half a microsecond a device for
one tag, and as much again for each further one (a million devices, SQLite 3.40). Where one side has a few
devices and the other a million, the merge would read the million: then the few are looked up one by one.

The page comes as one row: the sqlite3 module hands Python's lock over at each.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from fastpush.gateway.devices.values import Page
from fastpush.gateway.outbox import Audience

__all__ = ["count_of", "page_of"]

FEW = 4_096
"""Devices that are rather looked up one by one; they take 2 µs each, and counting them 0.1 µs."""

_RANGE = "SELECT token, environment FROM audience WHERE app = ? AND tag = ? AND token > ?"
_HAS = "(SELECT 1 FROM audience AS other WHERE app = ? AND tag = ? AND other.token = few.token)"


def page_of(connection: sqlite3.Connection, app: int, audience: Audience, after: bytes, limit: int) -> Page:
    """At most `limit` devices behind `after`."""
    chosen, values = _statement(connection, app, audience, after)
    sql = (
        "SELECT group_concat(hex(token)), group_concat(environment, '')"
        f" FROM ({chosen} ORDER BY token LIMIT ?)"
    )
    tokens, environments = connection.execute(sql, (*values, limit)).fetchone()
    if tokens is None:
        return Page([], "", True)
    device_tokens = tokens.lower().split(",")
    return Page(device_tokens, environments, len(device_tokens) < limit)


def count_of(connection: sqlite3.Connection, app: int, audience: Audience) -> int:
    """How many devices there are."""
    chosen, values = _statement(connection, app, audience, b"")
    (count,) = connection.execute(f"SELECT count(*) FROM ({chosen})", values).fetchone()
    return count  # type: ignore[no-any-return]


def _statement(
    connection: sqlite3.Connection, app: int, audience: Audience, after: bytes
) -> tuple[str, list[Any]]:
    """SQL that selects token and environment, in order, and its values."""
    any_of, all_of, none_of = (
        list(dict.fromkeys(tags)) for tags in (audience.any_of, audience.all_of, audience.none_of)
    )
    if not any_of and not all_of:
        all_of = [""]
    if len(any_of) + len(all_of) + len(none_of) > 1:
        driver = _few(connection, app, any_of, all_of, after)
        if driver is not None:
            return _looked_up(app, driver, any_of, all_of, none_of, after)
    parts: list[str] = []
    tags: list[str] = []
    for word, group in (("UNION", any_of), ("INTERSECT", all_of), ("EXCEPT", none_of)):
        for tag in group:
            parts += [word, _RANGE] if parts else [_RANGE]
            tags.append(tag)
    return " ".join(parts), [value for tag in tags for value in (app, tag, after)]


def _few(
    connection: sqlite3.Connection, app: int, any_of: list[str], all_of: list[str], after: bytes
) -> list[str] | None:
    """The tags of which one at least is needed and which few devices have; None if there are none such."""
    for tag in all_of:
        if tag and _is_few(connection, app, [tag], after):
            return [tag]
    return any_of if any_of and _is_few(connection, app, any_of, after) else None


def _is_few(connection: sqlite3.Connection, app: int, tags: list[str], after: bytes) -> bool:
    left = FEW
    for tag in tags:
        (count,) = connection.execute(
            f"SELECT count(*) FROM ({_RANGE} LIMIT ?)", (app, tag, after, left)
        ).fetchone()
        left -= count
        if left <= 0:
            return False
    return True


def _looked_up(
    app: int, driver: list[str], any_of: list[str], all_of: list[str], none_of: list[str], after: bytes
) -> tuple[str, list[Any]]:
    values: list[Any] = [value for tag in driver for value in (app, tag, after)]
    conditions: list[str] = []
    if any_of and any_of != driver:
        conditions.append("(" + " OR ".join([f"EXISTS {_HAS}"] * len(any_of)) + ")")
        values += [value for tag in any_of for value in (app, tag)]
    for word, tags in (("EXISTS", all_of), ("NOT EXISTS", none_of)):
        for tag in tags:
            if word == "NOT EXISTS" or (tag and [tag] != driver):
                conditions.append(f"{word} {_HAS}")
                values += [app, tag]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT token, environment FROM ({' UNION '.join([_RANGE] * len(driver))}) AS few{where}", values
