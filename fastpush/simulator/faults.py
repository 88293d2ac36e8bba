"""What can go wrong at APNs or on the way, as small frozen values, and the plan that says when.

A fault says what happens (its class and own fields) and when (the fields of `Fault`). All conditions given
must hold; without any, a fault of one request happens to each, a fault of a connection when it is opened.
Chance is drawn from the simulator's seed, so a run can be repeated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, final

__all__ = [
    "PROFILES",
    "Answer",
    "Close",
    "Collapse",
    "Delay",
    "Fault",
    "FaultPlan",
    "Goaway",
    "IgnorePings",
    "KeepWindow",
    "LeaveSettingsUnacknowledged",
    "Refuse",
    "RejectionLimit",
    "SendOctets",
    "Settings",
    "Stall",
    "Swallow",
    "TlsAlert",
    "Trickle",
    "find_profile",
]

_NEVER = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """When something happens; the subclasses say what."""

    device_token: str | None = None
    """Only to requests for this device token."""
    request: int | None = None
    """Only to this request of a connection, counted from 1."""
    overall: int | None = None
    """Only to this request of the simulator, counted from 1 over all connections."""
    every: int | None = None
    """Only to each n-th request of a connection."""
    one_in: int | None = None
    """By chance, to one request in n on average."""
    connection: int | None = None
    """Only on this connection, counted from 1 in the order of opening."""
    times: int | None = None
    """At most so often altogether."""

    OF_CONNECTION: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("request", "overall", "every", "one_in", "connection", "times"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it counts from 1")
        if self.device_token is not None and not _is_hex(self.device_token):
            raise ValueError(f"device_token of {len(self.device_token)} characters is not hex octets")

    @property
    def at_open(self) -> bool:
        """Whether it happens when a connection is opened, before any request."""
        conditions = (self.device_token, self.request, self.overall, self.every, self.one_in)
        return self.OF_CONNECTION and all(condition is None for condition in conditions)


def _is_steady(fault: Fault) -> bool:
    """Whether it is a delay that is the same for every request of a connection."""
    conditions = (fault.device_token, fault.request, fault.overall, fault.every, fault.one_in, fault.times)
    return isinstance(fault, Delay) and not fault.spread and all(value is None for value in conditions)


def _is_hex(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) * 2 == len(text) > 0
    except ValueError:
        return False


# What happens to one request.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Fault):
    """Answer so, whatever the rules say; 200 counts as delivered."""

    status: int
    reason: str | None = None
    timestamp: int | None = None
    """Milliseconds since the epoch, as 410 carries them."""
    retry_after: int | None = None
    """Seconds, in a `retry-after` field. None was ever captured from APNs."""
    body: bytes | None = None
    """Instead of the JSON object made of reason and timestamp; b"" leaves the body out."""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    pieces: int = 1
    """DATA frames that the body is split into."""
    padding: int = 0
    """Octets of padding in each of them."""
    interim: int = 0
    """103 responses before it."""
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    apns_id: bool = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Swallow(Fault):
    """Never answer; the connection stays good."""

    processed: bool = False
    """Whether it is delivered all the same."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Fault):
    """Answer with RST_STREAM. Only REFUSED_STREAM says that it was not processed (RFC 9113 §8.7)."""

    error_code: int = 7
    processed: bool = False
    """Whether it is delivered all the same; must stay False with REFUSED_STREAM."""
    twice: bool = False
    """Send STREAM_CLOSED after it, as APNs was seen to do (pushy issue 476)."""

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if self.processed and self.error_code == 7:
            raise ValueError("REFUSED_STREAM says not processed; take another error_code")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Delay(Fault):
    """Judge and answer a request later. Not judged yet, it may still be left out by a GOAWAY."""

    seconds: float
    spread: float = 0.0
    """Up to so many seconds more, by chance."""


# What happens to a connection.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Goaway(Fault):
    """Send GOAWAY; what it names as not processed is not processed.

    The frame leaves in one write with the answers that follow it.
    """

    last: Literal["here", "before", "zero", "max"] | int = "here"
    """The last stream id: of the request it happens to; of the one before; 0; 2**31 - 1; or a number."""
    error_code: int = 0
    debug_data: bytes = b'{"reason":"Shutdown"}'
    close: Literal["drained", "at once", "never"] = "drained"
    """When the connection is closed: once all up to the last stream id is answered; without any further
    answer; or not at all."""
    copies: int = 1
    """How often the frame is sent; all but the first without debug data (pushy issue 312)."""
    real_after: float | None = None
    """With "max": seconds until the second GOAWAY, which names the highest stream id handled then."""
    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Close(Fault):
    """End the connection without GOAWAY."""

    how: Literal["fin", "close notify", "reset"] = "fin"
    """"reset" is a TCP RST (SO_LINGER 0)."""
    processed: bool = False
    """Whether the request it happens to is delivered all the same; its answer is not written."""
    octets: int = 0
    """With `processed`: so many octets of the answer are still written, so that it ends within a frame."""
    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TlsAlert(Fault):
    """End the connection with a fatal TLS alert (bad_record_mac) after a good handshake."""

    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Fault):
    """Send SETTINGS; what is None is not in the frame."""

    stream_limit: int | None = None
    initial_window: int | None = None
    frame_octets: int | None = None
    table_octets: int | None = None
    header_list_octets: int | None = None
    strict: bool = False
    """Refuse what is over a lowered stream limit at once, without waiting for the acknowledgement."""
    restored_after: float | None = None
    """Seconds until the stream limit is what it was."""
    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(Fault):
    """Read and write nothing for so long; the kernel goes on to acknowledge. Infinity: for ever."""

    seconds: float = math.inf
    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trickle(Fault):
    """From now on write so few octets at a time, so far apart."""

    octets: int = 1
    interval: float = 0.05
    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SendOctets(Fault):
    """Write these octets between the frames: any frame, also a wrong one."""

    octets: bytes
    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IgnorePings(Fault):
    """From now on answer no PING."""

    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeepWindow(Fault):
    """From now on give nothing back to the connection's window: 65,535 octets and no more."""

    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveSettingsUnacknowledged(Fault):
    """Acknowledge no SETTINGS."""

    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse(Fault):
    """From now on a rejection drops the stream limit to 1, the next accepted request restores it.

    Apple closed the report as resolved in 2016; it was described again in 2017 and 2020.
    """

    OF_CONNECTION: ClassVar[bool] = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionLimit(Fault):
    """From now on end the connection with GOAWAY after so many rejections; 410 is not counted."""

    rejections: int = 10
    OF_CONNECTION: ClassVar[bool] = True


FaultSource: TypeAlias = Fault | str

PROFILES: Mapping[str, tuple[Fault, ...]] = {
    "bad-certificate": (
        Goaway(last="zero", close="at once", debug_data=b'{"reason":"BadCertificate"}', copies=2),
    ),
    "bad-certificate-environment": (
        Goaway(last="zero", close="at once", debug_data=b'{"reason":"BadCertificateEnvironment"}'),
    ),
    "collapse": (Collapse(),),
    "connection-cut": (Close(every=500),),
    "connection-reset": (Close(every=500, how="reset", processed=True, octets=5),),
    "error-body-missing": (Answer(every=10, status=400, reason="BadDeviceToken", body=b""),),
    "error-body-split": (Answer(every=10, status=400, reason="BadDeviceToken", pieces=5, padding=3),),
    "expired-device-tokens": (Answer(every=10, status=410, reason="ExpiredToken"),),
    "frozen": (Stall(request=100),),
    "goaway": (Goaway(every=1_000),),
    "goaway-at-open": (Goaway(last="zero", close="at once"),),
    "goaway-graceful": (Goaway(request=1_000, last="max", real_after=0.1),),
    "goaway-never-closed": (Goaway(request=1_000, close="never"),),
    "goaway-then-close": (Goaway(request=1_000, close="at once"),),
    "goaway-twice": (Goaway(request=1_000, copies=2),),
    "goaway-zero": (Goaway(request=1_000, last="zero"),),
    "internal-error": (Answer(status=500, reason="InternalServerError"),),
    "latency": (Delay(seconds=0.05),),
    "latency-spread": (Delay(seconds=0.05, spread=0.2),),
    "limit-flapping": (Settings(every=500, stream_limit=1, restored_after=0.2),),
    "limit-lowered": (Settings(request=500, stream_limit=1, strict=True, restored_after=1.0),),
    "no-pings": (IgnorePings(),),
    "no-settings-acknowledgement": (LeaveSettingsUnacknowledged(),),
    "no-window": (KeepWindow(),),
    "refused-streams": (Refuse(one_in=100),),
    "refused-twice": (Refuse(one_in=100, twice=True),),
    "rejections-disconnect": (RejectionLimit(),),
    "service-unavailable": (Answer(every=10, status=503, reason="ServiceUnavailable"),),
    "service-unavailable-retry-after": (
        Answer(every=10, status=503, reason="ServiceUnavailable", retry_after=1),
    ),
    "shutdown": (Answer(every=500, status=503, reason="Shutdown"), Goaway(every=500)),
    "stall": (Stall(every=1_000, seconds=2.0),),
    "swallowed": (Swallow(one_in=200),),
    "swallowed-delivered": (Swallow(one_in=200, processed=True),),
    "tls-alert": (TlsAlert(request=100),),
    "token-updates": (Answer(every=100, status=429, reason="TooManyProviderTokenUpdates"),),
    "too-many-requests": (Answer(every=10, status=429, reason="TooManyRequests"),),
    "trickle": (Trickle(),),
    "unknown-reason": (Answer(every=10, status=400, reason="SolarFlare"),),
    "unregistered": (Answer(every=10, status=410, reason="Unregistered", timestamp=1_700_000_000_000),),
    "unregistered-without-timestamp": (Answer(every=10, status=410, reason="Unregistered"),),
}
"""Faults under a name, for the command line; more than one may be in force."""


def find_profile(name: str) -> tuple[Fault, ...]:
    """Give the faults of a profile.

    Raises:
      ValueError: there is none of that name.
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"no fault profile is named {name!r}; there are {', '.join(PROFILES)}") from None


def _all_of(faults: Iterable[FaultSource]) -> list[Fault]:
    return [
        each for fault in faults for each in (find_profile(fault) if isinstance(fault, str) else (fault,))
    ]


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class _Armed:
    fault: Fault
    fired: int = 0
    chance: int = field(default=_NEVER)
    """With `one_in`: the overall number of the request it happens to next."""

    @property
    def spent(self) -> bool:
        return self.fault.times is not None and self.fired >= self.fault.times


@final
class FaultPlan:
    """The faults in force; may be changed at any time. Iterating gives them."""

    def __init__(self, faults: Iterable[FaultSource] = (), *, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._armed: list[_Armed] = []
        self._overall = 0
        self.on_change: Callable[[], None] = _nothing
        """Called after each change."""
        self.add(*faults)

    def __iter__(self) -> Iterator[Fault]:
        return (armed.fault for armed in self._armed)

    def __len__(self) -> int:
        return len(self._armed)

    def add(self, *faults: FaultSource) -> None:
        """Put faults, or all of a named profile, in force, on open connections too.

        One that happens when a connection is opened waits for the next connection.

        Raises:
          ValueError: no profile has that name; nothing was added.
        """
        for fault in _all_of(faults):
            armed = _Armed(fault)
            self._draw(armed)
            self._armed.append(armed)
        self.on_change()

    def remove(self, *faults: FaultSource) -> None:
        """Take faults, or all of a profile, out again.

        Raises:
          ValueError: one is not in force, or no profile has that name.
        """
        for fault in _all_of(faults):
            found = [armed for armed in self._armed if armed.fault == fault]
            if not found:
                raise ValueError(f"not in force: {fault!r}")
            self._armed.remove(found[0])
        self.on_change()

    def clear(self) -> None:
        """Take all out. What has begun (a stall, a trickle) goes on to its end."""
        self._armed.clear()
        self.on_change()

    def fired(self, fault: Fault) -> int:
        """Tell how often a fault has happened."""
        return sum(armed.fired for armed in self._armed if armed.fault == fault)

    def draw_spread(self, seconds: float) -> float:
        """Draw from 0 to `seconds`."""
        return self._random.uniform(0.0, seconds)

    def device_tokens(self) -> set[bytes]:
        """The device tokens that faults name, in lower case."""
        tokens = (armed.fault.device_token for armed in self._armed if not armed.spent)
        return {token.lower().encode() for token in tokens if token is not None}

    def at_open(self, connection: int) -> list[Fault]:
        """Take the faults that happen now to a connection being opened."""
        return self._take(
            armed
            for armed in self._armed
            if armed.fault.at_open and armed.fault.connection in (None, connection)
        )

    def steady_delay(self, connection: int) -> float:
        """Tell the seconds by which every answer on a connection is late."""
        return sum(
            armed.fault.seconds
            for armed in self._armed
            if isinstance(armed.fault, Delay)
            and _is_steady(armed.fault)
            and armed.fault.connection in (None, connection)
        )

    def at_request(self, connection: int, number: int, overall: int, device_token: bytes) -> list[Fault]:
        """Take the faults that happen to this request."""
        self._overall = max(self._overall, overall)
        due = self._take(
            armed
            for armed in self._armed
            if not armed.fault.at_open
            and not _is_steady(armed.fault)
            and _holds(armed, connection, number, overall, device_token)
        )
        for armed in self._armed:
            if armed.chance <= overall:
                self._draw(armed)
        return due

    def next_request(self, connection: int, after: int) -> int:
        """The first request of a connection, beyond `after`, that a fault may happen to by its number."""
        return min((_next(armed, connection, after) for armed in self._armed), default=_NEVER)

    def next_overall(self, after: int) -> int:
        """The same over all connections."""
        following = _NEVER
        for armed in self._armed:
            overall = armed.fault.overall
            if not armed.spent and overall is not None and overall > after:
                following = min(following, overall)
            if not armed.spent:
                following = min(following, armed.chance)
        return following

    def _take(self, candidates: Iterable[_Armed]) -> list[Fault]:
        taken = []
        for armed in candidates:
            if not armed.spent:
                armed.fired += 1
                taken.append(armed.fault)
        return taken

    def _draw(self, armed: _Armed) -> None:
        if armed.fault.one_in is not None:
            distance = 1
            if armed.fault.one_in > 1:
                # Geometric, so each request is hit independently with probability 1 / one_in.
                chance = 1.0 - self._random.random()
                distance += int(math.log(chance) / math.log1p(-1.0 / armed.fault.one_in))
            armed.chance = self._overall + distance


def _holds(armed: _Armed, connection: int, number: int, overall: int, device_token: bytes) -> bool:
    fault = armed.fault
    return (
        fault.connection in (None, connection)
        and fault.request in (None, number)
        and fault.overall in (None, overall)
        and (fault.every is None or number % fault.every == 0)
        and (fault.one_in is None or armed.chance <= overall)
        and (fault.device_token is None or fault.device_token.lower().encode() == device_token.lower())
    )


def _next(armed: _Armed, connection: int, after: int) -> int:
    fault = armed.fault
    by_other = fault.device_token is not None or fault.overall is not None or fault.one_in is not None
    if armed.spent or fault.at_open or by_other or fault.connection not in (None, connection):
        return _NEVER
    if _is_steady(fault):
        return _NEVER
    if fault.request is not None:
        return fault.request if fault.request > after else _NEVER
    if fault.every is not None:
        return (after // fault.every + 1) * fault.every
    return after + 1
