"""Who a request comes from: keys, signatures and phones' secrets."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple, final

import msgspec
import trio

from fastpush.gateway import signatures
from fastpush.gateway.auth import schema
from fastpush.gateway.auth.audit import AuditLog, open_audit_log
from fastpush.gateway.auth.checks import checked_app, checked_name
from fastpush.gateway.auth.phones import Phones
from fastpush.gateway.auth.presented import WRONG, Wrong, presented, text_of
from fastpush.gateway.auth.principal import CONTROL, SCOPES, Principal
from fastpush.gateway.auth.secret import draw_secret, read_secret
from fastpush.gateway.auth.signed import SignatureGuard, open_signature_guard
from fastpush.gateway.auth.slowing import CHALLENGE, Slowing
from fastpush.gateway.config.sections import AuthSettings
from fastpush.gateway.control import is_trusted
from fastpush.gateway.log import get_logger
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import Storage, StorageError, pour

__all__ = ["Authenticator", "CreatedKey", "KeyRecord", "open_authenticator"]

logger = get_logger("fastpush.gateway.auth")

MAX_PROVED = 20_000
MISSING = "Send a key: Authorization: Bearer KEY, Basic with the key as password, or X-Api-Key: KEY."
WRITE_USES_EVERY = 60.0  # seconds
FURTHEST = 100 * 365.25 * 86_400.0
"""Of an expiry, in seconds from now: it is a date that every calendar has. Milliseconds are beyond it."""
KEEP_CODES = 86_400.0  # seconds after their end


class KeyRecord(msgspec.Struct, frozen=True):
    """A key as it is listed. Instants are UNIX seconds; `last_used_at` on disk lags by a minute.

    Attributes:
      apps: None is every app.
      signed: its requests carry a signature in place of the key.
    """

    key_id: str
    name: str
    scopes: tuple[str, ...]
    apps: tuple[str, ...] | None
    signed: bool
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None


class CreatedKey(NamedTuple):
    """A new key. `secret` is shown once: the key, or `whsec_…` of a key that signs."""

    key_id: str
    secret: str


class _Key:
    """A key in memory."""

    __slots__ = ("digest", "dirty", "principal", "record", "signing_secret", "used_at")

    def __init__(self, record: KeyRecord, digest: bytes | None, signing_secret: bytes | None) -> None:
        self.record = record
        self.digest = digest
        self.signing_secret = signing_secret
        self.used_at = record.last_used_at
        self.dirty = False
        self.principal = Principal(
            record.name,
            "key",
            frozenset(record.scopes),
            None if record.apps is None else frozenset(record.apps),
            key_id=record.key_id,
        )


class _Proof:
    """A header that was found right; `expires_at` is that of its key."""

    __slots__ = ("expires_at", "key", "principal")

    def __init__(self, key: _Key | None, principal: Principal) -> None:
        self.key = key
        self.principal = principal
        self.expires_at = key.record.expires_at if key is not None else None


async def open_authenticator(
    storage: Storage, settings: AuthSettings | None = None, *, clock: Callable[[], float] = time.time
) -> Authenticator:
    """Open keys, phones and the audit log in a storage; start `run` in a nursery."""
    settings = settings or AuthSettings()
    await storage.add_schema("auth", schema.MIGRATIONS)
    log = await open_audit_log(storage, clock)
    guard = await open_signature_guard(storage, clock, settings.signature_seconds)
    seal_key, rows = await storage.read(_load)
    return Authenticator(storage, settings, log, guard, seal_key, rows, clock)


@final
class Authenticator:
    """Knows who is who; made by `open_authenticator`, used from one trio program.

    Attributes:
      phones: enrolment codes and phones' secrets.
      log: the audit log.
    """

    def __init__(
        self,
        storage: Storage,
        settings: AuthSettings,
        log: AuditLog,
        guard: SignatureGuard,
        seal_key: bytes,
        rows: Iterable[Sequence[Any]],
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._guard = guard
        self._keys: dict[str, _Key] = {}
        for *columns, digest, signing_secret in rows:
            self._keys[columns[0]] = _Key(_record(columns), digest, signing_secret)
        slow = (clock, settings.max_failures, settings.failures_seconds, settings.blocked_seconds)
        self._slow = Slowing(*slow)
        self._proved: dict[bytes, _Proof] = {}
        self._proved_by: dict[str, list[bytes]] = {}  # by key or enrolment, to forget them by
        self._changes = 0
        self._marker = secrets.token_bytes(32)
        self._no_digest = secrets.token_bytes(32)
        self._open = Principal("open", "open", frozenset(settings.open_scopes))
        self.log = log
        self.phones = Phones(storage, log, Slowing(*slow), seal_key, self.forget, clock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._keys)} keys>"

    # Who is it?

    def is_signed(self, scope: Any) -> bool:
        """Whether a signature comes with the request: then `authenticate` needs its body."""
        return any(name == signatures.SIGNATURE for name, _ in scope["headers"])

    async def authenticate(
        self, scope: Any, *, query_token: bool = False, body: bytes | None = None
    ) -> Principal:
        """Tell who a request comes from.

        A key or secret comes as `Authorization: Bearer`, as user or password of Basic, or in `X-Api-Key`.

        Args:
          scope: of ASGI.
          query_token: it may also be the parameter `token` of the query: for webhooks whose sender can set
            nothing but a URL.
          body: the whole body, for a request that is signed.

        Raises:
          Problem: 401, nothing or nothing right was shown; 429, too much that is wrong came from this
            address; 409, the signature was used before.
        """
        if is_trusted(scope):
            return CONTROL
        value = presented(scope, query_token)
        if value is None:
            if self._open.scopes:
                return replace(self._open, address=_address(scope))
            raise Problem(401, "key missing", MISSING, headers=CHALLENGE)
        mark = blake2b(value, digest_size=16, key=self._marker).digest()
        proof = self._proved.get(mark)
        if proof is None:
            return await self._prove(scope, value, mark, body)
        now = self._clock()
        if proof.expires_at is not None and proof.expires_at <= now:
            self.forget(proof.principal.key_id)
            return await self._prove(scope, value, mark, body)
        key = proof.key
        if key is not None:
            key.used_at = now
            key.dirty = True
        principal = proof.principal
        client = scope["client"]
        if client is not None and client[0] != principal.address:
            principal = proof.principal = replace(principal, address=client[0])
        return principal

    async def _prove(self, scope: Any, value: bytes, mark: bytes, body: bytes | None) -> Principal:
        address = _address(scope)
        try:
            while True:
                changes = self._changes
                key, principal = await self._judge(scope, value, body)
                if changes == self._changes:
                    break  # otherwise what was read may have been revoked meanwhile
        except Wrong as wrong:
            raise self._slow.refusal(address, str(wrong)) from None
        principal = replace(principal, address=address)
        if key is None or key.signing_secret is None:
            if len(self._proved) >= MAX_PROVED:
                self._proved.clear()
                self._proved_by.clear()
            self._proved[mark] = _Proof(key, principal)
            self._proved_by.setdefault(principal.key_id, []).append(mark)
        return principal

    async def _judge(self, scope: Any, value: bytes, body: bytes | None) -> tuple[_Key | None, Principal]:
        """Look at what was shown. Raises Wrong."""
        text = text_of(value)
        if text is None:
            raise Wrong(WRONG)
        key = self._keys.get(text)
        if key is not None and key.signing_secret is not None:
            self._guard.judge(text, key.signing_secret, scope, body)
            return key, self._used(key)
        secret = read_secret(text)
        if secret is None:
            raise Wrong("This is not a key, or one that is mistyped: its form or its checksum is wrong.")
        if secret.kind == "fpd":
            return None, await self.phones.judge(secret)
        key = self._keys.get(secret.id)
        digest = key.digest if key is not None and key.digest is not None else self._no_digest
        if not secret.is_of(digest) or key is None:
            raise Wrong(WRONG)
        return key, self._used(key)

    def _used(self, key: _Key) -> Principal:
        """The principal of a key that was proved; whoever has it may know why it is not taken."""
        now, record = self._clock(), key.record
        if record.revoked_at is not None:
            raise Wrong("This key was revoked.")
        if record.expires_at is not None and record.expires_at <= now:
            raise Wrong("This key has expired.")
        key.used_at = now
        key.dirty = True
        return key.principal

    def forget(self, key_id: str) -> None:
        """Look anew at this key or enrolment when it is shown again: it was revoked or changed."""
        self._changes += 1
        for mark in self._proved_by.pop(key_id, ()):
            self._proved.pop(mark, None)

    def forget_phones(self) -> None:
        """The same for all phones."""
        for key_id in [key_id for key_id in self._proved_by if key_id.startswith("fpd_")]:
            self.forget(key_id)

    # Keys.

    def principal(self, key_id: str) -> Principal | None:
        """Whom a key stands for, while it is good: for sessions that began with it."""
        key = self._keys.get(key_id)
        if key is None or key.record.revoked_at is not None:
            return None
        expires_at = key.record.expires_at
        return key.principal if expires_at is None or expires_at > self._clock() else None

    async def create(
        self,
        name: str,
        scopes: Iterable[str],
        apps: Iterable[str] | None = None,
        expires_at: float | None = None,
        *,
        signed: bool = False,
        by: Principal | None = None,
    ) -> CreatedKey:
        """Make a key for a person or a system.

        Args:
          name: of whom it is for, 1 to 64 characters that can be printed.
          scopes: of `SCOPES`, at least one.
          apps: None is every app.
          expires_at: UNIX seconds; None is never.
          signed: its requests are to carry a signature, and the key itself proves nothing.
          by: who makes it, for the audit log; None is the program itself.

        Raises:
          Problem: 422, with the field.
        """
        by = by or CONTROL
        now = self._clock()
        if expires_at is not None and expires_at <= now:
            raise Problem(422, "invalid value", "The key would have expired already.", field="expires_at")
        if expires_at is not None and expires_at > now + FURTHEST:
            raise Problem(
                422, "invalid value", "UNIX seconds, at most 100 years ahead; leave it out for never.",
                field="expires_at",
            )  # fmt: skip
        secret = draw_secret()
        while secret.id in self._keys:
            secret = draw_secret()
        digest, signing_secret = (None, secrets.token_bytes(32)) if signed else (secret.digest(), None)
        record = KeyRecord(
            key_id=secret.id,
            name=checked_name(name, "name"),
            scopes=_checked_scopes(scopes),
            apps=_checked_apps(apps),
            signed=signed,
            created_at=now,
            created_by=by.name,
            expires_at=expires_at,
            revoked_at=None,
            last_used_at=None,
        )
        told = "all apps" if record.apps is None else " ".join(record.apps)
        audit = self.log.row(by, "key.created", secret.id, f"{name}: {' '.join(record.scopes)}; {told}")

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO api_key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (
                    record.key_id, record.name, json.dumps(record.scopes),
                    None if record.apps is None else json.dumps(record.apps),
                    digest, signing_secret, now, by.name, expires_at,
                ),
            )  # fmt: skip
            pour(connection, [audit])

        await self._storage.write(change)
        self._keys[secret.id] = _Key(record, digest, signing_secret)
        shown = signatures.write_signing_secret(signing_secret) if signing_secret else secret.text()
        return CreatedKey(secret.id, shown)

    def list(self) -> Sequence[KeyRecord]:
        """All keys, revoked and expired ones among them, the newest last."""
        records = [
            msgspec.structs.replace(key.record, last_used_at=key.used_at) for key in self._keys.values()
        ]
        return sorted(records, key=lambda record: (record.created_at, record.key_id))

    async def revoke(self, key_id: str, *, by: Principal | None = None) -> KeyRecord:
        """Let a key be good for nothing from now on; it stays in the list. Revoking it again does nothing.

        Raises:
          Problem: 404
        """
        key = self._keys.get(key_id)
        if key is None:
            raise Problem(404, "no such key", f"There is no key {key_id[:20]!r}.")
        if key.record.revoked_at is not None:
            return key.record
        now = self._clock()
        audit = self.log.row(by or CONTROL, "key.revoked", key_id, key.record.name)

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE api_key SET revoked_at = ? WHERE id = ?", (now, key_id))
            pour(connection, [audit])

        try:
            await self._storage.write(change, essential=True)
        finally:  # also when nobody knows whether it was written
            key.record = msgspec.structs.replace(key.record, revoked_at=now, last_used_at=key.used_at)
            self.forget(key_id)
        return key.record

    # What was done.

    async def audit(self, by: Principal, action: str, target: str = "", detail: str = "") -> None:
        """Write down what was done; see `AuditLog.record`."""
        await self.log.record(by, action, target, detail)

    # Life.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write when keys were last used, and take out what is over; until cancelled."""
        task_status.started()
        try:
            while True:
                await trio.sleep(WRITE_USES_EVERY)
                await self.keep_house()
        finally:
            with trio.move_on_after(5.0, shield=True):
                await self.keep_house()

    async def keep_house(self) -> None:
        """What `run` does each minute."""
        now = self._clock()
        used = [key for key in self._keys.values() if key.dirty]
        uses = json.dumps([(key.record.key_id, key.used_at) for key in used])
        for key in used:
            key.dirty = False

        def change(connection: sqlite3.Connection) -> None:
            if used:
                connection.execute(
                    "UPDATE api_key SET last_used_at = json_extract(found.value, '$[1]')"
                    " FROM json_each(?) AS found WHERE api_key.id = json_extract(found.value, '$[0]')",
                    (uses,),
                )
            connection.execute("DELETE FROM enrolment_code WHERE expires_at < ?", (now - KEEP_CODES,))
            self._guard.trim(connection)
            self.log.trim(connection)

        try:
            await self._storage.write(change, essential=True)
        except StorageError as error:
            logger.warning("the uses of keys could not be written, and will be", error=str(error))
            for key in used:
                key.dirty = True


def _load(connection: sqlite3.Connection) -> tuple[bytes, list[Any]]:
    (seal_key,) = connection.execute("SELECT key FROM seal").fetchone()
    rows = connection.execute(
        "SELECT id, name, scopes, apps, signing_secret IS NOT NULL, created_at, created_by, expires_at,"
        " revoked_at, last_used_at, digest, signing_secret FROM api_key"
    ).fetchall()
    return seal_key, rows


def _record(columns: Sequence[Any]) -> KeyRecord:
    key_id, name, scopes, apps, signed, *rest = columns
    return KeyRecord(
        key_id,
        name,
        tuple(json.loads(scopes)),
        None if apps is None else tuple(json.loads(apps)),
        bool(signed),
        *rest,
    )


def _address(scope: Any) -> str:
    client = scope["client"]
    return client[0] if client is not None else ""


def _checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    chosen = set(scopes)
    unknown = sorted(chosen.difference(SCOPES))
    if unknown or not chosen:
        found = f"{unknown[0][:40]!r} is no scope" if unknown else "a key needs a scope"
        raise Problem(422, "invalid value", f"{found}; there are {', '.join(SCOPES)}.", field="scopes")
    return tuple(scope for scope in SCOPES if scope in chosen)


def _checked_apps(apps: Iterable[str] | None) -> tuple[str, ...] | None:
    if apps is None:
        return None
    named = tuple(sorted({checked_app(app, f"apps[{index}]") for index, app in enumerate(apps)}))
    if not named:
        detail = "Name at least one app, or leave `apps` out for all."
        raise Problem(422, "invalid value", detail, field="apps")
    return named
