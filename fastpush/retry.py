"""What is done with a push that did not end well, and when it is tried again: the only place that decides.

The causes and what Apple says of them are in "Handling error responses from APNs"; what a lost or
refused stream lets us know is RFC 9113 §8.7. Nothing here waits or reads a clock.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["MAX_ATTEMPTS", "Action", "Budget", "ConnectPace", "Decision", "Rule", "decide", "rule_for"]

MAX_ATTEMPTS = 3
"""HEADERS frames written for one push, those that were surely not processed not counted."""

PATIENCE = 30.0
"""Seconds from the first attempt in which a push is tried again; later its answer goes to the caller."""

CONNECT_EVERY = 1.0
"""Seconds between two connects to one host, beyond a burst."""

MAX_BACKOFF = 60.0
"""Seconds; the longest wait between two connects."""

TICK = 1e-6
"""Seconds; what is due sooner is due now, or rounding would make a waiting loop spin."""

FIRST_DELAY = 0.5
"""Seconds; the longest wait before the second attempt. It doubles with each attempt, with full jitter."""


class Action(enum.Enum):
    """What happens to the push."""

    ANSWER = "answer"
    """Its end is told to the caller."""
    AGAIN = "again"
    """Surely not processed: to the head of the queue, as no attempt and at no cost."""
    LATER = "later"
    """Again after a delay; costs an attempt and a share of the budget."""
    RENEW = "renew"
    """Again at once, with the current provider token on another connection; once for each push."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one reason means.

    Attributes:
      action: what happens to the push, while attempts and budget last.
      retryable: whether the caller may send it again later, once it is told.
      at_once: no delay before the next attempt, since it goes to another connection.
      retires: the connection takes no further push; what is open on it goes on.
      refuses: APNs refuses the credential itself.
      suspect: pushes to this device token go to the lane of the lately rejected for a while.
      device: only this device token is asked to wait.
    """

    action: Action = Action.ANSWER
    retryable: bool = False
    at_once: bool = False
    retires: bool = False
    refuses: bool = False
    suspect: bool = False
    device: bool = False


_REFUSED = Rule(refuses=True)

# By reason first, since the same reason also comes in GOAWAY frames and its status has varied.
_BY_REASON = {
    "BadDeviceToken": Rule(suspect=True),
    "DeviceTokenNotForTopic": Rule(suspect=True),
    "BadCertificate": _REFUSED,
    "BadCertificateEnvironment": _REFUSED,
    "Forbidden": _REFUSED,
    "InvalidProviderToken": _REFUSED,
    "MissingProviderToken": _REFUSED,
    # Apple's page has the first spelling, its servers send the second.
    "BadEnvironmentKeyIdInToken": _REFUSED,
    "BadEnvironmentKeyInToken": _REFUSED,
    # The server lowers the stream limit of such a connection to 1, and there it stays.
    "ExpiredProviderToken": Rule(Action.RENEW, retires=True),
    # The connection is bound to the key of its first push.
    "UnrelatedKeyIdInToken": Rule(Action.RENEW, retires=True),
    # Never answered with another token: that is what it complains of.
    "TooManyProviderTokenUpdates": Rule(Action.LATER, retryable=True, retires=True),
    "TooManyRequests": Rule(Action.LATER, retryable=True, device=True),
    "IdleTimeout": Rule(Action.LATER, retryable=True, at_once=True, retires=True),
    "Shutdown": Rule(Action.LATER, retryable=True, at_once=True, retires=True),
}

_LATER = Rule(Action.LATER, retryable=True)
_ANSWER = Rule()


def rule_for(status: int, reason: str | None) -> Rule:
    """The rule for a rejection. Unknown reasons are judged by their status (429 and 5xx: later)."""
    if reason is not None:
        rule = _BY_REASON.get(reason.replace(" ", ""))
        if rule is not None:
            return rule
    return _LATER if status == 429 or status >= 500 else _ANSWER


class Decision(NamedTuple):
    """`delay` is in seconds and only for `Action.LATER`."""

    action: Action
    delay: float = 0.0


class Budget:
    """How many re-sends are allowed: a tenth of the first attempts, and ten a second in any case.

    Without it retries multiply the load of a server that is down ("Handling overload", Google SRE book).
    """

    SHARE = 0.1
    FLOOR_PER_SECOND = 10.0
    CEILING = 1_000.0

    def __init__(self, now: float) -> None:
        self._left = 100.0
        self._at = now

    def left(self, now: float) -> float:
        """How many re-sends are allowed now."""
        self._left = min(self.CEILING, self._left + self.FLOOR_PER_SECOND * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._left

    def deposit(self, first_attempts: int) -> None:
        self._left = min(self.CEILING, self._left + self.SHARE * first_attempts)

    def withdraw(self, now: float) -> bool:
        """Take one re-send; False, and nothing taken, when there is none left."""
        if self.left(now) < 1.0:
            return False
        self._left -= 1.0
        return True


class ConnectPace:
    """When the next connect may be made: a burst, then one a second; after failures back-off with jitter."""

    def __init__(self, burst: int, now: float) -> None:
        self._burst = burst
        self._left = float(burst)
        self._at = now
        self._not_before = -math.inf
        self.failures = 0

    def delay(self, now: float) -> float:
        """Seconds until the next connect may be made."""
        most = 1.0 if self.failures else self._burst
        self._left = min(most, self._left + (now - self._at) / CONNECT_EVERY)
        self._at = now
        wait = max(self._not_before - now, (1.0 - self._left) * CONNECT_EVERY)
        return wait if wait > TICK else 0.0

    def connected(self, now: float) -> None:
        """One is made now."""
        self.delay(now)
        self._left -= 1.0

    def failed(self, now: float, chance: float) -> None:
        """One came to nothing; `chance` is drawn anew from 0 to 1, for the jitter."""
        self.failures += 1
        most = min(MAX_BACKOFF, 0.5 * 2 ** min(self.failures, 10))
        self._not_before = now + chance * most

    def succeeded(self) -> None:
        """A connection answered: what failed before no longer counts."""
        self.failures = 0


def decide(
    rule: Rule | None,
    *,
    processed: bool | None,
    idempotent: bool,
    attempts: int,
    elapsed: float,
    renewed: bool,
    retry_after: float | None,
    budget: Budget,
    now: float,
    chance: float,
    once: bool = False,
) -> Decision:
    """Decide what becomes of a push whose stream has ended other than by a 200.

    Args:
      rule: of the rejection; None when there is no verdict.
      processed: without a verdict: False (surely not) or None (unknown).
      idempotent: sending it twice does no harm: it carries a collapse id.
      attempts: how often it was written, this time included.
      elapsed: seconds since its first attempt was written.
      renewed: `Action.RENEW` was taken for it before.
      retry_after: seconds that the server asked for.
      chance: drawn anew from 0 to 1, for the jitter.
      once: its expiration is 0: what was processed, or may have been, is not sent again.
    """
    answer = Decision(Action.ANSWER)
    at_once = False
    if rule is None:
        if processed is False:
            return Decision(Action.AGAIN)
        if not idempotent:
            return answer
        at_once = True
    elif rule.action is Action.RENEW:
        return answer if renewed else Decision(Action.RENEW)
    elif rule.action is Action.ANSWER:
        return answer
    else:
        at_once = rule.at_once and retry_after is None
    delay = 0.0 if at_once else chance * FIRST_DELAY * 2 ** (attempts - 1)
    if retry_after is not None:
        delay = max(delay, retry_after)
    if once or attempts >= MAX_ATTEMPTS or elapsed + delay > PATIENCE or not budget.withdraw(now):
        return answer
    return Decision(Action.LATER, delay)
