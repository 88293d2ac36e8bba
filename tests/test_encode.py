"""The content of a notification: each key, each rule and each message; its JSON; shortening; copies."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import inspect
import json
import math
import pickle

import orjson
import pytest
import regex

import fastpush._encode
from fastpush import Alert, FastpushError, InvalidNotification, Payload, Sound
from tests import plain_encode


class Word(str):
    """A text that is more than a str, as an Enum member is."""


class Number(enum.IntEnum):
    SEVEN = 7


@pytest.fixture(params=["c", "py"])
def encode(request):
    return Payload.encode if request.param == "c" else plain_encode.encode


def test_the_compiled_module_is_the_one_in_use():
    assert fastpush._encode.__file__.endswith(".so")
    assert not inspect.isfunction(Payload.encode)


# Keys. Each row: argument, value, key, what is written.

APS = [
    ("alert", "Link down", "alert", "Link down"),
    ("alert", "", "alert", ""),
    ("alert", Alert(title="Core"), "alert", {"title": "Core"}),
    ("alert", Alert(), "alert", {}),
    ("badge", 0, "badge", 0),
    ("badge", 2**63 - 1, "badge", 2**63 - 1),
    ("badge", Number.SEVEN, "badge", 7),
    ("sound", "default", "sound", "default"),
    ("sound", Sound(), "sound", {"name": "default"}),
    (
        "sound",
        Sound("siren.caf", critical=True, volume=0.25),
        "sound",
        {"critical": 1, "name": "siren.caf", "volume": 0.25},
    ),
    ("sound", Sound(critical=True, volume=0), "sound", {"critical": 1, "name": "default", "volume": 0.0}),
    ("thread_id", "opm1/core", "thread-id", "opm1/core"),
    ("category", "ALARM", "category", "ALARM"),
    ("category", Word("ALARM"), "category", "ALARM"),
    ("content_available", True, "content-available", 1),
    ("mutable_content", True, "mutable-content", 1),
    ("target_content_id", "alarm/1", "target-content-id", "alarm/1"),
    ("interruption_level", "passive", "interruption-level", "passive"),
    ("interruption_level", "active", "interruption-level", "active"),
    ("interruption_level", "time-sensitive", "interruption-level", "time-sensitive"),
    ("interruption_level", "critical", "interruption-level", "critical"),
    ("relevance_score", 0.5, "relevance-score", 0.5),
    ("relevance_score", 1, "relevance-score", 1.0),
    ("relevance_score", 0, "relevance-score", 0.0),
    ("relevance_score", 1e-9, "relevance-score", 1e-9),
    ("filter_criteria", "work", "filter-criteria", "work"),
    ("content_changed", True, "content-changed", True),
    ("url_args", ["a", "b"], "url-args", ["a", "b"]),
    ("url_args", (), "url-args", []),
]


@pytest.mark.parametrize(("argument", "value", "key", "written"), APS)
def test_each_argument_becomes_its_key(encode, argument, value, key, written):
    """Apple, "Generating a remote notification": the keys of the aps dictionary."""
    assert encode(Payload(**{argument: value})) == orjson.dumps({"aps": {key: written}})


ALERT = [
    ("title", "Core"),
    ("subtitle", "Switch"),
    ("body", "No answer"),
    ("launch_image", "alarm.png"),
    ("title_loc_key", "T"),
    ("title_loc_args", ["a", "b"]),
    ("subtitle_loc_key", "S"),
    ("subtitle_loc_args", ["c"]),
    ("loc_key", "B"),
    ("loc_args", []),
    ("action_loc_key", "PLAY"),
    ("summary_arg", "core"),
    ("summary_arg_count", 2),
]


@pytest.mark.parametrize(("argument", "value"), ALERT)
def test_each_field_of_an_alert_becomes_its_key(encode, argument, value):
    """Apple, "Generating a remote notification": the keys of the alert dictionary."""
    written = {"aps": {"alert": {argument.replace("_", "-"): value}}}
    assert encode(Payload(alert=Alert(**{argument: value}))) == orjson.dumps(written)


def test_the_tables_above_name_every_argument():
    assert {row[0] for row in APS} | {"data"} == set(arguments(Payload))
    assert {row[0] for row in ALERT} == set(arguments(Alert))


def arguments(kind):
    """The names of a compiled class's arguments: each can be read back under its name."""
    return [
        name for name, kept in vars(kind).items() if inspect.isgetsetdescriptor(kept) and name != "is_raw"
    ]


def test_everything_at_once_keeps_one_order(encode):
    """The order of the keys is fixed, so equal payloads have equal JSON."""
    given = {row[0]: row[1] for row in reversed(APS)}
    payload = Payload(**given, data={"z": 1, "a": {"b": [1, 2.5, None, True, "é"]}})
    assert payload == Payload(**dict(reversed(given.items())), data=payload.data)
    aps = orjson.loads(encode(payload))["aps"]
    assert list(aps) == list(dict.fromkeys(row[2] for row in APS))
    assert encode(payload) == payload.encode()


def test_an_empty_payload_is_an_empty_aps(encode):
    assert encode(Payload()) == b'{"aps":{}}'
    assert encode(Payload(data={})) == b'{"aps":{}}'


def test_false_and_none_leave_a_key_out(encode):
    assert encode(Payload(alert=None, badge=None, content_available=False)) == b'{"aps":{}}'


def test_the_json_is_made_once_and_shared():
    payload = Payload(alert="x")
    assert payload.encode() is payload.encode()


# Custom keys.

CUSTOM = [
    {"alarm": {"id": "4092", "severity": 1, "open": True, "parent": None}},
    {"list": [1, [2, [3, []]], {}, {"": ""}]},
    {"tuple": (1, 2)},
    {"float": 1.5, "tiny": 5e-324, "huge": 1.7976931348623157e308, "minus": -0.0},
    {"least": -(2**63), "most": 2**64 - 1, "zero": 0, "minus": -1},
    {"müll": "früh", "日本": "語", "🚨": "🧯", 'quote"\\': "\x00\x1f\x7f\x80"},
    {"null": "null"},
]


@pytest.mark.parametrize("data", CUSTOM)
def test_custom_keys_stand_beside_aps(encode, data):
    assert encode(Payload(badge=1, data=data)) == orjson.dumps({"aps": {"badge": 1}, **data})
    assert Payload(data=data).data == json.loads(json.dumps(data))


def test_custom_values_are_whatever_orjson_writes():
    @dataclasses.dataclass
    class Alarm:
        id: int

    for value in (Alarm(7), Number.SEVEN, Word("x"), {"deep": nested(40)}):
        data = {"value": value, "none": None}
        assert Payload(data=data).encode() == orjson.dumps({"aps": {}, **data})


def nested(depth):
    value = "bottom"
    for _ in range(depth):
        value = [value]
    return value


def test_a_later_change_of_the_dict_changes_nothing():
    data = {"alarm": {"id": 1}}
    payload = Payload(data=data)
    data["alarm"]["id"] = 2
    payload.data["alarm"]["id"] = 3
    assert payload.data == {"alarm": {"id": 1}}
    assert payload.encode() == b'{"aps":{},"alarm":{"id":1}}'


@dataclasses.dataclass
class Reading:
    value: float


class Level(enum.Enum):
    LOST = math.nan


# Refusals. Each row: how it is made, the field, the whole message.

REFUSED = [
    (lambda: Payload(alert=5), "alert", "alert must be a str or an Alert; this is int"),
    (lambda: Payload(alert={"title": "x"}), "alert", "alert must be a str or an Alert; this is dict"),
    (
        lambda: Payload(alert="\udfff"),
        "alert",
        "alert holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)",
    ),
    (lambda: Payload(badge=True), "badge", "badge must be an int; this is bool"),
    (lambda: Payload(badge=1.0), "badge", "badge must be an int; this is float"),
    (lambda: Payload(badge="1"), "badge", "badge must be an int; this is str"),
    (lambda: Payload(badge=-1), "badge", "badge must be from 0 to 2**63 - 1; this is -1"),
    (lambda: Payload(badge=2**63), "badge", "badge must be from 0 to 2**63 - 1; this is 9223372036854775808"),
    (
        lambda: Payload(badge=10**5000),
        "badge",
        "badge must be from 0 to 2**63 - 1; this is an int of 16610 bits",
    ),
    (lambda: Payload(sound=True), "sound", "sound must be a str or a Sound; this is bool"),
    (lambda: Payload(thread_id=b"x"), "thread_id", "thread_id must be a str; this is bytes"),
    (lambda: Payload(category=1), "category", "category must be a str; this is int"),
    (
        lambda: Payload(content_available=1),
        "content_available",
        "content_available must be True or False; this is int",
    ),
    (
        lambda: Payload(mutable_content=None),
        "mutable_content",
        "mutable_content must be True or False; this is NoneType",
    ),
    (
        lambda: Payload(target_content_id=1),
        "target_content_id",
        "target_content_id must be a str; this is int",
    ),
    (
        lambda: Payload(interruption_level="urgent"),
        "interruption_level",
        "interruption_level must be passive, active, time-sensitive or critical; this has 6 characters",
    ),
    (
        lambda: Payload(interruption_level=1),
        "interruption_level",
        "interruption_level must be a str; this is int",
    ),
    (
        lambda: Payload(relevance_score=1.0000001),
        "relevance_score",
        "relevance_score must be from 0 to 1; this is 1.0000001",
    ),
    (
        lambda: Payload(relevance_score=-0.1),
        "relevance_score",
        "relevance_score must be from 0 to 1; this is -0.1",
    ),
    (
        lambda: Payload(relevance_score=math.nan),
        "relevance_score",
        "relevance_score must be from 0 to 1; this is nan",
    ),
    (
        lambda: Payload(relevance_score=2**80),
        "relevance_score",
        "relevance_score must be from 0 to 1; this is an int of 81 bits",
    ),
    (
        lambda: Payload(relevance_score=True),
        "relevance_score",
        "relevance_score must be a float from 0 to 1; this is bool",
    ),
    (lambda: Payload(filter_criteria=1), "filter_criteria", "filter_criteria must be a str; this is int"),
    (
        lambda: Payload(content_changed="yes"),
        "content_changed",
        "content_changed must be True or False; this is str",
    ),
    (lambda: Payload(url_args="ab"), "url_args", "url_args must be a list or tuple of str; this is str"),
    (lambda: Payload(url_args=["a", 1]), "url_args[1]", "url_args[1] must be a str; this is int"),
    (lambda: Payload(url_args=[None]), "url_args[0]", "url_args[0] must be a str; this is NoneType"),
    (lambda: Payload(data=[1]), "data", "data must be a dict; this is list"),
    (
        lambda: Payload(data={"aps": {}}),
        "data",
        "data must not hold the key 'aps', which the other arguments make",
    ),
    (lambda: Payload(data={1: 2}), "data", "data cannot be written as JSON: Dict key must be str"),
    (
        lambda: Payload(data={"x": {1, 2}}),
        "data",
        "data cannot be written as JSON: Type is not JSON serializable: set",
    ),
    (
        lambda: Payload(data={"x": 2**64}),
        "data",
        "data cannot be written as JSON: Integer exceeds 64-bit range",
    ),
    (
        lambda: Payload(data={"x": "\ud800"}),
        "data",
        "data cannot be written as JSON: str is not valid UTF-8: surrogates not allowed",
    ),
    (
        lambda: Payload(data={"\ud800": 1}),
        "data",
        "data cannot be written as JSON: str is not valid UTF-8: surrogates not allowed",
    ),
    (
        lambda: Payload(data={"x": nested(300)}),
        "data",
        "data cannot be written as JSON: Recursion limit reached",
    ),
    (lambda: Payload(data={"x": math.nan}), "data", "data holds nan, which JSON cannot express"),
    (
        lambda: Payload(data={"x": [{"y": (1, -math.inf)}]}),
        "data",
        "data holds -inf, which JSON cannot express",
    ),
    (lambda: Payload(data={"x": Reading(math.inf)}), "data", "data holds inf, which JSON cannot express"),
    (lambda: Payload(data={"x": Level.LOST}), "data", "data holds nan, which JSON cannot express"),
    (lambda: Alert(title=1), "title", "title must be a str; this is int"),
    (lambda: Alert(subtitle=b""), "subtitle", "subtitle must be a str; this is bytes"),
    (
        lambda: Alert(body=Word("\ud83d")),
        "body",
        "body holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)",
    ),
    (
        lambda: Alert(body="\U0001f6a8\udc00"),
        "body",
        "body holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)",
    ),
    (lambda: Alert(launch_image=1), "launch_image", "launch_image must be a str; this is int"),
    (lambda: Alert(title_loc_key=1), "title_loc_key", "title_loc_key must be a str; this is int"),
    (
        lambda: Alert(title_loc_args="ab"),
        "title_loc_args",
        "title_loc_args must be a list or tuple of str; this is str",
    ),
    (lambda: Alert(subtitle_loc_key=1), "subtitle_loc_key", "subtitle_loc_key must be a str; this is int"),
    (
        lambda: Alert(subtitle_loc_args=[1]),
        "subtitle_loc_args[0]",
        "subtitle_loc_args[0] must be a str; this is int",
    ),
    (lambda: Alert(loc_key=1), "loc_key", "loc_key must be a str; this is int"),
    (lambda: Alert(loc_args={"a"}), "loc_args", "loc_args must be a list or tuple of str; this is set"),
    (
        lambda: Alert(loc_args=["a", "b", "\udcff"]),
        "loc_args[2]",
        "loc_args[2] holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)",
    ),
    (lambda: Alert(action_loc_key=1), "action_loc_key", "action_loc_key must be a str; this is int"),
    (lambda: Alert(summary_arg=1), "summary_arg", "summary_arg must be a str; this is int"),
    (
        lambda: Alert(summary_arg_count="1"),
        "summary_arg_count",
        "summary_arg_count must be an int; this is str",
    ),
    (
        lambda: Alert(summary_arg_count=-5),
        "summary_arg_count",
        "summary_arg_count must be from 0 to 2**63 - 1; this is -5",
    ),
    (lambda: Sound(None), "name", "name must be a str; this is NoneType"),
    (lambda: Sound(critical=1), "critical", "critical must be True or False; this is int"),
    (lambda: Sound(volume=1.5), "volume", "volume must be from 0 to 1; this is 1.5"),
    (lambda: Sound(volume="0"), "volume", "volume must be a float from 0 to 1; this is str"),
    (lambda: Payload.raw("{}"), "json", "json must be bytes of UTF-8; this is str"),
    (lambda: Payload.raw(b""), "json", "json of 0 bytes is not valid JSON in UTF-8"),
    (lambda: Payload.raw(b'{"a":NaN}'), "json", "json of 9 bytes is not valid JSON in UTF-8"),
    (lambda: Payload.raw(b'{"a":"\xff"}'), "json", "json of 9 bytes is not valid JSON in UTF-8"),
    (lambda: Payload.raw(b"[1]"), "json", "json must be one object; this is list"),
    (lambda: Payload.raw(b"{}{}"), "json", "json of 4 bytes is not valid JSON in UTF-8"),
]


@pytest.mark.parametrize(("make", "field", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_apns_or_json_would_refuse_is_refused_where_it_is_made(make, field, message):
    with pytest.raises(InvalidNotification) as caught:
        make()
    assert str(caught.value) == message
    assert caught.value.field == field


def test_an_invalid_notification_is_a_value_error_and_can_be_pickled():
    with pytest.raises(ValueError, match="badge must be an int") as caught:
        Payload(badge="1")
    assert isinstance(caught.value, FastpushError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.field) == (InvalidNotification, str(caught.value), "badge")


def test_a_message_never_shows_a_text():
    for make in (
        lambda: Payload(interruption_level="secret"),
        lambda: Payload(data={"x": "secret\ud800"}),
        lambda: Payload(data={"secret": {"secret"}}),
        lambda: Payload.raw(b'{"secret'),
        lambda: Alert(body="secret\ud800"),
        lambda: Payload(alert=Alert(title="secret" * 9, body="secret")).shortened(40),
    ):
        with pytest.raises(InvalidNotification) as caught:
            make()
        assert "secret" not in str(caught.value)


WAYS_TO_CALL = [
    lambda kind, **fields: kind(**fields),
    lambda kind, **fields: functools.partial(kind, **fields)(),
    lambda kind, **fields: kind.__new__(kind, **fields),
    lambda kind, **fields: type.__call__(kind, **fields),
    # Texts that are equal to the names but are other objects.
    lambda kind, **fields: kind(**{"".join(list(name)): value for name, value in fields.items()}),
    lambda kind, **fields: kind(**dict(reversed(fields.items()))),
]


@pytest.mark.parametrize("call", WAYS_TO_CALL)
def test_every_way_to_call_a_class_gives_and_refuses_the_same(call):
    assert call(Alert, title="a", body="b", loc_key="c") == Alert(loc_key="c", body="b", title="a")
    assert (
        call(Payload, alert="a", badge=1, data={"x": 1}).encode() == b'{"aps":{"alert":"a","badge":1},"x":1}'
    )
    assert call(Payload).encode() == b'{"aps":{}}'
    with pytest.raises(InvalidNotification, match="body must be a str"):
        call(Alert, title="a", body=1)
    with pytest.raises(TypeError, match=r"^Alert\(\) has no argument 'tittle'$"):
        call(Alert, tittle="a")
    with pytest.raises(TypeError, match=r"^Payload\(\) has no argument 'aps'$"):
        call(Payload, badge=1, aps={})


@pytest.mark.parametrize("kind", [Alert, Payload])
def test_arguments_have_names(kind):
    with pytest.raises(TypeError, match="takes 0 arguments without a name; 1 were given"):
        kind("x")
    with pytest.raises(TypeError, match="takes 0 arguments without a name; 1 were given"):
        kind.__new__(kind, "x")


# Ready JSON.


def test_ready_json_is_kept_byte_for_byte():
    octets = b' {"aps" : {"alert":"\\u0041"}, "aps":1}\n'
    for given in (octets, bytearray(octets), memoryview(octets)):
        payload = Payload.raw(given)
        assert payload.encode() == octets
        assert payload.is_raw
        assert payload.alert is payload.data is None


def test_ready_json_in_a_buffer_is_copied():
    buffer = bytearray(b'{"aps":{}}')
    payload = Payload.raw(buffer)
    buffer[:] = b"x" * len(buffer)
    assert payload.encode() == b'{"aps":{}}'


# Shortening.

FAMILY = "👨‍👩‍👧‍👦"
FLAG = "🇩🇪"
ACCENT = "e\u0301\u0323"


def test_a_payload_that_fits_is_returned_itself():
    payload = Payload(alert="x" * 100)
    assert payload.shortened(len(payload.encode())) is payload


def test_one_byte_too_much_costs_the_body_its_end():
    payload = Payload(alert=Alert(title="Core", body="0123456789"), badge=3, data={"id": 1})
    size = len(payload.encode())
    shortened = payload.shortened(size - 1)
    assert shortened.alert == Alert(title="Core", body="012345…")
    assert (shortened.badge, shortened.data) == (3, {"id": 1})
    assert len(shortened.encode()) == size - 1
    assert payload.alert.body == "0123456789"


def test_an_alert_that_is_text_is_shortened_too():
    assert Payload(alert="abcdefgh", sound="x").shortened(39).alert == "abcd…"
    assert len(Payload(alert="abcdefgh", sound="x").shortened(39).encode()) == 39


@pytest.mark.parametrize(
    "cluster", [FAMILY, FLAG, ACCENT, "한", "각", "नि", "\r\n", '"', "\\", "\x01", "\u200d", "x"]
)
def test_shortening_cuts_between_grapheme_clusters_only_and_as_late_as_it_can(cluster):
    """Unicode Standard Annex 29; escapes are counted as they are written."""
    body = cluster * 200
    payload = Payload(alert=body)
    clusters = regex.findall(r"\X", body)
    cost = len(orjson.dumps(clusters[0])) - 2
    for limit in range(60, 160):
        shortened = payload.shortened(limit)
        kept = shortened.alert.removesuffix("…")
        assert regex.findall(r"\X", kept) == clusters[: len(regex.findall(r"\X", kept))]
        size = len(shortened.encode())
        assert limit - cost < size <= limit


def test_escapes_count_when_a_body_is_shortened():
    payload = Payload(alert='"' * 5000)
    shortened = payload.shortened(4096)
    empty = len(Payload(alert="").encode())
    assert shortened.alert == '"' * ((4096 - empty - 3) // 2) + "…"


def test_without_room_for_the_ellipsis_the_body_is_empty():
    empty = len(Payload(alert="").encode())
    payload = Payload(alert="abcdef")
    assert payload.shortened(empty + 3).alert == "…"
    assert payload.shortened(empty + 2).alert == ""
    assert payload.shortened(empty).alert == ""
    with pytest.raises(InvalidNotification) as caught:
        payload.shortened(empty - 1)
    assert str(caught.value) == f"payload is {empty} bytes without its body; the limit is {empty - 1}"


def test_what_has_no_body_cannot_be_shortened():
    for payload in (
        Payload(alert=Alert(title="x" * 90)),
        Payload(badge=7, thread_id="x" * 90),
        Payload.raw(b'{"aps":{"alert":"%s"}}' % (b"x" * 90)),
    ):
        with pytest.raises(InvalidNotification, match="has no body to shorten; the limit is 64"):
            payload.shortened(64)


def test_a_limit_of_shortening_is_checked():
    with pytest.raises(TypeError):
        Payload(alert="x").shortened("4096")


# Values.

ALL = [
    Alert(),
    Alert(**dict(ALERT)),
    Sound(),
    Sound("x", critical=True, volume=0.5),
    Payload(),
    Payload(**{row[0]: row[1] for row in APS}, data={"a": [1.5, None]}),
    Payload.raw(b'{"aps": {}}'),
]


@pytest.mark.parametrize("value", ALL, ids=repr)
def test_values_survive_pickle_and_are_their_own_copy(value):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(value, protocol))
        assert again == value
        assert hash(again) == hash(value)
        assert again is not value
    assert copy.copy(value) is value
    assert copy.deepcopy([value])[0] is value


@pytest.mark.parametrize("value", ALL, ids=repr)
def test_values_are_frozen(value):
    for name in dir(value):
        if inspect.isgetsetdescriptor(getattr(type(value), name, None)):
            with pytest.raises(AttributeError):
                setattr(value, name, None)
    with pytest.raises(AttributeError):
        value.something = 1
    with pytest.raises(TypeError):
        type("Sub", (type(value),), {})


def test_values_are_equal_by_content():
    assert Alert(title="a") == Alert(title=Word("a")) != Alert(body="a")
    assert Alert(loc_args=["a"]) == Alert(loc_args=("a",))
    assert Sound("a") == Sound("a", critical=False) != Sound("b")
    assert Payload(relevance_score=1) == Payload(relevance_score=1.0)
    assert Payload(alert="a") != Payload(alert=Alert(body="a"))
    assert Payload(alert="a") == Payload.raw(Payload(alert="a").encode())
    assert Alert() != Sound()
    assert Payload() != b'{"aps":{}}'
    assert len({Payload(alert="a"), Payload(alert="a"), Payload(alert="b")}) == 2


def test_a_repr_names_fields_and_sizes_never_a_text():
    secret = "the vault is open"
    values = [
        Alert(title=secret, loc_args=[secret]),
        Sound(secret),
        Payload(alert=secret, data={secret: secret}),
        Payload.raw(orjson.dumps({secret: 1})),
    ]
    assert [repr(value) for value in values] == [
        "<Alert title (17 characters), loc_args>",
        "<Sound name (17 characters)>",
        "<Payload alert, data: 77 bytes>",
        "<Payload raw: 23 bytes>",
    ]
    assert repr(Payload()) == "<Payload empty: 10 bytes>"


def test_fields_read_as_given():
    given = {row[0]: row[1] for row in APS} | {"url_args": ("a",)}
    payload = Payload(**given)
    assert {name: getattr(payload, name) for name in given} == given
    alert = Alert(**dict(ALERT))
    assert alert.title_loc_args == ("a", "b")
    assert alert.summary_arg_count == 2
    assert type(Payload(category=Word("x")).category) is str
    assert type(Payload(badge=Number.SEVEN).badge) is int
    assert type(Payload(relevance_score=0).relevance_score) is float
