"""What OpManager does: posts to a webhook, over connections that it keeps."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Self, final

import h11
import orjson
import trio

__all__ = ["Answer", "Sender"]

READ_OCTETS = 65_536
PATIENCE = 30.0  # seconds for an answer


class Answer(NamedTuple):
    """What came back, and when (UNIX seconds)."""

    status: int
    body: Any
    asked_at: float
    answered_at: float


@final
class Sender:
    """One connection to a port of this machine, used by one task at a time; opened anew where it was lost.

    Args:
      port: where the gateway listens.
      key: of an ingest key, or none.
    """

    def __init__(self, port: int, key: str | None = None) -> None:
        self._port = port
        self._key = key
        self._stream: trio.SocketStream | None = None
        self._connection = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None

    async def post(self, path: str, body: bytes, content_type: str = "application/json") -> Answer:
        """POST a body."""
        return await self._ask("POST", path, body, content_type)

    async def get(self, path: str) -> Answer:
        """GET a path."""
        return await self._ask("GET", path, b"", "")

    async def _ask(self, method: str, path: str, body: bytes, content_type: str) -> Answer:
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
            self._connection = h11.Connection(h11.CLIENT)
        connection = self._connection
        headers = [
            ("Host", f"127.0.0.1:{self._port}"),
            ("Content-Length", str(len(body))),
        ]
        if self._key is not None:
            headers.append(("Authorization", f"Bearer {self._key}"))
        if content_type:
            headers.append(("Content-Type", content_type))
        octets = b"".join(
            connection.send(event) or b""
            for event in (
                h11.Request(method=method, target=path, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
        )
        asked_at = time.time()
        try:
            with trio.fail_after(PATIENCE):
                await self._stream.send_all(octets)
                status, text = await self._read(self._stream)
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            await trio.aclose_forcefully(self._stream)
            self._stream = None
            raise ConnectionError("the gateway ended the connection without an answer") from None
        except BaseException:
            await trio.aclose_forcefully(self._stream)
            self._stream = None
            raise
        answered_at = time.time()
        if connection.our_state is h11.MUST_CLOSE:
            await self.aclose()
        else:
            connection.start_next_cycle()
        return Answer(status, orjson.loads(text) if text else None, asked_at, answered_at)

    async def _read(self, stream: trio.SocketStream) -> tuple[int, bytes]:
        status, text = 0, bytearray()
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(await stream.receive_some(READ_OCTETS))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                text += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(text)
