"""What is sent: the same notifications for every contender, made from a seed.

A push of the benchmarks carries a body of exactly `BODY_OCTETS` octets, as an alarm of a network monitor
does, and a device token of its own. Nothing here is a real token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

BODY_OCTETS = 220
TOPIC = "com.example.opmanager"
PUSH_TYPE = "alert"
PRIORITY = 10
EXPIRATION = 4_102_444_800  # 2100-01-01: never passes while a benchmark runs
TITLE = "Core switch down"
SOUND = "default"
THREAD_ID = "opmanager-core"
KEY_ID = "ABC123DEFG"
TEAM_ID = "DEF123GHIJ"


def device_tokens(seed: int, count: int) -> Iterator[str]:
    """Distinct device tokens: 32 octets in lower-case hex, the first four counting up, the others drawn."""
    draw = random.Random(seed).randbytes
    for index in range(count):
        yield f"{index:08x}{draw(28).hex()}"


def alert_body(index: int) -> str:
    """The text of the push with this number; of one length for all numbers below 100 million."""
    return TEXT % index


def content(index: int) -> dict[str, Any]:
    """The payload of the push with this number, as the dictionary that any JSON library takes."""
    return {
        "aps": {
            "alert": {"title": TITLE, "body": alert_body(index)},
            "sound": SOUND,
            "thread-id": THREAD_ID,
        }
    }


def body(index: int) -> bytes:
    """The same, encoded without spaces: `BODY_OCTETS` octets."""
    return json.dumps(content(index), separators=(",", ":")).encode()


def _text() -> str:
    """Fill the alert's text up, so that the encoded payload has its size."""
    start = "sw-core-%08d: no answer for 60 seconds"
    empty = {"aps": {"alert": {"title": TITLE, "body": start % 0}, "sound": SOUND, "thread-id": THREAD_ID}}
    missing = BODY_OCTETS - len(json.dumps(empty, separators=(",", ":")))
    filler = "; last seen on port 48, rack 12, row 3, hall 2 of the data centre in Frankfurt am Main"
    assert 0 <= missing <= len(filler)
    return start + filler[:missing]


TEXT = _text()
