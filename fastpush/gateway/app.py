"""The two applications, one for each listener: which octets go to which route, and nothing else.

Hot routes are found by their path and get ASGI as it comes; all others are Starlette's. Every answer carries
`X-Request-Id`, every refusal is `application/problem+json`, and every one is counted by its route.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from time import perf_counter
from types import ModuleType
from typing import Any, final

from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route

from fastpush.gateway import console, metrics, openapi
from fastpush.gateway.api import (
    ASGI,
    Gateway,
    HotRoute,
    Receive,
    Scope,
    Send,
    alarms,
    credentials,
    devices,
    enrolments,
    health,
    keys,
    notices,
    notifications,
    opmanager,
    outbox,
    problem_of,
    tickets,
)
from fastpush.gateway.counters import Histogram
from fastpush.gateway.http import BodyRule
from fastpush.gateway.log import get_logger, request_id
from fastpush.gateway.outbox.origin import came_in
from fastpush.gateway.problems import CONTENT_TYPE, Problem

__all__ = ["Application", "admin_app", "body_rule", "ingest_app"]

logger = get_logger("fastpush.gateway.app")

INGEST: list[ModuleType] = [notifications, enrolments, devices, alarms, opmanager, notices, health]
ADMIN: list[ModuleType] = [
    outbox, keys, enrolments, devices, notices, credentials, tickets, health, metrics,
    console,
]  # fmt: skip
"""Modules of `fastpush.gateway.api`, asked for `routes`, `hot_routes` and `admin_routes`."""

STREAMED = frozenset((b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"text/csv"))
SLOW_PATHS = frozenset(("/v1/backup", "/v1/notices/trials"))
SLOW_PATH = re.compile(r"/v1/apps/[^/]+/credential|/credentials/[^/]+")  # APNs is asked
BODY, STREAM, SLOW_ANSWER = BodyRule(), BodyRule.stream(), BodyRule(answer_seconds=None)

UNCODED = Problem(
    415,
    detail="The body must not be compressed.",
    field="Content-Encoding",
    headers={"Accept-Encoding": "identity"},
)

TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


def ingest_app(gateway: Gateway) -> Application:
    """What senders and phones reach."""
    counters = gateway.counters
    routes, hot = routes_of(gateway, INGEST, "routes", "hot_routes")
    clock = gateway.clock if gateway.traced else None
    return Application(routes, hot, counters.answers, counters.answer_seconds, traced=clock)


def admin_app(gateway: Gateway) -> Application:
    """What the admin listener and the control socket reach."""
    routes, hot = routes_of(gateway, ADMIN, "admin_routes")
    every = [*routes, openapi.route(INGEST, ADMIN)]
    clock = gateway.clock if gateway.traced else None
    return Application(every, hot, gateway.counters.admin_answers, page=console.problem_page, traced=clock)


def routes_of(
    gateway: Gateway, modules: Iterable[ModuleType], *names: str
) -> tuple[list[BaseRoute], list[HotRoute]]:
    """What the modules offer under these names."""
    found: list[Any] = [
        route
        for module in modules
        for name in names
        if hasattr(module, name)
        for route in getattr(module, name)(gateway)
    ]
    hot = [route for route in found if isinstance(route, HotRoute)]
    return [route for route in found if not isinstance(route, HotRoute)], hot


def body_rule(scope: Scope) -> BodyRule:
    """How large and how slow a request's body may be, for `fastpush.gateway.http.serve`.

    Lines of any number are worked on as they arrive; all else is one body of at most 4 MiB, less where the
    route says so.
    """
    for name, value in scope["headers"]:
        if name == b"content-type":
            if value.partition(b";")[0].strip().lower() in STREAMED:
                return STREAM
            break
    path = scope["path"]
    return SLOW_ANSWER if path in SLOW_PATHS or SLOW_PATH.fullmatch(path) else BODY


@final
class Application:
    """An ASGI application over a list of routes.

    Args:
      answers: where answers are counted, by route and status.
      seconds: where it is counted how long they took, by route.
      page: draws a problem for a browser, where people come; all others get JSON.
      traced: gives UNIX seconds, where it is noted when each request came in; None where nobody traces.
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        hot: Sequence[HotRoute],
        answers: dict[tuple[str, int], int],
        seconds: dict[str, Histogram] | None = None,
        page: Callable[[Problem], ASGI] | None = None,
        traced: Callable[[], float] | None = None,
    ) -> None:
        self._page = page
        self._traced = traced
        self._answers = answers
        self._seconds = seconds
        self._routes = routes
        self._hot: dict[str, dict[str, ASGI]] = {}
        for route in hot:
            self._hot.setdefault(route.path, {})[route.method] = route.app
        self._numbers = count(1)
        self._prefix = secrets.token_hex(4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        named, coding = _told(scope)
        number = named or f"{self._prefix}-{next(self._numbers):x}"
        scope.setdefault("state", {})["request_id"] = number
        request_id.set(number)
        if self._traced is not None:
            came_in(self._traced(), _parent(scope))
        header = (b"x-request-id", number.encode())
        label, status, began = "", 0, perf_counter()

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._seconds is not None:
                    self._seconds[label].add(perf_counter() - began)
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            label, app = self._find(scope)
            if coding:
                raise UNCODED
            await app(scope, receive, answer)
        except ClientDisconnect:
            return
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                logger.exception("a request failed", method=scope["method"], route=label, request=number)
                problem = Problem(500, detail=f"The gateway failed. Its log has more under request {number}.")
            if status:  # it is too late for another answer: let the server break this one off
                raise
            if self._page is not None and _is_browser(scope):
                await self._page(problem)(scope, receive, answer)
            else:
                await write(problem, answer)
        finally:
            if status:
                self._answers[label, status] += 1

    def _find(self, scope: Scope) -> tuple[str, ASGI]:
        """The route's name and its application.

        Raises:
          Problem: 404, or 405 with the methods that there are.
        """
        path, method = scope["path"], scope["method"]
        methods = self._hot.get(path, {})
        if method in methods:
            return path, methods[method]
        allowed = set(methods)
        for route in self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                scope.update(child)
                return getattr(route, "path", ""), route.handle
            if match is Match.PARTIAL and isinstance(route, Route):
                allowed |= route.methods or set()
        if allowed:
            there = ", ".join(sorted(allowed))
            raise Problem(405, detail=f"Here is {there}, not {method[:20]}.", headers={"Allow": there})
        raise Problem(404, detail="There is no such path.")


async def write(problem: Problem, send: Send) -> None:
    """Answer with a problem."""
    body = problem.body()
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_browser(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _told(scope: Scope) -> tuple[str, bool]:
    """The sender's own id of the request, where it is a reasonable one, and whether the body is coded."""
    named, coding = "", False
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            named = value.decode() if REQUEST_ID.fullmatch(value) else ""
        elif name == b"content-encoding":
            coding = coding or value.strip().lower() != b"identity"
    return named, coding


def _parent(scope: Scope) -> str:
    """The sender's span (W3C Trace Context, `traceparent`); "" where there is none, or more than one."""
    found = [value.strip() for name, value in scope["headers"] if name == b"traceparent"]
    match = TRACEPARENT.fullmatch(found[0]) if len(found) == 1 else None
    return "" if match is None else match[1].decode()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
