"""Makes the keys and certificates that a test or a demonstration needs; no file of Apple's is involved.

    authority = Authority()
    server_certificate, server_key = authority.issue_server("localhost", "127.0.0.1")
    signing_key = authority.issue_signing_key()
    certificate = authority.issue_provider_certificate("com.example.app", environments=("development",))

A provider certificate carries the fields that Apple's carry and that a sender reads: the topic in the
subject's UID, the topics in extension 1.2.840.113635.100.6.3.6, the environments in .3.1 and .3.2, a
VoIP topic in .3.4. Keys are P-256, since an RSA key of Apple's size takes a hundred times as long to make.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fastpush._apple_certificate import DEVELOPMENT, PRODUCTION, TOPICS, VOIP_TOPIC
from fastpush.credentials import normal_environment

__all__ = ["Authority", "IssuedKey", "ProviderCertificatePem"]

_ENVIRONMENTS = {"development": DEVELOPMENT, "production": PRODUCTION}
_ID_ALPHABET = string.ascii_uppercase + string.digits
_NULL = b"\x05\x00"


@final
@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new signing key, with what Apple's page would show beside it."""

    p8: bytes = field(repr=False)
    """The octets of AuthKey_<key id>.p8: PKCS#8 in PEM."""
    key_id: str
    team_id: str
    public_key: ec.EllipticCurvePublicKey = field(repr=False)
    """What a server needs to verify this key's provider tokens."""


@final
@dataclass(frozen=True, slots=True)
class ProviderCertificatePem:
    """A new provider certificate and its key, in PEM."""

    topic: str
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    def to_pkcs12(self, password: str | None, *, legacy: bool = False) -> bytes:
        """Give the octets of a .p12 file that holds both.

        Args:
          password: of the file; None leaves it unencrypted.
          legacy: encrypt with 3DES and SHA-1, as keychains did for long, instead of AES-256.
        """
        encryption: KeySerializationEncryption = NoEncryption()
        if password is not None and legacy:
            encryption = (
                PrivateFormat.PKCS12.encryption_builder()
                .kdf_rounds(2048)
                .key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
                .hmac_hash(SHA1())
                .build(password.encode())
            )
        elif password is not None:
            encryption = BestAvailableEncryption(password.encode())
        key = load_pem_private_key(self.key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        return pkcs12.serialize_key_and_certificates(self.topic.encode(), key, certificate, None, encryption)


@final
class Authority:
    """A certificate authority of its own, good until it is forgotten.

    Attributes:
      ca_pem: its certificate, to be trusted by the other side (`ca_file`, `ca_data`).
    """

    __slots__ = ("_certificate", "_key", "ca_pem")

    ca_pem: bytes

    def __init__(self, name: str = "fastpush simulator") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        now = datetime.datetime.now(datetime.UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3650))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, SHA256())
        )
        self.ca_pem = self._certificate.public_bytes(Encoding.PEM)

    def __repr__(self) -> str:
        return f"<Authority {self._certificate.subject.rfc4514_string()}>"

    def issue_server(
        self,
        *hosts: str,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> tuple[bytes, bytes]:
        """Issue the certificate of a TLS server.

        Args:
          hosts: names and addresses it answers to; the first is also its common name.
          not_before: by default a day ago, or a day before `not_after` where that is earlier.
          not_after: by default in a year.

        Returns:
          Certificate and key, both in PEM.
        """
        if not hosts:
            raise ValueError("a server certificate needs at least one host")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        builder = self._start(subject, key, not_before, not_after)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM), _key_pem(key)

    def issue_provider_certificate(
        self,
        topic: str | None,
        *,
        topics: Mapping[str, Iterable[str]] | Iterable[str] | None = None,
        voip_topic: str | None = None,
        environments: Iterable[str] = ("production", "development"),
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        extensions: Mapping[str, bytes] | None = None,
    ) -> ProviderCertificatePem:
        """Issue a provider certificate as Apple would.

        Args:
          topic: bundle id, written to the subject's UID; None leaves the UID out.
          topics: of extension .3.6, each with the kinds it stands for, or topics alone. None writes
            what a universal certificate has: `topic`, `topic`.voip and `topic`.complication. An
            empty one leaves the extension out, as in certificates of one topic.
          voip_topic: of extension .3.4, as in VoIP-only certificates.
          environments: "production", "development" ("sandbox"); empty leaves both markers out.
          not_before: by default a day ago, or a day before `not_after` where that is earlier.
          not_after: by default in 396 days, about what Apple gives.
          extensions: further ones, or other octets for those above: dotted OID and DER value.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.COMMON_NAME, f"Apple Push Services: {topic or 'none'}"[:64])]
        if topic is not None:
            names.insert(0, x509.NameAttribute(NameOID.USER_ID, topic))
        if topics is None:
            topics = {} if topic is None else _universal(topic)
        elif not isinstance(topics, Mapping):
            topics = dict.fromkeys(topics, ("app",))

        values = {_ENVIRONMENTS[normal_environment(name)].dotted_string: _NULL for name in environments}
        if voip_topic is not None:
            values[VOIP_TOPIC.dotted_string] = _utf8(voip_topic)
        if topics:
            values[TOPICS.dotted_string] = _sequence(
                *(_utf8(name) + _sequence(*map(_utf8, kinds)) for name, kinds in topics.items())
            )
        values.update(extensions or {})

        if not_after is None:
            not_after = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=396)
        builder = self._start(x509.Name(names), key, not_before, not_after)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        for oid, value in values.items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ObjectIdentifier(oid), value), critical=False
            )
        certificate = builder.sign(self._key, SHA256())
        return ProviderCertificatePem(topic or "", certificate.public_bytes(Encoding.PEM), _key_pem(key))

    def issue_revocation_list(self, *revoked: ProviderCertificatePem) -> bytes:
        """Issue a list, in PEM, that declares these certificates revoked."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now)
            .next_update(now + datetime.timedelta(days=365))
        )
        for issued in revoked:
            certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
            entry = x509.RevokedCertificateBuilder(certificate.serial_number, now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def issue_signing_key(self, key_id: str | None = None, team_id: str | None = None) -> IssuedKey:
        """Make a signing key; ids are drawn where none are given.

        Apple's signing keys are under no authority. The method is here so that all that a test needs
        comes from one place.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return IssuedKey(_key_pem(key), key_id or _draw_id(), team_id or _draw_id(), key.public_key())

    def _start(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        not_before: datetime.datetime | None,
        not_after: datetime.datetime | None,
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or min(now, not_after or now) - datetime.timedelta(days=1))
            .not_valid_after(not_after or now + datetime.timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _draw_id() -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(10))


def _universal(topic: str) -> dict[str, tuple[str, ...]]:
    return {topic: ("app",), f"{topic}.voip": ("voip",), f"{topic}.complication": ("complication",)}


def _tlv(tag: int, content: bytes) -> bytes:
    """Write one element in DER (X.690 §8.1, §10.1)."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _utf8(text: str) -> bytes:
    return _tlv(0x0C, text.encode())


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))
