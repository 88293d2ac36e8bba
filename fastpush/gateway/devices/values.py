"""What the registry takes and gives."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from fastpush.gateway.auth.checks import checked_name, checked_tags, checked_user
from fastpush.gateway.problems import Problem

__all__ = [
    "MAX_TOKEN_DIGITS",
    "Device",
    "DeviceEvent",
    "Environment",
    "Page",
    "Registration",
    "Verdict",
    "checked",
    "checked_token",
    "shortened",
]

Environment = Literal["production", "development"]

MAX_LOCALE = 35  # RFC 5646 §4.4.1
MAX_TOKEN_DIGITS = 400
"""Apple's are 64 digits long today, and of a length that may change."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a device when it is registered.

    Attributes:
      device_token: hex digits, in any case.
      user: "" is nobody in particular.
      locale: a language tag such as `de-CH`, or "".
      user, tags, locale: None leaves them as they are; a new device then has none.
    """

    device_token: str
    environment: Environment = "production"
    user: str | None = None
    tags: tuple[str, ...] | None = None
    locale: str | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as it is registered. Instants are UNIX seconds, to the millisecond.

    Attributes:
      registered_at: the last time; what APNs said of the device token before that no longer counts.
      seen_at: when that was said: later than `registered_at` for one that was imported.
      dead_at, dead_reason: since when nothing is sent to it, in APNs' word. Registering it again revives it.
    """

    device_token: str
    app: str
    environment: Environment
    user: str
    tags: tuple[str, ...]
    locale: str
    registered_at: float
    seen_at: float
    dead_at: float | None = None
    dead_reason: str | None = None


class Page(NamedTuple):
    """Devices of an audience in the order of their device tokens.

    Attributes:
      environments: for each a letter, "p" for production and "d" for development.
      last: there are none after these.
    """

    device_tokens: list[str]
    environments: str
    last: bool


class Verdict(NamedTuple):
    """An answer of APNs about a device token. The first five may come as a plain tuple.

    Attributes:
      unregistered_at: milliseconds, of a 410 that says since when.
      sent_at: UNIX seconds.
      certain: of a BadDeviceToken: no other environment is left to be tried.
      apns_id: 16 octets.
    """

    device_token: str
    status: int
    reason: str
    unregistered_at: int | None
    sent_at: float
    certain: bool = False
    apns_id: bytes | None = None


class DeviceEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A device token found dead: stop sending to it, wherever else it is kept.

    Attributes:
      id: grows; the cursor of the feed.
      at: when it was taken out, UNIX seconds.
      unregistered_at: since when APNs knows it as dead, where APNs said so.
      sent_at: when the push was sent that found it.
    """

    id: int
    at: float
    app: str
    device_token: str
    environment: Environment
    user: str
    status: int
    reason: str
    unregistered_at: float | None
    sent_at: float
    apns_id: str | None


def checked_token(text: str, field: str = "device_token") -> str:
    """A device token in lower case.

    Raises:
      Problem: 422; it shows no more of the token than its length.
    """
    if not 2 <= len(text) <= MAX_TOKEN_DIGITS:
        found = f"has {len(text)} characters; 2 to {MAX_TOKEN_DIGITS} are taken, today's have 64."
    elif len(text) % 2:
        found = f"has {len(text)} hex digits; it must be an even number."
    else:
        try:
            octets = bytes.fromhex(text)
        except ValueError:
            octets = b""
        if len(octets) * 2 == len(text):  # which blanks would not be
            return text.lower()
        found = "holds a character that is no hex digit; send the octets that iOS gives as hex digits."
    raise Problem(422, "invalid value", found, field=field)


def checked(said: Registration) -> Registration:
    """The same, its parts as they are kept. Raises Problem: 422, with the field."""
    return Registration(
        device_token=checked_token(said.device_token),
        environment=said.environment,
        user=None if said.user is None else checked_user(said.user),
        tags=None if said.tags is None else checked_tags(said.tags),
        locale=checked_name(said.locale, "locale", MAX_LOCALE) if said.locale else said.locale,
    )


def shortened(device_token: str) -> str:
    """As it may be shown: the first and the last four digits."""
    return f"{device_token[:4]}…{device_token[-4:]}" if len(device_token) > 12 else "…"
