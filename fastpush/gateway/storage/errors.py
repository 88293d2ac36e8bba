"""What goes wrong with a disk: our errors, and what SQLite's say."""

from __future__ import annotations

import sqlite3

__all__ = [
    "BackupRefused",
    "StorageBroken",
    "StorageError",
    "StorageFull",
    "StorageUnknown",
    "StorageUnusable",
    "is_full",
    "is_of_the_disk",
    "told",
]


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


def _code(error: sqlite3.Error) -> int:
    """The primary result code of SQLite; 0 for an error of Python's own module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def told(error: sqlite3.Error) -> str:
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


def is_of_the_disk(error: sqlite3.Error) -> bool:
    return _code(error) in _OF_THE_DISK


def is_full(error: sqlite3.Error) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL
