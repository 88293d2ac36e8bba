"""The door to a gateway's administration: its control socket while it runs, its file while it is stopped.

A command says what it wants once, as requests to the admin application (docs/http.md has its routes):

    @main.command()
    @gateway_options
    def pause(where: Where, app: str) -> None:
        async def body(control: Control) -> int:
            await control.ask("POST", f"/v1/outbox/{quote(app)}/pause")
            return 0

        run_with(where, body)

While the gateway runs the requests go through the unix socket beside its database. Otherwise the file is
opened here, which locks it, and the same application answers in this process. What cannot be done is one
line, and the exit code 1.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import pwd
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, final
from urllib.parse import quote, unquote, urlencode

import click
import h11
import orjson
import trio

from fastpush.cli.running import Failure, Misuse, alone, run
from fastpush.gateway.control import Application, socket_path, trusted
from fastpush.gateway.storage import Storage, StorageError, StorageUnusable, open_storage

__all__ = [
    "Control",
    "Refused",
    "Where",
    "check_file",
    "database_of",
    "gateway_options",
    "open_control",
    "quote",
    "run_with",
]

SILENT_AFTER = 120.0
"""Seconds in which a gateway that says nothing is given up; a purge of millions takes some."""
READ_OCTETS = 65_536
JSON = "application/json"


class Refused(Failure):
    """The gateway's answer is a problem; `status` and `members` (RFC 9457) say which."""

    def __init__(self, status: int, members: Mapping[str, Any]) -> None:
        self.status, self.members = status, members
        title = str(members.get("title") or f"the gateway answered {status}")
        detail = members.get("detail")
        field = members.get("field")
        said = f"{title}: {detail}" if detail else title
        super().__init__(f"{said} ({field})" if field else said)


class Answer(NamedTuple):
    """The head of an answer, and its body as it comes."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks])


class _Door(Protocol):
    def exchange(
        self, method: str, target: str, content_type: str, content: AsyncIterable[bytes] | bytes
    ) -> AbstractAsyncContextManager[Answer]: ...


@final
class Control:
    """The administration of one gateway; made by `open_control`."""

    def __init__(self, door: _Door, database: Path, *, running: bool) -> None:
        self._door = door
        self.database = database
        self.running = running

    async def ask(self, method: str, path: str, value: object = None, **query: object) -> Any:
        """Send a request, and return its answer's JSON value, or None for an empty answer.

        Args:
          path: e.g. "/v1/outbox"; parts that are not fixed go through `quote`.
          value: the body, as JSON; None for no body.
          query: those that are None are left out.

        Raises:
          Refused: the answer is not a success.
          Failure: there was no answer.
        """
        body = b"" if value is None else orjson.dumps(value)
        async with self._door.exchange(method, _target(path, query), JSON, body) as answer:
            text = await answer.read()
        _check(answer.status, text)
        return orjson.loads(text) if text else None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        content: AsyncIterable[bytes] | bytes = b"",
        *,
        content_type: str = "application/x-ndjson",
        **query: object,
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Send a body of any length while it is made, and give the answer's octets as they come.

        Raises:
          Refused, Failure: as `ask`.
        """
        async with self._door.exchange(method, _target(path, query), content_type, content) as answer:
            if answer.status >= 300:
                _check(answer.status, await answer.read())
            yield answer.chunks


def _target(path: str, query: Mapping[str, object]) -> str:
    given = {name: str(value) for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _check(status: int, text: bytes) -> None:
    if status < 300:
        return
    try:
        members = orjson.loads(text)
    except orjson.JSONDecodeError:
        members = None
    raise Refused(status, members if isinstance(members, dict) else {})


@asynccontextmanager
async def open_control(database: str | os.PathLike[str]) -> AsyncGenerator[Control]:
    """Reach the gateway that holds the database, or hold the database meanwhile.

    Raises:
      Failure: it is another user's, it is held by a process that does not listen, it does not exist.
    """
    socket = socket_path(database)
    path = socket.with_name(os.path.basename(database))
    try:
        stream: trio.SocketStream | None = await trio.open_unix_socket(socket)
    except PermissionError:
        raise Failure(_not_yours(socket)) from None
    except OSError as error:
        # No such file: stopped. Refused: its process has died. None: the path is too long for a socket.
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, None):
            raise Failure(f"{socket}: {error.strerror or error}") from error
        stream = None
    if stream is not None:
        await stream.aclose()
        yield Control(_Socket(socket), path, running=True)
        return
    check_file(path)
    # What it says at its start is for the gateway's log.
    logging.getLogger("fastpush.gateway.storage").setLevel(logging.ERROR)
    opened = False
    try:
        async with open_storage(path) as storage, _administration(storage) as application:
            opened = True
            yield Control(_Here(trusted(application)), path, running=False)
    except StorageUnusable as error:
        if opened or "in use by another process" not in str(error):
            raise Failure(str(error)) from error
        raise Failure(f"{error}. It does not listen at {socket}: is it starting, or no gateway?") from None
    except StorageError as error:
        raise Failure(str(error)) from error


def check_file(path: Path) -> None:
    """Raise Failure unless a stopped gateway's file may be opened. A missing one is never made here."""
    try:
        found = path.is_file()
    except PermissionError:
        raise Failure(_not_yours(path)) from None
    if not found:
        raise Failure(f"{path} does not exist, and no gateway listens at {socket_path(path)}")
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise Failure(_not_yours(path))


def _not_yours(path: Path) -> str:
    """Whose it is, and what to do."""
    for place in (path, path.parent):
        try:
            owner = place.stat().st_uid
        except OSError:
            continue
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        return f"{place} belongs to the user {name}, not to you: try `sudo -u {name} fastpush ...`"
    return f"{path}: permission denied"


@asynccontextmanager
async def _administration(storage: Storage) -> AsyncGenerator[Application]:
    """The admin application over a storage that no gateway runs on."""
    from fastpush.gateway.offline import open_administration  # Starlette takes 60 ms

    async with open_administration(storage) as application:
        yield application


@final
class _Socket:
    """Requests over the control socket, a connection each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def exchange(
        self, method: str, target: str, content_type: str, content: AsyncIterable[bytes] | bytes
    ) -> AsyncGenerator[Answer]:
        try:
            stream = await trio.open_unix_socket(self._path)
        except OSError as error:
            raise Failure(f"{self._path}: {error.strerror or error}") from error
        async with stream:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=READ_OCTETS)
            headers = [("host", "control"), ("connection", "close"), ("content-type", content_type)]
            if isinstance(content, bytes):
                headers.append(("content-length", str(len(content))))
            else:
                headers.append(("transfer-encoding", "chunked"))
            request = h11.Request(method=method, target=target, headers=headers)
            async with _flat(), trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream, connection, request, content)
                head = await self._next(stream, connection)
                while isinstance(head, h11.InformationalResponse):
                    head = await self._next(stream, connection)
                assert isinstance(head, h11.Response)
                kind = dict(head.headers).get(b"content-type", b"").decode("latin-1")
                async with aclosing(self._chunks(stream, connection)) as chunks:
                    yield Answer(head.status_code, kind, chunks)
                nursery.cancel_scope.cancel()  # an answer that came before the whole request was read

    async def _send(
        self,
        stream: trio.SocketStream,
        connection: h11.Connection,
        request: h11.Request,
        content: AsyncIterable[bytes] | bytes,
    ) -> None:
        async def send(event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
            await stream.send_all(connection.send(event) or b"")

        try:
            await send(request)
            if isinstance(content, bytes):
                if content:
                    await send(h11.Data(data=content))
            else:
                async for chunk in content:
                    if chunk:
                        await send(h11.Data(data=chunk))
            await send(h11.EndOfMessage())
        except trio.BrokenResourceError:
            pass  # whoever reads learns why

    async def _next(self, stream: trio.SocketStream, connection: h11.Connection) -> object:
        while True:
            try:
                event = connection.next_event()
                if event is not h11.NEED_DATA:
                    return event
                with trio.fail_after(SILENT_AFTER):
                    connection.receive_data(await stream.receive_some(READ_OCTETS))
            except trio.TooSlowError:
                raise Failure(f"{self._path}: the gateway does not answer") from None
            except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
                raise Failure(f"{self._path}: the gateway ended the connection without an answer") from error

    async def _chunks(self, stream: trio.SocketStream, connection: h11.Connection) -> AsyncGenerator[bytes]:
        while isinstance(event := await self._next(stream, connection), h11.Data):
            yield bytes(event.data)


@final
class _Here:
    """Requests to an application in this process."""

    def __init__(self, application: Application) -> None:
        self._application = application

    @asynccontextmanager
    async def exchange(
        self, method: str, target: str, content_type: str, content: AsyncIterable[bytes] | bytes
    ) -> AsyncGenerator[Answer]:
        path, _, query = target.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [(b"host", b"control"), (b"content-type", content_type.encode("ascii"))],
            "client": None,
            "server": None,
            "state": {},
        }
        whole = _one(content) if isinstance(content, bytes) else content
        parts = aiter(whole)
        ended = False
        to_reader, answers = trio.open_memory_channel[dict[str, Any]](0)

        async def receive() -> dict[str, Any]:
            nonlocal ended
            if ended:
                await trio.sleep_forever()
            async for part in parts:
                return {"type": "http.request", "body": part, "more_body": True}
            ended = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            await to_reader.send(message)

        async def serve() -> None:
            async with to_reader:
                await self._application(scope, receive, send)

        async def chunks() -> AsyncGenerator[bytes]:
            async for message in answers:
                if message.get("body"):
                    yield message["body"]
                if not message.get("more_body"):
                    return

        async with _flat(), trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            head = await answers.receive()
            kind = dict(head.get("headers", ())).get(b"content-type", b"").decode("latin-1")
            async with aclosing(chunks()) as body:
                yield Answer(head["status"], kind, body)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _flat() -> AsyncGenerator[None]:
    """Let the one exception of a nursery within out of its group."""
    try:
        yield
    except BaseExceptionGroup as group:
        only = alone(group)
        if only is group:
            raise
        raise only from only.__cause__


async def _one(content: bytes) -> AsyncGenerator[bytes]:
    yield content


# For commands.


class Where(NamedTuple):
    """Which gateway a command means: by its file, or by its configuration (None: the environment alone)."""

    database: Path | None
    config: Path | None


def gateway_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which gateway it means, as its argument `where`."""

    @click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="FASTPUSH_CONFIG",
        help="The gateway's configuration, which names its database.",
    )
    @click.option(
        "--database",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The gateway's database itself, instead.",
    )
    @functools.wraps(command)
    def wrapped(*arguments: Any, database: Path | None, config: Path | None, **others: Any) -> Any:
        return command(*arguments, where=Where(database, config), **others)

    return wrapped


def database_of(where: Where) -> Path:
    """The gateway's database.

    Raises:
      Misuse: the configuration cannot be read.
    """
    if where.database is not None:
        return where.database
    from fastpush.gateway.config import InvalidConfig, database_path  # only here: it takes a moment

    try:
        return database_path(where.config)
    except InvalidConfig as error:
        raise Misuse(str(error)) from None


def run_with(where: Where, body: Callable[[Control], Awaitable[int]]) -> NoReturn:
    """Reach the gateway, run `body`, and leave with the exit code that it returns."""

    database = database_of(where)

    async def main() -> int:
        async with open_control(database) as control:
            return await body(control)

    run(main)
