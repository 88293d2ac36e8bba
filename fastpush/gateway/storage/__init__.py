"""The gateway's one SQLite file: who writes it, when it is durable, and what happens when the disk fails.

One connection writes, in a thread of its own; it alone checkpoints (SQLite before 3.51.3 can corrupt a WAL
database when two connections write or checkpoint at the same instant). Everything that waits is committed
together, with one flush of the log, and only then are the waiters woken, all in one turn of trio's loop.

Python's lock decides how fast that is. The sqlite3 module lets go of it around every call into SQLite and
has to get it back from a thread that is busy with Python, at the price of some 20 us or more (turns.py).
Therefore the hot path is one call for a whole commit. Rows of all kinds go into one view, the *funnel*,
whose triggers put each where it belongs: a single INSERT with many rows is statement, transaction and flush
in one. Rarer changes are functions that get the connection, each in a savepoint of its own.

What a failed flush leaves behind nobody can know: SQLite reports a rollback, and yet the rows may be there
after the next start. Their writers get `StorageUnknown`, the file is closed, opened, and checked.
"""

from fastpush.gateway.storage.backup import backup_database
from fastpush.gateway.storage.errors import (
    BackupRefused,
    StorageBroken,
    StorageError,
    StorageFull,
    StorageUnknown,
    StorageUnusable,
)
from fastpush.gateway.storage.funnel import FUNNEL_COLUMNS, pour
from fastpush.gateway.storage.store import Storage, open_storage
from fastpush.gateway.storage.values import Job, Limits, Migration, Question, StorageStatistics, Value

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
    "Value",
    "backup_database",
    "open_storage",
    "pour",
]
