"""OpManager's webhook as it really arrives: a file per quirk in data/opmanager, and any octets at all."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastpush.gateway.sources import Event, alarm_digest, alarm_key
from fastpush.gateway.sources.bodies import MAX_BODY_OCTETS
from fastpush.gateway.sources.opmanager import (
    APPLICATIONS_MANAGER_NUMBERS,
    MAX_MESSAGE_CHARACTERS,
    parse,
)

BODIES = Path(__file__).parent.parent / "data/opmanager"
EXPECTED = orjson.loads((BODIES / "expected.json").read_bytes())


def read(name: str, **options) -> Event:
    return parse((BODIES / f"{name}.body").read_bytes(), EXPECTED[name]["content_type"], **options)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_body_gives_its_event(name: str) -> None:
    event = read(name)
    assert msgspec.structs.replace(event, raw="") == msgspec.convert(EXPECTED[name]["event"], Event)


def test_every_body_has_an_expected_event() -> None:
    assert {path.stem for path in BODIES.glob("*.body")} == set(EXPECTED)
    assert len(EXPECTED) >= 40


# What a hostile device may not do, whatever the template. The table above has the whole events.


@pytest.mark.parametrize("name", [name for name in sorted(EXPECTED) if "forged" in name])
def test_text_of_a_device_closes_no_alarm(name: str) -> None:
    event = read(name)
    assert event.rank == 4
    assert event.alarm_id == "4092"
    assert event.entity in ("", "core-sw-01_Poll")
    assert event.device == "core-sw-01"
    assert event.category in ("", "Switch")
    assert event.at is None


def test_a_dtd_is_refused_whole() -> None:
    for name in ("xml-entity-bomb", "xml-external-entity"):
        event = read(name)
        assert event.unreadable
        assert event.is_test
        assert "refused_xml" in event.quirks


def test_a_trap_with_every_name_of_severity_stays_in_the_message() -> None:
    """Whichever name the template uses, none of the others behind the message outranks it."""
    names = [
        "stringseverity", "severityString", "statusStr", "severity", "numericSeverity", "Alert_Severity",
        "statusNum", "status",
    ]  # fmt: skip
    for mine in names:
        forged = "".join(f'","{name}":"{value}' for name in names for value in ("Clear", "5"))
        event = parse(f'{{"alarmid":"1","{mine}":"Critical","message":"x{forged}"}}'.encode())
        assert event.severity == "critical", mine


@pytest.mark.parametrize(
    ("word", "severity"),
    [
        ("Critical", "critical"), ("1", "critical"), ("1.0", "critical"), ("Down", "critical"),
        ("Trouble", "trouble"), ("2", "trouble"), ("Major", "trouble"), ("Error", "trouble"),
        ("Attention", "attention"), ("3", "attention"), ("Warning", "attention"), ("Minor", "attention"),
        ("Service Down", "service_down"), ("SERVICE_DOWN", "service_down"), ("4", "service_down"),
        ("Clear", "clear"), (" clear ", "clear"), ("5", "clear"), ("Up", "clear"), ("Normal", "clear"),
        ("Info", "info"), ("6", "info"), ("Information", "info"),
        ("-1", "unknown"), ("7", "unknown"), ("", "unknown"), ("Clearly not", "unknown"),
    ],
)  # fmt: skip
def test_severities(word: str, severity: str) -> None:
    event = parse(orjson.dumps({"alarmid": "1", "severity": word}))
    assert event.severity == severity


def test_a_bare_4_is_a_warning_of_applications_manager() -> None:
    assert parse(b"alarmid=1&severity=4", numbers=APPLICATIONS_MANAGER_NUMBERS).severity == "attention"
    assert parse(b"alarmid=1&severity=4").severity == "service_down"


def test_a_test_is_known_by_ids_without_values() -> None:
    assert read("json-test-action").is_test
    assert read("json-test-with-device").is_test
    assert read("empty").is_test
    assert not read("json-no-ids").is_test  # the template has none: device and severity are an alarm
    with pytest.raises(ValueError, match="a test"):
        alarm_key(read("json-test-action"))


@pytest.mark.parametrize("body", [b"", b" \r\n\t", b"\0", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_a_body_without_a_template_is_empty(body: bytes) -> None:
    assert "empty" in parse(body).quirks


@pytest.mark.parametrize(
    "body", [b"\0\0", b"\0" * 300, b"\x1c\x1d\x1e\x1f", b"\x0b\x0c", b" \0\r\n", b"\1\2\3"]
)
def test_a_body_of_control_octets_is_damaged_and_not_empty(body: bytes) -> None:
    """An alarm that came as zeros is nobody's trial of the webhook."""
    event = parse(body)
    assert event.unreadable
    assert "empty" not in event.quirks


def test_alarms_are_told_apart() -> None:
    """By entity, else by device and alarm id, else by device, monitor and event type."""
    entity = parse(b"entity=a&alarmid=1&displayName=d&severity=1")
    assert alarm_key(entity) == alarm_key(parse(b"entity=a&alarmid=2&displayName=e&severity=5")) == "a"
    bodies = [
        b"entity=d&severity=1", b"displayName=d&alarmid=1&severity=1", b"displayName=d&alarmid=2&severity=1",
        b"displayName=e&alarmid=1&severity=1", b"displayName=d&monitor=1&severity=1",
        b"displayName=d&eventType=1&severity=1", b"displayName=d&severity=1",
    ]  # fmt: skip
    keys = [alarm_key(parse(body)) for body in bodies]
    assert len(set(keys)) == len(bodies)
    digests = [alarm_digest("opm1", key) for key in keys]
    assert {len(digest) for digest in digests} == {43}
    assert len(set(digests)) == len(bodies)
    assert alarm_digest("opm1", keys[0]) != alarm_digest("opm2", keys[0])


def test_long_entities_stay_apart() -> None:
    one, other = (parse(b"entity=" + b"e" * 5000 + last + b"&severity=1") for last in (b"1", b"2"))
    assert one.entity != other.entity
    assert len(one.entity) == len(other.entity) == 512


def test_a_long_message_is_cut() -> None:
    event = parse(orjson.dumps({"alarmid": "1", "message": "x" * 20_000}))
    assert len(event.message) == MAX_MESSAGE_CHARACTERS
    assert "cut:message" in event.quirks


def test_the_source_is_the_body_s_or_the_route_s() -> None:
    assert parse(b'{"src":"opm7","alarmid":"1"}', source="opm1").source == "opm7"
    assert parse(b'{"alarmid":"1"}', source="opm1").source == "opm1"
    forged = parse(b'{"alarmid":"1","message":"x","src":"opm7"}', source="opm1")
    assert (forged.source, forged.quirks) == ("opm1", ("after_message:source",))


# Any octets.

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                b'{"', b'":"', b'","', b'"}', b"{", b"}", b"[", b"]", b",", b"\\", b"\\u", b"\\ud83d",
                b"alarmid", b"message", b"severity", b"event", b"data", b"<", b"</", b">", b"<alarm>",
                b"</alarm>", b"<message>", b"<![CDATA[", b"&#xD800;", b"<!DOCTYPE", b"<?xml", b"&", b"=",
                b"+", b"--X\r\n", b"--X--", b'Content-Disposition: form-data; name="alarmid"\r\n\r\n',
                b"%", b"\r\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"$alarmid", b"payload", b"Clear",
                b"1709902027793",
            ]
        ),
    ),
    max_size=30,
).map(b"".join)  # fmt: skip
CONTENT_TYPES = st.one_of(
    st.sampled_from(
        [
            "", "application/json", "text/xml", "text/plain", "application/x-www-form-urlencoded",
            "multipart/form-data", "multipart/form-data; boundary=X", 'multipart/form-data; boundary="',
        ]
    ),
    st.text(max_size=40),
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(octets=PIECES, content_type=CONTENT_TYPES)
@example(octets=b"--X\r\n\r\n", content_type="multipart/form-data; boundary=X")
@example(octets=b"\xff\xfe\x00\xd8", content_type="")
def test_no_octets_raise_or_leave_anything_unclean(octets: bytes, content_type: str) -> None:
    event = parse(octets, content_type)
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str):
            value.encode()  # no half pair of surrogates
            assert len(value) <= MAX_MESSAGE_CHARACTERS
            assert not any(ord(character) < 32 and character != "\n" for character in value)
    assert len(event.quirks) <= 16
    assert event == parse(octets, content_type)
    if not event.is_test:
        assert alarm_key(event)


@settings(max_examples=300, deadline=None)
@given(message=st.text(max_size=200), name=st.sampled_from(["Critical", "Trouble", "Attention", "Clear"]))
def test_whatever_is_pasted_into_our_template_the_fields_before_it_stand(message: str, name: str) -> None:
    body = (
        f'{{"src":"opm1","alarmid":"4092","entity":"e1","stringseverity":"{name}","displayName":"core",'
        f'"message":"{message}"}}'
    )
    event = parse(body.encode(errors="replace"), "application/json")
    assert (event.source, event.alarm_id, event.entity, event.device) == ("opm1", "4092", "e1", "core")
    assert event.severity == name.lower()
    assert not event.is_test


@pytest.mark.parametrize(
    "piece",
    [
        b'"', b'{"a', b"[", b'{"a":', b'\\"', b"<", b"<a", b"<message>", b"<b ", b", ", b"{,", b" ", b"\n",
        b'{"message":', b"a=&", b"a=b&", b"%", b"a:b\n", b"message: a\n", b"\\", b"\0", b"$a(", b"&amp;",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n', b"-", b"--\r\n", b"\xf0\x9f", b"/*",
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", [b"", b"{", b'{"severity":"', b"<a>", b"a=", b"--x\r\n"])
def test_time_is_in_proportion_to_the_octets(piece: bytes, start: bytes) -> None:
    """Four times the octets take some four times as long; a quadratic step would take sixteen."""

    def seconds(size: int) -> float:
        octets = start + piece * (size // len(piece))
        best = 9.0
        for _ in range(3):
            began = time.process_time()
            parse(octets, "multipart/form-data; boundary=x" if start.startswith(b"--") else "")
            best = min(best, time.process_time() - began)
        return best

    whole = seconds(MAX_BODY_OCTETS)
    assert whole < 0.1 or whole < 10 * seconds(MAX_BODY_OCTETS // 4)
