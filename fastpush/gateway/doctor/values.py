"""What a check has found, and what is examined."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from fastpush.client import HOSTS

__all__ = ["PORTS", "Check", "Environment", "Target"]

Environment = Literal["production", "development"]
State = Literal["ok", "note", "failed", "skipped"]

PORTS = (443, 2197)
"""Apple, "Sending notification requests to APNs": both behave alike; some firewalls let only one through."""


class Check(msgspec.Struct, frozen=True):
    """One line.

    Attributes:
      name: what was looked at.
      state: a note is nothing wrong, and yet worth knowing; what was skipped needs what failed before it.
      found: in one sentence.
      cure: what to do, in one sentence; of a failure always there.
      about: the app and role, or the listener; "" for none.
    """

    name: str
    state: State
    found: str
    cure: str = ""
    about: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One credential, and where it is to be used.

    Attributes:
      about: what the lines about it are headed with.
      key_file, key_id, team_id: of a signing key.
      certificate_file, private_key_file, password_file: of a provider certificate.
      password: in place of its file.
      host, port: another server than Apple's.
      proxy: its URL, with a password where it has one.
    """

    topic: str | None
    environment: Environment = "production"
    about: str = ""
    key_file: Path | None = None
    key_id: str | None = None
    team_id: str | None = None
    certificate_file: Path | None = None
    private_key_file: Path | None = None
    password_file: Path | None = None
    password: str | None = None
    host: str | None = None
    port: int | None = None
    ca_file: Path | None = None
    proxy: str | None = None

    @property
    def server(self) -> str:
        return self.host or HOSTS[self.environment]

    @property
    def is_apple(self) -> bool:
        return self.server.endswith(".push.apple.com")

    @property
    def ports(self) -> tuple[int, ...]:
        """Those to try; the first is the one in use."""
        if self.port is None:
            return PORTS
        return tuple(dict.fromkeys((self.port, *PORTS))) if self.is_apple else (self.port,)
