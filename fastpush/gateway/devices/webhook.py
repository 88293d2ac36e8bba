"""A server of yours is told of device tokens found dead: signed, in order, until it says that it has them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import final

import msgspec
import trio

from fastpush.gateway.config import WebhookSettings, read_secret
from fastpush.gateway.devices.registry import Devices
from fastpush.gateway.devices.values import DeviceEvent
from fastpush.gateway.log import get_logger
from fastpush.gateway.signatures import read_signing_secret
from fastpush.gateway.storage import Storage, StorageError
from fastpush.gateway.webhooks import (
    Backoff,
    NotDelivered,
    Webhook,
    WebhookSender,
    open_webhook_sender,
)

__all__ = ["DeviceWebhook", "WebhookStatistics", "tell_of_devices"]

logger = get_logger("fastpush.gateway.devices")

GATHER = 1.0  # seconds in which events gather
AT_ONCE = 500


class WebhookStatistics(msgspec.Struct, frozen=True):
    """How it goes.

    Attributes:
      told: the last event that was taken.
      failures: tries since the last success.
      failure: why the last try failed; None after a success.
    """

    told: int
    failures: int
    failure: str | None


class _Message(msgspec.Struct):
    """What is sent: Standard Webhooks' `type`, `timestamp` and `data`."""

    type: str
    timestamp: str
    data: dict[str, Sequence[DeviceEvent]]


async def tell_of_devices(
    storage: Storage,
    devices: Devices,
    settings: WebhookSettings,
    *,
    clock: Callable[[], float],
    task_status: trio.TaskStatus[DeviceWebhook] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the webhook of the configuration; until cancelled.

    Raises:
      SecretUnusable: its secret cannot be read.
      ValueError: it is no signing secret.
    """
    webhook = Webhook(settings.url, read_signing_secret(read_secret(settings.secret_file)))
    async with open_webhook_sender(clock=clock) as sender:
        telling = DeviceWebhook(storage, devices, sender, webhook)
        async with trio.open_nursery() as nursery:
            await nursery.start(telling.run)
            task_status.started(telling)


@final
class DeviceWebhook:
    """Tells one server of the device events. Where it has come to is on disk, so none is left out.

    A message that was sent may come again, after a restart or an answer that was lost: under the same id,
    with the same events.
    """

    def __init__(self, storage: Storage, devices: Devices, sender: WebhookSender, webhook: Webhook) -> None:
        self._storage = storage
        self._devices = devices
        self._sender = sender
        self._webhook = webhook
        self._backoff = Backoff()
        self._told = self._failures = 0
        self._failure: str | None = None

    def statistics(self) -> WebhookStatistics:
        return WebhookStatistics(self._told, self._failures, self._failure)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell what is not told yet, and what comes; until cancelled."""
        self._told, telling = await self._storage.read(
            lambda connection: connection.execute("SELECT told, telling FROM device_webhook").fetchone()
        )
        task_status.started()
        while True:
            await self._devices.wait_for_events(self._told)
            if telling <= self._told:
                await trio.sleep(GATHER)
            events = await self._devices.events(self._told, AT_ONCE)
            if telling > self._told:
                events = [event for event in events if event.id <= telling]
            if not events:  # those of the message are no longer kept
                telling = self._told
                continue
            telling = events[-1].id
            await self._keep(self._told, telling)
            await self._tell(f"device-events-{self._told}-{telling}", events)
            await self._keep(telling, telling)

    async def _keep(self, told: int, telling: int) -> None:
        """Remember where it stands. What cannot be written is written with the next."""
        self._told = told
        try:
            await self._storage.write(partial(_keep, told=told, telling=telling), essential=True)
        except StorageError as error:
            logger.warning("the webhook's place could not be written", error=str(error))

    async def _tell(self, message_id: str, events: Sequence[DeviceEvent]) -> None:
        at = datetime.fromtimestamp(events[-1].at, UTC).isoformat().replace("+00:00", "Z")
        body = msgspec.json.encode(_Message("device.dead", at, {"events": events}))
        while True:
            try:
                await self._sender.post(self._webhook, message_id, body)
            except NotDelivered as error:
                self._failures += 1
                self._failure = str(error)
                wait = self._backoff.after(error)
                logger.warning(
                    "the webhook of dead device tokens failed",
                    error=str(error),
                    failures=self._failures,
                    seconds=round(wait),
                )
                await trio.sleep(wait)
            else:
                self._backoff.reset()
                self._failures, self._failure = 0, None
                return


def _keep(connection: sqlite3.Connection, told: int, telling: int) -> None:
    connection.execute("UPDATE device_webhook SET told = ?, telling = ?", (told, telling))
