"""The carriers that a configuration asks for, and what would keep them from telling."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fastpush.gateway import signatures
from fastpush.gateway.config import (
    Config,
    RestSettings,
    SecretUnusable,
    SmtpSettings,
    WebhookSettings,
    read_secret,
)
from fastpush.gateway.notices.email import EmailCarrier
from fastpush.gateway.notices.outgoing import OpManagerCarrier, WebhookCarrier
from fastpush.gateway.notices.push import App, Devices, PushCarrier
from fastpush.gateway.notices.store import Carrier, LogCarrier
from fastpush.gateway.outbox import Outbox

__all__ = ["carriers_of", "why_unusable"]


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


def why_unusable(settings: SmtpSettings | RestSettings | WebhookSettings) -> str | None:
    """What surely keeps a table of `[notices]` from telling, None where nothing does. Reads its files."""
    try:
        if isinstance(settings, WebhookSettings):
            _read(settings.secret_file, signatures.read_signing_secret)
        elif isinstance(settings, RestSettings):
            _read(settings.api_key_file)
        elif settings.password_file is not None:
            _read(settings.password_file)
        if not isinstance(settings, WebhookSettings) and settings.ca_file is not None:
            ssl.create_default_context(cafile=settings.ca_file)
    except SecretUnusable as error:
        return str(error)
    except ssl.SSLError:
        return f"{settings.ca_file}: no certificate in PEM is there"  # type: ignore[union-attr]
    except OSError as error:
        return f"{error.filename or settings.ca_file}: {error.strerror}"  # type: ignore[union-attr]
    return None


def _read(path: Path, form: Callable[[str], object] = str) -> None:
    text = read_secret(path)
    try:
        form(text)
    except ValueError as error:
        raise SecretUnusable(f"{path}: {error}") from None
