"""The judge of fault tests: what was offered, what was promised, what arrived, and what was recorded.

Modelled on `total-queue` of Jepsen. Each witness appends JSON lines to a file of its own, outside the process
under test: the sender (`offer`, `ack`, `nack`), the service (`seen`), and the dump of the outbox (`end`,
`waiting`). Where the service is fastpush's simulator, its own ledger's file is read by `Account.read_seen`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENDS = ("accepted", "rejected", "expired", "failed", "unknown")
DELIVERED = ("accepted", "unanswered")
EXAMPLES = 20


@dataclass
class Verdict:
    """Lists of ids that tell against the system; `recovered` and `ghosts` are allowed, and good to know."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged, and neither delivered, nor ended otherwise, nor still waiting."""
    stuck: list[str] = field(default_factory=list)
    """Acknowledged, and without an end when all was quiet."""
    duplicated: list[str] = field(default_factory=list)
    """Delivered more often than the faults allow."""
    unexpected: list[str] = field(default_factory=list)
    """Seen by the service or in the outbox, and never offered."""
    late: list[str] = field(default_factory=list)
    """Delivered after its expiration."""
    contradicted: list[str] = field(default_factory=list)
    """Its end says something else than the service saw, or it has two ends."""
    refused: list[str] = field(default_factory=list)
    """Refused as surely not stored, and there all the same."""
    recovered: list[str] = field(default_factory=list)
    """Never acknowledged, and delivered or stored."""

    @property
    def good(self) -> bool:
        return not any(
            (
                self.lost,
                self.stuck,
                self.duplicated,
                self.unexpected,
                self.late,
                self.contradicted,
                self.refused,
            )
        )

    def __str__(self) -> str:
        return "\n".join(
            f"{name} {len(found)}{': ' if found else ''}{', '.join(found[:EXAMPLES])}"
            for name, found in vars(self).items()
        )


@dataclass
class Account:
    """All that the witnesses said."""

    offered: dict[str, float | None] = field(default_factory=dict)
    """Expiration by id."""
    acked: set[str] = field(default_factory=set)
    nacked: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, float, str]] = field(default_factory=list)
    """Id, time and fate of each request that the service saw."""
    ends: list[tuple[str, str]] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    """In the outbox, without an end, when it was dumped."""

    def read(self, file: Path) -> None:
        """Add a witness's file; a last line that a kill cut is left out."""
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                self.add(json.loads(line))

    def add(self, event: Mapping[str, Any]) -> None:
        kind, name = event["kind"], event["id"]
        if kind == "offer":
            self.offered[name] = event.get("expiration")
        elif kind == "ack":
            self.acked.add(name)
        elif kind == "nack":
            self.nacked[name] = event["code"]
        elif kind == "seen":
            self.seen.append((name, event.get("at", 0.0), event["fate"]))
        elif kind == "end":
            self.ends.append((name, event["state"]))
        elif kind == "waiting":
            self.waiting.add(name)
        else:
            raise ValueError(f"a witness says {kind!r}")

    def read_seen(self, file: Path) -> None:
        """Add the file of the simulator's own ledger."""
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                seen = json.loads(line)
                self.seen.append((seen["apns_id"].lower(), seen["at"], seen["fate"]))

    def check(self, *, quiet: bool = True, duplicates_allowed: int = 0) -> Verdict:
        """Judge. `quiet`: everything had the time to end; otherwise what waits is no fault."""
        delivered = Counter(name for name, _, fate in self.seen if fate in DELIVERED)
        ended = dict(reversed(self.ends))
        counts = Counter(name for name, _ in self.ends)
        verdict = Verdict()
        for name in sorted(self.acked):
            if name not in ended:
                if quiet and (delivered[name] or name in self.waiting):
                    verdict.stuck.append(name)
                elif not delivered[name] and name not in self.waiting:
                    verdict.lost.append(name)
            elif ended[name] == "accepted" and self.seen and not delivered[name]:
                verdict.lost.append(name)
        twice = [name for name, count in delivered.items() for _ in range(count - 1)]
        verdict.duplicated = twice if len(twice) > duplicates_allowed else []
        everywhere: Iterable[str] = [*(name for name, *_ in self.seen), *ended, *self.waiting]
        verdict.unexpected = sorted({name for name in everywhere if name not in self.offered})
        verdict.late = sorted(
            {
                name
                for name, at, fate in self.seen
                if fate in DELIVERED and (expiration := self.offered.get(name)) and at > expiration + 1.0
            }
        )
        rejected = {name for name, _, fate in self.seen if fate == "rejected"}
        for name, state in ended.items():
            if (
                counts[name] > 1
                or state not in ENDS
                or (state in ("rejected", "expired") and delivered[name])
                or (state == "rejected" and self.seen and name not in rejected)
            ):
                verdict.contradicted.append(name)
        stored = {*delivered, *ended, *self.waiting}
        verdict.refused = sorted(
            name for name, code in self.nacked.items() if code == "no" and name in stored
        )
        verdict.recovered = sorted(name for name in stored if name in self.offered and name not in self.acked)
        return verdict
