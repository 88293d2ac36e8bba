"""Who may do what: keys, phones' secrets, and the log of what they did."""

from __future__ import annotations

import json
import logging
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b, scrypt
from hmac import compare_digest
from typing import Any, NamedTuple, final

import msgspec
import trio

from fastpush.gateway import signatures
from fastpush.gateway.auth import enrolments, schema
from fastpush.gateway.auth.checks import checked_app, checked_name, checked_tags, checked_user
from fastpush.gateway.auth.presented import presented, signature_of, text_of
from fastpush.gateway.auth.principal import SCOPES, Principal
from fastpush.gateway.auth.secret import (
    Secret,
    draw_code,
    draw_sealed,
    draw_secret,
    is_sealed,
    read_code,
    read_secret,
)
from fastpush.gateway.auth.slowing import Slowing, neighbourhood
from fastpush.gateway.control import is_trusted
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import Job, Storage, StorageError, pour

__all__ = [
    "AuditRecord",
    "AuthSettings",
    "Authenticator",
    "Code",
    "CreatedKey",
    "Enrolled",
    "KeyRecord",
    "open_authenticator",
]

logger = logging.getLogger(__name__)

WRONG = "This key is not known here."
MAX_NAME, MAX_APP, MAX_TAGS, MAX_TAG = 64, 128, 32, 64
MAX_PROVED = 20_000
MAX_SIGNATURES = 200_000
CODE_ATTEMPTS = 5
LONGEST_CODE = 30 * 86_400.0
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fastpush", Basic realm="fastpush", charset="UTF-8"'}
KEEP_CODES = 86_400.0  # seconds after their end
KEEP_AUDIT_FOR = 400 * 86_400.0


class AuthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How keys are asked for.

    Attributes:
      failures, within, wait_for: after so many wrong ones from one address within so many seconds, none is
        answered for so many seconds but with 429. Right keys pass all the same.
      signature_window: how far a signature's time may be from ours, seconds.
      open_scopes: what needs no key at all; for trials on one machine.
    """

    failures: int = 20
    within: float = 60.0
    wait_for: float = 60.0
    signature_window: int = 300
    open_scopes: tuple[str, ...] = ()


class KeyRecord(msgspec.Struct, frozen=True):
    """A key as it is listed. Instants are UNIX seconds; `last_used_at` may lag by a minute.

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


class Code(msgspec.Struct, frozen=True):
    """An enrolment code, shown once. `expires_at` is in UNIX seconds."""

    code: str
    app: str
    user: str
    tags: tuple[str, ...]
    expires_at: float


class Enrolled(msgspec.Struct, frozen=True):
    """What a phone gets. `device_secret` is shown once."""

    enrolment_id: str
    device_secret: str
    app: str
    user: str
    tags: tuple[str, ...]


class AuditRecord(msgspec.Struct, frozen=True):
    """One thing that was done: when (UNIX seconds), by whom, from where, to what."""

    id: int
    at: float
    kind: str
    name: str
    key_id: str
    address: str
    action: str
    target: str
    detail: str


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
    """A header that was found right."""

    __slots__ = ("key", "principal")

    def __init__(self, key: _Key | None, principal: Principal) -> None:
        self.key = key
        self.principal = principal


class _Wrong(Exception):
    """What was shown proves nothing. The message goes to the client."""


async def open_authenticator(
    storage: Storage, settings: AuthSettings | None = None, *, clock: Callable[[], float] = time.time
) -> Authenticator:
    """Open keys, phones and the audit log in a storage; start `run` in a nursery."""
    await storage.add_schema("auth", schema.MIGRATIONS)
    keys = Authenticator(
        storage,
        settings or AuthSettings(),
        clock,
        await storage.add_kind(schema.AUDIT),
        await storage.add_kind(schema.SIGNATURE),
    )
    await keys._load()
    return keys


@final
class Authenticator:
    """Knows who is who; made by `open_authenticator`, used from one trio program."""

    def __init__(
        self,
        storage: Storage,
        settings: AuthSettings,
        clock: Callable[[], float],
        audit_kind: int,
        signature_kind: int,
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._audit_kind = audit_kind
        self._signature_kind = signature_kind
        self._keys: dict[str, _Key] = {}
        self._seal_key = b""
        self._slow = Slowing(settings.failures, settings.within, settings.wait_for)
        self._slow_codes = Slowing(settings.failures, settings.within, settings.wait_for)
        self._proved: dict[bytes, _Proof] = {}
        self._proved_by: dict[str, list[bytes]] = {}  # by key or enrolment, to forget them by
        self._changes = 0
        self._marker = secrets.token_bytes(32)
        self._no_digest = secrets.token_bytes(32)
        self._signatures: dict[bytes, float] = {}  # to the time from which it may be forgotten
        self._control = Principal("control", "control", frozenset(SCOPES), key_id="control")
        self._open = Principal("open", "open", frozenset(settings.open_scopes))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._keys)} keys>"

    async def _load(self) -> None:
        now = self._clock()

        def load(connection: sqlite3.Connection) -> tuple[bytes, list[Any], list[Any]]:
            (seal_key,) = connection.execute("SELECT key FROM seal").fetchone()
            keys = connection.execute(
                "SELECT id, name, scopes, apps, signing_secret IS NOT NULL, created_at, created_by,"
                " expires_at, revoked_at, last_used_at, digest, signing_secret FROM api_key"
            ).fetchall()
            taken = connection.execute(
                "SELECT digest, signed_at FROM signature WHERE signed_at > ?",
                (now - 2 * self._settings.signature_window,),
            ).fetchall()
            return seal_key, keys, taken

        self._seal_key, keys, taken = await self._storage.read(load)
        for *columns, digest, signing_secret in keys:
            self._keys[columns[0]] = _Key(_key_record(columns), digest, signing_secret)
        for digest, _ in taken:
            self._signatures[digest] = now + 2 * self._settings.signature_window

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write when keys were last used, and take out what is over; until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(60.0)
            try:
                await self.keep_house()
            except StorageError as error:
                logger.warning("the uses of keys could not be written, and will be: %s", error)

    async def keep_house(self) -> None:
        """What `run` does each minute."""
        now = self._clock()
        used = [(key.record.key_id, key.used_at) for key in self._keys.values() if key.dirty]
        for key in self._keys.values():
            key.dirty = False

        def change(connection: sqlite3.Connection) -> None:
            if used:
                connection.execute(
                    "UPDATE api_key SET last_used_at = max(coalesce(last_used_at, 0), found.value ->> 1)"
                    " FROM json_each(?) AS found WHERE api_key.id = found.value ->> 0",
                    (json.dumps(used),),
                )
            connection.execute(
                "DELETE FROM signature WHERE signed_at < ?", (now - 4 * self._settings.signature_window,)
            )
            connection.execute("DELETE FROM enrolment_code WHERE expires_at < ?", (now - KEEP_CODES,))
            connection.execute(
                "DELETE FROM audit WHERE id IN (SELECT id FROM audit"
                " WHERE id <= (SELECT max(id) FROM audit) - ? AND at < ? ORDER BY id LIMIT 1000)",
                (schema.KEEP_AUDIT, now - KEEP_AUDIT_FOR),
            )

        try:
            await self._storage.write(change, essential=True)
        except StorageError:
            for key_id, _ in used:
                self._keys[key_id].dirty = True
            raise

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
            return self._control
        value = presented(scope, query_token)
        if value is None:
            return self._without(scope)
        mark = blake2b(value, digest_size=16, key=self._marker).digest()
        proof = self._proved.get(mark)
        if proof is None:
            return await self._prove(scope, value, mark, body)
        key = proof.key
        now = self._clock()
        if key is not None:
            expires_at = key.record.expires_at
            if expires_at is not None and expires_at <= now:
                self.forget(key.record.key_id)
                return await self._prove(scope, value, mark, body)
            key.used_at = now
            key.dirty = True
        principal = proof.principal
        client = scope["client"]
        if client is not None and client[0] != principal.address:
            principal = proof.principal = replace(principal, address=client[0])
        return principal

    def _without(self, scope: Any) -> Principal:
        if self._settings.open_scopes:
            return replace(self._open, address=_address(scope))
        raise Problem(
            401,
            "key missing",
            "Send a key: Authorization: Bearer KEY, Basic with the key as password, or X-Api-Key: KEY.",
            headers=CHALLENGE,
        )

    async def _prove(self, scope: Any, value: bytes, mark: bytes, body: bytes | None) -> Principal:
        address = _address(scope)
        try:
            while True:
                changes = self._changes
                key, principal = await self._judge(scope, value, body)
                if changes == self._changes:
                    break  # otherwise what was read may have been revoked meanwhile
        except _Wrong as wrong:
            raise self._refuse(self._slow, address, str(wrong)) from None
        principal = replace(principal, address=address)
        if key is None or key.signing_secret is None:
            if len(self._proved) >= MAX_PROVED:
                self.forget_all()
            self._proved[mark] = _Proof(key, principal)
            self._proved_by.setdefault(principal.key_id, []).append(mark)
        return principal

    async def _judge(self, scope: Any, value: bytes, body: bytes | None) -> tuple[_Key | None, Principal]:
        """Look at what was shown. Raises _Wrong."""
        text = text_of(value)
        if text is None:
            raise _Wrong(WRONG)
        key = self._keys.get(text)
        if key is not None and key.signing_secret is not None:
            self._judge_signature(key, scope, body)
            return key, self._used(key)
        secret = read_secret(text)
        if secret is None:
            raise _Wrong("This is not a key, or one that is mistyped: its form or its checksum is wrong.")
        if secret.kind == "fpd":
            return None, await self._judge_phone(secret)
        key = self._keys.get(secret.id)
        digest = key.digest if key is not None and key.digest is not None else self._no_digest
        if not secret.is_of(digest) or key is None:
            raise _Wrong(WRONG)
        return key, self._used(key)

    def _used(self, key: _Key) -> Principal:
        """The principal of a key that was proved; whoever has it may know why it is not taken."""
        now, record = self._clock(), key.record
        if record.revoked_at is not None:
            raise _Wrong("This key was revoked.")
        if record.expires_at is not None and record.expires_at <= now:
            raise _Wrong("This key has expired.")
        key.used_at = now
        key.dirty = True
        return key.principal

    def _judge_signature(self, key: _Key, scope: Any, body: bytes | None) -> None:
        signed = signature_of(scope)
        if signed is None:
            raise _Wrong(
                "This key signs: send webhook-id, webhook-timestamp and webhook-signature, each once."
            )
        if body is None:
            raise _Wrong("A signed request cannot be taken here: its body is not read as a whole.")
        now, window = self._clock(), self._settings.signature_window
        assert key.signing_secret is not None
        if not signatures.verify(
            [key.signing_secret], signed.signatures, signed.message_id, signed.timestamp, body
        ):
            raise _Wrong(WRONG)
        if abs(now - signed.timestamp) > window:
            raise _Wrong(
                f"The signature is of {signed.timestamp}, and it is {now:.0f} here; {window} seconds between"
                " them are allowed. Sign each sending anew, and set the clock."
            )
        digest = blake2b(
            f"{key.record.key_id}\0{signed.timestamp}\0{signed.message_id}".encode(), digest_size=16
        ).digest()
        self._forget_signatures(now)
        if digest in self._signatures:
            raise Problem(
                409, "used before", "This signature was used before. Sign each sending anew.", stored=False
            )
        if len(self._signatures) >= MAX_SIGNATURES:
            raise Problem(
                503, "busy", "Too many signatures to remember.", headers={"Retry-After": str(window)}
            )
        self._signatures[digest] = now + 2 * window
        # Not awaited: rows keep their order, so it is on disk before what the request asks for.
        self._storage.submit(Job(rows=((self._signature_kind, digest, signed.timestamp),), essential=True))

    def _forget_signatures(self, now: float) -> None:
        """Those whose time is over; they stand in the order of their receipt."""
        over = []
        for digest, until in self._signatures.items():
            if until > now:
                break
            over.append(digest)
        for digest in over:
            del self._signatures[digest]

    async def _judge_phone(self, secret: Secret) -> Principal:
        if not is_sealed(secret, self._seal_key):
            raise _Wrong(WRONG)
        found = await self._storage.read(partial(enrolments.find, enrolment_id=secret.id))
        if found is None or not secret.is_of(found.digest):
            raise _Wrong(WRONG)
        if found.revoked_at is not None:
            raise _Wrong("This device's secret was revoked. Enrol again.")
        return Principal(
            found.user or found.id,
            "device",
            frozenset(),
            frozenset((found.app,)),
            found.user or None,
            found.device_token,
            found.id,
        )

    def _refuse(self, slow: Slowing, address: str, why: str) -> Problem:
        waits = slow.fail(neighbourhood(address), self._clock())
        if waits:
            return Problem(
                429,
                "slowed",
                f"Too many wrong keys or codes came from {address or 'here'}; wait before the next one.",
                headers={"Retry-After": str(math.ceil(waits))},
            )
        return Problem(401, "key refused", why, headers=CHALLENGE)

    def forget(self, key_id: str) -> None:
        """Look anew at this key or enrolment when it is shown again: it was revoked or changed."""
        self._changes += 1
        for mark in self._proved_by.pop(key_id, ()):
            self._proved.pop(mark, None)

    def forget_all(self) -> None:
        """The same for each."""
        self._proved.clear()
        self._proved_by.clear()

    # Keys.

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
          by: who makes it, for the audit log.

        Raises:
          Problem: 422, with the field.
        """
        by = by or self._control
        name = checked_name(name, "name")
        chosen = _checked_scopes(scopes)
        named = None if apps is None else tuple(sorted({checked_app(app) for app in apps}))
        if named is not None and not named:
            raise Problem(
                422, "invalid value", "Name at least one app, or leave `apps` out for all.", field="apps"
            )
        now = self._clock()
        if expires_at is not None and expires_at <= now:
            raise Problem(422, "invalid value", "The key would have expired already.", field="expires_at")
        secret = draw_secret()
        while secret.id in self._keys:
            secret = draw_secret()
        digest, signing_secret = (None, secrets.token_bytes(32)) if signed else (secret.digest(), None)
        record = KeyRecord(secret.id, name, chosen, named, signed, now, by.name, expires_at, None, None)
        audit = self._audit_row(
            by, "key.created", secret.id, f"{name}: {' '.join(chosen)}; {_told_apps(named)}"
        )

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO api_key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (
                    record.key_id, name, json.dumps(chosen), None if named is None else json.dumps(named),
                    digest, signing_secret, now, by.name, expires_at,
                ),
            )  # fmt: skip
            pour(connection, [audit])

        await self._storage.write(change)
        self._keys[secret.id] = _Key(record, digest, signing_secret)
        shown = signatures.write_signing_secret(signing_secret) if signing_secret else secret.text()
        return CreatedKey(secret.id, shown)

    def list(self) -> Sequence[KeyRecord]:
        """All keys, the newest last."""
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
        audit = self._audit_row(by or self._control, "key.revoked", key_id, key.record.name)

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE api_key SET revoked_at = ? WHERE id = ?", (now, key_id))
            pour(connection, [audit])

        try:
            await self._storage.write(change, essential=True)
        finally:  # also when nobody knows whether it was written
            key.record = msgspec.structs.replace(key.record, revoked_at=now, last_used_at=key.used_at)
            self.forget(key_id)
        return key.record

    # Phones.

    async def create_enrolment_code(
        self,
        app: str,
        user: str = "",
        tags: Sequence[str] = (),
        valid_for: float = 86_400.0,
        *,
        by: Principal | None = None,
    ) -> Code:
        """Make a code that one phone may exchange for a secret, until it expires.

        Args:
          tags: what the phone is granted; it may register with these or fewer.
          valid_for: seconds, at most 30 days.

        Raises:
          Problem: 422, with the field.
        """
        by = by or self._control
        app, user, granted = checked_app(app), checked_user(user), checked_tags(tags)
        if not 0 < valid_for <= LONGEST_CODE:
            raise Problem(422, "invalid value", "A code is valid for at most 30 days.", field="valid_for")
        now = self._clock()
        salt = secrets.token_bytes(16)
        audit = self._audit_row(
            by, "code.created", app, f"for {user or 'nobody named'}; tags: {' '.join(granted)}"
        )
        while True:
            code_id, code_secret = draw_code()
            digest = await trio.to_thread.run_sync(_slow_digest, code_secret, salt)
            row = enrolments.NewCode(
                code_id, salt, digest, app, user, json.dumps(granted), now, by.name, now + valid_for
            )
            if await self._storage.write(partial(_add_code, row=row, audit=audit)):
                break
        return Code(f"{code_id}-{code_secret}", app, user, granted, now + valid_for)

    async def enrol(self, code: str, *, address: str = "") -> Enrolled:
        """Exchange a code for a phone's secret. Whoever comes second with the same code gets nothing.

        Raises:
          Problem: 401, it is no code, expired, used, or was tried wrongly too often; 429, too many wrong ones
            came from this address.
        """
        now = self._clock()
        if waits := self._slow_codes.wait_for(neighbourhood(address), now):
            raise Problem(
                429,
                "slowed",
                "Too many wrong codes came from here; wait before the next one.",
                headers={"Retry-After": str(math.ceil(waits))},
            )
        read = read_code(code)
        wrong = "This code is not valid: mistyped, used before, or expired. Ask for a new one."
        if read is None:
            raise self._refuse(self._slow_codes, address, wrong)
        code_id, code_secret = read
        known = await self._storage.read(partial(enrolments.find_code, code_id=code_id))
        if known is None or known.expires_at <= now or known.attempts >= CODE_ATTEMPTS:
            raise self._refuse(self._slow_codes, address, wrong)
        # Counted before it is compared: of many tries at once no more than these are compared.
        counted = await self._storage.write(
            partial(enrolments.count_attempt, code_id=code_id, salt=known.salt, limit=CODE_ATTEMPTS)
        )
        digest = await trio.to_thread.run_sync(_slow_digest, code_secret, known.salt) if counted else b""
        if not compare_digest(digest, known.digest):
            raise self._refuse(self._slow_codes, address, wrong)
        tags = tuple(json.loads(known.tags))
        secret = draw_sealed(self._seal_key)
        phone = Principal(known.user or secret.id, "device", frozenset(), key_id=secret.id, address=address)
        audit = self._audit_row(phone, "phone.enrolled", known.app, f"with a code of {known.created_by}")
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
            raise self._refuse(self._slow_codes, address, wrong)
        return Enrolled(secret.id, secret.text(), known.app, known.user, tags)

    async def enrol_for(
        self, app: str, user: str = "", tags: Sequence[str] = (), *, by: Principal
    ) -> Enrolled:
        """Make a phone's secret on behalf of its user: for the app's own backend, which hands it on.

        Raises:
          Problem: 422, with the field.
        """
        app, user, granted = checked_app(app), checked_user(user), checked_tags(tags)
        secret, now = draw_sealed(self._seal_key), self._clock()
        audit = self._audit_row(by, "phone.enrolled", secret.id, f"{app}: for {user or 'nobody named'}")
        row = enrolments.NewEnrolment(
            secret.id, secret.digest(), app, user, json.dumps(granted), now, by.name
        )

        def change(connection: sqlite3.Connection) -> None:
            enrolments.add(connection, row)
            pour(connection, [audit])

        await self._storage.write(change)
        return Enrolled(secret.id, secret.text(), app, user, granted)

    async def revoke_enrolment(
        self, enrolment_id: str, *, app: str | None = None, by: Principal | None = None
    ) -> None:
        """Let a phone's secret be good for nothing from now on; it stays registered.

        Raises:
          Problem: 404, also for one of another app than `app`.
        """
        now = self._clock()
        audit = self._audit_row(by or self._control, "phone.revoked", enrolment_id)

        def change(connection: sqlite3.Connection) -> bool:
            found = enrolments.find(connection, enrolment_id)
            if found is None or app not in (None, found.app):
                return False
            if found.revoked_at is None:
                enrolments.revoke(connection, enrolment_id, now)
                pour(connection, [audit])
            return True

        try:
            known = await self._storage.write(change, essential=True)
        finally:
            self.forget(enrolment_id)
        if not known:
            raise Problem(404, "no such enrolment", f"There is no enrolment {enrolment_id[:24]!r}.")

    # The audit log.

    async def audit(self, principal: Principal, action: str, target: str = "", detail: str = "") -> None:
        """Write down what was done; durable on return. Never a secret, never a whole device token."""
        await self._storage.insert([self._audit_row(principal, action, target, detail)], essential=True)

    def audit_row(
        self, principal: Principal, action: str, target: str = "", detail: str = ""
    ) -> tuple[Any, ...]:
        """The same as a row of the storage's funnel, to be written together with what was done."""
        return self._audit_row(principal, action, target, detail)

    def _audit_row(
        self, principal: Principal, action: str, target: str = "", detail: str = ""
    ) -> tuple[Any, ...]:
        return (
            self._audit_kind, self._clock(), principal.kind, principal.name, principal.key_id,
            principal.address, action, target[:200], detail[:500],
        )  # fmt: skip

    async def audit_log(self, after: int = 0, limit: int = 100) -> Sequence[AuditRecord]:
        """What was done after the record with this id, oldest first; at most `limit`."""

        def query(connection: sqlite3.Connection) -> str:
            (text,) = connection.execute(
                "SELECT json_group_array("
                "json_array(id, at, kind, name, key_id, address, action, target, detail))"
                " FROM (SELECT * FROM audit WHERE id > ? ORDER BY id LIMIT ?)",
                (after, limit),
            ).fetchone()
            return text  # type: ignore[no-any-return]

        return [AuditRecord(*columns) for columns in json.loads(await self._storage.read(query))]


def _address(scope: Any) -> str:
    client = scope["client"]
    return client[0] if client is not None else ""


def _key_record(columns: Sequence[Any]) -> KeyRecord:
    key_id, name, scopes, apps, signed, created_at, created_by, expires_at, revoked_at, last_used_at = columns
    return KeyRecord(
        key_id,
        name,
        tuple(json.loads(scopes)),
        None if apps is None else tuple(json.loads(apps)),
        bool(signed),
        created_at,
        created_by,
        expires_at,
        revoked_at,
        last_used_at,
    )


def _slow_digest(code_secret: str, salt: bytes) -> bytes:
    """Of a code's secret, which has 29 bits: too few for a fast hash. 40 ms and 16 MiB."""
    return scrypt(code_secret.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32)


def _add_code(connection: sqlite3.Connection, row: enrolments.NewCode, audit: tuple[Any, ...]) -> bool:
    if not enrolments.add_code(connection, row):
        return False
    pour(connection, [audit])
    return True


def _told_apps(apps: Sequence[str] | None) -> str:
    return "all apps" if apps is None else " ".join(apps)


def _checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    chosen = set(scopes)
    unknown = sorted(chosen.difference(SCOPES))
    if unknown or not chosen:
        found = f"{unknown[0][:40]!r} is no scope" if unknown else "a key needs a scope"
        raise Problem(422, "invalid value", f"{found}; there are {', '.join(SCOPES)}.", field="scopes")
    return tuple(scope for scope in SCOPES if scope in chosen)
