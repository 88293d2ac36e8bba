"""How much of anything a client may have, and the answer when it wants more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from math import inf
from typing import Any

KIBIOCTET = 1 << 10
MEBIOCTET = 1 << 20


@dataclass(frozen=True, slots=True)
class BodyRule:
    """What a request's body may be, how large and how slow, and how slow the answer.

    Of the body only the time counts in which we wait for the client; while the application has octets to
    read the clock stands still. Of the answer it is the other way round.

    Attributes:
        octets: The largest body; None for no limit.
        seconds: How long the whole body may take; None for a stream, which has the least rate alone.
        least_rate: Octets in a second, on average over `patience`.
        patience: Seconds for which a client may fall behind the least rate, silence included.
        answer_seconds: How long the application may work on what it has read before it reads on or begins
            its answer; None for no limit.
    """

    octets: int | None = 4 * MEBIOCTET
    seconds: float | None = 10.0
    least_rate: int = KIBIOCTET
    patience: float = 10.0
    answer_seconds: float | None = 15.0

    @classmethod
    def stream(cls, *, octets: int | None = None, least_rate: int = KIBIOCTET) -> BodyRule:
        """For a body of any length that is worked on as it arrives."""
        return cls(octets=octets, seconds=None, least_rate=least_rate)


BodyRules = Callable[[dict[str, Any]], BodyRule]
"""From a request's scope, as ASGI has it, to the rule of its body."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one server. Times in seconds, sizes in octets."""

    connections: int = 1024
    connections_per_address: int = 64  # an IPv6 client is its /64 network; trusted proxies are exempt
    connections_per_owner: int = 128  # see `Owners`
    tls_handshake: float = 5.0
    head_seconds: float = 5.0
    head_octets: int = 16 * KIBIOCTET
    head_fields: int = 64
    keep_alive: float = 75.0
    write_seconds: float = 10.0
    linger_seconds: float = 2.0
    linger_octets: int = MEBIOCTET
    resets: int = 200
    resets_seconds: float = 30.0
    concurrent_streams: int = 100
    stream_window: int = MEBIOCTET
    connection_window: int = 4 * MEBIOCTET
    frame_octets: int = 64 * KIBIOCTET
    body: BodyRule = field(default_factory=BodyRule)


class Pace:
    """A stopwatch over one body; it runs while we wait for the client."""

    __slots__ = ("_left", "_patience", "_rate", "_since", "_whole_left")

    def __init__(self, rule: BodyRule, now: float) -> None:
        self._rate = rule.least_rate
        self._patience = self._left = rule.patience
        self._whole_left = inf if rule.seconds is None else rule.seconds
        self._since: float | None = now

    @property
    def deadline(self) -> float:
        """When the client will have been too slow."""
        return inf if self._since is None else self._since + min(self._left, self._whole_left)

    def stop(self, now: float, octets: int) -> None:
        """`octets` have come, and it is the application's turn."""
        if self._since is not None:
            spent = now - self._since
            self._left -= spent
            self._whole_left -= spent
            self._since = None
        self._left = min(self._left + octets / self._rate, self._patience)

    def start(self, now: float) -> None:
        """The application has read all there is and wants more."""
        if self._since is None:
            self._since = now


class Owners:
    """Who has how many connections, once the application has told whose they are.

    The application does so through `scope["state"]["owned_by"](name)`, which says whether that one more is
    within the limit. A connection that changes hands, behind a proxy, counts for whom it served last.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()

    def move(self, before: str | None, after: str | None) -> bool:
        """A connection of one is another's now; False, and nothing has changed, if that one has enough."""
        if before == after:
            return True
        if after is not None:
            if self._counts[after] >= self._limit:
                return False
            self._counts[after] += 1
        if before is not None:
            self._counts[before] -= 1
            if not self._counts[before]:
                del self._counts[before]
        return True


@dataclass(slots=True)
class Statistics:
    """Plain counters, for whoever shows them.

    Attributes:
        accepted: Connections taken.
        open: Connections now.
        requests: Requests handed to the application.
        refused: What the guard refused, by reason.
    """

    accepted: int = 0
    open: int = 0
    requests: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the guard itself: status, the counter's name, a sentence for the sender."""

    status: int
    reason: str
    detail: str


def problem(status: int, detail: str, *, title: str | None = None, **members: object) -> bytes:
    """A body of `application/problem+json` (RFC 9457); `members` are extensions such as `field`."""
    return json.dumps(
        {"title": title or HTTPStatus(status).phrase, "status": status, "detail": detail, **members},
        ensure_ascii=False,
    ).encode()


def problem_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
