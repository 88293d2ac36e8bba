"""From what the outbox holds to what the client sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from fastpush.gateway.outbox import Audience, Claimed, Entry
from fastpush.notification import Notification, Payload

__all__ = ["Maker", "takes_apns_id_for_collapse_id", "uuid_text"]

_BADGE_AFTER = b'{"aps":{'
_PAYLOADS = 256  # encoded payloads whose check is remembered


def uuid_text(octets: bytes) -> str:
    """The canonical form of 16 octets."""
    digits = octets.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@final
class Maker:
    """Makes the notifications of one app."""

    def __init__(self, app: str, badge: Callable[[str, tuple[str, ...]], int] | None) -> None:
        self._app = app
        self._badge = badge
        self._payloads: dict[bytes, Payload] = {}

    def notification(self, claim: Claimed) -> Notification:
        """One of the outbox's. Raises InvalidNotification."""
        entry = claim.entry
        text = uuid_text(claim.apns_id)
        return Notification(
            entry.device_token,  # type: ignore[arg-type]  # only a fan-out's is None
            self.payload(entry, None),
            topic=entry.topic,
            push_type=entry.push_type,
            priority=entry.priority,
            expiration=entry.expiration,
            collapse_id=text if takes_apns_id_for_collapse_id(entry) else entry.collapse_id,
            apns_id=text,
        )

    def payload(self, entry: Entry, audience: Audience | None) -> Payload:
        """Its payload, with the badge where it asks for one."""
        octets = entry.payload
        if entry.badge and self._badge is not None and octets.startswith(_BADGE_AFTER):
            tags = () if audience is None else audience.any_of
            member = b'"badge":%d' % self._badge(self._app, tags)
            rest = octets[len(_BADGE_AFTER) :]
            octets = b"".join((_BADGE_AFTER, member, b"" if rest.startswith(b"}") else b",", rest))
        payload = self._payloads.get(octets)
        if payload is None:
            if len(self._payloads) >= _PAYLOADS:
                self._payloads.clear()
            payload = self._payloads[octets] = Payload.raw(octets)
        return payload


def takes_apns_id_for_collapse_id(entry: Entry) -> bool:
    """An alert that has no collapse id gets its apns-id for one, so that a repetition replaces it."""
    return entry.collapse_id is None and entry.push_type == "alert" and entry.delivery == "resend"
