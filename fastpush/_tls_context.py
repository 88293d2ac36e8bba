"""The TLS side of a connection to APNs: an `ssl.SSLContext` made from memory, touching nothing global."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Iterator

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from fastpush._credential_files import Identity, read_file, wiped
from fastpush.errors import InvalidCredential

__all__ = ["client_context", "load_identity", "trust_fingerprint"]

MAX_CA_FILE_OCTETS = 8_388_608

MEMORY_FILES = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")
"""Whether there are files in memory that have a name: on Linux, unless in a chroot without /proc."""

_CERTIFICATE = re.compile(rb"-----BEGIN ((?:X509 )?CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)


def client_context(ca_file: str | os.PathLike[str] | None, ca_data: bytes | str | None) -> ssl.SSLContext:
    """Make a context for a client of APNs: TLS 1.2 or later, ALPN h2, the server always verified.

    The environment variable SSLKEYLOGFILE is not followed, unlike in `ssl.create_default_context`.

    Args:
      ca_file: trusted certificates in PEM, instead of the system's.
      ca_data: the same from memory, PEM or one certificate in DER. Both may be given; both count.

    Raises:
      InvalidCredential: one of them holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION  # RFC 9113 §9.2.1
    context.set_alpn_protocols(["h2"])
    if ca_file is None and ca_data is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if ca_file is not None:
        _trust(context, bytes(read_file(ca_file, MAX_CA_FILE_OCTETS)), os.fspath(ca_file))
    if ca_data is not None:
        _trust(context, ca_data.encode() if isinstance(ca_data, str) else bytes(ca_data), "ca_data")
    return context


def _trust(context: ssl.SSLContext, data: bytes, source: str) -> None:
    if not data.strip():
        raise InvalidCredential(f"{source}: is empty, where trusted certificates in PEM were expected")
    if len(data) > MAX_CA_FILE_OCTETS:
        raise InvalidCredential(f"{source}: is larger than {MAX_CA_FILE_OCTETS} octets")
    # Only the blocks go to OpenSSL: names in comments between them need not be ASCII, as `cadata` must.
    blocks = [match[0] for match in _CERTIFICATE.finditer(data)]
    if not blocks and data[:1] != b"\x30":
        raise InvalidCredential(f"{source}: holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")
    try:
        context.load_verify_locations(cadata=b"\n".join([*blocks, b""]).decode("ascii") if blocks else data)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidCredential(f"{source}: a trusted certificate in it is damaged") from error


def trust_fingerprint(
    ca_file: str | os.PathLike[str] | None, ca_data: bytes | str | None
) -> tuple[object, ...]:
    """Give what changes when the trusted certificates change, at the price of one or two `stat`."""
    if ca_file is None and ca_data is None:
        paths = ssl.get_default_verify_paths()
        return tuple(_stamp(path) for path in (paths.cafile, paths.capath) if path is not None)
    return (None if ca_file is None else (os.fspath(ca_file), _stamp(ca_file)), ca_data)


def _stamp(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def load_identity(
    context: ssl.SSLContext, identity: Identity, source: str, *, in_memory: bool = MEMORY_FILES
) -> None:
    """Give a context its client certificate.

    `ssl` takes file names only. The file is one in memory where the system has those, otherwise a
    temporary one with mode 0600; either way the key in it is encrypted under a password drawn for this
    one call, so that it lies in clear on no disk and in no bytes object of Python's.

    Raises:
      InvalidCredential: OpenSSL refuses it, for instance an RSA key of 1024 bits.
    """
    password = bytearray(secrets.token_hex(16), "ascii")
    with wiped(password):
        pem = [
            identity.key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(bytes(password))
            )
        ]
        certificates = (identity.certificate, *identity.intermediates)
        pem += [certificate.public_bytes(Encoding.PEM) for certificate in certificates]
        with _file_with(b"".join(pem), in_memory) as path:
            try:
                context.load_cert_chain(path, password=password)
            except ssl.SSLError as error:
                reason = (error.reason or "unknown").replace("_", " ").lower()
                raise InvalidCredential(f"{source}: OpenSSL refuses the certificate: {reason}") from error


@contextlib.contextmanager
def _file_with(content: bytes, in_memory: bool) -> Iterator[str]:
    if in_memory:
        with open(os.memfd_create("fastpush", os.MFD_CLOEXEC), "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{file.fileno()}"
        return
    descriptor, path = tempfile.mkstemp(prefix="fastpush-")  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        yield path
    finally:
        os.unlink(path)
