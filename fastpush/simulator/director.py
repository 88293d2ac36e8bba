"""Decides what each connection does: rules and faults on one side, the compiled connection on the other.

Everything here is synchronous and without I/O. `Director` is the host of all connections of a simulator.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastpush.http2._hpack import Decoder, Encoder
from fastpush.simulator import faults as f
from fastpush.simulator._server import (
    ACCEPTED,
    MALFORMED,
    REFUSED,
    REJECTED,
    SWALLOWED,
    UNANSWERED,
    ServerConnection,
    Shared,
)
from fastpush.simulator.rules import (
    Binding,
    Certificate,
    Delivery,
    Malformed,
    Request,
    Verdict,
    World,
    judge,
    read_request,
)

__all__ = ["ConnectionState", "Director", "state_of"]

HEADER_TABLE_SIZE = 0x1
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

# What every log of APNs shows (pushy issues, 2016 to 2026).
TABLE_OCTETS = 4_096
WINDOW_OCTETS = 65_535
FRAME_OCTETS = 16_384
HEADER_LIST_OCTETS = 8_000

LARGEST_STREAM_ID = 2**31 - 1
PROTOCOL_ERROR = 0x1
STREAM_CLOSED = 0x5


@dataclass(slots=True, eq=False)
class ConnectionState:
    """What the director keeps beside a connection."""

    binding: Binding
    full_limit: int
    """The stream limit it has when all is well."""
    proven: bool
    """The full limit has been granted."""
    wedged: bool = False
    """A provider token was too old: one stream at a time from now on."""
    collapses: bool = False
    rejections_left: int | None = None
    stalled_until: float = -math.inf
    trickle: f.Trickle | None = None
    timers: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)


def state_of(connection: ServerConnection) -> ConnectionState:
    """Give what the director keeps beside a connection."""
    state = connection.state
    assert isinstance(state, ConnectionState)
    return state


class Director:
    """The host of all connections.

    Args:
      stream_limit: what a connection may have open at once when all is well.
      probing: without a certificate, allow one stream until the first good request was answered.
      clock: gives UNIX seconds.
    """

    def __init__(
        self,
        world: World,
        shared: Shared,
        plan: f.FaultPlan,
        *,
        stream_limit: int,
        probing: bool,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.world = world
        self.shared = shared
        self.plan = plan
        self.stream_limit = stream_limit
        self.probing = probing
        self.clock = clock
        self.monotonic = monotonic
        self.phones: dict[bytes, Callable[[Delivery], object]] = {}
        self._order = itertools.count()
        self._opened = 0
        self.script_changed()

    def open_connection(self, certificate: Certificate | None) -> ServerConnection:
        """Make the server's side of a new connection; its first octets are ready."""
        self._opened += 1
        connection = ServerConnection(
            self.shared,
            self,
            self._opened,
            decoder=Decoder(TABLE_OCTETS, HEADER_LIST_OCTETS),
            encoder=Encoder(TABLE_OCTETS),
        )
        probes = self.probing and certificate is None
        state = ConnectionState(Binding(certificate), self.stream_limit, not probes)
        connection.state = state
        connection.initiate(
            {
                HEADER_TABLE_SIZE: TABLE_OCTETS,
                MAX_CONCURRENT_STREAMS: 1 if probes else self.stream_limit,
                INITIAL_WINDOW_SIZE: WINDOW_OCTETS,
                MAX_FRAME_SIZE: FRAME_OCTETS,
                MAX_HEADER_LIST_SIZE: HEADER_LIST_OCTETS,
            }
        )
        for fault in self.plan.at_open(connection.number):
            self._disturb(connection, fault, None)
        if certificate is not None and certificate.expires_at < math.inf:
            self._later(connection, certificate.expires_at - self.clock(), lambda: self._expire(connection))
        if certificate is not None and self.world.environment not in certificate.environments:
            self.refuse_credential(connection, "BadCertificateEnvironment")
        self.plan_ahead(connection)
        return connection

    def refuse_credential(self, connection: ServerConnection, reason: str) -> None:
        """End a connection as APNs does for a bad certificate: GOAWAY NO_ERROR, last stream id 0, close."""
        connection.send_goaway(0, 0, json.dumps({"reason": reason}, separators=(",", ":")).encode())
        connection.closing = "flush"

    def _expire(self, connection: ServerConnection) -> None:
        """The client's certificate has run out on an open connection (pushy issue 609)."""
        self.send_goaway(connection, connection.last_stream_id, debug_data=b'{"reason":"Shutdown"}')
        connection.drains = True

    def plan_ahead(self, connection: ServerConnection) -> None:
        """Tell a connection which requests to ask about."""
        connection.latency = self.plan.steady_delay(connection.number)
        connection.ask_from = self.plan.next_request(connection.number, connection.requests)
        self.shared.ask_from = self.plan.next_overall(self.shared.requests)

    def script_changed(self) -> None:
        """Faults, devices or rules changed: what connections remember to be good is void."""
        self.shared.generation += 1
        self.shared.scripted = dict.fromkeys(self.plan.device_tokens() | self.world.devices.keys())

    # What a connection asks.

    def consult(
        self, connection: ServerConnection, number: int, device_token: bytes | None
    ) -> tuple[float, list[f.Fault] | None]:
        due = self.plan.at_request(connection.number, number, self.shared.requests, device_token or b"")
        delay = connection.latency
        others: list[f.Fault] = []
        for fault in due:
            if isinstance(fault, f.Delay):
                delay += fault.seconds + (self.plan.draw_spread(fault.spread) if fault.spread else 0.0)
            else:
                others.append(fault)
        self.plan_ahead(connection)
        if (device_token or b"").lower() in self.world.devices:
            return delay, others
        return delay, others or None

    def handle(
        self,
        connection: ServerConnection,
        stream_id: int,
        fields: Sequence[tuple[bytes, bytes]],
        body: bytes,
        faults: object,
    ) -> tuple[float, int] | None:
        due: Sequence[f.Fault] = faults if isinstance(faults, list) else ()
        for fault in due:
            if fault.OF_CONNECTION and self._disturb(connection, fault, stream_id):
                return None
        try:
            request = read_request(fields, body)
        except Malformed:
            connection.reset(stream_id, PROTOCOL_ERROR, MALFORMED)
            return None
        for fault in due:
            if not fault.OF_CONNECTION:
                self._mistreat(connection, stream_id, fault)
                return None
        state = state_of(connection)
        verdict = judge(request, state.binding, self.world, self.shared.wall)
        ends_connection = [fault for fault in due if isinstance(fault, f.Close)]
        if ends_connection:
            self._close_while_answering(connection, stream_id, ends_connection[0], verdict)
            return None
        self._answer(connection, stream_id, request, verdict)
        if verdict.status == 200 and self.phones:
            self._ring(request)
        if verdict.status != 200 or state.collapses or not state.proven:
            return None
        return verdict.good_until, verdict.payload_limit

    def _ring(self, request: Request) -> None:
        """Hand a push to whoever plays the phone."""
        device_token = request.path.rpartition(b"/")[2].lower()
        phone = self.phones.get(device_token)
        if phone is None:
            return

        def told(name: bytes) -> str | None:
            value = request.headers.get(name)
            return None if value is None else value.decode("latin-1")

        phone(
            Delivery(
                device_token.decode("latin-1"),
                told(b"apns-id"),
                told(b"apns-push-type"),
                int(told(b"apns-priority") or 10),
                told(b"apns-collapse-id"),
                told(b"apns-topic"),
                bytes(request.payload),
                self.clock(),
            )
        )

    # Time.

    def next_time(self, connection: ServerConnection) -> float:
        timers = state_of(connection).timers
        return min(connection.next_time(), timers[0][0] if timers else math.inf)

    def check_time(self, connection: ServerConnection, now: float) -> None:
        timers = state_of(connection).timers
        while timers and timers[0][0] <= now:
            heapq.heappop(timers)[2]()
        connection.check_time(now)

    def _later(self, connection: ServerConnection, seconds: float, act: Callable[[], None]) -> None:
        entry = (self.monotonic() + seconds, next(self._order), act)
        heapq.heappush(state_of(connection).timers, entry)

    # Answers.

    def _answer(
        self, connection: ServerConnection, stream_id: int, request: Request, verdict: Verdict
    ) -> None:
        state = state_of(connection)
        if verdict.binding is not None:
            state.binding = verdict.binding
        if verdict.status == 200:
            connection.answer(stream_id, 200, (), b"", ACCEPTED)
            self._grant(connection)
            return
        connection.answer(
            stream_id, verdict.status, _JSON, make_body(verdict.reason, verdict.timestamp), REJECTED
        )
        if verdict.wedged:
            state.wedged = True
            self.limit_streams(connection, 1, strict=True)
        elif state.collapses and connection.stream_limit > 1:
            self.limit_streams(connection, 1, strict=True)
        self._count_rejection(connection, verdict.status)

    def _count_rejection(self, connection: ServerConnection, status: int) -> None:
        state = state_of(connection)
        if state.rejections_left is None or status == 410:
            return
        state.rejections_left -= 1
        if state.rejections_left == 0 and not connection.closing:
            connection.send_goaway(connection.judged_stream_id, 0, b"")
            connection.drains = True

    def _grant(self, connection: ServerConnection) -> None:
        """A request was accepted: the full limit, the first time or after a collapse."""
        state = state_of(connection)
        if state.wedged:
            return
        if not state.proven or (state.collapses and connection.stream_limit < state.full_limit):
            state.proven = True
            self.limit_streams(connection, state.full_limit)

    def limit_streams(self, connection: ServerConnection, limit: int, *, strict: bool = False) -> None:
        connection.send_settings({MAX_CONCURRENT_STREAMS: limit}, strict)

    # Faults.

    def _mistreat(self, connection: ServerConnection, stream_id: int, fault: f.Fault) -> None:
        """Do to one request what a fault says."""
        match fault:
            case f.Answer():
                self._answer_by_hand(connection, stream_id, fault)
            case f.Swallow():
                connection.swallow(stream_id, UNANSWERED if fault.processed else SWALLOWED)
            case f.Refuse():
                fate = UNANSWERED if fault.processed else REFUSED if fault.error_code == 7 else SWALLOWED
                connection.reset(stream_id, fault.error_code, fate)
                if fault.twice:
                    connection.send_rst_stream(stream_id, STREAM_CLOSED)
            case _:
                raise TypeError(f"no fault of a request: {type(fault).__name__}")

    def _answer_by_hand(self, connection: ServerConnection, stream_id: int, fault: f.Answer) -> None:
        fate = ACCEPTED if fault.status == 200 else REJECTED
        body = make_body(fault.reason, fault.timestamp) if fault.body is None else fault.body
        fields = fault.fields
        if fault.body is None and body:
            fields = (*_JSON, *fields)
        if fault.retry_after is not None:
            fields = (*fields, (b"retry-after", str(fault.retry_after).encode()))
        by_hand = fault.pieces > 1 or fault.padding or fault.interim or fault.trailers or not fault.apns_id
        if not by_hand:
            connection.answer(stream_id, fault.status, fields, body, fate)
        else:
            for _ in range(fault.interim):
                connection.begin_answer(stream_id, 103, (), apns_id=False)
            connection.begin_answer(stream_id, fault.status, fields, apns_id=fault.apns_id)
            for piece, last in _cut(body, fault.pieces):
                connection.send_data(stream_id, piece, last and not fault.trailers, fault.padding)
            if fault.trailers:
                connection.send_trailers(stream_id, fault.trailers)
            connection.end_answer(stream_id, fault.status, fate)
        if fate == ACCEPTED:
            self._grant(connection)
        else:
            state = state_of(connection)
            if state.collapses and connection.stream_limit > 1:
                self.limit_streams(connection, 1, strict=True)
            self._count_rejection(connection, fault.status)

    def _close_while_answering(
        self, connection: ServerConnection, stream_id: int, fault: f.Close, verdict: Verdict
    ) -> None:
        """Deliver it if the rules say so, then cut the answer short."""
        before = connection.octets_ready()
        status, fate = verdict.status, ACCEPTED if verdict.status == 200 else REJECTED
        connection.answer(stream_id, status, (), make_body(verdict.reason, verdict.timestamp), fate)
        connection.discard_output(before + fault.octets)
        connection.closing = _CLOSINGS[fault.how]

    def _disturb(self, connection: ServerConnection, fault: f.Fault, stream_id: int | None) -> bool:
        """Do to a connection what a fault says; True when `stream_id` is settled by that."""
        state = state_of(connection)
        match fault:
            case f.Goaway():
                return self._send_goaway(connection, fault, stream_id)
            case f.Close():
                if fault.processed and stream_id is not None:
                    return False
                connection.closing = _CLOSINGS[fault.how]
                return True
            case f.TlsAlert():
                connection.closing = "alert"
                return True
            case f.Settings():
                self._change_settings(connection, fault)
            case f.Stall():
                state.stalled_until = max(state.stalled_until, self.monotonic() + fault.seconds)
            case f.Trickle():
                state.trickle = fault
            case f.SendOctets():
                connection.send_octets(fault.octets)
            case f.IgnorePings():
                connection.answers_pings = False
            case f.KeepWindow():
                connection.returns_window = False
            case f.LeaveSettingsUnacknowledged():
                connection.acknowledges_settings = False
            case f.Collapse():
                state.collapses = True
                self.shared.generation += 1  # every rejection and acceptance is of interest now
            case f.RejectionLimit():
                state.rejections_left = fault.rejections
            case _:
                raise TypeError(f"no fault of a connection: {type(fault).__name__}")
        return False

    def _change_settings(self, connection: ServerConnection, fault: f.Settings) -> None:
        before = connection.stream_limit
        named = {
            HEADER_TABLE_SIZE: fault.table_octets,
            MAX_CONCURRENT_STREAMS: fault.stream_limit,
            INITIAL_WINDOW_SIZE: fault.initial_window,
            MAX_FRAME_SIZE: fault.frame_octets,
            MAX_HEADER_LIST_SIZE: fault.header_list_octets,
        }
        connection.send_settings(
            {name: value for name, value in named.items() if value is not None}, fault.strict
        )
        if fault.restored_after is not None:
            self._later(connection, fault.restored_after, lambda: self.limit_streams(connection, before))

    def _send_goaway(self, connection: ServerConnection, fault: f.Goaway, stream_id: int | None) -> bool:
        here = stream_id or 0
        # An answered stream cannot be taken back, so the lowest truthful id is never below it for real.
        last = {"here": here, "before": max(here - 2, 0), "zero": 0, "max": LARGEST_STREAM_ID}.get(
            str(fault.last), fault.last
        )
        assert isinstance(last, int)
        self.send_goaway(
            connection, last, error_code=fault.error_code, debug_data=fault.debug_data, copies=fault.copies
        )
        if last == LARGEST_STREAM_ID and fault.real_after is not None:

            def settle() -> None:
                self.send_goaway(connection, connection.judged_stream_id, debug_data=fault.debug_data)
                connection.drains = fault.close == "drained"

            self._later(connection, fault.real_after, settle)
        elif fault.close == "drained":
            connection.drains = True
        elif fault.close == "at once":
            connection.closing = "flush"
        return here > last or fault.close == "at once"

    def send_goaway(
        self,
        connection: ServerConnection,
        last: int,
        *,
        error_code: int = 0,
        debug_data: bytes = b"",
        copies: int = 1,
    ) -> None:
        for copy in range(copies):
            connection.send_goaway(last, error_code, b"" if copy else debug_data)


_JSON = ((b"content-type", b"application/json"),)
_CLOSINGS = {"fin": "cut", "close notify": "flush", "reset": "reset"}


def make_body(reason: str | None, timestamp: int | None) -> bytes:
    """Write the JSON object of a rejection; empty without a reason."""
    if reason is None:
        return b""
    content: dict[str, object] = {"reason": reason}
    if timestamp is not None:
        content["timestamp"] = timestamp
    return json.dumps(content, separators=(",", ":")).encode()


def _cut(body: bytes, pieces: int) -> list[tuple[bytes, bool]]:
    """Cut a body into pieces of about the same size, each with whether it is the last."""
    size = max(1, math.ceil(len(body) / pieces))
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    return [(part, at == len(parts) - 1) for at, part in enumerate(parts)]
