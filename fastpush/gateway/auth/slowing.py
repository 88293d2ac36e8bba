"""Who tries keys is slowed: a bounded count of wrong ones, by the client's address.

Nobody guesses a key of 256 bits, however fast. What is kept short is the noise: after a score of wrong keys
an address gets 429 in place of 401 for a minute. A right key passes all the same, so that one broken script
takes nothing from its neighbours behind the same address. Enrolment codes are short, and there even a right
one waits.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import final

from fastpush.gateway.problems import Problem

__all__ = ["CHALLENGE", "Slowing", "neighbourhood"]

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fastpush", Basic realm="fastpush", charset="UTF-8"'}


@final
class Slowing:
    """Counts failures by address, and says for how long an address has to wait.

    Args:
      clock: UNIX seconds.
      failures, within: so many wrong ones in as many seconds are answered;
      wait_for: then none for so many seconds.
      addresses: how many are remembered; whoever failed longest ago is forgotten first.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        failures: int = 20,
        within: float = 60.0,
        wait_for: float = 60.0,
        addresses: int = 10_000,
    ) -> None:
        self._clock = clock
        self._failures = failures
        self._within = within
        self._wait_for = wait_for
        self._addresses = addresses
        self._seen: OrderedDict[str, tuple[int, float, float]] = OrderedDict()  # count, since, slowed until

    def __len__(self) -> int:
        return len(self._seen)

    def check(self, address: str) -> None:
        """Go on only if this address does not have to wait. Raises Problem: 429."""
        found = self._seen.get(neighbourhood(address))
        if found is not None and found[2] > self._clock():
            raise _too_many(found[2] - self._clock())

    def refusal(self, address: str, why: str) -> Problem:
        """Count something wrong, and give the answer to it: 401, or 429 while the address has to wait."""
        now, neighbours = self._clock(), neighbourhood(address)
        count, since, until = self._seen.pop(neighbours, (0, now, 0.0))
        waits = until - now
        if waits <= 0:
            if until or now - since >= self._within:  # it has waited, or the time is over: from the start
                count, since, until = 0, now, 0.0
            count += 1
            if count >= self._failures:
                until = now + self._wait_for
        self._seen[neighbours] = count, since, until
        if len(self._seen) > self._addresses:
            self._seen.popitem(last=False)
        return _too_many(waits) if waits > 0 else Problem(401, "key refused", why, headers=CHALLENGE)


def _too_many(waits: float) -> Problem:
    return Problem(
        429,
        "slowed",
        "Too many wrong keys or codes came from this address; wait before the next one.",
        headers={"Retry-After": str(math.ceil(waits))},
    )


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
