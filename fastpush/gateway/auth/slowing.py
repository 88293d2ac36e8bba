"""Who tries keys is slowed: a bounded count of wrong ones, by the client's address."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import final

__all__ = ["Slowing", "neighbourhood"]


@final
class Slowing:
    """Counts failures by address, and says for how long an address has to wait.

    Args:
      failures, within: so many wrong ones in as many seconds are answered;
      wait_for: then none for so many seconds.
      addresses: how many are remembered; whoever failed longest ago is forgotten first.
    """

    def __init__(
        self,
        failures: int = 20,
        within: float = 60.0,
        wait_for: float = 60.0,
        addresses: int = 10_000,
    ) -> None:
        self._failures = failures
        self._within = within
        self._wait_for = wait_for
        self._addresses = addresses
        self._seen: OrderedDict[str, tuple[int, float, float]] = OrderedDict()  # count, since, slowed until

    def __len__(self) -> int:
        return len(self._seen)

    def wait_for(self, address: str, now: float) -> float:
        """Seconds until something wrong from this address is looked at again; 0 is now."""
        found = self._seen.get(address)
        return max(0.0, found[2] - now) if found is not None else 0.0

    def fail(self, address: str, now: float) -> float:
        """Count something wrong; returns what `wait_for` did before it."""
        count, since, until = self._seen.pop(address, (0, now, 0.0))
        waits = max(0.0, until - now)
        if not waits:
            if until or now - since >= self._within:  # it has waited, or the time is over: from the start
                count, since, until = 0, now, 0.0
            count += 1
            if count >= self._failures:
                until = now + self._wait_for
        self._seen[address] = count, since, until
        if len(self._seen) > self._addresses:
            self._seen.popitem(last=False)
        return waits


def neighbourhood(address: str) -> str:
    """What one client can choose freely counts as one address: the /64 of IPv6."""
    if ":" not in address:
        return address
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> 64 << 64)}/64"
