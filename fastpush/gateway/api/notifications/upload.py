"""Notifications as lines of JSON, of any number: stored in chunks as they arrive, never all in memory.

    octets ──> lines ──> pending chunk ──> the chunk that is being stored ──> disk
               (hashed, counted)  at most CHUNK_ENTRIES       one at a time

The reader fills one chunk while the storer commits another; when both are full the reader stops reading, and
so, in the end, does the client. With an Idempotency-Key each commit says how many lines are done and what
their hash is: the repetition of a cut upload checks its lines against that and stores what is new.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from math import inf
from typing import final

import msgspec
import trio
from starlette.requests import ClientDisconnect

from fastpush.gateway.api import Receive, told, why_no_json
from fastpush.gateway.api.notifications.body import Invalid, Translator, decoder
from fastpush.gateway.outbox import (
    Acceptance,
    Chunk,
    Entry,
    Idempotency,
    IdempotencyConflict,
    Outbox,
    OutboxBusy,
    StreamState,
)

__all__ = ["CHUNK_ENTRIES", "MAX_LINE_OCTETS", "BadLine", "Room", "Upload", "Uploaded"]

MAX_LINE_OCTETS = 128 << 10
CHUNK_ENTRIES = 2_000
CHUNK_OCTETS = 1 << 20
"""Of payloads; with the last line's, which may be for a thousand device tokens, below the outbox's limit."""

CHUNK_AFTER = 0.5
"""Seconds after which a chunk is stored that did not fill up."""

BUSY_FOR = 5.0
"""Seconds for which an upload waits when the disk does not keep up, before it is refused."""

ASK_AGAIN_AFTER = 0.05
"""Seconds until a disk that did not keep up is asked again. It is the age of its queue that counts, of which
no event tells: a commit takes some milliseconds, and from an age of 0.25 s the outbox takes nothing more."""

LONGEST_PAUSE = 5.0
"""Seconds between two chunks of a key that is over its quota."""

MAX_BAD_LINES = 100
MAX_IDS = 1_000
ENTRY_OCTETS = 500  # of memory, besides the payload


class BadLine(msgspec.Struct, frozen=True):
    """A line that is no notification; it was left out."""

    line: int
    detail: str
    field: str | None = None


class Uploaded(msgspec.Struct, frozen=True):
    """What an upload came to.

    Attributes:
      batch: of the batch, or of the stream where there are several batches; None when nothing was good.
      ids: of the notifications in their order; None if there are more than MAX_IDS, or if some were
        stored by an earlier upload.
      replayed: the answer to an earlier, whole upload of the same lines, as it was given then.
    """

    app: str
    batch: int | None
    count: int
    lines: int
    bad_lines: tuple[BadLine, ...]
    bad_line_count: int
    ids: tuple[bytes, ...] | None
    replayed: bytes | None = None


@final
class Room:
    """What all uploads together hold in memory; `wait` lets a reader go on when there is room."""

    def __init__(self, octets: int) -> None:
        self.limit = octets
        self.held = 0
        self._given = trio.Event()

    def take(self, octets: int) -> None:
        self.held += octets

    def give(self, octets: int) -> None:
        self.held -= octets
        if self.held < self.limit:
            self._given.set()
            self._given = trio.Event()

    async def wait(self) -> None:
        while self.held >= self.limit:
            await self._given.wait()


class _Pending:
    """A chunk that is being filled."""

    __slots__ = ("entries", "octets", "since")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.octets = 0
        self.since = inf  # when the first entry came

    @property
    def full(self) -> bool:
        return len(self.entries) >= CHUNK_ENTRIES or self.octets >= CHUNK_OCTETS

    @property
    def weight(self) -> int:
        return self.octets + ENTRY_OCTETS * len(self.entries)


@final
class Upload:
    """One body of lines on its way into the outbox.

    Args:
      room: shared with all other uploads.
      idempotency: who repeats what; its digest is not used.
      charge: told how many notifications were stored, gives the seconds that the upload should pause.
    """

    def __init__(
        self,
        outbox: Outbox,
        translator: Translator,
        room: Room,
        *,
        source: str,
        idempotency: Idempotency | None,
        charge: Callable[[int], float] = lambda count: 0.0,
    ) -> None:
        self._outbox = outbox
        self._app = translator.app
        self._entries = translator.entries
        self._room = room
        self._source = source
        self._idempotency = idempotency
        self._charge = charge
        self._stream: StreamState | None = None
        self._skip = 0  # lines that an earlier upload has stored

        self._hash = sha256(self._app.encode()) if idempotency is not None else None
        self._rest = b""  # the beginning of a line
        self._too_long = False  # it was dropped, and so is what follows of it
        self._hash_of_long = sha256()  # stands for such a line in the hash
        self._lines = 0
        self._bad: list[BadLine] = []
        self._bad_count = 0

        self._pending = _Pending()
        self._acceptances: list[Acceptance] = []
        self._count = 0  # notifications of good lines, stored before or now
        self._stored_lines = 0
        self.accepted = 0  # notifications that are stored by now, of this upload
        self._ended = False
        self._failure: Exception | None = None
        self._turn = trio.Event()  # the storer's: entries have come, a chunk is full, or it is the end
        self._taken = trio.Event()  # the reader's: the storer has taken the pending chunk

    @property
    def stream(self) -> int | None:
        """The id under which all that is stored is found; None while there is at most one batch."""
        return None if self._stream is None else self._stream.stream

    @property
    def stored_lines(self) -> int:
        """Lines that are surely done, now or by an earlier upload."""
        return self._stored_lines

    async def run(self, receive: Receive) -> Uploaded:
        """Read the body to its end, and return when all of it is durable.

        Raises:
          ClientDisconnect: it was cut off. With an Idempotency-Key what came in whole lines is stored.
          IdempotencyConflict: the lines are not those of the earlier upload.
          StorageFull, StorageUnknown, OutboxBusy: see `stored_lines`.
        """
        if self._idempotency is not None:
            await self._open_stream()
        reading = trio.CancelScope()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._store_all, reading)
                with reading:
                    try:
                        await self._read_all(receive)
                    except (ClientDisconnect, IdempotencyConflict) as error:
                        self._failure = error
                self._ended = True
                self._turn.set()
        finally:
            self._room.give(self._pending.weight)
        if self._failure is not None:
            raise self._failure
        return await self._finish()

    # Reading.

    async def _read_all(self, receive: Receive) -> None:
        more = True
        while more:
            await self._room.wait()
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            await self._take(message.get("body", b""))
        if self._rest or self._too_long:
            await self._take(b"\n")
        if self._lines < self._skip:
            raise IdempotencyConflict("the upload is shorter than the earlier one")

    async def _take(self, octets: bytes) -> None:
        """Work on what has come; what follows the last line feed is kept for the next time."""
        if self._too_long:
            end = octets.find(b"\n")
            self._hash_of_long.update(octets if end < 0 else octets[:end])
            if end < 0:
                return
            octets, self._too_long = octets[end:], False
            if self._hash is not None:
                self._hash.update(self._hash_of_long.digest())
            self._refuse(f"The line is longer than {MAX_LINE_OCTETS:,} octets.", None, line=self._lines + 1)
        lines = (self._rest + octets if self._rest else octets).split(b"\n")
        self._rest = lines.pop()
        replayed = self._stream is not None and self._stream.answer is not None
        for line in lines:
            self._lines += 1
            if self._hash is not None:
                self._hash.update(line if len(line) <= MAX_LINE_OCTETS else sha256(line).digest())
                self._hash.update(b"\n")
            if not replayed:
                self._read(line)
                if self._lines == self._skip:
                    self._check_earlier()
                if self._pending.full:
                    await self._hand_over()
        if len(self._rest) > MAX_LINE_OCTETS:
            self._hash_of_long = sha256(self._rest)
            self._rest, self._too_long = b"", True
        if self._pending.entries:
            self._turn.set()

    def _read(self, line: bytes) -> None:
        """One line, good or bad; an empty one counts and is nothing."""
        if not line or line == b"\r":
            return
        if len(line) > MAX_LINE_OCTETS:
            self._refuse(f"The line is longer than {MAX_LINE_OCTETS:,} octets.")
            return
        try:
            entries = self._entries(decoder.decode(line))
        except Invalid as invalid:
            self._refuse(invalid.detail, invalid.field)
        except msgspec.ValidationError as error:
            self._refuse(*told(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._refuse(f"The line is not JSON: {why_no_json(error)}.")
        else:
            self._count += len(entries)
            if self._lines > self._skip:
                pending = self._pending
                if not pending.entries:
                    pending.since = trio.current_time()
                octets = len(entries[0].payload) * len(entries)
                pending.entries += entries
                pending.octets += octets
                self._room.take(octets + ENTRY_OCTETS * len(entries))

    def _refuse(self, detail: str, field: str | None = None, *, line: int | None = None) -> None:
        self._bad_count += 1
        if len(self._bad) < MAX_BAD_LINES:
            self._bad.append(BadLine(line or self._lines, detail, field))

    def _check_earlier(self) -> None:
        assert self._hash is not None
        assert self._stream is not None
        if self._hash.digest() != self._stream.running_hash:
            raise IdempotencyConflict("the lines are not those of the earlier upload")

    async def _hand_over(self) -> None:
        """Wait until the storer has taken the full chunk."""
        self._turn.set()
        while self._pending.full:
            self._taken = trio.Event()
            await self._taken.wait()

    # Storing.

    async def _open_stream(self) -> None:
        self._stream = await self._outbox.open_stream(
            self._app, source=self._source, idempotency=self._idempotency
        )
        self._skip = self._stored_lines = self._stream.lines

    async def _store_all(self, reading: trio.CancelScope) -> None:
        try:
            while await self._next_turn():
                await self._store()
        except Exception as error:
            self._failure = error
            reading.cancel()

    async def _next_turn(self) -> bool:
        """Wait until the pending chunk should be stored; False at the end."""
        while not self._ended and not self._pending.full:
            self._turn = trio.Event()
            with trio.CancelScope(deadline=self._pending.since + CHUNK_AFTER) as patience:
                await self._turn.wait()
            if patience.cancelled_caught:
                break
        resumable = self._failure is None or self._idempotency is not None
        return bool(self._pending.entries) and resumable

    async def _store(self) -> None:
        if self._stream is None and not (self._ended and not self._acceptances):
            await self._open_stream()
        pending, self._pending = self._pending, _Pending()
        lines = self._lines
        digest = b"" if self._hash is None else self._hash.digest()
        chunk = None
        if self._stream is not None:
            chunk = Chunk(self._stream.stream, self._stored_lines, lines, digest)
        self._taken.set()
        try:
            acceptance = await self._accept(pending.entries, chunk)
        finally:
            self._room.give(pending.weight)
        self._acceptances.append(acceptance)
        self.accepted += acceptance.count
        self._stored_lines = lines
        pause = self._charge(acceptance.count)
        if pause and not self._ended:
            await trio.sleep(min(pause, LONGEST_PAUSE))

    async def _accept(self, entries: list[Entry], chunk: Chunk | None) -> Acceptance:
        """A disk that does not keep up makes the upload slower, before it makes it fail."""
        until = trio.current_time() + BUSY_FOR
        while True:
            try:
                return await self._outbox.accept(self._app, entries, source=self._source, chunk=chunk)
            except OutboxBusy as busy:
                if busy.retry_after > 1 or trio.current_time() > until:
                    raise
            await trio.sleep(ASK_AGAIN_AFTER)

    # The answer.

    async def _finish(self) -> Uploaded:
        stream = self._stream
        if stream is not None and stream.answer is not None:
            return self._replay(stream.answer)
        batch = stream.stream if stream is not None else None
        ids: list[bytes] | None = None
        if stream is None and self._acceptances:
            batch = self._acceptances[0].batch
        if self._count <= MAX_IDS and not self._skip:
            ids = [one.apns_id(index) for one in self._acceptances for index in range(one.count)]
        return Uploaded(
            self._app, batch, self._count, self._lines, tuple(self._bad), self._bad_count,
            None if ids is None else tuple(ids),
        )  # fmt: skip

    async def keep(self, answer: bytes) -> None:
        """Give this answer to a repetition of the same lines."""
        if self._idempotency is not None and self._stream is not None:
            assert self._hash is not None
            kept = msgspec.msgpack.encode((self._lines, self._hash.digest(), answer))
            await self._outbox.finish_stream(self._stream.stream, kept)

    def _replay(self, kept: bytes) -> Uploaded:
        assert self._hash is not None
        lines, digest, answer = msgspec.msgpack.decode(kept)
        if (lines, digest) != (self._lines, self._hash.digest()):
            raise IdempotencyConflict("the lines are not those of the earlier upload")
        return Uploaded(self._app, self.stream, 0, lines, (), 0, None, answer)
