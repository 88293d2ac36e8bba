"""What the phone shows of an alarm: levels, sounds, lifetimes, and never more octets than Apple takes."""

from __future__ import annotations

import json

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush.gateway.alarms import LOUD, RULES, SHOWN, AlarmRow, acknowledge, judge
from fastpush.gateway.banners import (
    MAX_BODY_BYTES,
    MAX_CUSTOM_BYTES,
    MAX_SUBTITLE_BYTES,
    MAX_TITLE_BYTES,
    STYLES,
    Look,
    acknowledged_banner,
    banner,
    collapse_id,
)
from fastpush.gateway.sources import RANKS, Event
from fastpush.gateway.sources.opmanager import parse
from fastpush.notification import Payload

NOW = 1_800_000_000.0
HOUR = 3600


def opened(severity: str = "critical", **fields) -> AlarmRow:
    defaults = {
        "source": "opm1", "entity": "core_Poll", "device": "core-sw-01", "alarm_id": "4092",
        "category": "Switch", "monitor": "Availability", "message": "no answer",
    }  # fmt: skip
    return judge(None, Event(**defaults | fields, severity=severity), NOW)[0]


def shown(made) -> dict:
    return json.loads(made.payload.encode())


def test_a_critical_alarm() -> None:
    row = opened()
    made = banner(row, "first.new", NOW, badge=7, look=Look(mutable_content=True))
    assert shown(made) == {
        "aps": {
            "alert": {
                "title": "Critical: core-sw-01", "subtitle": "Switch, Availability", "body": "no answer",
            },
            "badge": 7,
            "sound": "opm_critical.caf",
            "thread-id": "opm1/core-sw-01",
            "category": "OPM_ALARM_OPEN",
            "interruption-level": "time-sensitive",
            "relevance-score": 1.0,
            "target-content-id": "alarm/4092",
            "mutable-content": 1,
        },
        "opm": {
            "v": 1, "id": collapse_id(row)[2:], "src": "opm1", "gen": 1, "sev": 1, "state": "open",
            "ts": int(NOW * 1000), "alarmid": "4092", "entity": "core_Poll",
        },
    }  # fmt: skip
    assert (made.priority, made.expiration) == (10, NOW + 24 * HOUR)
    assert regex.fullmatch(r"a\.[A-Za-z0-9_-]{43}", made.collapse_id)
    notification = made.notification("ab" * 32)
    assert (notification.push_type, notification.priority) == ("alert", 10)
    assert notification.collapse_id == made.collapse_id


@pytest.mark.parametrize(
    ("severity", "level", "priority", "sound", "relevance", "hours"),
    [
        ("critical", "time-sensitive", 10, "opm_critical.caf", 1.0, 24),
        ("service_down", "time-sensitive", 10, "opm_critical.caf", 1.0, 24),
        ("trouble", "active", 10, "default", 0.7, 12),
        ("unknown", "active", 10, "default", 0.7, 12),
        ("attention", "active", 10, "default", 0.4, 4),
        ("info", "passive", 5, None, 0.1, 1),
    ],
)
def test_severities(severity, level, priority, sound, relevance, hours) -> None:
    loud = banner(opened(severity), "first.new", NOW)
    aps = shown(loud)["aps"]
    assert (aps["interruption-level"], aps.get("sound"), aps["relevance-score"]) == (level, sound, relevance)
    assert (loud.priority, loud.expiration) == (priority, NOW + hours * HOUR)
    silent = banner(opened(severity), "repeat.changed", NOW)
    aps = shown(silent)["aps"]
    assert (aps["interruption-level"], aps.get("sound"), aps["relevance-score"]) == (
        "passive",
        None,
        relevance,
    )
    assert (silent.priority, silent.expiration) == (5, NOW + hours * HOUR)


def test_a_clear_takes_the_place_of_the_alarm_without_a_sound() -> None:
    row = opened()
    cleared, _, rule = judge(row, Event(source="opm1", entity="core_Poll", severity="clear"), NOW)
    made = banner(cleared, rule, NOW, badge=0)
    aps = shown(made)["aps"]
    assert made.collapse_id == collapse_id(row)
    assert aps["thread-id"] == shown(banner(row, "first.new", NOW))["aps"]["thread-id"]
    assert aps["alert"]["title"] == "Cleared: core-sw-01"
    assert (aps["category"], aps["badge"], aps["interruption-level"]) == ("OPM_CLEARED", 0, "passive")
    assert "sound" not in aps
    assert (made.priority, made.expiration) == (5, NOW + HOUR)


def test_what_is_only_recorded_has_no_banner() -> None:
    for rule in RULES:
        assert (banner(opened(), rule, NOW) is None) == (rule not in SHOWN)


def test_everything_new_or_worse_sounds_and_nothing_else_does() -> None:
    for rule in SHOWN:
        for severity, rank in RANKS.items():
            if rank == 0:
                continue
            aps = shown(banner(opened(severity), rule, NOW))["aps"]
            assert ("sound" in aps) == (rule in LOUD and rank > 1)  # iOS plays none at the level of info


def test_critical_alerts_need_the_entitlement_and_the_worst() -> None:
    look = Look(critical_alerts=True)
    aps = shown(banner(opened(), "first.new", NOW, look=look))["aps"]
    assert aps["interruption-level"] == "critical"
    assert aps["sound"] == {"critical": 1, "name": "opm_critical.caf", "volume": 0.8}
    for row, rule in [(opened("trouble"), "first.new"), (opened(), "lowered.rank")]:
        assert shown(banner(row, rule, NOW, look=look))["aps"]["interruption-level"] != "critical"


def test_a_private_banner_names_nothing() -> None:
    row = acknowledge(opened(url="https://opm.example.com/4092", address="10.20.1.1"), "jo", NOW)
    for made in (
        banner(row, "first.new", NOW, look=Look(private=True)),
        acknowledged_banner(row, NOW, look=Look(private=True)),
    ):
        octets = made.payload.encode()
        for secret in (
            b"core-sw",
            b"core_Poll",
            b"4092",
            b"Switch",
            b"Availability",
            b"no answer",
            b"10.20",
            b"jo",
            b"https",
        ):
            assert secret not in octets
        assert shown(made)["aps"]["alert"]["body"] == "Network alarm"
        assert shown(made)["opm"]["id"] == collapse_id(row)[2:]


def test_an_acknowledgement_is_told_silently() -> None:
    row = acknowledge(opened(), "jo", NOW)
    made = acknowledged_banner(row, NOW, badge=2)
    aps = shown(made)["aps"]
    assert aps["alert"]["subtitle"] == "Acknowledged by jo"
    assert (aps["category"], aps["interruption-level"], aps["badge"]) == ("OPM_ALARM_ACKED", "passive", 2)
    assert made.collapse_id == collapse_id(row)
    assert acknowledged_banner(opened(), NOW) is None
    assert shown(banner(row, "lowered.rank", NOW))["aps"]["category"] == "OPM_ALARM_ACKED"


def test_only_links_of_the_web_go_out() -> None:
    for url, goes in [("https://a.example/1", True), ("http://a/1", True), ("javascript:alert(1)", False)]:
        assert ("url" in shown(banner(opened(url=url), "first.new", NOW))["opm"]) == goes


def test_texts_are_cut_between_whole_characters() -> None:
    family = "👨‍👩‍👧‍👦"
    aps = shown(banner(opened(message=family * 200, device="é" * 200), "first.new", NOW))["aps"]
    body = aps["alert"]["body"]
    assert body == family * (len(body) // len(family)) + "…"
    assert MAX_BODY_BYTES - 25 < len(body.encode()) <= MAX_BODY_BYTES
    assert len(aps["alert"]["title"].encode()) <= MAX_TITLE_BYTES


TEXT = st.one_of(
    st.text(max_size=300), st.sampled_from(['"\\\n' * 1000, "é" * 8000, "👨‍👩‍👧‍👦" * 600, "\x7f" * 500])
)


@settings(max_examples=400, deadline=None)
@given(TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, st.sampled_from(sorted(RANKS)), st.booleans())
def test_no_text_makes_a_payload_too_long(
    device, entity, alarm_id, category, message, url, severity, private
) -> None:
    fields = {
        "device": device, "entity": entity or "e", "alarm_id": alarm_id, "category": category,
        "monitor": category, "message": message, "url": "https://" + url,
    }  # fmt: skip
    row = opened("trouble" if severity == "clear" else severity, **fields)
    made = banner(row, "first.new", NOW, badge=2**31, look=Look(private=private, mutable_content=True))
    octets = made.payload.encode()
    assert len(octets) <= 4096
    aps, custom = shown(made)["aps"], shown(made)["opm"]
    limits = {"title": MAX_TITLE_BYTES, "subtitle": MAX_SUBTITLE_BYTES, "body": MAX_BODY_BYTES}
    for name, limit in limits.items():
        size = len(Payload(alert=aps["alert"].get(name, "")).encode()) - len(Payload(alert="").encode())
        assert size <= limit
    assert len(json.dumps(custom, ensure_ascii=False, separators=(",", ":")).encode()) <= MAX_CUSTOM_BYTES
    made.notification("ab" * 32)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_is_posted_can_be_pushed(octets) -> None:
    event = parse(b'{"alarmid":"1","severity":"Critical","displayName":"' + octets)
    row, _, rule = judge(None, event, NOW)
    assert banner(row, rule, NOW).notification("ab" * 32)


def test_every_severity_has_a_style() -> None:
    assert set(STYLES) == set(RANKS)
