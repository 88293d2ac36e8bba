"""Notices by push: to the administrators' phones, through whatever credential still works."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, final

import trio

from fastpush.gateway.notices.store import NotTold, Telling
from fastpush.gateway.notices.values import CATEGORY, DAY, Channel, Notice
from fastpush.gateway.outbox import Acceptance, Audience, BatchRecord, Entry, Idempotency, Outbox
from fastpush.notification import MAX_PAYLOAD_BYTES, Alert, Notification, Payload

__all__ = ["App", "Devices", "PushCarrier", "entry_of"]

ANSWERED_WITHIN = 30.0
"""Seconds to wait for what APNs says; what comes later is in the outbox's records."""

LOOK_EVERY = 0.1
MAX_COLLAPSE_ID_BYTES = 64


class App(Protocol):
    """Of `Apps`: what is asked here."""

    name: str

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str | None: ...


class Devices(Protocol):
    """Of the registry: what is asked here."""

    async def count(self, app: str, audience: Audience | None = None) -> int: ...


@final
class PushCarrier:
    """Hands a notice to the outbox, as a fan-out for each app it concerns, and waits for APNs' word.

    Those with the tag `admin_tag` are told; where an app has none of them, all of its devices. An app whose
    pushes APNs refuses now cannot tell anybody: in its place the administrators of other, working apps are
    told, and it is said who was not.
    """

    channel: Channel = "push"

    def __init__(
        self,
        outbox: Outbox,
        devices: Devices,
        apps: Mapping[str, App],
        *,
        admin_tag: str = "admin",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox, self._devices, self._apps = outbox, devices, apps
        self._admins = Audience(any_of=(admin_tag,))
        self._clock = clock

    async def tell(self, telling: Telling) -> str:
        wanted = [name for name in telling.notice.apps or self._apps if name in self._apps]
        working = [name for name in wanted if self._apps[name].state == "running"]
        broken = [name for name in wanted if name not in working]
        told = [await self._push(telling, name) for name in working]
        if broken:
            others = [
                name for name, app in self._apps.items() if name not in wanted and app.state == "running"
            ]
            told += [
                await self._push(telling, name)
                for name in others
                if await self._devices.count(name, self._admins)
            ]
        said = [one for one in told if one]
        for name in broken:
            count = await self._devices.count(name)
            why = self._apps[name].reason or self._apps[name].state
            said.append(f"not reached: {count} device{'s' * (count != 1)} of {name} ({why})")
        if not any(told):
            raise NotTold("; ".join(said) or "no device is registered", lasting=not broken)
        return "; ".join(said)

    async def _push(self, telling: Telling, app: str) -> str:
        """Push to the administrators of an app, else to all its devices; what became of it, "" for nobody."""
        audience, who = self._admins, f"devices of {app} tagged {self._admins.any_of[0]}"
        if not await self._devices.count(app, audience):
            audience, who = Audience(), f"devices of {app}"
            if not await self._devices.count(app):
                return ""
        entry = entry_of(telling, self._clock())
        key = f"{telling.change}-{telling.number}" if telling.number else f"trial-{telling.at}"
        acceptance = await self._outbox.accept_fanout(
            app,
            audience,
            entry,
            source="watchdog",
            # A kill between the push and its record does not push it twice.
            idempotency=Idempotency("watchdog", f"{key}-{app}", hashlib.sha256(entry.payload).digest()),
        )
        return f"{await self._outcome(acceptance)} {who}"

    async def _outcome(self, acceptance: Acceptance) -> str:
        record: BatchRecord | None = None
        with trio.move_on_after(ANSWERED_WITHIN):
            while True:
                record = await self._outbox.find_batch(acceptance.batch)
                if record is None or record.waiting == 0:
                    break
                await trio.sleep(LOOK_EVERY)
        if record is None:
            return "accepted for"
        accepted = record.outcomes.get("accepted", 0)
        if record.waiting == 0:
            return f"APNs took it for {accepted} of {record.count}"
        return f"APNs took it so far for {accepted}, and is still to be asked, of the"


def entry_of(telling: Telling, now: float) -> Entry:
    """The push of a notice. One notice is one banner: what comes later takes its place."""
    notice = telling.notice
    over = telling.change == "withdrawn"
    data: dict[str, Any] = {"notice": {"v": 1, "id": notice.id, "kind": notice.kind, "state": telling.change}}
    if notice.expires_at is not None:
        data["notice"]["expires_at"] = int(notice.expires_at)
    payload = Payload(
        alert=Alert(
            title=f"Over: {notice.title}" if over else notice.title,
            body="Nothing needs to be done any more." if over else f"{notice.body} {notice.cure}",
        ),
        category=CATEGORY,
        thread_id="fastpush",
        sound=None if over else "default",
        interruption_level="passive" if over else "time-sensitive" if notice.severity == 1 else "active",
        relevance_score=0.2 if over else 1.0,
        data=data,
    ).shortened(MAX_PAYLOAD_BYTES)
    expiration = now + DAY
    if notice.expires_at is not None and now + 60 < notice.expires_at < expiration and not over:
        expiration = notice.expires_at
    collapse_id = _collapse_id(notice)
    # As any other notification it is checked before it is accepted.
    checked = Notification(
        "0" * 64, payload, priority=5 if over else 10, expiration=int(expiration), collapse_id=collapse_id
    )
    return Entry(
        device_token=None,
        payload=checked.payload.encode(),
        priority=5 if over else 10,
        expiration=int(expiration),
        collapse_id=collapse_id,
        high=True,
        trace=f"notice {notice.id}"[:64],
    )


def _collapse_id(notice: Notice) -> str:
    name = f"cert.{notice.topic}" if notice.kind == "certificate" and notice.topic else f"notice.{notice.id}"
    if len(name.encode()) <= MAX_COLLAPSE_ID_BYTES:
        return name
    return f"notice.{hashlib.sha256(name.encode()).hexdigest()[:48]}"
