"""Signatures of webhooks, as Standard Webhooks spells them (standardwebhooks.com, specification 1.0.0).

Three headers go with a body:

    webhook-id         names the message, the same each time it is sent again
    webhook-timestamp  when this sending was signed, UNIX seconds
    webhook-signature  `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`; several, apart by blanks,
                       while a secret is exchanged for another

A secret is written `whsec_` and base64 of 24 to 64 octets. Both sides have it: unlike a key, it cannot be
kept as a hash.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from binascii import Error as NoBase64
from collections.abc import Sequence

__all__ = ["ID", "SIGNATURE", "TIMESTAMP", "read_signing_secret", "sign", "verify", "write_signing_secret"]

ID, TIMESTAMP, SIGNATURE = b"webhook-id", b"webhook-timestamp", b"webhook-signature"
PREFIX = "whsec_"
MIN_SECRET_OCTETS, MAX_SECRET_OCTETS = 24, 64
MAX_SIGNATURES = 10
"""In one header. Each costs the comparison of a signature."""


def write_signing_secret(secret: bytes) -> str:
    """As it is given to the other side."""
    return PREFIX + b64encode(secret).decode()


def read_signing_secret(text: str) -> bytes:
    """The octets of a secret in its written form.

    Raises:
      ValueError: without the secret in it.
    """
    if not text.startswith(PREFIX):
        raise ValueError(f"a signing secret begins with {PREFIX!r}")
    try:
        secret = b64decode(text.removeprefix(PREFIX), validate=True)
    except NoBase64:
        raise ValueError(f"a signing secret is {PREFIX!r} and base64; this is not base64") from None
    if not MIN_SECRET_OCTETS <= len(secret) <= MAX_SECRET_OCTETS:
        raise ValueError(
            f"a signing secret has {MIN_SECRET_OCTETS} to {MAX_SECRET_OCTETS} octets; this has {len(secret)}"
        )
    return secret


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return "v1," + b64encode(hmac.digest(secret, signed, "sha256")).decode()


def verify(secrets: Sequence[bytes], signatures: str, message_id: str, timestamp: int, body: bytes) -> bool:
    """Whether any of the signatures was made with any of the secrets; versions but v1 are passed over."""
    wanted = [sign(secret, message_id, timestamp, body) for secret in secrets]
    found = False
    for signature in signatures.split(" ")[:MAX_SIGNATURES]:
        for one in wanted:
            found |= hmac.compare_digest(one.encode(), signature.encode())
    return found
