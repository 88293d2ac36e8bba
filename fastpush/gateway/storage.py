"""The gateway's one SQLite file: who writes it, when it is durable, and what happens when the disk fails.

One connection writes, in a thread of its own; it alone checkpoints (SQLite before 3.51.3 can corrupt a WAL
database when two connections write or checkpoint at the same instant). Everything that waits is committed
together, with one flush of the log, and only then are the waiters woken, all in one turn of trio's loop.

Python's lock decides how fast that is. The sqlite3 module lets go of it around every call into SQLite, and a
thread that is busy with Python gives it back only after 5 ms: a commit of a thousand calls takes seconds.
Therefore the hot path is one call for a whole commit. Rows of all kinds go into one view, the *funnel*, whose
triggers put each where it belongs: a single INSERT with many rows is statement, transaction and flush in one.
Rarer changes are functions that get the connection, each in a savepoint of its own.

What a failed flush leaves behind nobody can know: SQLite reports a rollback, and yet the rows may be there
after the next start. Their writers get `StorageUnknown`, the file is closed, opened, and checked.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, final

import msgspec
import trio

__all__ = [
    "FUNNEL_COLUMNS",
    "BackupRefused",
    "Job",
    "Limits",
    "Migration",
    "Question",
    "Storage",
    "StorageBroken",
    "StorageError",
    "StorageFull",
    "StorageStatistics",
    "StorageUnknown",
    "StorageUnusable",
    "backup_database",
    "open_storage",
    "pour",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Value = int | float | str | bytes | None
Migration = Sequence[str] | Callable[[sqlite3.Connection], None]
"""One step of a schema: statements, or a function that is given the connection inside the transaction."""

APPLICATION_ID = 0x66507368  # "fPsh", in the header of the file
MEBIOCTET = 1 << 20

FUNNEL_COLUMNS = "abcdefghijkl"
LARGEST_STATEMENT = 512  # rows of the funnel; 13 parameters each, of SQLite's 32,766
CHECKPOINT_OCTETS = 16 * MEBIOCTET
PAGES_OF_A_ROW = 2  # an estimate, for the growth of the log between two checkpoints

CLOSE_WITHIN = 10.0  # seconds; a disk that hangs does not keep the process
GIVE_UP_AFTER, GIVE_UP_WITHIN = 3, 60.0  # flush errors, and seconds
SLOW_FLUSH = 0.001  # seconds; below it what waits gathers by itself while the last commit is written
LOOK_AGAIN_AFTER = 0.1  # seconds
LOOK_EVERY = 1.0  # seconds between looks at the disk while nothing is written
SAFE_SQLITE = (3, 51, 3)


class StorageError(Exception):
    """Something durable could not be done."""


class StorageUnusable(StorageError):
    """The file cannot be opened; the message has the reason and, where there is one, the cure."""


class StorageFull(StorageError):
    """The disk is full, or below the low-water mark. Nothing of this was stored."""


class StorageUnknown(StorageError):
    """The disk failed while this was written: it may come back after a restart, or not."""


class BackupRefused(StorageError):
    """There is something else than a backup in the backup's place. It was left as it is."""


class StorageBroken(StorageError):
    """The disk failed too often; nothing is written any more."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the storage leaves free and how it gathers commits.

    Attributes:
      low_water_octets, low_water_share: below the larger of the two (the share is of the file system's size)
        only what is essential is written.
      reserve_octets: a file of this size is deleted when the disk is full after all.
      gather_after: the longest wait for company before a commit, seconds.
      gather_rows: as many rows make a commit without waiting.
      wal_octets: a larger log is told of; a reader that never ends keeps it growing.
      synchronous: with "NORMAL" a commit survives a kill of the process, but not a power cut.
    """

    low_water_octets: int = 256 * MEBIOCTET
    low_water_share: float = 0.05
    reserve_octets: int = 4 * MEBIOCTET
    gather_after: float = 0.005
    gather_rows: int = 500
    wal_octets: int = 64 * MEBIOCTET
    synchronous: Literal["FULL", "NORMAL"] = "FULL"


class StorageStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the storage did since it was opened; seconds and octets."""

    commits: int
    rows: int
    """Rows of the funnel and changes."""
    commit_p50: float
    """Of the last thousand commits."""
    commit_p99: float
    flush_after: float
    """How long the disk takes to flush 4 KiB, measured when the file was opened."""
    waiting_rows: int
    waiting_after: float
    """How long the oldest of these has waited."""
    file_octets: int
    wal_octets: int
    disk_free_octets: int
    full: bool
    flush_errors: int
    sqlite_version: str


class Question(NamedTuple):
    """What is read in the commit's wake, for all jobs that ask it, in one statement.

    `columns` are read from the row of `table` whose `key`, a blob, is the job's; blobs come as hex digits.
    """

    table: str
    key: str
    columns: tuple[str, ...]


class Job(Generic[T]):
    """One thing to be written whole or not at all.

    Args:
      rows: for the funnel: the number of a kind, then a value for each of its columns.
      change: a function that is called with the connection, in the writing thread; not with `rows`.
      essential: also written when the disk is nearly full: outcomes, and what frees space.
      question, key: what to read once it is written.
      finished: called in trio's thread, exactly once: with the change's result (or the answer to the
        question, or None) and no error, or with the error. Also when nobody waits any more.
    """

    __slots__ = (
        "change",
        "error",
        "essential",
        "finished",
        "key",
        "octets",
        "question",
        "queued_at",
        "rows",
        "value",
    )

    def __init__(
        self,
        finished: Callable[[T | None, Exception | None], object] | None = None,
        *,
        rows: Sequence[Sequence[Value]] = (),
        change: Callable[[sqlite3.Connection], T] | None = None,
        essential: bool = False,
        question: Question | None = None,
        key: bytes | None = None,
        octets: int = 0,
    ) -> None:
        self.finished = finished
        self.rows = rows
        self.change = change
        self.essential = essential
        self.question = question
        self.key = key
        self.octets = octets
        self.queued_at = 0.0
        self.value: T | None = None
        self.error: Exception | None = None

    @property
    def weight(self) -> int:
        return len(self.rows) or 1


@asynccontextmanager
async def open_storage(
    path: str | os.PathLike[str], limits: Limits | None = None
) -> AsyncGenerator[Storage, None]:
    """Open the file, or make it, and hold it alone. Leaving the block writes what was queued.

    Raises:
      StorageUnusable: another process holds it, it is no database of ours, the directory cannot be written.
      StorageBroken: out of the block, which is cancelled, after the third flush error in a minute.
    """
    file = _File(Path(path), limits or Limits())
    await trio.to_thread.run_sync(file.open)
    storage = Storage(file)
    try:
        with trio.CancelScope() as scope:
            storage._start(scope)
            yield storage
    finally:
        with trio.move_on_after(CLOSE_WITHIN, shield=True):
            await storage._close()
    if file.broken is not None:
        raise StorageBroken(str(file.broken)) from file.broken


@final
class Storage:
    """The open file; made by `open_storage`. Used from the trio thread only, by any number of tasks."""

    def __init__(self, file: _File) -> None:
        self._file = file
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
        state = "closed" if self._closed else "broken" if self._file.broken else "open"
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
        return self._file.healthy

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
        sql = (
            f"CREATE TEMP TRIGGER funnel_{kind} INSTEAD OF INSERT ON funnel WHEN NEW.kind = {kind}\n"
            f"BEGIN {trigger.rstrip().rstrip(';')}; END"
        )
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
        if self._file.broken is not None and self._scope is not None:
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
        file = self._file
        seconds = sorted(file.commit_seconds)
        return StorageStatistics(
            commits=file.commits,
            rows=file.rows,
            commit_p50=seconds[len(seconds) // 2] if seconds else 0.0,
            commit_p99=seconds[int(len(seconds) * 0.99)] if seconds else 0.0,
            flush_after=file.flush_after,
            waiting_rows=self._pending_rows,
            waiting_after=self.pending_after,
            file_octets=_size(file.path),
            wal_octets=_size(file.wal),
            disk_free_octets=file.disk_free(),
            full=file.full,
            flush_errors=file.flush_errors,
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
            target=self._file.write_all, args=(self._queue, tell), name="fastpush storage", daemon=True
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


class _File:
    """The file as the writing thread has it. What others read of it are single values."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path.absolute()
        self.wal = self.path.with_name(self.path.name + "-wal")
        self.reserve = self.path.with_name(self.path.name + ".reserve")
        self.lock = self.path.with_name(self.path.name + ".lock")
        self.limits = limits
        self.triggers: list[str] = []
        self.full = False
        self.healthy = True
        self.broken: Exception | None = None
        self.generation = 0
        self.commits = 0
        self.rows = 0
        self.commit_seconds: deque[float] = deque(maxlen=1_000)
        self.flush_after = 0.0
        self.flush_errors = 0
        self._errors_at: deque[float] = deque(maxlen=GIVE_UP_AFTER)
        self._connection: sqlite3.Connection | None = None
        self._lock_file = -1
        self._since_checkpoint = 0
        self._since_look = 0
        self._last_weight = 0
        self._wal_told = False
        self._looked_at = 0.0

    # Opening and closing.

    def open(self) -> None:
        """Lock the file, open it and look at the disk. Raises StorageUnusable."""
        try:
            self._take_lock()
            try:
                self._make_private()
                self.flush_after = self._measure_flush()
                self._connect()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise StorageUnusable(f"{self.path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise StorageUnusable(f"{self.path}: {error}") from error
        self.look()
        logger.info(
            "%s: SQLite %s, the disk flushes in %.2f ms, %d MiB are free",
            self.path, sqlite3.sqlite_version, 1e3 * self.flush_after, self.disk_free() // MEBIOCTET,
        )  # fmt: skip
        if sqlite3.sqlite_version_info < SAFE_SQLITE:
            logger.warning(
                "SQLite %s may corrupt a WAL database that two connections write at once (cured in 3.51.3); "
                "fastpush writes with one only. Let no other program write %s",
                sqlite3.sqlite_version, self.path,
            )  # fmt: skip

    def _take_lock(self) -> None:
        """Of flock(2), which ends with the process however it ends."""
        if not self.path.parent.is_dir():
            raise StorageUnusable(f"{self.path}: the directory {self.path.parent} does not exist")
        self._lock_file = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock_file)
            self._lock_file = -1
            raise StorageUnusable(
                f"{self.path} is in use by another process (its id is {holder}); "
                "two gateways cannot share one file"
            ) from None
        os.ftruncate(self._lock_file, 0)
        os.pwrite(self._lock_file, f"{os.getpid()}\n".encode(), 0)

    def _make_private(self) -> None:
        """SQLite gives the log the rights of the database."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _measure_flush(self) -> float:
        """Seconds for 4 KiB; the best of five, since whatever else the disk does is no property of it."""
        probe = self.path.with_name(self.path.name + ".probe")
        file = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            best = 1.0
            for _ in range(5):
                started = time.perf_counter()
                os.pwrite(file, bytes(4_096), 0)
                os.fdatasync(file)
                best = min(best, time.perf_counter() - started)
            return best
        except OSError:
            return 0.0  # a full disk is no reason not to open
        finally:
            os.close(file)
            probe.unlink()

    def _connect(self) -> None:
        connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            found = connection.execute("PRAGMA application_id").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if found != APPLICATION_ID and tables:
                raise StorageUnusable(f"{self.path} is a SQLite database of another program")
            if not tables:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            if (mode := connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
                raise StorageUnusable(
                    f"{self.path}: the file system allows no write-ahead log (journal {mode})"
                )
            for setting in (
                f"synchronous = {self.limits.synchronous}",
                "wal_autocheckpoint = 16000",  # pages; only if our own checkpoints do not come through
                f"journal_size_limit = {self.limits.wal_octets}",
                "cache_size = -16384",
                "temp_store = MEMORY",
                "mmap_size = 0",
            ):
                connection.execute(f"PRAGMA {setting}")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (name TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS pulse (id INTEGER PRIMARY KEY, beats INTEGER NOT NULL)"
            )
            nothing = ", ".join(f"NULL AS {column}" for column in FUNNEL_COLUMNS)
            connection.execute(f"CREATE TEMP VIEW funnel AS SELECT NULL AS kind, {nothing} WHERE 0")
            for trigger in self.triggers:
                connection.execute(trigger)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def open_reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=ro",
            uri=True,
            timeout=1.0,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def close(self) -> None:
        """Close the connection, which writes the log back into the file, and let go of the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    # The writing thread.

    def write_all(
        self, jobs: queue.SimpleQueue[Job[Any] | None], tell: Callable[[Sequence[Job[Any]]], None]
    ) -> None:
        """Commit what comes until None comes."""
        while True:
            try:
                job = jobs.get(timeout=LOOK_EVERY)
            except queue.Empty:
                self.look()
                continue
            group, ended = self._gather(job, jobs)
            if group:
                try:
                    self._write_group(group)
                except Exception as error:  # of ours: better to end than to leave waiters waiting
                    logger.critical("%s: the writing thread failed", self.path, exc_info=True)
                    self.broken = error
                    for one in group:
                        one.error = StorageUnknown(f"{self.path}: {error!r}")
                tell(group)
                self._after_commit(group)
            if ended:
                return

    def _gather(
        self, first: Job[Any] | None, jobs: queue.SimpleQueue[Job[Any] | None]
    ) -> tuple[list[Job[Any]], bool]:
        """The first job and those that wait, or come in a moment if they did so the last time."""
        group: list[Job[Any]] = []
        weight, job = 0, first
        waited = self._last_weight < 2 or self.flush_after < SLOW_FLUSH
        while job is not None:
            group.append(job)
            weight += job.weight
            if weight >= self.limits.gather_rows:
                break
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                if waited:
                    break
                # About as long as the flush takes: twice as late at most, and often with all.
                waited = True
                time.sleep(min(self.limits.gather_after, self.flush_after))
                try:
                    job = jobs.get_nowait()
                except queue.Empty:
                    break
        self._last_weight = len(group)
        return group, job is None

    def _write_group(self, group: Sequence[Job[Any]]) -> None:
        """Commit the jobs; afterwards each has its value or its error."""
        if self.broken is not None:
            for job in group:
                job.error = StorageBroken(str(self.broken))
            return
        jobs: Sequence[Job[Any]] = group
        if self.full:
            jobs = [job for job in group if job.essential]
            _refuse((job for job in group if not job.essential), self)
        started = time.perf_counter()
        error = self._commit(jobs)
        if error is not None and _is_full(error):
            self._give_reserve_up()
            _refuse((job for job in jobs if not job.essential), self)
            jobs = [job for job in jobs if job.essential]
            error = self._commit(jobs)
        if error is None:
            if jobs:
                self.commits += 1
                self.rows += sum(job.weight for job in jobs)
                self.commit_seconds.append(time.perf_counter() - started)
            return
        if _is_full(error):
            _refuse(jobs, self)
            return
        if not _is_of_the_disk(error):
            for job in jobs:
                job.error = StorageError(f"{self.path}: {_told(error)}; nothing of this was stored")
                job.error.__cause__ = error
            return
        for job in jobs:
            job.error = StorageUnknown(f"{self.path}: {_told(error)}")
            job.error.__cause__ = error
        self._recover(error)

    def _commit(self, jobs: Sequence[Job[Any]]) -> sqlite3.Error | None:
        """Write the jobs in one transaction; return the disk's error, if it had one, with nothing written."""
        connection = self._connection
        assert connection is not None
        if not jobs:
            return None
        for job in jobs:
            job.error = None
        rows = [row for job in jobs for row in job.rows]
        changes = [job for job in jobs if job.change is not None]
        try:
            if changes or len(rows) > LARGEST_STATEMENT:
                connection.execute("BEGIN IMMEDIATE")
            try:
                pour(connection, rows)
            except sqlite3.Error as error:
                if _is_of_the_disk(error):
                    raise
                # A row that SQLite refuses takes down only its own job. All begin anew, one by one.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    if job.rows:
                        _in_savepoint(connection, job, partial(pour, rows=job.rows))
            for job in changes:
                assert job.change is not None
                _in_savepoint(connection, job, job.change)
            if connection.in_transaction:
                connection.execute("COMMIT")
            _answer(connection, jobs)
        except sqlite3.Error as error:
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            return error
        return None

    def _after_commit(self, group: Sequence[Job[Any]]) -> None:
        """What the waiters of this commit need not wait for."""
        written = sum([PAGES_OF_A_ROW * 4_096 * job.weight + job.octets for job in group])
        self._since_checkpoint += written
        self._since_look += written
        if self._since_checkpoint > CHECKPOINT_OCTETS and self.broken is None:
            self._since_checkpoint = 0
            self._checkpoint()
        self.look()

    def _checkpoint(self) -> None:
        assert self._connection is not None
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # The log is kept, so nothing is lost; a full disk comes right by itself.
            if _is_full(error):
                self._give_reserve_up()
            else:
                self._recover(error)

    # Disks that are full, and disks that fail.

    def disk_free(self) -> int:
        """Octets that we may still use."""
        found = os.statvfs(self.path.parent)
        return found.f_bavail * found.f_frsize

    def look(self) -> None:
        """Judge the free space and the size of the log; each look hands Python's lock over: not too often."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_AGAIN_AFTER and self._since_look < self.limits.reserve_octets / 8:
            return
        self._since_look = 0
        self._looked_at = now
        try:
            found = os.statvfs(self.path.parent)
        except OSError:
            return
        free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        limits = self.limits
        mark = max(limits.low_water_octets, int(limits.low_water_share * size))
        missing = 0 if self.reserve.exists() else limits.reserve_octets
        if not self.full and free < mark:
            self.full = True
            logger.error("%s: %d octets are free on the disk, of %d at least: only outcomes are written",
                         self.path, free, mark)  # fmt: skip
        elif free >= mark + missing:
            if missing:
                self._make_reserve()
            if self.full:
                self.full = False
                logger.warning("%s: %d octets are free on the disk: all is written again", self.path, free)
        wal = _size(self.wal)
        if wal > limits.wal_octets and not self._wal_told:
            logger.error("%s: the log has grown to %d octets; a reader keeps it from being written back",
                         self.wal, wal)  # fmt: skip
        self._wal_told = wal > limits.wal_octets

    def _make_reserve(self) -> None:
        file = os.open(self.reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, self.limits.reserve_octets)
        except OSError as error:
            logger.warning("%s: no reserve for a full disk: %s", self.reserve, error.strerror)
        finally:
            os.close(file)

    def _give_reserve_up(self) -> None:
        self.full = True
        self._looked_at = time.monotonic()
        try:
            self.reserve.unlink()
        except FileNotFoundError:
            return
        logger.error("%s: the disk is full; the reserve was given up for outcomes", self.path)

    def _recover(self, error: sqlite3.Error) -> None:
        """After a disk error: close, open, check, and write something over what may be left of the commit."""
        self.flush_errors += 1
        self.healthy = False
        logger.critical("%s: the disk failed: %s; the file is opened again", self.path, _told(error))
        while True:
            now = time.monotonic()
            self._errors_at.append(now)
            if len(self._errors_at) == GIVE_UP_AFTER and now - self._errors_at[0] <= GIVE_UP_WITHIN:
                self.broken = StorageBroken(
                    f"{self.path}: the disk failed {GIVE_UP_AFTER} times within {GIVE_UP_WITHIN:.0f} s, "
                    f"the last time with: {_told(error)}"
                )
                logger.critical("%s", self.broken)
                return
            try:
                self._open_again()
            except (sqlite3.Error, OSError, StorageError) as again:
                logger.critical("%s: opened again without success: %s", self.path, again)
                error = again if isinstance(again, sqlite3.Error) else sqlite3.OperationalError(str(again))
                continue
            self.healthy = True
            return

    def _open_again(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        self.generation += 1
        self._connect()
        assert self._connection is not None
        verdict = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StorageUnusable(f"{self.path} is damaged: {verdict}")
        self._connection.execute(
            "INSERT INTO pulse VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET beats = beats + 1"
        )


def backup_database(path: str | os.PathLike[str], destination: str | os.PathLike[str]) -> int:
    """Copy one consistent state of a gateway's file, whether a gateway is using it or not.

    The copy is made beside its place, checked, flushed, and only then put there. Returns its octets.

    Raises:
      BackupRefused: what stands in its place is no backup, or is the file itself.
      StorageError: the file cannot be read, the copy not be written, or it does not pass SQLite's check.
    """
    source, target = Path(path).absolute(), Path(destination).absolute()
    copy = target.with_name(target.name + ".partial")
    try:
        _check_replaceable(source, target)
        copy.unlink(missing_ok=True)
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        reader = sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=10.0)
        try:
            writer = sqlite3.connect(copy)
            try:
                reader.backup(writer)
                writer.execute("PRAGMA journal_mode = DELETE")
                verdict = writer.execute("PRAGMA quick_check(1)").fetchone()[0]
            finally:
                writer.close()
        finally:
            reader.close()
        if verdict != "ok":
            raise StorageError(f"the copy of {source} is damaged: {verdict}")
        _flush(copy)
        octets = copy.stat().st_size
        copy.replace(target)
        _flush(target.parent)
        return octets
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{source} could not be copied to {target}: {error}") from error
    finally:
        with suppress(OSError):
            copy.unlink(missing_ok=True)


def _check_replaceable(source: Path, target: Path) -> None:
    """Raise BackupRefused unless there is nothing, or an earlier backup."""
    if not target.exists():
        return
    if target.samefile(source):
        raise BackupRefused(f"{target} is the database itself")
    if not target.is_file():
        raise BackupRefused(f"{target} is no file; name the file to write")
    with target.open("rb") as file:
        head = file.read(100)
    # https://www.sqlite.org/fileformat.html, "The Database Header"
    if head[:16] != b"SQLite format 3\0" or int.from_bytes(head[68:72], "big") != APPLICATION_ID:
        raise BackupRefused(f"{target} exists and is no backup of a gateway; it was left as it is")
    if target.with_name(target.name + "-wal").exists():
        raise BackupRefused(f"{target} is a database in use, not a backup; it was left as it is")


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


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


def _statement(rows: int) -> str:
    places = f"({', '.join('?' * (1 + len(FUNNEL_COLUMNS)))})"
    return f"INSERT INTO funnel VALUES {', '.join([places] * rows)}"


# By the number of rows, in powers of two, so that SQLite compiles each once; the rest are rows of no kind.
_STATEMENTS = {1 << power: _statement(1 << power) for power in range(LARGEST_STATEMENT.bit_length())}
_NO_ROW: tuple[Value, ...] = (0, *(None,) * len(FUNNEL_COLUMNS))


def pour(connection: sqlite3.Connection, rows: Sequence[Sequence[Value]]) -> None:
    """Insert the rows in as few statements as may be."""
    width = len(_NO_ROW)
    for first in range(0, len(rows), LARGEST_STATEMENT):
        part = rows[first : first + LARGEST_STATEMENT]
        size = 1 << (len(part) - 1).bit_length()
        values: list[Value] = []
        for row in part:
            values += row
            if len(row) < width:
                values += _NO_ROW[len(row) :]
        values += _NO_ROW * (size - len(part))
        connection.execute(_STATEMENTS[size], values)


def _in_savepoint(
    connection: sqlite3.Connection, job: Job[Any], change: Callable[[sqlite3.Connection], Any]
) -> None:
    """Let the job have its value or its error. The disk's errors end the whole transaction and are raised."""
    connection.execute("SAVEPOINT job")
    try:
        job.value = change(connection)
        if not connection.in_transaction:
            raise sqlite3.OperationalError("a change may not commit")
    except Exception as error:
        if isinstance(error, sqlite3.Error) and _is_of_the_disk(error):
            raise
        if not connection.in_transaction:
            raise sqlite3.OperationalError("a change ended the transaction of all") from error
        job.error = error
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")


def _answer(connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> None:
    """Read for all jobs that ask, in one statement for each question."""
    asking: dict[Question, list[Job[Any]]] = {}
    for job in jobs:
        if job.question is not None and job.error is None:
            asking.setdefault(job.question, []).append(job)
    for question, askers in asking.items():
        keys = list({job.key for job in askers})
        size = 1 << (len(keys) - 1).bit_length()
        sql = (
            f"SELECT json_group_array(json_array(hex({question.key}), {', '.join(question.columns)})) "
            f"FROM {question.table} WHERE {question.key} IN ({', '.join('?' * size)})"
        )
        (text,) = connection.execute(sql, [*keys, *keys[:1] * (size - len(keys))]).fetchone()
        found = {bytes.fromhex(key): columns for key, *columns in json.loads(text)}
        for job in askers:
            job.value = found.get(job.key or b"")


def _code(error: sqlite3.Error) -> int:
    """The primary result code of SQLite; 0 for an error of Python's own module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _told(error: sqlite3.Error) -> str:
    return f"{error} ({getattr(error, 'sqlite_errorname', None) or type(error).__name__})"


_OF_THE_DISK = frozenset(
    (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
    )
)


def _is_of_the_disk(error: sqlite3.Error) -> bool:
    return _code(error) in _OF_THE_DISK


def _is_full(error: sqlite3.Error) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL


def _refuse(jobs: Iterable[Job[Any]], file: _File) -> None:
    for job in jobs:
        job.error = StorageFull(f"{file.path}: the disk is full; nothing of this was stored")
