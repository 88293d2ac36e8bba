"""`Storage`: what the gateway's tasks have in their hands, and `open_storage`, which makes it."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, final

import trio

from fastpush.gateway.storage.backup import backup_database
from fastpush.gateway.storage.errors import StorageBroken, StorageUnusable
from fastpush.gateway.storage.file import File, size_of
from fastpush.gateway.storage.funnel import trigger_of
from fastpush.gateway.storage.values import Job, Limits, Migration, StorageStatistics, Value
from fastpush.gateway.storage.writer import Writer

__all__ = ["Storage", "open_storage"]

T = TypeVar("T")

CLOSE_WITHIN = 10.0  # seconds; a disk that hangs does not keep the process


@asynccontextmanager
async def open_storage(
    path: str | os.PathLike[str], limits: Limits | None = None
) -> AsyncGenerator[Storage, None]:
    """Open the file, or make it, and hold it alone. Leaving the block writes what was queued.

    Raises:
      StorageUnusable: another process holds it, it is no database of ours, the directory cannot be written.
      StorageBroken: out of the block, which is cancelled, after the third flush error in a minute.
    """
    file = File(Path(path), limits or Limits())
    await trio.to_thread.run_sync(file.open)
    storage = Storage(file)
    try:
        with trio.CancelScope() as scope:
            storage._start(scope)
            yield storage
    finally:
        with trio.move_on_after(CLOSE_WITHIN, shield=True):
            await storage._close()
    if storage._writer.broken is not None:
        raise StorageBroken(str(storage._writer.broken)) from storage._writer.broken


@final
class Storage:
    """The open file; made by `open_storage`. Used from the trio thread only, by any number of tasks."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._writer = Writer(file)
        self._kinds = 0
        self._pending: deque[Job[Any]] = deque()
        self._pending_rows = 0
        self._pending_octets = 0
        self._queue: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._readers: list[tuple[int, sqlite3.Connection]] = []
        self._reading = trio.CapacityLimiter(4)
        self._closed = False
        self._scope: trio.CancelScope | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._writer.broken else "open"
        return f"<{type(self).__name__} {self._file.path.name}, {state}, {self._pending_rows} rows waiting>"

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def full(self) -> bool:
        """Whether the disk is below its low-water mark: what is not essential is refused."""
        return self._file.full

    @property
    def healthy(self) -> bool:
        """False from a failed flush until the file was opened again and checked."""
        return self._writer.healthy

    @property
    def pending_rows(self) -> int:
        return self._pending_rows

    @property
    def pending_octets(self) -> int:
        return self._pending_octets

    @property
    def pending_after(self) -> float:
        """Seconds for which the oldest of what is queued has waited."""
        return time.monotonic() - self._pending[0].queued_at if self._pending else 0.0

    # Schemas.

    async def add_schema(self, name: str, migrations: Sequence[Migration]) -> None:
        """Bring the tables called `name` to the newest version: the number of migrations.

        Each migration is a transaction together with its version, so that a kill between two of them, or in
        the middle of one, is made good at the next start.

        Raises:
          StorageUnusable: the file was written by a newer fastpush.
        """
        done = await self.write(lambda connection: _version_of(connection, name), essential=True)
        if done > len(migrations):
            raise StorageUnusable(
                f"{self.path}: its tables {name!r} have version {done}, this fastpush knows up to "
                f"{len(migrations)}; it was written by a newer fastpush"
            )
        for version, migration in enumerate(migrations[done:], done + 1):
            await self.write(_migrate(name, version, migration), essential=True)

    async def add_kind(self, trigger: str) -> int:
        """Let the funnel take another kind of row, and return the kind's number.

        Args:
          trigger: SQL statements that put a row in its place; `NEW.a` to `NEW.l` are its values.
        """
        self._kinds += 1
        kind = self._kinds
        sql = trigger_of(kind, trigger)
        self._file.triggers.append(sql)
        await self.write(lambda connection: connection.execute(sql) and None, essential=True)
        return kind

    # Writing.

    def submit(self, job: Job[Any]) -> None:
        """Queue a job; `job.finished` tells its end. Jobs with rows keep their order."""
        if self._closed:
            raise RuntimeError("the storage is closed")
        job.queued_at = time.monotonic()
        self._pending.append(job)
        self._pending_rows += job.weight
        self._pending_octets += job.octets
        self._queue.put(job)

    async def write(self, change: Callable[[sqlite3.Connection], T], *, essential: bool = False) -> T:
        """Call `change` with the writing connection, in its thread, and return its result once it is durable.

        It runs in a savepoint: what it raises undoes only its own doing and is raised here. It must not
        commit, wait, or touch what belongs to trio. Cancelled, it may be written all the same.

        Raises:
          StorageFull: not written.
          StorageUnknown: perhaps written.
        """
        return await self._finish(Job(change=change, essential=essential))

    async def insert(self, rows: Sequence[Sequence[Value]], *, essential: bool = False) -> None:
        """Send rows through the funnel, all or none of them, and return once they are durable.

        Raises:
          StorageFull: not written.
          StorageUnknown: perhaps written.
        """
        job: Job[None] = Job(rows=rows, essential=essential)
        await self._finish(job)

    async def _finish(self, job: Job[T]) -> T:
        done = trio.Event()
        job.finished = lambda _value, _error: done.set()
        self.submit(job)
        await done.wait()
        if job.error is not None:
            raise job.error
        return job.value  # type: ignore[return-value]  # a change that gives None has T = None

    def _finished(self, jobs: Sequence[Job[Any]]) -> None:
        """Tell the ends of one commit; called once for each by the writing thread, through trio."""
        for job in jobs:
            self._pending_rows -= job.weight
            self._pending_octets -= job.octets
            self._pending.popleft()
        for job in jobs:
            if job.finished is not None:
                job.finished(job.value, job.error)
        if self._writer.broken is not None and self._scope is not None:
            self._scope.cancel()

    # Reading.

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Call `query` with a connection that can only read, in another thread.

        Each statement sees what was committed when it began. Where several must see the same, the query
        executes BEGIN itself; it is ended here. Every row that is fetched hands Python's lock over: let
        SQLite pack many into one (`json_group_array`).
        """
        return await trio.to_thread.run_sync(self._read, query, limiter=self._reading)

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        generation, connection = self._readers.pop() if self._readers else (-1, None)
        if connection is None or generation != self._file.generation:
            if connection is not None:
                connection.close()
            generation, connection = self._file.generation, self._file.open_reader()
        try:
            return query(connection)
        finally:
            if connection.in_transaction:
                connection.rollback()
            self._readers.append((generation, connection))

    async def backup(self, destination: str | os.PathLike[str]) -> int:
        """Copy one consistent state of the file to `destination`, while it goes on being used.

        Returns its octets. Raises what `backup_database` raises.
        """
        return await trio.to_thread.run_sync(backup_database, self.path, destination)

    def statistics(self) -> StorageStatistics:
        file, writer = self._file, self._writer
        seconds = sorted(writer.commit_seconds)
        return StorageStatistics(
            commits=writer.commits,
            rows=writer.rows,
            commit_p50=seconds[len(seconds) // 2] if seconds else 0.0,
            commit_p99=seconds[int(len(seconds) * 0.99)] if seconds else 0.0,
            commit_histogram=writer.commit_histogram,
            flush_after=file.flush_after,
            waiting_rows=self._pending_rows,
            waiting_after=self.pending_after,
            file_octets=size_of(file.path),
            wal_octets=size_of(file.wal),
            disk_free_octets=file.disk_free(),
            full=file.full,
            flush_errors=writer.flush_errors,
            sqlite_version=sqlite3.sqlite_version,
        )

    # Life.

    def _start(self, scope: trio.CancelScope) -> None:
        token = trio.lowlevel.current_trio_token()

        def tell(jobs: Sequence[Job[Any]]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._finished, jobs)

        self._scope = scope
        self._thread = threading.Thread(
            target=self._writer.write_all, args=(self._queue, tell), name="fastpush storage", daemon=True
        )
        self._thread.start()

    async def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        if self._thread is not None:
            await trio.to_thread.run_sync(self._thread.join, abandon_on_cancel=True)
        for _, connection in self._readers:
            connection.close()
        self._readers.clear()
        await trio.to_thread.run_sync(self._file.close, abandon_on_cancel=True)


def _version_of(connection: sqlite3.Connection, name: str) -> int:
    found = connection.execute("SELECT version FROM schema_version WHERE name = ?", (name,)).fetchone()
    return found[0] if found else 0


def _migrate(name: str, version: int, migration: Migration) -> Callable[[sqlite3.Connection], None]:
    def change(connection: sqlite3.Connection) -> None:
        if callable(migration):
            migration(connection)
        else:
            for statement in migration:
                connection.execute(statement)
        connection.execute(
            "INSERT INTO schema_version VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET version = ?2",
            (name, version),
        )

    return change
