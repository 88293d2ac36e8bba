"""What the simulator saw, and the check of a sender's own account against it.

The check is modelled on `total-queue` of Jepsen: what was offered, what the sender says became of it, and
what the service really took, compared as multisets of apns-ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO, final

from fastpush.simulator._server import FATES, Log

__all__ = ["Ledger", "Report", "Seen"]

_DELIVERED = frozenset(("accepted", "unanswered"))
_OUTCOMES = frozenset(("accepted", "rejected", "expired", "not_sent", "unknown"))
_EXAMPLES = 20
_EXPIRES_WITHIN = 1.0  # an expiration counts whole seconds


class Seen(NamedTuple):
    """One request as the server saw it."""

    apns_id: str
    """As the request had it, or as the server made it; "" for one refused without an answer."""
    device_token: str
    stream_id: int
    connection: int
    """Counted from 1."""
    at: float
    """UNIX seconds."""
    fate: str
    """`accepted`: answered 200; `unanswered`: delivered without an answer; `rejected`: answered with another
    status; `refused`: surely not processed and the sender told so; `swallowed`: neither processed nor
    answered; `cancelled`: given up by the sender, or lost with the connection, before it was processed;
    `malformed`: reset as no HTTP/2 message."""
    status: int | None
    expires_at: int | None
    """The request's apns-expiration, UNIX seconds."""

    @property
    def delivered(self) -> bool:
        """Whether a phone would have got it."""
        return self.fate in _DELIVERED


@dataclass(frozen=True, slots=True)
class Report:
    """What `Ledger.check` found. Each but `recovered` is a list of apns-ids that tell against the sender."""

    lost: tuple[str, ...]
    """Said to be accepted, and never delivered."""
    forgotten: tuple[str, ...]
    """Offered, and no outcome was told."""
    duplicated: tuple[str, ...]
    """Delivered more than once."""
    unexpected: tuple[str, ...]
    """Seen by the server, and never offered."""
    late: tuple[str, ...]
    """Delivered after their expiration."""
    contradicted: tuple[str, ...]
    """Said to be not sent, rejected or expired, and delivered; or said to be rejected, and never rejected."""
    recovered: tuple[str, ...]
    """Of unknown outcome, and delivered: allowed, and good to know."""

    @property
    def good(self) -> bool:
        """Whether nothing tells against the sender; duplicates do, where none are allowed."""
        return not (
            self.lost
            or self.forgotten
            or self.duplicated
            or self.unexpected
            or self.late
            or self.contradicted
        )

    def __str__(self) -> str:
        lines = []
        for name in ("lost", "forgotten", "duplicated", "unexpected", "late", "contradicted", "recovered"):
            found = getattr(self, name)
            examples = f": {', '.join(found[:_EXAMPLES])}" if found else ""
            lines.append(f"{name} {len(found)}{examples}{' …' if len(found) > _EXAMPLES else ''}")
        return "\n".join(lines)


@final
class Ledger:
    """Every request that came whole, in order, and what became of it.

    Args:
      keep: off, requests are counted only: for millions of them in bounded memory. `seen`, `accepted` and
        `check` then raise RuntimeError.
      file: every request is also appended there, one JSON object a line, written through at each wake-up.
    """

    def __init__(self, *, keep: bool = True, file: Path | None = None) -> None:
        self.log = Log(keep or file is not None)
        self._keep = keep
        self._file: TextIO | None = None
        self._written = 0
        self._read: list[Seen] = []
        if file is not None:
            self._file = file.open("a", encoding="utf-8")

    @property
    def counts(self) -> dict[str, int]:
        """How many requests had each fate."""
        return {fate: self.log.count(number) for number, fate in enumerate(FATES)}

    @property
    def seen(self) -> list[Seen]:
        """All requests, in the order in which they were settled."""
        if not self._keep:
            raise RuntimeError("the ledger only counts; open the simulator with ledger='full'")
        self._read.extend(map(_seen, self.log.read(len(self._read))))
        return self._read.copy()

    @property
    def accepted(self) -> Counter[str]:
        """How often each apns-id (in lower case) was delivered, answered or not."""
        return Counter(seen.apns_id.lower() for seen in self.seen if seen.delivered)

    def clear(self) -> None:
        """Forget the requests; the counts stay."""
        self.flush()
        self.log.forget()
        self._read.clear()
        self._written = 0

    def check(self, offered: Iterable[str], outcomes: Mapping[str, str]) -> Report:
        """Compare a sender's account with what was seen.

        Args:
          offered: the apns-ids of all notifications given to the sender.
          outcomes: by apns-id what the sender said became of it, as in `Response.outcome`: "accepted",
            "rejected", "expired", "not_sent" or "unknown".

        Raises:
          ValueError: an outcome is none of these.
        """
        ids = dict.fromkeys(each.lower() for each in offered)
        told = {each.lower(): outcome for each, outcome in outcomes.items()}
        for outcome in set(told.values()) - _OUTCOMES:
            raise ValueError(f"outcome is {outcome!r}; it may be {', '.join(sorted(_OUTCOMES))}")
        delivered, seen, rejected, late = Counter[str](), dict[str, None](), set[str](), dict[str, None]()
        for request in self.seen:
            apns_id = request.apns_id.lower()
            seen[apns_id] = None
            if request.delivered:
                delivered[apns_id] += 1
                if request.expires_at and request.at > request.expires_at + _EXPIRES_WITHIN:
                    late[apns_id] = None
            elif request.fate == "rejected":
                rejected.add(apns_id)
        return Report(
            lost=tuple(
                each for each, outcome in told.items() if outcome == "accepted" and not delivered[each]
            ),
            forgotten=tuple(each for each in ids if each not in told),
            duplicated=tuple(each for each, count in delivered.items() if count > 1),
            unexpected=tuple(each for each in seen if each not in ids),
            late=tuple(late),
            contradicted=tuple(
                each
                for each, outcome in told.items()
                if (outcome in ("not_sent", "rejected", "expired") and delivered[each])
                or (outcome == "rejected" and each not in rejected)
            ),
            recovered=tuple(
                each for each, outcome in told.items() if outcome == "unknown" and delivered[each]
            ),
        )

    def flush(self) -> None:
        """Write what is new to the file, where there is one."""
        if self._file is None or len(self.log) == self._written:
            return
        for record in self.log.read(self._written):
            self._file.write(json.dumps(_seen(record)._asdict(), separators=(",", ":")) + "\n")
        self._file.flush()
        if self._keep:
            self._written = len(self.log)
        else:
            self.log.forget()

    def close(self) -> None:
        """Write what is new and close the file; the requests stay readable."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


def _seen(record: tuple[str, str, int, int, float, int, int, int]) -> Seen:
    apns_id, device_token, stream_id, connection, at, fate, status, expires_at = record
    return Seen(
        apns_id,
        device_token,
        stream_id,
        connection,
        at,
        FATES[fate],
        status or None,
        None if expires_at < 0 else expires_at,
    )
