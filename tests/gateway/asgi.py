"""One request to an ASGI application, without a server."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(app, method, path, *, body=b"", headers=None, cut=False):
    """The answer, or None where there was none; `cut` ends the body before its end."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"spec_version": "2.4", "version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 1234),
        "server": ("127.0.0.1", 80),
        "state": {},
        "extensions": {},
    }
    messages = [{"type": "http.request", "body": body, "more_body": cut}]
    answer = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        answer.append(message)

    await app(scope, receive, send)
    if not answer:
        return None
    head = {name.decode(): value.decode() for name, value in answer[0]["headers"]}
    return Answered(answer[0]["status"], head, b"".join(message.get("body", b"") for message in answer[1:]))
