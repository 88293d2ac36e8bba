"""The trusted certificates that a connection to APNs needs: are they there, and till when are they good?"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

__all__ = ["APNS_ROOT", "APNS_ROOT_NAME", "Root", "find_root"]

APNS_ROOT = "e793c9b02fd8aa13e21c31228accb08119643b749c898964b1746d46c3d4cbd2"
"""SHA-256 of the root above APNs' certificates since 24 February 2025 (Apple, news of 17 October 2024)."""

APNS_ROOT_NAME = "USERTrust RSA Certification Authority"

MAX_OCTETS = 8 << 20
MAX_FILES = 4_096
_BLOCK = re.compile(rb"-----BEGIN ((?:X509 )?CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)


class Root(NamedTuple):
    """A trusted certificate. Times are UNIX seconds."""

    name: str
    fingerprint: str
    not_before: float
    expires_at: float


def find_root(ca_file: str | os.PathLike[str] | None, *, apns: bool) -> Root | None:
    """The root that a connection stands on, None if there is none. Reads files: run it in a thread.

    Args:
      ca_file: trusted certificates in place of the system's.
      apns: the server is Apple's, so that its root is known. Of another server any may be; the one that is
        good for longest is given, since nothing works when that has ended.

    Raises:
      OSError: `ca_file` cannot be read.
    """
    found = []
    for octets in _contents(ca_file):
        for block in _BLOCK.finditer(octets):
            fingerprint = _fingerprint(block[0])
            if fingerprint == APNS_ROOT or not apns:
                root = _root(block[0], fingerprint)
                if root is not None:
                    found.append(root)
    return max(found, key=lambda root: root.expires_at, default=None)


def _contents(ca_file: str | os.PathLike[str] | None) -> Iterator[bytes]:
    if ca_file is not None:
        yield _read(Path(ca_file))
        return
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        yield _read(Path(paths.cafile))
    if paths.capath is not None and os.path.isdir(paths.capath):
        # As OpenSSL looks them up: files named by a hash of the subject.
        for name in sorted(os.listdir(paths.capath))[:MAX_FILES]:
            if re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", name):
                try:
                    yield _read(Path(paths.capath, name))
                except OSError:
                    continue  # a link to a file that was removed


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_OCTETS)


def _fingerprint(block: bytes) -> str:
    try:
        der = ssl.PEM_cert_to_DER_cert(block.decode("ascii"))
    except ValueError:
        return ""
    return hashlib.sha256(der).hexdigest()


def _root(block: bytes, fingerprint: str) -> Root | None:
    try:
        certificate = x509.load_pem_x509_certificate(block)
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except ValueError:
        return None
    return Root(
        str(names[0].value) if names else certificate.subject.rfc4514_string(),
        fingerprint,
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )
