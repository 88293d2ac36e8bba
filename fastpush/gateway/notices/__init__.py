"""Who is told what the watchdog finds, and how: notices, the channels that carry them, and what was told.

notices = await open_notices(storage, [LogChannel(), EmailChannel(...)])
await nursery.start(notices.run)
await notices.apply(judgement, now)
"""

from fastpush.gateway.notices.echo import is_echo
from fastpush.gateway.notices.store import (
    Carrier,
    LogCarrier,
    Notices,
    NotTold,
    Shown,
    Telling,
    Trial,
    open_notices,
)
from fastpush.gateway.notices.values import CATEGORY, CHANNELS, Channel, Notice

__all__ = [
    "CATEGORY",
    "CHANNELS",
    "Carrier",
    "Channel",
    "LogCarrier",
    "NotTold",
    "Notice",
    "Notices",
    "Shown",
    "Telling",
    "Trial",
    "is_echo",
    "open_notices",
]
