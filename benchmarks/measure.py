"""Runs contenders on one sink in interleaved rounds, and believes none of them without the sink's count."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.contenders import H2LOAD, Contender, Job, Report
from benchmarks.servers import Server, Tally

ROOT = Path(__file__).parent.parent
BULK = "bulk"
"""The contender beside which the peers are held."""
CONTENDER_WITHIN = 600.0  # seconds a contender may take


@dataclass(frozen=True)
class Cores:
    """The processors of client and sink: two different ones where the machine has them."""

    client: int | None
    sink: int | None

    @classmethod
    def of_this_machine(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(cores) < 2 or not shutil.which("taskset"):
            return cls(None, None)
        return cls(client=cores[1], sink=cores[0])


class NoFigure(Exception):
    """The contender failed, or one end of the connection disagrees with it; the message says how."""


@dataclass
class Row:
    """What one contender did in all rounds."""

    contender: Contender
    runs: list[tuple[int, Report]] = field(default_factory=list)
    """Round and report of each run that was right."""
    failures: list[str] = field(default_factory=list)
    missing: str | None = None
    """What to install before it can run."""

    def cpu_microseconds(self, pushes: int) -> list[float]:
        return [1e6 * report.cpu_seconds / pushes for _, report in self.runs]


@dataclass(frozen=True)
class Figures:
    """One line of the table. All are medians over the rounds."""

    name: str
    title: str
    pushes: int
    cpu_microseconds: float
    """Client CPU to one push, user and system."""
    ratio: float | None
    """The same by h2load's of the same round; None where h2load has no figure."""
    ratio_lowest: float | None
    ratio_highest: float | None
    to_bulk: float | None
    """The same by that of fastpush's `send_many` of the same round."""
    pushes_per_second: float
    peak_octets: int
    rounds: int
    versions: str


def run_rounds(
    contenders: Sequence[Contender],
    run: Callable[[Contender], Report],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Row]:
    """Run each contender once a round, in an order that turns by one each round.

    One for which `run` raises `NoFigure` is left out of the later rounds, and has no figure.
    """
    rows = {contender.name: Row(contender, missing=contender.missing()) for contender in contenders}
    for number in range(rounds):
        turned = [*contenders[number % len(contenders) :], *contenders[: number % len(contenders)]]
        for contender in turned:
            row = rows[contender.name]
            if row.failures or row.missing:
                continue
            try:
                report = run(contender)
            except NoFigure as reason:
                row.failures.append(str(reason))
                say(f"round {number + 1} {contender.name}: no figure: {reason}")
            else:
                row.runs.append((number, report))
                cpu = 1e6 * report.cpu_seconds / (report.accepted - contender.warm_up)
                say(f"round {number + 1} {contender.name}: {cpu:.2f} us CPU a push")
    return rows


def run_one(contender: Contender, server: Server, job: Job, cores: Cores) -> Report:
    """Run the contender and compare its count with the sink's: a new one, unless it counts as it runs.

    Raises:
      NoFigure: it ended badly, not all pushes were accepted, or the sink counts another number of
        answers or, where it counts them, of connections.
    """
    before = server.tally() if server.counts_while_running else Tally(0)
    report = run_alone(contender, job, cores)
    after = server.tally()
    expected = job.pushes + job.warm_up
    if report.accepted != expected:
        raise NoFigure(f"{report.accepted:,} of {expected:,} were accepted")
    if after.answered - before.answered != expected:
        raise NoFigure(f"the sink answered {after.answered - before.answered:,} for {expected:,}")
    if after.connections is None:
        return report
    used, allowed = after.connections - (before.connections or 0), contender.connections or expected
    if used > allowed or (used < allowed and not contender.connections_vary):
        raise NoFigure(f"it used {used} connections, not {allowed}")
    return report


def run_alone(contender: Contender, job: Job, cores: Cores) -> Report:
    """Run the contender in a process of its own, and take its word.

    Raises:
      NoFigure: it ended badly; the message has its last line.
    """
    return Report(**json.loads(last_line(contender, job.to_json(), cores)))


def last_line(contender: Contender, job: str, cores: Cores) -> str:
    """Run the contender in a process of its own with this job, and return the last line that it printed.

    Raises:
      NoFigure: it ended badly; the message has the last line of what it said of that.
    """
    command = [*contender.command, job]
    if cores.client is not None:
        command = ["taskset", "-c", str(cores.client), *command]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CONTENDER_WITHIN,
            check=False,
            cwd=ROOT,
            env=contender.surroundings(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoFigure(str(error).replace(job, "…")) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise NoFigure(f"ended with {done.returncode}: {lines[-1][:200]}")
    return done.stdout.splitlines()[-1]


def figures_of(row: Row, rows: dict[str, Row], pushes: int, h2load_pushes: int) -> Figures | None:
    """Medians over the rounds; None when any run of the contender was wrong."""
    if row.failures or not row.runs:
        return None

    def beside(name: str) -> list[float]:
        """The CPU per push by that of this one, which sends as many as h2load, round by round."""
        base = {number: report.cpu_seconds / h2load_pushes for number, report in rows[name].runs}
        return [report.cpu_seconds / pushes / base[number] for number, report in row.runs if number in base]

    ratios = beside(H2LOAD.name)
    to_bulk = beside(BULK) if BULK in rows and not rows[BULK].failures else []
    reports = [report for _, report in row.runs]
    return Figures(
        name=row.contender.name,
        title=row.contender.title,
        pushes=pushes,
        cpu_microseconds=statistics.median(row.cpu_microseconds(pushes)),
        ratio=statistics.median(ratios) if ratios else None,
        ratio_lowest=min(ratios, default=None),
        ratio_highest=max(ratios, default=None),
        to_bulk=statistics.median(to_bulk) if to_bulk else None,
        pushes_per_second=statistics.median(pushes / report.wall_seconds for report in reports),
        peak_octets=int(statistics.median(report.peak_octets for report in reports)),
        rounds=len(reports),
        versions=reports[0].versions,
    )


def conditions() -> dict[str, Any]:
    """Where and with what it was run: nothing is worth comparing without."""
    return {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
        "commit": commit(),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    model = found.get("model name", "unknown")
    return f"{model} (family {found.get('cpu family')}, model {found.get('model')})"


def commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
