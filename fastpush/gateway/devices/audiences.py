"""Who is meant by tags: one statement for each audience, which walks ranges of one index side by side.

Every tag is a range of `audience`, in the order of device tokens. UNION, INTERSECT and EXCEPT merge such
ranges without sorting and stop at the limit, so a page costs what it returns: half a microsecond a device for
one tag, and as much again for each further one (a million devices, SQLite 3.40). Where one side has a few
devices and the other a million, the merge would read the million: then the few are looked up one by one.

The page comes as one row: the sqlite3 module hands Python's lock over at each.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, final

from fastpush.gateway.devices.values import Page
from fastpush.gateway.outbox import Audience

__all__ = ["Audiences"]

FEW = 4_096
"""Devices that are rather looked up one by one; they take 2 µs each, and counting them 0.1 µs."""
KNOWN_FOR = 30.0
"""Seconds for which it is remembered whether devices are few: a walk over many pages counts them once."""
MAX_KNOWN = 1_000

_RANGE = "SELECT token, environment FROM audience WHERE app = ? AND tag = ? AND token > ?"
_HAS = "(SELECT 1 FROM audience AS other WHERE app = ? AND tag = ? AND other.token = few.token)"


@final
class Audiences:
    """Finds the devices of audiences. Its methods are called in the threads that read."""

    def __init__(self) -> None:
        self._drivers: dict[tuple[int, Audience], tuple[float, tuple[str, ...]]] = {}

    def page(
        self, connection: sqlite3.Connection, app: int, audience: Audience, after: bytes, limit: int
    ) -> Page:
        """At most `limit` devices behind `after`."""
        chosen, values = self._statement(connection, app, audience, after)
        sql = (
            "SELECT group_concat(hex(token)), group_concat(environment, '')"
            f" FROM ({chosen} ORDER BY token LIMIT ?)"
        )
        tokens, environments = connection.execute(sql, (*values, limit)).fetchone()
        if tokens is None:
            return Page([], "", True)
        device_tokens = tokens.lower().split(",")
        return Page(device_tokens, environments, len(device_tokens) < limit)

    def count(self, connection: sqlite3.Connection, app: int, audience: Audience) -> int:
        """How many devices there are."""
        chosen, values = self._statement(connection, app, audience, b"")
        (count,) = connection.execute(f"SELECT count(*) FROM ({chosen})", values).fetchone()
        return count  # type: ignore[no-any-return]

    def _statement(
        self, connection: sqlite3.Connection, app: int, audience: Audience, after: bytes
    ) -> tuple[str, list[Any]]:
        """SQL that selects token and environment, and its values."""
        any_of, all_of, none_of = (
            tuple(dict.fromkeys(tags)) for tags in (audience.any_of, audience.all_of, audience.none_of)
        )
        if not any_of and not all_of:
            all_of = ("",)
        if len(any_of) + len(all_of) + len(none_of) > 1:
            driver = self._driver(connection, app, audience, any_of, all_of)
            if driver:
                return _looked_up(app, driver, any_of, all_of, none_of, after)
        parts: list[str] = []
        tags: list[str] = []
        for word, group in (("UNION", any_of), ("INTERSECT", all_of), ("EXCEPT", none_of)):
            for tag in group:
                parts += [word, _RANGE] if parts else [_RANGE]
                tags.append(tag)
        return " ".join(parts), [value for tag in tags for value in (app, tag, after)]

    def _driver(
        self,
        connection: sqlite3.Connection,
        app: int,
        audience: Audience,
        any_of: tuple[str, ...],
        all_of: tuple[str, ...],
    ) -> tuple[str, ...]:
        """The tags of which one at least is needed and which few devices have; () if there are none such."""
        now = time.monotonic()
        known = self._drivers.get((app, audience))
        if known is not None and now - known[0] < KNOWN_FOR:
            return known[1]
        candidates = [*[(tag,) for tag in all_of if tag], *([any_of] if any_of else [])]
        driver = next((tags for tags in candidates if _are_few(connection, app, tags)), ())
        if len(self._drivers) >= MAX_KNOWN:
            self._drivers.clear()
        self._drivers[app, audience] = now, driver
        return driver


def _are_few(connection: sqlite3.Connection, app: int, tags: tuple[str, ...]) -> bool:
    left = FEW
    for tag in tags:
        (count,) = connection.execute(
            f"SELECT count(*) FROM ({_RANGE} LIMIT ?)", (app, tag, b"", left)
        ).fetchone()
        left -= count
        if left <= 0:
            return False
    return True


def _looked_up(
    app: int,
    driver: tuple[str, ...],
    any_of: tuple[str, ...],
    all_of: tuple[str, ...],
    none_of: tuple[str, ...],
    after: bytes,
) -> tuple[str, list[Any]]:
    values: list[Any] = [value for tag in driver for value in (app, tag, after)]
    conditions: list[str] = []
    if any_of and any_of != driver:
        conditions.append("(" + " OR ".join([f"EXISTS {_HAS}"] * len(any_of)) + ")")
        values += [value for tag in any_of for value in (app, tag)]
    for word, tags in (("EXISTS", all_of), ("NOT EXISTS", none_of)):
        for tag in tags:
            if word == "NOT EXISTS" or (tag and (tag,) != driver):
                conditions.append(f"{word} {_HAS}")
                values += [app, tag]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT token, environment FROM ({' UNION '.join([_RANGE] * len(driver))}) AS few{where}", values
