"""The way to APNs: trust root, name, ports, TLS, and one request to a device token that is nobody's."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import AsyncIterator

import trio
from cryptography import x509

from fastpush import proof
from fastpush._tls_context import client_context
from fastpush.credentials import Credential
from fastpush.errors import InvalidCredential
from fastpush.gateway.cures import RENEW, SET_CLOCK, cure_of
from fastpush.gateway.doctor.values import Check, Target
from fastpush.gateway.notices.values import DAY, date_of, time_left
from fastpush.gateway.trust import APNS_ROOT_NAME, find_root
from fastpush.proof import Answer
from fastpush.transport import Proxy, TransportError, open_transport

__all__ = ["CLOCK_OFF", "check_clock", "check_network", "check_request", "check_trust"]

CONNECT_WITHIN = 5.0
RESOLVE_WITHIN = 10.0
CLOCK_OFF = 30.0
"""Seconds; `date` has whole ones, and the answer took its time."""


async def check_trust(target: Target, now: float) -> Check:
    """Whether the root certificate of the server's chain is there."""
    apns = target.is_apple
    if not apns and target.ca_file is None:
        return Check(
            "trust root", "note", "not Apple's server: any root of this machine's trust store may do"
        )
    try:
        root = await trio.to_thread.run_sync(lambda: find_root(target.ca_file, apns=apns))
    except OSError as error:
        cure = "Correct the path at ca_file, or leave it out."
        return Check("trust root", "failed", f"ca_file {target.ca_file}: {error.strerror}", cure)
    where = "this machine's trust store" if target.ca_file is None else f"ca_file {target.ca_file}"
    if root is None:
        if not apns:
            return Check("trust root", "failed", f"{where} has no certificate in PEM", "Give the right file.")
        cure = "Update the package ca-certificates; where ca_file is given, leave it out or add this root."
        return Check("trust root", "failed", f"{APNS_ROOT_NAME} is missing in {where}", cure)
    if root.expires_at <= now:
        found = f"{root.name} in {where} expired on {date_of(root.expires_at)}"
        return Check("trust root", "failed", found, "Update the trusted certificates.")
    soon = root.expires_at - now < 30 * DAY
    found = f"{root.name}, good until {date_of(root.expires_at)}"
    return Check(
        "trust root", "note" if soon else "ok", found, "Update the trusted certificates." if soon else ""
    )


async def check_network(target: Target) -> AsyncIterator[Check]:
    """Name, ports and TLS; the last one told is about TLS, unless nothing answers."""
    if target.proxy is None:
        resolved = await _check_name(target)
        yield resolved
        if resolved.state == "failed":
            return
        open_ports = []
        for port in target.ports:
            check = await _check_port(target, port)
            yield check
            if check.state == "ok":
                open_ports.append(port)
        if target.is_apple:
            found = "not used for sending since 2021; today they serve the management of broadcast channels"
            yield Check("ports 2195, 2196", "note", found)
        if target.ports[0] not in open_ports:
            return
    yield await _check_tls(target)


async def _check_name(target: Target) -> Check:
    try:
        with trio.fail_after(RESOLVE_WITHIN):
            found = await trio.socket.getaddrinfo(target.server, target.ports[0], type=socket.SOCK_STREAM)
    except (OSError, trio.TooSlowError) as error:
        reason = "no answer" if isinstance(error, trio.TooSlowError) else error.strerror or str(error)
        cure = "See /etc/resolv.conf and whether this machine may ask its name server."
        return Check("name", "failed", f"{target.server} has no address here: {reason}", cure)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    more = f" and {len(addresses) - 2} more" if len(addresses) > 2 else ""
    return Check("name", "ok", f"{target.server} is {', '.join(addresses[:2])}{more}")


async def _check_port(target: Target, port: int) -> Check:
    used = port == target.ports[0]
    try:
        with trio.fail_after(CONNECT_WITHIN):
            stream = await trio.open_tcp_stream(target.server, port)
            await stream.aclose()
    except (OSError, trio.TooSlowError) as error:
        if isinstance(error, trio.TooSlowError):
            reason = f"no answer within {CONNECT_WITHIN:g} s: a firewall drops it"
        else:
            reason = _reason(error)
        if not used:
            return Check(f"port {port}", "note", f"closed ({reason}); it is not the one in use")
        if target.is_apple:
            cure = f"Open {target.server} (17.0.0.0/8) port {port} in the firewall, or set another port."
        else:
            cure = f"Start the server at {target.server} port {port}, or correct host and port."
        return Check(f"port {port}", "failed", f"cannot be reached: {reason}", cure)
    return Check(f"port {port}", "ok", "open")


def _reason(error: BaseException) -> str:
    """trio tries all addresses of a name; the first one's failure stands for all."""
    while error.__cause__ is not None:
        error = error.__cause__
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()  # trio puts the address into its own words
    return str(error) or type(error).__name__


async def _check_tls(target: Target) -> Check:
    host, port = target.server, target.ports[0]
    try:
        context = await trio.to_thread.run_sync(lambda: client_context(target.ca_file, None))
        proxy = None if target.proxy is None else Proxy.parse(target.proxy)
        transport = await open_transport(host, port, context, proxy=proxy)
    except InvalidCredential as error:
        return Check("TLS", "failed", str(error), "Give a file of certificates in PEM at ca_file.")
    except ValueError as error:
        return Check("TLS", "failed", str(error), "Correct the proxy's URL.")
    except TransportError as error:
        return await _explain(target, error)
    transport.close()
    return Check("TLS", "ok", "the server's certificate verifies, HTTP/2 was agreed on")


async def _explain(target: Target, error: TransportError) -> Check:
    """Why a handshake failed, in the words of who can mend it."""
    reason = error.reason
    if "does not verify" in reason:
        issuer = await _issuer(target)
        by = f"; it was issued by {issuer}" if issuer else ""
        if "expired" in reason:
            return Check("TLS", "failed", reason + by, SET_CLOCK)
        if "mismatch" in reason or "not valid for" in reason:
            cure = "Correct the host; if it is right, something answers in place of the server."
            return Check("TLS", "failed", reason + by, cure)
        found = f"somebody else's certificate: the authority is not trusted{by}"
        cure = "Let the TLS interceptor (proxy, antivirus) leave this host alone"
        cure += "." if target.is_apple else ", or name the server's own authority at ca_file."
        return Check("TLS", "failed", found, cure)
    if "no HTTP/2" in reason or "ALERT_NO_APPLICATION_PROTOCOL" in reason.upper().replace(" ", "_"):
        cure = "Something that speaks no HTTP/2 stands in between (a proxy), or the host or port is wrong."
        return Check("TLS", "failed", f"the server speaks no HTTP/2 ({reason})", cure)
    cure = "See what stands between here and the server: firewall, proxy, another service on this port."
    return Check("TLS", "failed", reason, cure)


async def _issuer(target: Target) -> str:
    """Who has signed what the server shows. Nothing is sent to a server that does not verify."""
    if target.proxy is not None:
        return ""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with trio.fail_after(CONNECT_WITHIN):
            stream = await trio.open_tcp_stream(target.server, target.ports[0])
            async with trio.SSLStream(stream, context, server_hostname=target.server) as tls:
                await tls.do_handshake()
                der = tls.getpeercert(binary_form=True)
                await trio.aclose_forcefully(tls)
        issuer = x509.load_der_x509_certificate(der).issuer
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, ValueError, TypeError):
        return ""
    for oid in (x509.NameOID.COMMON_NAME, x509.NameOID.ORGANIZATION_NAME):
        names = issuer.get_attributes_for_oid(oid)
        if names:
            return f'"{str(names[0].value)[:100]}"'
    return ""


async def check_request(credential: Credential, topic: str, target: Target) -> tuple[Check, Answer | None]:
    """One request whose expected answer, 400 BadDeviceToken, proves credential and topic."""
    ca_file = target.ca_file
    try:
        context = await trio.to_thread.run_sync(lambda: credential.ssl_context(ca_file=ca_file))
    except InvalidCredential as error:
        return Check("request", "failed", str(error), "Export the certificate and its key again."), None
    proxy = None if target.proxy is None else Proxy.parse(target.proxy)
    answer = await proof.ask(
        credential, topic, target.server, target.ports[0], context, time.time(), proxy=proxy
    )
    return _judge(answer, target), answer


def _judge(answer: Answer, target: Target) -> Check:
    said = " ".join(str(part) for part in (answer.status, answer.reason) if part is not None)
    reason = (answer.reason or "").replace(" ", "")
    if not answer.refused and answer.status in (200, 400, 410) and cure_of(reason) is None:
        took = f"APNs takes the credential and the topic (answer {said}, as expected)"
        return Check("request", "ok", took)
    cure = cure_of(reason)
    if cure is not None:
        return Check("request", "failed", f"APNs refuses: {said}", cure)
    if answer.refused:
        return Check("request", "failed", f"APNs refuses the credential: {said}", RENEW)
    if answer.status is not None:
        return Check("request", "note", f"APNs is not well just now: {said}", "Try again in a minute.")
    cure = "Try again; if it stays so, see what stands between here and the server."
    return Check("request", "failed", f"no answer: {answer.lost}", cure)


def check_clock(answer: Answer | None, now: float) -> Check:
    """Our clock against the server's."""
    if answer is not None and answer.server_date is not None:
        off = now - answer.server_date
        if abs(off) <= CLOCK_OFF:
            return Check("clock", "ok", f"{abs(off):.0f} s from the server's")
        way = "ahead of" if off > 0 else "behind"
        return Check("clock", "failed", f"{_spelled(abs(off))} {way} the server's", SET_CLOCK)
    if answer is not None and answer.reason == "ExpiredProviderToken":
        return Check("clock", "failed", "APNs takes a token of this half hour for expired", SET_CLOCK)
    if answer is None or answer.status is None:
        return Check("clock", "skipped", "no answer to compare with")
    return Check("clock", "skipped", "the server gave no date to compare with")


def _spelled(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else time_left(seconds)
