"""The funnel: one view for rows of all kinds, whose triggers put each where it belongs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from fastpush.gateway.storage.values import Value

__all__ = ["FUNNEL_COLUMNS", "LARGEST_STATEMENT", "VIEW", "flattened", "pour", "trigger_of"]

FUNNEL_COLUMNS = "abcdefghijkl"
LARGEST_STATEMENT = 512  # rows of the funnel; 13 parameters each, of SQLite's 32,766

VIEW = (
    "CREATE TEMP VIEW funnel AS SELECT NULL AS kind,"
    f" {', '.join(f'NULL AS {column}' for column in FUNNEL_COLUMNS)} WHERE 0"
)


def trigger_of(kind: int, statements: str) -> str:
    """The SQL that lets the funnel take rows of this kind."""
    return (
        f"CREATE TEMP TRIGGER funnel_{kind} INSTEAD OF INSERT ON funnel WHEN NEW.kind = {kind}\n"
        f"BEGIN {statements.rstrip().rstrip(';')}; END"
    )


def _statement(rows: int) -> str:
    places = f"({', '.join('?' * (1 + len(FUNNEL_COLUMNS)))})"
    return f"INSERT INTO funnel VALUES {', '.join([places] * rows)}"


# By the number of rows, in powers of two, so that SQLite compiles each once; the rest are rows of no kind.
_STATEMENTS = {1 << power: _statement(1 << power) for power in range(LARGEST_STATEMENT.bit_length())}
_NO_ROW: tuple[Value, ...] = (0, *(None,) * len(FUNNEL_COLUMNS))


def pour(connection: sqlite3.Connection, rows: Sequence[Sequence[Value]]) -> None:
    """Insert the rows in as few statements as may be."""
    for statement, values in flattened(rows):
        connection.execute(statement, values)


def flattened(rows: Sequence[Sequence[Value]]) -> list[tuple[str, list[Value]]]:
    """The statements that insert the rows, and the values of each."""
    width = len(_NO_ROW)
    statements = []
    for first in range(0, len(rows), LARGEST_STATEMENT):
        part = rows[first : first + LARGEST_STATEMENT]
        size = 1 << (len(part) - 1).bit_length()
        values: list[Value] = []
        for row in part:
            values += row
            if len(row) < width:
                values += _NO_ROW[len(row) :]
        values += _NO_ROW * (size - len(part))
        statements.append((_STATEMENTS[size], values))
    return statements
