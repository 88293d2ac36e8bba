"""Send Apple push notifications by the thousand over a few HTTP/2 connections."""

# First: Ctrl-C may come while the others are imported.
from fastpush import _begun_as_command  # noqa: F401  # isort: split
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
from fastpush.events import (
    ClientEvent,
    ClientStatistics,
    Connected,
    ConnectionStatistics,
    CredentialWasRefused,
    DeviceTokenDead,
    Draining,
    Lost,
)
from fastpush.notification import Alert, LiveActivity, Notification, Payload, Response, Sound

__all__ = [
    "Alert",
    "Client",
    "ClientEvent",
    "ClientStatistics",
    "Connected",
    "ConnectionStatistics",
    "CredentialRefused",
    "CredentialWasRefused",
    "DeviceTokenDead",
    "Draining",
    "Expired",
    "FastpushError",
    "InvalidCredential",
    "InvalidNotification",
    "LiveActivity",
    "Lost",
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
