"""On which line of a TOML text each key stands; `tomllib` reads the values and does not say."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import final

__all__ = ["Key", "positions"]

Key = tuple[str | int, ...]
"""From the top of the document to a value: names of tables and keys, numbers of places in arrays."""

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def positions(text: str) -> dict[Key, int]:
    """Find the line, from 1, of each table, key and place in an array.

    Args:
      text: valid TOML, as `tomllib.loads` has taken it; nothing is checked again.
    """
    return _Scan(text).lines


@final
class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self.lines: dict[Key, int] = {}
        self.arrays: dict[Key, int] = {}  # how many tables each array of tables has
        self.document()

    def document(self) -> None:
        table: Key = ()
        while True:
            self.skip(_BLANK)
            if self.at >= len(self.text):
                return
            if self.taken("[["):
                names = self.names()
                array = (*self.resolved(names[:-1]), names[-1])
                number = self.arrays[array] = self.arrays.get(array, -1) + 1
                table = (*array, number)
                self.note(array)
                self.note(table)
                self.skip_to("]]")
            elif self.taken("["):
                table = self.resolved(self.names())
                self.note(table)
                self.skip_to("]")
            else:
                self.pair(table)

    def resolved(self, names: list[str]) -> Key:
        """A header's names, with the last table of each array of tables on the way."""
        key: Key = ()
        for name in names:
            key = (*key, name)
            self.note(key)
            if key in self.arrays:
                key = (*key, self.arrays[key])
        return key

    def pair(self, table: Key) -> None:
        key = table
        for name in self.names():
            key = (*key, name)
            self.note(key)
        self.skip_to("=")
        self.skip(_SPACE)
        self.value(key)

    def names(self) -> list[str]:
        names = []
        while True:
            self.skip(_SPACE)
            bare = _BARE.match(self.text, self.at)
            if bare is not None:
                names.append(bare[0])
                self.at = bare.end()
            else:
                names.append(self.string())
            self.skip(_SPACE)
            if not self.taken("."):
                return names

    def string(self) -> str:
        found = _STRING.match(self.text, self.at)
        assert found is not None, "the text is not valid TOML"
        self.at = found.end()
        read: str = tomllib.loads(f"x = {found[0]}")["x"]
        return read

    def value(self, key: Key) -> None:
        if self.taken("["):
            self.elements(key)
        elif self.taken("{"):
            self.inline(key)
        elif found := _STRING.match(self.text, self.at):
            self.at = found.end()
        else:
            self.skip(_SCALAR)

    def elements(self, key: Key) -> None:
        number = 0
        while True:
            self.skip(_BLANK)
            if self.taken("]"):
                return
            self.note((*key, number))
            self.value((*key, number))
            number += 1
            self.skip(_BLANK)
            self.taken(",")

    def inline(self, key: Key) -> None:
        while True:
            self.skip(_BLANK)
            if self.taken("}"):
                return
            self.pair(key)
            self.skip(_BLANK)
            self.taken(",")

    def note(self, key: Key) -> None:
        self.lines.setdefault(key, bisect_right(self.starts, self.at))

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()

    def skip_to(self, mark: str) -> None:
        self.at = self.text.index(mark, self.at) + len(mark)

    def taken(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True
