"""Whether memory stays flat: `send_many` over a long generator, beside a short one, on haproxy.

Nothing that grows with the number of pushes may be kept: not in the client, the engine, or the pool.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.contenders import Job, python
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table, say
from benchmarks.servers import haproxy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pushes", type=int, default=10_000_000, help="of the long run (default 10 million)")
    parser.add_argument("--short", type=int, default=100_000, help="of the short run (default 100,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the device tokens and the key (default 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = measure.Cores.of_this_machine()
    figures = []
    no_figure = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key_file = SigningKeyFile(directory / "AuthKey.p8", arguments.seed)
        with haproxy(directory, core=cores.sink) as server:
            job = Job(
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
            for pushes in (arguments.short, arguments.pushes):
                before = server.tally().answered
                command = [*python("soak_client"), replace(job, pushes=pushes).to_json()]
                if cores.client is not None:
                    command = ["taskset", "-c", str(cores.client), *command]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode != 0:
                    no_figure[f"{pushes:,}"] = f"ended with {done.returncode}"
                    continue
                report = json.loads(done.stdout.splitlines()[-1])
                answered = server.tally().answered - before
                if not report["accepted"] == answered == pushes:
                    no_figure[f"{pushes:,}"] = f"{report['accepted']:,} accepted, {answered:,} answered"
                    continue
                say(f"soak {pushes:,}: peak {report['peak_octets'] / 1e6:.1f} MB")
                figures.append({"pushes": pushes} | report)
    conditions = measure.conditions() | {"sink": f"{server.name} {server.version}"}
    return {"benchmark": "soak", "conditions": conditions, "figures": figures, "no_figure": no_figure}


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        f"soak: {result['conditions']['sink']}; notifications from a generator, 1 connection",
        ("pushes", "peak MB", "MB after 1 %", "MB at the end", "us CPU/push", "pushes/s"),
    )
    for one in result["figures"]:
        rows.add(
            f"{one['pushes']:,}",
            f"{one['peak_octets'] / 1e6:.1f}",
            f"{one['octets_early'] / 1e6:.1f}",
            f"{one['octets_late'] / 1e6:.1f}",
            f"{1e6 * one['cpu_seconds'] / one['pushes']:.2f}",
            f"{one['pushes'] / one['wall_seconds']:,.0f}",
        )
    for pushes, reason in result["no_figure"].items():
        rows.note(f"no figure for {pushes}: {reason}")
    return rows
