"""The JSON of a payload in plain Python, from its public fields: what `fastpush/_encode.pyx` must write.

Slow and readable; the differential test holds the two against each other. Texts and numbers are written
here by hand, so that no JSON library stands on both sides.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal

import orjson
import regex

from fastpush import Alert, Payload, Sound

PLUS = "+" if orjson.dumps(1e300) == b"1e+300" else ""
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


class Refused(ValueError):
    """JSON or UTF-8 cannot express it."""


def encode(payload: Payload) -> bytes:
    aps = {
        "alert": alert(payload.alert),
        "badge": payload.badge,
        "sound": sound(payload.sound),
        "thread-id": payload.thread_id,
        "category": payload.category,
        "content-available": 1 if payload.content_available else None,
        "mutable-content": 1 if payload.mutable_content else None,
        "target-content-id": payload.target_content_id,
        "interruption-level": payload.interruption_level,
        "relevance-score": payload.relevance_score,
        "filter-criteria": payload.filter_criteria,
        "content-changed": payload.content_changed or None,
        "url-args": payload.url_args,
    }
    return written({"aps": present(aps), **(payload.data or {})}).encode()


def shortened(payload: Payload, limit_bytes: int) -> bytes:
    """The JSON of the payload with the longest body that fits: tries them all, from the longest."""
    whole = encode(payload)
    if len(whole) <= limit_bytes:
        return whole
    fields = json.loads(whole)
    body = fields["aps"].get("alert")
    clusters = regex.findall(r"\X", body["body"] if isinstance(body, dict) else body)
    for kept in range(len(clusters) - 1, -2, -1):
        # The last try is the empty body, without an ellipsis.
        text_kept = "".join(clusters[:kept]) + "…" if kept >= 0 else ""
        if isinstance(body, dict):
            fields["aps"]["alert"]["body"] = text_kept
        else:
            fields["aps"]["alert"] = text_kept
        octets = written(fields).encode()
        if len(octets) <= limit_bytes:
            return octets
    raise Refused("too long without its body")


def alert(value: Alert | str | None) -> object:
    if not isinstance(value, Alert):
        return value
    names = (
        "title",
        "subtitle",
        "body",
        "launch_image",
        "title_loc_key",
        "title_loc_args",
        "subtitle_loc_key",
        "subtitle_loc_args",
        "loc_key",
        "loc_args",
        "action_loc_key",
        "summary_arg",
        "summary_arg_count",
    )
    return present({name.replace("_", "-"): getattr(value, name) for name in names})


def sound(value: Sound | str | None) -> object:
    if not isinstance(value, Sound):
        return value
    return present({"critical": 1 if value.critical else None, "name": value.name, "volume": value.volume})


def present(members: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in members.items() if value is not None}


def written(value: object) -> str:
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise Refused("an int of over 64 bits")
        return str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{text(key)}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written, value)) + "]"
    raise Refused(type(value).__name__)


def text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("a key that is no str")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused("a lone surrogate")
    return '"' + "".join(map(escaped, value)) + '"'


def escaped(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    return f"\\u{ord(character):04x}" if character < " " else character


def number(value: float) -> str:
    """The shortest digits that read back the same, laid out as orjson does: 1e16 and above, and below 1e-5,
    with an exponent (whose plus sign depends on orjson's release)."""
    if not math.isfinite(value):
        raise Refused("not finite")
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    if value == 0:
        return sign + "0.0"
    _, digits, exponent = Decimal(repr(abs(value))).normalize().as_tuple()
    shown, point = "".join(map(str, digits)), len(digits) + int(exponent)
    if 0 < point <= 16:
        whole, part = shown[:point].ljust(point, "0"), shown[point:]
        return f"{sign}{whole}.{part or '0'}"
    if -5 < point <= 0:
        return f"{sign}0.{'0' * -point}{shown}"
    return f"{sign}{shown[0]}{'.' + shown[1:] if shown[1:] else ''}e{PLUS if point > 1 else ''}{point - 1}"
