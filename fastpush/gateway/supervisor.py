"""What a supervisor such as systemd gives a service, and wants to hear of it.

Sources: systemd's manual, sd_listen_fds(3) and sd_notify(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping

import trio

__all__ = ["Inherited", "Notifier", "inherited_sockets"]

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
Inherited = Mapping[str, tuple[int, ...]]
"""Descriptors of listening sockets by their name; one name may stand for several."""


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> Inherited:
    """Take the sockets that were handed over, once: the variables are removed, so that no child takes them.

    Without a FileDescriptorName systemd calls a socket after its unit, `fastpush.socket`.
    """
    pid, count, names = (environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    named = names.split(":") if names else []
    sockets: dict[str, tuple[int, ...]] = {}
    for place in range(int(count)):
        name = named[place] if place < len(named) else "unknown"
        sockets[name] = (*sockets.get(name, ()), FIRST_DESCRIPTOR + place)
    return sockets


class Notifier:
    """Tells the supervisor how the service is; tells nobody where there is none.

    Attributes:
      watchdog_after: seconds after which the supervisor takes silence for a hang; None where it does not.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        watched = microseconds.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog_after = int(microseconds) / 1e6 if watched and self._address else None

    def tell(self, *states: str) -> None:
        """Send states, `READY=1` or `STATUS=text`; what cannot be sent is nobody's fault here."""
        if not self._address:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(states).encode(), name)
        except OSError:
            pass

    def reloading(self) -> None:
        """Say that the configuration is read again; `READY=1` says that it is done."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")

    async def beat(self) -> None:
        """Say that we are alive, twice in each span that the supervisor grants; until cancelled."""
        if self.watchdog_after is None:
            return
        while True:
            self.tell("WATCHDOG=1")
            await trio.sleep(self.watchdog_after / 2)
