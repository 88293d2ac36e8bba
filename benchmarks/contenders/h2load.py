"""h2load as a contender: the load generator of nghttp2, in C; the measure for the others.

It sends the header fields that the others send and a body file of the same size, to one device token with one
apns-id, since it cannot vary them. Its CPU is that of its whole process, less that of a run with one request.
A first argument is the number of connections.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from benchmarks import data
from benchmarks.contenders import Job, Report
from benchmarks.servers import find, version_of

APNS_ID = "123e4567-e89b-12d3-a456-4266554400a0"


class Run(NamedTuple):
    """One life of h2load."""

    output: str
    cpu_seconds: float
    peak_octets: int


def main() -> None:
    job = Job.from_arguments()
    program = find("h2load", "nghttp2-client")
    with tempfile.NamedTemporaryFile() as body:
        body.write(data.body(0))
        body.flush()
        # What it spends to start and to shake hands, which the others do not count either.
        start = [run(program, job, job.warm_up, body.name)] if job.warm_up else []
        measured = run(program, job, job.pushes, body.name)
    Report(
        accepted=sum(int(found(r"(\d+) 2xx", one.output)) for one in (*start, measured)),
        cpu_seconds=measured.cpu_seconds - sum(one.cpu_seconds for one in start),
        wall_seconds=job.pushes / float(found(r"([\d.]+) req/s", measured.output)),
        peak_octets=measured.peak_octets,
        versions="h2load " + version_of([program, "--version"]),
    ).print()


def run(program: str, job: Job, requests: int, body: str) -> Run:
    token = next(data.device_tokens(job.seed, 1))
    clients = sys.argv[1] if len(sys.argv) > 2 else "1"
    command = [
        program,
        f"--requests={requests}",
        f"--clients={clients}",
        f"--max-concurrent-streams={min(job.streams, requests)}",
        f"--data={body}",
        *(f"--header={name}: {value}" for name, value in fields(job.provider_token).items()),
        f"https://{job.host}:{job.port}/3/device/{token}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = PeakMemory(process.pid)
    assert process.stdout is not None
    output = process.stdout.read()
    peak.stop()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"h2load ended with {process.returncode}")
    return Run(output, usage.ru_utime + usage.ru_stime, peak.octets)


def fields(provider_token: str) -> dict[str, str]:
    """The header fields beside the pseudo-header fields, the same in every request."""
    return {
        "apns-id": APNS_ID,
        "apns-topic": data.TOPIC,
        "apns-push-type": data.PUSH_TYPE,
        "apns-priority": str(data.PRIORITY),
        "apns-expiration": str(data.EXPIRATION),
        "authorization": "bearer " + provider_token,
    }


class PeakMemory:
    """Look at a process's largest resident set now and then: wait4 would tell the parent's, if larger."""

    def __init__(self, pid: int) -> None:
        self.octets = 0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            try:
                text = self._status.read_text()
            except OSError:
                return
            if size := re.search(r"VmHWM:\s+(\d+) kB", text):
                self.octets = max(self.octets, int(size[1]) * 1024)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def found(pattern: str, output: str) -> str:
    match = re.search(pattern, output)
    if match is None:
        sys.exit(f"h2load printed nothing like {pattern!r}")
    return match[1]


if __name__ == "__main__":
    main()
