"""A fake APNs for tests and demonstrations: real TLS, real rules, faults to order, and a ledger."""

from fastpush.simulator.authority import Authority, IssuedKey, ProviderCertificatePem
from fastpush.simulator.faults import (
    PROFILES,
    Answer,
    Close,
    Collapse,
    Delay,
    Fault,
    FaultPlan,
    Goaway,
    IgnorePings,
    KeepWindow,
    LeaveSettingsUnacknowledged,
    Refuse,
    RejectionLimit,
    SendOctets,
    Settings,
    Stall,
    Swallow,
    TlsAlert,
    Trickle,
)
from fastpush.simulator.ledger import Ledger, Report, Seen
from fastpush.simulator.provider_tokens import TrustedKey
from fastpush.simulator.rules import Delivery
from fastpush.simulator.server import Simulator, SimulatorStatistics, open_simulator

__all__ = [
    "PROFILES",
    "Answer",
    "Authority",
    "Close",
    "Collapse",
    "Delay",
    "Delivery",
    "Fault",
    "FaultPlan",
    "Goaway",
    "IgnorePings",
    "IssuedKey",
    "KeepWindow",
    "LeaveSettingsUnacknowledged",
    "Ledger",
    "ProviderCertificatePem",
    "Refuse",
    "RejectionLimit",
    "Report",
    "Seen",
    "SendOctets",
    "Settings",
    "Simulator",
    "SimulatorStatistics",
    "Stall",
    "Swallow",
    "TlsAlert",
    "Trickle",
    "TrustedKey",
    "open_simulator",
]
