"""Devices: who is registered, who is meant by tags, and whose device token is dead.

`open_devices` gives the registry, `Devices`.
"""

from fastpush.gateway.devices.registry import Devices, open_devices
from fastpush.gateway.devices.values import (
    Device,
    DeviceEvent,
    Page,
    Registration,
    Verdict,
    checked_token,
    shortened,
)

__all__ = [
    "Device",
    "DeviceEvent",
    "Devices",
    "Page",
    "Registration",
    "Verdict",
    "checked_token",
    "open_devices",
    "shortened",
]
