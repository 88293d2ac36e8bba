"""Silence: pushes that are offered and never accepted, and sources that used to speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, final

from fastpush.gateway.watchdog.judge import Trouble

__all__ = ["Silence", "SourceSilence", "Traffic"]


class Traffic(NamedTuple):
    """What an app did so far.

    Attributes:
      accepted: by APNs.
      ended: otherwise.
      waiting: not ended now.
    """

    accepted: int
    ended: int
    waiting: int


@final
class Silence:
    """One app: for how long nothing was accepted although something was offered.

    Args:
      after: seconds; 0 for never.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        self._last: Traffic | None = None
        self._since: float | None = None

    def look(self, traffic: Traffic, uptime: float) -> float | None:
        """Seconds of silence where there are too many, else None.

        Args:
          uptime: seconds that nobody sets.
        """
        last, self._last = self._last, traffic
        # Fewer than before: the counters began anew with another client, and something was accepted or not.
        if last is None or traffic.accepted != last.accepted:
            self._since = None
        offered = traffic.waiting > 0 or (last is not None and traffic.ended > last.ended)
        if self._since is None and offered and (last is None or traffic.accepted == last.accepted):
            self._since = uptime
        if self._since is None or not self._after:
            return None
        silent = uptime - self._since
        return silent if silent >= self._after else None


@final
class SourceSilence:
    """Sources by name: when each was heard last. Times are UNIX seconds.

    Attributes:
      changed: somebody was heard since it was last set to False.
    """

    def __init__(self, minutes: Mapping[str, float], heard: Mapping[str, float]) -> None:
        self._minutes = minutes
        self.heard_at = dict(heard)
        self.changed = False

    def heard(self, source: str, now: float) -> None:
        """A webhook of this source came."""
        if source in self._minutes:
            self.heard_at[source] = now
            self.changed = True

    def troubles(self, now: float) -> list[Trouble]:
        """Of those that used to speak and do not any more."""
        found = []
        for source, minutes in self._minutes.items():
            at = self.heard_at.get(source)
            if at is not None and now - at > minutes * 60:
                found.append(
                    Trouble(
                        kind="source_silence",
                        subject=source,
                        title=f"Nothing has been heard of {source} for {minutes:g} minutes",
                        body="It used to post webhooks; either all is quiet, or they no longer reach us.",
                        cure=f"Run the test action of its notification profile, and see the log of {source}.",
                    )
                )
        return found
