"""The file: who may open it, how it is opened, and how much room its disk has."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import final

from fastpush.gateway.log import get_logger
from fastpush.gateway.storage.errors import StorageUnusable
from fastpush.gateway.storage.funnel import VIEW
from fastpush.gateway.storage.values import Limits

__all__ = ["APPLICATION_ID", "File", "size_of"]

logger = get_logger("fastpush.gateway.storage")

APPLICATION_ID = 0x66507368  # "fPsh", in the header of the file
LOOK_AGAIN_AFTER = 0.1  # seconds
SAFE_SQLITE = (3, 51, 3)


@final
class File:
    """The locked file and its writing connection.

    The writing thread has it; what others read of it are single values.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path.absolute()
        self.wal = self.path.with_name(self.path.name + "-wal")
        self.reserve = self.path.with_name(self.path.name + ".reserve")
        self.lock = self.path.with_name(self.path.name + ".lock")
        self.limits = limits
        self.triggers: list[str] = []
        self.connection: sqlite3.Connection | None = None
        self.generation = 0
        """How often it was opened again: readers of before are closed."""
        self.full = False
        self.flush_after = 0.0
        self.since_look = 0
        """Octets written since the free space was judged."""
        self._lock_file = -1
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
                self.connect()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise StorageUnusable(f"{self.path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise StorageUnusable(f"{self.path}: {error}") from error
        self.look()
        logger.info(
            "the database is open", path=str(self.path), sqlite=sqlite3.sqlite_version,
            flush_ms=round(1e3 * self.flush_after, 2), free_octets=self.disk_free(),
        )  # fmt: skip
        if sqlite3.sqlite_version_info < SAFE_SQLITE:
            logger.warning(
                "this SQLite may corrupt the database: let no other program write it",
                reason="before 3.51.3, where two connections write to a WAL database at once",
                path=str(self.path), sqlite=sqlite3.sqlite_version,
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

    def connect(self) -> None:
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
            connection.execute(VIEW)
            for trigger in self.triggers:
                connection.execute(trigger)
        except BaseException:
            connection.close()
            raise
        self.connection = connection

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
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    # Room on the disk.

    def disk_free(self) -> int:
        """Octets that we may still use."""
        found = os.statvfs(self.path.parent)
        return found.f_bavail * found.f_frsize

    def look(self) -> None:
        """Judge the free space and the size of the log; each look hands Python's lock over: not too often."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_AGAIN_AFTER and self.since_look < self.limits.reserve_octets / 8:
            return
        self.since_look = 0
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
            logger.error(
                "the disk is nearly full: only outcomes are written", path=str(self.path), free_octets=free,
                least_octets=mark,
            )  # fmt: skip
        elif free >= mark + missing:
            if missing:
                self._make_reserve()
            if self.full:
                self.full = False
                logger.warning(
                    "the disk has room: all is written again", path=str(self.path), free_octets=free
                )
        wal = size_of(self.wal)
        if wal > limits.wal_octets and not self._wal_told:
            logger.error(
                "the write-ahead log has grown: a reader keeps it from being written back",
                path=str(self.wal), octets=wal,
            )  # fmt: skip
        self._wal_told = wal > limits.wal_octets

    def _make_reserve(self) -> None:
        file = os.open(self.reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, self.limits.reserve_octets)
        except OSError as error:
            logger.warning("no reserve for a full disk", path=str(self.reserve), error=error.strerror)
        finally:
            os.close(file)

    def give_reserve_up(self) -> None:
        self.full = True
        self.since_look, self._looked_at = 0, time.monotonic()
        try:
            self.reserve.unlink()
        except FileNotFoundError:
            return
        logger.error("the disk is full: the reserve was given up for outcomes", path=str(self.path))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
