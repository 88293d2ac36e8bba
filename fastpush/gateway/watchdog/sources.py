"""What the watchdog looks at that is a certificate: of credentials, of the ingest, and of the trust store."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from fastpush._credential_files import read_file
from fastpush.client import HOSTS
from fastpush.credentials import Credential, ProviderCertificate
from fastpush.errors import InvalidCredential
from fastpush.gateway.config import AppSettings, TLSSettings
from fastpush.gateway.trust import APNS_ROOT_NAME, find_root
from fastpush.gateway.watchdog.judge import Certificate, Trouble

__all__ = ["own_certificate", "provider_certificates", "server_of", "trust_root"]

MAX_OCTETS = 1 << 20


def provider_certificates(credential: Credential, app: str, topic: str, source: str) -> list[Certificate]:
    """A provider certificate and those intermediates of its file that end before it does."""
    if not isinstance(credential, ProviderCertificate):
        return []
    found = [
        Certificate(
            kind="certificate",
            name=credential.default_topic or topic,
            fingerprint=credential.fingerprint,
            not_before=credential.not_before.timestamp(),
            expires_at=credential.expires_at.timestamp(),
            apps=(app,),
            topic=credential.default_topic or topic,
            source=source,
        )
    ]
    for intermediate in credential.intermediates:
        if intermediate.subject != intermediate.issuer:  # a root is not looked at by anybody
            seen = _certificate("intermediate", intermediate, apps=(app,), topic=topic)
            if seen.expires_at < found[0].expires_at:
                found.append(seen)
    return found


def own_certificate(tls: TLSSettings) -> Certificate | None:
    """The first certificate of a listener's file; None where there is none to be read. Reads the file."""
    try:
        chain = x509.load_pem_x509_certificates(bytes(read_file(tls.certificate_file, MAX_OCTETS)))
    except (InvalidCredential, ValueError):
        return None
    return _certificate("ingest_certificate", chain[0])


def trust_root(name: str, app: AppSettings) -> Certificate | Trouble | None:
    """The root that an app's connections stand on, or that it is missing. Reads files."""
    apns = server_of(app).endswith(".push.apple.com")
    if not apns and app.ca_file is None:
        return None  # any of the system's may do
    where = "this machine's trust store" if app.ca_file is None else f"ca_file {app.ca_file}"
    try:
        root = find_root(app.ca_file, apns=apns)
    except OSError as error:
        root, where = None, f"{where} ({error.strerror})"
    if root is None:
        what = APNS_ROOT_NAME if apns else "Every certificate"
        return Trouble(
            kind="trust_root_missing",
            subject=name,
            severity=2,
            title=f"The trust root for {name} is missing",
            body=f"{what} is missing in {where}. No new connection to APNs comes about.",
            cure="Update the package ca-certificates, or leave ca_file out.",
            apps=(name,),
        )
    return Certificate(
        kind="trust_root",
        name=root.name,
        fingerprint=root.fingerprint,
        not_before=root.not_before,
        expires_at=root.expires_at,
        apps=(name,),
    )


def server_of(app: AppSettings) -> str:
    """Where an app's pushes go first."""
    return app.host or HOSTS[app.environments[0]]


def _certificate(
    kind: str, certificate: x509.Certificate, *, apps: tuple[str, ...] = (), topic: str | None = None
) -> Certificate:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return Certificate(
        kind="intermediate" if kind == "intermediate" else "ingest_certificate",
        name=str(names[0].value) if names else "",
        fingerprint=certificate.fingerprint(SHA256()).hex(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        expires_at=certificate.not_valid_after_utc.timestamp(),
        apps=apps,
        topic=topic,
    )
