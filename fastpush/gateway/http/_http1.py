"""HTTP/1.1: hypercorn's protocol over h11, with the head read before h11 reads it."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from math import inf
from typing import Any

import h11
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol

from ._exchange import Exchange, Guard
from ._head import flaw_of_chunked_end, flaw_of_framing, flaw_of_head, origin_form
from ._limits import KIBIOCTET, Refusal, problem, problem_headers
from ._listeners import ClientCertificate

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}  # some clients cannot do without
BUFFERED = 256 * KIBIOCTET  # octets of a body that wait for the application before we stop reading


class GuardedHTTP1(H11Protocol):
    """One connection. The head of an answer is held and leaves with the first octets of its body."""

    stream: Exchange | None
    connection: h11.Connection

    def __init__(
        self,
        *of_hypercorn: Any,
        guard: Guard,
        certificate: ClientCertificate | None,
        owned_by: Callable[[str], bool],
    ) -> None:
        super().__init__(*of_hypercorn)
        self.guard = guard
        self.certificate = certificate
        self.owned_by = owned_by
        self.over = False
        self._room = trio.Event()
        self._held: Response | None = None
        self._unsent: list[bytes] = []
        self._chunked = False
        self._deadline = trio.current_time() + guard.limits.head_seconds  # for the head, or to begin one
        self._in_head = True

    @property
    def idle(self) -> bool:
        """Between two requests."""
        return self.stream is None and not self.over

    def read_deadline(self) -> float:
        """Until when the client must have sent something more."""
        if self.over:
            return inf
        return self._deadline if self.stream is None else self.stream.deadline

    def last_call(self, deadline: float) -> None:
        """The server ends: a request that begins by then is still served."""
        self._deadline = min(self._deadline, deadline)

    async def too_late(self) -> None:
        """The deadline has passed."""
        if self.stream is not None:
            await self.stream.refuse_pace()
        elif self.connection.trailing_data[0]:
            await self._refuse(Refusal(408, "head too slow", "The request's head came too slowly."))
        else:
            await self._end()

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            self.connection.receive_data(event.data)
            await self._handle_events()
        elif isinstance(event, Closed):
            self.over = True
            self._room.set()
            await self.can_read.set()
            await self._close_stream()

    async def _handle_events(self) -> None:
        connection = self.connection
        while not self.over:
            before = b""
            if connection.their_state is h11.IDLE:
                before = connection.trailing_data[0]
                if before and not self._in_head:
                    self._in_head = True
                    self._deadline = trio.current_time() + self.guard.limits.head_seconds
                flaw = flaw_of_head(before, self.guard.limits)
                if flaw is not None:
                    await self._refuse(flaw)
                    return
            elif self._chunked and connection.their_state is h11.SEND_BODY:
                before = connection.trailing_data[0]
            if connection.they_are_waiting_for_100_continue:
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                await self._refuse(Refusal(status, "malformed", "The request cannot be read as HTTP/1.1."))
                return
            if isinstance(event, h11.Request):
                await self._begin(event)
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self.can_read.wait()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA or self.stream is None:
                return
            elif isinstance(event, h11.Data):
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
                while self.stream is not None and self.stream.buffered >= BUFFERED and not self.over:
                    self._room = trio.Event()
                    await self._room.wait()
            elif isinstance(event, h11.EndOfMessage):
                if self._chunked:
                    left = len(connection.trailing_data[0])
                    flaw = flaw_of_chunked_end(before[: len(before) - left])
                    if flaw is not None:
                        await self._refuse(flaw)
                        return
                await self.stream.handle(EndBody(stream_id=STREAM_ID))

    async def _begin(self, request: h11.Request) -> None:
        headers = list(request.headers)
        self._in_head = False
        await self.send(Updated(idle=False))
        flaw = flaw_of_framing(request.http_version, headers)
        form = origin_form(request.target, headers)
        if flaw is None and request.http_version not in (b"1.1", b"1.0"):
            flaw = Refusal(505, "version", "HTTP/1.1 is spoken here, and HTTP/2 over TLS.")
        if flaw is None and form is None:
            flaw = Refusal(400, "target", "The request's target is neither a path nor an http URL.")
        if flaw is not None or form is None:
            assert flaw is not None
            await self._refuse(flaw)
            return
        target, headers = form
        self._chunked = any(name == b"transfer-encoding" for name, _ in headers)
        self.stream = Exchange(self, STREAM_ID, consumed=self._consumed)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode("ascii"),
                method=request.method.decode("ascii").upper(),
                raw_path=target,
                state=self.connection_state,
            )
        )

    async def _consumed(self, stream_id: int, octets: int) -> None:
        self._room.set()
        await self.send(Updated(idle=False))

    async def stream_send(self, event: StreamEvent) -> None:
        if self.over and not isinstance(event, StreamClosed):
            return
        if isinstance(event, Response):
            self._held = event
        elif isinstance(event, Body):
            self._put_head()
            self._put(h11.Data(data=event.data))
            if self.stream is None or not self.stream.finishing:
                await self._flush()
        elif isinstance(event, EndBody):
            self._put_head()
            self._put(h11.EndOfMessage())
            await self._flush()
        elif isinstance(event, StreamClosed):
            await self._maybe_recycle()

    def _put_head(self) -> None:
        if self._held is None:
            return
        response, self._held = self._held, None
        headers = [*response.headers, *self.config.response_headers("h11")]
        early = self.stream is not None and self.stream.finishing and not self.stream.ended
        if self.context.terminated.is_set() or early:  # no further request can follow
            headers.append((b"connection", b"close"))
        reason = REASONS.get(response.status_code, b"")
        self._put(h11.Response(status_code=response.status_code, headers=headers, reason=reason))

    def _put(self, event: h11.Event) -> None:
        octets = self.connection.send(event)
        if octets:
            self._unsent.append(octets)

    async def _flush(self) -> None:
        if self._unsent:
            octets = b"".join(self._unsent)
            self._unsent.clear()
            await self.send(RawData(data=octets))

    async def _maybe_recycle(self) -> None:
        if self._held is not None and not self.over:  # an answer that the application did not finish
            self._put_head()
            await self._flush()
        if self.stream is None:
            return
        await self._close_stream()
        connection = self.connection
        if self.over or self.context.terminated.is_set():
            await self._end()
        elif connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            connection.start_next_cycle()
            self._chunked = False
            self._in_head = False
            self._deadline = trio.current_time() + self.guard.limits.keep_alive
            await self.can_read.set()
            await self.send(Updated(idle=True))
        else:
            await self._end()

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer what is no request of the application, and end the connection."""
        if self.stream is not None:
            await self.stream.refuse(refusal)
        else:
            self.guard.statistics.refused[refusal.reason] += 1
            if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                body = problem(refusal.status, refusal.detail)
                headers = [*problem_headers(body), *self.config.response_headers("h11")]
                headers.append((b"connection", b"close"))
                reason = REASONS.get(refusal.status, b"")
                self._put(h11.Response(status_code=refusal.status, headers=headers, reason=reason))
                self._put(h11.Data(data=body))
                self._put(h11.EndOfMessage())
                await self._flush()
        await self._end()

    async def _end(self) -> None:
        self.over = True
        self._room.set()
        await self.can_read.set()
        await self.send(Closed())
