"""Proving a credential: one harmless request on a connection of its own, before it takes over."""

from __future__ import annotations

import ssl
from collections import deque
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import trio

from fastpush import retry
from fastpush._connection import Push
from fastpush.connection import Connection
from fastpush.credentials import Credential, SigningKey
from fastpush.errors import CredentialRefused, InvalidCredential, NotSent
from fastpush.http2 import GoawayReceived, StreamEnded
from fastpush.notification import Notification, Payload, parse_error_body
from fastpush.retry import Action
from fastpush.transport import Proxy

__all__ = ["Answer", "Prover", "ask", "check_same_owner", "first", "http_date"]

PROVED_WITHIN = 15.0  # seconds from the server's SETTINGS to its answer about a new credential

# Of the right form, and nobody's: the answer to it shows what APNs thinks of the credential.
NOBODY = "0" * 64


class Answer(NamedTuple):
    """What came of one harmless request.

    Attributes:
      status: of the answer, None without one.
      reason: APNs' own word, from the answer, from GOAWAY, or from a TLS alert.
      refused: APNs takes neither this credential nor any push with it for this topic.
      lost: why there is no answer, "" where there is one.
      lasting: trying again changes nothing.
      server_date: the answer's `date`, UNIX seconds.
      peer: the address that was connected to.
    """

    status: int | None
    reason: str | None
    refused: bool
    lost: str
    lasting: bool
    server_date: float | None
    peer: str


class Prover:
    """Owns a connection while its credential is tried out with one harmless request.

    Attributes:
      status, reason, server_date, lost: as in `Answer`.
      refused: why APNs refuses the credential, None if it does not.
    """

    def __init__(self, credential: Credential, topic: str | None) -> None:
        self._credential = credential
        self._topic = topic
        self._done = trio.Event()
        self.refused: str | None = None
        self._answered = False
        self.lost = ""
        self._queue: deque[Push] = deque()
        self.status: int | None = None
        self.reason: str | None = None
        self.server_date: float | None = None

    async def prove(self, connection: Connection, wall_now: float) -> None:
        """Wait for APNs' word on it. Raises CredentialRefused, or NotSent where no word comes."""
        await first(connection.ready, connection.ended)
        if connection.ready.is_set():
            connection.authorize(self._credential.authorization(wall_now))
            if self._topic is None:
                connection.ping()
            else:
                nobody = Notification(NOBODY, Payload(content_available=True), push_type="background")
                self._queue.append(Push(nobody, trio.current_time()))
                self.progressed(connection)
            with trio.move_on_after(PROVED_WITHIN) as scope:
                await first(self._done, connection.ended)
            if scope.cancelled_caught:
                self.lost = f"no answer within {PROVED_WITHIN:g} s"
        refused = self.refused or connection.credential_reason
        if refused is not None:
            raise CredentialRefused(f"APNs refuses {self._credential.identity}: {refused}")
        if not self._answered:
            raise NotSent(f"{self._credential.identity} is not proved: {self.lost or connection.end_reason}")

    def stream_ended(self, connection: Connection, ended: StreamEnded, now: float) -> None:
        if ended.status is None:
            self.lost = ended.reason
        else:
            reason, _ = parse_error_body(ended.body)
            rule = retry.rule_for(ended.status, reason)
            self._answered = True
            self.status, self.reason = ended.status, reason
            self.server_date = http_date(ended.field(b"date"))
            if rule.refuses or rule.action is Action.RENEW or reason in ("TopicDisallowed", "BadTopic"):
                self.refused = reason
        self._done.set()

    def overdue(self, connection: Connection, push: Push, now: float) -> None:
        self.lost = "no answer within 10 s"
        self._done.set()

    def progressed(self, connection: Connection) -> None:
        if self._queue:
            failed: list[tuple[Push, Exception | None]] = []
            connection.submit(self._queue, 1, trio.current_time(), 0.0, {}, [], failed)
            connection.flush()
            for _, error in failed:
                self.lost = str(error)
                self._done.set()
        if connection.answered:  # with 200: this device token belongs to somebody after all
            self._answered = True
            if self.status is None:
                self.status = 200
            self._done.set()

    def became_ready(self, connection: Connection) -> None:
        pass

    def goaway(self, connection: Connection, reason: str | None, event: GoawayReceived) -> None:
        if reason is not None and retry.rule_for(400, reason).refuses:
            self.refused = reason
            self._done.set()  # otherwise the answer may still come, or the end

    def answered_ping(self, connection: Connection) -> None:
        if self._topic is None:  # else it was asked whether anybody is there, and proves nothing
            self._answered = True
            self._done.set()


async def ask(
    credential: Credential,
    topic: str,
    host: str,
    port: int,
    context: ssl.SSLContext,
    wall_now: float,
    *,
    proxy: Proxy | None = None,
) -> Answer:
    """Send one harmless request on a connection of its own, and tell all that came of it.

    It goes to a device token that belongs to nobody: with a good credential and topic the answer is 400
    BadDeviceToken.

    Args:
      context: as of `credential.ssl_context`.
      wall_now: POSIX time in seconds; chooses the provider token.
    """
    prover = Prover(credential, topic)
    connection = Connection(prover, host, port, context, lambda topic_of_push, kind: topic, proxy=proxy)
    refused, lost, peer = False, "", ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            await prover.prove(connection, wall_now)
        except CredentialRefused:
            refused = True
        except NotSent:
            lost = prover.lost or connection.end_reason
        peer = connection.statistics().peer
        connection.stop("asked")
        nursery.cancel_scope.cancel()
    reason = prover.reason or prover.refused or connection.credential_reason
    return Answer(prover.status, reason, refused, lost, connection.lasting, prover.server_date, peer)


def http_date(value: bytes | None) -> float | None:
    """UNIX seconds of a `date` field (RFC 9110 §5.6.7)."""
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value.decode("latin-1")).timestamp()
    except ValueError:
        return None


def check_same_owner(old: Credential, new: Credential) -> None:
    """Refuse a credential of another team: a connection is bound to one.

    Raises:
      InvalidCredential: naming both teams.
    """
    if isinstance(old, SigningKey) and isinstance(new, SigningKey) and old.team_id != new.team_id:
        raise InvalidCredential(
            f"{new.identity} is of team {new.team_id}, this client of team {old.team_id}: "
            "open another client for it"
        )


async def first(*events: trio.Event) -> None:
    """Wait for the first of several events."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
