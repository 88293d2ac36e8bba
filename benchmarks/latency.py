"""How long a push takes from the time it was meant to be sent (open loop), beside h2load at the same rate.

At shares of the measured maximum, over round trips made by a proxy of ours, for small and for large bodies;
and the share of the flow-control windows that is used where the round trip is long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import contenders, measure, servers
from benchmarks.contenders import Contender, python
from benchmarks.contenders.pacing import PacedJob, PacedReport
from benchmarks.percentiles import H2LOAD_TICK
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table, say
from benchmarks.servers import Server, free_port, haproxy, simulator

EVEN_TICK = 0.001  # seconds; as fine as the kernel's timers wake a program
ROUND_TRIPS = (0.0, 0.020, 0.100)
BODIES = (200, 4_096)
CONNECTIONS = 4  # where there is a round trip to fill; one without
WINDOW_OCTETS = 65_535  # of APNs, for a connection; RFC 9113 §6.9.2
# Connections come about one after the other, each after 50 ms of stall and with four round trips; then what
# has gathered has to go.
GROWN_WITHIN = 1.5  # seconds
GROWN_AFTER_ROUND_TRIPS = 20
WINDOW_WARM_UP = 3.0  # seconds


@dataclass(frozen=True)
class Sender:
    title: str
    contender: Contender
    tick: float


STREAM = Contender("stream", "fastpush send_many", python("paced_fastpush", "stream"))
TASKS = Contender("tasks", "fastpush send", python("paced_fastpush", "tasks"))
H2LOAD = replace(contenders.H2LOAD, title="h2load", command=python("paced_h2load"))

SENDERS = {
    "stream": (
        Sender("fastpush send_many, each ms", STREAM, EVEN_TICK),
        Sender("fastpush send_many, each 10 ms", STREAM, H2LOAD_TICK),
        Sender("h2load, each 10 ms", H2LOAD, H2LOAD_TICK),
    ),
    "tasks": (
        Sender("fastpush send, each ms", TASKS, EVEN_TICK),
        Sender("fastpush send, each 10 ms", TASKS, H2LOAD_TICK),
        Sender("h2load, each 10 ms", H2LOAD, H2LOAD_TICK),
    ),
}


@dataclass(frozen=True)
class Cell:
    """What is the same for all senders of one block of the table."""

    how: str
    round_trip: float
    body_octets: int

    def __str__(self) -> str:
        return f"{1e3 * self.round_trip:.0f} ms, {self.body_octets:,} octets"

    @property
    def connections(self) -> int:
        return CONNECTIONS if self.round_trip else 1


CELLS = (
    *(Cell("stream", round_trip, octets) for round_trip in ROUND_TRIPS for octets in BODIES),
    Cell("tasks", 0.0, BODIES[0]),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each run (default 2), a quarter warm-up"
    )
    parser.add_argument("--rounds", type=int, default=1, help="of the runs without a round trip (default 1)")
    parser.add_argument(
        "--loads",
        type=lambda text: tuple(float(part) / 100 for part in text.split(",")),
        default=(0.1, 0.5, 0.9),
        metavar="PERCENT,...",
        help="of the measured maximum (default 10,50,90)",
    )
    parser.add_argument(
        "--round-trips",
        type=lambda text: tuple(float(part) / 1e3 for part in text.split(",")),
        default=ROUND_TRIPS,
        metavar="MS,...",
        help="which of 0, 20 and 100 (default all)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the device tokens and the key (default 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = measure.Cores.of_this_machine()
    bench = Bench(cores, arguments)
    for cell in CELLS:
        if cell.round_trip in arguments.round_trips:
            bench.measure(cell)
    windows = []
    if 0.100 in arguments.round_trips:
        windows = [window_use(cores, arguments.seed, 0.100, bench.no_figure)]
    return {
        "benchmark": "latency",
        "conditions": measure.conditions() | {"seconds": arguments.seconds},
        "figures": bench.figures,
        "windows": [one for one in windows if one is not None],
        "no_figure": bench.no_figure,
        "not_run": bench.not_run,
    }


class Bench:
    """The runs, and what came out of them."""

    def __init__(self, cores: measure.Cores, arguments: argparse.Namespace) -> None:
        self._cores = cores
        self._arguments = arguments
        self.figures: list[dict[str, Any]] = []
        self.no_figure: dict[str, str] = {}
        self.not_run: dict[str, str] = {}

    def measure(self, cell: Cell) -> None:
        """One block of the table: the maximum, then each share of it with each sender in turn."""
        first = SENDERS[cell.how][0]
        name = f"{first.title}, {cell}, at its most"
        try:
            most = self._run(name, cell, first, 0.0).per_second
        except measure.NoFigure:
            return
        say(f"{cell}, {cell.how}: at most {most:,.0f} a second")
        for load in self._arguments.loads:
            self._measure_load(cell, load, most)

    def _measure_load(self, cell: Cell, load: float, most: float) -> None:
        rounds = 1 if cell.round_trip else self._arguments.rounds
        # Over a long way a tick more or less is no matter, and runs take long.
        senders = SENDERS[cell.how][1 if cell.round_trip else 0 :]
        reports: dict[str, list[PacedReport]] = {sender.title: [] for sender in senders}
        for _ in range(rounds):
            for sender in senders:
                name = f"{sender.title}, {cell}, {load:.0%}"
                if name in self.no_figure or name in self.not_run:
                    continue
                if missing := sender.contender.missing():
                    self.not_run[name] = missing
                    continue
                try:
                    report = self._run(name, cell, sender, load * most)
                except measure.NoFigure:
                    continue
                reports[sender.title].append(report)
                say(f"{name}: p99 {report.latency['p99_ms']:.2f} ms")
        for title, runs in reports.items():
            if len(runs) == rounds:
                self.figures.append(figure(cell, title, load, load * most, most, runs))

    def _run(self, name: str, cell: Cell, sender: Sender, rate: float) -> PacedReport:
        """Run it, and note under the name why there is no figure.

        Raises:
          NoFigure: there is none.
        """
        seconds, warm_up = self._arguments.seconds, self._arguments.seconds / 4
        # Over a long way the pool takes a while to see that it needs all its connections.
        more = GROWN_WITHIN + GROWN_AFTER_ROUND_TRIPS * cell.round_trip if cell.round_trip else 0.0
        job = PacedJob(
            seed=self._arguments.seed,
            rate=rate,
            seconds=seconds + more,
            warm_up=warm_up + more,
            tick=sender.tick,
            body_octets=cell.body_octets,
            connections=cell.connections,
        )
        try:
            return run_paced(sender.contender, job, cell, self._cores, self._arguments.seed)
        except measure.NoFigure as reason:
            self.no_figure[name] = str(reason)
            raise


def run_paced(
    contender: Contender, job: PacedJob, cell: Cell, cores: measure.Cores, seed: int
) -> PacedReport:
    """Run the sender in a process of its own, on a sink of its own.

    Raises:
      NoFigure: it ended badly, not all that it sent was accepted, or the sink counts otherwise.
    """
    with tempfile.TemporaryDirectory() as name, sink_for(cell, Path(name), cores.sink) as server:
        with far_away(server, cell.round_trip, cores.sink) as port:
            key_file = SigningKeyFile(Path(name, "AuthKey.p8"), seed)
            job = replace(
                job,
                host=server.host,
                port=port,
                ca_file=str(server.ca_file),
                key_file=str(key_file.path),
                provider_token=key_file.provider_token(),
            )
            report = PacedReport(**json.loads(measure.last_line(contender, job.to_json(), cores)))
        answered = server.tally().answered
    # Without a rate it is the sender that says how many they were.
    asked = max(report.sent, int(job.rate * job.seconds) - job.connections)
    if not asked or report.accepted < asked:
        raise measure.NoFigure(f"{report.accepted:,} of {asked:,} were accepted")
    if answered != report.accepted:
        raise measure.NoFigure(f"{report.accepted:,} accepted, {answered:,} by the sink's count")
    return report


def sink_for(cell: Cell, directory: Path, core: int | None) -> AbstractContextManager[Server]:
    """Over a long way the simulator, for its windows; else haproxy, which is faster."""
    if cell.round_trip:
        return simulator(directory, core=core)
    return haproxy(directory, body_octets=cell.body_octets, core=core)


def figure(
    cell: Cell, title: str, load: float, rate: float, most: float, runs: list[PacedReport]
) -> dict[str, Any]:
    """One line of the table: medians over the rounds."""
    middle = {
        part: {
            name: statistics.median(getattr(report, part)[name] for report in runs)
            for name in ("count", "p50_ms", "p99_ms", "p999_ms", "max_ms")
        }
        for part in ("latency", "from_submission")
    }
    return {
        "how": cell.how,
        "round_trip_ms": 1e3 * cell.round_trip,
        "body_octets": cell.body_octets,
        "connections": cell.connections,
        "sender": title,
        "load": load,
        "maximum_per_second": most,
        "offered_per_second": rate,
        "per_second": statistics.median(report.per_second for report in runs),
        **middle,
        "rounds": len(runs),
    }


# The windows over a long way.


def window_use(
    cores: measure.Cores, seed: int, round_trip: float, no_figure: dict[str, str]
) -> dict[str, Any] | None:
    """How many octets of DATA leave in one round trip, by the share of all windows together.

    The peer is our simulator, which returns the connection's window about 32 KB at a time, as APNs does.
    """
    cell = Cell("stream", round_trip, 4_096)
    title = f"windows over {cell}"
    job = PacedJob(
        seed=seed,
        rate=0.0,
        seconds=WINDOW_WARM_UP + 4.0,
        warm_up=WINDOW_WARM_UP,
        tick=EVEN_TICK,
        body_octets=cell.body_octets,
        connections=cell.connections,
    )
    try:
        report = run_paced(STREAM, job, cell, cores, seed)
    except measure.NoFigure as reason:
        no_figure[title] = str(reason)
        return None
    octets = report.per_second * cell.body_octets * round_trip
    say(f"{title}: {octets:,.0f} octets in a round trip")
    return {
        "round_trip_ms": 1e3 * round_trip,
        "body_octets": cell.body_octets,
        "connections": cell.connections,
        "per_second": report.per_second,
        "octets_per_round_trip": octets,
        "share": octets / (cell.connections * WINDOW_OCTETS),
    }


@contextmanager
def far_away(server: Server, round_trip: float, core: int | None) -> Iterator[int]:
    """The port at which the server is reached over so long a way."""
    if not round_trip:
        yield server.port
        return
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.delay_proxy", str(port), str(server.port), str(round_trip)]
    with (
        tempfile.TemporaryDirectory() as directory,
        servers.started(
            command,
            name="the delay proxy",
            version="",
            port=port,
            ca_file=server.ca_file,
            directory=Path(directory),
            core=core,
            count=lambda _: servers.Tally(0),
        ),
    ):
        yield port


# The table.


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        "latency: milliseconds from the intended send time; sink: haproxy, 1 connection; "
        "over a round trip the simulator, with APNs' windows, 4 connections",
        (
            "sender",
            "round trip",
            "body",
            "load",
            "offered/s",
            "done/s",
            "p50",
            "p99",
            "p99.9",
            "p99 / h2load",
        ),
    )
    of_h2load = {key_of(one): one for one in result["figures"] if one["sender"].startswith("h2load")}
    for one in result["figures"]:
        latency = one["latency"]
        base = of_h2load.get(key_of(one))
        # The same schedule, or it compares nothing.
        same = base is not None and base is not one and one["sender"].endswith("each 10 ms")
        rows.add(
            one["sender"],
            f"{one['round_trip_ms']:.0f} ms",
            f"{one['body_octets']:,}",
            f"{one['load']:.0%}",
            f"{one['offered_per_second']:,.0f}",
            f"{one['per_second']:,.0f}",
            f"{latency['p50_ms']:.2f}",
            f"{latency['p99_ms']:.2f}",
            f"{latency['p999_ms']:.2f}",
            f"{latency['p99_ms'] / base['latency']['p99_ms']:.2f}" if same and base is not None else "",
        )
    for one in result["windows"]:
        rows.note(
            f"windows, {one['round_trip_ms']:.0f} ms, {one['body_octets']:,}-octet bodies, "
            f"{one['connections']} connections: {one['octets_per_round_trip']:,.0f} octets in a round trip, "
            f"{one['share']:.0%} of {one['connections']} x {WINDOW_OCTETS:,}"
        )
    for title, reason in result["no_figure"].items():
        rows.note(f"no figure for {title}: {reason}")
    for title, cure in result["not_run"].items():
        rows.note(f"not run, {title}: {cure}")
    return rows


def key_of(one: dict[str, Any]) -> tuple[Any, ...]:
    return one["how"], one["round_trip_ms"], one["body_octets"], one["load"]
