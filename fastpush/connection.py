"""One connection to APNs under trio: one reader, one writer, one keeper of its deadlines.

The engine owns every rule of the wire, this module every wait. What has ended is handed to the owner
(the pool) synchronously, so there is no point in time at which a push is nowhere.

      connecting ──SETTINGS──> open ──GOAWAY, retire()──> draining ──nothing in flight, 30 s──> closed
          └────────────────────────────── lost, refused ──────────────────────────────────────────┘
"""

from __future__ import annotations

import logging
import math
import random
import ssl
from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from fastpush._connection import Exchange, Push
from fastpush.events import ConnectionStatistics
from fastpush.http2 import (
    ConnectionEnded,
    ErrorCode,
    Event,
    GoawayReceived,
    Limits,
    PingAcknowledged,
    StreamEnded,
    open_engine,
)
from fastpush.notification import parse_error_body
from fastpush.transport import BrokenTransport, Proxy, Transport, TransportError, open_transport

__all__ = ["Connection", "Owner"]

logger = logging.getLogger("fastpush.connection")

# Seconds each.
SETTINGS_WITHIN = 5.0  # from the end of the TLS handshake to the server's SETTINGS
REQUEST_WITHIN = 10.0  # from the write of HEADERS to the end of the response
SILENCE_IN_FLIGHT = 4.0  # after the last octet received, with something outstanding: PING
SILENCE_IDLE = 60.0  # the same with nothing outstanding
PING_WITHIN = 4.0
WRITE_STALL = 5.0  # the socket takes no octet
DRAIN_WITHIN = 30.0  # after GOAWAY
MAX_REST = 0.002  # between two receives, on the bulk path
MIN_PAUSE = 0.05
MAX_PAUSE = 5.0

LAST_STREAM_ID = Limits().last_stream_id  # there a connection gives way to the next
ROTATION_SPREAD = 2**27  # or up to so many requests earlier: a quarter of them

LEAST_GATHERED = 4  # answers outstanding; of fewer, say at a stream limit of 1, there is nothing to gather

STRIKES = 3  # requests in a row that met their deadline: the connection is retired
SERVER_ERRORS = 3  # answers 500 in a row, likewise: APNs has been seen to stay in that state


class Owner(Protocol):
    """Who a connection tells. All are called from its tasks and must not wait."""

    def stream_ended(self, connection: Connection, ended: StreamEnded, now: float) -> None:
        """A push ended other than by a 200."""

    def overdue(self, connection: Connection, push: Push, now: float) -> None:
        """A push was not answered in time; its stream has been reset."""

    def progressed(self, connection: Connection) -> None:
        """There may be room, and what was told before is complete."""

    def became_ready(self, connection: Connection) -> None:
        """The server's SETTINGS are here."""

    def goaway(self, connection: Connection, reason: str | None, event: GoawayReceived) -> None:
        """GOAWAY came; `reason` is APNs' own, from its debug data."""

    def answered_ping(self, connection: Connection) -> None:
        """A PING was acknowledged."""


class Connection:
    """Made by the pool, run once by `run`, never used again.

    Attributes:
      state: as drawn above.
      answered: some request was answered: the server is well.
      told_to_go: the server sent GOAWAY.
      end_reason: why it ended; "" while it has not.
      lasting: nothing changes about that by trying again soon.
      credential_reason: set when the server refused our certificate or key on the connection.
      slot: start of the slot of the provider token in use; None before the first, and with a certificate.
      outdated: another credential has taken over; what the server says of this one no longer counts.
    """

    def __init__(
        self,
        owner: Owner,
        host: str,
        port: int,
        context: ssl.SSLContext,
        full_topic: Callable[[str | None, str], str],
        *,
        proxy: Proxy | None = None,
        lane: str = "main",
    ) -> None:
        self.owner = owner
        self.host = host
        self.port = port
        self.lane = lane
        self.state = "connecting"
        # Connections that share their load would reach the end of their stream ids together.
        self.engine = open_engine(
            limits=Limits(last_stream_id=LAST_STREAM_ID - 2 * random.randrange(ROTATION_SPREAD))
        )
        self.exchange = Exchange(self.engine, _authority(host, port), full_topic)
        self.began_at = trio.current_time()
        self.answered = False
        self.told_to_go = False
        self.end_reason = ""
        self.lasting = False
        self.credential_reason: str | None = None
        self.slot: int | None = None
        self.outdated = False
        self.ended = trio.Event()
        self.ready = trio.Event()
        self._context = context
        self._proxy = proxy
        self._transport: Transport | None = None
        self._nursery: trio.Nursery | None = None
        self._write_stalled = False
        self._stall = trio.Event()
        self._rearm = trio.Event()
        self._received_at = self.began_at
        self._pinged_at: float | None = None
        self._settings_due = math.inf
        self._drain_due = math.inf
        self._paused_until = -math.inf
        self._pause = 0.0
        self._strikes = 0
        self._server_errors = 0
        self._accepted_at_rest = 0
        self._answered_at = self.began_at
        self._seconds_an_answer = 0.0
        self._oddity_told = False

    def __repr__(self) -> str:
        return (
            f"<Connection to {self.host} port {self.port}, {self.state}, {self.exchange.in_flight} in flight>"
        )

    # What the pool does with it.

    def room(self, now: float) -> int:
        """How many pushes it takes now."""
        if self.state != "open" or now < self._paused_until:
            return 0
        return self.engine.room()

    @property
    def load(self) -> float:
        """Share of the streams in use."""
        return self.exchange.in_flight / max(1, self.engine.stream_limit)

    def authorize(self, authorization: tuple[int, bytes] | None) -> None:
        """Use this provider token, (slot, header value), from the next push on; None with a certificate."""
        if authorization is None:
            self.exchange.authorize(None)
        elif self.slot is None or authorization[0] > self.slot:
            # Never back: our clock was set back over the border of a slot, and APNs has taken the later one.
            self.slot = authorization[0]
            self.exchange.authorize(authorization[1])

    def submit(
        self,
        queue: deque[Push],
        limit: int,
        now: float,
        wall_now: float,
        apart: dict[str, None],
        set_aside: list[Push],
        failed: list[tuple[Push, Exception | None]],
    ) -> int:
        """Open streams for up to `limit` pushes; `flush` sends them. See `Exchange.submit`."""
        idle = self.exchange.in_flight == 0
        opened = self.exchange.submit(queue, limit, now, wall_now, apart, set_aside, failed)
        if idle and opened:
            self._received_at = max(self._received_at, now)  # silence counts from the first request
            self._rearm.set()
        if self.engine.draining:  # the stream ids are used up
            self.retire()
        return opened

    def withdrawn(self) -> None:
        """A stream was taken back: tell the server."""
        self.flush()
        self._close_if_drained()

    def flush(self) -> None:
        """Write what is ready, as far as the socket takes it; the writer sees to the rest."""
        if self._write_stalled or self._transport is None:
            return
        octets = self.engine.data_to_send()
        if not octets:
            return
        if not self._transport.write(octets):
            self._write_stalled = True
            self._stall.set()

    def retire(self) -> None:
        """Take no further push, finish those in flight, then close. Harmless when repeated."""
        if self.state == "connecting":
            self.stop("retired")
        elif self.state == "open":
            self.state = "draining"
            self._drain_due = trio.current_time() + DRAIN_WITHIN
            self._rearm.set()
            self._close_if_drained()

    def ping(self) -> None:
        """Ask for a sign of life now."""
        if self._pinged_at is None and self.state in ("open", "draining"):
            self._pinged_at = trio.current_time()
            self.engine.ping(b"fastpush")
            self._rearm.set()
            self.flush()

    def stop(self, reason: str) -> None:
        """End now: GOAWAY, then the outcomes of what is in flight, then the socket."""
        if self.state != "closed":
            self.end_reason = reason
            self._tell(self.engine.close(ErrorCode.NO_ERROR))
            self.flush()
            self._end(reason)

    def statistics(self) -> ConnectionStatistics:
        """A frozen picture of it."""
        transport = self._transport
        return ConnectionStatistics(
            state=self.state,
            lane=self.lane,
            peer=transport.peer if transport is not None else "",
            in_flight=self.exchange.in_flight,
            stream_limit=self.engine.stream_limit,
            send_window=self.engine.send_window,
            requests=self.engine.requests_sent,
            accepted=self.exchange.accepted,
            write_calls=transport.write_calls if transport is not None else 0,
            late_responses=self.engine.late_responses,
            age=trio.current_time() - self.began_at,
        )

    # Its life.

    async def run(self) -> None:
        """Connect and serve until the end. By then every push on it has been told of."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.state == "closed":  # stopped before it began
                    return
                try:
                    self._transport = await open_transport(
                        self.host, self.port, self._context, proxy=self._proxy
                    )
                except TransportError as error:
                    self.lasting = error.lasting
                    if error.credential:
                        self.credential_reason = error.reason
                    self._end(error.reason)
                else:
                    if self.state != "closed":  # stopped just as it came about
                        await self._serve(nursery)
        finally:
            # Reached too when the pool's nursery is cancelled at any await above.
            self._tell(self.engine.connection_lost(self.end_reason or "the client was closed"))
            self._end("the client was closed")
            if self._transport is not None:
                self._transport.close()
            self.ended.set()

    async def _serve(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        self._received_at = now
        self._settings_due = now + SETTINGS_WITHIN
        self.engine.initiate(now)
        self.flush()
        nursery.start_soon(self._read)
        nursery.start_soon(self._write)
        nursery.start_soon(self._keep_time)

    async def _read(self) -> None:
        transport = self._transport
        assert transport is not None
        rest = 0.0
        while True:
            try:
                # The tasks just woken come first, whether there is something to receive or not.
                if rest > 0.0:
                    await trio.sleep(rest)
                octets = await transport.receive(at_once=rest > 0.0)
            except BrokenTransport as error:
                self._lost(error)
                return
            if octets is None:
                self._lost(BrokenTransport("the server closed the connection"))
                return
            now = trio.current_time()
            self._received_at = now
            self._pinged_at = None
            self._tell(self.engine.receive_data(octets, now))
            if self.state == "connecting" and self.engine.settings_received:
                self.state = "open"
                self.ready.set()
                self.owner.became_ready(self)
            self.flush()
            self.owner.progressed(self)
            rest = self._rest(now)

    def _rest(self, now: float) -> float:
        """How long to let answers gather before the next receive; 0 as soon as anybody might notice.

        Where the streams are full of pushes of `send_many`, answers trickle in, and to wake for each few of
        them costs more than to handle them; some servers send as many small records of WINDOW_UPDATE, to
        which there is nothing to do at all. Half of the time in which the server would answer all that
        is in flight leaves it enough to do.
        """
        exchange = self.exchange
        answered = exchange.accepted - self._accepted_at_rest
        if answered:
            self._seconds_an_answer = (now - self._answered_at) / answered
            self._accepted_at_rest = exchange.accepted
            self._answered_at = now
        in_flight = exchange.in_flight
        if exchange.awaited or in_flight < LEAST_GATHERED or 2 * in_flight < self.engine.stream_limit:
            return 0.0
        if self.engine.window_blocked or self.state != "open":
            return 0.0
        return min(MAX_REST, self._seconds_an_answer * in_flight / 2)

    async def _write(self) -> None:
        """Sleep until the socket is full, and then send the rest as it takes it."""
        transport = self._transport
        assert transport is not None
        while True:
            await self._stall.wait()
            octets = b""
            while octets is not None:
                with trio.move_on_after(WRITE_STALL) as scope:
                    try:
                        await transport.writable()
                        if transport.flush():
                            octets = self.engine.data_to_send()
                            if not octets or transport.write(octets):
                                break
                    except BrokenTransport as error:
                        self._lost(error)
                        return
                if scope.cancelled_caught:
                    self._lost(BrokenTransport(f"the server took no octet for {WRITE_STALL:g} s"))
                    return
            self._write_stalled = False
            self._stall = trio.Event()

    async def _keep_time(self) -> None:
        while True:
            due = self._check_time(trio.current_time())
            if self.state == "closed":
                return
            with trio.move_on_at(due):
                await self._rearm.wait()
            self._rearm = trio.Event()

    def _check_time(self, now: float) -> float:
        """Do what is due and return the time of the next look."""
        if self.state == "connecting":
            if now >= self._settings_due:
                self._lost(BrokenTransport(f"the server sent no SETTINGS within {SETTINGS_WITHIN:g} s"))
            return self._settings_due
        if now >= self._drain_due:
            self._lost(BrokenTransport(f"not drained within {DRAIN_WITHIN:g} s"))
            return math.inf
        if self._pinged_at is not None and now >= self._pinged_at + PING_WITHIN:
            self._lost(BrokenTransport(f"no answer to PING within {PING_WITHIN:g} s"))
            return math.inf
        overdue = self.exchange.give_up_overdue(now, REQUEST_WITHIN)
        if overdue:
            for push in overdue:
                self.owner.overdue(self, push, now)
            self._strikes += len(overdue)
            if self._strikes >= STRIKES:
                self.retire()
        self._tell(self.engine.check_time(now))
        silence = SILENCE_IN_FLIGHT if self.exchange.in_flight else SILENCE_IDLE
        if self._pinged_at is None and now >= self._received_at + silence:
            self.ping()
        self.flush()
        if overdue or self._paused_until <= now:
            self.owner.progressed(self)
        self._close_if_drained()
        oldest = self.exchange.oldest_written_at()
        return min(
            self._drain_due,
            self.engine.next_time(),
            math.inf if oldest is None else oldest + REQUEST_WITHIN,
            self._received_at + silence if self._pinged_at is None else self._pinged_at + PING_WITHIN,
            self._paused_until if self._paused_until > now else math.inf,
        )

    # What the engine tells.

    def _tell(self, events: list[Event]) -> None:
        if not events:
            return
        now = trio.current_time()
        accepted = self.exchange.accepted
        rest = self.exchange.settle(events, now)
        if self.exchange.odd_apns_ids and not self._oddity_told:
            self._oddity_told = True
            logger.info("%s answers with another apns-id, or none; the stream tells whose it is", self.host)
        answered = self.exchange.accepted > accepted
        if answered:
            self._strikes = self._server_errors = 0
        refused = False
        for event in rest:
            if isinstance(event, StreamEnded):
                refused |= self._note(event)
                answered |= event.status is not None
                self.owner.stream_ended(self, event, now)
            elif isinstance(event, GoawayReceived):
                self._take_goaway(event)
            elif isinstance(event, PingAcknowledged):
                self.owner.answered_ping(self)
            elif isinstance(event, ConnectionEnded):
                self.flush()
                self._end(event.reason)
        if answered:
            self.answered = True
            self._pause = 0.0
        elif refused:
            # It refuses and answers nothing: wait, or it would go round as fast as the network allows.
            self._pause = min(MAX_PAUSE, max(MIN_PAUSE, 2 * self._pause))
            self._paused_until = now + self._pause
            self._rearm.set()
        if self.state == "draining":
            self._close_if_drained()

    def _note(self, ended: StreamEnded) -> bool:
        """Judge the connection by one end; True when the server refused the stream."""
        if ended.status is None:
            return ended.error_code == ErrorCode.REFUSED_STREAM
        self._strikes = 0
        self._server_errors = self._server_errors + 1 if ended.status == 500 else 0
        if self._server_errors >= SERVER_ERRORS:
            self.retire()
        return False

    def _take_goaway(self, event: GoawayReceived) -> None:
        self.told_to_go = True
        reason = _goaway_reason(event.debug_data)
        logger.info(
            "GOAWAY from %s: error code %d, last stream id %d, %s",
            self.host,
            event.error_code,
            event.last_stream_id,
            reason or "no reason given",
        )
        self.owner.goaway(self, reason, event)
        self.retire()

    def _close_if_drained(self) -> None:
        if self.state == "draining" and not self.exchange.in_flight:
            self.stop("drained")

    def _lost(self, error: BrokenTransport) -> None:
        if error.credential:
            self.credential_reason = error.reason
        self._tell(self.engine.connection_lost(error.reason))
        self._end(error.reason)

    def _end(self, reason: str) -> None:
        if self.state == "closed":
            return
        self.state = "closed"
        self.end_reason = self.end_reason or reason
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()


def _authority(host: str, port: int) -> bytes:
    """The value of `:authority` (RFC 3986 §3.2): addresses of IPv6 stand in brackets, without a zone."""
    name = host.encode("idna" if not host.isascii() else "ascii")
    if b":" in name:
        name = b"[%b]" % name.partition(b"%")[0]
    return name if port == 443 else b"%b:%d" % (name, port)


def _goaway_reason(debug_data: bytes) -> str | None:
    """APNs' reason in GOAWAY's debug data: in JSON ("Handling error responses from APNs"), or as text."""
    reason, _ = parse_error_body(debug_data)
    return reason or ascii(debug_data.decode("utf-8", "replace"))[1:-1] or None
