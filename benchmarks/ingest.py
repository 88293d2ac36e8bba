"""The gateway's ingest: notifications accepted over HTTP with fsync, beside stock hypercorn reading the same.

Bodies of 1,000 lines, and single posts on 64 connections, from h2load. CPU is that of the gateway's process
(user and system, of all its threads) for a notification. *Accepted* ends there: the app is paused. *To its
outcome* goes on through the dispatcher to the simulated APNs, until the outcome is on disk. *In memory* is
the same on tmpfs: what is left without the disk's flushes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import data, measure
from benchmarks.outbox import flushes_of_the_disk
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table, say
from benchmarks.servers import find, issue_certificate, simulator

LINES = 1_000
TICK = os.sysconf("SC_CLK_TCK")
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    server: str
    protocol: str
    batch: int
    outcome: bool = False
    memory: bool = False

    @property
    def name(self) -> str:
        where = "to its outcome" if self.outcome else "accepted"
        return "stock hypercorn, read" if self.server == "hypercorn" else f"gateway, {where}"

    @property
    def tls(self) -> bool:
        return self.protocol != "HTTP/1.1"


PROTOCOLS = ("HTTP/1.1", "HTTP/1.1, TLS", "HTTP/2, TLS")
CASES = [
    *(Case("gateway", protocol, batch) for batch in (LINES, 1) for protocol in PROTOCOLS),
    *(Case("gateway", PROTOCOLS[0], batch, memory=True) for batch in (LINES, 1)),
    *(Case("gateway", PROTOCOLS[0], batch, outcome=True) for batch in (LINES, 1)),
    Case("gateway", PROTOCOLS[0], LINES, outcome=True, memory=True),
    *(Case("hypercorn", protocol, batch) for batch in (LINES, 1) for protocol in PROTOCOLS),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default 3; the best counts)")
    parser.add_argument("--batches", type=int, default=200, help="bodies of 1,000 lines a run (default 200)")
    parser.add_argument("--posts", type=int, default=10_000, help="single posts a run (default 10,000)")
    parser.add_argument("--directory", help="on the disk to measure (default: the current one)")
    parser.add_argument("--only", help="cases whose name, protocol and batch match this regular expression")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    directory = arguments.directory or os.getcwd()
    chosen = [
        case
        for case in CASES
        if re.search(arguments.only or "", f"{case.name} {case.protocol} {case.batch} {case.memory}")
    ]
    found: dict[Case, list[dict[str, float]]] = {case: [] for case in chosen}
    failures: dict[str, str] = {}
    for number in range(arguments.rounds):
        for case in chosen:
            if case.memory and not MEMORY.is_dir():
                continue
            count = arguments.batches if case.batch > 1 else arguments.posts
            with tempfile.TemporaryDirectory(dir=MEMORY if case.memory else directory) as folder:
                try:
                    one = measure_one(case, count, Path(folder))
                except measure.NoFigure as reason:
                    failures[f"{case.name}, {case.protocol}, {case.batch}"] = str(reason)
                    continue
            found[case].append(one)
            say(
                f"round {number + 1} {case.name}, {case.protocol}, {case.batch} a request"
                f"{', in memory' if case.memory else ''}: {one['cpu_microseconds']:.1f} us, "
                f"{one['notifications_per_second']:,.0f}/s"
            )
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        flushes = flushes_of_the_disk(Path(folder) / "probe", 1.0)
    figures = [
        {
            "case": case.name, "protocol": case.protocol, "batch": case.batch, "memory": case.memory,
            "cpu_microseconds": min(one["cpu_microseconds"] for one in runs),
            "notifications_per_second": max(one["notifications_per_second"] for one in runs),
            "peak_octets": int(statistics.median(one["peak_octets"] for one in runs)),
            "rounds": len(runs),
        }
        for case, runs in found.items()
        if runs
    ]  # fmt: skip
    return {
        "benchmark": "ingest",
        "conditions": measure.conditions(),
        "figures": figures,
        "flushes_per_second": flushes,
        "no_figure": failures,
    }


def measure_one(case: Case, count: int, folder: Path) -> dict[str, float]:
    """CPU, rate and memory of one run.

    Raises:
      NoFigure: not every request was answered with 202, or the server counts another number.
    """
    key_file = SigningKeyFile(folder / "AuthKey.p8", 1)
    key_file.path.chmod(0o600)
    certificate = issue_certificate(folder).chain_with_key
    certificate.chmod(0o600)
    body = folder / "body"
    body.write_bytes(lines(case.batch))
    job: dict[str, Any] = {
        "kind": case.server,
        "directory": str(folder),
        "tls": case.tls,
        "certificate": str(certificate),
        "key_file": str(key_file.path),
    }
    with maybe_simulator(case, folder) as apns:
        job["simulator"] = apns
        with server(job) as (process, there):
            warm_up = max(count // 20, 64 if case.batch == 1 else 8)
            load(case, warm_up, body, there)
            settle(process, drained=case.outcome)
            before, began = cpu_seconds(process.pid), time.perf_counter()
            wall = load(case, count, body, there)
            counts = settle(process, drained=case.outcome)
            passed = time.perf_counter() - began if case.outcome else wall
            used = cpu_seconds(process.pid) - before
            peak = peak_octets(process.pid)
    expected = (count + warm_up) * (case.batch if case.server == "gateway" else 1)
    if counts["accepted"] != expected:
        raise measure.NoFigure(f"the server counts {counts['accepted']:,} for {expected:,}")
    notifications = count * case.batch
    return {
        "cpu_microseconds": 1e6 * used / notifications,
        "notifications_per_second": notifications / passed,
        "peak_octets": peak,
    }


def lines(count: int) -> bytes:
    """A body: one JSON object, or so many of them on lines."""
    objects = [
        json.dumps({"device_token": token, "collapse_id": f"sw-{index}", **structured(index)}).encode()
        for index, token in enumerate(data.device_tokens(1, count))
    ]
    return objects[0] if count == 1 else b"\n".join(objects) + b"\n"


def structured(index: int) -> dict[str, Any]:
    return {
        "alert": {"title": data.TITLE, "body": data.alert_body(index)},
        "sound": data.SOUND,
        "thread_id": data.THREAD_ID,
    }


@contextmanager
def maybe_simulator(case: Case, folder: Path) -> Iterator[dict[str, Any] | None]:
    if not case.outcome:
        yield None
        return
    apns = folder / "apns"
    apns.mkdir()
    with simulator(apns) as running:
        yield {"host": running.host, "port": running.port, "ca_file": str(running.ca_file)}


@contextmanager
def server(job: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    command = [sys.executable, "-m", "benchmarks.servers.ingest_server", json.dumps(job)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            raise measure.NoFigure(f"the server did not start: {process.stderr.read()[-300:]}")
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def settle(process: subprocess.Popen[str], *, drained: bool) -> dict[str, int]:
    """What the server counts, once nothing waits there if it sends on what it takes.

    Raises:
      NoFigure: something waits after two minutes.
    """
    give_up = time.perf_counter() + 120
    while True:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        counts: dict[str, int] = json.loads(process.stdout.readline())
        if not drained or counts["waiting"] == 0:
            return counts
        if time.perf_counter() > give_up:
            raise measure.NoFigure(f"{counts['waiting']:,} wait after two minutes")
        # Each look is work for the process that is measured: few while much waits, and 20 ms are the figure's
        # tolerance in a run of seconds.
        time.sleep(0.02 if counts["waiting"] < 5_000 else 0.1)


def load(case: Case, count: int, body: Path, there: dict[str, str]) -> float:
    """Post so many bodies; seconds on h2load's clock.

    Raises:
      NoFigure: not all were answered with 202.
    """
    clients, streams = (64, 1) if case.batch == 1 else (8, 1)
    if case.protocol.startswith("HTTP/2"):
        clients, streams = (4, 16) if case.batch == 1 else (2, 4)
    content_type = "application/json" if case.batch == 1 else "application/x-ndjson"
    command = [
        find("h2load", "nghttp2-client"),
        f"--requests={count}",
        f"--clients={min(clients, count)}",
        f"--max-concurrent-streams={streams}",
        f"--data={body}",
        f"--header=content-type: {content_type}",
        f"--header=authorization: Bearer {there['key']}",
        *(["--h1"] if case.protocol.startswith("HTTP/1.1") else []),
        there["address"] + "/v1/notifications",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    # h2load counts an answer of HTTP/1.1 without a reason phrase, as hypercorn's, neither as good nor as bad.
    answered = re.search(
        r"(\d+) done, .* (\d+) errored, (\d+) timeout\s+status codes: (\d+) 2xx", done.stdout
    )
    seconds = re.search(r"finished in ([\d.]+)(ms|s|us)", done.stdout)
    good = count if case.server == "gateway" else 0
    if answered is None or seconds is None or int(answered[1]) != count or int(answered[4]) < good:
        codes = re.search(r"status codes: .*", done.stdout)
        raise measure.NoFigure(
            f"not all of {count:,} were accepted; {codes[0] if codes else done.stderr[-200:]}"
        )
    return float(seconds[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[seconds[2]]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def peak_octets(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1_024


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        "ingest: alarms of some 290 octets, from h2load",
        ("what", "over", "a request", "us CPU each", "notifications/s", "peak MiB"),
    )
    for one in result["figures"]:
        rows.add(
            one["case"] + (", in memory" if one["memory"] else ""),
            one["protocol"],
            f"{one['batch']:,}",
            f"{one['cpu_microseconds']:.1f}",
            f"{one['notifications_per_second']:,.0f}",
            f"{one['peak_octets'] / (1 << 20):.0f}",
        )
    rows.note(f"flushes (fdatasync) of the disk: {result['flushes_per_second']:,.0f} a second")
    for name, reason in result["no_figure"].items():
        rows.note(f"no figure for {name}: {reason}")
    return rows
