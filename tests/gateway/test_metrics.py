"""The metrics: their names and units, their bound, that they are what happened, and what is built on them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastpush.gateway.counters import BOUNDS, Counters, Histogram
from fastpush.gateway.dispatcher.verdicts import KNOWN_REASONS
from fastpush.gateway.metrics import APPS, OTHER, STATES, Collector
from fastpush.gateway.outbox import Entry, Outcome, Waiting
from fastpush.simulator.faults import Answer, Refuse
from tests.gateway.console_house import open_house

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = re.compile(r"\bfastpush_[a-z_]+\b")


async def scraped(house):
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{house.console}/metrics")
    assert answer.status_code == 200
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families, name, **labels):
    """The sum of the samples of this name with these labels."""
    family = families[name.removesuffix("_total").removesuffix("_count")]
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path, phones=3) as house:
        yield house


async def test_what_is_counted_is_what_the_simulators_ledger_has(tmp_path):
    """One answer in seven is a 503, one stream in eleven is refused, and a phone is gone."""
    faults = (Answer(every=7, status=503, reason="ServiceUnavailable"), Refuse(every=11))
    async with open_house(tmp_path, phones=40, faults=faults) as house:
        house.simulator.mark_unregistered(house.tokens[2])
        for number in range(5):
            await house.critical(f"sw-{number}")
        await house.settled()
        seen = house.simulator.ledger.seen
        families = await scraped(house)
    accepted = sum(one.fate == "accepted" for one in seen)
    assert accepted >= 190
    assert any(one.status == 503 for one in seen)
    assert value(families, "fastpush_apns_outcomes_total", outcome="accepted") == accepted
    gone = sum(one.status == 410 for one in seen)
    assert value(families, "fastpush_apns_outcomes_total", reason="Unregistered") == gone > 0
    assert value(families, "fastpush_apns_outcomes_total") == accepted + gone, "each has one end"
    assert value(families, "fastpush_apns_seconds_count", app="opm") > 0
    assert value(families, "fastpush_ingest_requests_total", route="/v1/opmanager", code="200") == 5
    assert value(families, "fastpush_ingest_seconds_count", route="/v1/opmanager") == 5
    assert value(families, "fastpush_alarm_events_total", rule="first.new") == 5
    assert value(families, "fastpush_outbox_waiting") == 0
    assert value(families, "fastpush_app_state", state="running") == 1
    assert value(families, "fastpush_credential_expiry_timestamp_seconds") > 1.7e9


async def test_the_oldest_is_told_by_priority_and_an_alarm_is_the_urgent_one(tmp_path):
    """A paused app's alarm is a fan-out; it ages like a notification, and among the urgent."""
    async with open_house(tmp_path, phones=3) as house:
        await house.gateway.outbox.pause("opm")
        await house.critical()
        entry = Entry(house.tokens[0], b'{"aps":{"alert":"x"}}', priority=5)
        await house.gateway.outbox.accept("opm", [entry])
        waiting = house.gateway.outbox.waiting()["opm"]
        assert waiting.fanouts == 1
        assert waiting.oldest_at == waiting.oldest_high_at <= waiting.oldest_normal_at
        families = await scraped(house)
        ages = {
            sample.labels["priority"]: sample.value
            for sample in families["fastpush_outbox_oldest_seconds"].samples
        }
        assert ages["high"] >= ages["normal"] > 0


async def test_commits_are_a_histogram_of_all_that_there_were(house):
    await house.critical()
    families = await scraped(house)
    assert families["fastpush_storage_commit_seconds"].type == "histogram"
    commits = value(families, "fastpush_storage_commits_total")
    assert value(families, "fastpush_storage_commit_seconds_count") == pytest.approx(commits, abs=2) != 0


def test_skew_token_and_starts_are_read_as_they_are():
    gateway = Everything(1)
    found = {
        sample.name: sample.value for family in Collector(gateway).collect() for sample in family.samples
    }
    assert found["fastpush_clock_skew_seconds"] == 1.0
    assert found["fastpush_provider_token_age_seconds"] == 1.0
    assert found["fastpush_starts_total"] == 1
    gateway.watchdog.clock_skew = None  # no server was heard
    names = {sample.name for family in Collector(gateway).collect() for sample in family.samples}
    assert "fastpush_clock_skew_seconds" not in names


MATCHER = re.compile(r'([a-z_]+)=~?"([^"]*)"')


def test_rules_and_panels_ask_for_label_values_that_there_are():
    """A misspelt value matches nothing: a rule that never fires."""
    alerts = (ROOT / "deploy" / "prometheus-alerts.yml").read_text()
    board = (ROOT / "deploy" / "grafana-dashboard.json").read_text().replace('\\"', '"')
    known = {
        "outcome": set(get_args(Outcome)),
        "reason": KNOWN_REASONS | {"Superseded"},
        "state": set(STATES),
        "priority": {"high", "normal"},
        "kind": {"canary"},
        "le": {f"{bound:g}" for bound in BOUNDS},
    }
    asked = [(name, one) for name, text in MATCHER.findall(alerts + board) for one in text.split("|")]
    assert {name for name, _ in asked} == {*known, "code"}
    for name, one in asked:
        assert one in known.get(name, {one}), (name, one)


async def test_names_follow_prometheus_conventions(house):
    families = await scraped(house)
    for family in families.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation, family.name
        if not family.name.startswith("fastpush_"):
            continue
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
        assert not re.search(r"_(ms|milliseconds|kb|mib|minutes)\b", family.name)


async def test_no_device_and_no_text_of_others_is_a_label(house):
    secret = "words-of-a-stranger"
    await house.critical(device=secret, message=secret, category=secret)
    async with httpx.AsyncClient() as client:
        await client.get(f"{house.ingest}/{secret}")
        text = (await client.get(f"{house.console}/metrics")).text
    assert secret not in text
    assert not any(token in text for token in house.tokens)


async def test_who_looks_is_no_traffic_of_senders(house):
    client = await house.browser()
    await client.get("/")
    await client.get("/alarms/none")
    families = await scraped(house)
    posts = {s.labels["route"] for s in families["fastpush_ingest_requests"].samples}
    timed = {s.labels["route"] for s in families["fastpush_ingest_seconds"].samples}
    looks = {(s.labels["route"], s.labels["code"]) for s in families["fastpush_admin_requests"].samples}
    assert {("/login", "303"), ("/", "200"), ("/alarms/{id}", "404")} <= looks
    assert not (posts | timed) & {"/", "/login", "/alarms/{id}", "/metrics"}
    await house.critical()
    families = await scraped(house)
    assert "/v1/opmanager" in {s.labels["route"] for s in families["fastpush_ingest_seconds"].samples}


async def test_the_document_lists_what_is_exported(house):
    exported = {name for name in await scraped(house) if name.startswith("fastpush_")}
    documented = {
        name.removesuffix("_total") for name in NAME.findall((ROOT / "docs" / "metrics.md").read_text())
    }
    assert exported == documented


async def test_dashboard_and_alerts_use_what_is_exported(house):
    families = await scraped(house)
    known = {sample.name for family in families.values() for sample in family.samples}
    known |= {
        f"{name}_{part}"
        for name, family in families.items()
        if family.type == "histogram"
        for part in ("bucket", "count")
    }
    # Counters with labels have no sample before the first event.
    known |= {f"{name}_total" for name, family in families.items() if family.type == "counter"}
    known |= set(families)
    board = (ROOT / "deploy" / "grafana-dashboard.json").read_text()
    alerts = (ROOT / "deploy" / "prometheus-alerts.yml").read_text()
    for text in (board, alerts):
        used = {name for name in NAME.findall(text) if name != "fastpush_gateway"}
        assert len(used) > 5
        assert used <= known
    panels = [panel for panel in json.loads(board)["panels"] if panel["type"] != "row"]
    assert all(panel["targets"] and panel["title"] for panel in panels)


class Everything:
    """A gateway with more apps than anybody has, each with all that can happen to one."""

    def __init__(self, apps: int) -> None:
        names = [f"app-{number}" for number in range(apps)]
        connection = SimpleNamespace(state="open", in_flight=1, stream_limit=1_000)
        client = SimpleNamespace(
            connections=(connection,),
            stalled_on_streams=1.0,
            stalled_on_window=1.0,
            resent=1,
            retry_budget=1.0,
        )
        credential = SimpleNamespace(expires_at=SimpleNamespace(timestamp=lambda: 1.8e9), token_issued_at=1)

        class All(dict):
            def statistics(self):
                return {name: {"production main": client} for name in self}

        self.apps = All(
            {name: SimpleNamespace(state="running", credential=lambda role: credential) for name in names}
        )
        self.counters = Counters()
        self.devices = SimpleNamespace(breaker=lambda app: None)
        self.outbox = SimpleNamespace(
            waiting=lambda: {name: Waiting(1, 0, 1.0, 1.5, False) for name in names}, starts=1
        )
        self.notices = self.vitals = self.alarms = None
        self.watchdog = SimpleNamespace(clock_skew=1.0)
        self.clock = lambda: 2.0
        self.storage = SimpleNamespace(
            statistics=lambda: SimpleNamespace(
                commits=1, rows=1, commit_histogram=Histogram(), flush_after=0.1, waiting_after=0.0,
                file_octets=1, wal_octets=1, disk_free_octets=1, full=False, flush_errors=0,
            )
        )  # fmt: skip
        for name in names:
            self.counters.notifications[name] += 1
            self.counters.apns_seconds[name].add(0.1)
            self.counters.outcomes[name, "accepted", ""] += 1
            for reason in KNOWN_REASONS | {"other"}:
                self.counters.outcomes[name, "rejected", reason] += 1
                self.counters.retries[name, reason] += 1


def test_the_number_of_series_is_bounded():
    gateway = Everything(200)
    samples = [sample for family in Collector(gateway).collect() for sample in family.samples]
    assert len(samples) <= 5_000
    assert len({(sample.name, tuple(sample.labels.items())) for sample in samples}) == len(samples)
    accepted = [one for one in samples if one.labels.get("outcome") == "accepted"]
    assert len(accepted) == APPS + 1
    assert sum(one.value for one in accepted) == 200, "nothing is left out"
    assert {one.labels["app"]: one.value for one in accepted}[OTHER] == 200 - APPS
