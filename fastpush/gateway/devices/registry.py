"""The registry of devices: who is there, who is meant by tags, and whom APNs has found dead."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, final

import msgspec
import trio

from fastpush.gateway.auth import Authenticator, Principal
from fastpush.gateway.auth import schema as auth_schema
from fastpush.gateway.auth.checks import checked_app
from fastpush.gateway.devices import changes, schema
from fastpush.gateway.devices.audiences import Audiences
from fastpush.gateway.devices.values import (
    Device,
    DeviceEvent,
    Environment,
    Page,
    Registration,
    Verdict,
    checked,
    checked_token,
    shortened,
)
from fastpush.gateway.devices.verdicts import Judge
from fastpush.gateway.log import get_logger
from fastpush.gateway.outbox import Audience
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import Storage, StorageBroken, StorageError

__all__ = ["Devices", "open_devices"]

logger = get_logger("fastpush.gateway.devices")

ALL = Audience()
LETTERS: dict[str, str] = {"production": "p", "development": "d"}
ENVIRONMENTS: dict[str, Environment] = {"p": "production", "d": "development"}
TRIM_EVERY = 60.0  # seconds
WRITE_EVERY = 0.2  # seconds in which verdicts gather
RETRY_AFTER = 1.0  # seconds until a disk that refused them is tried again; the storage gives one up by itself
ASK_AT_ONCE = 256  # device tokens in one statement
WRITE_AT_ONCE = 500  # in one commit
LEAST_DIGITS = 4  # by which a device is looked for

_COLUMNS = "lower(hex(token)), environment, user, tags, locale, registered_at, seen_at, dead_at, dead_reason"


async def open_devices(
    storage: Storage, *, keys: Authenticator | None = None, clock: Callable[[], float] = time.time
) -> Devices:
    """Open the registry in a storage; start `run` in a nursery.

    Args:
      keys: is told when a phone's device token changed; needed where phones register themselves.
    """
    await storage.add_schema("auth", auth_schema.MIGRATIONS)
    await storage.add_schema("devices", schema.MIGRATIONS)
    devices = Devices(storage, await storage.add_kind(schema.REGISTER), keys, clock)
    await devices._load()
    return devices


@final
class Devices:
    """The registry; made by `open_devices`, used from one trio program."""

    def __init__(
        self, storage: Storage, kind: int, keys: Authenticator | None, clock: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._kind = kind
        self._keys = keys
        self._clock = clock
        self._apps: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._naming = trio.Lock()
        self._judge = Judge()
        self._audiences = Audiences()
        self._last_event = 0
        self._news = trio.Event()  # events were written

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._apps)} apps>"

    async def _load(self) -> None:
        rows = await self._storage.read(
            lambda connection: connection.execute("SELECT name, number FROM device_app").fetchall()
        )
        self._last_event = await self._storage.read(changes.last_event)
        self._apps = dict(rows)
        self._names = {number: name for name, number in rows}

    async def _number(self, app: str) -> int:
        found = self._apps.get(app)
        if found is not None:
            return found
        checked_app(app)
        async with self._naming:
            if app not in self._apps:
                number = await self._storage.write(partial(changes.add_app, name=app))
                self._apps[app] = number
                self._names[number] = app
            return self._apps[app]

    # Registering.

    async def register(self, app: str, registration: Registration, *, by: Principal | None = None) -> Device:
        """Put a device into the registry, or say anew that it is there. Durable on return.

        A phone (`by.kind == "device"`) registers itself: under its own user, with the tags that it was
        granted or fewer of them, and with one device token at a time: a new one takes the place of the old.
        With a secret that has no device token yet it may take one that is registered already, as when a
        phone changes hands; afterwards only one that nobody holds.

        Raises:
          Problem: 422, with the field; 403, a tag that the phone was not granted, or a device token that
            another phone holds.
        """
        said = checked(registration)
        token, number, now = said.device_token, await self._number(app), self._milliseconds()
        if by is not None and by.kind == "device":
            enrolment_id = by.key_id

            def make_row(tags: tuple[str, ...], user: str, before: str | None) -> tuple[Any, ...]:
                phone = msgspec.structs.replace(said, tags=tags, user=user)
                return self._row(number, phone, now, enrolment_id, before)

            touched = await self._storage.write(
                partial(
                    changes.register_phone,
                    app=app,
                    number=number,
                    enrolment_id=enrolment_id,
                    token=token,
                    tags=said.tags,
                    make_row=make_row,
                )
            )
        else:
            await self._storage.insert([self._row(number, said, now)])
            octets = bytes.fromhex(token)
            holder = await self._storage.read(partial(changes.enrolment_of, app=number, token=octets))
            touched = [] if holder is None else [holder]
        if self._keys is not None:
            for enrolment_id in touched:
                self._keys.forget(enrolment_id)
        found = await self.get(app, token)
        if found is None:
            raise Problem(409, "removed", "The device was taken out at the same moment.")
        return found

    def _row(
        self, app: int, said: Registration, at: int, enrolment: str | None = None, before: str | None = None
    ) -> tuple[Any, ...]:
        """A row of the funnel, of a registration that is checked."""
        return (
            self._kind, app, bytes.fromhex(said.device_token), LETTERS[said.environment], said.user,
            None if said.tags is None else json.dumps(["", *said.tags], ensure_ascii=False), said.locale, at,
            enrolment, None if before is None else bytes.fromhex(before), self._milliseconds(),
        )  # fmt: skip

    def open_batch(self, app: str) -> Batch:
        """Registrations to be written together, for an import."""
        return Batch(self, app)

    async def _write_batch(self, app: str, found: Sequence[tuple[Registration, int | None]]) -> None:
        number, now = await self._number(app), self._milliseconds()
        await self._storage.insert(
            [self._row(number, said, now if at is None else min(at, now)) for said, at in found]
        )
        if self._keys is not None:
            self._keys.forget_phones()  # of some the user may be another now

    async def remove(self, app: str, device_token: str, *, by: Principal | None = None) -> bool:
        """Take a device out, with the secret of its phone; whether it was there.

        Args:
          by: for the audit log.
        """
        token, number = checked_token(device_token), self._apps.get(app)
        if number is None:
            return False
        audit = None
        if by is not None and self._keys is not None:
            audit = self._keys.log.row(by, "device.removed", shortened(token), app)
        change = partial(
            changes.remove, app=number, token=bytes.fromhex(token), now=self._clock(), audit=audit
        )
        found, enrolment_id = await self._storage.write(change, essential=True)
        if enrolment_id is not None and self._keys is not None:
            self._keys.forget(enrolment_id)
        return found

    # Asking.

    async def get(self, app: str, device_token: str) -> Device | None:
        """One device, also a dead one."""
        number = self._apps.get(app)
        if number is None:
            return None
        key = number, bytes.fromhex(checked_token(device_token))
        row = await self._storage.read(
            lambda connection: connection.execute(
                f"SELECT json_array({_COLUMNS}) FROM device WHERE app = ? AND token = ?", key
            ).fetchone()
        )
        return None if row is None else _device(app, json.loads(row[0]))

    async def count(self, app: str, audience: Audience | None = None) -> int:
        """How many living devices there are."""
        number = self._apps.get(app)
        if number is None:
            return 0
        return await self._storage.read(partial(self._audiences.count, app=number, audience=audience or ALL))

    async def page(self, app: str, audience: Audience, after: str = "", limit: int = 1_000) -> Page:
        """The next living devices of an audience, in the order of device tokens.

        Args:
          after: the last device token of the page before, "" for the first page.
        """
        number = self._apps.get(app)
        if number is None:
            return Page([], "", True)
        return await self._storage.read(
            partial(
                self._audiences.page, app=number, audience=audience, after=bytes.fromhex(after), limit=limit
            )
        )

    def apps(self) -> Sequence[str]:
        """The apps that have had a device."""
        return sorted(self._apps)

    async def list(
        self,
        app: str,
        *,
        user: str | None = None,
        tag: str | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Device]:
        """Devices in the order of their device tokens; dead ones are in no tag, but in all other lists."""
        number = self._apps.get(app)
        if number is None:
            return []
        values: list[Any] = [number, bytes.fromhex(after)]
        chosen = "device.app = ? AND device.token > ?"
        if user is not None:
            chosen += " AND user = ? AND user <> ''"
            values.append(user)
        source = "device"
        if tag is not None:
            source = "audience JOIN device USING (app, token)"
            chosen = chosen.replace("device.", "audience.") + " AND audience.tag = ?"
            values.append(tag)
        sql = (
            f"SELECT json_group_array(json_array({_COLUMNS})) FROM (SELECT device.* FROM {source}"
            f" WHERE {chosen} ORDER BY token LIMIT ?)"
        )

        def query(connection: sqlite3.Connection) -> str:
            (text,) = connection.execute(sql, (*values, limit)).fetchone()
            return text  # type: ignore[no-any-return]

        return [_device(app, columns) for columns in json.loads(await self._storage.read(query))]

    async def ending(self, app: str, digits: str, limit: int = 10) -> Sequence[Device]:
        """Devices whose device tokens end with these hex digits, dead ones too; at least four of them."""
        number, digits = self._apps.get(app), digits.lower()
        if number is None or len(digits) < LEAST_DIGITS:
            return []
        whole = bytes.fromhex(digits[len(digits) % 2 :])
        # Of half an octet the other half may be anything.
        fits = "substr(token, -?3) = ?2 AND lower(hex(substr(token, -?4, ?4 - ?3))) LIKE ?5"
        half = f"_{digits[0]}" if len(digits) % 2 else ""
        values = (number, whole, len(whole), len(whole) + len(digits) % 2, half, limit)
        # The audience of all who live is the narrowest table to look through.
        sql = (
            f"SELECT json_group_array(json_array({_COLUMNS})) FROM (SELECT device.* FROM"
            f" (SELECT token FROM audience WHERE app = ?1 AND tag = '' AND {fits} UNION"
            f" SELECT token FROM device INDEXED BY device_dead"
            f" WHERE app = ?1 AND dead_at IS NOT NULL AND {fits}"
            " ORDER BY token LIMIT ?6) AS found"
            " JOIN device ON device.app = ?1 AND device.token = found.token)"
        )

        def query(connection: sqlite3.Connection) -> str:
            (text,) = connection.execute(sql, values).fetchone()
            return text  # type: ignore[no-any-return]

        return [_device(app, columns) for columns in json.loads(await self._storage.read(query))]

    # What APNs says.

    def report(self, app: str, verdicts: Sequence[Verdict | tuple[Any, ...]], *, accepted: int = 0) -> None:
        """Take APNs' answers: each that is no 200 as a verdict, the others as a number. Never waits.

        Whose device token is dead is judged here by the rule of the 410; what follows is written by `run`.

        Args:
          verdicts: `Verdict`, or its first five fields.
          accepted: how many were accepted, besides those among the verdicts.
        """
        self._judge.report(app, verdicts, accepted, trio.current_time())

    def breaker(self, app: str) -> str | None:
        """Why nothing of the app is deleted and its dispatch is to pause; None while all is well."""
        return self._judge.breaker(app)

    async def breaker_closed(self, app: str) -> None:
        """Return when `breaker` has nothing against the app."""
        await self._judge.closed(app)

    def close_breaker(self, app: str) -> None:
        """Begin anew, after the cause was cured: a new credential, another topic, or somebody's word."""
        self._judge.close_breaker(app)

    async def environments(self, app: str, device_tokens: Sequence[str]) -> dict[str, Environment]:
        """The environments of those of these device tokens that are registered."""
        number = self._apps.get(app)
        if number is None:
            return {}

        keys = [bytes.fromhex(device_token) for device_token in device_tokens]

        def query(connection: sqlite3.Connection) -> dict[str, Environment]:
            found: dict[str, Environment] = {}
            for first in range(0, len(keys), ASK_AT_ONCE):
                part = keys[first : first + ASK_AT_ONCE]
                (text,) = connection.execute(
                    "SELECT json_group_object(lower(hex(token)), environment) FROM device"
                    f" WHERE app = ? AND token IN ({', '.join('?' * ASK_AT_ONCE)})",
                    (number, *part, *part[:1] * (ASK_AT_ONCE - len(part))),
                ).fetchone()
                found |= {token: ENVIRONMENTS[letter] for token, letter in json.loads(text).items()}
            return found

        return await self._storage.read(query)

    async def learn_environment(self, app: str, device_token: str, environment: Environment) -> None:
        """Keep what a push has shown: this device token is known in this environment."""
        number = self._apps.get(app)
        if number is not None:
            change = partial(
                changes.learn_environment,
                app=number,
                token=bytes.fromhex(checked_token(device_token)),
                letter=LETTERS[environment],
                refused_in="",
                now=self._milliseconds(),
            )
            await self._storage.write(change, essential=True)

    async def wait_for_events(self, after: int) -> None:
        """Return when there is an event behind the one with this id."""
        while self._last_event <= after:
            await self._news.wait()

    async def events(self, after: int = 0, limit: int = 100, app: str | None = None) -> Sequence[DeviceEvent]:
        """Device tokens found dead, behind the event with this id, oldest first."""
        number = None if app is None else self._apps.get(app, 0)

        def query(connection: sqlite3.Connection) -> str:
            (text,) = connection.execute(
                "SELECT json_group_array(json_array(id, at, app, lower(hex(token)), environment, user,"
                " status, reason, unregistered_at, sent_at, hex(apns_id))) FROM (SELECT * FROM device_event"
                " WHERE id > ?1 AND (?2 IS NULL OR app = ?2) ORDER BY id LIMIT ?3)",
                (after, number, limit),
            ).fetchone()
            return text  # type: ignore[no-any-return]

        return [self._event(columns) for columns in json.loads(await self._storage.read(query))]

    async def latest_events(self, app: str | None = None, limit: int = 20) -> Sequence[DeviceEvent]:
        """The device tokens found dead last, newest first."""
        number = None if app is None else self._apps.get(app, 0)

        def query(connection: sqlite3.Connection) -> int:
            (first,) = connection.execute(
                "SELECT min(id) FROM (SELECT id FROM device_event WHERE ?1 IS NULL OR app = ?1"
                " ORDER BY id DESC LIMIT ?2)",
                (number, limit),
            ).fetchone()
            return first or 0

        first = await self._storage.read(query)
        return (await self.events(first - 1, limit, app))[::-1] if first else []

    def _event(self, columns: Sequence[Any]) -> DeviceEvent:
        number, at, app, token, environment, user, status, reason, unregistered_at, sent_at, apns_id = columns
        return DeviceEvent(
            id=number,
            at=at / 1_000,
            app=self._names[app],
            device_token=token,
            environment=ENVIRONMENTS[environment],
            user=user,
            status=status,
            reason=reason,
            unregistered_at=None if unregistered_at is None else unregistered_at / 1_000,
            sent_at=sent_at / 1_000,
            apns_id=_uuid(apns_id),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what was reported, and take out what is too old; until cancelled, and then what is left."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_house)
                while True:
                    await self._judge.wait()
                    await trio.sleep(WRITE_EVERY)
                    if not await self.settle():
                        await trio.sleep(RETRY_AFTER)
        finally:
            with trio.move_on_after(5.0, shield=True):
                await self.settle()

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(TRIM_EVERY)
            with suppress(StorageError):  # which has told of itself
                await self._storage.write(partial(changes.trim, now=self._milliseconds()), essential=True)

    async def settle(self) -> bool:
        """Write now what was reported and is believed; False where the disk refused some."""
        while due := self._judge.take(WRITE_AT_ONCE, trio.current_time()):
            numbered = [(self._apps[app], verdict) for app, verdict in due if app in self._apps]
            try:
                last = await self._storage.write(
                    partial(changes.apply_verdicts, verdicts=numbered, now=self._milliseconds()),
                    essential=True,
                )
            except StorageBroken:
                return True  # it is over: the gateway ends
            except StorageError as error:
                logger.warning(
                    "verdicts on devices could not be written, and will be",
                    count=len(due),
                    error=str(error),
                )
                self._judge.give_back(due)
                return False
            if last:
                self._last_event = last
                self._news.set()
                self._news = trio.Event()
        return True

    def _milliseconds(self) -> int:
        return int(self._clock() * 1_000)


def _device(app: str, columns: Sequence[Any]) -> Device:
    token, environment, user, tags, locale, registered_at, seen_at, dead_at, dead_reason = columns
    return Device(
        device_token=token,
        app=app,
        environment=ENVIRONMENTS[environment],
        user=user,
        tags=tuple(tag for tag in json.loads(tags) if tag),
        locale=locale,
        registered_at=registered_at / 1_000,
        seen_at=seen_at / 1_000,
        dead_at=None if dead_at is None else dead_at / 1_000,
        dead_reason=dead_reason,
    )


def _uuid(digits: str) -> str | None:
    if not digits:
        return None
    text = digits.lower()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


@final
class Batch:
    """Registrations by a key that are written together; made by `Devices.open_batch`."""

    def __init__(self, devices: Devices, app: str) -> None:
        self._devices = devices
        self._app = app
        self._found: list[tuple[Registration, int | None]] = []
        self.written = 0

    def __len__(self) -> int:
        return len(self._found)

    def add(self, registration: Registration, registered_at: float | None = None) -> None:
        """Take one, to be written later.

        Args:
          registered_at: UNIX seconds; None is now, as is any time to come.

        Raises:
          Problem: 422, with the field.
        """
        at = None if registered_at is None else round(registered_at * 1_000)
        self._found.append((checked(registration), at))

    async def write(self) -> None:
        """Write those that were added since the last time; they are durable on return."""
        found, self._found = self._found, []
        if found:
            await self._devices._write_batch(self._app, found)
            self.written += len(found)
