"""A signing key for the benchmarks, and a provider token for the contenders that cannot make one."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks import data


class SigningKeyFile:
    """A P-256 key in PKCS #8, as Apple's .p8 files are; the same one for the same seed."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self._key = ec.derive_private_key(1 + seed, ec.SECP256R1())
        path.write_bytes(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def provider_token(self) -> str:
        """Sign one for now, by RFC 7515 and RFC 7518 §3.4 (ES256: r and s, 32 octets each)."""
        header = {"alg": "ES256", "kid": data.KEY_ID}
        claims = {"iss": data.TEAM_ID, "iat": int(time.time())}
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return b".".join((signed, _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big")))).decode()


def _base64url(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")
