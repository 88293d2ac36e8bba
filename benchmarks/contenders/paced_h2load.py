"""h2load at a given rate: its `--rps`, and its log of every request.

The log tells when a request was submitted. With one connection the tick at which it was due is found from
that (`percentiles.intended_by_ticks`); several have several timers and one log, so it counts from submission.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import data
from benchmarks.contenders.h2load import fields
from benchmarks.contenders.pacing import PacedJob, PacedReport
from benchmarks.percentiles import intended_by_ticks
from benchmarks.servers import find


def main() -> None:
    job = PacedJob.from_arguments()
    token = next(data.device_tokens(job.seed, 1))
    with tempfile.TemporaryDirectory() as name:
        log, body = Path(name, "log"), Path(name, "body")
        body.write_bytes(data.body_for(0, job.body_octets))
        pace = (
            [f"--requests={round(job.rate * job.seconds)}", f"--rps={job.rate / job.connections:.3f}"]
            if job.rate
            else [f"--duration={job.seconds:.3f}s"]
        )
        process = subprocess.Popen(
            [
                find("h2load", "nghttp2-client"),
                *pace,
                f"--clients={job.connections}",
                "--max-concurrent-streams=1000",
                f"--data={body}",
                f"--log-file={log}",
                *(f"--header={name}: {value}" for name, value in fields(job.provider_token).items()),
                f"https://{job.host}:{job.port}/3/device/{token}",
            ],
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"h2load ended with {process.returncode}")
        # Start in microseconds since 1970, status, microseconds to the end of the answer.
        logged = [tuple(map(int, line.split()[:3])) for line in log.read_text().splitlines()]
    logged.sort()
    starts = [start / 1e6 for start, _, _ in logged]
    one_timer = job.rate and job.connections == 1
    intended = intended_by_ticks(starts, job.rate) if one_timer else starts
    rows = [
        (due, start, start + took / 1e6)
        for due, start, (_, _, took) in zip(intended, starts, logged, strict=True)
    ]
    accepted = sum(status == 200 for _, status, _ in logged)
    PacedReport.of(job, rows, accepted, usage.ru_utime + usage.ru_stime).print()


if __name__ == "__main__":
    main()
