"""How results are shown: a plain table on stdout, progress on stderr."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any


def say(line: str) -> None:
    """Tell the progress of a long run; only to a terminal or a log that reads stderr."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Table:
    """Rows of text under columns; numbers to the right, the first and the last column to the left."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        assert len(cells) == len(self.columns)
        self.rows.append(cells)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def on_the_left(self) -> set[int]:
        """The columns of words; the others have numbers."""
        return {0, *(place for place, name in enumerate(self.columns) if name in ("asked", "versions", ""))}

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        left = self.on_the_left()
        text = [self.title]
        for line in lines:
            cells = (
                cell.ljust(width) if place in left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            text.append("  " + "  ".join(cells).rstrip())
        return "\n".join([*text, *("  " + note for note in self.notes)])


def conditions_line(conditions: dict[str, Any]) -> str:
    return (
        f"{conditions['date']}; {conditions['cpu']}, {conditions['cores']} cores, load {conditions['load']}; "
        f"Python {conditions['python']}; {conditions['commit']}; {conditions['command']}"
    )
