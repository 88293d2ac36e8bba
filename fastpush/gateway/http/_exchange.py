"""One request and its answer: hypercorn's stream, with a body that has limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from time import time
from typing import Any, Protocol
from urllib.parse import unquote

import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import AppWrapper, TaskGroup, WorkerContext

from fastpush.gateway.log import get_logger

from ._limits import BodyRule, BodyRules, Limits, Owners, Pace, Refusal, Statistics, problem, problem_headers
from ._listeners import ClientCertificate
from ._proxies import TrustedProxies

logger = get_logger("fastpush.gateway.http")

Application = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Guard:
    """What all connections of a server share."""

    app: Application
    limits: Limits
    body_rules: BodyRules
    proxies: TrustedProxies
    statistics: Statistics
    owners: Owners


class Carrying(Protocol):
    """The connection of a request, HTTP/1.1 or HTTP/2: what it hands on of hypercorn's, and of ours."""

    app: AppWrapper
    config: Config
    context: WorkerContext
    task_group: TaskGroup
    ssl: bool
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    guard: Guard
    certificate: ClientCertificate | None
    owned_by: Callable[[str], bool]

    async def stream_send(self, event: Event) -> None: ...


class ClientGone(OSError):
    """Raised by `send` once nobody is there to have it (ASGI, HTTP connection scope, 2.4)."""


class Exchange(HTTPStream):
    """One request of the application.

    The application's queue is octets, not messages: `receive` hands over all that has come, `consumed` tells
    the protocol that there is room again, and a body that was cut short ends with `http.disconnect`.
    """

    def __init__(
        self, connection: Carrying, stream_id: int, *, consumed: Callable[[int, int], Awaitable[None]]
    ) -> None:
        super().__init__(
            connection.app,
            connection.config,
            connection.context,
            connection.task_group,
            connection.ssl,
            connection.client,
            connection.server,
            connection.stream_send,
            stream_id,
        )
        self.guard = connection.guard
        self.certificate = connection.certificate
        self.owned_by = connection.owned_by
        self.ended = False  # the body is complete
        self.finishing = False  # the application has said its last
        self.refused = False  # the guard has answered in its place
        self.buffered = 0
        self._consumed = consumed
        self._chunks: list[bytes] = []
        self._news = trio.Event()
        self._received = 0
        self._told_the_end = False
        self._rule: BodyRule
        self._pace: Pace
        self._working = trio.CancelScope()  # the application, as long as nobody waits for the client

    @property
    def deadline(self) -> float:
        """When the client will have been too slow with its body."""
        return inf if self.ended or self.closed else self._pace.deadline

    async def handle(self, event: Event) -> None:
        if self.closed:
            return
        if isinstance(event, Body):
            await self._take(bytes(event.data))
        elif isinstance(event, EndBody):
            self.ended = True
            self._news.set()
        elif isinstance(event, StreamClosed):
            self.closed = True
            self._news.set()
        elif isinstance(event, Request):
            await self._begin(event)

    async def _begin(self, request: Request) -> None:
        self.start_time = time()
        path, _, query = request.raw_path.partition(b"?")
        self.scope = {
            "type": "http",
            "asgi": {"spec_version": "2.4", "version": "3.0"},
            "http_version": request.http_version,
            "method": request.method,
            "scheme": self.scheme,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": self.guard.proxies.client(self.client, request.headers),
            "server": self.server,
            "state": {  # type: ignore[typeddict-item]
                **request.state,
                "client_certificate": self.certificate,
                "owned_by": self.owned_by,
            },
            "extensions": {},
        }
        self._rule = self.guard.body_rules(self.scope)  # type: ignore[arg-type]
        self._pace = Pace(self._rule, trio.current_time())
        if self._rule.octets is not None:
            for name, value in request.headers:
                if name == b"content-length" and int(value) > self._rule.octets:
                    await self._refuse_size()
                    return
        self.guard.statistics.requests += 1
        self.task_group.spawn(self._run)

    async def _run(self) -> None:
        self._work()
        with self._working:
            try:
                await self.guard.app(self.scope, self.receive, self.app_send)
            except ClientGone:
                pass
            except Exception:
                logger.exception("the application failed", method=self.scope["method"])
        if self._working.cancelled_caught:
            await self.refuse(
                Refusal(503, "application too slow", "The gateway did not come to an answer in time.")
            )
        await self.app_send(None)

    def _work(self) -> None:
        """It is the application's turn."""
        seconds = self._rule.answer_seconds
        if seconds is not None and self.state is ASGIHTTPState.REQUEST:
            self._working.deadline = trio.current_time() + seconds

    async def _take(self, octets: bytes) -> None:
        self._received += len(octets)
        if self._rule.octets is not None and self._received > self._rule.octets:
            await self._refuse_size()
            return
        self._pace.stop(trio.current_time(), len(octets))
        self._chunks.append(octets)
        self.buffered += len(octets)
        self._news.set()

    async def receive(self) -> dict[str, Any]:
        """ASGI's: the octets since the last call, or the client's end."""
        if not (self._chunks or self.ended or self.closed or self.refused):
            self._working.deadline = inf
        message = await self._receive()
        self._work()
        return message

    async def _receive(self) -> dict[str, Any]:
        while True:
            if self.refused:
                return {"type": "http.disconnect"}
            if self._chunks:
                body = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
                self._chunks.clear()
                self.buffered = 0
                self._told_the_end = self.ended
                if not self.ended:
                    self._pace.start(trio.current_time())
                await self._consumed(self.stream_id, len(body))
                return {"type": "http.request", "body": body, "more_body": not self._told_the_end}
            if self.ended and not self._told_the_end:
                self._told_the_end = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if self.closed:
                return {"type": "http.disconnect"}
            self._news = trio.Event()
            await self._news.wait()

    async def app_send(self, message: Any) -> None:
        if self.closed or self.refused:
            if message is None:
                return
            raise ClientGone("the client is gone")
        self._working.deadline = inf
        if message is None or (
            message["type"] == "http.response.body" and not message.get("more_body", False)
        ):
            self.finishing = True
        await super().app_send(message)

    async def _refuse_size(self) -> None:
        await self.refuse(
            Refusal(413, "body too large", f"The body exceeds {self._rule.octets} octets, the limit here.")
        )

    async def refuse_pace(self) -> None:
        """The client was too slow."""
        await self.refuse(Refusal(408, "body too slow", "The body came too slowly."))

    async def refuse(self, refusal: Refusal) -> None:
        """Answer in the application's place, which sees the client gone."""
        if self.refused:
            return
        self.refused = True
        self._chunks.clear()
        self.buffered = 0
        self._news.set()
        self.guard.statistics.refused[refusal.reason] += 1
        if self.state is ASGIHTTPState.REQUEST:
            await self._answer(refusal.status, refusal.detail)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _answer(self, status: int, detail: str) -> None:
        self.state = ASGIHTTPState.CLOSED
        self.finishing = True
        body = problem(status, detail)
        await self.send(Response(stream_id=self.stream_id, status_code=status, headers=problem_headers(body)))
        if self.scope["method"] != "HEAD":
            await self.send(Body(stream_id=self.stream_id, data=body))
        await self.send(EndBody(stream_id=self.stream_id))

    async def _send_error_response(self, status_code: int) -> None:
        await self._answer(status_code, "The request could not be completed.")
