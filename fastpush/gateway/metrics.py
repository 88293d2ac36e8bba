"""`/metrics`: what the gateway counts, as Prometheus reads it.

A collector over plain integers: nothing is formatted, locked or labelled before somebody asks, so that a
push pays an addition at most. Names and units follow Prometheus' "Metric and label naming"; docs/metrics.md
lists them all, and a test compares.

The number of time series is bounded whatever is configured and whatever is sent: the first APPS apps have
series of their own, those behind are "other" together, and so are reasons that nobody knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.counters import BOUNDS, Histogram

if TYPE_CHECKING:
    from fastpush.gateway.api import Gateway

__all__ = ["APPS", "OTHER", "Collector", "admin_routes"]

APPS = 40
OTHER = "other"
STATES = ("running", "paused", "refused", "unreachable")


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """`GET /metrics`, open to whoever reaches the admin listener: no metric names a device or a text."""

    async def metrics(request: Request) -> Response:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(gateway))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": kind, "Cache-Control": "no-store"})

    return [Route("/metrics", metrics, methods=["GET"], include_in_schema=False)]


def _version() -> str:
    try:
        return version("fastpush")
    except PackageNotFoundError:
        return "not installed"  # a checkout


@final
class Collector:
    """Reads everything when it is asked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._own = set(list(gateway.apps)[:APPS])

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield InfoMetricFamily("fastpush_build", "Which fastpush this is.", {"version": _version()})
        yield from self._ingest()
        yield from self._apns()
        yield from self._connections()
        yield from self._waiting()
        yield from self._storage()
        yield from self._alarms()
        yield from self._credentials()
        yield from self._process()
        vitals = self._gateway.vitals
        lag = 0.0 if vitals is None or vitals.latest is None else vitals.latest.lag
        yield gauge(
            "fastpush_event_loop_lag_seconds", "How late the loop woke at worst, in the last 10 s.", lag
        )

    def _process(self) -> Iterator[Metric]:
        yield totals(
            "fastpush_starts", "How often the gateway was started on its file.", (),
            [((), self._gateway.outbox.starts)],
        )  # fmt: skip
        watchdog = self._gateway.watchdog
        skew = None if watchdog is None else watchdog.clock_skew
        yield gauges(
            "fastpush_clock_skew_seconds", "By how much our clock is ahead of the servers'.", (),
            [] if skew is None else [((), skew)],
        )  # fmt: skip

    def app(self, name: str) -> str:
        """An app's name as a label."""
        return name if name in self._own else OTHER

    def _ingest(self) -> Iterator[Metric]:
        counters = self._gateway.counters
        yield totals(
            "fastpush_ingest_requests", "HTTP requests of senders and phones answered.", ("route", "code"),
            (((route or OTHER, str(code)), n) for (route, code), n in counters.answers.items()),
        )  # fmt: skip
        yield totals(
            "fastpush_admin_requests", "HTTP requests answered by the admin listener.", ("route", "code"),
            (((route or OTHER, str(code)), n) for (route, code), n in counters.admin_answers.items()),
        )  # fmt: skip
        yield histogram(
            "fastpush_ingest_seconds", "From a request's head to its answer's.", ("route",),
            {(route or OTHER,): found for route, found in counters.answer_seconds.items()},
        )  # fmt: skip
        yield totals(
            "fastpush_notifications_accepted", "Acknowledged with 202, fan-outs once each.", ("app",),
            (((self.app(app),), n) for app, n in counters.notifications.items()),
        )  # fmt: skip

    def _apns(self) -> Iterator[Metric]:
        counters = self._gateway.counters
        yield totals(
            "fastpush_apns_outcomes", "Notifications that came to their end, on disk.",
            ("app", "outcome", "reason"),
            (((self.app(app), *end), n) for (app, *end), n in counters.outcomes.items()),
        )  # fmt: skip
        yield totals(
            "fastpush_apns_retries", "Attempts that are to be repeated later.", ("app", "reason"),
            (((self.app(app), reason), n) for (app, reason), n in counters.retries.items()),
        )  # fmt: skip
        merged: defaultdict[tuple[str, ...], Histogram] = defaultdict(Histogram)
        for app, found in counters.apns_seconds.items():
            into = merged[self.app(app),]
            into.counts = [a + b for a, b in zip(into.counts, found.counts, strict=True)]
            into.total += found.total
        yield histogram("fastpush_apns_seconds", "From a push's HEADERS to APNs' answer.", ("app",), merged)

    def _connections(self) -> Iterator[Metric]:
        sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        for app, lines in self._gateway.apps.statistics().items():
            name = self.app(app)
            for client in lines.values():
                up = [one for one in client.connections if one.state == "open"]
                sums["connections"][name] += len(up)
                sums["in_use"][name] += sum(one.in_flight for one in up)
                sums["limit"][name] += sum(one.stream_limit for one in up)
                sums["on_streams"][name] += client.stalled_on_streams
                sums["on_window"][name] += client.stalled_on_window
                sums["resent"][name] += client.resent
                sums["budget"][name] += client.retry_budget
        for key, metric, told in (
            ("connections", "fastpush_apns_connections", "Open connections to APNs."),
            ("in_use", "fastpush_apns_streams_in_use", "Requests without an answer."),
            ("limit", "fastpush_apns_streams_limit", "Requests that APNs allows at once."),
            ("budget", "fastpush_apns_retry_budget", "Re-sends that are allowed now."),
        ):
            yield gauges(metric, told, ("app",), (((app,), n) for app, n in sums[key].items()))
        yield totals(
            "fastpush_apns_resent", "Requests beyond the first of their push.", ("app",),
            (((app,), n) for app, n in sums["resent"].items()),
        )  # fmt: skip
        yield totals(
            "fastpush_apns_stalled_seconds", "Time in which pushes waited although connected.", ("app", "on"),
            [
                ((app, on), n)
                for key, on in (("on_streams", "streams"), ("on_window", "window"))
                for app, n in sums[key].items()
            ],
        )  # fmt: skip
        states: defaultdict[tuple[str, str], int] = defaultdict(int)
        breakers: defaultdict[str, int] = defaultdict(int)
        for name, app in self._gateway.apps.items():
            for state in STATES:
                states[self.app(name), state] += app.state == state
            breakers[self.app(name)] += self._gateway.devices.breaker(name) is not None
        yield gauges("fastpush_app_state", "Apps in this state.", ("app", "state"), states.items())
        yield gauges(
            "fastpush_breaker_open", "Apps whose device tokens are refused too often.", ("app",),
            (((app,), n) for app, n in breakers.items()),
        )  # fmt: skip

    def _waiting(self) -> Iterator[Metric]:
        now = self._gateway.clock()
        counts: defaultdict[str, int] = defaultdict(int)
        fanouts: defaultdict[str, int] = defaultdict(int)
        oldest: defaultdict[tuple[str, str], float] = defaultdict(float)
        waiting = self._gateway.outbox.waiting()
        for app in {*waiting, *self._gateway.apps}:
            name = self.app(app)
            one = waiting.get(app)
            counts[name] += 0 if one is None else one.count
            fanouts[name] += 0 if one is None else one.fanouts
            high, normal = (None, None) if one is None else (one.oldest_high_at, one.oldest_normal_at)
            for priority, since in (("high", high), ("normal", normal)):
                age = 0.0 if since is None else max(0.0, now - since)
                oldest[name, priority] = max(oldest[name, priority], age)
        for metric, told, found in (
            ("fastpush_outbox_waiting", "Notifications without an end.", counts),
            ("fastpush_outbox_fanouts", "Fan-outs on their way.", fanouts),
        ):
            yield gauges(metric, told, ("app",), (((app,), n) for app, n in found.items()))
        yield gauges(
            "fastpush_outbox_oldest_seconds", "Age of the oldest notification or fan-out without an end.",
            ("app", "priority"), oldest.items(),
        )  # fmt: skip

    def _storage(self) -> Iterator[Metric]:
        found = self._gateway.storage.statistics()
        yield histogram(
            "fastpush_storage_commit_seconds", "A transaction, until it is on disk.", (),
            {(): found.commit_histogram},
        )  # fmt: skip
        for metric, told, value in (
            ("fastpush_storage_commits", "Transactions on disk.", found.commits),
            ("fastpush_storage_rows", "Rows and changes on disk.", found.rows),
            ("fastpush_storage_flush_errors", "Flushes that the disk refused.", found.flush_errors),
        ):
            yield totals(metric, told, (), [((), value)])
        yield gauge(
            "fastpush_storage_flush_seconds", "A flush of 4 KiB, measured at the start.", found.flush_after
        )
        yield gauge(
            "fastpush_storage_waiting_seconds", "Age of the oldest row to be written.", found.waiting_after
        )
        yield gauge("fastpush_storage_file_bytes", "Size of the database.", found.file_octets)
        yield gauge("fastpush_storage_wal_bytes", "Size of its log.", found.wal_octets)
        yield gauge("fastpush_storage_free_bytes", "Free on its disk.", found.disk_free_octets)
        yield gauge(
            "fastpush_storage_full", "1 below the low-water mark: only outcomes are written.", found.full
        )

    def _alarms(self) -> Iterator[Metric]:
        if self._gateway.alarms is None:
            return
        found = self._gateway.alarms.statistics()
        yield totals(
            "fastpush_alarm_events", "Events judged, by the rule that decided.", ("rule",),
            (((rule,), n) for rule, n in found.rules.items()),
        )  # fmt: skip
        yield totals(
            "fastpush_alarms_unrouted", "Events that went to the administrators.", ("why",),
            (((why.replace(" ", "_"),), n) for why, n in found.unrouted.items()),
        )  # fmt: skip
        yield totals(
            "fastpush_webhooks_unreadable", "Posts in which nothing is known.", (), [((), found.unreadable)]
        )
        yield totals("fastpush_webhooks_tests", "Posts that name no alarm.", (), [((), found.tests)])
        yield gauge(
            "fastpush_alarms_unacknowledged", "Open alarms that nobody has taken.", found.unacknowledged
        )

    def _credentials(self) -> Iterator[Metric]:
        found: dict[tuple[str, ...], float] = {}
        ages: dict[tuple[str, ...], float] = {}
        now = self._gateway.clock()
        for name, app in self._gateway.apps.items():
            for role in ("main", "standby"):
                credential = app.credential(role)
                issued_at = getattr(credential, "token_issued_at", None)
                if issued_at is not None:
                    age = now - issued_at
                    ages[self.app(name), role] = max(age, ages.get((self.app(name), role), age))
                if credential is not None and credential.expires_at is not None:
                    key = (self.app(name), role)
                    at = credential.expires_at.timestamp()
                    found[key] = min(at, found.get(key, at))
        yield gauges(
            "fastpush_credential_expiry_timestamp_seconds", "When a certificate expires; a key does not.",
            ("app", "credential"), found.items(),
        )  # fmt: skip
        yield gauges(
            "fastpush_provider_token_age_seconds", "Since the provider token used last was issued.",
            ("app", "credential"), ages.items(),
        )  # fmt: skip
        standing = [] if self._gateway.notices is None else self._gateway.notices.standing()
        kinds: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for notice in standing:
            kinds[(notice.kind,)] += 1
        yield gauges("fastpush_notices", "What the watchdog warns of now.", ("kind",), kinds.items())


Labelled = Iterable[tuple[tuple[str, ...], float]]


def totals(name: str, told: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    """A counter; values of the same labels are added up."""
    return _filled(CounterMetricFamily(name, told, labels=labels), values)


def gauges(name: str, told: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    """A gauge with labels; values of the same labels are added up."""
    return _filled(GaugeMetricFamily(name, told, labels=labels), values)


def gauge(name: str, told: str, value: float) -> Metric:
    """A gauge alone."""
    return GaugeMetricFamily(name, told, value=float(value))


def histogram(
    name: str, told: str, labels: tuple[str, ...], found: Mapping[tuple[str, ...], Histogram]
) -> Metric:
    """A histogram by labels."""
    family = HistogramMetricFamily(name, told, labels=labels)
    for values, one in found.items():
        so_far, buckets = 0, []
        for bound, count in zip((*BOUNDS, None), one.counts, strict=True):
            so_far += count
            buckets.append(("+Inf" if bound is None else f"{bound:g}", float(so_far)))
        family.add_metric(values, buckets, one.total)
    return family


def _filled(family: Any, values: Labelled) -> Metric:
    sums: dict[tuple[str, ...], float] = {}
    for labels, value in values:
        sums[labels] = sums.get(labels, 0.0) + value
    for labels, value in sums.items():
        family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]
