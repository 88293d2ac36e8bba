"""Who is logged in to the console: a cookie's digest, the key behind it, and when it was last seen.

Beside it in the storage is the key that seals device tokens in the console's addresses.

A session is good while its key is: the next request after a key is revoked or has expired finds none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Callable
from typing import Any, final

import msgspec

from fastpush.gateway.console.handles import KEY_OCTETS, Handles
from fastpush.gateway.storage import Migration, Storage

__all__ = ["Session", "Sessions"]


def _draw_key(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE console_key (id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL)")
    connection.execute("INSERT INTO console_key VALUES (1, ?)", (secrets.token_bytes(KEY_OCTETS),))


_MIGRATIONS: list[Migration] = [
    [
        """CREATE TABLE console_session (
        digest BLOB PRIMARY KEY, key_id TEXT NOT NULL, began_at REAL NOT NULL, seen_at REAL NOT NULL
    ) WITHOUT ROWID"""
    ],
    _draw_key,
]
LONGEST = 7 * 86_400.0  # seconds; then one logs in again
IDLE = 24 * 3_600.0
SEEN_EVERY = 600.0  # seconds between two notes of it on disk
MOST = 1_000
TICKET_FOR = 600.0
SAID_FOR = 60.0  # seconds within which a page must come for what was said
MOST_SAID = 8


class Session(msgspec.Struct):
    """One browser.

    Attributes:
      digest: SHA-256 of the cookie's value, which is kept nowhere.
      key_id: whose.
      began_at, seen_at: UNIX seconds.
    """

    digest: bytes
    key_id: str
    began_at: float
    seen_at: float

    @property
    def csrf(self) -> str:
        """What a form must bring to show that it is one of ours."""
        return hmac.digest(self.digest, b"form", "sha256").hex()[:32]


@final
class Sessions:
    """All sessions, in memory and on disk. They are few."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._clock = clock
        self._sessions: dict[bytes, Session] | None = None
        self._tickets: dict[bytes, tuple[str, float]] = {}
        self._said: dict[bytes, dict[str, tuple[str, float]]] = {}
        self._handles: Handles | None = None

    @property
    def handles(self) -> Handles:
        """What stands for device tokens in addresses; there once a session was found."""
        assert self._handles is not None
        return self._handles

    async def begin(self, key_id: str) -> tuple[str, Session]:
        """A new session. Gives the cookie's value, and the session."""
        sessions = await self._loaded()
        value, now = secrets.token_urlsafe(32), self._clock()
        session = Session(_digest(value), key_id, now, now)
        while len(sessions) >= MOST:
            await self.end(min(sessions.values(), key=lambda one: one.seen_at))
        sessions[session.digest] = session
        await self._write(
            "INSERT OR REPLACE INTO console_session VALUES (?, ?, ?, ?)",
            (session.digest, key_id, now, now),
        )
        return value, session

    async def find(self, value: str | None) -> Session | None:
        """The session of a cookie's value, None if there is none or its time is over."""
        if not value:
            return None
        sessions = await self._loaded()
        session = sessions.get(_digest(value))
        if session is None:
            return None
        now = self._clock()
        if now - session.began_at > LONGEST or now - session.seen_at > IDLE:
            await self.end(session)
            return None
        if now - session.seen_at > SEEN_EVERY:
            session.seen_at = now
            await self._write(
                "UPDATE console_session SET seen_at = ? WHERE digest = ?", (now, session.digest)
            )
        return session

    def stands(self, session: Session) -> bool:
        """Whether a session that was found goes on; to ask does not prolong it."""
        now = self._clock()
        over = now - session.began_at > LONGEST or now - session.seen_at > IDLE
        return not over and session.digest in (self._sessions or {})

    async def end(self, session: Session) -> None:
        """Log out."""
        (await self._loaded()).pop(session.digest, None)
        self._said.pop(session.digest, None)
        await self._write("DELETE FROM console_session WHERE digest = ?", (session.digest,))

    def ticket(self, key_id: str) -> str:
        """A word that logs in once, within ten minutes; for a link that a command prints."""
        word = secrets.token_urlsafe(24)
        self._tickets[_digest(word)] = (key_id, self._clock() + TICKET_FOR)
        return word

    def take_ticket(self, word: str) -> str | None:
        """The key that a ticket stands for; it is used up."""
        key_id, until = self._tickets.pop(_digest(word), ("", 0.0))
        return key_id if self._clock() < until else None

    def say(self, session: Session, sentence: str) -> str:
        """Keep a sentence for the next page. Gives the word for which it is shown there, and nowhere else."""
        said = self._said.setdefault(session.digest, {})
        if len(said) >= MOST_SAID:
            del said[next(iter(said))]
        word = secrets.token_urlsafe(9)
        said[word] = sentence, self._clock() + SAID_FOR
        return word

    def take_said(self, session: Session, word: str) -> str:
        """What was said to this session under a word, once; "" for any other."""
        said = self._said.get(session.digest, {})
        sentence, until = said.pop(word, ("", 0.0))
        if not said:
            self._said.pop(session.digest, None)
        return sentence if self._clock() < until else ""

    async def _loaded(self) -> dict[bytes, Session]:
        if self._sessions is None:
            await self._storage.add_schema("console", _MIGRATIONS)
            self._handles = Handles(await self._storage.read(_key))
            rows = await self._storage.read(_rows)
            if self._sessions is None:
                self._sessions = {row[0]: Session(*row) for row in rows}
        return self._sessions

    async def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._storage.write(change, essential=True)


def _rows(connection: sqlite3.Connection) -> list[tuple[bytes, str, float, float]]:
    return connection.execute("SELECT digest, key_id, began_at, seen_at FROM console_session").fetchall()


def _key(connection: sqlite3.Connection) -> bytes:
    (key,) = connection.execute("SELECT key FROM console_key").fetchone()
    return bytes(key)


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode(errors="replace")).digest()
