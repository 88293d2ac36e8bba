"""What one push costs its sender: client CPU, rate and memory, beside h2load on the same sink.

Over TLS, one connection, 1,000 streams at once, 220 octets to a body. The sink is haproxy, which reads each
body before it answers, judges its length and counts connections. `--sink` takes another: nginx, which sends
RST_STREAM after each answer, or our own simulator. Those count at their end, so that each run has a new one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import contenders, data, measure
from benchmarks.contenders import H2LOAD, Contender, Job, Report
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table, say
from benchmarks.servers import Server, haproxy, nginx, simulator

STREAMS = 1_000
UNENDING = 1_000_000_000  # requests to a connection, for senders that cannot go on over a new one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender (default 5)")
    parser.add_argument(
        "--pushes", type=int, default=200_000, help="in each run; slow contenders get a share"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the device tokens and the key (default 1)")
    parser.add_argument(
        "--only",
        type=lambda names: names.split(","),
        metavar="NAME,...",
        help="contenders beside h2load: " + ", ".join(c.name for c in contenders.ALL if c is not H2LOAD),
    )
    parser.add_argument("--sink", choices=("haproxy", "nginx", "simulator"), default="haproxy")
    parser.add_argument(
        "--answers",
        choices=("apns-id", "plain"),
        default="apns-id",
        help="haproxy answers with the request's apns-id, as APNs does (default), or with the status alone",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    chosen = [H2LOAD, *(c for c in contenders.ALL if c is not H2LOAD and wanted(c, arguments.only))]
    cores = measure.Cores.of_this_machine()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key_file = SigningKeyFile(directory / "AuthKey.p8", arguments.seed)

        def job_for(contender: Contender, server: Server) -> Job:
            return Job(
                host=server.host,
                port=server.port,
                ca_file=str(server.ca_file),
                key_file=str(key_file.path),
                provider_token=key_file.provider_token(),
                pushes=int(arguments.pushes * contender.share),
                warm_up=contender.warm_up,
                seed=arguments.seed,
                streams=STREAMS,
            )

        with sinks(arguments, directory, cores.sink) as (sink, each_run):

            def run_one(contender: Contender) -> Report:
                with each_run() as server:
                    return measure.run_one(contender, server, job_for(contender, server), cores)

            rows = measure.run_rounds(chosen, run_one, arguments.rounds, say)
    figures = [
        measure.figures_of(row, rows, int(arguments.pushes * row.contender.share), arguments.pushes)
        for row in rows.values()
    ]
    return {
        "benchmark": "send",
        "conditions": measure.conditions() | {"sink": sink, "streams": STREAMS, "client_core": cores.client},
        "figures": [asdict(one) for one in figures if one is not None],
        "no_figure": {row.contender.title: row.failures[0] for row in rows.values() if row.failures},
        "not_run": {row.contender.title: row.missing for row in rows.values() if row.missing},
    }


@contextmanager
def sinks(
    arguments: argparse.Namespace, directory: Path, core: int | None
) -> Iterator[tuple[str, Callable[[], AbstractContextManager[Server]]]]:
    """The sink's name and version, and what gives it to a run: one haproxy to all, of any other a new one."""
    if arguments.sink == "haproxy":
        apns_id = arguments.answers == "apns-id"
        with haproxy(directory, apns_id=apns_id, body_octets=data.BODY_OCTETS, core=core) as server:
            named = f"{server.name} {server.version}, answers: {arguments.answers}"
            yield named, lambda: nullcontext(server)
        return

    @contextmanager
    def new() -> Iterator[Server]:
        with tempfile.TemporaryDirectory(dir=directory) as name:
            if arguments.sink == "nginx":
                started = nginx(Path(name), keepalive_requests=UNENDING, core=core)
            else:
                started = simulator(Path(name), core=core)
            with started as server:
                yield server

    with new() as server:  # so that one which is not installed is missed at once
        named = f"{server.name} {server.version}, answers: apns-id"
    yield named, new


def wanted(contender: Contender, only: list[str] | None) -> bool:
    return only is None or contender.name in only


def table(result: dict[str, Any]) -> Table:
    conditions = result["conditions"]
    rows = Table(
        title=f"send: {conditions['sink']}; 1 connection, {conditions['streams']:,} streams, 220-octet body",
        columns=(
            "sender",
            "us CPU/push",
            "x h2load",
            "lowest-highest",
            "pushes/s",
            "peak MB",
            "pushes",
            "versions",
        ),
    )
    for one in result["figures"]:
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        spread = "" if one["ratio"] is None else f"{one['ratio_lowest']:.2f}-{one['ratio_highest']:.2f}"
        rows.add(
            one["title"],
            f"{one['cpu_microseconds']:.2f}",
            ratio,
            spread,
            f"{one['pushes_per_second']:,.0f}",
            f"{one['peak_octets'] / 1e6:.0f}",
            f"{one['pushes']:,}",
            one["versions"],
        )
    for title, reason in result["no_figure"].items():
        rows.note(f"no figure for {title}: {reason}")
    for title, cure in result["not_run"].items():
        rows.note(f"not run, {title}: {cure}")
    return rows
