"""What stands for a device token in an address: addresses reach a browser's history and a proxy's log.

A handle is the token sealed (AES-SIV, RFC 5297) under a key of this gateway's storage, for one app. The same
token has always the same handle, so that a bookmark stays good; the registry's key is the token, so that a
handle that opens is looked up as before, with no further column or index. A digest would need both, for
a million rows; and the registry has no row number that lasts.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

__all__ = ["KEY_OCTETS", "MOST_DIGITS", "Handles", "ending"]

KEY_OCTETS = 64
MOST_DIGITS = 16
"""Of a device token in a query; a search compares no more, and a whole one does not belong there."""
LONGEST = 2_000


@final
class Handles:
    """Seals device tokens, and opens what it sealed."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESSIV(key)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def seal(self, app: str, device_token: str) -> str:
        """The handle of a device token of an app, for a path or a query."""
        sealed = self._cipher.encrypt(device_token.encode(), [app.encode(errors="replace")])
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, app: str, handle: str) -> str | None:
        """The device token of a handle; None for what is no handle of this app and gateway."""
        if not handle.isascii() or not 0 < len(handle) < LONGEST:
            return None
        try:
            sealed = base64.b64decode(handle + "=" * (-len(handle) % 4), b"-_", validate=True)
            return self._cipher.decrypt(sealed, [app.encode(errors="replace")]).decode()
        except (binascii.Error, InvalidTag, ValueError):
            return None


def ending(digits: str) -> str:
    """The last digits of what was given as the end of a device token, however much of it that was."""
    digits = "".join(digits.split())
    return digits[-MOST_DIGITS:] if re.fullmatch(r"[0-9a-fA-F]+", digits) else digits[:256]
