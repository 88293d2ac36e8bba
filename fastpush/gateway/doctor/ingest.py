"""The gateway's own address as OpManager sees it: it refuses a self-signed certificate and a broken chain."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from fastpush._credential_files import read_file
from fastpush.errors import InvalidCredential
from fastpush.gateway.config import TLSSettings
from fastpush.gateway.config.secrets import refusal
from fastpush.gateway.doctor.values import Check
from fastpush.gateway.notices.values import date_of, time_left

__all__ = ["check_ingest"]

MAX_OCTETS = 1 << 20
_RENEW = "Renew it (certbot, acme.sh), and put certificate and chain into certificate_file."


def check_ingest(
    tls: TLSSettings | None, now: float, *, name: str | None, ca_file: Path | None
) -> Iterator[Check]:
    """Check the certificate of a listener by a handshake with ourselves, as a client would. Reads files.

    Args:
      tls: of the listener.
      name: the host name that OpManager connects to; without it the certificate's names are only shown.
      ca_file: the authorities that OpManager trusts, in place of this machine's.
    """
    about = "ingest"
    if tls is None:
        found = "plain HTTP: a proxy in front of it must speak TLS to senders and phones"
        yield Check("TLS", "note", found, about=about)
        return
    refused = refusal(tls.key_file)
    if refused is not None:
        found, _, command = refused.partition("; ")
        cure = f"Run: {command}" if command else "Give it a file that only the gateway may read."
        yield Check("file", "failed", f"key_file {found}", cure, about)
    try:
        chain = x509.load_pem_x509_certificates(bytes(read_file(tls.certificate_file, MAX_OCTETS)))
    except (InvalidCredential, ValueError) as error:
        cure = "Give the PEM file of the certificate with its chain (fullchain.pem)."
        yield Check("certificate", "failed", f"{tls.certificate_file}: {error}", cure, about)
        return
    leaf = chain[0]
    names = _names(leaf)
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    yield Check("certificate", "ok", f"for {shown or 'no name'}, {len(chain)} in the file", about=about)
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if now >= ends:
        yield Check("expiry", "failed", f"it expired on {date_of(ends)}", _RENEW, about)
    elif now < begins:
        yield Check(
            "expiry", "failed", f"it begins on {date_of(begins)}", "See whether the clock is right.", about
        )
    elif ends - now < (ends - begins) / 5:
        found = f"good for {time_left(ends - now)} only; it should have renewed itself"
        yield Check("expiry", "failed", found, _RENEW, about)
    else:
        yield Check("expiry", "ok", f"good for {time_left(ends - now)}, until {date_of(ends)}", about=about)
    yield _check_chain(tls, leaf, names, name, ca_file)


def _check_chain(
    tls: TLSSettings, leaf: x509.Certificate, names: list[str], name: str | None, ca_file: Path | None
) -> Check:
    about = "ingest"
    try:
        problem = _handshake(tls, name or (names[0] if names else "localhost").replace("*", "x"), ca_file)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        cure = "Give the private key that belongs to the certificate at key_file."
        return Check(
            "chain", "failed", f"cannot be served: {str(reason).replace('_', ' ').lower()}", cure, about
        )
    if problem is None:
        return Check("chain", "ok", "complete, up to a root that this machine trusts", about=about)
    if leaf.issuer == leaf.subject:
        found = "it is self-signed: OpManager refuses to connect"
        return Check("chain", "failed", found, "Take one of a public authority (Let's Encrypt).", about)
    if "mismatch" in problem.lower() or "not valid for" in problem.lower():
        found = f"it is not for {name}: {problem}"
        return Check("chain", "failed", found, f"Make one for the name that senders use: {name}.", about)
    if "expired" in problem or "not yet valid" in problem:
        return Check("chain", "skipped", problem, about=about)
    found = f"the chain is not complete, or ends at an authority that is not trusted: {problem}"
    cure = (
        "Put the intermediates behind the certificate (fullchain.pem), or let OpManager trust the authority."
    )
    return Check("chain", "failed", found, cure, about)


def _handshake(tls: TLSSettings, name: str, ca_file: Path | None) -> str | None:
    """Shake hands in memory; the client's word on the certificate, None where it takes it.

    Raises:
      ssl.SSLError: certificate and key cannot be loaded.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls.certificate_file, tls.key_file)
    client = ssl.create_default_context(cafile=ca_file)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server.wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(8):
        try:
            asking.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        else:
            return None
        with suppress(ssl.SSLWantReadError):
            serving.do_handshake()
    raise ValueError("the handshake does not come to an end")


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    addresses = [str(address) for address in extension.get_values_for_type(x509.IPAddress)]
    return [*extension.get_values_for_type(x509.DNSName), *addresses]
