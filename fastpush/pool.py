"""Which connection takes the next push; opening, draining and replacing connections; back-off.

Pushes wait in one queue a lane. There are two lanes: the main one, and one connection of its own for
device tokens that were lately rejected, since APNs slows a connection down for each rejection. The queue
is emptied by `pump`: whenever something progressed, each connection takes as much as it has room for.

All that happens here is synchronous, but for the opener, which makes connections, and the clock, which
brings back what waits for its next attempt.
"""

from __future__ import annotations

import logging
import math
import os
import random
import ssl
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from fastpush import retry
from fastpush._connection import Collector, Push
from fastpush.apart import Apart
from fastpush.connection import Connection
from fastpush.credentials import Credential, ProviderCertificate, SigningKey
from fastpush.ending import Endings, NoVerdict
from fastpush.errors import (
    CredentialRefused,
    FastpushError,
    InvalidNotification,
    NotSent,
    OutcomeUnknown,
)
from fastpush.events import (
    ClientEvent,
    ClientStatistics,
    Connected,
    CredentialWasRefused,
    DeviceTokenDead,
    Draining,
    Lost,
)
from fastpush.http2 import GoawayReceived, StreamEnded
from fastpush.notification import (
    parse_error_body,
    topic_for,
    unregistered_at,
)
from fastpush.proof import Prover, check_same_owner, first, http_date
from fastpush.retry import Action, ConnectPace
from fastpush.transport import Proxy

__all__ = ["Pool"]

logger = logging.getLogger("fastpush.pool")

WARM_CONNECTIONS = 2  # kept open, so that one can drain while the other works
PROBE_EVERY = 60.0  # seconds between two tries of a credential that APNs refuses
LIVED = 10.0  # seconds after which the end of a connection without any answer is no failure to connect
STALL_BEFORE_GROWTH = 0.05  # seconds lost to stream limit or window before another connection is opened
GATHER_FOR = 0.02  # seconds at most in which answers are gathered before the queue is looked at again
EXPIRE_EVERY = 1.0  # seconds between two looks at the expirations of what is queued and cannot go
MOST_APART = 8_192  # pushes kept aside (device tokens to wait, or lately rejected) before inputs wait
RESERVE = 64  # pushes queued beyond the room there is, so that answers are followed by requests at once


@dataclass(slots=True)
class _Lane:
    name: str
    most: int
    queue: deque[Push] = field(default_factory=deque)
    connections: list[Connection] = field(default_factory=list)
    again: list[Push] = field(default_factory=list)  # goes back to the head of the queue, in this order
    wanted: int = 0  # how many connections there should be

    def living(self) -> int:
        return sum(connection.state in ("connecting", "open") for connection in self.connections)


@dataclass(frozen=True, slots=True)
class _Stop:
    """Why nothing goes out: the error that each push gets, and whether a push may try it out."""

    error: NoVerdict
    reason: str


class Pool:
    """All connections for one credential to one host. Made by `open_client`, which runs `run`.

    Attributes:
      now: trio's clock. Asking it so costs a third of `trio.current_time`, which looks for the run first.
    """

    def __init__(
        self,
        credential: Credential,
        *,
        host: str,
        port: int,
        topic: str | None,
        environment: str,
        ca_file: str | None,
        proxy: Proxy | None,
        max_connections: int,
        listener: Callable[[ClientEvent], object] | None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        now = trio.current_time()
        self.now = trio.lowlevel.current_clock().current_time
        self._process = os.getpid()
        self.credential = credential
        self.environment = environment
        self.topic = topic if topic is not None else _only_topic(credential)
        self._host = host
        self._port = port
        self._ca_file = ca_file
        self._proxy = proxy
        self._listener = listener
        self._wall_clock = wall_clock
        self._context = credential.ssl_context(ca_file=ca_file)
        self._main = _Lane("main", max_connections, wanted=min(WARM_CONNECTIONS, max_connections))
        self._rejected = _Lane("rejected", 1)
        self._lanes = (self._main, self._rejected)
        self._pace = ConnectPace(max_connections + 1, now)
        self._budget = retry.Budget(now)
        self._nursery: trio.Nursery | None = None
        self._work = trio.Event()
        self._changed = trio.Event()
        self._idle = trio.Event()
        self._feeders = trio.lowlevel.ParkingLot()
        self._held_back = 0  # inputs that wait although there are streams, since these are for others
        self._readiness = trio.lowlevel.ParkingLot()
        self._stop: _Stop | None = None
        self._probe_at = math.inf
        self._draining = False
        self._closed = False
        self._apart = Apart()
        self._later_changed = trio.Event()
        self._pump_at = math.inf  # when the queue is looked at although nothing has happened
        self._expired_at = now
        self._stalled_since: float | None = None
        self._stalled_on = "streams"
        self._stalled = {"streams": 0.0, "window": 0.0}
        self._stalled_at_growth = 0.0
        self._endings = Endings()
        self._resent = 0
        self._accepted_before = 0  # by connections that are gone

    # Taking pushes.

    def enqueue(self, push: Push) -> None:
        """Queue one push; it goes out with the next turn of the pump."""
        queue = self._main.queue
        if not queue:  # the first of a turn; a system call for each push would be a tenth of its cost
            self.check_process()
            self._work.set()
        if (self._stop is None and not self._closed) or self._may_queue(push):
            queue.append(push)

    def take_from(self, pull: Callable[[deque[Push]], bool]) -> bool:
        """Let `pull` put pushes into the queue, and send. Returns what `pull` returns."""
        queue = self._main.queue
        before = len(queue)
        try:
            return pull(queue)
        finally:
            if self._stop is not None or self._closed:
                taken = [queue.pop() for _ in range(len(queue) - before)]
                queue.extend(push for push in reversed(taken) if self._may_queue(push))
            self.pump()

    def space(self, reserve: float = 0.0) -> int:
        """How many pushes the queue takes from inputs that can wait.

        `reserve` is the share of the streams that such an input leaves to others. Then nothing is queued
        beyond the room there is, or it would take the reserve when an answer comes.
        """
        if self._stop is not None or self._closed:
            return RESERVE
        if len(self._rejected.queue) + len(self._apart) >= MOST_APART:
            return 0
        now = trio.current_time()
        connections = self._main.connections
        room = sum(connection.room(now) for connection in connections)
        if not reserve:
            return room + RESERVE - len(self._main.queue)
        limit = in_flight = 0
        for connection in connections:
            if connection.state == "open":
                limit += connection.engine.stream_limit
                in_flight += connection.exchange.in_flight
        return min(room, limit - int(reserve * limit) - in_flight) - len(self._main.queue)

    def check_process(self) -> None:
        """Refuse to work in a forked child: it shares sockets and TLS state with its parent.

        Raises:
          FastpushError: saying so.
        """
        if os.getpid() != self._process:
            raise FastpushError(
                f"this client belongs to process {self._process} and not to its child {os.getpid()}: "
                "connections do not survive a fork; open a client in the child"
            )

    async def wait_for_space(self, *, held_back: bool = False) -> None:
        """Sleep until `space` may have grown. `held_back`: only for the streams that it leaves to others."""
        self._held_back += held_back
        if held_back:
            self._note_stall(trio.current_time())
        try:
            await self._feeders.park()
        finally:
            self._held_back -= held_back

    def wake_feeders(self) -> None:
        """Let those who sleep in `wait_for_space` look again."""
        self._feeders.unpark_all()

    def abandon(self, push: Push) -> None:
        """Its caller went away: withdraw it, or reset its stream."""
        exchange = push.abandon()
        if exchange is not None:
            for lane in self._lanes:
                for connection in list(lane.connections):
                    if connection.exchange is exchange:
                        connection.withdrawn()
        self._work.set()  # its stream is free for another; a push that was queued is swept out there

    def withdraw(self, collector: Collector) -> None:
        """Its `send_many` was left: drop what is not written; what is in flight ends unseen."""
        queued = (push for lane in self._lanes for push in [*lane.queue, *lane.again])
        for push in [*queued, *self._apart]:
            if push.belongs_to(collector):
                push.abandon()
        self._work.set()

    def _may_queue(self, push: Push) -> bool:
        stop = self._stop
        if self._closed:
            self._endings.without_verdict(push, NotSent, "the client is closed")
        elif stop is None:
            return True
        elif trio.current_time() >= self._probe_at:
            self._probe_at = trio.current_time() + PROBE_EVERY
            self._changed.set()
            return True
        else:
            self._endings.without_verdict(push, stop.error, stop.reason)
        return False

    # Sending them.

    def pump(self) -> None:
        """Give the queues to the connections, as far as there is room, and write."""
        self.check_process()
        now = trio.current_time()
        wall_now = self._wall_clock()
        authorization = self.credential.authorization(wall_now)
        for lane in self._lanes:
            if lane.again:
                lane.queue.extendleft(reversed(lane.again))
                lane.again.clear()
            if lane.queue:
                self._pump_lane(lane, now, wall_now, authorization)
        self._note_stall(now)
        if self._feeders and self.space() >= RESERVE // 2:
            self._feeders.unpark_all()
        self._check_idle()

    def _pump_lane(
        self, lane: _Lane, now: float, wall_now: float, authorization: tuple[int, bytes] | None
    ) -> None:
        queue = lane.queue
        set_aside: list[Push] = []
        failed: list[tuple[Push, Exception | None]] = []
        apart = self._apart.device_tokens if lane is self._main else {}
        ready = [connection for connection in lane.connections if connection.room(now) > 0]
        used = []
        while queue and ready:
            ready.sort(key=_load)
            share = -(-len(queue) // len(ready))
            still = []
            for connection in ready:
                connection.authorize(authorization)
                begun = connection.exchange.begun
                opened = connection.submit(queue, share, now, wall_now, apart, set_aside, failed)
                self._budget.deposit(connection.exchange.begun - begun)
                if opened:
                    used.append(connection)
                if opened and connection.room(now) > 0:
                    still.append(connection)
            ready = still
        for connection in used:
            connection.flush()
        for push, error in failed:
            self._endings.failed(push, error)
        for push in set_aside:
            self._set_aside(push, now)
        if queue:
            if now >= self._expired_at + EXPIRE_EVERY:
                self._expired_at = now
                self._expire(wall_now)
            self._pump_by(now + EXPIRE_EVERY)
        if queue and not lane.living():
            while queue and queue[0].ended:
                queue.popleft()
            self._changed.set()

    def _pump_by(self, at: float) -> None:
        """Look at the queues then, at the latest."""
        if at < self._pump_at:
            self._pump_at = at
            self._changed.set()

    def _expire(self, wall_now: float) -> None:
        """End what is queued and has expired; otherwise that shows only when there is room for it."""
        for lane in self._lanes:
            for push in lane.queue:
                if not push.ended and 0 < (push.notification.expiration or 0) < wall_now:
                    self._endings.expired(push)  # and it is skipped where it stands

    def _set_aside(self, push: Push, now: float) -> None:
        token = push.notification.device_token
        until = self._apart.waits_until(token)
        if until is not None:
            self._put_off(push, until)
            return
        if not self._apart.was_rejected(token, now):
            self._main.again.append(push)
            self._work.set()
            return
        self._rejected.queue.append(push)
        if not self._rejected.wanted:
            self._rejected.wanted = 1
            self._changed.set()

    def _note_stall(self, now: float) -> None:
        since = self._stalled_since
        if since is not None:
            self._stalled[self._stalled_on] += now - since
            self._stalled_since = None
        lane = self._main
        opened = [connection for connection in lane.connections if connection.state == "open"]
        if not (lane.queue or self._held_back) or not opened:
            return
        self._stalled_since = now
        blocked = any(connection.engine.window_blocked for connection in opened)
        self._stalled_on = "window" if blocked else "streams"
        if lane.wanted < lane.most and lane.living() >= lane.wanted:
            lost = sum(self._stalled.values()) - self._stalled_at_growth
            if lost >= STALL_BEFORE_GROWTH:
                self._stalled_at_growth += lost
                lane.wanted += 1
                logger.debug("%.3f s lost to the %s: one more connection", lost, self._stalled_on)
                self._changed.set()
            else:
                self._pump_by(now + STALL_BEFORE_GROWTH)  # should the server say nothing meanwhile

    # What the connections tell.

    def stream_ended(self, connection: Connection, ended: StreamEnded, now: float) -> None:
        push = ended.tag
        assert isinstance(push, Push)
        if push.ended:
            return
        if ended.status is None:
            self._decide(connection, push, None, ended.processed, ended.reason, now)
            return
        reason, timestamp = parse_error_body(ended.body)
        rule = retry.rule_for(ended.status, reason)
        if rule.refuses and connection.outdated:
            rule = _SUPERSEDED
        if rule.retires:
            connection.retire()
        if rule.suspect:
            self._apart.reject(push.notification.device_token, now)
        retry_after = _seconds(ended.field(b"retry-after"))
        clock = ""
        if reason == "ExpiredProviderToken" and not connection.outdated:
            clock = self._blame_clock(connection, ended)
        decision = retry.decide(
            rule,
            processed=True,
            idempotent=True,
            attempts=push.attempts,
            elapsed=now - push.first_written_at,
            renewed=push.renewed or bool(clock),
            retry_after=retry_after,
            budget=self._budget,
            now=now,
            chance=random.random(),
            once=push.notification.expiration == 0,
        )
        if decision.action is Action.ANSWER:
            response = self._endings.rejected(
                push,
                ended,
                reason,
                unregistered_at=unregistered_at(timestamp),
                retryable=rule.retryable,
                retry_after=retry_after,
                now=now,
            )
            if ended.status == 410 or rule.suspect:
                self._announce(DeviceTokenDead(response))
            if clock or rule.refuses:
                self._refuse(connection, clock or reason or f"status {ended.status}")
        else:
            self._send_again(connection, push, decision, now, device=rule.device)

    def overdue(self, connection: Connection, push: Push, now: float) -> None:
        if not push.ended:
            self._decide(connection, push, None, None, "no answer within 10 s", now)

    def _decide(
        self,
        connection: Connection,
        push: Push,
        rule: retry.Rule | None,
        processed: bool | None,
        reason: str,
        now: float,
    ) -> None:
        """A push whose stream ended without a verdict."""
        if self._closed:
            decision = retry.Decision(Action.ANSWER)
        else:
            decision = retry.decide(
                rule,
                processed=processed,
                idempotent=push.notification.collapse_id is not None and not push.once,
                attempts=push.attempts,
                elapsed=now - push.first_written_at,
                renewed=push.renewed,
                retry_after=None,
                budget=self._budget,
                now=now,
                chance=random.random(),
                once=push.notification.expiration == 0,
            )
        if decision.action is Action.ANSWER:
            error = OutcomeUnknown if processed is None else NotSent
            if processed is False:
                push.attempts -= 1
            self._endings.without_verdict(push, error, reason)
        else:
            push.doubtful = push.doubtful or processed is None
            self._send_again(connection, push, decision, now, device=False)

    def _send_again(
        self, connection: Connection, push: Push, decision: retry.Decision, now: float, *, device: bool
    ) -> None:
        lane = self._rejected if connection.lane == "rejected" else self._main
        if decision.action is Action.AGAIN:
            push.attempts -= 1
        if self._stop is not None and connection.state != "open":
            self._endings.without_verdict(push, self._stop.error, self._stop.reason)
            return
        if decision.action is Action.AGAIN:
            lane.again.append(push)
            return
        self._resent += 1
        if decision.action is Action.RENEW:
            push.renewed = True
            lane.again.append(push)
        elif decision.delay <= 0:
            lane.again.append(push)
        else:
            if device:
                self._apart.ask_to_wait(push.notification.device_token, now + decision.delay)
            self._put_off(push, now + decision.delay)

    def _blame_clock(self, connection: Connection, ended: StreamEnded) -> str:
        """Judge an ExpiredProviderToken: why the credential is given up; "" where there is another token."""
        if not isinstance(self.credential, SigningKey) or connection.slot is None:
            return "ExpiredProviderToken"
        server_date = http_date(ended.field(b"date"))
        if self.credential.replacement(connection.slot, self._wall_clock(), server_date) is not None:
            return ""
        return "ExpiredProviderToken, although the provider token is of this half hour: our clock is behind"

    def progressed(self, connection: Connection) -> None:
        if self._stop is not None and connection.answered and connection.credential_reason is None:
            self._resume(connection)
        if connection.answered:
            self._pace.succeeded()
        lane = self._rejected if connection.lane == "rejected" else self._main
        if lane.again or lane.queue:
            # Answers come in small batches; requests leave in large ones, while enough streams are busy.
            now = trio.current_time()
            room = connection.room(now)
            if lane.again or not connection.exchange.in_flight or room * 8 >= connection.engine.stream_limit:
                self.pump()
            elif room:
                self._pump_by(now + GATHER_FOR)
        elif self._feeders:
            self._feeders.unpark_all()
        self._check_idle()

    def became_ready(self, connection: Connection) -> None:
        self._readiness.unpark_all()
        self._changed.set()
        self._announce(Connected(self._host, connection.lane))
        if self._stop is None:
            return
        if self._stop.error is NotSent:
            self._resume(connection)
        elif self.credential.kind == "certificate":
            connection.ping()  # under TLS 1.3 a refused certificate shows with the first answer only

    def answered_ping(self, connection: Connection) -> None:
        if self._stop is not None:
            if self.credential.kind == "certificate":
                self._resume(connection)
            return
        # Otherwise it was idle for a minute, and may go if there are others.
        lane = self._rejected if connection.lane == "rejected" else self._main
        warm = min(WARM_CONNECTIONS, lane.most) if lane is self._main else 0
        if not lane.queue and not connection.exchange.in_flight and lane.wanted > warm:
            lane.wanted -= 1
            connection.retire()

    def goaway(self, connection: Connection, reason: str | None, event: GoawayReceived) -> None:
        self._announce(Draining(self._host, reason))
        self._changed.set()
        if reason is not None and retry.rule_for(400, reason).refuses:
            self._refuse(connection, reason)

    # Stopping and going on.

    def _refuse(self, connection: Connection, reason: str) -> None:
        """APNs said so on this connection, as often as it had requests in flight."""
        if connection.outdated:
            return
        connection.credential_reason = reason
        stop = _Stop(CredentialRefused, f"APNs refuses {self.credential.identity}: {reason}")
        news = stop != self._stop
        self._stop_sending(stop)
        if news:
            self._announce(CredentialWasRefused(self.credential.identity, reason))

    def _stop_sending(self, stop: _Stop) -> None:
        if self._stop is None:
            logger.error("%s; nothing is sent, one try a minute", stop.reason)
        self._stop = stop
        self._probe_at = trio.current_time() + PROBE_EVERY
        self._end_all_queued(stop.error, stop.reason)
        for lane in self._lanes:
            for connection in list(lane.connections):
                connection.retire()
        self._feeders.unpark_all()
        self._readiness.unpark_all()

    def _resume(self, connection: Connection) -> None:
        if connection.state == "open":
            self._stop = None
            self._probe_at = math.inf
            logger.info("%s is accepted again", self.credential.identity)
            self._changed.set()

    def _end_all_queued(self, error: NoVerdict, reason: str) -> None:
        for lane in self._lanes:
            for push in [*lane.again, *lane.queue]:
                self._endings.without_verdict(push, error, reason)
            lane.again.clear()
            lane.queue.clear()
        for push in self._apart:
            self._endings.without_verdict(push, error, reason)
        self._apart.clear()

    def _put_off(self, push: Push, due: float) -> None:
        if self._apart.put_off(push, due):
            self._later_changed.set()

    async def _bring_back(self) -> None:
        """Return what waited for its next attempt to the queue, when its time has come."""
        while True:
            with trio.move_on_at(self._apart.due()):
                await self._later_changed.wait()
            self._later_changed = trio.Event()
            self._main.again.extend(self._apart.take_due(trio.current_time()))
            if self._main.again:
                self.pump()

    # Connections.

    async def run(self) -> None:
        """Keep connections open and pushes moving, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._open_connections)
            nursery.start_soon(self._bring_back)
            while True:
                await self._work.wait()
                self._work = trio.Event()
                self._sweep()
                self.pump()

    def _sweep(self) -> None:
        """Drop pushes from the queue whose callers went away, once they are many."""
        queue = self._main.queue
        if len(queue) > 2 * RESERVE and queue[0].ended:
            self._main.queue = deque(push for push in queue if not push.ended)

    async def _open_connections(self) -> None:
        while True:
            now = trio.current_time()
            if now >= self._pump_at:
                self._pump_at = math.inf
                self.pump()
            lane, look_at = self._lane_in_need(now)
            if lane is not None:
                look_at = now + self._pace.delay(now)
            if look_at > now:
                with trio.move_on_at(min(look_at, self._pump_at)):
                    await self._changed.wait()
                self._changed = trio.Event()
                continue
            assert lane is not None
            self._pace.connected(now)
            self._probe_at = max(self._probe_at, now + PROBE_EVERY)
            self._start(lane, self._new_connection(lane))

    def _lane_in_need(self, now: float) -> tuple[_Lane | None, float]:
        """The lane that lacks a connection, or None and when to look again."""
        if self._closed:
            return None, math.inf
        if self._stop is None:
            if self._pace.failures and self._is_connecting():
                return None, math.inf  # one try at a time, or each failure would count as many
            for lane in self._lanes:
                if lane.living() < lane.wanted:
                    return lane, now
            return None, math.inf
        if any(lane.living() for lane in self._lanes):
            return None, math.inf
        if self._main.queue:
            return self._main, now  # the push that tries it out
        if self._stop.error is NotSent or self.credential.kind == "certificate":
            if now < self._probe_at:
                return None, self._probe_at
            return self._main, now
        return None, math.inf

    def _is_connecting(self) -> bool:
        return any(
            connection.state == "connecting" for lane in self._lanes for connection in lane.connections
        )

    def _new_connection(self, lane: _Lane) -> Connection:
        return Connection(
            self,
            self._host,
            self._port,
            self._context,
            partial(_full_topic, self.credential, self.topic),
            proxy=self._proxy,
            lane=lane.name,
        )

    def _start(self, lane: _Lane, connection: Connection) -> None:
        assert self._nursery is not None
        lane.connections.append(connection)
        self._nursery.start_soon(self._run_connection, lane, connection)

    async def _run_connection(self, lane: _Lane, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            if connection in lane.connections:
                lane.connections.remove(connection)
                self._accepted_before += connection.exchange.accepted
                self._after(connection)

    def _after(self, connection: Connection) -> None:
        """A connection has ended: was it a failure, and what follows from it?"""
        now = trio.current_time()
        reason = connection.end_reason
        self._changed.set()
        self._readiness.unpark_all()
        if self._closed:
            return
        if connection.credential_reason is not None:
            if self._stop is None or self._stop.error is not CredentialRefused:
                self._refuse(connection, connection.credential_reason)
        elif connection.lasting:
            self._stop_sending(_Stop(NotSent, f"{self._host} port {self._port}: {reason}"))
        peaceful = reason in _PEACEFUL and not connection.told_to_go
        lived = connection.ready.is_set() and now - connection.began_at > LIVED
        if not (connection.answered or peaceful or lived):
            self._pace.failed(now, random.random())
            logger.warning("no good connection to %s port %d: %s", self._host, self._port, reason)
        if reason not in _PEACEFUL:
            self._announce(Lost(self._host, reason))
        self.pump()

    def _announce(self, event: ClientEvent) -> None:
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception as error:
            # Not its message: that of a KeyError may be a device token.
            calls = traceback.extract_tb(error.__traceback__)
            logger.error(
                "the listener failed on %s: %s at %s",
                type(event).__name__,
                type(error).__name__,
                ", ".join(f"{call.filename}:{call.lineno} in {call.name}" for call in calls[1:]),
            )

    # What the client asks for.

    async def wait_ready(self) -> None:
        """Wait for a connection that takes pushes.

        Raises:
          CredentialRefused, NotSent: there will be none before something changes.
        """
        while True:
            self._check_open()
            if self._stop is not None:
                raise self._stop.error(self._stop.reason)
            if any(connection.state == "open" for connection in self._main.connections):
                await trio.lowlevel.checkpoint()
                return
            await self._readiness.park()

    async def recycle(self) -> None:
        """Replace each connection, one after the other: the new one is open before the old one drains.

        Raises:
          NotSent: a new one did not come about; what was not replaced goes on.
        """
        self._check_open()
        for lane in self._lanes:
            for old in [connection for connection in lane.connections if connection.state == "open"]:
                await trio.sleep(self._pace.delay(trio.current_time()))
                self._check_open()
                if old.state != "open":
                    continue
                self._pace.connected(trio.current_time())
                new = self._new_connection(lane)
                self._start(lane, new)
                try:
                    await first(new.ready, new.ended)
                except BaseException:
                    new.retire()  # or there would be one more than wanted
                    raise
                if not new.ready.is_set():
                    raise NotSent(f"no new connection to {self._host} port {self._port}: {new.end_reason}")
                old.retire()

    def _check_open(self) -> None:
        if self._closed:
            raise NotSent("the client is closed")

    async def use_credential(self, new: Credential, *, topic: str | None = None, prove: bool = True) -> None:
        """Prove a new credential on a connection of its own, then let it take over; so does a new topic.

        With `prove` False it takes over unproved: for when no answer comes and it is better than the old one.

        Raises:
          InvalidCredential: of another team, or not for this environment or topic.
          CredentialRefused: APNs refuses it. In both cases, and where no answer comes (NotSent,
            OutcomeUnknown), nothing has changed.
        """
        self._check_open()
        check_same_owner(self.credential, new)
        new.check_environment(self.environment)
        topic = self.topic if topic is None else topic
        if topic is not None:
            new.check_topic(topic)
        context = await trio.to_thread.run_sync(lambda: new.ssl_context(ca_file=self._ca_file))
        self._check_open()
        connection = await self._prove(new, topic, context) if prove else None
        old = [connection for lane in self._lanes for connection in lane.connections]
        self.topic = topic
        self.credential, self._context, self._stop, self._probe_at = new, context, None, math.inf
        for other in old:
            other.outdated = True
            other.retire()
        if connection is not None:
            connection.owner = self
            if not connection.ended.is_set():
                self._main.connections.append(connection)
                self._announce(Connected(self._host, connection.lane))
        self._readiness.unpark_all()
        self._changed.set()
        self.pump()

    async def _prove(self, new: Credential, topic: str | None, context: ssl.SSLContext) -> Connection:
        """Open a connection with a new credential; what it raises is of `use_credential`."""
        prover = Prover(new, topic)
        connection = Connection(
            prover,
            self._host,
            self._port,
            context,
            partial(_full_topic, new, topic),
            proxy=self._proxy,
            lane=self._main.name,
        )
        assert self._nursery is not None
        self._nursery.start_soon(self._run_connection, self._main, connection)
        try:
            await prover.prove(connection, self._wall_clock())
        except BaseException:
            connection.stop("the credential was not proved")
            raise
        return connection

    async def drain(self) -> None:
        """Wait until nothing is queued, waiting or in flight."""
        self._draining = True
        while self._is_busy():
            self._idle = trio.Event()
            await self._idle.wait()

    def close(self) -> None:
        """End all that is left: NotSent, or OutcomeUnknown where it was written."""
        self._closed = True
        self._end_all_queued(NotSent, "the client was closed")
        for lane in self._lanes:
            for connection in list(lane.connections):
                connection.stop("the client was closed")
        self._feeders.unpark_all()
        self._readiness.unpark_all()

    def _check_idle(self) -> None:
        if self._draining and not self._is_busy():
            self._idle.set()

    def _is_busy(self) -> bool:
        if any(not push.ended for push in self._apart):
            return True
        for lane in self._lanes:
            while lane.queue and lane.queue[0].ended:
                lane.queue.popleft()
            if lane.queue or lane.again or any(c.exchange.in_flight for c in lane.connections):
                return True
        return False

    def statistics(self) -> ClientStatistics:
        """A frozen picture of it."""
        connections = [connection for lane in self._lanes for connection in lane.connections]
        return ClientStatistics(
            queued=sum(not push.ended for lane in self._lanes for push in [*lane.queue, *lane.again]),
            waiting=len(self._apart),
            in_flight=sum(connection.exchange.in_flight for connection in connections),
            accepted=self._accepted_before + sum(connection.exchange.accepted for connection in connections),
            stalled_on_streams=self._stalled["streams"],
            stalled_on_window=self._stalled["window"],
            retry_budget=self._budget.left(trio.current_time()),
            stopped=None if self._stop is None else self._stop.reason,
            connections=tuple(connection.statistics() for connection in connections),
            resent=self._resent,
            **self._endings.counts,
        )


# Refused was a credential that another has replaced since.
_SUPERSEDED = retry.Rule(Action.RENEW)

_PEACEFUL = frozenset({"drained", "retired", "the client was closed"})


def _load(connection: Connection) -> float:
    return connection.load


def _only_topic(credential: Credential) -> str | None:
    return credential.default_topic if isinstance(credential, ProviderCertificate) else None


def _full_topic(credential: Credential, usual: str | None, topic: str | None, push_type: str) -> str:
    """The value of apns-topic on a connection. Raises InvalidNotification or InvalidCredential.

    Args:
      usual: for notifications that name none.
    """
    topic = usual if topic is None else topic
    if topic is None:
        raise InvalidNotification(
            "topic: none in the notification and none in open_client; give the app's bundle id in either"
        )
    full = topic_for(topic, push_type)
    credential.check_topic(full)
    return full


def _seconds(value: bytes | None) -> float | None:
    """Retry-After in seconds (RFC 9110 §10.2.3); its date form is not used by any push service."""
    if value is None or not value.isdigit() or len(value) > 6:
        return None
    return float(value)
