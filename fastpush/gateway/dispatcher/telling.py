"""What became of notifications, in the log: the last links from a webhook to Apple.

A line for each that did not end well, and for each push of an alarm, which goes to few devices. What was
accepted beyond that is told by the page of a fan-out, or not at all: nobody reads a line a push at thousands
a second, and each costs as much as the push.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeAlias, final, get_args

from fastpush.gateway.dispatcher.settling import Outcomes
from fastpush.gateway.log import DEBUG, INFO, Repeats, get_logger
from fastpush.gateway.outbox import Claimed, End, Fanout, Outcome

__all__ = ["MOST", "Teller"]

logger = get_logger("fastpush.gateway.ends")

MOST = 5  # lines for one write of outcomes; the log's own filter lets no more of a kind through at once
# The outcome makes a kind of its own, so that one does not hold back the others.
EVENTS: dict[Outcome, str] = {outcome: f"notification {outcome}" for outcome in get_args(Outcome)}
ACCEPTED = EVENTS["accepted"]

_Pair: TypeAlias = "tuple[End, Claimed | None]"


@final
class Teller:
    """Writes the lines. `tell` is for `Dispatcher.on_outcomes`: it hears of what is on disk.

    `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # What the log would hold back is not made in the first place.
        self._accepted = Repeats.allowance(ACCEPTED, clock())

    def tell(self, outcomes: Outcomes) -> None:
        """Log what was not accepted, the first few of each write; and what was, as far as that is few.

        `batch` is the id that a webhook's answer and its line in the log have as well, `trace` the alarm's
        id, or the id of the request that brought the notification.
        """
        if outcomes.fanout is not None:
            pairs: Iterable[_Pair] = ((end, None) for end in outcomes.ends)
            own = [pair for pair in pairs if pair[0].outcome != "accepted"]
            self._tell_of_bad(outcomes, own)
            self._tell_of_page(outcomes, outcomes.fanout)
            return
        pairs = zip(outcomes.ends, outcomes.claims, strict=False)
        own = [pair for pair in pairs if pair[0].outcome != "accepted" or pair[0].device_token is not None]
        if own:
            self._tell_of_bad(outcomes, [pair for pair in own if pair[0].outcome != "accepted"])
            for end, claim in own:  # devices of a fan-out that were tried again
                if end.outcome == "accepted" and self._may_tell(INFO):
                    logger.info(ACCEPTED, **_about(outcomes, end, claim))
        if len(own) < len(outcomes.ends) and logger.isEnabledFor(DEBUG):
            for end, claim in islice(zip(outcomes.ends, outcomes.claims, strict=False), MOST):
                if end.outcome == "accepted" and end.device_token is None and self._may_tell(DEBUG):
                    logger.debug(ACCEPTED, **_about(outcomes, end, claim))

    def _may_tell(self, level: int) -> bool:
        return logger.isEnabledFor(level) and self._accepted.take(self._clock())

    def _tell_of_bad(self, outcomes: Outcomes, bad: Sequence[_Pair]) -> None:
        """The first few, and how many others there are."""
        for number, (end, claim) in enumerate(islice(bad, MOST)):
            more = len(bad) - MOST if number == MOST - 1 and len(bad) > MOST else None
            logger.warning(EVENTS[end.outcome], **_about(outcomes, end, claim), more=more)

    def _tell_of_page(self, outcomes: Outcomes, fanout: Fanout) -> None:
        """Each device that accepted, where they are few; how many did of all others."""
        if not logger.isEnabledFor(INFO):
            return
        few = [*outcomes.answered, *(end for end in outcomes.ends if end.outcome == "accepted")]
        left = outcomes.accepted + len(few) - len(outcomes.answered)
        for end in few:
            if not self._may_tell(INFO):
                break
            logger.info(ACCEPTED, **_about(outcomes, end, None))
            left -= 1
        if left:
            logger.info(
                "notifications of a page accepted", app=outcomes.app, batch=str(fanout.id),
                trace=fanout.entry.trace, count=left,
            )  # fmt: skip


def _about(outcomes: Outcomes, end: End, claim: Claimed | None) -> dict[str, object]:
    """The fields of a line."""
    if claim is not None:
        apns_id, entry = claim.apns_id, claim.entry
    else:
        assert outcomes.fanout is not None
        apns_id, entry = outcomes.fanout.apns_id(end.device_token or ""), outcomes.fanout.entry
    return {
        "app": outcomes.app, "batch": str(end.batch), "trace": entry.trace,
        "apns_id": str(uuid.UUID(bytes=apns_id)), "apns_unique_id": end.apns_unique_id,
        "status": end.status or None, "reason": end.reason or None, "attempts": end.attempts,
        "device_token": end.device_token or entry.device_token,
    }  # fmt: skip
