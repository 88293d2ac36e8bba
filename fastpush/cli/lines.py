"""Files of notifications: one JSON object a line, read in constant memory whatever their length.

docs/cli.md has the fields. A line that is no notification is told to the reader's owner and skipped.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, BinaryIO

import orjson
import trio

from fastpush.errors import InvalidNotification
from fastpush.notification import Notification, Payload

__all__ = ["MAX_LINE_OCTETS", "BadLine", "Source", "parse_line"]

MAX_LINE_OCTETS = 65_536
"""A payload is 5,120 octets at most; a longer line is no notification."""

CHUNK_OCTETS = 65_536

FIELDS = ("topic", "push_type", "priority", "expiration", "collapse_id", "apns_id")
_KNOWN = frozenset(("device_token", "payload", *FIELDS))


class BadLine(ValueError):
    """Why a line is no notification."""


def parse_line(line: bytes) -> Notification:
    """Read the notification of one line.

    Raises:
      BadLine: no JSON object, a field that is missing or unknown, or a value that `Notification` refuses.
    """
    if len(line) > MAX_LINE_OCTETS:
        raise BadLine(f"is longer than {MAX_LINE_OCTETS:,} octets")
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadLine(f"is not JSON: {error.msg} at column {error.colno}") from None
    if type(fields) is not dict:
        raise BadLine(f"must be an object; it is {_kind(fields)}")
    if not fields.keys() <= _KNOWN:
        unknown = min(fields.keys() - _KNOWN)
        raise BadLine(f"has an unknown field {unknown[:40]!r}; the fields are {', '.join(sorted(_KNOWN))}")
    for name in ("device_token", "payload"):
        if name not in fields:
            raise BadLine(f"has no {name}")
    payload = fields.pop("payload")
    if type(payload) is not dict:
        raise BadLine(f"payload must be an object; it is {_kind(payload)}")
    try:
        return Notification(fields.pop("device_token"), Payload.raw(orjson.dumps(payload)), **_given(fields))
    except (InvalidNotification, TypeError) as error:
        raise BadLine(str(error)) from None


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Null means that the field is not given, also where the default is not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _kind(value: object) -> str:
    """What JSON calls a value of this type."""
    return {list: "an array", str: "a string", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


class Splitter:
    """Cuts octets into lines; of a line that is too long it keeps just enough to tell that it is."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, octets: bytes) -> list[bytes]:
        """Take octets and give the lines that they complete."""
        lines = (self._rest + octets).split(b"\n")
        self._rest = lines.pop()[: MAX_LINE_OCTETS + 1]
        return lines

    def end(self) -> list[bytes]:
        """Give the last line, where it has no line feed."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class Source:
    """Notifications from a file, in order, with the number of the line that each came from.

    Empty lines are skipped, but counted.

    Attributes:
      read: lines read so far.
      octets: octets read so far.
      total_octets: the size of a regular file, None for others.
      numbers: by `id` of a notification that was given out the number of its line; the owner takes it out.
    """

    def __init__(self, file: BinaryIO, on_bad_line: Callable[[int, str], None]) -> None:
        self._file = file
        self._on_bad_line = on_bad_line
        self._splitter = Splitter()
        self._stopped = False
        self._reading: trio.CancelScope | None = None
        self.read = 0
        self.octets = 0
        self.numbers: dict[int, int] = {}
        status = os.fstat(file.fileno())
        self.total_octets = status.st_size if os.path.isfile(file.fileno()) else None

    def stop(self) -> None:
        """Give out no further notification; a read that waits is left alone."""
        self._stopped = True
        if self._reading is not None:
            self._reading.cancel()

    def notifications(self) -> Iterator[Notification] | AsyncIterator[Notification]:
        """Give the notifications: of a pipe or a terminal asynchronously, since it may make one wait."""
        return self._read_file() if self.total_octets is not None else self._read_pipe()

    def _read_file(self) -> Iterator[Notification]:
        while not self._stopped and (chunk := self._file.read(CHUNK_OCTETS)):
            yield from self._notifications(self._split(chunk))
        yield from self._notifications(self._splitter.end())

    async def _read_pipe(self) -> AsyncIterator[Notification]:
        descriptor = self._file.fileno()
        while not self._stopped:
            chunk = b""
            # A thread that waits for a terminal cannot be woken; it ends with the process.
            with trio.CancelScope() as self._reading:
                chunk = await trio.to_thread.run_sync(
                    os.read, descriptor, CHUNK_OCTETS, abandon_on_cancel=True
                )
            if not chunk:
                break
            for notification in self._notifications(self._split(chunk)):
                yield notification
        for notification in self._notifications(self._splitter.end()):
            yield notification

    def _split(self, chunk: bytes) -> list[bytes]:
        self.octets += len(chunk)
        return self._splitter.feed(chunk)

    def _notifications(self, lines: list[bytes]) -> Iterator[Notification]:
        for line in lines:
            if self._stopped:
                return
            self.read += 1
            if not line or line.isspace():
                continue
            try:
                notification = parse_line(line)
            except BadLine as error:
                self._on_bad_line(self.read, str(error))
                continue
            self.numbers[id(notification)] = self.read
            yield notification
