"""Whether a push costs the same however many there are: CPU, memory and system calls of `send_many`.

From ten thousand to ten million pushes out of a generator, and over 1 to 16 connections. Nothing that grows
with the number of pushes may be kept, by client, engine or pool.

A run of ten million takes a minute, and no minute of a shared machine is without noise, while among runs of
a tenth of a second one finds a quiet one. So its CPU is held up to the mean of short runs right before and
after it, which had the same noise, and not to the best of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import data, measure
from benchmarks.contenders import Contender, Job, python
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table, say
from benchmarks.servers import Server, haproxy

SIZES = (10_000, 100_000, 1_000_000)
FULL = 10_000_000
CONNECTIONS = (1, 2, 4, 8, 16)
SAMPLE = 100_000  # pushes, where the number of connections is what changes
BESIDE = 5  # runs of SAMPLE before the longest, and as many after it
CLIENT = Contender("scale", "fastpush send_many", python("scale_client"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help=f"without {FULL:,} pushes, half a minute")
    parser.add_argument("--rounds", type=int, default=3, help="of all but the longest (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="of the device tokens and the key (default 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = measure.Cores.of_this_machine()
    sizes = SIZES if arguments.short else (*SIZES, FULL)
    jobs = [("pushes", size, 1) for size in sizes]
    jobs += [("connections", SAMPLE, connections) for connections in CONNECTIONS]
    runs: dict[tuple[str, int, int], list[dict[str, Any]]] = {job: [] for job in jobs}
    no_figure: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key_file = SigningKeyFile(directory / "AuthKey.p8", arguments.seed)
        with haproxy(directory, body_octets=data.BODY_OCTETS, core=cores.sink) as server:
            sink = f"{server.name} {server.version}"
            base = Job(
                host=server.host,
                port=server.port,
                ca_file=str(server.ca_file),
                key_file=str(key_file.path),
                provider_token="",
                pushes=0,
                warm_up=0,
                seed=arguments.seed,
                streams=1_000,
            )
            for number in range(arguments.rounds):
                for group, pushes, connections in jobs:
                    if number and pushes >= FULL:
                        continue
                    title = titled(pushes, connections)
                    if title in no_figure:
                        continue
                    job = replace(base, pushes=pushes, connections=connections)
                    try:
                        report = (run_longest if pushes >= FULL else run_one)(server, job, cores)
                    except measure.NoFigure as reason:
                        no_figure[title] = str(reason)
                        continue
                    say(f"scale {title}: {1e6 * report['cpu_seconds'] / pushes:.2f} us CPU a push")
                    runs[group, pushes, connections].append(report)
    return {
        "benchmark": "scale",
        "conditions": measure.conditions() | {"sink": sink},
        "figures": figures(runs, no_figure),
        "no_figure": no_figure,
    }


def run_one(server: Server, job: Job, cores: measure.Cores) -> dict[str, Any]:
    """Run the client and compare its count with the sink's.

    Raises:
      NoFigure: it ended badly, or the counts differ.
    """
    before = server.tally().answered
    report: dict[str, Any] = json.loads(measure.last_line(CLIENT, job.to_json(), cores))
    answered = server.tally().answered - before
    if not report["accepted"] == answered == job.pushes:
        raise measure.NoFigure(f"{report['accepted']:,} accepted, {answered:,} answered, of {job.pushes:,}")
    return report


def run_longest(server: Server, job: Job, cores: measure.Cores) -> dict[str, Any]:
    """Run the client among short runs; `to_sample` is its CPU per push over theirs."""
    sample = replace(job, pushes=SAMPLE)
    beside = [run_one(server, sample, cores) for _ in range(BESIDE)]
    report = run_one(server, job, cores)
    beside += [run_one(server, sample, cores) for _ in range(BESIDE)]
    each = statistics.mean(one["cpu_seconds"] for one in beside) / SAMPLE
    return report | {"to_sample": report["cpu_seconds"] / job.pushes / each}


def titled(pushes: int, connections: int) -> str:
    return f"{pushes:,} over {connections}"


def figures(
    runs: dict[tuple[str, int, int], list[dict[str, Any]]], no_figure: dict[str, str]
) -> list[dict[str, Any]]:
    """A line to each job of which no run was wrong."""
    return [
        figure(group, pushes, connections, reports)
        for (group, pushes, connections), reports in runs.items()
        if reports and titled(pushes, connections) not in no_figure
    ]


def figure(group: str, pushes: int, connections: int, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table. CPU is the lowest of the rounds, since noise only adds; the rest are medians."""
    middle = {name: statistics.median(report[name] for report in reports) for name in reports[0]}
    return {
        "group": group,
        "pushes": pushes,
        "connections": connections,
        "connections_used": int(middle["connections"]),
        "cpu_microseconds": 1e6 * min(report["cpu_seconds"] for report in reports) / pushes,
        "pushes_per_second": pushes / middle["wall_seconds"],
        "write_calls_per_thousand": 1e3 * middle["write_calls"] / pushes,
        "peak_octets": int(middle["peak_octets"]),
        "octets_early": int(middle["octets_early"]),
        "octets_late": int(middle["octets_late"]),
        "to_sample": middle.get("to_sample"),
        "rounds": len(reports),
    }


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        f"scale: {result['conditions']['sink']}; notifications from a generator",
        (
            "pushes",
            "connections",
            "used",
            "us CPU/push",
            "pushes/s",
            "writes per 1,000",
            "peak MB",
            "MB after 1 %",
            "MB at the end",
        ),
    )
    for one in result["figures"]:
        rows.add(
            f"{one['pushes']:,}",
            f"{one['connections']}",
            f"{one['connections_used']}",
            f"{one['cpu_microseconds']:.2f}",
            f"{one['pushes_per_second']:,.0f}",
            f"{one['write_calls_per_thousand']:.1f}",
            f"{one['peak_octets'] / 1e6:.1f}",
            f"{one['octets_early'] / 1e6:.1f}",
            f"{one['octets_late'] / 1e6:.1f}",
        )
    by_size = {one["pushes"]: one for one in result["figures"] if one["group"] == "pushes"}
    small, large = by_size.get(SAMPLE), by_size.get(FULL)
    if small and large:
        rows.note(
            f"{FULL:,} beside {2 * BESIDE} runs of {SAMPLE:,} around it: "
            f"{large['to_sample']:.2f} of the CPU per push; "
            f"{(large['peak_octets'] - small['peak_octets']) / 1e6:+.1f} MB at the peak"
        )
    for title, reason in result["no_figure"].items():
        rows.note(f"no figure for {title}: {reason}")
    return rows
