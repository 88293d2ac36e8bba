"""The JSON of a payload, key by key, and what is refused when a payload is made."""

import json

import orjson
import pytest

import fastpush._encode
from fastpush import Alert, InvalidNotification, Payload, Sound

# Argument, value, key in aps, value in aps.
APS_KEYS = [
    ("alert", "Link down", "alert", "Link down"),
    ("alert", Alert(title="Core"), "alert", {"title": "Core"}),
    ("badge", 0, "badge", 0),
    ("badge", 2**63 - 1, "badge", 2**63 - 1),
    ("sound", "default", "sound", "default"),
    ("sound", Sound("siren.caf", critical=True, volume=0.25), "sound",
     {"critical": 1, "name": "siren.caf", "volume": 0.25}),
    ("thread_id", "core", "thread-id", "core"),
    ("category", "ALARM", "category", "ALARM"),
    ("content_available", True, "content-available", 1),
    ("mutable_content", True, "mutable-content", 1),
    ("target_content_id", "alarm/1", "target-content-id", "alarm/1"),
    ("interruption_level", "time-sensitive", "interruption-level", "time-sensitive"),
    ("relevance_score", 0.5, "relevance-score", 0.5),
    ("relevance_score", 1, "relevance-score", 1.0),
    ("filter_criteria", "work", "filter-criteria", "work"),
    ("content_changed", True, "content-changed", True),
    ("url_args", ["a", "b"], "url-args", ["a", "b"]),
]


@pytest.mark.parametrize(("argument", "value", "key", "written"), APS_KEYS)
def test_each_argument_becomes_its_key(argument, value, key, written):
    """Apple, "Generating a remote notification": the keys of the aps dictionary."""
    octets = Payload(**{argument: value}).encode()
    assert octets == orjson.dumps({"aps": {key: written}})


def test_the_compiled_module_is_the_one_in_use():
    assert fastpush._encode.__file__.endswith(".so")


def test_custom_keys_stand_beside_aps():
    payload = Payload(alert="x", data={"alarm": {"id": 7}, "seen": None})
    assert json.loads(payload.encode()) == {"aps": {"alert": "x"}, "alarm": {"id": 7}, "seen": None}


def test_a_lone_surrogate_is_refused_by_name():
    with pytest.raises(InvalidNotification, match="body holds a lone surrogate") as caught:
        Alert(body="\ud800")
    assert caught.value.field == "body"
