"""Authentication: who a request comes from, and what that principal may.

`open_authenticator` gives an `Authenticator`; `authenticate` turns a request into a `Principal`, whose
`require` refuses what it may not. Keys are for people and systems, secrets of their own for phones.
"""

from fastpush.gateway.auth.audit import AuditLog, AuditRecord
from fastpush.gateway.auth.authenticator import (
    Authenticator,
    CreatedKey,
    KeyRecord,
    open_authenticator,
)
from fastpush.gateway.auth.phones import Code, CodeRecord, Enrolled
from fastpush.gateway.auth.principal import CONTROL, SCOPES, Principal

__all__ = [
    "CONTROL",
    "SCOPES",
    "AuditLog",
    "AuditRecord",
    "Authenticator",
    "Code",
    "CodeRecord",
    "CreatedKey",
    "Enrolled",
    "KeyRecord",
    "Principal",
    "open_authenticator",
]
