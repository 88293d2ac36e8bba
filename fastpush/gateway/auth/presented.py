"""What a request shows to prove who it comes from."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NoBase64
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from fastpush.gateway import signatures

__all__ = ["WRONG", "Signed", "Wrong", "presented", "signature_of", "text_of"]

WRONG = "This key is not known here."
"""Said of all that is wrong, whatever it is: nobody learns which keys there are."""

MAX_OCTETS = 512
MAX_MESSAGE_ID = 256
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)


class Wrong(Exception):
    """What was shown proves nothing. The message goes to the client."""


class Signed(NamedTuple):
    """The three headers of a signed webhook."""

    message_id: str
    timestamp: int
    signatures: str


def presented(scope: Any, query_token: bool) -> bytes | None:
    """The header that proves, as it came; for webhooks also the parameter `token` of the query.

    `Authorization` goes before `X-Api-Key`, and both before the query.
    """
    key: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            return value  # type: ignore[no-any-return]
        if name == b"x-api-key":
            key = value
    if key is None and query_token and b"token=" in scope["query_string"]:
        for part in scope["query_string"].split(b"&"):
            if part.startswith(b"token="):
                return unquote_to_bytes(part[6 : 6 + 3 * MAX_OCTETS])
    return key


def text_of(value: bytes) -> str | None:
    """The key in a header's value: Bearer, Basic with the key as user or as password, or as it is."""
    if len(value) > MAX_OCTETS:
        return None
    scheme, _, rest = value.strip().partition(b" ")
    match scheme.lower():
        case b"bearer":
            found = rest.strip()
        case b"basic":
            try:
                user, _, password = b64decode(rest.strip(), validate=True).partition(b":")
            except NoBase64:
                return None
            found = password if password.startswith((b"fpk_", b"fpd_")) else user
        case _:
            found = value.strip()
    return found.decode("ascii") if found.isascii() else None


def signature_of(scope: Any) -> Signed | None:
    """The headers of a signature; None where they lack or cannot be one."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in (signatures.ID, signatures.TIMESTAMP, signatures.SIGNATURE):
            if name in found or not value.isascii():
                return None
            found[name] = value
    if len(found) < 3:
        return None
    message_id, timestamp = found[signatures.ID].decode(), found[signatures.TIMESTAMP].decode()
    if not 0 < len(message_id) <= MAX_MESSAGE_ID or _TIMESTAMP.fullmatch(timestamp) is None:
        return None
    return Signed(message_id, int(timestamp), found[signatures.SIGNATURE].decode())
