"""Provider tokens as APNs reads them: ES256 JWTs, leniently parsed and strictly verified."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

__all__ = ["Claims", "TokenRefused", "TrustedKey", "read_provider_token"]

_MAX_TOKEN_BYTES = 4_096


class TokenRefused(Exception):
    """Not a provider token, or not signed by the key it names."""


class Claims(NamedTuple):
    """What a provider token says."""

    key_id: str
    team_id: str
    issued_at: int


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """The public half of a signing key that the simulator takes."""

    key_id: str
    team_id: str
    point: bytes = field(repr=False)
    """The public key as an uncompressed point of P-256 (SEC 1 §2.3.3)."""
    topics: frozenset[str] | None = None
    """Bundle ids of a topic-specific key; None: team-scoped, all topics."""
    environments: tuple[str, ...] = ("production", "development")
    related_key_id: str | None = None
    """The one other key that may be mixed with it on a connection."""

    @staticmethod
    def point_of(public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Give a public key in the form of `point`."""
        return public_key.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )


def read_provider_token(provider_token: bytes, keys: Mapping[str, TrustedKey] | None) -> Claims:
    """Tell the claims of a provider token; its age is the caller's to judge.

    The signature may be in JOSE form (r and s, 32 octets each) or in DER, and `iat` may be a number or a
    string of digits: clients that send either are known to work.

    Args:
      keys: by key id; None leaves key id and signature unchecked.

    Raises:
      TokenRefused: it cannot be read, the key is not among `keys`, or the signature is not that key's.
    """
    claims = _parse(provider_token)
    if keys is None:
        return claims
    key = keys.get(claims.key_id)
    if key is None or key.team_id != claims.team_id:
        raise TokenRefused("no such key in that team")
    if not _verify(provider_token, key.point):
        raise TokenRefused("the signature is not that of the key")
    return claims


def _decode_part(part: bytes) -> bytes:
    try:
        return base64.urlsafe_b64decode(part.rstrip(b"=") + b"=" * (-len(part.rstrip(b"=")) % 4))
    except (binascii.Error, ValueError) as error:
        raise TokenRefused("not base64url") from error


@functools.lru_cache(maxsize=1_024)
def _parse(provider_token: bytes) -> Claims:
    parts = provider_token.split(b".")
    if len(parts) != 3 or len(provider_token) > _MAX_TOKEN_BYTES:
        raise TokenRefused("not three parts")
    try:
        header, claims = (json.loads(_decode_part(part)) for part in parts[:2])
    except (ValueError, RecursionError) as error:
        raise TokenRefused("not JSON") from error
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise TokenRefused("not objects")
    key_id, team_id, issued_at = header.get("kid"), claims.get("iss"), claims.get("iat")
    if header.get("alg") != "ES256" or not isinstance(key_id, str) or not isinstance(team_id, str):
        raise TokenRefused("alg, kid or iss")
    if isinstance(issued_at, str) and issued_at.isdecimal() and len(issued_at) <= 10:
        issued_at = int(issued_at)
    if not isinstance(issued_at, int | float) or isinstance(issued_at, bool) or not abs(issued_at) < 1e11:
        raise TokenRefused("iat")
    return Claims(key_id, team_id, int(issued_at))


@functools.lru_cache(maxsize=1_024)
def _verify(provider_token: bytes, point: bytes) -> bool:
    """Verify once for the life of the process: the same octets and the same key give the same answer."""
    signed, _, part = provider_token.rpartition(b".")
    signature = _decode_part(part)
    if len(signature) == 64:
        numbers = (int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        signature = utils.encode_dss_signature(*numbers)
    public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    try:
        public_key.verify(
            signature, hashlib.sha256(signed).digest(), ec.ECDSA(utils.Prehashed(hashes.SHA256()))
        )
    except InvalidSignature:
        return False
    return True
