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
    """The text of the push with this number: a device of the network, and what befell it."""
    return DEVICES[index % len(DEVICES)] + REMARK


def content(index: int) -> dict[str, Any]:
    """The payload of the push with this number, as the dictionary that any JSON library takes."""
    return content_of(alert_body(index))


def content_of(text: str) -> dict[str, Any]:
    """The payload with this text."""
    return {
        "aps": {
            "alert": {"title": TITLE, "body": text},
            "sound": SOUND,
            "thread-id": THREAD_ID,
        }
    }


def body(index: int) -> bytes:
    """The same, encoded without spaces: `BODY_OCTETS` octets."""
    return body_for(index, BODY_OCTETS)


def body_for(index: int, octets: int) -> bytes:
    """One of another size, its text as `alert_body_for` makes it."""
    return json.dumps(content_of(alert_body_for(index, octets)), separators=(",", ":")).encode()


def alert_body_for(index: int, octets: int) -> str:
    """The same text, cut or drawn out so that the encoded payload has so many octets."""
    length = octets - BODY_OCTETS + len(DEVICES[0]) + len(REMARK)
    return alert_body(index)[:length].ljust(length, ".")


# Ten thousand names, made ahead: a name is at hand where an alarm is raised, only the text is put together.
DEVICES = [f"sw-core-{number:08d}" for number in range(10_000)]
# With it the encoded payload has its size.
REMARK = (
    ": no answer for 60 seconds; last seen on port 48, rack 12, row 3, hall 2 of the data centre in Frankf"
)
