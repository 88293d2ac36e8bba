"""Send Apple push notifications by the thousand over a few HTTP/2 connections."""

from fastpush.client import Client, Responses, open_client
from fastpush.credentials import ProviderCertificate, SigningKey
from fastpush.errors import (
    CredentialRefused,
    Expired,
    FastpushError,
    InvalidCredential,
    InvalidNotification,
    NotSent,
    OutcomeUnknown,
)
from fastpush.notification import Alert, LiveActivity, Notification, Payload, Response, Sound

__all__ = [
    "Alert",
    "Client",
    "CredentialRefused",
    "Expired",
    "FastpushError",
    "InvalidCredential",
    "InvalidNotification",
    "LiveActivity",
    "NotSent",
    "Notification",
    "OutcomeUnknown",
    "Payload",
    "ProviderCertificate",
    "Response",
    "Responses",
    "SigningKey",
    "Sound",
    "open_client",
]
