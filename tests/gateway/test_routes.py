"""Who is told: every route that matches, the administrators where none does, and always those told before."""

from __future__ import annotations

import msgspec
import pytest

from fastpush.gateway.alarms import AlarmRow, judge
from fastpush.gateway.routes import InvalidRoutes, Route, Routes, address
from fastpush.gateway.sources import Event

NOW = 1_800_000_000.0

ROUTES = Routes(
    [
        Route(
            name="network", tags=("network",), category=("switch", "router"), severity=("critical", "trouble")
        ),
        Route(name="core", tags=("oncall", "network"), device=("core-*", "10.20.?.1")),
        Route(name="branch", tags=("branch",), source=("opm-branch",), severity=("attention",)),
    ]
)


def event(severity: str, **fields) -> Event:
    return Event(
        **{"source": "opm1", "entity": "e", "device": "edge-1", "category": "Server", "severity": severity}
        | fields
    )


def tags(severity: str, **fields) -> tuple[str, ...]:
    row, _, rule = judge(None, event(severity, **fields), NOW)
    return address(ROUTES, row, rule).tags


def test_all_routes_that_match_count() -> None:
    assert tags("critical", category="Switch") == ("network",)
    assert tags("critical", category="Switch", device="CORE-sw-01") == ("network", "oncall")
    assert tags("info", device="core-1") == ("oncall", "network")
    assert tags("info", device="x", address="10.20.1.1") == ("oncall", "network")
    assert tags("attention", source="opm-branch") == ("branch",)


def test_a_severity_nobody_can_read_goes_where_trouble_goes() -> None:
    assert tags("unknown", category="Switch") == ("network",)


def test_what_no_route_takes_goes_to_the_administrators_and_is_said() -> None:
    row, _, rule = judge(None, event("critical"), NOW)
    found = address(ROUTES, row, rule)
    assert (found.tags, found.unrouted, found.routes) == (("admin",), True, ())
    assert address(Routes([], admin_tag="boss"), row, rule).tags == ("boss",)


def follow(*severities: str) -> list[tuple[str, tuple[str, ...]]]:
    row: AlarmRow | None = None
    seen = []
    for severity in severities:
        row, verdict, rule = judge(row, event(severity, category="Router"), NOW)
        found = address(ROUTES, row, rule)
        row = found.row
        seen.append((verdict, found.tags))
    return seen


def test_whoever_saw_an_alarm_sees_its_end() -> None:
    """The clear matches no route by itself, and the lowered alarm is below what the route takes."""
    assert follow("critical", "attention", "clear") == [
        ("first", ("network",)),
        ("lowered", ("network",)),
        ("clear", ("network",)),
    ]


def test_an_escalation_reaches_those_who_were_told_and_those_who_now_match() -> None:
    assert follow("attention", "critical", "clear", "trouble") == [
        ("first", ("admin",)),
        ("escalated", ("admin", "network")),
        ("clear", ("admin", "network")),
        ("first", ("network",)),
    ]


def test_what_is_only_recorded_is_told_to_nobody() -> None:
    row, _, rule = judge(None, event("clear"), NOW)
    assert address(ROUTES, row, rule).tags == ()


def test_every_mistake_is_named_with_its_place() -> None:
    with pytest.raises(InvalidRoutes) as caught:
        Routes(
            [
                Route(name="a", tags=("x",), severity=("criticl", "clear")),
                Route(name="a", tags=(), device=("", "y" * 300)),
                Route(name=" ", tags=("",)),
            ]
        )
    assert [(index, field) for index, field, _ in caught.value.problems] == [
        (0, "severity[0]"), (0, "severity[1]"), (1, "tags"), (1, "device[0]"), (1, "device[1]"),
        (2, "name"), (2, "tags[0]"), (1, "name"),
    ]  # fmt: skip
    assert 'is "criticl"; allowed: critical, service_down, trouble, attention, info' in str(caught.value)


def test_a_route_of_the_configuration_has_no_other_keys() -> None:
    read = {"name": "core", "tags": ["oncall"], "device": ["core-*"]}
    assert msgspec.convert(read, Route) == Route(name="core", tags=("oncall",), device=("core-*",))
    with pytest.raises(msgspec.ValidationError, match="devices"):
        msgspec.convert({**read, "devices": []}, Route)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    routes = Routes([Route(name="a", tags=("x",), device=("*a" * 60 + "b",))])
    row, _, rule = judge(None, event("critical", device="a" * 256), NOW)
    assert address(routes, row, rule).unrouted
