"""Every reason of Apple's table, and what leads to it. A table, since the rules are a pure function."""

import dataclasses
import inspect

import pytest

from fastpush.simulator import Authority, TrustedKey, rules
from fastpush.simulator.rules import Binding, Certificate, Device, Malformed, World, judge, read_request

from .provider_tokens import make_provider_token

NOW = 1_800_000_000.0
DEVICE = b"ab" * 32
ISSUED = Authority().issue_signing_key("KEY0000001", "TEAM000001")
OTHER = Authority().issue_signing_key("KEY0000002", "TEAM000001")
OTHER_TEAM = Authority().issue_signing_key("KEY0000003", "TEAM000002")


def trusted(issued, **more):
    point = TrustedKey.point_of(issued.public_key)
    return TrustedKey(issued.key_id, issued.team_id, point, **more)


def world(**changes):
    keys = {issued.key_id: trusted(issued) for issued in (ISSUED, OTHER, OTHER_TEAM)}
    return dataclasses.replace(World(topics=frozenset({"com.example.app"}), keys=keys), **changes)


def request(
    *, method=b"POST", path=b"/3/device/" + DEVICE, body=b'{"aps":{}}', extra=(), key=ISSUED, age=0, **fields
):
    named = {
        "authorization": b"bearer " + make_provider_token(key, NOW - age),
        "apns-topic": b"com.example.app",
        "apns-push-type": b"alert",
    }
    named.update({name.replace("_", "-"): value for name, value in fields.items()})
    pairs = [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path)]
    pairs += [(name.encode(), value) for name, value in named.items() if value is not None]
    return read_request([*pairs, *extra], body)


def reason(given, binding=None, there=None, now=NOW):
    verdict = judge(given, binding or Binding(), there or world(), now)
    assert verdict.status == (200 if verdict.reason is None else rules.REASONS[verdict.reason])
    return verdict.reason


GOOD = [
    {},
    {"apns_push_type": None},
    {"age": 3_600},
    {"age": -300},
    {"apns_id": b"eabeae54-14a8-11e5-b60b-1697f925ec7b"},
    {"apns_expiration": b"0"},
    {"apns_expiration": b"1800003600"},
    {"apns_priority": b"10"},
    {"apns_priority": b"5"},
    {"apns_priority": b"1"},
    {"apns_collapse_id": b"c" * 64},
    {"body": b'{"a":"' + b"x" * (4096 - 8) + b'"}'},
    {
        "body": b'{"a":"' + b"x" * (5120 - 8) + b'"}',
        "apns_push_type": b"voip",
        "apns_topic": b"com.example.app.voip",
    },
    {"path": b"/3/device/" + b"AB" * 80},
    {"apns_push_type": b"background", "apns_priority": b"5"},
    {"apns_push_type": b"background"},
    {"content_type": b"application/json", "user_agent": b"x", "content_length": b"10"},
    {"extra": [(b"host", b"localhost")]},
    *(
        {"apns_push_type": push_type.encode(), "apns_topic": b"com.example.app" + suffix.encode()}
        for push_type, suffix in rules.SUFFIXES.items()
    ),
]


@pytest.mark.parametrize("given", GOOD, ids=str)
def test_accepted(given):
    assert reason(request(**given)) is None


BAD = [
    ("MethodNotAllowed", {"method": b"GET"}),
    ("MethodNotAllowed", {"method": b"PUT"}),
    ("BadPath", {"path": b"/"}),
    ("BadPath", {"path": b"/2/device/" + DEVICE}),
    ("BadPath", {"path": b"/3/devices/" + DEVICE}),
    ("BadPath", {"path": b"/3/device/" + DEVICE + b"/more"}),
    ("MissingDeviceToken", {"path": b"/3/device/"}),
    ("MissingDeviceToken", {"path": b"/3/device"}),
    ("BadDeviceToken", {"path": b"/3/device/xyz0"}),
    ("BadDeviceToken", {"path": b"/3/device/abc"}),
    ("DuplicateHeaders", {"extra": [(b"apns-topic", b"com.example.app")]}),
    ("DuplicateHeaders", {"apns_priority": b"5", "extra": [(b"apns-priority", b"5")]}),
    ("MissingProviderToken", {"authorization": None}),
    ("MissingProviderToken", {"authorization": b""}),
    ("MissingProviderToken", {"authorization": b"bearer"}),
    ("InvalidProviderToken", {"authorization": b"basic abc"}),
    ("InvalidProviderToken", {"authorization": b"bearer a.b.c"}),
    ("InvalidProviderToken", {"authorization": b"bearer " + b"x" * 5_000}),
    ("InvalidProviderToken", {"key": dataclasses.replace(ISSUED, key_id="UNKNOWNKEY")}),
    ("InvalidProviderToken", {"key": dataclasses.replace(ISSUED, key_id="KEY0000002")}),
    ("InvalidProviderToken", {"key": dataclasses.replace(ISSUED, team_id="TEAM000002")}),
    ("InvalidProviderToken", {"age": -301}),
    ("ExpiredProviderToken", {"age": 3_601}),
    ("BadMessageId", {"apns_id": b"4711"}),
    ("BadMessageId", {"apns_id": b"eabeae54-14a8-11e5-b60b-1697f925ec7"}),
    ("BadMessageId", {"apns_id": b"eabeae5414a811e5b60b1697f925ec7b"}),
    ("BadExpirationDate", {"apns_expiration": b"soon"}),
    ("BadExpirationDate", {"apns_expiration": b"-1"}),
    ("BadExpirationDate", {"apns_expiration": b""}),
    ("BadExpirationDate", {"apns_expiration": b"1.5"}),
    ("BadCollapseId", {"apns_collapse_id": b"c" * 65}),
    ("BadCollapseId", {"apns_collapse_id": "ü".encode() * 33}),
    ("BadPriority", {"apns_priority": b"7"}),
    ("BadPriority", {"apns_priority": b""}),
    ("BadPriority", {"apns_push_type": b"background", "apns_priority": b"10"}),
    ("InvalidPushType", {"apns_push_type": b"shout"}),
    ("InvalidPushType", {"apns_push_type": b""}),
    ("MissingTopic", {"apns_topic": None}),
    ("MissingTopic", {"apns_topic": b""}),
    ("BadTopic", {"apns_topic": b"com example"}),
    ("BadTopic", {"apns_topic": b"c" * 256}),
    ("BadTopic", {"apns_push_type": b"voip"}),
    ("BadTopic", {"apns_push_type": b"alert", "apns_topic": b"com.example.app.voip"}),
    ("BadTopic", {"apns_push_type": b"location", "apns_topic": b"com.example.app.voip"}),
    ("TopicDisallowed", {"apns_topic": b"com.example.other"}),
    ("PayloadEmpty", {"body": b""}),
    ("PayloadEmpty", {"body": b"[]"}),
    ("PayloadTooLarge", {"body": b'{"a":"' + b"x" * (4097 - 8) + b'"}'}),
    (
        "PayloadTooLarge",
        {
            "body": b'{"a":"' + b"x" * (5121 - 8) + b'"}',
            "apns_push_type": b"voip",
            "apns_topic": b"com.example.app.voip",
        },
    ),
]


@pytest.mark.parametrize(("expected", "given"), BAD, ids=lambda value: str(value)[:60])
def test_rejected(expected, given):
    assert reason(request(**given)) == expected


DEVICES = [
    ("Unregistered", Device(dead_since=1_700_000_000.5)),
    ("ExpiredToken", Device(dead_since=1_700_000_000.5, dead_reason="ExpiredToken")),
    ("DeviceTokenNotForTopic", Device(topic="com.example.other")),
    ("BadDeviceToken", Device(environment="development")),
    (None, Device(topic="com.example.app", environment="production")),
]


@pytest.mark.parametrize(("expected", "device"), DEVICES)
def test_what_is_known_of_a_device(expected, device):
    assert (
        reason(request(path=b"/3/device/" + DEVICE.upper()), there=world(devices={DEVICE: device}))
        == expected
    )


def test_a_dead_device_token_comes_with_its_time_in_milliseconds():
    there = world(devices={DEVICE: Device(dead_since=1_700_000_000.5)})
    verdict = judge(request(), Binding(), there, NOW)
    assert (verdict.status, verdict.timestamp) == (410, 1_700_000_000_500)


def accepted(binding=None, there=None, **given):
    verdict = judge(request(**given), binding or Binding(), there or world(), NOW)
    assert verdict.status == 200
    return verdict.binding


class TestTheConnectionRemembers:
    """Apple, "Establishing a token-based connection to APNs"."""

    def test_its_team(self):
        assert reason(request(key=OTHER_TEAM), accepted()) == "InvalidProviderToken"

    def test_its_key(self):
        assert reason(request(key=OTHER), accepted()) == "UnrelatedKeyIdInToken"

    def test_its_key_and_the_related_one(self):
        keys = {
            "KEY0000001": trusted(ISSUED, related_key_id="KEY0000002"),
            "KEY0000002": trusted(OTHER, related_key_id="KEY0000001"),
        }
        there = world(keys=keys)
        binding = accepted(there=there)
        binding = accepted(binding, there, key=OTHER)
        assert reason(request(), binding, there) is None

    def test_when_its_provider_tokens_were_issued(self):
        binding = accepted(age=1_800)
        assert reason(request(age=601), binding) == "TooManyProviderTokenUpdates"
        assert reason(request(age=600), binding) is None

    def test_the_provider_token_before_the_last(self):
        binding = accepted(accepted(age=3_000), age=1_200)
        assert reason(request(age=3_000), binding) is None

    def test_nothing_of_a_refused_provider_token(self):
        verdict = judge(request(age=3_601), Binding(), world(), NOW)
        assert (verdict.reason, verdict.binding, verdict.wedged) == ("ExpiredProviderToken", None, True)


def test_another_signature_of_the_same_time_is_no_update():
    first, second = (make_provider_token(ISSUED, NOW) for _ in range(2))
    assert first != second
    assert (
        reason(request(authorization=b"bearer " + second), accepted(authorization=b"bearer " + first)) is None
    )


@pytest.mark.parametrize("form", ["der", "text iat", "padded", "float iat"])
def test_odd_provider_tokens_that_clients_are_known_to_send(form):
    assert reason(request(authorization=b"Bearer " + make_provider_token(ISSUED, NOW, form))) is None


def test_a_key_of_one_environment():
    there = world(keys={"KEY0000001": trusted(ISSUED, environments=("development",))})
    assert reason(request(), there=there) == "BadEnvironmentKeyIdInToken"
    assert reason(request(), there=dataclasses.replace(there, environment="development")) is None


def test_a_key_of_some_topics():
    there = world(topics=None, keys={"KEY0000001": trusted(ISSUED, topics=frozenset({"com.example.app"}))})
    assert reason(request(), there=there) is None
    assert reason(request(apns_topic=b"com.example.other"), there=there) == "TopicDisallowed"


def test_without_verification_age_and_form_still_count():
    there = world(verify=False, keys={})
    assert reason(request(), there=there) is None
    assert reason(request(age=3_601), there=there) == "ExpiredProviderToken"
    assert reason(request(authorization=b"bearer a.b.c"), there=there) == "InvalidProviderToken"


CERTIFICATES = [
    (None, ("com.example.app",), {"apns_topic": None}),
    ("MissingTopic", ("com.example.app", "com.example.app.voip"), {"apns_topic": None}),
    (None, ("com.example.app", "com.example.app.voip"), {}),
    ("TopicDisallowed", ("com.example.other",), {}),
    (
        "TopicDisallowed",
        ("com.example.app.location-query",),
        {"apns_topic": b"com.example.app.location-query", "apns_push_type": b"location"},
    ),
]


@pytest.mark.parametrize(("expected", "topics", "given"), CERTIFICATES)
def test_a_certificate_speaks_for_its_topics_and_any_provider_token_is_ignored(expected, topics, given):
    binding = Binding(Certificate(topics, ("production",)))
    assert reason(request(authorization=b"bearer nonsense", **given), binding) == expected


MALFORMED = [
    [(b":path", b"/")],
    [(b":status", b"200")],
    [(b"Apns-Topic", b"x")],
    [(b"connection", b"close")],
    [(b"te", b"gzip")],
    [(b"x", b"a\r\nb")],
    [(b"x", b" a")],
    [(b"", b"a")],
    [(b"content-length", b"11")],
    [(b"host", b"elsewhere")],
]


@pytest.mark.parametrize("extra", MALFORMED, ids=str)
def test_no_message_of_http_2(extra):
    """RFC 9113 §8.1.1: a stream error."""
    with pytest.raises(Malformed):
        request(extra=extra)


def test_every_reason_of_a_request_is_reached():
    """What is left out are reasons of a connection or of Apple's own state: faults can give them."""
    source = inspect.getsource(rules)
    by_faults_only = {
        "BadCertificate", "BadCertificateEnvironment", "Forbidden", "IdleTimeout", "InternalServerError",
        "ServiceUnavailable", "Shutdown", "TooManyRequests",
    }  # fmt: skip
    told = {expected for expected, *_ in [*BAD, *DEVICES, *CERTIFICATES]} - {None}
    told |= {"UnrelatedKeyIdInToken", "TooManyProviderTokenUpdates", "BadEnvironmentKeyIdInToken"}
    assert told == set(rules.REASONS) - by_faults_only
    assert all(source.count(f'"{name}"') >= 2 for name in told - {"Unregistered", "ExpiredToken"})
