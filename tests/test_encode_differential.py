"""The compiled encoder against orjson for the equal dict, plain Python, and what json reads back.

Each random test prints its seed where it fails; FASTPUSH_SEED replays it.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import random
import struct
import sys

import orjson
import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from fastpush import Alert, InvalidNotification, Payload, Sound
from tests import plain_encode

SEED = int(os.environ.get("FASTPUSH_SEED", random.SystemRandom().randrange(2**32)))

# The fixture below only prints.
PROFILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Any text, and texts of one storage kind each, where the lengths cross the eight octets of a word.
ESCAPED = st.text(st.sampled_from('"\\\b\t\n\f\r\x00\x0b\x1f\x7fabcdefgh'), max_size=40)
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text(st.characters(max_codepoint=0x7F), max_size=60),
    st.text(st.characters(max_codepoint=0xFF), max_size=60),
    st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=60),
    ESCAPED,
)
BROKEN = st.tuples(TEXT, st.characters(categories=["Cs"]), TEXT).map("".join)
MAYBE = st.none() | TEXT
TEXTS = st.none() | st.lists(TEXT, max_size=3)
COUNT = st.none() | st.integers(0, 2**63 - 1)
SHARE = st.none() | st.floats(0, 1)
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    TEXT,
    st.floats(allow_nan=False, allow_infinity=False),
)
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
CUSTOM = st.dictionaries(TEXT.filter(lambda key: key != "aps"), JSON, max_size=5)

ALERT_FIELDS = {
    "title": MAYBE,
    "subtitle": MAYBE,
    "body": MAYBE,
    "launch_image": MAYBE,
    "title_loc_key": MAYBE,
    "title_loc_args": TEXTS,
    "subtitle_loc_key": MAYBE,
    "subtitle_loc_args": TEXTS,
    "loc_key": MAYBE,
    "loc_args": TEXTS,
    "action_loc_key": MAYBE,
    "summary_arg": MAYBE,
    "summary_arg_count": COUNT,
}
SOUND_FIELDS = {"name": TEXT, "critical": st.booleans(), "volume": SHARE}
PAYLOAD_FIELDS = {
    "alert": MAYBE | st.fixed_dictionaries({}, optional=ALERT_FIELDS),
    "badge": COUNT,
    "sound": MAYBE | st.fixed_dictionaries(SOUND_FIELDS),
    "thread_id": MAYBE,
    "category": MAYBE,
    "content_available": st.booleans(),
    "mutable_content": st.booleans(),
    "target_content_id": MAYBE,
    "interruption_level": st.sampled_from([None, "passive", "active", "time-sensitive", "critical"]),
    "relevance_score": SHARE,
    "filter_criteria": MAYBE,
    "content_changed": st.booleans(),
    "url_args": TEXTS,
    "data": st.none() | CUSTOM,
}


@pytest.fixture(autouse=True)
def _seed_is_told():
    print(f"FASTPUSH_SEED={SEED}")


def equal_dict(fields):
    """The dict that a sender without this library would hand to orjson."""

    def keys(part):
        return {name.replace("_", "-"): value for name, value in part.items() if value is not None}

    aps = keys({name: fields[name] for name in PAYLOAD_FIELDS if name in fields and name != "data"})
    if isinstance(aps.get("alert"), dict):
        aps["alert"] = keys({name: aps["alert"].get(name) for name in ALERT_FIELDS})
    if isinstance(aps.get("sound"), dict):
        sound = aps["sound"]
        aps["sound"] = keys(
            {"critical": 1 if sound["critical"] else None, "name": sound["name"], "volume": sound["volume"]}
        )
    for key, on in (("content-available", 1), ("mutable-content", 1), ("content-changed", True)):
        if aps.pop(key, False):
            aps[key] = on
    order = [name.replace("_", "-") for name in PAYLOAD_FIELDS]
    return {"aps": {key: aps[key] for key in order if key in aps}, **(fields.get("data") or {})}


def payload_of(fields):
    made = dict(fields)
    if isinstance(made.get("alert"), dict):
        made["alert"] = Alert(**made["alert"])
    if isinstance(made.get("sound"), dict):
        made["sound"] = Sound(**made["sound"])
    return Payload(**made)


@seed(SEED)
@settings(PROFILE, max_examples=400)
@given(st.fixed_dictionaries({}, optional=PAYLOAD_FIELDS))
@example({"alert": {"title": "a" * 7 + '"' + "b" * 8 + "\n"}, "data": {"x": 1e300}})
def test_three_encoders_agree_and_json_reads_it_back(fields):
    payload, equal = payload_of(fields), equal_dict(fields)
    octets = payload.encode()
    assert octets == orjson.dumps(equal)
    assert octets == plain_encode.encode(payload)
    assert json.loads(octets) == equal


@seed(SEED)
@settings(PROFILE, max_examples=300)
@given(TEXT)
def test_a_text_is_written_as_orjson_writes_it(text):
    assert Payload(alert=text).encode() == orjson.dumps({"aps": {"alert": text}})
    assert Payload(alert=Alert(loc_args=[text, text])).encode() == orjson.dumps(
        {"aps": {"alert": {"loc-args": [text, text]}}}
    )


@seed(SEED)
@settings(PROFILE, max_examples=200)
@given(BROKEN)
def test_a_lone_surrogate_is_refused_wherever_it_stands(text):
    for make in (
        lambda: Payload(alert=text),
        lambda: Alert(body=text),
        lambda: Alert(title_loc_args=["fine", text]),
        lambda: Payload(data={"key": [text]}),
        lambda: Payload(data={text: 1}),
    ):
        with pytest.raises(InvalidNotification):
            make()
    with pytest.raises(TypeError):
        orjson.dumps(text)
    with pytest.raises(plain_encode.Refused):
        plain_encode.text(text)


@seed(SEED)
@settings(PROFILE, max_examples=200)
@given(
    st.recursive(
        SCALAR | BROKEN | st.integers() | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(TEXT | BROKEN | st.integers(), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_what_custom_keys_may_not_hold_is_refused_by_all(value):
    try:
        expected = plain_encode.written({"aps": {}, "value": value}).encode()
    except plain_encode.Refused:
        with pytest.raises(InvalidNotification):
            Payload(data={"value": value})
    else:
        assert (
            Payload(data={"value": value}).encode() == expected == orjson.dumps({"aps": {}, "value": value})
        )


def test_every_character_of_unicode_is_written_as_orjson_writes_it():
    """All of them: each BMP character and each astral one, alone between ASCII, and in runs of one kind."""
    for start in range(0, 0x110000, 0x400):
        run = "".join(chr(code) for code in range(start, start + 0x400) if not 0xD800 <= code <= 0xDFFF)
        if run:
            text = "x".join(run)
            assert Payload(alert=run).encode() == orjson.dumps({"aps": {"alert": run}}), hex(start)
            assert Payload(thread_id=text).encode() == orjson.dumps({"aps": {"thread-id": text}}), hex(start)


def test_every_surrogate_is_refused():
    for code in range(0xD800, 0xE000):
        with pytest.raises(InvalidNotification):
            Alert(body=chr(code))


@pytest.mark.parametrize("code", [*range(0x20), ord('"'), ord("\\"), 0x7F])
def test_an_escape_at_every_place_of_every_length(code):
    """The writer takes sixteen octets at a time: the escape moves through them and through the rest."""
    for length in range(1, 68):
        for place in range(length):
            text = "a" * place + chr(code) + "b" * (length - place - 1)
            assert Payload(alert=text).encode() == orjson.dumps({"aps": {"alert": text}})
            assert Payload(data={text: text}).encode() == orjson.dumps({"aps": {}, text: text})


@pytest.mark.parametrize("character", ['"', "a", "é", "語", "🚨"])
@pytest.mark.parametrize("length", [2047, 2048, 2049, 4096, 4097, 100_000])
def test_long_texts_are_written_in_pieces(character, length):
    text = character * length
    assert Payload(alert=text).encode() == orjson.dumps({"aps": {"alert": text}})
    assert Payload(data={text: text}).encode() == orjson.dumps({"aps": {}, text: text})


def test_random_doubles_are_written_as_orjson_writes_them():
    draw = random.Random(SEED)
    for _ in range(20_000):
        value = struct.unpack("d", draw.randbytes(8))[0]
        if value - value == 0:  # finite
            assert Payload(data={"x": value}).encode() == orjson.dumps({"aps": {}, "x": value})
            assert plain_encode.number(value).encode() == orjson.dumps(value)
    for _ in range(20_000):
        share = draw.random() ** draw.randrange(1, 30)
        assert Payload(relevance_score=share).encode() == orjson.dumps({"aps": {"relevance-score": share}})


def test_integers_of_every_length_are_written_as_orjson_writes_them():
    for bits in range(64):
        for value in (2**bits - 1, 2**bits, 2**bits + 1, -(2**bits), 1 - 2**bits):
            if -(2**63) <= value < 2**64:
                assert Payload(data={"x": value}).encode() == orjson.dumps({"aps": {}, "x": value})
            if 0 <= value < 2**63:
                assert Payload(badge=value).encode() == orjson.dumps({"aps": {"badge": value}})


@seed(SEED)
@settings(PROFILE, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), st.integers(0, 400))
def test_a_shortened_payload_fits_and_keeps_a_beginning(body, less):
    payload = Payload(alert=Alert(title="Core", body=body))
    size = len(payload.encode())
    least = len(Payload(alert=Alert(title="Core", body="")).encode())
    limit = max(least, size - less)
    shortened = payload.shortened(limit)
    assert len(shortened.encode()) <= limit
    if size > limit:
        assert body.startswith(shortened.alert.body.removesuffix("…"))


@seed(SEED)
@settings(PROFILE, max_examples=200)
@given(TEXT.filter(bool), st.booleans(), st.integers(-3, 120))
@example("e\u0301" * 9 + "👨‍👩‍👧", True, 20)
def test_shortening_keeps_as_much_as_trying_every_length(body, in_alert, less):
    payload = Payload(alert=Alert(title='"', body=body) if in_alert else body, badge=1, data={"é": [1]})
    limit = len(payload.encode()) - less
    try:
        expected = plain_encode.shortened(payload, limit)
    except plain_encode.Refused:
        with pytest.raises(InvalidNotification):
            payload.shortened(limit)
    else:
        assert payload.shortened(limit).encode() == expected


# Custom keys of exact dict, list, str, int, bool and None are written without orjson. What ends that way, and
# what goes through orjson after all, must have the same octets or the same refusal.

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=30,
)


def same_as_orjson(data):
    """The octets of both, or the refusal of both."""
    try:
        expected = orjson.dumps({"aps": {}, **data})
    except TypeError:
        with pytest.raises(InvalidNotification):
            Payload(data=data)
        return
    payload = Payload(data=data)
    assert payload.encode() == expected
    assert payload.data == orjson.loads(orjson.dumps(data))


@seed(SEED)
@settings(PROFILE, max_examples=400)
@given(st.dictionaries(TEXT.filter(lambda key: key != "aps"), PLAIN, max_size=5))
@example({})
@example({"": {}, "a": [], "b": [[], {}, [{}]], "c": {"": None}})
@example({"v": 1, "x": -0, "low": -(2**63), "high": 2**63 - 1, "higher": 2**63, "highest": 2**64 - 1})
@example({"too high": 2**64})
@example({"too low": -(2**63) - 1})
def test_plain_custom_keys_are_written_as_orjson_writes_them(data):
    same_as_orjson(data)


class Text(str):
    __slots__ = ()


class Members(dict):
    pass


class Elements(list):
    pass


class Whole(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "value",
    [
        Text("text"), Members(a=1), Elements([1]), Whole.ONE, (1, "two", None), 1.5, -0.0, 1e300,
        float("nan"), float("inf"), b"octets", {1}, object(), {1: 2}, {None: 1}, {Text("key"): 1}, "\ud800",
        {"\udfff": 1}, {"a\ud800é": 1}, 2**64, -(2**63) - 1, 10**1000, "é", "語", "🚨", "\x7f", "\x80",
    ],
    ids=lambda value: f"{type(value).__name__}-{ascii(value)[:20]}",
)  # fmt: skip
@pytest.mark.parametrize(
    "place", [lambda v: v, lambda v: [0, v], lambda v: {"k": v}, lambda v: {"a": [{"b": [v]}], "c": 1}],
    ids=["alone", "list", "dict", "deep"],
)  # fmt: skip
def test_one_value_that_is_not_plain_among_plain_ones(value, place):
    data = {"before": "x", "value": place(value), "after": ["y"]}
    if type(value) is float and value - value != 0:
        with pytest.raises(InvalidNotification, match="JSON cannot express"):
            Payload(data=data)
    else:
        same_as_orjson(data)


@pytest.mark.parametrize("depth", [*range(1, 40), *range(240, 270)])
def test_nesting_of_every_depth(depth):
    for wrap in (lambda inner: [inner], lambda inner: {"k": inner}):
        value = "core"
        for _ in range(depth):
            value = wrap(value)
        same_as_orjson({"value": value, "after": 1})


def test_a_dict_inside_itself_is_refused():
    data = {"plain": 1}
    data["self"] = data
    with pytest.raises(InvalidNotification, match="ecursion"):
        Payload(data=data)


def test_the_key_aps_is_refused_in_every_kind_of_dict():
    for data in ({"aps": 1}, {"x": 1, "aps": {}}, {"aps": 1.5}, Members(aps=1)):
        with pytest.raises(InvalidNotification, match="aps"):
            Payload(data=data)
    for _ in range(2):
        assert Payload(data={"aps2": 1, "x": {"aps": 1}}).data == {"aps2": 1, "x": {"aps": 1}}
        with pytest.raises(InvalidNotification, match="aps"):  # although it was a good key one level below
            Payload(data={"aps": 1})


def test_keys_that_are_written_again_and_again():
    """The writer keeps 64 names of a program's text; these are more, and take each other's places."""
    names = [sys.intern(f"key_{number}" + '"' * (number % 3 == 0)) for number in range(500)]
    names += [sys.intern("k" * length) for length in range(40)]
    draw = random.Random(SEED)
    for _ in range(300):
        same_as_orjson(dict.fromkeys(draw.sample(names, 20), "core"))


def test_a_payload_made_while_another_asks_the_callers_code():
    """A dataclass may compute: what it makes meanwhile goes into the same buffer and must not show."""

    @dataclasses.dataclass
    class Computed:
        value: int = 1

        def __getattribute__(self, name):
            Payload(alert="another " * 5_000, data={"other": 1})
            return object.__getattribute__(self, name)

    class Meddling(Text):
        __slots__ = ()

        def __eq__(self, other):
            Payload(alert="another", data={"other": 1})
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    assert Payload(alert="one", data={"a": 1, "b": Computed()}).encode() == (
        b'{"aps":{"alert":"one"},"a":1,"b":{"value":1}}'
    )
    with pytest.raises(InvalidNotification, match="key must be str"):
        Payload(alert="one", data={"a": 1, Meddling("aps"): 2})


def test_every_share_of_two_decimals_and_its_neighbours():
    for hundred in range(101):
        share = hundred / 100
        for near in (share, math.nextafter(share, 0), math.nextafter(share, 1), share / 7, share * 1e-4):
            octets = b'{"aps":{"relevance-score":' + orjson.dumps(near) + b"}}"
            assert Payload(relevance_score=near).encode() == octets
            assert Payload(sound=Sound(volume=near)).encode() == octets.replace(
                b'"relevance-score":', b'"sound":{"name":"default","volume":'
            ).replace(b"}}", b"}}}")
    assert Payload(relevance_score=-0.0).encode() == b'{"aps":{"relevance-score":-0.0}}'


def test_arguments_find_their_places_from_every_call():
    """The places are kept from one call to the next, for the same tuple of names only."""
    backwards = {"badge": 1, "category": "c", "alert": "a"}
    for _ in range(3):
        one = Payload(alert="a", badge=1, category="c")
        other = Payload(category="c", alert="a", badge=1)
        third = Payload(**backwards)
        fourth = Payload(sound="s", thread_id="t")
        assert one == other == third
        assert (fourth.alert, fourth.badge, fourth.sound, fourth.thread_id) == (None, None, "s", "t")
        with pytest.raises(TypeError, match="'alarm'"):
            Payload(sound="s", alarm="t")
        assert Alert(body="b", title="t") == Alert(title="t", body="b")
        assert Alert(title="x", body="b").title == "x"
