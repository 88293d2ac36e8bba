"""The first page: is it working, and what is about to break."""

from __future__ import annotations

from typing import Any, NamedTuple

from markupsafe import Markup
from starlette.responses import Response
from starlette.routing import BaseRoute

from fastpush.gateway.api.health import why_not
from fastpush.gateway.console.charts import Line, chart
from fastpush.gateway.console.credentials import days_left
from fastpush.gateway.console.pages import Console, Visit, page_route
from fastpush.gateway.vitals import DAY, HOUR, Ring, Sample

__all__ = ["routes"]

SPANS = {"hour": HOUR, "day": DAY}
OLD = 60.0  # seconds; a notification that waits for longer is worth a word


class Standing(NamedTuple):
    """One sentence on how it goes, and how bad that is: "good", "warn" or "bad"."""

    kind: str
    words: str
    reasons: tuple[str, ...]


def routes(console: Console) -> list[BaseRoute]:
    return [page_route(console, "/", overview)]


async def overview(visit: Visit) -> Response:
    gateway = visit.gateway
    waiting = gateway.outbox.waiting()
    now = gateway.clock()
    span = visit.asked("span", "hour")
    ring = SPANS.get(span, HOUR)
    vitals: Any = gateway.vitals
    samples = [] if vitals is None else vitals.samples(ring)
    apps = [app_row(app, waiting.get(name), now) for name, app in gateway.apps.items()]
    open_alarms = [] if gateway.alarms is None else await gateway.alarms.list(state="open", limit=5)
    return visit.render(
        "overview.html",
        standing=standing(visit, apps),
        latest=None if vitals is None else vitals.latest,
        apps=apps,
        alarms=open_alarms,
        unacknowledged=0 if gateway.alarms is None else gateway.alarms.statistics().unacknowledged,
        span=span if span in SPANS else "hour",
        charts=charts(samples, ring, now),
        storage=gateway.storage.statistics(),
    )


def app_row(app: Any, waiting: Any, now: float) -> dict[str, Any]:
    """What the table of apps shows."""
    clients = app.statistics().values()
    connections = [one for client in clients for one in client.connections if one.state == "open"]
    return {
        "app": app,
        "waiting": 0 if waiting is None else waiting.count,
        "fanouts": 0 if waiting is None else waiting.fanouts,
        "oldest": None if waiting is None or waiting.oldest_at is None else max(0.0, now - waiting.oldest_at),
        "connections": len(connections),
        "in_flight": sum(one.in_flight for one in connections),
        "streams": sum(one.stream_limit for one in connections),
        "stalled": sum(client.stalled_on_streams + client.stalled_on_window for client in clients),
        "days": days_left(app, now),
    }


def standing(visit: Visit, apps: list[dict[str, Any]]) -> Standing:
    """How it goes, the worst first."""
    gateway = visit.gateway
    bad = why_not(gateway)
    bad += [
        f"{row['app'].name}: {row['app'].state}: {row['app'].reason or ''}".rstrip(": ")
        for row in apps
        if row["app"].state in ("refused", "unreachable")
    ]
    warn = [
        f"{row['app'].name} is paused: {row['app'].reason}" for row in apps if row["app"].state == "paused"
    ]
    warn += [
        f"{row['app'].name}: the oldest of {row['waiting']:,} has waited for {row['oldest']:.0f} s"
        for row in apps
        if row["oldest"] is not None and row["oldest"] > OLD and row["app"].state == "running"
    ]
    if bad:
        return Standing("bad", "Pushes do not leave as they should", (*bad, *warn))
    if warn:
        return Standing("warn", "Pushes wait", tuple(warn))
    return Standing("good", "Pushes leave", ())


def charts(samples: list[Sample], ring: Ring, now: float) -> list[Markup]:
    """The charts of one span."""

    def line(name: str, field: str, kind: str = "a", factor: float = 1.0) -> Line:
        return Line(name, with_gaps(samples, field, factor, ring), kind)

    def drawn(title: str, unit: str, *lines: Line) -> Markup:
        return chart(title, lines, unit=unit, begin=now - ring.span, end=now)

    return [
        drawn("Pushes", "/s", line("accepted", "accepted"), line("not accepted", "failed", "b")),
        drawn("APNs' answer", "ms", line("median", "apns_p50", "a", 1e3), line("99 %", "apns_p99", "b", 1e3)),
        drawn("Waiting", "", line("notifications", "waiting")),
        drawn("Age of the oldest", "s", line("age", "oldest")),
        drawn("Streams", "", line("in use", "in_flight"), line("allowed", "streams", "c")),
        drawn("Stalled on streams or window", "%", line("stalled", "stalled", "a", 100.0)),
        drawn("Requests taken in", "/s", line("requests", "requests")),
        drawn("Disk commit and event loop", "ms", line("commit, 99 %", "commit_p99", "a", 1e3),
              line("loop late by", "lag", "b", 1e3)),
    ]  # fmt: skip


def with_gaps(
    samples: list[Sample], field: str, factor: float, ring: Ring
) -> list[tuple[float, float | None]]:
    """Points of a line, with a hole where the gateway was not running."""
    points: list[tuple[float, float | None]] = []
    before = None
    for sample in samples:
        if before is not None and sample.at - before > 2.5 * ring.seconds:
            points.append((before, None))
        value = getattr(sample, field)
        points.append((sample.at, None if value is None else value * factor))
        before = sample.at
    return points
