"""The content of a Live Activity push, and the reading of instants.

Source: Apple, "Starting and updating Live Activities with ActivityKit push notifications".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, final

import orjson

from fastpush._encode import Alert, Sound, encode_data
from fastpush.errors import InvalidNotification

__all__ = ["LiveActivity", "unix_seconds"]

# A smaller number is a duration, a greater one no instant; as for a notification's expiration.
EARLIEST_INSTANT = 10**9
LATEST_INSTANT = 2**53

_NEEDED = {
    "start": ("attributes_type", "attributes", "content_state", "alert"),
    "update": ("content_state",),
    "end": (),
}
_START_ONLY = ("attributes_type", "attributes", "input_push_token", "input_push_channel")
_WITHOUT_MEANING = ("launch_image", "action_loc_key", "summary_arg", "summary_arg_count")


def invalid(name: str, problem: str) -> InvalidNotification:
    return InvalidNotification(f"{name} {problem}", field=name)


def unix_seconds(name: str, value: object) -> int:
    """An instant as whole UNIX seconds, from an `int` or an aware `datetime`; its range is not checked.

    Raises:
      InvalidNotification: another type, or a naive `datetime`, naming the field.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise invalid(name, "is a naive datetime; give it a time zone, as in datetime.now(UTC)")
        return math.floor(value.timestamp())
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__name__
        raise invalid(name, f"must be an int of UNIX seconds or an aware datetime; this is {kind}")
    return int(value)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LiveActivity:
    """The payload that starts, updates or ends a Live Activity; for the push type `liveactivity` only.

    Frozen, checked and written as JSON when made: changing a dict that was given changes nothing. Two are
    equal when their JSON is.

    Args:
      event: "start", "update" or "end".
      timestamp: when this state was true, `int` of UNIX seconds or an aware `datetime`; the device discards
        what is older than the last it got.
      content_state: the app's ContentState, as the system's default JSON decoder reads it. "start" and
        "update" need it.
      stale_date: when the state counts as outdated, as `timestamp`.
      dismissal_date: for "end", when it leaves the screen; in the past removes it at once.
      attributes_type: for "start", the name of the Swift type of `attributes`.
      attributes: for "start", the constant part of the activity.
      alert: what the user reads, a `str` being the body alone; "start" needs one. Title, subtitle and body
        are each given as text or by a `*_loc_key`, not both.
      sound: with an alert only: the name of a sound, or a `Sound`.
      relevance_score: any finite number; the highest leads.
      input_push_token: for "start", asks for an update token (iOS 18).
      input_push_channel: for "start", subscribes the activity to this channel (iOS 18).
      data: custom keys beside `aps`.

    Raises:
      InvalidNotification: naming the field, what was found, and the rule.
    """

    event: str
    timestamp: int | datetime
    content_state: Mapping[str, Any] | None = None
    stale_date: int | datetime | None = None
    dismissal_date: int | datetime | None = None
    attributes_type: str | None = None
    attributes: Mapping[str, Any] | None = None
    alert: Alert | str | None = None
    sound: str | Sound | None = None
    relevance_score: float | None = None
    input_push_token: bool = False
    input_push_channel: str | None = None
    data: Mapping[str, Any] | None = None
    _json: bytes = field(init=False)

    def __init_subclass__(cls) -> None:
        # Without this a subclass could refer back to its notification, which the collector never visits.
        raise TypeError("LiveActivity cannot be subclassed")

    def __post_init__(self) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        keep("event", _text("event", self.event))
        keep("timestamp", _instant("timestamp", self.timestamp))
        keep("stale_date", _instant("stale_date", self.stale_date))
        # 0 is a fair way to say "in the past".
        keep("dismissal_date", _instant("dismissal_date", self.dismissal_date, earliest=0))
        keep("attributes_type", _text("attributes_type", self.attributes_type))
        keep("input_push_channel", _text("input_push_channel", self.input_push_channel))
        if not isinstance(self.sound, Sound):
            keep("sound", _text("sound", self.sound))
        keep("relevance_score", _number("relevance_score", self.relevance_score))
        if not isinstance(self.input_push_token, bool):
            raise invalid(
                "input_push_token", f"must be True or False; this is {type(self.input_push_token).__name__}"
            )
        written = {
            name: _object(name, getattr(self, name)) for name in ("content_state", "attributes", "data")
        }
        if self.data is not None and "aps" in self.data:
            raise invalid("data", "must not hold the key 'aps', which the other arguments make")
        _check_event(self)
        keep("_json", _write(self, written))
        for name, octets in written.items():
            keep(name, None if octets is None else orjson.loads(octets))

    def encode(self) -> bytes:
        """The JSON body as bytes, made once."""
        return self._json

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LiveActivity):
            return NotImplemented
        return self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __repr__(self) -> str:
        return f"<LiveActivity {self.event}: {len(self._json)} bytes>"


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid(name, f"must be a str; this is {type(value).__name__}")
    try:
        return value.encode().decode()  # an exact str
    except UnicodeEncodeError:
        raise invalid(name, "holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)") from None


def _instant(name: str, value: object, earliest: int = EARLIEST_INSTANT) -> int | None:
    if value is None:
        return None
    seconds = unix_seconds(name, value)
    if not earliest <= seconds <= LATEST_INSTANT:
        side = "below" if seconds < earliest else "above"
        raise invalid(name, f"must be UNIX seconds from {earliest} to 2**53; this is {side}")
    return seconds


def _number(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(name, f"must be a float; this is {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise invalid(name, "must be a finite number")
    return number


def _object(name: str, value: object) -> bytes | None:
    return None if value is None else encode_data(value, name)


def _check_event(activity: LiveActivity) -> None:
    event = activity.event
    if event not in ("start", "update", "end"):
        raise invalid("event", "must be 'start', 'update' or 'end'")
    if activity.timestamp is None:
        raise invalid("timestamp", "is missing; every Live Activity push needs one")
    for name in _NEEDED[event]:
        if getattr(activity, name) is None:
            raise invalid(name, f"is missing; the event '{event}' needs it")
    if event != "start":
        for name in _START_ONLY:
            if getattr(activity, name) not in (None, False):
                raise invalid(name, f"is for the event 'start' only; this is '{event}'")
    if event != "end" and activity.dismissal_date is not None:
        raise invalid("dismissal_date", f"is for the event 'end' only; this is '{event}'")
    if activity.sound is not None and activity.alert is None:
        raise invalid("sound", "is for an alert only; give one")


def _alert_object(activity: LiveActivity) -> dict[str, object] | None:
    """The alert as a Live Activity wants it: localised texts are objects, and the sound is inside."""
    alert, sound = activity.alert, activity.sound
    if alert is None:
        return None
    if not isinstance(alert, Alert):
        alert = Alert(body=_text("alert", alert))
    for name in _WITHOUT_MEANING:
        if getattr(alert, name) is not None:
            raise invalid(f"alert.{name}", "has no meaning in a Live Activity")
    written: dict[str, object] = {}
    for name, key in (("title", "title_loc"), ("subtitle", "subtitle_loc"), ("body", "loc")):
        text, loc_key, loc_args = (getattr(alert, part) for part in (name, f"{key}_key", f"{key}_args"))
        if text is not None and (loc_key is not None or loc_args is not None):
            raise invalid(f"alert.{name}", f"is given twice, as text and by {key}_key")
        if loc_key is None and loc_args is not None:
            raise invalid(f"alert.{key}_args", f"needs {key}_key")
        if loc_key is not None:
            written[name] = _without_none({"loc-key": loc_key, "loc-args": loc_args})
        elif text is not None:
            written[name] = text
    if isinstance(sound, Sound):
        written["sound"] = _without_none(
            {"critical": 1 if sound.critical else None, "name": sound.name, "volume": sound.volume}
        )
    elif sound is not None:
        written["sound"] = sound
    return written


def _write(activity: LiveActivity, written: Mapping[str, bytes | None]) -> bytes:
    def fragment(name: str) -> orjson.Fragment | None:
        octets = written[name]
        return None if octets is None else orjson.Fragment(octets)

    aps = _without_none(
        {
            "timestamp": activity.timestamp,
            "event": activity.event,
            "content-state": fragment("content_state"),
            "stale-date": activity.stale_date,
            "dismissal-date": activity.dismissal_date,
            "attributes-type": activity.attributes_type,
            "attributes": fragment("attributes"),
            "alert": _alert_object(activity),
            "relevance-score": activity.relevance_score,
            "input-push-token": 1 if activity.input_push_token else None,
            "input-push-channel": activity.input_push_channel,
        }
    )
    head = orjson.dumps({"aps": aps})
    data = written["data"]
    return head if data is None or data == b"{}" else head[:-1] + b"," + data[1:]


def _without_none(members: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in members.items() if value is not None}
