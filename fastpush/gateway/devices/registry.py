"""The registry of devices: who is there, who is meant by tags, and whom APNs has found dead."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, final

import trio

from fastpush.gateway.auth import Authenticator, Principal, enrolments
from fastpush.gateway.auth import schema as auth_schema
from fastpush.gateway.auth.checks import checked_app, checked_name, checked_tags, checked_user
from fastpush.gateway.devices import schema
from fastpush.gateway.devices.audiences import count_of, page_of
from fastpush.gateway.devices.values import (
    Device,
    DeviceEvent,
    Environment,
    Page,
    Registration,
    Verdict,
    checked_token,
    shortened,
)
from fastpush.gateway.devices.verdicts import Judge
from fastpush.gateway.outbox import Audience
from fastpush.gateway.problems import Problem
from fastpush.gateway.storage import Storage, StorageBroken, StorageError, pour

__all__ = ["Devices", "open_devices"]

logger = logging.getLogger(__name__)

ALL = Audience()
LETTERS: dict[str, str] = {"production": "p", "development": "d"}
ENVIRONMENTS: dict[str, Environment] = {"p": "production", "d": "development"}
MAX_LOCALE = 35  # RFC 5646 §4.4.1
WRITE_EVERY = 0.2  # seconds in which verdicts gather
WRITE_AT_ONCE = 500  # in one commit
KEEP_DEAD = 30 * 86_400_000  # milliseconds
KEEP_EVENTS = 1_000_000

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
        self._news = trio.Event()  # events were written

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._apps)} apps>"

    async def _load(self) -> None:
        rows = await self._storage.read(
            lambda connection: connection.execute("SELECT name, number FROM device_app").fetchall()
        )
        self._apps = dict(rows)
        self._names = {number: name for name, number in rows}

    async def _number(self, app: str) -> int:
        found = self._apps.get(app)
        if found is not None:
            return found
        checked_app(app)
        async with self._naming:
            if app not in self._apps:
                number = await self._storage.write(partial(_add_app, name=app))
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
        token = checked_token(registration.device_token)
        tags = None if registration.tags is None else checked_tags(registration.tags)
        number = await self._number(app)
        now = self._milliseconds()
        if by is not None and by.kind == "device":
            touched = await self._storage.write(
                partial(self._register_phone, app, number, registration, token, tags, by.key_id, now)
            )
        else:
            await self._storage.insert([self._row(number, registration, token, tags, now)])
            touched = await self._storage.read(partial(_enrolment_of, app=number, token=bytes.fromhex(token)))
        if self._keys is not None:
            for enrolment_id in touched:
                self._keys.forget(enrolment_id)
        found = await self.get(app, token)
        if found is None:
            raise Problem(409, "removed", "The device was taken out at the same moment.")
        return found

    def _row(
        self,
        app: int,
        registration: Registration,
        token: str,
        tags: tuple[str, ...] | None,
        now: int,
        *,
        user: str | None = None,
        enrolment: str | None = None,
        before: str | None = None,
    ) -> tuple[Any, ...]:
        """A row of the funnel. Raises Problem: 422."""
        if user is None and registration.user is not None:
            user = checked_user(registration.user)
        locale = registration.locale
        return (
            self._kind, app, bytes.fromhex(token), LETTERS[registration.environment], user,
            None if tags is None else json.dumps(["", *tags], ensure_ascii=False),
            checked_name(locale, "locale", MAX_LOCALE) if locale else locale, now, enrolment,
            None if before is None else bytes.fromhex(before),
        )  # fmt: skip

    def _register_phone(
        self,
        app: str,
        number: int,
        registration: Registration,
        token: str,
        tags: tuple[str, ...] | None,
        enrolment_id: str,
        now: int,
        connection: sqlite3.Connection,
    ) -> list[str]:
        """Register a phone by its own word, in the writing thread; returns the enrolments that changed."""
        phone = enrolments.find(connection, enrolment_id)
        if phone is None or phone.revoked_at is not None or phone.app != app:
            raise Problem(403, "not allowed", "This device's secret is not for this app, or was revoked.")
        octets = bytes.fromhex(token)
        granted = set(json.loads(phone.tags))
        if tags is not None and not granted.issuperset(tags):
            refused = sorted(set(tags) - granted)[0]
            raise Problem(
                403, "not allowed", f"This device was not granted the tag {refused!r}.", field="tags"
            )
        holder = connection.execute(
            "SELECT enrolment FROM device WHERE app = ? AND token = ?", (number, octets)
        ).fetchone()
        mine = holder is not None and holder[0] == enrolment_id
        if holder is not None and not mine and phone.device_token is not None and holder[0] is not None:
            raise Problem(
                403,
                "not allowed",
                "Another device holds this device token. Enrol again, if it is this device's now.",
            )
        before = phone.device_token if phone.device_token not in (None, token) else None
        if tags is None:
            kept = connection.execute(
                "SELECT tags FROM device WHERE app = ? AND token = ? AND enrolment = ?",
                (number, octets if before is None else bytes.fromhex(before), enrolment_id),
            ).fetchone()
            tags = tuple(tag for tag in json.loads(kept[0] if kept else phone.tags) if tag and tag in granted)
        row = self._row(
            number, registration, token, tags, now, user=phone.user, enrolment=enrolment_id, before=before
        )
        pour(connection, [row])
        touched = [enrolment_id]
        if holder is not None and not mine and holder[0] is not None:
            enrolments.hold(connection, holder[0], None)
            touched.append(holder[0])
        if phone.device_token != token:
            enrolments.hold(connection, enrolment_id, token)
        return touched

    async def remove(self, app: str, device_token: str) -> bool:
        """Take a device out, with the secret of its phone; whether it was there."""
        token, number = checked_token(device_token), self._apps.get(app)
        if number is None:
            return False
        change = partial(_remove, app=number, token=bytes.fromhex(token), now=self._clock())
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
        return await self._storage.read(partial(count_of, app=number, audience=audience or ALL))

    async def page(self, app: str, audience: Audience, after: str = "", limit: int = 1_000) -> Page:
        """The next living devices of an audience, in the order of device tokens.

        Args:
          after: the last device token of the page before, "" for the first page.
        """
        number = self._apps.get(app)
        if number is None:
            return Page([], "", True)
        return await self._storage.read(
            partial(page_of, app=number, audience=audience, after=bytes.fromhex(after), limit=limit)
        )

    async def list(
        self, app: str, *, user: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[Device]:
        """Devices in the order of their device tokens, the dead among them."""
        number = self._apps.get(app)
        if number is None:
            return []
        which, values = "", [number, bytes.fromhex(after)]
        if user:
            which = " AND user = ? AND user <> ''"
            values.append(user)

        def query(connection: sqlite3.Connection) -> str:
            (text,) = connection.execute(
                f"SELECT json_group_array(json_array({_COLUMNS})) FROM (SELECT * FROM device"
                f" WHERE app = ? AND token > ?{which} ORDER BY token LIMIT ?)",
                (*values, limit),
            ).fetchone()
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

    def close_breaker(self, app: str) -> None:
        """Begin anew, after the cause was cured: a new credential, another topic, or somebody's word."""
        self._judge.close_breaker(app)

    async def learn_environment(self, app: str, device_token: str, environment: Environment) -> None:
        """Keep what a push has shown: this device token is known in this environment."""
        number = self._apps.get(app)
        if number is not None:
            key = number, bytes.fromhex(checked_token(device_token)), LETTERS[environment]
            change = partial(_learn, app=key[0], token=key[1], letter=key[2], now=self._milliseconds())
            await self._storage.write(change, essential=True)

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
        """Write what was reported; until cancelled, and then what is left."""
        task_status.started()
        try:
            while True:
                await self._judge.wait()
                await trio.sleep(WRITE_EVERY)
                await self.settle()
        finally:
            with trio.move_on_after(5.0, shield=True):
                await self.settle()

    async def settle(self) -> None:
        """Write now what was reported and is believed."""
        while due := self._judge.take(WRITE_AT_ONCE, trio.current_time()):
            numbered = [(self._apps[app], verdict) for app, verdict in due if app in self._apps]
            try:
                dead = await self._storage.write(
                    partial(_apply, verdicts=numbered, now=self._milliseconds()), essential=True
                )
            except StorageBroken:
                return
            except StorageError as error:
                logger.warning(
                    "%d verdicts on devices could not be written, and will be: %s", len(due), error
                )
                self._judge.give_back(due)
                await trio.sleep(1.0)
                return
            if dead:
                self._news.set()
                self._news = trio.Event()

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


def _add_app(connection: sqlite3.Connection, name: str) -> int:
    connection.execute("INSERT OR IGNORE INTO device_app (name) VALUES (?)", (name,))
    (number,) = connection.execute("SELECT number FROM device_app WHERE name = ?", (name,)).fetchone()
    return number  # type: ignore[no-any-return]


def _enrolment_of(connection: sqlite3.Connection, app: int, token: bytes) -> list[str]:
    found = connection.execute(
        "SELECT enrolment FROM device WHERE app = ? AND token = ? AND enrolment IS NOT NULL", (app, token)
    ).fetchone()
    return [] if found is None else list(found)


def _remove(connection: sqlite3.Connection, app: int, token: bytes, now: float) -> tuple[bool, str | None]:
    found = connection.execute(
        "SELECT enrolment FROM device WHERE app = ? AND token = ?", (app, token)
    ).fetchone()
    if found is None:
        return False, None
    _leave_audiences(connection, app, token)
    connection.execute("DELETE FROM device WHERE app = ? AND token = ?", (app, token))
    if found[0] is not None:
        enrolments.revoke(connection, found[0], now)
    return True, found[0]


def _leave_audiences(connection: sqlite3.Connection, app: int, token: bytes) -> None:
    connection.execute(
        "DELETE FROM audience WHERE app = ?1 AND token = ?2 AND tag IN (SELECT value FROM device,"
        " json_each(device.tags) WHERE device.app = ?1 AND device.token = ?2)",
        (app, token),
    )


def _learn(connection: sqlite3.Connection, app: int, token: bytes, letter: str, now: int) -> None:
    connection.execute(
        "UPDATE device SET environment = ?3, environment_at = ?4, refused_in = ''"
        " WHERE app = ?1 AND token = ?2",
        (app, token, letter, now),
    )
    connection.execute(
        "UPDATE audience SET environment = ?3 WHERE app = ?1 AND token = ?2 AND tag IN"
        " (SELECT value FROM device, json_each(device.tags) WHERE device.app = ?1 AND device.token = ?2)",
        (app, token, letter),
    )


def _apply(connection: sqlite3.Connection, verdicts: Iterable[tuple[int, Verdict]], now: int) -> list[str]:
    """Let what APNs said take its effect, where no registration came after it; returns who is dead."""
    dead = []
    for app, verdict in verdicts:
        token = bytes.fromhex(verdict.device_token)
        known = connection.execute(
            "SELECT environment, environment_at, user, refused_in, registered_at FROM device"
            " WHERE app = ? AND token = ? AND dead_at IS NULL",
            (app, token),
        ).fetchone()
        if known is None:
            continue
        environment, environment_at, user, refused_in, registered_at = known
        sent_at = int(verdict.sent_at * 1_000)
        if registered_at > (verdict.unregistered_at if verdict.unregistered_at is not None else sent_at):
            continue  # it was registered after that, and so it lives
        if verdict.reason == "BadDeviceToken" and not verdict.certain:
            if sent_at < environment_at:
                continue  # it went to the other environment
            if environment not in refused_in:
                refused_in += environment
            other = "d" if environment == "p" else "p"
            if other not in refused_in:
                _learn(connection, app, token, other, now)
                connection.execute(
                    "UPDATE device SET refused_in = ? WHERE app = ? AND token = ?", (refused_in, app, token)
                )
                continue
        _leave_audiences(connection, app, token)
        connection.execute(
            "UPDATE device SET dead_at = ?, dead_reason = ? WHERE app = ? AND token = ?",
            (now, verdict.reason, app, token),
        )
        connection.execute(
            "INSERT INTO device_event (app, at, token, environment, user, status, reason, unregistered_at,"
            " sent_at, apns_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                app, now, token, environment, user, verdict.status, verdict.reason, verdict.unregistered_at,
                sent_at, verdict.apns_id,
            ),
        )  # fmt: skip
        dead.append(shortened(verdict.device_token))
    return dead
