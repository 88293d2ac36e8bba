"""What a client tells its owner: events as they happen, and statistics when asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from fastpush.notification import Response

__all__ = [
    "ClientEvent",
    "ClientStatistics",
    "Connected",
    "ConnectionStatistics",
    "CredentialWasRefused",
    "DeviceTokenDead",
    "Draining",
    "Lost",
]


class Connected(NamedTuple):
    """A connection is ready for pushes."""

    host: str
    lane: str


class Draining(NamedTuple):
    """GOAWAY: a connection takes no further push. `reason` is APNs' own, None if it gave none."""

    host: str
    reason: str | None


class Lost(NamedTuple):
    """A connection ended, or did not come about."""

    host: str
    reason: str


class CredentialWasRefused(NamedTuple):
    """APNs refuses the key or certificate; until it changes every push ends with `CredentialRefused`."""

    identity: str
    reason: str


class DeviceTokenDead(NamedTuple):
    """APNs said 410, or 400 BadDeviceToken or DeviceTokenNotForTopic."""

    response: Response


ClientEvent: TypeAlias = Connected | Draining | Lost | CredentialWasRefused | DeviceTokenDead


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """What one connection looks like now.

    Attributes:
      state: "connecting", "open", "draining" or "closed".
      lane: "main", or "rejected" for the one of device tokens lately rejected.
      in_flight: requests without an answer.
      stream_limit: how many the server allows at once.
      send_window: octets of DATA that the connection's flow-control window lets out now.
      requests: requests begun.
      accepted: of these, answered with 200.
      write_calls: system calls made to write them.
      late_responses: answers to requests that had been given up.
      age: seconds since it was begun.
    """

    state: str
    lane: str
    peer: str
    in_flight: int
    stream_limit: int
    send_window: int
    requests: int
    accepted: int
    write_calls: int
    late_responses: int
    age: float


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """A frozen picture of a client, its queue and its connections.

    Attributes:
      queued: pushes waiting for a stream.
      waiting: pushes waiting for the time of their next attempt.
      in_flight: requests without an answer.
      accepted, rejected, unknown, not_sent, expired: how pushes have ended so far.
      resent: requests beyond the first of their push.
      stalled_on_streams, stalled_on_window: seconds in which pushes waited although connected, because all
        streams were taken, or because a flow-control window was used up.
      retry_budget: re-sends allowed now.
      stopped: why nothing goes out, None if it does.
    """

    queued: int
    waiting: int
    in_flight: int
    accepted: int
    rejected: int
    unknown: int
    not_sent: int
    expired: int
    resent: int
    stalled_on_streams: float
    stalled_on_window: float
    retry_budget: float
    stopped: str | None
    connections: tuple[ConnectionStatistics, ...]
