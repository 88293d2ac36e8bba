"""Requests that carry a signature in place of a key: is it right, in time, and the first of its kind?"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, final

from fastpush.gateway import signatures
from fastpush.gateway.auth.presented import WRONG, Wrong, signature_of
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import Job, Storage

__all__ = ["SignatureGuard", "open_signature_guard"]

MAX_REMEMBERED = 200_000
"""Signatures; about 30 MB. Only whoever has a signing secret can add to them."""

# digest, signed_at
_TAKEN = "INSERT OR IGNORE INTO signature VALUES (NEW.a, NEW.b)"


async def open_signature_guard(storage: Storage, clock: Callable[[], float], window: int) -> SignatureGuard:
    """Open the guard in a storage that has its table; it knows what was taken before a restart."""
    guard = SignatureGuard(storage, await storage.add_kind(_TAKEN), clock, window)
    for digest, signed_at in await storage.read(
        lambda connection: connection.execute(
            "SELECT digest, signed_at FROM signature WHERE signed_at >= ? ORDER BY signed_at",
            (clock() - window,),
        ).fetchall()
    ):
        guard.remember(digest, signed_at)
    return guard


@final
class SignatureGuard:
    """Judges signatures, and remembers those that it took for as long as they could be taken again.

    Args:
      window: how far a signature's time may be from ours, seconds.
    """

    def __init__(self, storage: Storage, kind: int, clock: Callable[[], float], window: int) -> None:
        self._storage = storage
        self._kind = kind
        self._clock = clock
        self._window = window
        self._taken: dict[bytes, float] = {}  # until when they are remembered

    def remember(self, digest: bytes, signed_at: int) -> None:
        # Signed for a time to come it stays good for that much longer; those before it wait with it.
        self._taken[digest] = max(self._clock(), signed_at) + self._window

    def judge(self, key_id: str, secret: bytes, scope: Any, body: bytes | None) -> None:
        """Go on only if the request is signed with the secret, lately, and was not taken before.

        Raises:
          Wrong: it proves nothing.
          Problem: 409, it was taken before; 503, too many were.
        """
        signed = signature_of(scope)
        if signed is None:
            raise Wrong("This key signs: send webhook-id, webhook-timestamp and webhook-signature, once.")
        if body is None:
            raise Wrong("A signed request cannot be taken here: its body is not read as a whole.")
        if not signatures.verify([secret], signed.signatures, signed.message_id, signed.timestamp, body):
            raise Wrong(WRONG)
        now = self._clock()
        if abs(now - signed.timestamp) > self._window:
            raise Wrong(
                f"The signature is of {signed.timestamp}, and it is {now:.0f} here; {self._window} seconds"
                " between them are allowed. Sign each sending anew, and set the clock."
            )
        digest = blake2b(
            f"{key_id}\0{signed.timestamp}\0{signed.message_id}".encode(), digest_size=16
        ).digest()
        self._forget(now)
        if digest in self._taken:
            raise Problem(
                409, "used before", "This signature was used before. Sign each sending anew.", stored=False
            )
        if len(self._taken) >= MAX_REMEMBERED:
            wait = {"Retry-After": str(self._window)}
            raise Problem(503, "busy", "Too many signatures are remembered.", headers=wait, stored=False)
        self.remember(digest, signed.timestamp)
        # Nobody waits for it: rows keep their order, so it is on disk before what the request asks for.
        self._storage.submit(Job(rows=((self._kind, digest, signed.timestamp),), essential=True))

    def _forget(self, now: float) -> None:
        over = []
        for digest, until in self._taken.items():
            if until >= now:
                break
            over.append(digest)
        for digest in over:
            del self._taken[digest]

    def trim(self, connection: sqlite3.Connection) -> None:
        """Take out what is over, in the writing thread."""
        connection.execute("DELETE FROM signature WHERE signed_at < ?", (self._clock() - self._window,))
