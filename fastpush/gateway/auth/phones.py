"""Phones: how one comes to a secret of its own, and how it loses it.

Somebody is given a code, types it into the app, and the app exchanges it for the phone's secret; or the app's
own backend asks for the secret on behalf of a user whom it knows, and hands it on.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import scrypt
from hmac import compare_digest
from typing import Any, final

import msgspec
import trio

from fastpush.gateway.auth import enrolments
from fastpush.gateway.auth.audit import AuditLog
from fastpush.gateway.auth.checks import checked_app, checked_tags, checked_user
from fastpush.gateway.auth.presented import WRONG, Wrong
from fastpush.gateway.auth.principal import Principal
from fastpush.gateway.auth.secret import Secret, draw_code, draw_sealed, is_sealed, read_code
from fastpush.gateway.auth.slowing import Slowing
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import Storage, pour

__all__ = ["Code", "CodeRecord", "Enrolled", "Phones"]

CODE_ATTEMPTS = 5
CODE_VALID_FOR = 86_400.0  # seconds
LONGEST_CODE = 30 * 86_400.0
NO_CODE = "This code is not valid: mistyped, used before, or expired. Ask for a new one."


class Code(msgspec.Struct, frozen=True):
    """An enrolment code, shown once. `expires_at` is in UNIX seconds."""

    code: str
    app: str
    user: str
    tags: tuple[str, ...]
    expires_at: float


class CodeRecord(msgspec.Struct, frozen=True):
    """A code as it is listed; `code_id` is its first four digits."""

    code_id: str
    app: str
    user: str
    tags: tuple[str, ...]
    created_at: float
    created_by: str
    expires_at: float
    attempts: int
    """Of five."""


class Enrolled(msgspec.Struct, frozen=True):
    """What a phone gets. `device_secret` is shown once."""

    enrolment_id: str
    device_secret: str
    app: str
    user: str
    tags: tuple[str, ...]


@final
class Phones:
    """Codes and phones' secrets; part of an `Authenticator`.

    Args:
      seal_key: what phones' secrets are sealed with.
      forget: is called with the id of an enrolment that changed.
    """

    def __init__(
        self,
        storage: Storage,
        log: AuditLog,
        slow: Slowing,
        seal_key: bytes,
        forget: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._log = log
        self._slow = slow
        self._seal_key = seal_key
        self._forget = forget
        self._clock = clock

    async def judge(self, secret: Secret) -> Principal:
        """The phone whose secret this is. Raises Wrong."""
        if not is_sealed(secret, self._seal_key):
            raise Wrong(WRONG)
        found = await self._storage.read(partial(enrolments.find, enrolment_id=secret.id))
        if found is None or not secret.is_of(found.digest):
            raise Wrong(WRONG)
        if found.revoked_at is not None:
            raise Wrong("This device's secret was revoked. Enrol again.")
        return Principal(
            found.user or found.id,
            "device",
            frozenset(),
            frozenset((found.app,)),
            found.user or None,
            found.device_token,
            found.id,
        )

    async def create_code(
        self,
        app: str,
        user: str = "",
        tags: Sequence[str] = (),
        valid_for: float = CODE_VALID_FOR,
        *,
        by: Principal,
    ) -> Code:
        """Make a code that one phone may exchange for a secret, until it expires.

        Args:
          tags: what the phone is granted; it may register with these or fewer.
          valid_for: seconds, at most 30 days.

        Raises:
          Problem: 422, with the field.
        """
        app, user, granted = checked_app(app), checked_user(user), checked_tags(tags)
        if not 0 < valid_for <= LONGEST_CODE:
            raise Problem(422, "invalid value", "A code is valid for at most 30 days.", field="valid_for")
        now, salt = self._clock(), secrets.token_bytes(16)
        whom = f"for {user or 'nobody named'}; tags: {' '.join(granted) or 'none'}"
        audit = self._log.row(by, "code.created", app, whom)
        while True:
            code_id, code_secret = draw_code()
            digest = await trio.to_thread.run_sync(_digest, code_secret, salt)
            code = enrolments.NewCode(
                code_id, salt, digest, app, user, json.dumps(granted), now, by.name, now + valid_for
            )
            if await self._storage.write(partial(_add_code, code=code, audit=audit)):
                return Code(f"{code_id}-{code_secret}", app, user, granted, now + valid_for)

    async def codes(self, after: str = "", limit: int = 100) -> list[CodeRecord]:
        """Codes that are neither used nor over, in the order of their ids; without their secrets."""
        now = self._clock()
        found = await self._storage.read(
            lambda connection: connection.execute(
                "SELECT id, app, user, tags, created_at, created_by, expires_at, attempts FROM enrolment_code"
                " WHERE id > ? AND expires_at > ? AND attempts < ? ORDER BY id LIMIT ?",
                (after, now, CODE_ATTEMPTS, limit),
            ).fetchall()
        )
        return [
            CodeRecord(
                code_id, app, user, tuple(json.loads(tags)), created_at, created_by, expires_at, attempts
            )
            for code_id, app, user, tags, created_at, created_by, expires_at, attempts in found
        ]

    async def withdraw_code(self, code_id: str, *, apps: frozenset[str] | None, by: Principal) -> None:
        """Let a code be good for nothing. Raises Problem: 404."""
        audit = self._log.row(by, "code.withdrawn", code_id)

        def change(connection: sqlite3.Connection) -> bool:
            found = enrolments.find_code(connection, code_id)
            if found is None or (apps is not None and found.app not in apps):
                return False
            enrolments.take_code(connection, code_id, found.salt)
            pour(connection, [audit])
            return True

        if not await self._storage.write(change, essential=True):
            raise Problem(404, "no such code", f"There is no code {code_id[:8]!r}.")

    async def enrol(self, code: str, *, address: str = "") -> Enrolled:
        """Exchange a code for a phone's secret. Whoever comes second with the same code gets nothing.

        Raises:
          Problem: 401, it is no code, expired, used, or was tried wrongly too often; 429, too many wrong ones
            came from this address.
        """
        self._slow.check(address)
        read = read_code(code)
        if read is None:
            raise self._slow.refusal(address, NO_CODE)
        code_id, code_secret = read
        known = await self._storage.read(partial(enrolments.find_code, code_id=code_id))
        now = self._clock()
        if known is None or known.expires_at <= now:
            raise self._slow.refusal(address, NO_CODE)
        # Counted before it is compared: of many tries at once no more than these are compared.
        counted = await self._storage.write(
            partial(enrolments.count_attempt, code_id=code_id, salt=known.salt, limit=CODE_ATTEMPTS)
        )
        digest = await trio.to_thread.run_sync(_digest, code_secret, known.salt) if counted else b""
        if not compare_digest(digest, known.digest):
            raise self._slow.refusal(address, NO_CODE)
        secret = draw_sealed(self._seal_key)
        phone = Principal(known.user or secret.id, "device", frozenset(), key_id=secret.id, address=address)
        audit = self._log.row(phone, "phone.enrolled", known.app, f"with a code of {known.created_by}")
        row = enrolments.NewEnrolment(
            secret.id, secret.digest(), known.app, known.user, known.tags, now, known.created_by
        )

        def change(connection: sqlite3.Connection) -> bool:
            if not enrolments.take_code(connection, code_id, known.salt):
                return False
            enrolments.add(connection, row)
            pour(connection, [audit])
            return True

        if not await self._storage.write(change):
            raise self._slow.refusal(address, NO_CODE)
        return Enrolled(secret.id, secret.text(), known.app, known.user, tuple(json.loads(known.tags)))

    async def enrol_for(
        self, app: str, user: str = "", tags: Sequence[str] = (), *, by: Principal
    ) -> Enrolled:
        """Make a phone's secret on behalf of its user: for the app's own backend, which hands it on.

        Raises:
          Problem: 422, with the field.
        """
        app, user, granted = checked_app(app), checked_user(user), checked_tags(tags)
        secret = draw_sealed(self._seal_key)
        audit = self._log.row(by, "phone.enrolled", secret.id, f"{app}: for {user or 'nobody named'}")
        row = enrolments.NewEnrolment(
            secret.id, secret.digest(), app, user, json.dumps(granted), self._clock(), by.name
        )

        def change(connection: sqlite3.Connection) -> None:
            enrolments.add(connection, row)
            pour(connection, [audit])

        await self._storage.write(change)
        return Enrolled(secret.id, secret.text(), app, user, granted)

    async def revoke(self, enrolment_id: str, *, apps: frozenset[str] | None, by: Principal) -> None:
        """Let a phone's secret be good for nothing from now on; the phone stays registered.

        Args:
          apps: those whose phones may be meant; None is all.

        Raises:
          Problem: 404
        """
        audit = self._log.row(by, "phone.revoked", enrolment_id)
        now = self._clock()

        def change(connection: sqlite3.Connection) -> bool:
            found = enrolments.find(connection, enrolment_id)
            if found is None or (apps is not None and found.app not in apps):
                return False
            if found.revoked_at is None:
                enrolments.revoke(connection, enrolment_id, now)
                pour(connection, [audit])
            return True

        try:
            known = await self._storage.write(change, essential=True)
        finally:
            self._forget(enrolment_id)
        if not known:
            raise Problem(404, "no such enrolment", f"There is no enrolment {enrolment_id[:24]!r}.")


def _digest(code_secret: str, salt: bytes) -> bytes:
    """Of a code's secret, which has 29 bits: too few for a fast hash. 40 ms and 16 MiB."""
    return scrypt(code_secret.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32)


def _add_code(connection: sqlite3.Connection, code: enrolments.NewCode, audit: tuple[Any, ...]) -> bool:
    if not enrolments.add_code(connection, code):
        return False
    pour(connection, [audit])
    return True
