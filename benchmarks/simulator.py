"""How fast the simulated APNs answers on one processor, driven by h2load and by fastpush on the other.

Every request is judged by its rules: device token, topic, push type, provider token, payload size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import contenders, measure
from benchmarks.contenders import Job
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table, say
from benchmarks.send import STREAMS
from benchmarks.servers import simulator

DRIVERS = ("h2load", "bulk")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="runs of each driver (default 3)")
    parser.add_argument("--pushes", type=int, default=200_000, help="in each run (default 200,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the device tokens and the key (default 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = measure.Cores.of_this_machine()
    cpu: dict[str, list[float]] = {name: [] for name in DRIVERS}
    rates: dict[str, list[float]] = {name: [] for name in DRIVERS}
    no_figure = {}
    for number in range(arguments.rounds):
        for name in DRIVERS:
            contender = contenders.BY_NAME[name]
            if missing := contender.missing():
                no_figure[contender.title] = missing
                continue
            try:
                server_cpu, rate = run_one(contender, cores, arguments.pushes, arguments.seed)
            except measure.NoFigure as reason:
                no_figure[contender.title] = str(reason)
                continue
            cpu[name].append(server_cpu)
            rates[name].append(rate)
            say(f"round {number + 1} {name}: {1e6 * server_cpu:.2f} us CPU of the simulator a request")
    figures = [
        {
            "driver": contenders.BY_NAME[name].title,
            "server_cpu_microseconds": 1e6 * statistics.median(cpu[name]),
            "requests_per_second": statistics.median(rates[name]),
            "requests": arguments.pushes,
        }
        for name in DRIVERS
        if cpu[name] and contenders.BY_NAME[name].title not in no_figure
    ]
    return {
        "benchmark": "simulator",
        "conditions": measure.conditions(),
        "figures": figures,
        "no_figure": no_figure,
    }


def run_one(
    contender: contenders.Contender, cores: measure.Cores, pushes: int, seed: int
) -> tuple[float, float]:
    """The simulator's CPU seconds to a request, and requests a second on the clock."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key_file = SigningKeyFile(directory / "AuthKey.p8", seed)
        with simulator(directory, core=cores.sink) as server:
            job = Job(
                host=server.host,
                port=server.port,
                ca_file=str(server.ca_file),
                key_file=str(key_file.path),
                provider_token=key_file.provider_token(),
                pushes=pushes,
                warm_up=contender.warm_up,
                seed=seed,
                streams=STREAMS,
            )
            report = measure.run_alone(contender, job, cores)
            tally = server.tally()
    expected = pushes + contender.warm_up
    if not report.accepted == tally.answered == expected:
        raise measure.NoFigure(
            f"{report.accepted:,} accepted, {tally.answered:,} by the simulator's count, for {expected:,}"
        )
    assert tally.cpu_seconds is not None
    return tally.cpu_seconds / expected, pushes / report.wall_seconds


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        "simulator: TLS, 1 connection, 1,000 streams, 220-octet body, every request judged",
        ("driven by", "us CPU of the simulator", "requests/s", "requests"),
    )
    for one in result["figures"]:
        rows.add(
            one["driver"],
            f"{one['server_cpu_microseconds']:.2f}",
            f"{one['requests_per_second']:,.0f}",
            f"{one['requests']:,}",
        )
    for title, reason in result["no_figure"].items():
        rows.note(f"no figure for {title}: {reason}")
    return rows
