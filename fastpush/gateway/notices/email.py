"""Notices by e-mail: one message to all recipients, over TLS, by smtplib in a thread."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime, make_msgid
from typing import final

import trio

from fastpush.gateway.config import SecretUnusable, SmtpSettings, read_secret
from fastpush.gateway.notices.store import NotTold, Telling
from fastpush.gateway.notices.values import Channel

__all__ = ["EmailCarrier", "compose"]

WITHIN = 20.0  # seconds for each step of the conversation
MAX_SUBJECT = 200
_WORDS = {"raised": "", "withdrawn": "Over: ", "trial": ""}


@final
class EmailCarrier:
    """Sends by an SMTP server (RFC 5321).

    With `security` "starttls" nothing is sent to a server that does not offer it, nor to one whose
    certificate does not verify.
    """

    channel: Channel = "email"

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

    async def tell(self, telling: Telling) -> str:
        message = compose(telling, self._settings)
        return await trio.to_thread.run_sync(self._send, message, abandon_on_cancel=True)

    def _send(self, message: EmailMessage) -> str:
        settings = self._settings
        try:
            password = None if settings.password_file is None else read_secret(settings.password_file)
            with self._connect() as server:
                if settings.user is not None and password is not None:
                    server.login(settings.user, password)
                return _hand_over(server, message, settings)
        except SecretUnusable as error:
            raise NotTold(str(error)) from None
        except smtplib.SMTPResponseException as error:
            raise NotTold(f"{settings.host}: {error.smtp_code} {_clean(error.smtp_error)}") from None
        except smtplib.SMTPException as error:
            raise NotTold(f"{settings.host}: {_clean(str(error)) or type(error).__name__}") from None
        except ssl.SSLCertVerificationError as error:
            raise NotTold(
                f"{settings.host}: its certificate does not verify: {error.verify_message}"
            ) from None
        except OSError as error:
            raise NotTold(f"{settings.host} port {settings.port}: {error.strerror or error}") from None

    def _connect(self) -> smtplib.SMTP:
        settings = self._settings
        if settings.security == "none":
            return smtplib.SMTP(settings.host, settings.port, _own_name(), WITHIN)
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.security == "tls":
            return smtplib.SMTP_SSL(
                settings.host, settings.port, _own_name(), timeout=WITHIN, context=context
            )
        server = smtplib.SMTP(settings.host, settings.port, _own_name(), WITHIN)
        try:
            server.ehlo_or_helo_if_needed()
            if not server.has_extn("starttls"):
                raise NotTold(f"{settings.host} offers no STARTTLS, and nothing is sent without TLS")
            server.starttls(context=context)
        except BaseException:
            server.close()
            raise
        return server


def compose(telling: Telling, settings: SmtpSettings) -> EmailMessage:
    """Write the message. No text of a notice can become a header of its own."""
    notice = telling.notice
    message = EmailMessage(policy=SMTP)
    subject = _clean(f"[fastpush] {_WORDS[telling.change]}{notice.title}")
    message["Subject"] = subject[:MAX_SUBJECT]
    message["From"] = Address("fastpush", addr_spec=settings.sender)
    message["To"] = tuple(Address(addr_spec=recipient) for recipient in settings.recipients)
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = make_msgid("fastpush", settings.sender.rpartition("@")[2])
    # No robot is to answer (RFC 3834 §5).
    message["Auto-Submitted"] = "auto-generated"
    parts = [notice.title + ".", notice.body]
    if telling.change == "withdrawn":
        parts = ["This is over, nothing needs to be done any more:", *parts]
    else:
        parts += [f"What to do: {notice.cure}"]
    message.set_content("\n\n".join(parts) + "\n")
    return message


def _hand_over(server: smtplib.SMTP, message: EmailMessage, settings: SmtpSettings) -> str:
    """Hand over one message; recipients that are refused do not keep it from the others."""
    server.ehlo_or_helo_if_needed()
    code, reply = server.mail(settings.sender)
    if code != 250:
        raise smtplib.SMTPResponseException(code, reply)
    refused = []
    for recipient in settings.recipients:
        code, reply = server.rcpt(recipient)
        if code not in (250, 251):
            refused.append(f"{recipient} ({code} {_clean(reply)})")
    if len(refused) == len(settings.recipients):
        raise NotTold(f"{settings.host} takes no recipient: {', '.join(refused)}")
    code, reply = server.data(message.as_bytes())
    if code != 250:
        raise smtplib.SMTPResponseException(code, reply)
    took = f"{settings.host}: {code} {_clean(reply)}"
    return f"{took}; refused: {', '.join(refused)}" if refused else took


def _own_name() -> str:
    """What to say in EHLO (RFC 5321 §4.1.4): the name where it has a domain, else an address."""
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name) else "[127.0.0.1]"


def _clean(text: str | bytes) -> str:
    """One line without control characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500]
