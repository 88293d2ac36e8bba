"""What is written, within which limits, and what is told of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from fastpush.gateway.counters import Histogram

__all__ = ["MEBIOCTET", "Job", "Limits", "Migration", "Question", "StorageStatistics", "Value"]

T = TypeVar("T")
Value = int | float | str | bytes | None
Migration = Sequence[str] | Callable[[sqlite3.Connection], None]
"""One step of a schema: statements, or a function that is given the connection inside the transaction."""

MEBIOCTET = 1 << 20


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
    commit_histogram: Histogram
    """Of all commits; it goes on counting."""
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
