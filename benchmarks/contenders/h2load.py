"""h2load as a contender: the load generator of nghttp2, in C; the measure for the others.

It sends the header fields that the others send and a body file of the same size, to one device token with one
apns-id, since it cannot vary them. Its CPU is that of its whole process, start and handshake included.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from benchmarks import data
from benchmarks.contenders import Job, Report
from benchmarks.servers import find, version_of

APNS_ID = "123e4567-e89b-12d3-a456-4266554400a0"


def main() -> None:
    job = Job.from_arguments()
    program = find("h2load", "nghttp2-client")
    fields = {
        "apns-id": APNS_ID,
        "apns-topic": data.TOPIC,
        "apns-push-type": data.PUSH_TYPE,
        "apns-priority": str(data.PRIORITY),
        "apns-expiration": str(data.EXPIRATION),
        "authorization": "bearer " + job.provider_token,
    }
    token = next(data.device_tokens(job.seed, 1))
    with tempfile.NamedTemporaryFile() as body:
        body.write(data.body(0))
        body.flush()
        process = subprocess.Popen(
            [
                program,
                f"--requests={job.pushes}",
                "--clients=1",
                f"--max-concurrent-streams={job.streams}",
                f"--data={body.name}",
                *(f"--header={name}: {value}" for name, value in fields.items()),
                f"https://{job.host}:{job.port}/3/device/{token}",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        peak = PeakMemory(process.pid)
        assert process.stdout is not None
        output = process.stdout.read()
        peak.stop()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"h2load ended with {process.returncode}")
    Report(
        accepted=number_before(r" 2xx", output),
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        wall_seconds=job.pushes / float(found(r"([\d.]+) req/s", output)),
        peak_octets=peak.octets,
        versions="h2load " + version_of([program, "--version"]),
    ).print()


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


def number_before(what: str, output: str) -> int:
    return int(found(r"(\d+)" + what, output))


if __name__ == "__main__":
    main()
