"""The way into the console, and out: a named key of scope admin or console, then a cookie."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.console.pages import (
    HEADERS,
    Console,
    cookie_name,
    cookie_of,
    is_secure,
    own_form,
    principal_of,
    templates,
)
from fastpush.gateway.console.sessions import LONGEST
from fastpush.gateway.problems import Problem

__all__ = ["access_routes"]


def access_routes(console: Console) -> list[BaseRoute]:
    """Log in and out. A ticket, which a command of this machine printed, logs in without the key."""

    async def login(request: Request) -> Response:
        if request.method == "GET":
            ticket = request.query_params.get("ticket")
            if ticket is None:
                return _form(request)
            key_id = console.sessions.take_ticket(ticket)
            if key_id is None:
                return _form(request, "This link was used before, or is older than ten minutes.", 403)
            holder = console.gateway.keys.principal(key_id)
            if holder is not None:
                await console.gateway.keys.audit(holder, "console.login", _address(request), "by a ticket")
            return await _enter(console, request, key_id)
        try:
            form = await own_form(request, None)
            key = form.get("key")
            if not isinstance(key, str) or not key.strip():
                return _form(request, "Enter a key.", 422)
            principal = await console.gateway.keys.authenticate(_presenting(request.scope, key.strip()))
            if principal.apps is not None:
                raise Problem(
                    403, detail=f"The key {principal.name} is for some apps only; the console shows all."
                )
            if not principal.scopes & {"admin", "console"}:
                raise Problem(
                    403, detail=f"The key {principal.name} has neither the scope admin nor console."
                )
        except Problem as problem:
            return _form(request, problem.detail or problem.title, problem.status, dict(problem.headers))
        await console.gateway.keys.audit(principal, "console.login", _address(request))
        return await _enter(console, request, principal.key_id)

    async def logout(request: Request) -> Response:
        session = await console.sessions.find(cookie_of(request))
        if session is not None:
            try:
                await own_form(request, session)
            except Problem as problem:
                return _form(request, problem.detail, problem.status)
            principal = principal_of(console.gateway, session.key_id)
            if principal is not None:
                await console.gateway.keys.audit(principal, "console.logout", _address(request))
            await console.sessions.end(session)
        answer = RedirectResponse("/login", 303, HEADERS)
        answer.delete_cookie(cookie_name(request), path="/", secure=is_secure(request), httponly=True)
        return answer

    return [
        Route("/login", login, methods=["GET", "POST"], include_in_schema=False),
        Route("/logout", logout, methods=["POST"], include_in_schema=False),
    ]


def _form(
    request: Request, wrong: str = "", status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    text = templates().get_template("login.html").render(wrong=wrong, next=_next(request))
    kept = {name: value for name, value in (headers or {}).items() if name.lower() == "retry-after"}
    return Response(text, status, {**HEADERS, **kept}, "text/html; charset=utf-8")


async def _enter(console: Console, request: Request, key_id: str) -> Response:
    value, _ = await console.sessions.begin(key_id)
    answer = RedirectResponse(_next(request), 303, HEADERS)
    answer.set_cookie(
        cookie_name(request), value, max_age=int(LONGEST), path="/", secure=is_secure(request), httponly=True,
        samesite="strict",
    )  # fmt: skip
    return answer


def _next(request: Request) -> str:
    """Where to go after the login: a path of ours and nothing else."""
    wanted = request.query_params.get("next", "/")
    try:
        elsewhere = urlsplit(wanted).netloc
    except ValueError:  # such as http://[
        return "/"
    ours = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and not elsewhere
    return wanted if ours and "\n" not in wanted and "\r" not in wanted else "/"


def _presenting(scope: Any, key: str) -> dict[str, Any]:
    """The request as if it brought the key in its header: it is then judged, and slowed, like any other."""
    kept = [(name, value) for name, value in scope["headers"] if name not in (b"authorization", b"x-api-key")]
    return {**scope, "headers": [*kept, (b"x-api-key", key.encode(errors="replace"))]}


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
