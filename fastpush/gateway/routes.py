"""Who is told of which alarm: the routes of the configuration, from an alarm to tags.

All routes that match count, not the first: their order then means nothing, and no route can take an alarm
away from those behind it. A phone that has two of the tags is told once all the same. What no route
matches goes to the administrators.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

import msgspec

from fastpush.gateway.alarms import LOUD, SHOWN, AlarmRow, Rule
from fastpush.gateway.sources import RANKS, Severity

__all__ = ["Addressed", "InvalidRoutes", "Route", "Routes", "address"]

_ROUTABLE = ("critical", "service_down", "trouble", "attention", "info")
_MAX_PATTERN_CHARACTERS = 256


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One route as it stands in the configuration. An empty list lets all through.

    Attributes:
      name: how messages and the log call it.
      severity: those that it takes. A severity that nobody could read is taken as trouble.
      category, device, source: patterns with `*` and `?`, upper and lower case alike; the device's is held
        against its name and against its address.
      tags: devices with any of these are told.
    """

    name: str
    tags: tuple[str, ...]
    severity: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


class InvalidRoutes(ValueError):
    """Routes that cannot be meant.

    Attributes:
      problems: each mistake as (index of the route, its field, what is wrong and what is allowed).
    """

    def __init__(self, problems: Sequence[tuple[int, str, str]]) -> None:
        super().__init__(
            "; ".join(f"routes[{index}].{field} {problem}" for index, field, problem in problems)
        )
        self.problems = tuple(problems)


class Routes:
    """The routes, checked and compiled.

    Args:
      routes: in any order.
      admin_tag: the tag of those who are told of what no route matches.

    Raises:
      InvalidRoutes: with every mistake in all of them.
    """

    def __init__(self, routes: Sequence[Route], admin_tag: str = "admin") -> None:
        problems = [problem for index, route in enumerate(routes) for problem in _problems(index, route)]
        names = [route.name for route in routes]
        problems += [
            (index, "name", f'"{name}" is the name of routes[{names.index(name)}] too')
            for index, name in enumerate(names)
            if name and names.index(name) < index
        ]
        if problems:
            raise InvalidRoutes(problems)
        self.admin_tag = admin_tag
        self._compiled = [
            (route, _compiled(route.category), _compiled(route.device), _compiled(route.source))
            for route in routes
        ]

    def matching(self, row: AlarmRow, severity: Severity | None = None) -> list[Route]:
        """The routes that take an alarm, in their order; none is found for one that is cleared.

        Args:
          row: the alarm.
          severity: another than the row's.
        """
        word = severity or row.severity
        word = "trouble" if word == "unknown" else word
        if RANKS[word] == 0:
            return []
        return [
            route
            for route, category, device, source in self._compiled
            if (not route.severity or word in route.severity)
            and _matches(category, row.category)
            and (_matches(device, row.device) or _matches(device, row.address))
            and _matches(source, row.source)
        ]


class Addressed(msgspec.Struct, frozen=True):
    """Whom a verdict goes to.

    Attributes:
      row: the alarm, which now remembers who was told.
      tags: devices with any of these; none where nothing is pushed.
      routes: the names of the routes that matched.
      unrouted: no route matched, so that it goes to the administrators; to be said loudly.
    """

    row: AlarmRow
    tags: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    unrouted: bool = False


def address(routes: Routes, row: AlarmRow, rule: Rule) -> Addressed:
    """Find who is told of a verdict, and note it in the row.

    A loud verdict goes by the routes; whoever was told before in this generation is told again, so that
    no banner keeps showing what is no longer true. All other verdicts, the clear first of all, go to those
    who were told, whatever the routes say of the new severity.

    Args:
      routes: as configured now.
      row: the alarm after `judge`.
      rule: the rule that `judge` gave.
    """
    if rule not in SHOWN:
        return Addressed(row)
    if rule not in LOUD:
        return Addressed(row, row.tags)
    found = routes.matching(row)
    matched = [tag for route in found for tag in route.tags] or [routes.admin_tag]
    tags = tuple(dict.fromkeys((*row.tags, *matched)))
    names = tuple(route.name for route in found)
    return Addressed(msgspec.structs.replace(row, tags=tags), tags, names, not found)


def _problems(index: int, route: Route) -> list[tuple[int, str, str]]:
    problems = []
    if not route.name.strip():
        problems.append((index, "name", "is empty"))
    if not route.tags:
        problems.append((index, "tags", "is empty: nobody would be told"))
    problems += [(index, f"tags[{n}]", "is empty") for n, tag in enumerate(route.tags) if not tag.strip()]
    problems += [
        (index, f"severity[{n}]", f'is "{word[:64]}"; allowed: {", ".join(_ROUTABLE)}')
        for n, word in enumerate(route.severity)
        if word not in _ROUTABLE
    ]
    for field in ("category", "device", "source"):
        for n, pattern in enumerate(getattr(route, field)):
            if not pattern.strip():
                problems.append((index, f"{field}[{n}]", 'is empty; "*" lets all through'))
            elif len(pattern) > _MAX_PATTERN_CHARACTERS:
                found = f"has {len(pattern)} characters; the limit is {_MAX_PATTERN_CHARACTERS}"
                problems.append((index, f"{field}[{n}]", found))
    return problems


def _compiled(patterns: Sequence[str]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    return re.compile("|".join(fnmatch.translate(pattern.casefold()) for pattern in patterns))


def _matches(pattern: re.Pattern[str] | None, text: str) -> bool:
    return pattern is None or pattern.match(text.casefold()) is not None
