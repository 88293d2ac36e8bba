"""Copies of the file: consistent, checked, and put in place whole."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from fastpush.gateway.storage.errors import BackupRefused, StorageError
from fastpush.gateway.storage.file import APPLICATION_ID

__all__ = ["backup_database"]


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
