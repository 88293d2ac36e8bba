"""What fastpush promises of its speed, held up to results: each holds, misses, or was not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting import Table

Results = Mapping[str, dict[str, Any]]
"""By the benchmark's name."""


@dataclass(frozen=True)
class Target:
    title: str
    limit: float
    at_most: bool
    """Else at least."""
    needs: tuple[str, ...]
    """Which benchmarks it is found in."""
    find: Callable[[Results], float | None]
    """The figure; None where it was not measured."""
    form: str = "{:.2f}"

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    @property
    def asked(self) -> str:
        return ("at most " if self.at_most else "at least ") + self.form.format(self.limit)


def chosen(result: dict[str, Any], **wanted: object) -> dict[str, Any] | None:
    """The one figure with these values."""
    for one in result["figures"]:
        if all(one.get(name) == value for name, value in wanted.items()):
            return dict(one)
    return None


def beside_h2load(name: str) -> Callable[[Results], float | None]:
    def find(results: Results) -> float | None:
        one = chosen(results["send"], name=name)
        return None if one is None else one["ratio"]

    return find


def beside_bulk(name: str) -> Callable[[Results], float | None]:
    def find(results: Results) -> float | None:
        one = chosen(results["send"], name=name)
        return None if one is None else one.get("to_bulk")

    return find


def of_ten_million(
    compare: Callable[[dict[str, Any], dict[str, Any]], float],
) -> Callable[[Results], float | None]:
    def find(results: Results) -> float | None:
        small = chosen(results["scale"], group="pushes", pushes=100_000)
        large = chosen(results["scale"], group="pushes", pushes=10_000_000)
        return None if small is None or large is None else compare(small, large)

    return find


def writes(results: Results) -> float | None:
    one = chosen(results["scale"], group="pushes", pushes=1_000_000)
    return None if one is None else one["write_calls_per_thousand"]


def alarm(results: Results) -> float | None:
    return float(results["encode"]["figures"][0]["to_orjson"])


def latency(results: Results) -> float | None:
    wanted = {"how": "stream", "round_trip_ms": 0.0, "body_octets": 200, "load": 0.5}
    ours = chosen(results["latency"], sender="fastpush send_many, each 10 ms", **wanted)
    theirs = chosen(results["latency"], sender="h2load, each 10 ms", **wanted)
    if ours is None or theirs is None:
        return None
    return float(ours["latency"]["p99_ms"] / theirs["latency"]["p99_ms"])


def windows(results: Results) -> float | None:
    shares = [one["share"] for one in results["latency"]["windows"] if one["round_trip_ms"] == 100.0]
    return None if not shares else 100 * shares[0]


TARGETS = (
    Target("`send_many` × h2load", 0.9, True, ("send",), beside_h2load("bulk")),
    Target("`send`, 1,000 tasks × h2load", 2.0, True, ("send",), beside_h2load("awaited")),
    Target("one payload for all × h2load", 0.7, True, ("send",), beside_h2load("fan-out")),
    Target("pycurl × `send_many`", 7, False, ("send",), beside_bulk("pycurl"), "{:.1f}"),
    Target("@parse/node-apn × `send_many`", 25, False, ("send",), beside_bulk("node-apn"), "{:.0f}"),
    Target("aioapns × `send_many`", 90, False, ("send",), beside_bulk("aioapns"), "{:.0f}"),
    Target("an OpManager alarm to JSON × orjson", 0.7, True, ("encode",), alarm),
    Target(
        "CPU of a push, of 10,000,000 × of 100,000",
        1.10,
        True,
        ("scale",),
        of_ten_million(lambda small, large: large["to_sample"]),
    ),
    Target(
        "MB more at the peak, 10,000,000 over 100,000",
        16,
        True,
        ("scale",),
        of_ten_million(lambda small, large: (large["peak_octets"] - small["peak_octets"]) / 1e6),
        "{:.1f}",
    ),
    Target("writes to 1,000 pushes", 20, True, ("scale",), writes, "{:.1f}"),
    Target("p99 at half load × h2load", 2.0, True, ("latency",), latency),
    Target("% of 4 windows used, 100 ms away", 90, False, ("latency",), windows, "{:.0f}"),
)


def table(runs: Sequence[Results]) -> Table:
    """A line to each target, a column to each run."""
    names = ("run",) if len(runs) == 1 else tuple(f"run {number}" for number in range(1, len(runs) + 1))
    rows = Table("targets", ("figure", "asked", *names, ""))
    for target in TARGETS:
        values = [target.find(run) if all(name in run for name in target.needs) else None for run in runs]
        measured = [value for value in values if value is not None]
        verdict = "not measured"
        if measured:
            verdict = "holds" if all(target.holds(value) for value in measured) else "MISSES"
        rows.add(
            target.title,
            target.asked,
            *("" if value is None else target.form.format(value) for value in values),
            verdict,
        )
    return rows
