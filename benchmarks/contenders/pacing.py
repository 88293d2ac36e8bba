"""What the paced senders share: sending at given times, whatever the answers do, and what it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.percentiles import summary


@dataclass(frozen=True)
class PacedJob:
    """What a paced sender is to do. It is one JSON object, the last argument."""

    seed: int
    rate: float
    """Pushes a second. 0: as many as can be under way; the most there is."""
    seconds: float
    """To send for, the warm-up among them."""
    warm_up: float
    """Seconds whose pushes are not measured."""
    tick: float
    """Seconds: what is due is sent in a burst at each tick; h2load has ticks of 10 ms and no choice."""
    body_octets: int
    connections: int
    """At most so many."""
    host: str = ""
    port: int = 0
    ca_file: str = ""
    key_file: str = ""
    provider_token: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_arguments(cls) -> PacedJob:
        return cls(**json.loads(sys.argv[-1]))


@dataclass(frozen=True)
class PacedReport:
    """What a paced sender says of itself."""

    sent: int
    """Pushes that left, the warm-up among them."""
    accepted: int
    """Those answered with 200."""
    per_second: float
    """Answers a second in the measured time."""
    cpu_seconds: float
    """User and system time of the process from its first push to its last answer."""
    latency: dict[str, Any]
    """`percentiles.summary` from the intended send time; of what came after the warm-up."""
    from_submission: dict[str, Any] = field(default_factory=dict)
    """The same from when the sender had the push in hand, which hides what it was late by."""

    @classmethod
    def of(
        cls,
        job: PacedJob,
        rows: Sequence[tuple[float, float, float]],
        accepted: int,
        cpu_seconds: float,
    ) -> PacedReport:
        """Make it of (intended, submitted, answered) of each push, in seconds on one clock.

        Raises:
          ValueError: nothing was measured.
        """
        from_time = min(intended for intended, _, _ in rows) + job.warm_up
        measured = [row for row in rows if row[0] >= from_time]
        if not measured:
            raise ValueError(f"none of {len(rows)} pushes was intended after the warm-up")
        latency = summary([answered - intended for intended, _, answered in measured])
        if job.rate:
            ends = sorted(answered for _, _, answered in measured)
            per_second = (len(ends) - 1) / max(ends[-1] - ends[0], 1e-9)
        else:
            # What is left when the sender stops is answered with nothing behind it.
            seconds = job.seconds - job.warm_up
            per_second = sum(from_time <= answered < from_time + seconds for _, _, answered in rows) / seconds
        return cls(
            len(rows),
            accepted,
            per_second,
            cpu_seconds,
            latency,
            summary([answered - submitted for _, submitted, answered in measured]),
        )

    def print(self) -> None:
        print(json.dumps(asdict(self)), flush=True)
