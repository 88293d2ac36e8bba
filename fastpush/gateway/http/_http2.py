"""HTTP/2: hypercorn's protocol over h2, with windows that open as the application reads.

A stream writes for itself as far as its window reaches, where hypercorn has a task and a tree of priorities
for it (PRIORITY is deprecated, RFC 9113 §5.3.2, and the tree could be made to raise).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import trio
from h2.settings import SettingCodes, Settings
from hpack import NeverIndexedHeaderTuple
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.utils import filter_pseudo_headers

from ._exchange import Exchange, Guard
from ._limits import MEBIOCTET, Refusal, problem, problem_headers
from ._listeners import ClientCertificate

DISCARDED = MEBIOCTET  # octets of a body taken and thrown away after an early answer
UNIQUE = frozenset((b"location", b"x-request-id", b"etag"))
VISIBLE = bytes(range(0x21, 0x7F))


def _field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A field of an answer. A value that does not come again must not push others out of the peer's table."""
    return NeverIndexedHeaderTuple(name, value) if name in UNIQUE else (name, value)


class GuardedHTTP2(H2Protocol):
    """One connection."""

    streams: dict[int, Exchange]  # type: ignore[assignment]

    def __init__(
        self,
        *of_hypercorn: Any,
        guard: Guard,
        certificate: ClientCertificate | None,
        owned_by: Callable[[str], bool],
    ) -> None:
        super().__init__(*of_hypercorn)
        limits = guard.limits
        self.guard = guard
        self.certificate = certificate
        self.owned_by = owned_by
        self.over = False
        self.connection.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_octets,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
                SettingCodes.MAX_FRAME_SIZE: limits.frame_octets,
            },
        )
        self.connection.max_inbound_frame_size = limits.frame_octets
        self._resets: deque[float] = deque()
        self._discarded: dict[int, int] = {}
        self._held: dict[int, list[tuple[bytes, bytes]]] = {}
        self._window = trio.Event()  # set when one may have opened
        self._highest = 0  # of the streams that we have taken
        self._last_stream: int | None = None  # announced by GOAWAY
        self._deadline = trio.current_time() + limits.head_seconds

    @property
    def idle(self) -> bool:
        return not self.streams

    def read_deadline(self) -> float:
        """Until when the client must have sent something more."""
        if self.over:
            return inf
        if not self.streams:
            return self._deadline
        return min(stream.deadline for stream in self.streams.values())

    def last_call(self, deadline: float) -> None:
        """The server ends: what has begun is finished, a request that arrives by then still served."""
        if not self.streams:
            self._deadline = min(self._deadline, deadline)

    async def too_late(self) -> None:
        """The deadline has passed."""
        if not self.streams:
            await self._end()
            return
        now = trio.current_time()
        for stream in [each for each in self.streams.values() if each.deadline <= now]:
            await stream.refuse_pace()

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(self.guard.limits.connection_window - 65_535)
        await self._flush()

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self.over or not event.data:
                return
            try:
                events = self.connection.receive_data(event.data)
            except h2.exceptions.ProtocolError:
                self.guard.statistics.refused["malformed"] += 1
                await self._end()
            else:
                await self._handle_events(events)
        elif isinstance(event, Closed):
            self.over = self.closed = True
            for stream_id in list(self.streams):
                await self._close_stream(stream_id)
            self._window.set()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if self.over:
                return
            if isinstance(event, h2.events.RequestReceived):
                await self._begin(event)
            elif isinstance(event, h2.events.DataReceived):
                await self._take(event)
            elif isinstance(event, h2.events.StreamEnded):
                self._discarded.pop(event.stream_id, None)
                if event.stream_id in self.streams:
                    await self.streams[event.stream_id].handle(EndBody(stream_id=event.stream_id))
            elif isinstance(event, h2.events.StreamReset):
                await self._reset(event.stream_id)
            elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                self._window.set()
            elif isinstance(event, h2.events.ConnectionTerminated):
                await self._end()
        await self._flush()

    async def _begin(self, request: h2.events.RequestReceived) -> None:
        stream_id, headers = request.stream_id, list(request.headers or [])
        if self._last_stream is not None and stream_id > self._last_stream:
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        self._highest = stream_id
        pseudo = {name: value for name, value in headers if name.startswith(b":")}
        method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
        if method == b"CONNECT":
            self._answer(stream_id, Refusal(405, "method", "CONNECT is not spoken here."))
            return
        if target.translate(None, VISIBLE) or method.translate(None, VISIBLE) or target[:1] not in b"/*":
            self._answer(stream_id, Refusal(400, "target", "The request's method or path is malformed."))
            return
        if len(headers) > self.guard.limits.head_fields + len(pseudo):
            limit = self.guard.limits.head_fields
            self._answer(
                stream_id, Refusal(431, "too many fields", f"The request has over {limit} header fields.")
            )
            return
        stream = Exchange(self, stream_id, consumed=self._consumed)
        self.streams[stream_id] = stream
        await stream.handle(
            Request(
                stream_id=stream_id,
                headers=filter_pseudo_headers(headers),
                http_version="2",
                method=method.decode("ascii").upper(),
                raw_path=target,
                state=self.connection_state,
            )
        )

    async def _take(self, event: h2.events.DataReceived) -> None:
        stream_id, octets = event.stream_id, event.flow_controlled_length or 0
        stream = self.streams.get(stream_id)
        if stream is not None:
            octets -= len(event.data)  # padding is of no use to the application
            await stream.handle(Body(stream_id=stream_id, data=event.data))
        elif stream_id in self._discarded:
            self._discarded[stream_id] += octets
            if self._discarded[stream_id] > DISCARDED:
                del self._discarded[stream_id]
                self._abandon(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        if octets:
            self.connection.acknowledge_received_data(octets, stream_id)

    async def _consumed(self, stream_id: int, octets: int) -> None:
        if self.over:
            return
        try:
            self.connection.acknowledge_received_data(octets, stream_id)
        except h2.exceptions.ProtocolError:
            return
        await self._flush()
        await self.send(Updated(idle=False))

    async def _reset(self, stream_id: int) -> None:
        """A client that opens and resets, or makes us reset, has us work for nothing (CVE-2023-44487)."""
        now, limits = trio.current_time(), self.guard.limits
        self._discarded.pop(stream_id, None)
        await self._close_stream(stream_id)
        self._window.set()
        self._resets.append(now)
        while self._resets[0] < now - limits.resets_seconds:
            self._resets.popleft()
        if len(self._resets) > limits.resets:
            self.guard.statistics.refused["resets"] += 1
            self.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            await self._end()

    async def stream_send(self, event: StreamEvent) -> None:
        if self.over:
            return
        try:
            if isinstance(event, Response):
                self._held[event.stream_id] = [
                    (b":status", b"%d" % event.status_code),
                    *[_field(name.lower(), value) for name, value in event.headers],
                    *self.config.response_headers("h2"),
                ]
            elif isinstance(event, Body):
                stream = self.streams.get(event.stream_id)
                await self._send_body(event.stream_id, event.data, stream is not None and stream.finishing)
            elif isinstance(event, EndBody):
                self._put_head(event.stream_id)
                self.connection.end_stream(event.stream_id)
                # Answers of one commit come together: they leave in one write.
                await trio.lowlevel.cancel_shielded_checkpoint()
                await self._flush()
            elif isinstance(event, StreamClosed):
                await self._finish(event.stream_id)
        except (h2.exceptions.ProtocolError, KeyError):
            await self._close_stream(event.stream_id)  # the client has reset it meanwhile

    def _put_head(self, stream_id: int) -> None:
        headers = self._held.pop(stream_id, None)
        if headers is not None:
            self.connection.send_headers(stream_id, headers)

    async def _send_body(self, stream_id: int, data: bytes, finishing: bool) -> None:
        self._put_head(stream_id)
        rest = memoryview(data)
        while rest and not self.over:
            size = min(
                len(rest),
                self.connection.local_flow_control_window(stream_id),
                self.connection.max_outbound_frame_size,
            )
            if size <= 0:
                if self._window.is_set():
                    self._window = trio.Event()
                opened = self._window  # taken before the flush, in which the stream may end
                await self._flush()
                with trio.move_on_after(self.guard.limits.write_seconds) as stalled:
                    await opened.wait()
                if stalled.cancelled_caught:
                    self.guard.statistics.refused["reads too slowly"] += 1
                    self._abandon(stream_id, h2.errors.ErrorCodes.CANCEL)
                    await self._close_stream(stream_id)
                    break
                continue
            self.connection.send_data(stream_id, bytes(rest[:size]))
            rest = rest[size:]
            if rest or not finishing:
                await self._flush()
        if not finishing:
            await self._flush()

    async def _finish(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if stream_id in self._held or stream.state.name not in ("CLOSED",):
            self._held.pop(stream_id, None)
            self._abandon(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        elif not stream.ended:
            self._discarded[stream_id] = 0
        if stream.buffered:
            self.connection.acknowledge_received_data(stream.buffered, stream_id)
        await self._close_stream(stream_id)
        await self._flush()
        if not self.streams:
            self._deadline = trio.current_time() + self.guard.limits.keep_alive
            if self.context.terminated.is_set():
                await self._end()
                return
        await self.send(Updated(idle=not self.streams))

    def _abandon(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        with suppress(h2.exceptions.ProtocolError):  # closed already
            self.connection.reset_stream(stream_id, code)

    async def _close_stream(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        self._held.pop(stream_id, None)
        if stream is not None:
            await stream.handle(StreamClosed(stream_id=stream_id))
            if not self.streams:
                self._deadline = trio.current_time() + self.guard.limits.keep_alive

    def _answer(self, stream_id: int, refusal: Refusal) -> None:
        """Answer what is no request of the application."""
        self.guard.statistics.refused[refusal.reason] += 1
        body = problem(refusal.status, refusal.detail)
        headers = [(b":status", b"%d" % refusal.status), *problem_headers(body)]
        self.connection.send_headers(stream_id, headers + self.config.response_headers("h2"))
        if self.connection.local_flow_control_window(stream_id) < len(body):
            self._abandon(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        self.connection.send_data(stream_id, body, end_stream=True)
        self._discarded[stream_id] = 0

    async def go_away(self) -> None:
        """Take no more streams than there are. h2 would take our GOAWAY for the end of all of them."""
        if self._last_stream is None and not self.over:
            self._last_stream = self._highest
            frame = struct.pack(">BHBBLLL", 0, 8, 7, 0, 0, self._highest, 0)
            await self._flush()
            await self.send(RawData(data=frame))

    async def _end(self) -> None:
        if not self.over:
            self.over = True
            self._window.set()
            with suppress(h2.exceptions.ProtocolError):
                self.connection.close_connection()
            await self._flush()
        await self.send(Closed())
