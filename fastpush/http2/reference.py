"""The engine's contract over the h2 library: slow, short, and written by others where it matters.

h2 keeps the frames, the header compression, the windows and the streams' states; this module keeps
what h2 leaves to its user (bodies, outcomes, limits) and guards the places where h2 4.4 does
something other than RFC 9113 or than our contract asks:

- h2 answers a whole call with one exception, and the good frames of that call are lost. So it is
  given one frame a call.
- h2 takes GOAWAY for the end and drops what it has to send. So its octets are taken beforehand, and
  its state is put back afterwards: streams up to the last id go on (§6.8).
- h2 closes the connection over one malformed response, where the RFC asks for that stream only
  (§8.1.1). So it does not judge fields here; its own validator is called afterwards.
- h2 keeps SETTINGS in a dict, where of two entries with one id only the last survives (§6.5.3). So it
  is given one entry a call, and one acknowledgement leaves.

What it cannot be made to do in this way is listed in tests/http2/not_on_h2.py, with the reasons.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.utilities
from hpack import HeaderTuple, HPACKError, NeverIndexedHeaderTuple

from fastpush.http2 import (
    ConnectionEnded,
    ErrorCode,
    Event,
    Field,
    GoawayReceived,
    HeaderListTooLarge,
    Limits,
    LocalProtocolError,
    PingAcknowledged,
    RequestTemplate,
)
from fastpush.http2._engine import StreamEnded

__all__ = ["ReferenceEngine"]

FRAME_HEADER = struct.Struct(">HBBBL")  # RFC 9113 §4.1; the length's 24 bits are an H and a B
SETTING = struct.Struct(">HL")  # §6.5.1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4

DEFAULT_WINDOW_OCTETS = 65_535  # §6.9.2
FIELD_OVERHEAD_OCTETS = 32  # §6.5.2
FINAL_STATUS = re.compile(rb"[2-5][0-9]{2}")
INTERIM_STATUS = re.compile(rb"1[0-9]{2}")
SWITCHING_PROTOCOLS = b"101"  # not in HTTP/2 (§8.6)


class _ConnectionError(Exception):
    """A connection error (§5.4.1)."""

    def __init__(self, error_code: int, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        self.reason = reason


class _Malformed(Exception):
    """A stream error (§5.4.2): the response of one stream breaks the rules of its message (§8.1.1)."""


class _Template(NamedTuple):
    before: tuple[HeaderTuple, ...]
    path_prefix: bytes
    after: tuple[HeaderTuple, ...]
    variable: tuple[bytes, ...]

    def fill(self, path: bytes, values: Sequence[bytes | None]) -> list[HeaderTuple]:
        # hpack knows no literal without indexing (RFC 7541 §6.2.2); never indexed (§6.2.3) is as long.
        return [
            *self.before,
            NeverIndexedHeaderTuple(b":path", self.path_prefix + path),
            *self.after,
            *(
                NeverIndexedHeaderTuple(name, value)
                for name, value in zip(self.variable, values, strict=True)
                if value is not None
            ),
        ]


@dataclass(slots=True)
class _Stream:
    tag: object
    waiting: memoryview  # the body's octets that no window has let out yet
    status: int | None = None
    fields: list[Field] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    interim: int = 0


class _PerSecond:
    """Counts what a peer may do only so often within a second."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since = -math.inf
        self._count = 0

    def exceeded(self, now: float) -> bool:
        if now - self._since >= 1.0:
            self._since = now
            self._count = 0
        self._count += 1
        return self._count > self._limit


class ReferenceEngine:
    """One client connection over h2. See `fastpush.http2.Engine` for what each method promises."""

    def __init__(self, *, limits: Limits = Limits(), first_stream_id: int = 1) -> None:  # noqa: B008  (frozen)
        self._limits = limits
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_inbound_headers=False,  # by `_check_fields`, so that one stream fails alone
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,  # it would keep `authorization` out of the table
            )
        )
        codes = h2.settings.SettingCodes
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.ENABLE_PUSH: 0,
                codes.HEADER_TABLE_SIZE: limits.decoder_table_octets,
                codes.MAX_FRAME_SIZE: limits.frame_octets,
                codes.MAX_HEADER_LIST_SIZE: limits.header_list_octets,
            },
        )
        self._h2.max_inbound_frame_size = limits.frame_octets
        self._h2.decoder.max_header_list_size = limits.header_list_octets
        self._h2.decoder.max_allowed_table_size = limits.decoder_table_octets
        if limits.encoder_table_octets < self._h2.encoder.header_table_size:
            self._h2.encoder.header_table_size = limits.encoder_table_octets

        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._events: list[Event] = []
        self._now = 0.0

        self._streams: dict[int, _Stream] = {}
        self._given_up: set[int] = set()  # reset by our caller, no answer yet
        self._next_stream_id = first_stream_id
        self._highest_taken = 0  # requests up to this stream id have left through `data_to_send`
        self._last_stream_id: int | None = None  # of the last GOAWAY
        self._settings_received = False
        self._acknowledgement_due = math.inf
        self._closed = False
        self._requests_sent = 0
        self._late_responses = 0

        self._block_stream_id = 0  # whose header block goes on in CONTINUATION frames
        self._block_continuations = 0
        self._empty_frames = 0
        self._queued_control_frames = 0
        self._pings = _PerSecond(limits.pings_per_second)
        self._settings = _PerSecond(limits.settings_per_second)
        self._resets = _PerSecond(limits.resets_above_in_flight)
        self._pings_sent: list[bytes] = []

    # What one may look at.

    @property
    def settings_received(self) -> bool:
        return self._settings_received

    @property
    def draining(self) -> bool:
        return self._last_stream_id is not None or self._next_stream_id > self._limits.last_stream_id

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def streams_open(self) -> int:
        return len(self._streams)

    @property
    def stream_limit(self) -> int:
        if not self._settings_received:
            return 0
        code = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
        return self._h2.remote_settings.get(code, self._limits.default_stream_limit)

    @property
    def send_window(self) -> int:
        waiting = sum(len(stream.waiting) for stream in self._streams.values())
        return max(0, self._h2.outbound_flow_control_window - waiting)

    @property
    def window_blocked(self) -> bool:
        used_up = self._h2.outbound_flow_control_window <= 0
        return used_up or any(stream.waiting for stream in self._streams.values())

    @property
    def requests_sent(self) -> int:
        return self._requests_sent

    @property
    def late_responses(self) -> int:
        return self._late_responses

    def room(self) -> int:
        # DATA waits for the connection's window only where that is used up: `_send_waiting` saw to it.
        if self._closed or self.draining or self._h2.outbound_flow_control_window <= 0:
            return 0
        unused_ids = (self._limits.last_stream_id - self._next_stream_id) // 2 + 1
        return max(0, min(self.stream_limit - len(self._streams), unused_ids))

    # Sending.

    def initiate(self, now: float) -> None:
        self._acknowledgement_due = now + self._limits.settings_acknowledged_within
        self._h2.initiate_connection()
        increment = self._limits.connection_window_octets - DEFAULT_WINDOW_OCTETS
        if increment > 0:
            self._h2.increment_flow_control_window(increment)

    def template(
        self,
        before: Sequence[Field],
        path_prefix: bytes,
        after: Sequence[Field],
        variable: Sequence[bytes],
    ) -> RequestTemplate:
        return _Template(
            tuple(HeaderTuple(*pair) for pair in before),
            path_prefix,
            tuple(HeaderTuple(*pair) for pair in after),
            tuple(variable),
        )

    def send_request(
        self,
        template: RequestTemplate,
        path: bytes,
        values: Sequence[bytes | None],
        body: bytes,
        tag: object,
        now: float,
    ) -> int:
        assert isinstance(template, _Template)
        if self.room() == 0:
            raise LocalProtocolError("no request can be taken now: room() is 0")
        fields = template.fill(path, values)
        octets = sum(len(name) + len(value) + FIELD_OVERHEAD_OCTETS for name, value in fields)
        limit = self._h2.remote_settings.max_header_list_size
        if limit is not None and octets > limit:
            raise HeaderListTooLarge(f"the header list has {octets} octets, the peer takes {limit}")
        stream_id = self._next_stream_id
        self._h2.send_headers(stream_id, fields, end_stream=not body)
        self._next_stream_id += 2
        self._requests_sent += 1
        self._streams[stream_id] = _Stream(tag, memoryview(body))
        self._send_waiting(stream_id)
        return stream_id

    def _send_waiting(self, stream_id: int) -> None:
        """Write as much of one stream's body as the windows let out (§6.9.1)."""
        stream = self._streams[stream_id]
        while stream.waiting:
            octets = min(
                len(stream.waiting),
                self._h2.local_flow_control_window(stream_id),
                self._h2.max_outbound_frame_size,
            )
            if octets <= 0:
                return
            last = octets == len(stream.waiting)
            self._h2.send_data(stream_id, stream.waiting[:octets], end_stream=last)
            stream.waiting = stream.waiting[octets:]

    def reset_stream(self, stream_id: int, error_code: int = ErrorCode.CANCEL) -> bool:
        if self._closed or self._streams.pop(stream_id, None) is None:
            return False
        self._h2.reset_stream(stream_id, error_code)
        self._given_up.add(stream_id)
        return True

    def ping(self, opaque: bytes) -> None:
        self._h2.ping(opaque)
        self._pings_sent.append(opaque)

    def close(self, error_code: int = ErrorCode.NO_ERROR) -> list[Event]:
        return self._end(error_code, "closed by us", goaway=True)

    def data_to_send(self) -> bytes:
        self._take_from_h2()
        octets = bytes(self._outgoing)
        self._outgoing.clear()
        self._queued_control_frames = 0
        self._highest_taken = self._next_stream_id - 2
        return octets

    def _take_from_h2(self) -> None:
        self._outgoing += self._h2.data_to_send()

    # Receiving.

    def receive_data(self, octets: bytes | bytearray | memoryview, now: float) -> list[Event]:
        if self._closed:
            return []
        self._now = now
        self._incoming += octets
        try:
            for frame in self._complete_frames():
                self._receive_frame(frame)
        except _ConnectionError as error:
            return self._end(error.error_code, error.reason, goaway=True)
        return self._take_events()

    def connection_lost(self, reason: str) -> list[Event]:
        return self._end(ErrorCode.INTERNAL_ERROR, reason, goaway=False)

    def check_time(self, now: float) -> list[Event]:
        if self._closed or now < self._acknowledgement_due:
            return []
        return self._end(ErrorCode.SETTINGS_TIMEOUT, "SETTINGS were not acknowledged in time", goaway=True)

    def next_time(self) -> float:
        return math.inf if self._closed else self._acknowledgement_due

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _complete_frames(self) -> Iterator[bytes]:
        """Cut the frames out of what has arrived; a length is judged before its octets are here (§4.2)."""
        while len(self._incoming) >= FRAME_HEADER.size:
            high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(self._incoming)
            length = high << 8 | low
            if not self._settings_received and (kind, flags & ACK, stream_id) != (SETTINGS, 0, 0):
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "the peer does not speak HTTP/2 (§3.4)")
            if length > self._limits.frame_octets:
                raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, f"a frame has {length} octets (§4.2)")
            end = FRAME_HEADER.size + length
            if len(self._incoming) < end:
                return
            frame = bytes(self._incoming[:end])
            del self._incoming[:end]
            yield frame

    def _receive_frame(self, frame: bytes) -> None:
        _, _, kind, flags, stream_id = FRAME_HEADER.unpack_from(frame)
        stream_id &= 0x7FFF_FFFF
        payload = frame[FRAME_HEADER.size :]
        self._check_block(kind, flags, stream_id)
        if kind > CONTINUATION:
            return  # an unknown type is ignored (§5.5); h2 reads more types than HTTP/2 itself has
        if kind == PUSH_PROMISE:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, though push is off (§8.4)")
        if kind in (GOAWAY, WINDOW_UPDATE) and payload:
            # Clear the reserved bit (§6.8, §6.9): hyperframe takes it for a part of the number.
            payload = bytes([payload[0] & 0x7F]) + payload[1:]
            frame = frame[: FRAME_HEADER.size] + payload
        self._check_empty(kind, flags, payload)
        if kind in (DATA, HEADERS, RST_STREAM, WINDOW_UPDATE) and stream_id:
            self._check_idle(stream_id)
        if kind == SETTINGS:
            self._receive_settings(frame, flags, stream_id, payload)
        elif kind == PRIORITY and stream_id and len(payload) == 5:
            pass  # §5.3.2: deprecated; h2 still judges its dependencies
        elif kind == WINDOW_UPDATE and stream_id in self._streams and payload == bytes(4):
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 (§6.9)")
        else:
            if kind == PING and not flags & ACK:
                self._count_ping()
            elif kind == RST_STREAM and stream_id not in self._streams and self._resets.exceeded(self._now):
                raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many RST_STREAM frames (§10.5)")
            elif kind == DATA and stream_id in self._streams and self._streams[stream_id].status is None:
                self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, "DATA before the response (§8.1)")
            self._feed(frame, stream_id)
            if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS and stream_id in self._given_up:
                self._given_up.discard(stream_id)  # h2 has decoded it, and told nothing
                self._late_responses += 1
        if kind in (SETTINGS, WINDOW_UPDATE):
            for waiting_id in list(self._streams):
                self._send_waiting(waiting_id)

    def _feed(self, frame: bytes, stream_id: int) -> None:
        """Give h2 one frame, and turn its events or its error into ours."""
        self._take_from_h2()
        try:
            events = self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as error:
            self._h2.clear_outbound_data_buffer()  # its GOAWAY; ours names what we decided
            self._put_state_back()
            if isinstance(error.__cause__, HPACKError):
                reason = f"header compression: {type(error.__cause__).__name__}"
                raise _ConnectionError(ErrorCode.COMPRESSION_ERROR, reason) from error
            # Outside of a block and without a cause the frames were read, and the message is wrong.
            malformed = (h2.exceptions.ProtocolError, h2.exceptions.InvalidBodyLengthError)
            in_block = self._block_stream_id or error.__cause__
            if type(error) not in malformed or in_block or stream_id not in self._streams:
                code = getattr(error, "error_code", ErrorCode.PROTOCOL_ERROR)
                raise _ConnectionError(code, str(error)) from error
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, str(error))
            return
        self._put_state_back()
        for event in events:
            self._receive_event(event)

    def _put_state_back(self) -> None:
        self._h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN

    # The guards: what the contract limits, and h2 does not.

    def _check_block(self, kind: int, flags: int, stream_id: int) -> None:
        """A header block is not interrupted (§4.3, §6.10), and is not endless (§10.5.1)."""
        if self._block_stream_id:
            if kind != CONTINUATION or stream_id != self._block_stream_id:
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted (§4.3)")
            self._block_continuations += 1
            if self._block_continuations > self._limits.continuations:
                raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATION frames (§10.5.1)")
        elif kind == CONTINUATION:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block (§6.10)")
        if kind in (HEADERS, CONTINUATION):
            self._block_stream_id = 0 if flags & END_HEADERS else stream_id
            if flags & END_HEADERS:
                self._block_continuations = 0

    def _check_empty(self, kind: int, flags: int, payload: bytes) -> None:
        if not payload and (kind == CONTINUATION or (kind == DATA and not flags & END_STREAM)):
            self._empty_frames += 1
            if self._empty_frames > self._limits.empty_frames_in_a_row:
                raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many empty frames (§10.5)")
        else:
            self._empty_frames = 0

    def _check_idle(self, stream_id: int) -> None:
        if stream_id % 2 == 0 or stream_id >= self._next_stream_id:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is idle (§5.1)")

    def _count_ping(self) -> None:
        if self._pings.exceeded(self._now):
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many PING frames (§10.5)")
        self._count_answer()

    def _count_answer(self) -> None:
        self._queued_control_frames += 1
        if self._queued_control_frames > self._limits.queued_control_frames:
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many answers are queued (§10.5)")

    def _receive_settings(self, frame: bytes, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & ACK or stream_id or len(payload) % SETTING.size:
            if not stream_id and payload:
                raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length (§6.5)")
            self._feed(frame, 0)
            return
        if self._settings.exceeded(self._now):
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many SETTINGS frames (§10.5)")
        if len(payload) > SETTING.size * self._limits.settings_entries:
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many entries in SETTINGS (§10.5)")
        self._count_answer()
        for entry in self._known_settings(SETTING.iter_unpack(payload)):
            self._feed(FRAME_HEADER.pack(0, SETTING.size, SETTINGS, 0, 0) + SETTING.pack(*entry), 0)
            self._h2.clear_outbound_data_buffer()  # the acknowledgement of a part
        # hpack would write each size in between, and so one above the final one, which no peer takes.
        if changes := self._h2.encoder.table_size_changes:
            changes[:] = sorted({min(changes), changes[-1]})
        self._settings_received = True
        self._take_from_h2()
        self._outgoing += FRAME_HEADER.pack(0, 0, SETTINGS, ACK, 0)

    def _known_settings(self, entries: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Leave out what h2 would keep for ever, and keep the encoder's table within its limit."""
        codes = h2.settings.SettingCodes
        known = set(codes)
        for code, value in entries:
            if code == codes.HEADER_TABLE_SIZE:
                table = min(value, self._limits.encoder_table_octets)
                # hpack forgets a size update that is still to be written when the size is set again.
                if table != self._h2.encoder.header_table_size:
                    yield code, table
            elif code in known:
                yield code, value

    # Events.

    def _receive_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.InformationalResponseReceived():
                self._receive_response(event.stream_id, event.headers)
            case h2.events.TrailersReceived():
                if event.stream_id in self._streams:
                    self._checked(event.stream_id, event.headers, trailers=True)
            case h2.events.DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if stream := self._streams.get(event.stream_id):
                    stream.body += event.data[: self._limits.body_octets - len(stream.body)]
            case h2.events.StreamEnded():
                if event.stream_id in self._streams:
                    self._end_stream(event.stream_id, None, "")
            case h2.events.StreamReset():
                if event.stream_id in self._streams:
                    self._receive_reset(event.stream_id, event.error_code)
            case h2.events.ConnectionTerminated():
                self._receive_goaway(event)
            case h2.events.PingAckReceived():
                if event.ping_data in self._pings_sent:
                    self._pings_sent.remove(event.ping_data)
                    self._events.append(PingAcknowledged(event.ping_data))
            case h2.events.SettingsAcknowledged():
                self._acknowledgement_due = math.inf

    def _receive_response(self, stream_id: int, headers: list[Field]) -> None:
        if stream_id not in self._streams or not self._checked(stream_id, headers, trailers=False):
            return
        stream = self._streams[stream_id]
        status = next(value for name, value in headers if name == b":status")
        if INTERIM_STATUS.fullmatch(status) and status != SWITCHING_PROTOCOLS:
            stream.interim += 1
            if stream.interim > self._limits.interim_responses:
                self._stream_error(stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too many 1xx responses (§10.5)")
        elif FINAL_STATUS.fullmatch(status):
            stream.status = int(status)
            stream.fields = [(bytes(name), bytes(value)) for name, value in headers if name[:1] != b":"]
        else:
            reason = f"malformed response: :status {status!r} (§8.3.2)"
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, reason)

    def _checked(self, stream_id: int, headers: list[Field], *, trailers: bool) -> bool:
        flags = h2.utilities.HeaderValidationFlags(
            is_client=True, is_trailer=trailers, is_response_header=not trailers, is_push_promise=False
        )
        try:
            for _ in h2.utilities.validate_headers(headers, flags):
                pass
        except h2.exceptions.ProtocolError as error:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, f"malformed response: {str(error)!r}")
            return False
        return True

    def _receive_reset(self, stream_id: int, error_code: int | None) -> None:
        code = _known(error_code)
        processed = False if code == ErrorCode.REFUSED_STREAM else None
        self._end_stream(stream_id, code, f"RST_STREAM {code.name}", processed=processed)

    def _receive_goaway(self, event: h2.events.ConnectionTerminated) -> None:
        last = event.last_stream_id or 0
        code = _known(event.error_code)
        if self._last_stream_id is not None and last > self._last_stream_id:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "a second GOAWAY has a higher stream id (§6.8)")
        self._last_stream_id = last
        reason = f"above the last stream id of GOAWAY {code.name}"
        for stream_id in [stream_id for stream_id in self._streams if stream_id > last]:
            self._end_stream(stream_id, code, reason, processed=False)
        debug = (event.additional_data or b"")[: self._limits.goaway_debug_octets]
        self._events.append(GoawayReceived(last, code, debug))

    # How streams and the connection end.

    def _stream_error(self, stream_id: int, error_code: ErrorCode, reason: str) -> None:
        # Where both sides had ended it there is nothing left to reset.
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self._h2.reset_stream(stream_id, error_code)
        self._end_stream(stream_id, error_code, reason)

    def _end_stream(
        self, stream_id: int, error_code: int | None, reason: str, *, processed: bool | None = None
    ) -> None:
        stream = self._streams.pop(stream_id)
        if error_code is None and stream.waiting:
            # The answer is whole: what is left of the request is not wanted (§8.1).
            self._h2.reset_stream(stream_id, ErrorCode.NO_ERROR)
        self._events.append(
            StreamEnded(
                stream_id,
                stream.tag,
                status=stream.status,
                processed=processed if stream.status is None else True,
                error_code=error_code,
                fields=tuple(stream.fields),
                body=bytes(stream.body),
                reason=reason,
            )
        )

    def _end(self, error_code: int, reason: str, *, goaway: bool) -> list[Event]:
        if self._closed:
            return []
        self._closed = True
        if goaway:
            self._h2.close_connection(error_code)
        for stream_id in list(self._streams):
            never_written = stream_id > self._highest_taken
            self._streams[stream_id].waiting = memoryview(b"")
            self._end_stream(stream_id, error_code, reason, processed=False if never_written else None)
        self._events.append(ConnectionEnded(error_code, reason))
        return self._take_events()


def _known(error_code: int | None) -> ErrorCode:
    """RFC 9113 §7: a code we do not know counts as INTERNAL_ERROR."""
    try:
        return ErrorCode(error_code or 0)
    except ValueError:
        return ErrorCode.INTERNAL_ERROR
