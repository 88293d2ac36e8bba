"""The carriers that a configuration asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from fastpush.gateway.config import Config
from fastpush.gateway.notices.email import EmailCarrier
from fastpush.gateway.notices.outgoing import OpManagerCarrier, WebhookCarrier
from fastpush.gateway.notices.push import App, Devices, PushCarrier
from fastpush.gateway.notices.store import Carrier, LogCarrier
from fastpush.gateway.outbox import Outbox

__all__ = ["carriers_of"]


def carriers_of(
    config: Config,
    *,
    outbox: Outbox,
    devices: Devices,
    apps: Mapping[str, App],
    clock: Callable[[], float] = time.time,
    best_clock: Callable[[], float] = time.time,
) -> list[Carrier]:
    """Log and push always, the others where their table is given.

    Args:
      clock: the outbox's, by which a push expires.
      best_clock: the best time that is known, for those who compare it with their own.
    """
    settings = config.notices
    carriers: list[Carrier] = [LogCarrier()]
    if settings.smtp is not None:
        carriers.append(EmailCarrier(settings.smtp))
    carriers.append(PushCarrier(outbox, devices, apps, admin_tag=config.alarms.admin_tag, clock=clock))
    if settings.opmanager is not None:
        carriers.append(OpManagerCarrier(settings.opmanager))
    if settings.webhook is not None:
        carriers.append(WebhookCarrier(settings.webhook, clock=best_clock))
    return carriers
