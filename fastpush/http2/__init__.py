"""One HTTP/2 client connection without I/O: requests in, octets out; octets in, events out.

An engine knows RFC 9113 and RFC 7541 and nothing of APNs. It holds no clock and no socket: every
method returns at once, and the time (float seconds of any monotonic clock) is an argument. What
becomes of a stream is told once: after `send_request` returned, exactly one `StreamEnded` with that
request's tag comes out of `receive_data`, `check_time`, `connection_lost` or `close`, unless
`reset_stream` took the stream back first.

There are two engines. `CompiledEngine` is the one in use. `ReferenceEngine` does the same over the
h2 library: it is the oracle of the tests, and FASTPUSH_ENGINE=h2 selects it for debugging.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

__all__ = [
    "CompiledEngine",
    "ConnectionEnded",
    "Engine",
    "ErrorCode",
    "Event",
    "Field",
    "GoawayReceived",
    "HeaderListTooLarge",
    "Limits",
    "LocalProtocolError",
    "PingAcknowledged",
    "RequestTemplate",
    "StreamEnded",
    "open_engine",
]

Field: TypeAlias = tuple[bytes, bytes]
"""One header field: lower-case name and value, as octets."""


class ErrorCode(enum.IntEnum):
    """RFC 9113 §7. A code that is not here counts as INTERNAL_ERROR."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class LocalProtocolError(Exception):
    """The caller asked for what the connection cannot do now; nothing was written."""


class HeaderListTooLarge(LocalProtocolError):
    """The request's header list is over the peer's SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 §6.5.2)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine puts up with from its peer. Sizes in octets, times in seconds."""

    frame_octets: int = 16_384
    """Largest frame payload accepted: our SETTINGS_MAX_FRAME_SIZE."""
    header_list_octets: int = 16_384
    """Largest decoded header list, counted as in RFC 9113 §6.5.2: our SETTINGS_MAX_HEADER_LIST_SIZE."""
    continuations: int = 8
    """CONTINUATION frames to one header block."""
    decoder_table_octets: int = 4_096
    """Our SETTINGS_HEADER_TABLE_SIZE."""
    encoder_table_octets: int = 4_096
    """The encoder's table never grows beyond this, whatever the peer offers."""
    body_octets: int = 4_096
    """Octets kept of one response's body; the rest is discarded, its window is given back."""
    queued_control_frames: int = 1_000
    """Answers to PING and SETTINGS waiting to be taken."""
    pings_per_second: int = 100
    settings_per_second: int = 20
    settings_entries: int = 1_000
    """Entries to one SETTINGS frame; unknown ones are skipped, not kept."""
    empty_frames_in_a_row: int = 100
    """DATA without octets and without END_STREAM, and empty CONTINUATION."""
    resets_above_in_flight: int = 100
    """RST_STREAM frames, beyond one for each stream that was open, within a second."""
    interim_responses: int = 8
    """1xx responses to one request."""
    goaway_debug_octets: int = 1_024
    """Octets kept of a GOAWAY frame's debug data."""
    settings_acknowledged_within: float = 10.0
    default_stream_limit: int = 1_000
    """Streams at once where the peer's SETTINGS name no SETTINGS_MAX_CONCURRENT_STREAMS."""
    connection_window_octets: int = 16 * 1024 * 1024
    """Our receive window for the whole connection; one WINDOW_UPDATE at the start raises it."""
    last_stream_id: int = 2**30 + 1
    """No request gets a higher stream id: the connection is retired there, well below 2**31 - 1."""


class GoawayReceived(NamedTuple):
    """The peer ends the connection (RFC 9113 §6.8). Streams above `last_stream_id` have ended as not
    processed, just before this event; the others go on. One event for each GOAWAY frame."""

    last_stream_id: int
    error_code: int
    debug_data: bytes


class PingAcknowledged(NamedTuple):
    """The answer to one of our PING frames (RFC 9113 §6.7)."""

    opaque: bytes


class ConnectionEnded(NamedTuple):
    """The connection is closed: by a connection error of ours (a GOAWAY frame is queued: send it, then
    close the transport), by `close`, or by `connection_lost`. Always the last event."""

    error_code: int
    reason: str


Event: TypeAlias = "StreamEnded | GoawayReceived | PingAcknowledged | ConnectionEnded"


class RequestTemplate(Protocol):
    """The part of a request that many share; made by `Engine.template`, good for that engine only."""


class Engine(Protocol):
    """What an engine does. Made by `open_engine`, or by the class with the same arguments."""

    # What one may look at. All are cheap.

    @property
    def settings_received(self) -> bool:
        """The peer's first SETTINGS frame is here; before it `room` is 0."""

    @property
    def draining(self) -> bool:
        """No further request is taken (GOAWAY came, or the stream ids are used up); open streams go on."""

    @property
    def closed(self) -> bool:
        """`ConnectionEnded` was told."""

    @property
    def streams_open(self) -> int:
        """Streams that count against the peer's limit."""

    @property
    def stream_limit(self) -> int:
        """How many streams the peer allows at once now; 0 before its SETTINGS."""

    @property
    def send_window(self) -> int:
        """Octets of DATA that the connection's window lets out now; DATA already queued is subtracted."""

    @property
    def window_blocked(self) -> bool:
        """Some DATA waits for a window, or the connection's window is used up."""

    @property
    def requests_sent(self) -> int:
        """Requests begun on this connection."""

    @property
    def late_responses(self) -> int:
        """Responses that came for streams which `reset_stream` had given up."""

    def room(self) -> int:
        """How many requests `send_request` takes now.

        The peer's stream limit less the open streams; 0 while draining, closed, before SETTINGS, and
        while any DATA waits for the connection's window or that window is used up (RFC 9113 §5.1.2, §6.9).
        """

    # Sending.

    def initiate(self, now: float) -> None:
        """Queue the connection preface, SETTINGS (ENABLE_PUSH 0) and the window (RFC 9113 §3.4). Once."""

    def template(
        self,
        before: Sequence[Field],
        path_prefix: bytes,
        after: Sequence[Field],
        variable: Sequence[bytes],
    ) -> RequestTemplate:
        """Describe requests that differ in the end of `:path`, in some fields, and in their body.

        Args:
          before: the pseudo-header fields other than `:path`; they may be indexed.
          path_prefix: the constant start of `:path`. The path is written in never-indexed form.
          after: regular fields with constant values; they may be indexed.
          variable: names of the fields whose value comes with each request, in this order, after
            `after`; written without indexing.
        """

    def send_request(
        self,
        template: RequestTemplate,
        path: bytes,
        values: Sequence[bytes | None],
        body: bytes,
        tag: object,
        now: float,
    ) -> int:
        """Queue HEADERS and DATA of one request and return its stream id.

        HEADERS leave at once. DATA goes as far as the windows let it, split by the peer's
        SETTINGS_MAX_FRAME_SIZE; what is left follows by itself as windows open, in the order of streams.

        Args:
          path: the octets after the template's `path_prefix`.
          values: one for each of the template's `variable` names; None leaves the field out.
          body: END_STREAM is on its last DATA frame, or on HEADERS where it is empty, as with GET.
          tag: comes back in `StreamEnded.tag`; any object, also None.

        Raises:
          HeaderListTooLarge: the peer would not take these fields.
          LocalProtocolError: `room` is 0. In both cases nothing was written and no stream was opened.
        """

    def reset_stream(self, stream_id: int, error_code: int = ErrorCode.CANCEL) -> bool:
        """Give a stream up: queue RST_STREAM, forget its tag, free its slot; no `StreamEnded` follows.

        Frames that still come for it are decoded and credited to the windows, and otherwise ignored. False,
        and nothing done, when the stream is not open.
        """

    def ping(self, opaque: bytes) -> None:
        """Queue a PING with 8 octets."""

    def close(self, error_code: int = ErrorCode.NO_ERROR) -> list[Event]:
        """Queue GOAWAY and end what is still open (not processed if never written, otherwise unknown)."""

    def data_to_send(self) -> bytes:
        """Take all octets that are ready, empty if none. They must be written in this order."""

    # Receiving.

    def receive_data(self, octets: bytes | bytearray | memoryview, now: float) -> list[Event]:
        """Take octets from the peer, cut anywhere, and tell what they complete, in order.

        Nothing is raised for what a peer sends: a stream error ends that stream with RST_STREAM, a
        connection error ends with `ConnectionEnded`. Events of good frames before a bad one are kept.
        """

    def connection_lost(self, reason: str) -> list[Event]:
        """The transport ended, and all streams with it.

        Surely not processed (`processed` is False) are those above a GOAWAY's last stream id and those whose
        HEADERS were never taken by `data_to_send`; of the others nothing is known (None).
        """

    def check_time(self, now: float) -> list[Event]:
        """Enforce what has a deadline: SETTINGS unacknowledged is SETTINGS_TIMEOUT (RFC 9113 §6.5.3)."""

    def next_time(self) -> float:
        """When `check_time` must be called next; `math.inf` if not at all."""


def open_engine(*, limits: Limits = Limits(), first_stream_id: int = 1) -> Engine:
    """Make the engine that FASTPUSH_ENGINE names: the compiled one, or `h2` for the reference engine."""
    name = os.environ.get("FASTPUSH_ENGINE", "compiled")
    if name == "compiled":
        return CompiledEngine(limits=limits, first_stream_id=first_stream_id)
    if name == "h2":
        from fastpush.http2.reference import ReferenceEngine

        return ReferenceEngine(limits=limits, first_stream_id=first_stream_id)
    raise ValueError(f"FASTPUSH_ENGINE is {name!r}; it may be 'compiled' or 'h2'")


# Last, because the compiled module takes the names above from here. Without it there is no fastpush.
from fastpush.http2._engine import CompiledEngine, StreamEnded  # noqa: E402
