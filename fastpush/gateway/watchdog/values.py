"""What the watchdog shows of what it watches."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Watched"]


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is watched, as it is now; for the console.

    Attributes:
      what: `credential`, `ingest` or `trust_root`.
      name: of the certificate or key.
      state: `ok`, or why nothing leaves with it.
      expires_at: UNIX seconds; None for a key, which has no expiry, and where nobody knows.
      proved: APNs has taken it since it is in use; None where it was not asked.
      source: the file that a new one goes to.
    """

    what: Literal["credential", "ingest", "trust_root"]
    name: str
    app: str = ""
    role: str = ""
    kind: str = ""
    state: str = "ok"
    fingerprint: str = ""
    expires_at: float | None = None
    topics: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    proved: bool | None = None
    source: str = ""
