"""The writing thread: what waits is committed together, and what follows when the disk says no."""

from __future__ import annotations

import json
import queue
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, final

from fastpush.gateway.counters import Histogram
from fastpush.gateway.log import get_logger
from fastpush.gateway.storage.errors import (
    StorageBroken,
    StorageError,
    StorageFull,
    StorageUnknown,
    StorageUnusable,
    is_full,
    is_of_the_disk,
    told,
)
from fastpush.gateway.storage.file import File
from fastpush.gateway.storage.funnel import LARGEST_STATEMENT, flattened, pour
from fastpush.gateway.storage.turns import Turns
from fastpush.gateway.storage.values import MEBIOCTET, Job, Question

__all__ = ["Writer"]

logger = get_logger("fastpush.gateway.storage")

CHECKPOINT_OCTETS = 16 * MEBIOCTET
PAGES_OF_A_ROW = 2  # an estimate, for the growth of the log between two checkpoints
GIVE_UP_AFTER, GIVE_UP_WITHIN = 3, 60.0  # flush errors, and seconds
GATHER_AT_LEAST = 0.004
"""Seconds. 64 webhooks at once cost 690 us of CPU each with none, 595 with 2 ms, 563 with 4 ms."""
LOOK_EVERY = 1.0  # seconds between looks at the disk while nothing is written


@final
class Writer:
    """Commits jobs, in a thread of its own. What others read of it are single values."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.limits = file.limits
        self.healthy = True
        self.broken: Exception | None = None
        self.commits = 0
        self.rows = 0
        self.commit_seconds: deque[float] = deque(maxlen=1_000)
        self.commit_histogram = Histogram()
        self.flush_errors = 0
        self._errors_at: deque[float] = deque(maxlen=GIVE_UP_AFTER)
        self._since_checkpoint = 0
        self._last_jobs = 0
        self._gather_for = min(self.limits.gather_after, max(file.flush_after, GATHER_AT_LEAST))
        self._turns = Turns()

    def write_all(
        self, jobs: queue.SimpleQueue[Job[Any] | None], tell: Callable[[Sequence[Job[Any]]], None]
    ) -> None:
        """Commit what comes until None comes."""
        self._turns.begin()
        try:
            while self._write_next(jobs, tell):
                pass
        finally:
            self._turns.end()

    def _write_next(
        self, jobs: queue.SimpleQueue[Job[Any] | None], tell: Callable[[Sequence[Job[Any]]], None]
    ) -> bool:
        """Commit what waits, or comes within a second; return whether more may come."""
        turns = self._turns
        turns.away()
        try:
            job = jobs.get(timeout=LOOK_EVERY)
        except queue.Empty:
            self.file.look()
            return True
        turns.back()
        group, ended = self._gather(job, jobs)
        if group:
            try:
                self._write_group(group)
            except Exception as error:  # of ours: better to end than to leave waiters waiting
                logger.critical("the writing thread failed", path=str(self.file.path), exc_info=True)
                self.broken = error
                for one in group:
                    one.error = StorageUnknown(f"{self.file.path}: {error!r}")
            turns.away()
            tell(group)
            self._after_commit(group)
        return not ended

    def _gather(
        self, first: Job[Any] | None, jobs: queue.SimpleQueue[Job[Any] | None]
    ) -> tuple[list[Job[Any]], bool]:
        """The first job and those that wait, or come in a moment if they did so the last time."""
        group: list[Job[Any]] = []
        weight, job = 0, first
        waited = self._last_jobs < 2
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
                # Who came in company comes again: fewer commits, and each costs as much as some requests.
                waited = True
                self._turns.away()
                time.sleep(self._gather_for)
                self._turns.back()
                try:
                    job = jobs.get_nowait()
                except queue.Empty:
                    break
        self._last_jobs = len(group)
        return group, job is None

    def _write_group(self, group: Sequence[Job[Any]]) -> None:
        """Commit the jobs; afterwards each has its value or its error."""
        if self.broken is not None:
            for job in group:
                job.error = StorageBroken(str(self.broken))
            return
        jobs: Sequence[Job[Any]] = group
        if self.file.full:
            jobs = [job for job in group if job.essential]
            _refuse((job for job in group if not job.essential), self.file)
        started = time.perf_counter()
        error = self._commit(jobs)
        if error is not None and is_full(error):
            self.file.give_reserve_up()
            _refuse((job for job in jobs if not job.essential), self.file)
            jobs = [job for job in jobs if job.essential]
            error = self._commit(jobs)
        if error is None:
            if jobs:
                self.commits += 1
                self.rows += sum(job.weight for job in jobs)
                took = time.perf_counter() - started
                self.commit_seconds.append(took)
                self.commit_histogram.add(took)
            return
        if is_full(error):
            _refuse(jobs, self.file)
            return
        if not is_of_the_disk(error):
            for job in jobs:
                job.error = StorageError(f"{self.file.path}: {told(error)}; nothing of this was stored")
                job.error.__cause__ = error
            return
        for job in jobs:
            job.error = StorageUnknown(f"{self.file.path}: {told(error)}")
            job.error.__cause__ = error
        self._recover(error)

    def _commit(self, jobs: Sequence[Job[Any]]) -> sqlite3.Error | None:
        """Write the jobs in one transaction; return the disk's error, if it had one, with nothing written."""
        connection = self.file.connection
        assert connection is not None
        if not jobs:
            return None
        for job in jobs:
            job.error = None
        rows = [row for job in jobs for row in job.rows]
        changes = [job for job in jobs if job.change is not None]
        statements = flattened(rows)
        self._turns.away()
        try:
            if changes or len(rows) > LARGEST_STATEMENT:
                connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in statements:
                    connection.execute(statement, values)
            except sqlite3.Error as error:
                if is_of_the_disk(error):
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
        self.file.since_look += written
        if self._since_checkpoint > CHECKPOINT_OCTETS and self.broken is None:
            self._since_checkpoint = 0
            self._checkpoint()
        self.file.look()

    def _checkpoint(self) -> None:
        assert self.file.connection is not None
        try:
            self.file.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # The log is kept, so nothing is lost; a full disk comes right by itself.
            if is_full(error):
                self.file.give_reserve_up()
            else:
                self._recover(error)

    def _recover(self, error: sqlite3.Error) -> None:
        """After a disk error: close, open, check, and write something over what may be left of the commit."""
        self.flush_errors += 1
        self.healthy = False
        logger.critical(
            "the disk failed: the database is opened again", path=str(self.file.path), error=told(error)
        )
        while True:
            now = time.monotonic()
            self._errors_at.append(now)
            if len(self._errors_at) == GIVE_UP_AFTER and now - self._errors_at[0] <= GIVE_UP_WITHIN:
                self.broken = StorageBroken(
                    f"{self.file.path}: the disk failed {GIVE_UP_AFTER} times within {GIVE_UP_WITHIN:.0f} s, "
                    f"the last time with: {told(error)}"
                )
                logger.critical("the disk fails for good", path=str(self.file.path), error=str(self.broken))
                return
            try:
                self._open_again()
            except (sqlite3.Error, OSError, StorageError) as again:
                logger.critical(
                    "the database was opened again without success",
                    path=str(self.file.path),
                    error=str(again),
                )
                error = again if isinstance(again, sqlite3.Error) else sqlite3.OperationalError(str(again))
                continue
            self.healthy = True
            return

    def _open_again(self) -> None:
        connection, self.file.connection = self.file.connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        self.file.generation += 1
        self.file.connect()
        assert self.file.connection is not None
        verdict = self.file.connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StorageUnusable(f"{self.file.path} is damaged: {verdict}")
        self.file.connection.execute(
            "INSERT INTO pulse VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET beats = beats + 1"
        )


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
        if isinstance(error, sqlite3.Error) and is_of_the_disk(error):
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


def _refuse(jobs: Iterable[Job[Any]], file: File) -> None:
    for job in jobs:
        job.error = StorageFull(f"{file.path}: the disk is full; nothing of this was stored")
