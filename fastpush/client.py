"""What a program holds: `open_client` and the `Client` that it gives."""

from __future__ import annotations

import ipaddress
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import final

import trio

from fastpush._connection import Collector, Push, pull
from fastpush.credentials import Credential, normal_environment
from fastpush.events import ClientEvent, ClientStatistics
from fastpush.notification import Notification, Response
from fastpush.pool import Pool
from fastpush.transport import Proxy

__all__ = ["Client", "Responses", "open_client"]

# Apple, "Sending notification requests to APNs".
HOSTS = {"production": "api.push.apple.com", "development": "api.sandbox.push.apple.com"}
PORT = 443

DRAIN_WITHIN = 15.0  # seconds; a request has 10
MOST_UNREAD = 8_192  # responses of one `send_many` that wait for their reader before the input is read on
TAKEN_AT_ONCE = 512
WRITTEN_AFTER = 64  # pushes out of an asynchronous iterable
TURN = 0.001  # seconds of taking inputs or responses that never wait, before other tasks have their turn


@asynccontextmanager
async def open_client(
    credential: Credential,
    *,
    topic: str | None = None,
    environment: str = "production",
    host: str | None = None,
    port: int | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    proxy: str | None = None,
    max_connections: int = 4,
    listener: Callable[[ClientEvent], object] | None = None,
) -> AsyncGenerator[Client, None]:
    """Open a client for one credential and one environment.

    Connections are opened in the background and kept; leaving the block waits up to 15 s for what is
    queued and in flight, then ends the rest as not sent, or as unknown where it was written.

    Args:
      credential: a `SigningKey` or a `ProviderCertificate`.
      topic: the bundle id for notifications that name none; a certificate's own, if it has just one.
      environment: "production" or "development" ("sandbox" is the same). It chooses the host. With `host`
        it is only checked against the credential.
      host, port: where to connect instead; APNs also listens on port 2197.
      ca_file: PEM file of the authorities to trust in place of the system's.
      proxy: "http://[user:password@]host:port" for CONNECT, or "socks5://…"; names are resolved there.
      max_connections: at most so many at once, 1 to 64, and one more for device tokens lately rejected.
        The next is opened when time is lost to stream limit or window; see `Client.statistics`.
      listener: called with each `ClientEvent`; it must return at once. What it raises is logged.

    Raises:
      InvalidCredential: not for this environment or topic, or `ca_file` is unusable.
      ValueError, TypeError: an argument is out of range.
    """
    environment = normal_environment(environment)
    _check_options(credential, topic, host, port, max_connections, listener)
    credential.check_environment(environment)
    authorities = None if ca_file is None else os.fspath(ca_file)
    # Reading the trust store takes 30 ms; the pool finds the context ready.
    await trio.to_thread.run_sync(lambda: credential.ssl_context(ca_file=authorities))
    pool = Pool(
        credential,
        host=HOSTS[environment] if host is None else host,
        port=PORT if port is None else port,
        topic=topic,
        environment=environment,
        ca_file=authorities,
        proxy=None if proxy is None else Proxy.parse(proxy),
        max_connections=max_connections,
        listener=listener,
    )
    async with _private_nursery() as nursery:
        nursery.start_soon(pool.run)
        try:
            yield Client(pool)
            with trio.move_on_after(DRAIN_WITHIN):
                await pool.drain()
        finally:
            pool.close()
            nursery.cancel_scope.cancel()


def _check_options(
    credential: object, topic: object, host: object, port: object, max_connections: object, listener: object
) -> None:
    """Refuse what could only fail later, in the background. Raises TypeError, ValueError."""
    if not isinstance(credential, Credential):
        raise TypeError(
            f"credential must be a SigningKey or a ProviderCertificate; this is {type(credential).__name__}"
        )
    _check_topic(topic)
    if host is not None and not isinstance(host, str):
        raise TypeError(f"host must be a str or None; this is {type(host).__name__}")
    if isinstance(host, str) and not _is_host(host):
        raise ValueError(
            f"host {host[:64]!a} is neither a name nor an address; the port has its own argument"
        )
    for name, number, most in (("max_connections", max_connections, 64), ("port", port, 65_535)):
        if number is None and name == "port":
            continue
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} must be an int; this is {type(number).__name__}")
        if not 1 <= number <= most:
            raise ValueError(f"{name} is {number}; 1 to {most} are allowed")
    if listener is not None and not callable(listener):
        raise TypeError(f"listener must be a function or None; this is {type(listener).__name__}")


def _check_topic(topic: object) -> None:
    if topic is not None and not isinstance(topic, str):
        raise TypeError(f"topic must be a str or None; this is {type(topic).__name__}")
    if isinstance(topic, str) and not re.fullmatch(r"[!-~]+", topic):
        raise ValueError(f"topic of {len(topic)} characters; a bundle id has visible ASCII characters only")


def _is_host(host: str) -> bool:
    """Whether it may be a host name (RFC 1123 §2.1, and the underscores of some) or an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            return re.fullmatch(rb"[A-Za-z0-9._-]+", host.encode("idna")) is not None
        except UnicodeError:
            return False
    return True


@final
class Client:
    """Sends notifications; made by `open_client`. All tasks of one trio program may use it at once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __repr__(self) -> str:
        return f"<fastpush.Client with {self._pool.credential.identity}>"

    async def send(self, notification: Notification) -> Response:
        """Send one notification and wait for APNs' answer. A rejection is an answer too.

        Cancelling it resets the stream and harms no other push; APNs may have processed this one.

        Raises:
          NotSent: surely not processed.
          OutcomeUnknown: lost after it was written, or not answered in time; it may have been processed.
          Expired: its expiration passed while it waited.
          CredentialRefused: APNs refuses the key or certificate.
          InvalidNotification, InvalidCredential: no topic is known, or the credential does not cover it.
        """
        pool = self._pool
        push = Push(notification, pool.now())
        pool.enqueue(push)
        if push.ended:
            await trio.lowlevel.checkpoint()
            return push.unwrap()
        push.wait_in(trio.lowlevel.current_task(), pool)
        return await trio.lowlevel.wait_task_rescheduled(push.abort)  # type: ignore[no-any-return]

    def send_many(
        self,
        notifications: Iterable[Notification] | AsyncIterable[Notification],
        *,
        reserve: float = 0.0,
        once: bool = False,
    ) -> AbstractAsyncContextManager[Responses]:
        """Send all of an iterable of any length, and yield one `Response` for each, in order of completion.

        What `send` would raise is in the response's `error`. The input is read as streams become free;
        unread responses and pushes in flight are bounded. If the input raises, reading stops, the responses
        to what was taken are yielded, and then the error is raised. Leaving the block early leaves the rest
        of the input unread; what is queued is withdrawn, what is in flight ends unseen.

        Args:
          reserve: the share of the streams, from 0 to below 1, that is left to others of this client: to
            `send`, and to other `send_many`.
          once: send nothing again that was lost after it was written; it ends as unknown. Otherwise that is
            so for notifications without a collapse id only.
        """
        if not 0.0 <= reserve < 1.0:
            raise ValueError(f"reserve is {reserve:g}; from 0 to below 1 is allowed")
        self._pool.check_process()
        return _send_many(self._pool, notifications, reserve, once)

    async def wait_ready(self) -> None:
        """Wait until there is a connection. For tries without one put it in `trio.fail_after`.

        Raises:
          CredentialRefused, NotSent: there will be none before something changes.
        """
        self._pool.check_process()
        await self._pool.wait_ready()

    def statistics(self) -> ClientStatistics:
        """What happens inside, as frozen values."""
        return self._pool.statistics()

    async def use_credential(
        self, credential: Credential, *, topic: str | None = None, prove: bool = True
    ) -> None:
        """Prove another credential of the same owner, then use it; no push is lost.

        It is proved with one harmless request, to a device token that belongs to nobody. With `prove` False
        it is used unproved: for when APNs cannot be reached, and the old one is known to be no good.

        Args:
          topic: the bundle id, from now on, for notifications that name none; None leaves it as it is.

        Raises:
          InvalidCredential: of another team, or not for this environment or topic.
          CredentialRefused: APNs refuses it.
          NotSent: no answer came. In all three cases nothing has changed.
          ValueError, TypeError: `topic` is none.
        """
        self._pool.check_process()
        _check_topic(topic)
        await self._pool.use_credential(credential, topic=topic, prove=prove)

    async def recycle(self) -> None:
        """Replace all connections, one after the other, and lose nothing.

        Apple asks for it when a key was revoked or a bundle id was added ("Establishing a token-based
        connection to APNs").
        """
        self._pool.check_process()
        await self._pool.recycle()


@asynccontextmanager
async def _send_many(
    pool: Pool,
    notifications: Iterable[Notification] | AsyncIterable[Notification],
    reserve: float,
    once: bool,
) -> AsyncGenerator[Responses, None]:
    responses = Responses(pool, reserve, once)
    try:
        async with _private_nursery() as nursery:
            nursery.start_soon(responses._feed, notifications)
            try:
                yield responses
            finally:
                nursery.cancel_scope.cancel()
    finally:
        responses._withdraw()  # only now: the feeder may have had one more step


@final
class Responses:
    """The responses of one `send_many`: an async iterator, for one task."""

    def __init__(self, pool: Pool, reserve: float = 0.0, once: bool = False) -> None:
        self._pool = pool
        self._reserve = reserve
        self._collector = Collector(once)
        self._batch: list[Response] = []
        self._turn_ends = 0.0
        self._input_read = False
        self._being_read = False
        self._input_error: Exception | None = None

    def __aiter__(self) -> AsyncIterator[Response]:
        return self

    async def __anext__(self) -> Response:
        if self._batch and time.monotonic() > self._turn_ends:
            await trio.lowlevel.checkpoint()
            self._turn_ends = time.monotonic() + TURN
        if not self._batch:
            self._batch = await self._next_batch()
            self._batch.reverse()
            self._turn_ends = time.monotonic() + TURN
        return self._batch.pop()

    async def batches(self) -> AsyncGenerator[list[Response], None]:
        """Yield lists of responses, none empty, as they come."""
        if self._batch:
            batch, self._batch = self._batch[::-1], []
            yield batch
        while True:
            try:
                batch = await self._next_batch()
            except StopAsyncIteration:
                return
            yield batch

    async def _next_batch(self) -> list[Response]:
        if self._being_read:
            raise trio.BusyResourceError("another task is reading these responses")
        self._being_read = True
        try:
            return await self._gather()
        finally:
            self._being_read = False

    async def _gather(self) -> list[Response]:
        collector = self._collector
        while True:
            done = self._input_read and not collector.outstanding
            if collector.unread or not done:
                await collector.wait()
            else:
                await trio.lowlevel.checkpoint()
            if collector.unread:
                full = collector.unread >= MOST_UNREAD
                batch: list[Response] = collector.take()
                if full:
                    self._pool.wake_feeders()
                return batch
            if self._input_read and not collector.outstanding:
                if self._input_error is not None:
                    error, self._input_error = self._input_error, None
                    raise error
                raise StopAsyncIteration

    async def _feed(self, notifications: Iterable[Notification] | AsyncIterable[Notification]) -> None:
        try:
            if isinstance(notifications, AsyncIterable):
                await self._feed_from_async(notifications)
            else:
                await self._feed_from(notifications)
        except Exception as error:
            self._input_error = error
        finally:
            self._input_read = True
            self._collector.wake()

    async def _feed_from(self, notifications: Iterable[Notification]) -> None:
        pool, collector = self._pool, self._collector
        iterator = iter(notifications)
        while True:
            if not await self._wait_for_space():
                await trio.lowlevel.checkpoint()
            limit = min(pool.space(self._reserve), TAKEN_AT_ONCE)
            now, until = trio.current_time(), time.monotonic() + TURN
            if pool.take_from(lambda queue: pull(iterator, queue, collector, limit, now, until)):  # noqa: B023
                return

    async def _feed_from_async(self, notifications: AsyncIterable[Notification]) -> None:
        pool, collector = self._pool, self._collector
        taken, until = 0, time.monotonic() + TURN
        async for notification in notifications:
            pool.enqueue(Push(notification, pool.now(), collector))
            taken += 1
            if not taken % WRITTEN_AFTER:
                # An input that does not wait keeps the pool's own task from its turn: the first of a burst
                # would leave with its last.
                pool.pump()
            if time.monotonic() > until:
                await trio.lowlevel.checkpoint()
                until = time.monotonic() + TURN
            await self._wait_for_space()

    async def _wait_for_space(self) -> bool:
        """Returns whether it had to wait."""
        waited = False
        while (full := self._pool.space(self._reserve) <= 0) or self._collector.unread >= MOST_UNREAD:
            await self._pool.wait_for_space(held_back=full and self._reserve > 0.0)
            waited = True
        return waited

    def _withdraw(self) -> None:
        self._pool.withdraw(self._collector)


@asynccontextmanager
async def _private_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery whose users need not know of it: what the body raises leaves as it is, not in a group."""
    failed: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                failed = error
                raise
    except BaseExceptionGroup as group:
        # trio makes groups anew on their way out, so what they hold is compared.
        expected = _singles(failed) if failed is not None else []
        if any(error not in expected and not isinstance(error, trio.Cancelled) for error in _singles(group)):
            raise
    if failed is not None:
        raise failed


def _singles(error: BaseException) -> list[BaseException]:
    """The exceptions in a group and in the groups inside it; of any other exception itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [single for inner in error.exceptions for single in _singles(inner)]
