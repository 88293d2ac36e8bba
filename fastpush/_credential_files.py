"""Files that hold keys and certificates: read, told apart, and turned into key objects.

Whatever is wrong raises `InvalidCredential` with what was found and the cure. Clear key octets are held
in bytearrays and overwritten when the function ends, also when it raises, so that a traceback that shows
local variables shows zeros. Python keeps copies of its own now and then, so this narrows the time in
which a key lies in memory and cannot promise more; `cryptography` keeps the key itself inside OpenSSL.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    pkcs12,
)

from fastpush._apple_certificate import SEQUENCE
from fastpush.errors import InvalidCredential

__all__ = ["Identity", "identity", "octets_of", "read_file", "signing_key"]

CertificateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)
"""The kinds of private key that can stand behind a TLS client certificate."""

MAX_SIGNING_KEY_OCTETS = 16_384  # Apple's have 257; nothing near this size is one
MAX_CERTIFICATE_OCTETS = 1_048_576

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9][A-Z0-9 ]{0,40})-----")
_KEY_BLOCK = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
_CERTIFICATE_BLOCK = re.compile(rb"-----BEGIN ((?:X509 )?CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)

_EXPORT = (
    "in Keychain Access select the certificate together with the private key beneath it and export both "
    "as .p12, or give the key's file as key_file"
)


class Identity(NamedTuple):
    """A certificate, the private key that belongs to it, and the intermediates that came with it."""

    key: CertificateKey
    certificate: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]


def read_file(path: str | os.PathLike[str], limit: int) -> bytearray:
    """Read a whole file of at most `limit` octets.

    Raises:
      InvalidCredential: it cannot be read, or is larger.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = bytearray()
            while len(data) <= limit and (part := file.read(limit + 1 - len(data))):
                data += part
    except OSError as error:
        raise InvalidCredential(
            f"{os.fspath(path)}: cannot be read: {error.strerror or type(error).__name__}"
        ) from error
    return data


def octets_of(data: bytes | bytearray | memoryview | str) -> bytearray:
    """Copy what a caller gave as file content; text stands for its UTF-8 octets."""
    if isinstance(data, str):
        return bytearray(data, "utf-8")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"the content of a file is bytes, not {type(data).__name__}")
    return bytearray(data)


@contextlib.contextmanager
def wiped(*secrets: bytearray | None) -> Iterator[None]:
    """Overwrite these when the block ends, also by an exception."""
    try:
        yield
    finally:
        for secret in secrets:
            if secret is not None:
                secret[:] = bytes(len(secret))


def password_octets(password: str | bytes | None) -> bytearray | None:
    """Copy a password into what can be wiped."""
    return None if password is None else octets_of(password)


# ---------------------------------------------------------------------------------------------
# The signing key


def signing_key(data: bytearray, source: str) -> ec.EllipticCurvePrivateKey:
    """Load a .p8: PKCS#8 of a P-256 key, in PEM or DER, not encrypted. `data` is wiped.

    Args:
      data: the file's octets. A byte order mark, text and space around the PEM block, CRLF, and line
        ends written as backslash and n (as keys in environment variables often have) are put up with.
      source: what to call it in an error.

    Raises:
      InvalidCredential: it is anything else.
    """
    with wiped(data):
        _check_size(data, source, MAX_SIGNING_KEY_OCTETS, "a signing key (.p8)")
        block = _KEY_BLOCK.search(data)
        if block is None:
            if _BEGIN.search(data) or data[0] != SEQUENCE:
                raise InvalidCredential(_not_a_signing_key(source, _describe(data)))
            try:
                key = load_der_private_key(data, None)
            except TypeError:
                raise InvalidCredential(_encrypted_signing_key(source)) from None
            except (ValueError, UnsupportedAlgorithm):
                raise InvalidCredential(_not_a_signing_key(source, _describe(data))) from None
        else:
            if block[1] == b"ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in block[0][:200]:
                raise InvalidCredential(_encrypted_signing_key(source))
            if block[1] not in (b"PRIVATE KEY", b"EC PRIVATE KEY", b"RSA PRIVATE KEY"):
                raise InvalidCredential(_not_a_signing_key(source, _describe(data)))
            start, end = block.span()
            del block
            with wiped(pem := _unescaped(data[start:end])):
                try:
                    key = load_pem_private_key(pem, None)
                except (ValueError, TypeError, UnsupportedAlgorithm) as error:
                    raise InvalidCredential(
                        f"{source}: a private key in PEM whose content is damaged; download it from Apple "
                        "again, or copy the file as it is, all lines of it"
                    ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidCredential(_not_a_signing_key(source, _describe_key(key)))
    return key


def _unescaped(pem: bytearray) -> bytearray:
    """Turn a backslash followed by n (or r) into what it was meant to be; a PEM block has no backslash."""
    if b"\\" not in pem:
        return pem
    with wiped(pem):
        return pem.replace(b"\\r", b"").replace(b"\\n", b"\n")


def _not_a_signing_key(source: str, found: str) -> str:
    return (
        f"{source}: {found}, where APNs needs a private key on the curve P-256 (the file "
        'AuthKey_<key id>.p8 from Apple\'s page "Keys")'
    )


def _encrypted_signing_key(source: str) -> str:
    return (
        f"{source}: the private key is encrypted, as Apple's .p8 files are not; decrypt it with "
        "`openssl pkcs8 -in FILE -out FILE.p8` and protect it by the file's mode"
    )


# ---------------------------------------------------------------------------------------------
# Certificate and key


def identity(
    data: bytearray, source: str, key_data: bytearray | None, key_source: str, password: bytearray | None
) -> Identity:
    """Load a provider certificate and its key. `data`, `key_data` and `password` are wiped.

    Args:
      data: a PKCS#12 file, or certificates in PEM (a certificate alone also in DER) with or without
        the key among them.
      source: what to call it in an error.
      key_data: the key's own file, PEM or DER.
      key_source: what to call that.
      password: of the PKCS#12 file or the key; not used where nothing is encrypted.

    Raises:
      InvalidCredential: unreadable, wrong password, a part is missing, or the parts do not match.
    """
    with wiped(data, key_data, password):
        _check_size(data, source, MAX_CERTIFICATE_OCTETS, "a provider certificate")
        if key_data is not None:
            _check_size(key_data, key_source, MAX_CERTIFICATE_OCTETS, "a certificate's private key")
        if _is_pkcs12(data):
            if key_data is not None:
                raise InvalidCredential(f"{source}: a PKCS#12 file holds its own key; leave key_file out")
            key, certificates = _from_pkcs12(data, source, password)
        else:
            certificates = _certificates(data, source)
            if key_data is None:
                key = _private_key(data, source, password)
            else:
                key = _private_key(key_data, key_source, password)

    public = _public_octets(key)
    for certificate in certificates:
        if _certified_octets(certificate) == public:
            others = tuple(other for other in certificates if other != certificate)
            return Identity(key, certificate, others)
    count = len(certificates)
    whose = "" if key_data is None else f" of {key_source}"
    what = (
        f"the certificate {_subject(certificates[0])}" if count == 1 else f"any of the {count} certificates"
    )
    raise InvalidCredential(
        f"{source}: the private key{whose} does not belong to {what}; "
        "export the certificate with the key that its signing request was made with"
    )


def _from_pkcs12(
    data: bytearray, source: str, password: bytearray | None
) -> tuple[CertificateKey, list[x509.Certificate]]:
    try:
        # No password stands for none and for an empty one, which are two things in PKCS#12 (RFC 7292,
        # appendix B.1) and one to the person who exported the file.
        bundle = pkcs12.load_pkcs12(data, password or None)  # type: ignore[arg-type]
    except (ValueError, UnsupportedAlgorithm) as error:
        if password:
            problem = f"{source}: the password is wrong, or the PKCS#12 file is damaged"
        else:
            problem = f"{source}: the PKCS#12 file is encrypted; give its password as password="
        raise InvalidCredential(problem) from error
    certificates = [entry.certificate for entry in (bundle.cert, *bundle.additional_certs) if entry]
    if bundle.key is None:
        raise InvalidCredential(f"{source}: the PKCS#12 file holds no private key; {_EXPORT}")
    if not certificates:
        raise InvalidCredential(f"{source}: the PKCS#12 file holds no certificate; {_EXPORT}")
    return _certificate_key(bundle.key, source), certificates


def _certificates(data: bytearray, source: str) -> list[x509.Certificate]:
    blocks = [match[0] for match in _CERTIFICATE_BLOCK.finditer(data)]
    try:
        if blocks:
            return [x509.load_pem_x509_certificate(block) for block in blocks]
        if not _BEGIN.search(data) and data[0] == SEQUENCE:
            return [x509.load_der_x509_certificate(bytes(data))]
    except ValueError as error:
        found = "a certificate in PEM whose content is damaged" if blocks else _describe(data)
        raise InvalidCredential(_not_a_certificate(source, found)) from error
    raise InvalidCredential(_not_a_certificate(source, _describe(data)))


def _not_a_certificate(source: str, found: str) -> str:
    return f"{source}: {found}, where a .p12 was expected, or certificate and key in PEM"


def _private_key(data: bytearray, source: str, password: bytearray | None) -> CertificateKey:
    block = _KEY_BLOCK.search(data)
    if block is None and (_BEGIN.search(data) or data[0] != SEQUENCE):
        raise InvalidCredential(_no_private_key(source, data))
    block_found = block is not None
    start, end = block.span() if block is not None else (0, len(data))
    load = load_pem_private_key if block_found else load_der_private_key
    del block
    with wiped(part := data[start:end]):
        try:
            try:
                key = load(part, password or None)  # type: ignore[arg-type]
            except TypeError:
                if not password:
                    raise
                key = load(part, None)  # a password was given, and nothing is encrypted
        except (TypeError, ValueError, UnsupportedAlgorithm) as error:
            if isinstance(error, TypeError):
                problem = f"{source}: the private key is encrypted; give its password as password="
            elif password:
                problem = f"{source}: the password is wrong, or the private key is damaged"
            elif block_found:
                problem = f"{source}: the private key is damaged; copy the file as it is, all lines of it"
            else:
                problem = _no_private_key(source, data)
            raise InvalidCredential(problem) from error
    return _certificate_key(key, source)


def _no_private_key(source: str, data: bytearray) -> str:
    return f"{source}: {_describe(data)}, where a private key was expected as well; {_EXPORT}"


def _certificate_key(key: object, source: str) -> CertificateKey:
    if isinstance(key, CertificateKey):
        return key
    raise InvalidCredential(f"{source}: {_describe_key(key)}, which no TLS client certificate can have")


def _public_octets(key: CertificateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _certified_octets(certificate: x509.Certificate) -> bytes:
    try:
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return b""
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _subject(certificate: x509.Certificate) -> str:
    try:
        return certificate.subject.rfc4514_string() or "without a subject"
    except ValueError:
        return "with an unreadable subject"


# ---------------------------------------------------------------------------------------------
# What was found


def _check_size(data: bytearray, source: str, limit: int, expected: str) -> None:
    if not data.strip():
        raise InvalidCredential(f"{source}: is empty, where {expected} was expected")
    if len(data) > limit:
        raise InvalidCredential(f"{source}: is larger than {limit} octets, and so is not {expected}")


def _is_pkcs12(data: bytearray) -> bool:
    """PFX ::= SEQUENCE { version INTEGER {v3(3)}, authSafe SEQUENCE, … } (RFC 7292 §4)."""
    if len(data) < 2 or data[0] != SEQUENCE:
        return False
    size = (
        data[1] & 0x7F if data[1] & 0x80 else 0
    )  # of the length's own octets; 0 where it is indefinite (BER)
    return data[2 + size : 5 + size] == b"\x02\x01\x03"


def _describe(data: bytearray) -> str:
    """Say what kind of file this is, without any of its content."""
    labels = list(dict.fromkeys(match[1].decode() for match in _BEGIN.finditer(data)))
    if labels:
        return f"PEM with {' and '.join(_with_article(label) for label in labels[:4])}"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text in UTF-16 (save it as plain ASCII)"
    if data[0] == SEQUENCE:
        return _describe_der(bytes(data))
    start = bytes(data.lstrip(b"\xef\xbb\xbf \t\r\n")[:64]).lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if start.startswith(b"{"):
        return "a JSON file"
    if start.startswith(b"<?xml"):
        return "an XML file"
    if start.startswith(b"pk\x03\x04"):
        return "a ZIP archive"
    return f"{len(data)} octets that are neither PEM nor DER"


def _describe_der(data: bytes) -> str:
    if _is_pkcs12(bytearray(data)):
        return "a PKCS#12 file (.p12)"
    try:
        x509.load_der_x509_certificate(data)
    except ValueError:
        pass
    else:
        return "an X.509 certificate in DER (.cer)"
    try:
        load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        pass
    else:
        return "a public key in DER"
    try:
        x509.load_der_x509_csr(data)
    except ValueError:
        return f"{len(data)} octets of DER that are no key and no certificate, or are damaged"
    return "a certificate signing request in DER"


def _with_article(label: str) -> str:
    return f"{'an' if label[0] in 'AEIOX' else 'a'} {label}"


def _describe_key(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return f"a private key on the curve {key.curve.name}"
    if isinstance(key, rsa.RSAPrivateKey):
        return f"an RSA private key of {key.key_size} bits"
    return f"a private key of the kind {type(key).__name__.lstrip('_').removesuffix('PrivateKey')}"
