"""One push, checked as a whole when made; what became of it; what APNs says about a rejection."""

from __future__ import annotations

import copy
import enum
import gc
import inspect
import json
import pickle
import uuid
from collections import deque
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest

import fastpush._notification
from fastpush import (
    Alert,
    InvalidNotification,
    LiveActivity,
    Notification,
    OutcomeUnknown,
    Payload,
    Response,
    Sound,
)
from fastpush._connection import Collector, Exchange, Push
from fastpush.http2 import CompiledEngine
from fastpush.notification import (
    MAX_BROADCAST_PAYLOAD_BYTES,
    MAX_COLLAPSE_ID_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_VOIP_PAYLOAD_BYTES,
    TOPIC_SUFFIXES,
    parse_error_body,
    topic_for,
    unregistered_at,
)

DEVICE_TOKEN = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"
APNS_ID = "eabeae54-14a8-11e5-b60b-1697f925ec7b"
PAYLOAD = Payload(alert="Link down")
BACKGROUND = Payload(content_available=True)
WIDGETS = Payload(content_changed=True)
RAW = Payload.raw(b'{"aps":{}}')
MDM = Payload.raw(b'{"mdm":"PushMagic"}')
UPDATE = LiveActivity(event="update", timestamp=1_700_000_000, content_state={"down": 3})
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Text(str):
    """A text that is more than a str, as an Enum member is."""


class Priority(enum.IntEnum):
    LOW = 1


def test_the_compiled_module_is_the_one_in_use():
    assert fastpush._notification.__file__.endswith(".so")


def test_the_limits_are_apples():
    assert (MAX_PAYLOAD_BYTES, MAX_VOIP_PAYLOAD_BYTES, MAX_BROADCAST_PAYLOAD_BYTES) == (4096, 5120, 5120)
    assert MAX_COLLAPSE_ID_BYTES == 64


# What each field is kept as.

KEPT = [
    ("topic", None, None),
    ("topic", "com.example.opmanager", "com.example.opmanager"),
    ("topic", "com.example.voip", "com.example.voip"),
    ("topic", Text("com.example"), "com.example"),
    ("push_type", "alert", "alert"),
    ("push_type", Text("complication"), "complication"),
    ("push_type", "brand-new", "brand-new"),
    ("priority", None, None),
    ("priority", 10, 10),
    ("priority", 5, 5),
    ("priority", Priority.LOW, 1),
    ("expiration", None, None),
    ("expiration", 0, 0),
    ("expiration", 10**9, 10**9),
    ("expiration", 2**53, 2**53),
    ("expiration", NOON, 1_893_499_200),
    ("expiration", NOON.astimezone(timezone(timedelta(hours=-8))), 1_893_499_200),
    ("expiration", NOON + timedelta(microseconds=999_999), 1_893_499_200),
    ("collapse_id", None, None),
    ("collapse_id", "x" * 64, "x" * 64),
    ("collapse_id", "é" * 32, "é" * 32),
    ("collapse_id", "core switch/1", "core switch/1"),
    ("collapse_id", Text("core"), "core"),
    ("apns_id", None, None),
    ("apns_id", APNS_ID, APNS_ID),
    ("apns_id", APNS_ID.upper(), APNS_ID),
    ("apns_id", uuid.UUID(APNS_ID), APNS_ID),
    ("apns_id", Text(APNS_ID), APNS_ID),
]


@pytest.mark.parametrize(("field", "given", "kept"), KEPT)
def test_a_good_field_is_kept(field, given, kept):
    found = getattr(Notification(DEVICE_TOKEN, PAYLOAD, **{field: given}), field)
    assert found == kept
    assert type(found) is type(kept)


GOOD_DEVICE_TOKENS = [
    (DEVICE_TOKEN, DEVICE_TOKEN),
    (DEVICE_TOKEN.upper(), DEVICE_TOKEN),
    (DEVICE_TOKEN.encode(), DEVICE_TOKEN),
    (Text(DEVICE_TOKEN), DEVICE_TOKEN),
    ("<00fc13ad ff785122>", "00fc13adff785122"),
    (b" <00FC13AD ff785122> ", "00fc13adff785122"),
    ("ab", "ab"),
    ("0123456789abcdef" * 10 + "ab", "0123456789abcdef" * 10 + "ab"),
]


@pytest.mark.parametrize(("given", "kept"), GOOD_DEVICE_TOKENS)
def test_a_device_token_is_lower_case_hex_of_any_even_length(given, kept):
    """Apple, "Registering your app with APNs": its size may change, never assume one."""
    assert Notification(given, PAYLOAD).device_token == kept


def test_a_normal_device_token_is_not_copied():
    assert Notification(DEVICE_TOKEN, PAYLOAD).device_token is DEVICE_TOKEN


def test_every_character_of_a_device_token_is_looked_at():
    for length in (2, 8, 10, 64, 66):
        for place in range(length):
            for character in ("g", "/", ":", "`", "@", "G", "\x00", "\x7f", "é", "a\u0301"[1]):
                token = "a" * place + character + "f" * (length - place - 1)
                with pytest.raises(InvalidNotification, match=f"no hex digit, at position {place}$"):
                    Notification(token, PAYLOAD)


# Refusals. Each row: arguments, the field, the whole message.


def push(payload=PAYLOAD, device_token=DEVICE_TOKEN, **fields):
    return {"device_token": device_token, "payload": payload, **fields}


REFUSED = [
    (push(device_token=""), "device_token", "device_token is empty"),
    (push(device_token="< >"), "device_token", "device_token is empty"),
    (push(device_token="abc"), "device_token", "device_token has 3 hex digits; it must be an even number"),
    (
        push(device_token="ab\n"),
        "device_token",
        "device_token of 3 characters holds one that is no hex digit, at position 2",
    ),
    (
        push(device_token=bytes(range(128, 160))),
        "device_token",
        "device_token is 32 bytes that are not hex digits; give the hex form of a binary device token",
    ),
    (
        push(device_token=None),
        "device_token",
        "device_token must be a str or bytes of hex digits; this is NoneType",
    ),
    (
        push(payload=b"{}"),
        "payload",
        "payload must be a Payload or a LiveActivity; this is bytes (ready JSON goes through Payload.raw)",
    ),
    (
        push(payload="Link down"),
        "payload",
        "payload must be a Payload or a LiveActivity; this is str (ready JSON goes through Payload.raw)",
    ),
    (push(payload={"aps": {}}), "payload", "payload must be a Payload or a LiveActivity; this is dict"),
    (push(topic=""), "topic", "topic is empty"),
    (push(topic="com.example app"), "topic", "topic of 15 characters may hold visible ASCII characters only"),
    (push(topic="com.exämple"), "topic", "topic of 11 characters may hold visible ASCII characters only"),
    (push(topic="com.example\n"), "topic", "topic of 12 characters may hold visible ASCII characters only"),
    (push(topic=b"com.example"), "topic", "topic must be a str; this is bytes"),
    (push(push_type=""), "push_type", "push_type is empty"),
    (push(push_type=None), "push_type", "push_type must be a str; this is NoneType"),
    (push(push_type="al ert"), "push_type", "push_type of 6 characters is not a token of RFC 9110 §5.6.2"),
    (push(push_type="älert"), "push_type", "push_type of 5 characters is not a token of RFC 9110 §5.6.2"),
    (push(priority=0), "priority", "priority must be 10, 5, 1 or None; this is 0"),
    (push(priority=-10), "priority", "priority must be 10, 5, 1 or None; this is -10"),
    (push(priority=10**400), "priority", "priority must be 10, 5, 1 or None; this is an int of 1329 bits"),
    (push(priority=True), "priority", "priority must be 10, 5, 1 or None; this is bool"),
    (push(priority="10"), "priority", "priority must be 10, 5, 1 or None; this is str"),
    (
        push(expiration=1),
        "expiration",
        "expiration is 1, which looks like a duration; an instant in UNIX seconds is needed",
    ),
    (
        push(expiration=10**9 - 1),
        "expiration",
        "expiration is 999999999, which looks like a duration; an instant in UNIX seconds is needed",
    ),
    (
        push(expiration=datetime(1971, 1, 1, tzinfo=UTC)),
        "expiration",
        "expiration is 31536000, which looks like a duration; an instant in UNIX seconds is needed",
    ),
    (push(expiration=-1), "expiration", "expiration must be from 0 to 2**53 UNIX seconds; this is below"),
    (
        push(expiration=-(2**70)),
        "expiration",
        "expiration must be from 0 to 2**53 UNIX seconds; this is below",
    ),
    (
        push(expiration=datetime(1969, 1, 1, tzinfo=UTC)),
        "expiration",
        "expiration must be from 0 to 2**53 UNIX seconds; this is below",
    ),
    (
        push(expiration=2**53 + 1),
        "expiration",
        "expiration must be from 0 to 2**53 UNIX seconds; this is above",
    ),
    (push(expiration=2**64), "expiration", "expiration must be from 0 to 2**53 UNIX seconds; this is above"),
    (
        push(expiration=datetime(2030, 1, 1)),
        "expiration",
        "expiration is a naive datetime; give it a time zone, as in datetime.now(UTC)",
    ),
    (
        push(expiration=1.9e9),
        "expiration",
        "expiration must be an int of UNIX seconds or an aware datetime; this is float",
    ),
    (
        push(expiration=True),
        "expiration",
        "expiration must be an int of UNIX seconds or an aware datetime; this is bool",
    ),
    (
        push(expiration=timedelta(1)),
        "expiration",
        "expiration must be an int of UNIX seconds or an aware datetime; this is timedelta",
    ),
    (push(collapse_id=""), "collapse_id", "collapse_id is empty; leave it out to replace nothing"),
    (push(collapse_id="x" * 65), "collapse_id", "collapse_id is 65 bytes of UTF-8; the limit is 64"),
    (push(collapse_id="é" * 32 + "x"), "collapse_id", "collapse_id is 65 bytes of UTF-8; the limit is 64"),
    (push(collapse_id="a\nb"), "collapse_id", "collapse_id holds a control character"),
    (push(collapse_id="a\x00"), "collapse_id", "collapse_id holds a control character"),
    (push(collapse_id="a\x7f"), "collapse_id", "collapse_id holds a control character"),
    (push(collapse_id="a\x85"), "collapse_id", "collapse_id holds a control character"),
    (push(collapse_id=" a"), "collapse_id", "collapse_id begins or ends with a space (RFC 9113 §8.2.1)"),
    (push(collapse_id="é "), "collapse_id", "collapse_id begins or ends with a space (RFC 9113 §8.2.1)"),
    (
        push(collapse_id="\ud800"),
        "collapse_id",
        "collapse_id holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)",
    ),
    (push(collapse_id=7), "collapse_id", "collapse_id must be a str; this is int"),
    (
        push(apns_id="7"),
        "apns_id",
        "apns_id of 1 characters is no UUID in its canonical form: 36 characters, 8-4-4-4-12 hex digits",
    ),
    (
        push(apns_id=APNS_ID.replace("-", "")),
        "apns_id",
        "apns_id of 32 characters is no UUID in its canonical form: 36 characters, 8-4-4-4-12 hex digits",
    ),
    (
        push(apns_id=APNS_ID[:-1] + "g"),
        "apns_id",
        "apns_id of 36 characters is no UUID in its canonical form: 36 characters, 8-4-4-4-12 hex digits",
    ),
    (
        push(apns_id=APNS_ID[1:] + "-"),
        "apns_id",
        "apns_id of 36 characters is no UUID in its canonical form: 36 characters, 8-4-4-4-12 hex digits",
    ),
    (push(apns_id=APNS_ID.encode()), "apns_id", "apns_id must be a str or a UUID; this is bytes"),
    # What a push type asks for.
    (
        push(BACKGROUND, push_type="background", priority=10),
        "priority",
        "priority must be 5 or None for the push type 'background'; this is 10",
    ),
    (
        push(RAW, push_type="background", priority=1),
        "priority",
        "priority must be 5 or None for the push type 'background'; this is 1",
    ),
    (
        push(Payload(thread_id="x"), push_type="background"),
        "content_available",
        "content_available must be True for the push type 'background'",
    ),
    (
        push(Payload(content_available=True, alert="x"), push_type="background"),
        "alert",
        "alert must be left out for the push type 'background'",
    ),
    (
        push(Payload(content_available=True, badge=0), push_type="background"),
        "badge",
        "badge must be left out for the push type 'background'",
    ),
    (
        push(Payload(content_available=True, sound="x"), push_type="background"),
        "sound",
        "sound must be left out for the push type 'background'",
    ),
    (
        push(push_type="widgets"),
        "content_changed",
        "content_changed must be True for the push type 'widgets'",
    ),
    (
        push(push_type="controls"),
        "content_changed",
        "content_changed must be True for the push type 'controls'",
    ),
    (
        push(push_type="mdm"),
        "payload",
        "payload has no aps for the push type 'mdm'; use Payload.raw(b'{\"mdm\":\"…\"}')",
    ),
    (push(RAW, push_type="mdm"), "payload", "payload must hold the key 'mdm' for the push type 'mdm'"),
    (
        push(Payload.raw(b'{"aps":{"alert":"mdm"},"x":"\\"mdm\\""}'), push_type="mdm"),
        "payload",
        "payload must hold the key 'mdm' for the push type 'mdm'",
    ),
    (
        push(push_type="liveactivity"),
        "payload",
        "payload must be a LiveActivity or Payload.raw for the push type 'liveactivity'",
    ),
    (
        push(UPDATE),
        "push_type",
        "push_type 'alert' cannot carry a LiveActivity; it needs push_type='liveactivity'",
    ),
    (
        push(UPDATE, push_type="voip"),
        "push_type",
        "push_type 'voip' cannot carry a LiveActivity; it needs push_type='liveactivity'",
    ),
    (
        push(push_type="voip", topic="com.example.push-type.liveactivity"),
        "topic",
        "topic ends in '.push-type.liveactivity', which is not for the push type 'voip'",
    ),
    (
        push(topic="com.example.pushkit.fileprovider"),
        "topic",
        "topic ends in '.pushkit.fileprovider', which is not for the push type 'alert'",
    ),
]


@pytest.mark.parametrize(("fields", "field", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_apns_would_refuse_is_refused_where_it_is_made(fields, field, message):
    with pytest.raises(InvalidNotification) as caught:
        Notification(**fields)
    assert str(caught.value) == message
    assert caught.value.field == field
    assert DEVICE_TOKEN not in message


@pytest.mark.parametrize(
    "fields",
    [
        push(BACKGROUND, push_type="background"),
        push(BACKGROUND, push_type="background", priority=5),
        push(RAW, push_type="background"),
        push(WIDGETS, push_type="widgets", topic="com.example.push-type.widgets"),
        push(RAW, push_type="controls"),
        push(MDM, push_type="mdm", topic="com.apple.mgmt.External.4a8f"),
        push(UPDATE, push_type="liveactivity", priority=5),
        push(RAW, push_type="liveactivity"),
        push(push_type="voip", topic="com.example.voip"),
        push(push_type="location", topic="com.example"),
        push(push_type="brand-new", topic="com.example.push-type.widgets"),
    ],
)
def test_what_a_push_type_asks_for_can_be_given(fields):
    assert Notification(**fields).push_type == fields["push_type"]


@pytest.mark.parametrize(
    ("push_type", "limit"), [("alert", 4096), ("voip", 5120), ("liveactivity", 4096), ("brand-new", 4096)]
)
def test_a_payload_of_the_limit_goes_and_one_byte_more_does_not(push_type, limit):
    """Apple, "Generating a remote notification": 4 KB, 5 KB for VoIP."""
    fitting, over = (Payload.raw(b'{"x":"%s"}' % (b"x" * (size - 8))) for size in (limit, limit + 1))
    assert len(Notification(DEVICE_TOKEN, fitting, push_type=push_type).payload.encode()) == limit
    with pytest.raises(InvalidNotification) as caught:
        Notification(DEVICE_TOKEN, over, push_type=push_type)
    assert str(caught.value) == (
        f"payload is {limit + 1} bytes of JSON; the limit for the push type '{push_type}' is {limit}"
    )


def test_bytes_are_counted_not_characters():
    room = 4096 - len(Payload(alert="").encode())
    with pytest.raises(InvalidNotification, match=r"is \d+ bytes of JSON; the limit for .* is 4096"):
        Notification(DEVICE_TOKEN, Payload(alert="語" * (room // 3 + 1)))
    assert Notification(DEVICE_TOKEN, Payload(alert="語" * (room // 3)))


def test_a_long_body_goes_shortened():
    payload = Payload(alert=Alert(title="Core", body="👨‍👩‍👧‍👦" * 1000))
    with pytest.raises(InvalidNotification):
        Notification(DEVICE_TOKEN, payload)
    body = Notification(DEVICE_TOKEN, payload.shortened(MAX_PAYLOAD_BYTES)).payload.alert.body
    assert body == "👨‍👩‍👧‍👦" * (len(body) // 7) + "…"


# Values.

WHOLE = Notification(
    DEVICE_TOKEN,
    PAYLOAD,
    topic="com.example",
    push_type="voip",
    priority=5,
    expiration=0,
    collapse_id="core",
    apns_id=APNS_ID,
)
LOST = OutcomeUnknown("the connection was lost", apns_id=APNS_ID, attempts=2)
REJECTED = Response(
    WHOLE,
    "rejected",
    status=410,
    reason="Unregistered",
    apns_id=APNS_ID,
    apns_unique_id="1",
    unregistered_at=NOON,
    retryable=True,
    retry_after=1,
    attempts=2,
    elapsed=0.5,
)


@pytest.mark.parametrize("value", [WHOLE, Notification("ab", UPDATE, push_type="liveactivity"), REJECTED])
def test_values_survive_pickle_and_are_their_own_copy(value):
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert hash(again) == hash(value)
    assert copy.copy(value) is value
    assert copy.deepcopy([value])[0] is value


@pytest.mark.parametrize("value", [WHOLE, REJECTED])
def test_values_are_frozen(value):
    names = [name for name, kept in vars(type(value)).items() if inspect.isgetsetdescriptor(kept)]
    assert len(names) >= 8
    for name in names:
        with pytest.raises(AttributeError):
            setattr(value, name, None)
    with pytest.raises(AttributeError):
        value.something = 1
    with pytest.raises(TypeError):
        type("Sub", (type(value),), {})


def test_notifications_are_equal_by_content():
    first, second = (Notification(DEVICE_TOKEN, Payload(alert="x")) for _ in range(2))
    assert first == second
    assert len({first, second, WHOLE}) == 2
    assert first != Notification(DEVICE_TOKEN, Payload(alert="x"), collapse_id="x")
    assert first != DEVICE_TOKEN


def test_a_notification_cannot_be_made_empty():
    with pytest.raises(TypeError):
        Notification.__new__(Notification)
    with pytest.raises(TypeError):
        Notification(DEVICE_TOKEN)
    with pytest.raises(TypeError):
        Notification(DEVICE_TOKEN, PAYLOAD, "com.example")


def test_a_repr_shows_neither_a_text_nor_a_whole_device_token():
    assert repr(Notification(DEVICE_TOKEN, PAYLOAD)) == "<Notification to 00fc…e8f0, alert, 29 bytes>"
    assert (
        repr(Notification("abcdef", PAYLOAD))
        == "<Notification to a device token of 6 digits, alert, 29 bytes>"
    )
    assert repr(REJECTED) == "<Response rejected 410 Unregistered, to 00fc…e8f0>"
    assert repr(Response(WHOLE, "unknown")) == "<Response unknown, to 00fc…e8f0>"


# Response.


def test_a_response_has_what_it_was_given():
    assert not REJECTED.accepted
    assert (REJECTED.outcome, REJECTED.status, REJECTED.reason) == ("rejected", 410, "Unregistered")
    assert (REJECTED.apns_id, REJECTED.apns_unique_id) == (APNS_ID, "1")
    assert (REJECTED.unregistered_at, REJECTED.retryable, REJECTED.retry_after) == (NOON, True, 1.0)
    assert (REJECTED.notification, REJECTED.attempts, REJECTED.elapsed) == (WHOLE, 2, 0.5)


def test_a_response_without_a_verdict_has_neither_status_nor_reason():
    response = Response(WHOLE, "unknown", error=LOST)
    assert (response.status, response.reason, response.apns_id) == (None, None, None)
    assert (response.unregistered_at, response.retry_after, response.retryable) == (None, None, False)
    assert response.error is LOST
    assert Response(WHOLE, "accepted", status=200).accepted


def test_an_apns_id_in_upper_case_is_told_in_lower_case():
    assert Response(WHOLE, "accepted", status=200, apns_id=APNS_ID.upper()).apns_id == APNS_ID


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "delivered"},
        {"outcome": None},
        {"notification": None},
        {"status": 20},
        {"status": "200"},
        {"reason": 410},
        {"unregistered_at": 1.0},
        {"unregistered_at": datetime(2030, 1, 1)},
        {"error": ValueError("x")},
        {"apns_id": "é"},
    ],
)
def test_a_response_made_for_a_test_is_checked(wrong):
    with pytest.raises((TypeError, ValueError)):
        Response(**{"notification": WHOLE, "outcome": "rejected", **wrong})


def test_a_response_is_made_once():
    response = Response(WHOLE, "accepted", status=200)
    with pytest.raises(TypeError):
        response.__init__(WHOLE, "rejected")
    assert response.accepted
    with pytest.raises(TypeError):
        repr(Response.__new__(Response))


# What stands in the body of a rejection.


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"reason":"BadDeviceToken"}', ("BadDeviceToken", None)),
        (b'{"reason":"Unregistered","timestamp":1629744090000}', ("Unregistered", 1629744090000)),
        (b'{"timestamp":1629744090000.0,"reason":"ExpiredToken"}', ("ExpiredToken", 1629744090000)),
        (b'{"reason":"Service Unavailable"}', ("ServiceUnavailable", None)),
        (b'{"reason":"BrandNewReason"}', ("BrandNewReason", None)),
        (b'{"reason":" \\n\\u0007"}', (None, None)),
        (b'{"reason":"%s"}' % (b"x" * 4000), ("x" * 64, None)),
        (b'{"reason":7,"timestamp":"soon"}', (None, None)),
        (b'{"reason":null,"timestamp":true}', (None, None)),
        (b'{"reason":"Unregistered","timestamp":1e400}', (None, None)),
        (b'{"reason":"Unregistered","timestamp":1e300}', ("Unregistered", int(1e300))),
        (b'{"reason":"Unregistered","timestamp":-1}', ("Unregistered", -1)),
        (b'{"reason":"Unregistered","timestamp":1.5}', ("Unregistered", None)),
        (b'["reason"]', (None, None)),
        (b"", (None, None)),
        (b'{"reason":"Unreg', (None, None)),
        (b"<html>", (None, None)),
        (b'{"reason":"\xff"}', (None, None)),
    ],
)
def test_the_body_of_a_rejection_is_read_with_patience(body, found):
    """Apple, "Handling notification responses from APNs"; and whatever else may come."""
    assert parse_error_body(body) == found


def test_a_timestamp_becomes_an_instant_in_utc():
    found = unregistered_at(1629744090123)
    assert found == datetime(2021, 8, 23, 18, 41, 30, 123000, tzinfo=UTC)
    assert found.tzinfo is UTC
    assert unregistered_at(None) is None
    assert unregistered_at(2**63) is unregistered_at(10**40) is unregistered_at(-(10**40)) is None


# Topics.


@pytest.mark.parametrize(
    ("push_type", "topic"),
    [
        ("alert", "com.example"),
        ("background", "com.example"),
        ("voip", "com.example.voip"),
        ("complication", "com.example.complication"),
        ("fileprovider", "com.example.pushkit.fileprovider"),
        ("mdm", "com.example"),
        ("location", "com.example.location-query"),
        ("liveactivity", "com.example.push-type.liveactivity"),
        ("pushtotalk", "com.example.voip-ptt"),
        ("widgets", "com.example.push-type.widgets"),
        ("controls", "com.example.push-type.controls"),
    ],
)
def test_the_topic_gets_the_suffix_of_its_push_type_once(push_type, topic):
    """Apple, "Sending notification requests to APNs", table of apns-push-type."""
    assert topic_for("com.example", push_type) == topic
    assert topic_for(topic, push_type) == topic
    assert push_type in TOPIC_SUFFIXES
    assert topic_for("com.example", "brand-new") == "com.example"


# Live Activities.

START = {
    "event": "start",
    "timestamp": 1_700_000_000,
    "content_state": {"down": 3},
    "attributes_type": "SiteAttributes",
    "attributes": {"site": "Frankfurt"},
    "alert": Alert(title="Frankfurt", body="3 devices down"),
}


def test_a_live_activity_starts():
    """Apple, "Starting and updating Live Activities with ActivityKit push notifications"."""
    activity = LiveActivity(
        **START,
        stale_date=NOON,
        relevance_score=100,
        sound="default",
        input_push_token=True,
        input_push_channel="dHN0LXNyY2g=",
        data={"v": 1},
    )
    assert activity.encode() == orjson.dumps(
        {
            "aps": {
                "timestamp": 1_700_000_000,
                "event": "start",
                "content-state": {"down": 3},
                "stale-date": 1_893_499_200,
                "attributes-type": "SiteAttributes",
                "attributes": {"site": "Frankfurt"},
                "alert": {"title": "Frankfurt", "body": "3 devices down", "sound": "default"},
                "relevance-score": 100.0,
                "input-push-token": 1,
                "input-push-channel": "dHN0LXNyY2g=",
            },
            "v": 1,
        }
    )


def test_a_live_activity_is_updated_and_ends():
    assert UPDATE.encode() == b'{"aps":{"timestamp":1700000000,"event":"update","content-state":{"down":3}}}'
    end = LiveActivity(event="end", timestamp=NOON, dismissal_date=0)
    assert end.encode() == b'{"aps":{"timestamp":1893499200,"event":"end","dismissal-date":0}}'
    assert end.encode() is end.encode()


def test_localised_texts_of_a_live_activity_are_objects_and_its_sound_is_inside_the_alert():
    alert = Alert(title_loc_key="T", title_loc_args=["a"], subtitle="S", loc_key="B")
    sound = Sound("siren.caf", critical=True, volume=1.0)
    activity = LiveActivity(**{**START, "alert": alert}, sound=sound)
    assert json.loads(activity.encode())["aps"]["alert"] == {
        "title": {"loc-key": "T", "loc-args": ["a"]},
        "subtitle": "S",
        "body": {"loc-key": "B"},
        "sound": {"critical": 1, "name": "siren.caf", "volume": 1.0},
    }
    assert json.loads(LiveActivity(**{**START, "alert": "text"}).encode())["aps"]["alert"] == {"body": "text"}


LIVE_REFUSED = [
    ({"event": "begin"}, "event", "event must be 'start', 'update' or 'end'"),
    ({"event": None}, "event", "event must be 'start', 'update' or 'end'"),
    ({"event": 1}, "event", "event must be a str; this is int"),
    ({"timestamp": None}, "timestamp", "timestamp is missing; every Live Activity push needs one"),
    (
        {"timestamp": 60},
        "timestamp",
        "timestamp must be UNIX seconds from 1000000000 to 2**53; this is below",
    ),
    (
        {"timestamp": 2**60},
        "timestamp",
        "timestamp must be UNIX seconds from 1000000000 to 2**53; this is above",
    ),
    (
        {"timestamp": 1.7e9},
        "timestamp",
        "timestamp must be an int of UNIX seconds or an aware datetime; this is float",
    ),
    (
        {"stale_date": datetime(2030, 1, 1)},
        "stale_date",
        "stale_date is a naive datetime; give it a time zone, as in datetime.now(UTC)",
    ),
    ({"content_state": None}, "content_state", "content_state is missing; the event 'start' needs it"),
    ({"content_state": [1]}, "content_state", "content_state must be a dict; this is list"),
    (
        {"content_state": {"x": float("nan")}},
        "content_state",
        "content_state holds nan, which JSON cannot express",
    ),
    (
        {"content_state": {"x": {1}}},
        "content_state",
        "content_state cannot be written as JSON: Type is not JSON serializable: set",
    ),
    ({"attributes_type": None}, "attributes_type", "attributes_type is missing; the event 'start' needs it"),
    (
        {"attributes_type": "\ud800"},
        "attributes_type",
        "attributes_type holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)",
    ),
    ({"attributes": None}, "attributes", "attributes is missing; the event 'start' needs it"),
    ({"alert": None}, "alert", "alert is missing; the event 'start' needs it"),
    ({"alert": 7}, "alert", "alert must be a str; this is int"),
    (
        {"alert": Alert(title="x", title_loc_key="y")},
        "alert.title",
        "alert.title is given twice, as text and by title_loc_key",
    ),
    ({"alert": Alert(loc_args=["y"])}, "alert.loc_args", "alert.loc_args needs loc_key"),
    (
        {"alert": Alert(launch_image="x")},
        "alert.launch_image",
        "alert.launch_image has no meaning in a Live Activity",
    ),
    (
        {"dismissal_date": NOON},
        "dismissal_date",
        "dismissal_date is for the event 'end' only; this is 'start'",
    ),
    ({"relevance_score": float("inf")}, "relevance_score", "relevance_score must be a finite number"),
    ({"relevance_score": 10**400}, "relevance_score", "relevance_score must be a finite number"),
    ({"relevance_score": "1"}, "relevance_score", "relevance_score must be a float; this is str"),
    ({"input_push_token": 1}, "input_push_token", "input_push_token must be True or False; this is int"),
    ({"sound": 1}, "sound", "sound must be a str; this is int"),
    ({"data": {"aps": 1}}, "data", "data must not hold the key 'aps', which the other arguments make"),
    (
        {"event": "update"},
        "attributes_type",
        "attributes_type is for the event 'start' only; this is 'update'",
    ),
    (
        {"event": "end", "attributes_type": None, "attributes": None, "input_push_token": True},
        "input_push_token",
        "input_push_token is for the event 'start' only; this is 'end'",
    ),
    (
        {"event": "update", "attributes_type": None, "attributes": None, "content_state": None},
        "content_state",
        "content_state is missing; the event 'update' needs it",
    ),
    (
        {"event": "end", "attributes_type": None, "attributes": None, "alert": None, "sound": "x"},
        "sound",
        "sound is for an alert only; give one",
    ),
]


@pytest.mark.parametrize(("change", "field", "message"), LIVE_REFUSED, ids=[row[2] for row in LIVE_REFUSED])
def test_the_rules_of_a_live_activity(change, field, message):
    with pytest.raises(InvalidNotification) as caught:
        LiveActivity(**{**START, **change})
    assert str(caught.value) == message
    assert caught.value.field == field


def test_any_finite_relevance_ranks_a_live_activity():
    for score in (-5, 0.25, 1e300):
        activity = LiveActivity(event="end", timestamp=NOON, relevance_score=score)
        assert orjson.loads(activity.encode())["aps"]["relevance-score"] == score


def test_a_live_activity_is_a_frozen_value():
    state = {"down": [1]}
    activity = LiveActivity(event="update", timestamp=NOON, content_state=state, data={})
    state["down"].append(2)
    assert activity.content_state == {"down": [1]}
    assert activity == LiveActivity(event="update", timestamp=NOON, content_state={"down": [1]}) != UPDATE
    assert activity != activity.encode()
    assert len({activity, pickle.loads(pickle.dumps(activity)), copy.deepcopy(activity), UPDATE}) == 2
    assert repr(activity) == "<LiveActivity update: 78 bytes>"
    with pytest.raises(AttributeError):
        activity.event = "end"
    with pytest.raises(TypeError):
        type("Sub", (LiveActivity,), {})


@pytest.mark.parametrize("body", [b"", b'{"x":1}'])
def test_the_response_that_the_connection_makes_is_the_one_its_class_makes(body):
    """An accepted push has a constructor of its own, in C: the same value, from a server's octets."""
    notification = Notification(
        DEVICE_TOKEN, Payload(alert="x"), apns_id="123E4567-e89b-12d3-a456-4266554400a0"
    )
    engine = CompiledEngine()
    engine.initiate(0.0)
    settings = bytes.fromhex("00000c0400000000000003000003e800040000ffff")
    engine.receive_data(settings + bytes.fromhex("000000040100000000"), 0.0)
    exchange, collector = Exchange(engine, b"localhost", lambda topic, push_type: "com.example"), Collector()
    push = Push(notification, 2.0, collector)
    assert exchange.submit(deque([push]), 1, 3.0, 0.0, {}, [], []) == 1
    unique_id = b"7e6cdb1c-0000-4000-8000-000000000000"
    block = b"\x88" + b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in ((b"apns-id", push.apns_id), (b"apns-unique-id", unique_id))
    )
    flags = 0x04 if body else 0x05
    frames = len(block).to_bytes(3, "big") + bytes([1, flags]) + push.stream_id.to_bytes(4, "big") + block
    if body:
        frames += len(body).to_bytes(3, "big") + b"\x00\x01" + push.stream_id.to_bytes(4, "big") + body
    assert exchange.settle(engine.receive_data(frames, 4.5), 4.5) == []
    (response,) = collector.take()
    expected = Response(
        notification,
        "accepted",
        status=200,
        apns_id="123e4567-e89b-12d3-a456-4266554400a0",
        apns_unique_id=unique_id.decode(),
        attempts=1,
        elapsed=2.5,
    )
    assert response == expected
    assert hash(response) == hash(expected)
    assert repr(response) == repr(expected)
    assert pickle.loads(pickle.dumps(response)) == expected
    assert (response.accepted, response.retryable, response.error) == (True, False, None)
    assert not gc.is_tracked(response)
    with pytest.raises(TypeError, match="never changes"):
        response.__init__(notification, "unknown")
