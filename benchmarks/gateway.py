"""The gateway from acceptance to the recorded outcome, and a fan-out beside `send_many` of the same.

The other end is fastpush's simulated APNs, in a process of its own on the other processor. CPU is that of the
gateway's process, its writing thread included; the lowest of the rounds, since noise only adds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.contenders import Contender, Job, python
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table, say
from benchmarks.servers import Server, simulator

BATCHED = ("parts", "batches")
FANNED = ("send-many", "fan-out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="of each (default 3)")
    parser.add_argument("--batched", type=int, default=100_000, help="in batches of 1,000 (default 100,000)")
    parser.add_argument("--devices", type=int, default=1_000_000, help="of the fan-out (default 1,000,000)")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="waiting at once (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the device tokens and the key (default 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = measure.Cores.of_this_machine()
    jobs = [(how, arguments.batched) for how in BATCHED] + [(how, arguments.devices) for how in FANNED]
    jobs += [("acceptance", arguments.devices), ("backlog", arguments.backlog)]
    reports: dict[str, list[dict[str, Any]]] = {}
    no_figure: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key_file = SigningKeyFile(directory / "AuthKey.p8", arguments.seed)
        with simulator(directory, core=cores.sink) as server:
            for number in range(arguments.rounds):
                for how, pushes in jobs:
                    if not pushes or (number and how in ("acceptance", "backlog")):
                        continue
                    try:
                        report = run_one(server, key_file, how, pushes, arguments.seed, cores)
                    except measure.NoFigure as reason:
                        no_figure[how] = str(reason)
                        continue
                    reports.setdefault(how, []).append(report)
                    say(f"gateway {how}: round {number + 1} of {pushes:,} done")
    return {
        "benchmark": "gateway",
        "conditions": measure.conditions(),
        "figures": [
            figure(name, pushes, found)
            for how, pushes in jobs
            if (found := reports.get(how))
            for name in found[0]
            if isinstance(found[0][name], dict) and name != "warm-up"
        ],
        "acceptance": reports["acceptance"][0]["waits"] if "acceptance" in reports else [],
        "peak_octets": {how: max(one["peak_octets"] for one in found) for how, found in reports.items()},
        "no_figure": no_figure,
    }


def run_one(
    server: Server, key_file: SigningKeyFile, how: str, pushes: int, seed: int, cores: measure.Cores
) -> dict[str, Any]:
    """Run one part. Raises NoFigure: it ended badly, or not all were accepted."""
    job = Job(
        host=server.host,
        port=server.port,
        ca_file=str(server.ca_file),
        key_file=str(key_file.path),
        provider_token="",
        pushes=pushes,
        warm_up=min(pushes // 10, 10_000),
        seed=seed,
        streams=1_000,
        connections=4,
    )
    contender = Contender(how, f"gateway {how}", python("gateway_dispatch", how))
    report: dict[str, Any] = json.loads(measure.last_line(contender, job.to_json(), cores))
    expected = pushes + job.warm_up if how == "batches" else pushes
    if report["accepted"] != expected:
        raise measure.NoFigure(f"{report['accepted']:,} of {expected:,} were accepted")
    return report


def figure(name: str, pushes: int, reports: list[dict[str, Any]]) -> dict[str, Any]:
    best = min(reports, key=lambda report: report[name]["cpu_seconds"])[name]
    return {
        "part": name,
        "notifications": pushes,
        "cpu_microseconds": 1e6 * best["cpu_seconds"] / pushes,
        "notifications_per_second": pushes / best["wall_seconds"],
        "rounds": len(reports),
    }


TITLES = {
    "accept": "accept, in batches of 1,000",
    "claim": "claim",
    "make": "make the notifications",
    "send": "send, until answered",
    "settle": "record the outcomes",
    "batches": "all of it at once, until recorded",
    "send-many": "send_many of one payload",
    "fan-out": "the same as a fan-out, until recorded",
    "backlog": "drain a backlog",
}


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        "gateway: accepted, sent to a simulated APNs over TLS, outcomes on disk",
        ("part", "notifications", "us CPU each", "a second", "rounds"),
    )
    for one in result["figures"]:
        rows.add(
            TITLES[one["part"]],
            f"{one['notifications']:,}",
            f"{one['cpu_microseconds']:.2f}",
            f"{one['notifications_per_second']:,.0f}",
            f"{one['rounds']}",
        )
    cpu = {one["part"]: one["cpu_microseconds"] for one in result["figures"]}
    if "fan-out" in cpu and "send-many" in cpu:
        rows.note(f"a fan-out costs {cpu['fan-out'] - cpu['send-many']:.2f} us a device above send_many")
    if waits := result["acceptance"]:
        middle, last = (1e3 * waits[int(share * (len(waits) - 1))] for share in (0.5, 0.99))
        rows.note(f"a fan-out is accepted in {middle:.1f} ms (median), {last:.1f} ms (p99)")
    for how, octets in result["peak_octets"].items():
        if how in ("fan-out", "backlog"):
            rows.note(f"peak memory, {TITLES[how]}: {octets / 1e6:.0f} MB")
    for how, reason in result["no_figure"].items():
        rows.note(f"{how}: no figure: {reason}")
    return rows
